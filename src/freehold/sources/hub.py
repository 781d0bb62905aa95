"""A Hugging Face hub, or a mirror that speaks its API: what a repository holds at a commit, and its files' bytes.

huggingface_hub (the extra `hub`) knows the routes and the answers. It is told to say nothing of this machine, to take
no token but ours, and to use our HTTP client. The bytes come by a loop of our own over that client: its downloader
writes whatever a server sends, to the end of the disk, and no file above 50 GB.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import urlsplit

from msgspec import Struct

from freehold import __version__
from freehold.errors import BadConfig, Forbidden, FreeholdError, HubFailed, Refused, Unknown

if TYPE_CHECKING:
    import httpx2

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_MAX_ANSWER_BYTES = 32 << 20  # of the API: a listing of 10,000 files has about 4 MB
_MAX_SCAN = 2000  # characters of it that are kept
_CONNECT_S, _STALL_S = 10.0, 20.0
_PAUSES_S = (0, 1, 2, 4, 8)  # before the next try; only tries in a row that bring no byte count
_PATIENCE_S = 120  # the longest Retry-After that is waited for
_IS_FILE = "freehold_file"  # on a request and what it is redirected to
_BUSY = {408, 429, 500, 502, 503, 504}


class Listed(Struct, frozen=True, kw_only=True):
    """A file as the hub lists it. What the hub does not say is None or ""."""

    name: str
    size_bytes: int | None
    sha256: str = ""  # of what is kept in Git LFS
    blob: str = ""  # of the others: Git's SHA-1 of the blob


class Listing(Struct, frozen=True, kw_only=True):
    """A repository at one commit."""

    repo: str  # as the hub spells it
    commit: str  # 40 hex digits
    files: tuple[Listed, ...]
    scan: str  # the hub's own security scan, in JSON: evidence


class Hub:
    """One hub. Raises BadConfig for an address, a token or certificates that cannot be used."""

    def __init__(
        self,
        url: str,
        *,
        token_file: str | None = None,
        ca_file: str | None = None,
        proxy: str | None = None,
        stall_s: float = _STALL_S,
    ) -> None:
        self.url = url.rstrip("/")
        self._scheme, self._host = _address(self.url)
        self._token = _read_token(Path(token_file)) if token_file else ""
        if self.plain and self._token:
            raise BadConfig(f"[hub] the token would cross the network unencrypted to {url}", hint="use an https:// url")
        self._trusted = _trusted(ca_file) if ca_file else True
        self._proxy, self._stall_s, self._token_file = proxy, stall_s, token_file
        self._over = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._library = _library()
        self._library.set_client_factory(self._client)

    @property
    def plain(self) -> bool:
        """Whether what it says crosses a network unencrypted."""
        return self._scheme == "http" and self._host not in _LOOPBACK

    def listing(self, repo: str, revision: str) -> Listing:
        """What the repository holds at a branch, tag or commit.

        Raises Unknown, Forbidden, Refused for an answer that cannot be true, HubFailed.
        """
        for tries in range(1, 4):
            try:
                return self._listing(repo, revision)
            except HubFailed as error:
                self._pause(error, tries, 3)
        raise AssertionError  # the last pause raises

    def read(self, listing: Listing, file: Listed, start: int) -> Iterator[bytes]:
        """The bytes of a file from `start` to the size that was listed; after a break it goes on where it was.

        Raises as `listing`; Refused as soon as there are more bytes than were listed.
        """
        at, tries, size = start, 0, file.size_bytes or 0
        while at < size:
            try:
                for chunk in self._stream(listing, file, at):
                    tries, at = 0, at + len(chunk)
                    yield chunk
                broke = HubFailed(f"{file.name} ended after {at:,} of {size:,} bytes", retry_after_s=0)
            except HubFailed as error:
                broke = error
            if at < size:
                tries += 1
                self._pause(broke, tries, len(_PAUSES_S))

    def hang_up(self) -> None:
        """End every download, also those that other threads wait for."""
        self._over.set()
        for held in tuple(self._sockets):
            with suppress(OSError):  # it is closed
                held.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._library.close_session()

    def _pause(self, error: HubFailed, tries: int, most: int) -> None:
        """Wait before the next try, or raise what happened."""
        wait_s = error.retry_after_s
        if wait_s is None or tries >= most or wait_s > _PATIENCE_S:
            raise error
        if self._over.wait(max(wait_s, _PAUSES_S[tries - 1])):
            raise error  # somebody hung up

    def _listing(self, repo: str, revision: str) -> Listing:
        api = self._library.HfApi(endpoint=self.url, token=False)
        with self._explained(repo, revision):
            try:
                info = api.model_info(
                    repo, revision=revision, files_metadata=True, securityStatus=True, timeout=self._stall_s
                )
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise HubFailed(f"{self.url} does not answer as a hub does: {error}", hint="[hub] url") from None
        files = tuple(_listed(each) for each in info.siblings or ())
        scan = json.dumps(info.security_repo_status, separators=(",", ":")) if info.security_repo_status else ""
        return Listing(repo=str(info.id), commit=str(info.sha), files=files, scan=scan[:_MAX_SCAN])

    def _stream(self, listing: Listing, file: Listed, at: int) -> Iterator[bytes]:
        url = self._library.hf_hub_url(listing.repo, file.name, revision=listing.commit, endpoint=self.url)
        asked = {"Range": f"bytes={at}-"} if at else {}
        session, left = self._library.get_session(), (file.size_bytes or 0) - at
        request = session.stream("GET", url, headers=asked, extensions={_IS_FILE: True})
        with self._explained(listing.repo, listing.commit), request as answer:
            self._library.utils.hf_raise_for_status(answer)
            _compare(answer, listing, file)
            skip = at if answer.status_code == 200 else 0  # it does not know ranges, and began at the beginning
            for received in answer.iter_raw():
                chunk, skip = received[skip:], max(0, skip - len(received))
                left -= len(chunk)
                if left < 0:
                    raise Refused(f"the hub sends more of {file.name} than the {file.size_bytes:,} bytes it listed")
                if chunk:
                    yield chunk

    def _client(self) -> httpx2.Client:
        import httpx2

        return httpx2.Client(
            verify=self._trusted,
            proxy=self._proxy,
            trust_env=self._host not in _LOOPBACK,  # the environment's proxy is for other machines
            timeout=httpx2.Timeout(self._stall_s, connect=_CONNECT_S),
            follow_redirects=True,
            max_redirects=5,
            event_hooks={"request": [self._before], "response": [_bound]},
        )

    def _before(self, request: httpx2.Request) -> None:
        """Each request, those of redirects too: only the hub itself gets the token, and nothing falls back to http."""
        if self._over.is_set():
            raise HubFailed("the pull is over")
        request.extensions = {**request.extensions, "trace": self._connected}
        scheme = request.url.scheme
        if scheme != "https" and (self._scheme == "https" or scheme != "http"):
            raise Refused(
                f"{self.url} redirects to {scheme}://{request.url.host}, where anybody could answer",
                hint="ask who runs this hub or mirror; [hub] url names another",
            )
        home = urlsplit(self.url)
        there = (scheme, request.url.host, request.url.port or _port(scheme))
        if self._token and there == (self._scheme, self._host, home.port or _port(self._scheme)):
            request.headers["Authorization"] = f"Bearer {self._token}"
        else:
            request.headers.pop("Authorization", None)
        request.headers["User-Agent"] = f"freehold/{__version__}"
        request.headers["Accept-Encoding"] = "identity"  # so that ranges and sizes mean the file itself

    def _connected(self, _: str, info: dict[str, Any]) -> None:
        """Every stage of a request comes by here: of a new connection, or its TLS, the socket is kept for `hang_up`."""
        look = getattr(info.get("return_value"), "get_extra_info", None)
        if look and (held := look("socket")):
            self._sockets.add(held)
            if self._over.is_set():
                held.close()

    @contextmanager
    def _explained(self, repo: str, revision: str) -> Iterator[None]:
        """What went wrong on the way, as an error of ours; with `retry_after_s` where trying again can help."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        try:
            yield
        except HfHubHTTPError as error:
            self._refused(error.response, repo, revision)
        except httpx2.HTTPError as error:
            if _cause(error, ssl.SSLCertVerificationError):
                hint = "[hub] ca_file names the certificates of your own authority, in PEM"
                raise HubFailed(f"the certificate of {self.url} is not trusted: {error}", hint=hint) from None
            how = f" by the proxy {self._proxy}" if self._proxy else ""
            hint = "check [hub] url and proxy, and the network; what is there is kept, and the next pull goes on"
            said = str(error) or type(error).__name__
            raise HubFailed(f"{self.url} cannot be reached{how}: {said}", hint=hint, retry_after_s=0) from None

    def _refused(self, answer: httpx2.Response, repo: str, revision: str) -> NoReturn:
        """What a status means: 404 and 401 are told apart by X-Error-Code, where the hub sends it."""
        status, code = answer.status_code, answer.headers.get("X-Error-Code", "")
        page = f"{self.url}/{repo}"
        who = f"the token in {self._token_file}" if self._token else "nobody ([hub] token_file is not set)"
        how = "put a token that may read it into a file of mode 600 and name that in [hub] token_file"
        if status in _BUSY:
            wait = answer.headers.get("Retry-After", "")
            wait_s = int(wait) if re.fullmatch(r"\d{1,6}", wait) else 0
            hint = f"try again in {wait_s} s" if wait_s else "try again later"
            raise HubFailed(f"{self.url} answers {status}", hint=hint, retry_after_s=wait_s)
        if code == "GatedRepo":
            hint = f"accept its licence at {page}; then {how}"
            raise Forbidden(f"{repo} is gated, and {who} was not let in", hint=hint)
        if code == "RevisionNotFound":
            hint = f"{page}/refs lists branches and tags"
            raise Unknown(f"{repo} has no branch, tag or commit {revision!r}", hint=hint)
        if code == "EntryNotFound":
            raise HubFailed(f"the hub lists a file that it does not have: {answer.url.path}", hint="try again later")
        if status == 404:
            raise Unknown(f"{self.url} has no repository {repo}", hint=f"look at {page}; if it is private: {how}")
        if status in (401, 403):
            hint = f"if it exists ({page}): {how}"
            raise Forbidden(f"{repo} is not there, or is private: {who} was not let in ({status})", hint=hint)
        raise HubFailed(f"{self.url} answers {status} for {answer.url.path}", hint="[hub] url: is it a hub?")


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


def _address(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.query:
        raise BadConfig(f"[hub] url = {url!r} is no address of a hub", hint='url = "https://huggingface.co"')
    return parts.scheme, parts.hostname


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _read_token(path: Path) -> str:
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
    lfs, size = sibling.lfs, sibling.size
    return Listed(
        name=str(sibling.rfilename),
        size_bytes=size if isinstance(size, int) else None,
        sha256=str(lfs["sha256"]) if lfs else "",
        blob=str(sibling.blob_id or ""),
    )


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
            raise Refused(
                f"{answer.url.host} answers with more than {_MAX_ANSWER_BYTES >> 20} MiB, which is no listing"
            )
    stream.close()
    answer.stream = httpx2.ByteStream(bytes(body))


def _compare(answer: httpx2.Response, listing: Listing, file: Listed) -> None:
    """What the hub says of a file, before its bytes: sparing a download that could only be refused."""
    first = (*answer.history, answer)[0]  # the later ones are not the hub's own
    commit = first.headers.get("X-Repo-Commit", listing.commit)
    if commit != listing.commit:
        raise Refused(f"the hub answers with commit {commit[:60]}, and {listing.commit} was asked for")
    sha256 = first.headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"')
    if file.sha256 and re.fullmatch(r"[0-9a-f]{64}", sha256) and sha256 != file.sha256:
        raise Refused(f"the hub lists {file.name} with the sha256 {file.sha256}, and offers one with {sha256}")


def _cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None
