"""TLS with a certificate of the team's own: the real client over it, its renewal, and what is refused."""

import datetime as dt
import os
import signal
import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
from asking import chat
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from freehold.errors import BadConfig
from freehold.gateway.tls import Certificate

DAY = dt.timedelta(days=1)
PEM = serialization.Encoding.PEM


class Authority:
    """A certificate authority of a team's own, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the team's CA")])
        self.certificate = self._signed(self.name, self.key, 3650 * DAY, ca=True)
        self.path = folder / "ca.pem"
        self.path.write_bytes(self.certificate.public_bytes(PEM))

    def issue(self, name="tls", *, lasts=90 * DAY, password: bytes | None = None) -> tuple[Path, Path]:
        """A new certificate for localhost, and its key; files of that name are replaced."""
        key = ec.generate_private_key(ec.SECP256R1())
        signed = self._signed(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")]), key, lasts)
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        paths[0].write_bytes(signed.public_bytes(PEM) + self.certificate.public_bytes(PEM))
        paths[1].write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, hidden))
        return paths

    def _signed(self, name, key, lasts, *, ca=False) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder(
            self.name, name, key.public_key(), x509.random_serial_number(), now + min(-DAY, lasts - DAY), now + lasts
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        return builder.add_extension(names, critical=False).sign(self.key, hashes.SHA256())


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def secured(team, **more) -> None:
    lines = 'tls_certificate = "tls.pem"\ntls_key = "tls.key"'
    team.write(server=lines, tiny=team.fake(), **more)


def serial(url: str, authority) -> int:
    """Of the certificate that a server shows."""
    context, at = ssl.create_default_context(cafile=authority.path), urlsplit(url)
    plain = socket.create_connection((at.hostname, at.port), timeout=10)
    with context.wrap_socket(plain, server_hostname="localhost") as wrapped:
        assert wrapped.version() == "TLSv1.3"
        shown = wrapped.getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(shown).serial_number


def test_the_real_client_over_tls_and_a_renewal_while_it_serves(team, authority):
    authority.issue()
    secured(team)
    team.serve()
    assert team.url.startswith("https://127.0.0.1:")
    by_name = team.url.replace("127.0.0.1", "localhost")
    client = openai.OpenAI(
        base_url=by_name, api_key=team.key, max_retries=0,
        http_client=openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=authority.path)),
    )  # fmt: skip
    with client:
        assert chat(client, model="tiny").choices[0].message.content.startswith(" w0")
        streamed = chat(client, model="tiny", stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in streamed if c.choices).endswith(" w7")
        before = serial(team.url, authority)
        authority.issue(lasts=3 * DAY)
        os.kill(team.process.pid, signal.SIGHUP)
        team.until(lambda: serial(team.url, authority) != before)
        assert chat(client, model="tiny").usage.completion_tokens == 8  # on the connection it had
    with pytest.raises(openai.APIConnectionError):  # somebody who does not know the authority
        chat(openai.OpenAI(base_url=by_name, api_key=team.key, max_retries=0), model="tiny")
    assert len(team.events("tls.loaded")) == 2
    (expiring,) = team.events("tls.expiring")
    assert 2 < expiring["detail"]["days"] <= 3


def test_a_renewal_that_is_no_good_changes_nothing(team, authority):
    authority.issue()
    secured(team)
    team.serve()
    before = serial(team.url, authority)
    (team.folder / "tls.pem").write_bytes(authority.issue("other")[0].read_bytes())  # and the key of the one before
    os.kill(team.process.pid, signal.SIGHUP)
    (refused,) = team.until(lambda: team.events("tls.refused"))
    assert "does not belong to its key" in refused["detail"]["reason"]
    assert serial(team.url, authority) == before


def test_up_asks_its_question_over_tls(team, authority):
    authority.issue()
    secured(team, listen="0.0.0.0:0")  # with TLS others may come
    try:
        said = team.run("up")
    finally:
        team.run("down", code=None)
    assert "base URL  https://" in said
    assert "8 completion tokens, ok" in said


def test_plain_http_is_no_way_in(team, authority):
    authority.issue()
    secured(team)
    team.serve()
    at = urlsplit(team.url)
    with socket.create_connection((at.hostname, at.port), timeout=10) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = plain.recv(1000)
    assert b"200" not in answer


def test_an_expired_certificate_is_said_and_served(authority):
    held = Certificate(*authority.issue(lasts=-3 * DAY))
    assert held.until < dt.datetime.now(dt.UTC)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda certificate, key: key.unlink(), "cannot be read"),
        (lambda certificate, key: certificate.unlink(), "cannot be read"),
        (lambda certificate, key: key.write_bytes(b""), "cannot be used"),
        (lambda certificate, key: certificate.write_text("no certificate"), "cannot be used"),
    ],
)
def test_what_cannot_be_served_with_is_refused(authority, spoil, says):
    paths = authority.issue()
    spoil(*paths)
    with pytest.raises(BadConfig, match=says) as refused:
        Certificate(*paths)
    assert "PEM" in refused.value.hint


def test_a_key_of_another_certificate_or_with_a_password_is_refused(authority):
    certificate, _ = authority.issue()
    _, key = authority.issue("other")
    with pytest.raises(BadConfig, match="does not belong to its key"):
        Certificate(certificate, key)
    with pytest.raises(BadConfig, match="the key has a password"):
        Certificate(*authority.issue("hidden", password=b"secret"))


def test_a_file_that_did_not_change_is_not_read_again(authority):
    held = Certificate(*authority.issue())
    assert held.context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert not held.renew()
    authority.issue(lasts=200 * DAY)
    assert held.renew()
    assert held.until > dt.datetime.now(dt.UTC) + 199 * DAY
