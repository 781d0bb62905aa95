"""A Hugging Face hub, or a mirror that speaks its API: what a repository holds at a commit, and its files' bytes.

huggingface_hub (the extra `hub`) knows the routes and the answers. It is told to say nothing of this machine, to take
no token but ours, and to use our HTTP client. The bytes come by a loop of our own over that client: its downloader
writes whatever a server sends, to the end of the disk, and no file above 50 GB.
"""

from __future__ import annotations

import json
import re
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct

from freehold import __version__
from freehold.errors import BadConfig, Forbidden, FreeholdError, HubFailed, Refused, Unknown

if TYPE_CHECKING:
    import httpx2

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_MAX_ANSWER_BYTES = 32 << 20  # of the API: a listing of 10,000 files has about 4 MB
_MAX_SCAN = 2000  # characters of it that are kept
_STALL_S = 20.0
_PAUSES_S = (0, 1, 2, 4, 8)  # before the next try; only tries in a row that bring nothing count
_PATIENCE_S = 120  # the longest Retry-After that is waited for
_IS_FILE = "freehold_file"  # on a request and what it is redirected to
_COMMIT = r"[0-9a-f]{40}"
_BUSY = {408, 429, 500, 502, 503, 504}


class Listed(Struct, frozen=True, kw_only=True):
    """A file as the hub lists it."""

    name: str
    size_bytes: int
    digest: str  # SHA-256 of what is kept in Git LFS, Git's SHA-1 of the others

    @property
    def in_lfs(self) -> bool:
        return len(self.digest) == 64


class Listing(Struct, frozen=True, kw_only=True):
    """A repository at one commit."""

    repo: str
    commit: str  # 40 hex digits
    files: tuple[Listed, ...]
    scan: str  # the hub's own security scan, in JSON: evidence


class Hub:
    """One hub. Raises BadConfig for an address, a token or certificates that cannot be used."""

    def __init__(
        self, url: str, *, token_file: str | None = None, ca_file: str | None = None, proxy: str | None = None
    ) -> None:
        self._library = _library()
        self.url = url.rstrip("/")
        self._origin = _origin(self.url)
        self._token, self._token_file = _read_token(token_file) if token_file else "", token_file
        self._trusted = _trusted(ca_file) if ca_file else True
        self._proxy = proxy
        self._over = threading.Event()
        self._library.set_client_factory(self._client)

    def listing(self, repo: str, revision: str) -> Listing:
        """What the repository holds at a branch, tag or commit.

        Raises Unknown, Forbidden, Refused for an answer that cannot be true, HubFailed.
        """
        api = self._library.HfApi(endpoint=self.url, token=False)
        with self._explained(repo, revision):
            info = api.model_info(repo, revision=revision, files_metadata=True, securityStatus=True, timeout=_STALL_S)
            files = tuple(_listed(each) for each in info.siblings or ())
        commit = str(info.sha)
        if info.id != repo:
            hint = "policy is asked about a repository as the hub spells it; perhaps this one was renamed"
            raise Refused(f"the hub answers for {str(info.id)[:200]!r}, not for {repo}", hint=hint)
        if not re.fullmatch(revision if re.fullmatch(_COMMIT, revision) else _COMMIT, commit):
            said = f"the hub answers with commit {commit[:60]!r} for {repo} at {revision}"
            raise Refused(said, hint="[hub] url: is it a hub?")
        scan = json.dumps(info.security_repo_status, separators=(",", ":")) if info.security_repo_status else ""
        return Listing(repo=repo, commit=commit, files=files, scan=scan[:_MAX_SCAN])

    def read(self, listing: Listing, file: Listed, start: int) -> Iterator[bytes]:
        """The bytes of a file from `start` to the size that was listed; after a break it goes on where it was.

        Raises as `listing`; Refused as soon as there are more bytes than were listed.
        """
        at, tries = start, 0
        while at < file.size_bytes:
            broke = None
            try:
                for chunk in self._stream(listing, file, at):
                    tries, at = 0, at + len(chunk)
                    yield chunk
            except HubFailed as error:
                broke = error
            if at < file.size_bytes:
                said = f"{file.name} ended after {at:,} of {file.size_bytes:,} bytes"
                self._pause(broke or HubFailed(said, hint="pull again later", retry_after_s=0), tries)
                tries += 1

    def hang_up(self) -> None:
        """End every download, also those of other threads: at the next bytes that come, or when none do."""
        self._over.set()

    def close(self) -> None:
        self._library.close_session()

    def _pause(self, error: HubFailed, tries: int) -> None:
        """Wait before the next try, or raise what happened."""
        wait_s = error.retry_after_s
        if wait_s is None or tries == len(_PAUSES_S) or wait_s > _PATIENCE_S:
            raise error
        if self._over.wait(max(wait_s, _PAUSES_S[tries])):
            raise error  # somebody hung up

    def _stream(self, listing: Listing, file: Listed, at: int) -> Iterator[bytes]:
        url = self._library.hf_hub_url(listing.repo, file.name, revision=listing.commit, endpoint=self.url)
        asked = {"Range": f"bytes={at}-"} if at else {}
        request = self._library.get_session().stream("GET", url, headers=asked, extensions={_IS_FILE: True})
        with self._explained(listing.repo, listing.commit), request as answer:
            self._library.utils.hf_raise_for_status(answer)
            skip = at if answer.status_code == 200 else 0  # it does not know ranges, and began at the beginning
            for received in answer.iter_raw():
                if self._over.is_set():
                    raise HubFailed("the pull is over")
                chunk, skip = received[skip:], max(0, skip - len(received))
                at += len(chunk)
                if at > file.size_bytes:
                    raise Refused(f"the hub sends more of {file.name} than the {file.size_bytes:,} bytes it listed")
                if chunk:
                    yield chunk

    def _client(self) -> httpx2.Client:
        import httpx2

        try:
            return httpx2.Client(
                verify=self._trusted,
                proxy=self._proxy,
                trust_env=self._origin[1] not in _LOOPBACK,  # the environment's proxy is for other machines
                timeout=_STALL_S,
                follow_redirects=True,
                max_redirects=5,
                event_hooks={"request": [self._before], "response": [_bound]},
            )
        except (ValueError, httpx2.InvalidURL, ImportError) as error:  # the latter: SOCKS
            hint = '[hub] proxy = "http://host:port"; without it the environment\'s HTTPS_PROXY or ALL_PROXY is used'
            raise BadConfig(f"the proxy on the way to {self.url} cannot be used: {error}", hint=hint) from None

    def _before(self, request: httpx2.Request) -> None:
        """Each request, those of redirects too: only the hub itself gets the token, and nothing falls back to http."""
        url = request.url
        if url.scheme not in ("https", self._origin[0]):
            raise Refused(
                f"{self.url} redirects to {url.scheme}://{url.host}, where anybody could answer",
                hint="ask who runs this hub or mirror; [hub] url names another",
            )
        request.headers.pop("Authorization", None)
        if self._token and (url.scheme, url.host, url.port) == self._origin:
            request.headers["Authorization"] = f"Bearer {self._token}"
        request.headers["User-Agent"] = f"freehold/{__version__}"
        request.headers["Accept-Encoding"] = "identity"  # so that ranges and sizes mean the file itself

    @contextmanager
    def _explained(self, repo: str, revision: str) -> Iterator[None]:
        """What went wrong on the way, as an error of ours; with `retry_after_s` where trying again can help."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        try:
            yield
        except HfHubHTTPError as error:
            raise self._meaning(error.response, repo, revision) from None
        except httpx2.HTTPError as error:
            said = str(error) or type(error).__name__
            hint = "check [hub] url, proxy and ca_file, and the network; what came is kept, and the next pull goes on"
            raise HubFailed(f"{self.url} cannot be reached: {said}", hint=hint, retry_after_s=0) from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # of huggingface_hub
            raise HubFailed(f"{self.url} does not answer as a hub does: {error}", hint="[hub] url") from None

    def _meaning(self, answer: httpx2.Response, repo: str, revision: str) -> FreeholdError:
        """What a status says. The hub does not tell those who may not read a repository whether there is one."""
        status, code = answer.status_code, answer.headers.get("X-Error-Code", "")
        if status in _BUSY:
            wait = answer.headers.get("Retry-After", "")
            wait_s = int(wait) if re.fullmatch(r"\d{1,6}", wait) else 0
            hint = f"try again in {wait_s} s" if wait_s else "try again later"
            return HubFailed(f"{self.url} answers {status}", hint=hint, retry_after_s=wait_s)
        if status not in (401, 403, 404):
            return HubFailed(f"{self.url} answers {status} for {answer.url.path}", hint="[hub] url: is it a hub?")
        who = f"the token in {self._token_file}" if self._token else "nobody ([hub] token_file is not set)"
        hint = f"look at {self.url}/{repo}; if it is gated, accept its licence there; if it is private or gated: "
        hint += "put a token that may read it into a file of mode 600 and name that in [hub] token_file"
        kind = Unknown if status == 404 else Forbidden
        return kind(f"{repo} at {revision} is not there, or {who} was not let in ({status} {code[:60]})", hint=hint)


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError:
        raise FreeholdError(
            "freehold pull needs huggingface_hub, which is not installed",
            hint="make hub, or pip install 'freehold[hub]'",
        ) from None
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # it would look for agents, and ask the hub about them
    return huggingface_hub


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port, the port None where it is the scheme's own. Over plain http anybody could answer."""
    import httpx2

    try:
        parts = httpx2.URL(url)
    except httpx2.InvalidURL:
        parts = httpx2.URL("")
    schemes = ("https", "http") if parts.host in _LOOPBACK else ("https",)
    if parts.scheme not in schemes or not parts.host or parts.userinfo or parts.query:
        hint = 'url = "https://huggingface.co"; an authority of your own goes into ca_file'
        raise BadConfig(f"[hub] url = {url!r} is no https:// address of a hub", hint=hint)
    return parts.scheme, parts.host, parts.port


def _read_token(token_file: str) -> str:
    path = Path(token_file)
    try:
        mode, token = path.stat().st_mode, path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"[hub] token_file: {error}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise BadConfig(f"[hub] token_file: others can read {path}", hint=f"chmod 600 {path}; then get a new token")
    if not re.fullmatch(r"[\x21-\x7e]{1,1000}", token):
        raise BadConfig(f"[hub] token_file: {path} holds no token", hint="one line, as the hub showed it")
    return token


def _trusted(ca_file: str) -> ssl.SSLContext:
    """Only this authority: whoever names one means that no other vouches for the hub."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BadConfig(f"[hub] ca_file: {ca_file}: {error}", hint="certificates in PEM") from None


def _listed(sibling: Any) -> Listed:
    name, size, lfs = str(sibling.rfilename), sibling.size, sibling.lfs
    digest = str(lfs["sha256"] if lfs else sibling.blob_id)
    if not isinstance(size, int) or size < 0 or not re.fullmatch(r"[0-9a-f]{64}" if lfs else r"[0-9a-f]{40}", digest):
        raise Refused(f"the hub gives no size and digest of {name[:200]!r}", hint="a mirror must pass them on")
    return Listed(name=name, size_bytes=size, digest=digest)


def _bound(answer: httpx2.Response) -> None:
    """Whatever is no file is read here, and only so far: an answer of the API, a redirect, an error."""
    import httpx2

    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise HubFailed(f"{answer.url.host} sends compressed data, which was not asked for", hint="[hub] proxy, url")
    if answer.status_code in (200, 206) and _IS_FILE in answer.request.extensions:
        return
    body, stream = bytearray(), cast("httpx2.SyncByteStream", answer.stream)
    for chunk in stream:
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            raise Refused(f"{answer.url.host} answers with more than {_MAX_ANSWER_BYTES >> 20} MiB: that is no listing")
    stream.close()
    answer.stream = httpx2.ByteStream(bytes(body))
