"""TLS with a certificate that somebody else renews: read at the start, and again when its file changes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from freehold.errors import BadConfig
from freehold.fleet.config import Server
from freehold.fleet.ground import Ground

LOOK_S = 60.0
WARN_DAYS = 14  # before its end


class Certificate:
    """`context` is what servers use. Connections that are open keep what they began with."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """PEM: `certificate` with those that signed it, without the root; `key` has no password. Raises BadConfig."""
        self._certificate, self._key = certificate, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._looks = self._look()
        self.until = self._load()

    def renew(self) -> bool:
        """Read the files again if they have changed. Raises BadConfig, and goes on with what it had."""
        looks = self._look()
        if looks == self._looks:
            return False
        self._looks = looks
        self.until = self._load()
        return True

    async def watch(self, ground: Ground) -> None:
        """Until cancelled: look each minute, and at once on SIGHUP. Events say what was found."""
        hung_up, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, hung_up.set)
        self._tell(ground)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(hung_up.wait(), LOOK_S)
                hung_up.clear()
                try:
                    if self.renew():
                        self._tell(ground)
                except BadConfig as error:
                    ground.tell("tls.refused", str(self._certificate), reason=str(error), until=self.until.isoformat())
        finally:
            loop.remove_signal_handler(signal.SIGHUP)

    def _tell(self, ground: Ground) -> None:
        subject, until = str(self._certificate), self.until.isoformat()
        ground.tell("tls.loaded", subject, until=until)
        days = (self.until.timestamp() - ground.clock_ns() / 1e9) / 86_400
        if days < WARN_DAYS:
            ground.tell("tls.expiring", subject, until=until, days=round(days, 1))

    def _load(self) -> datetime:
        """Into a context of its own first: one that took a certificate without its key would serve nobody."""
        try:
            trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            for context in (trial, self.context):
                context.load_cert_chain(self._certificate, self._key, password=_no_password)
            return x509.load_pem_x509_certificate(self._certificate.read_bytes()).not_valid_after_utc.astimezone(UTC)
        except ssl.SSLError as error:
            why = "does not belong to its key" if error.reason == "KEY_VALUES_MISMATCH" else f"cannot be used: {error}"
        except (OSError, ValueError) as error:
            why = f"cannot be read: {error}"
        raise BadConfig(
            f"[server] tls_certificate {self._certificate} with tls_key {self._key} {why}",
            hint="both are PEM: the certificate first, then those that signed it; the key has no password",
        )

    def _look(self) -> tuple[tuple[int, int], ...]:
        """Another when the files were replaced; those that are not there look like nothing."""
        looks = []
        for path in (self._certificate, self._key):
            with contextlib.suppress(OSError):
                found = path.stat()  # of what a link leads to: that is how some renew
                looks.append((found.st_mtime_ns, found.st_ino))
        return tuple(looks)


def certificate(server: Server) -> Certificate | None:
    """What `freehold.toml` names; None: callers come without TLS. Raises BadConfig."""
    if server.tls_certificate is None or server.tls_key is None:
        return None
    return Certificate(Path(server.tls_certificate), Path(server.tls_key))


def _no_password() -> str:
    raise ValueError("the key has a password")  # or OpenSSL would ask for it at the terminal
