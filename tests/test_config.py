"""freehold.toml: what is wrong is said with its place and what was probably meant."""

import pytest

from freehold.errors import BadConfig
from freehold.fleet.config import load

TWO = "[endpoints.a]\nengine = 'external'\n" + "[[endpoints.a.replicas]]\nurl = 'http://x'\n" * 2


def written(tmp_path, text):
    path = tmp_path / "freehold.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "says", "hints"),
    [
        ("[server]\nlisten_on = 'x'", "unknown key `listen_on` in [server]", "did you mean `listen`?"),
        ("[endpoints.a]\nweight = 'x'", "unknown key `weight` in [endpoints.a]", "`weights`"),
        ("[endpoint.a]\nweights = 'x'", "unknown key `endpoint` in [top level]", "`endpoints`"),
        ("[machine]\nqqq = 1", "unknown key `qqq`", "known keys: name, hourly_price"),
        ("[endpoints.a]\ncontext = 1", "needs weights", "weights ="),
        ("[endpoints.a]\nweights = 'x'\ncontext = 0", "context", "docs/freehold.toml"),
        ("[endpoints.a]\nweights = 'x'\nidle_seconds = -1", "idle_seconds", "docs/freehold.toml"),
        ("[endpoints.a]\nweights = 'x'\ncontext = '4k'", "context", "docs/freehold.toml"),
        ("[endpoints.'a/b']\nweights = 'x'", "not a usable name", "letters"),
        ("[endpoints.a]\nengine = 'vlm'\nweights = 'x'", "no engine 'vlm'", "external, llamacpp"),
        ("[endpoints.a]\nengine = 'external'", "needs url", "http://"),
        ("[endpoints.a]\nengine = 'external'\nurl = 'ftp://x'", "needs url", "http://"),
        ("[endpoints.a]\nengine = 'external'\nurl = 'http://x'\nweights = 'y'", "weights means nothing", ""),
        ("[endpoints.a]\nweights = 'x'\nurl = 'http://x'", "url means nothing", ""),
        ("[server]\nlisten = '0.0.0.0:80'", "without TLS", "behind_proxy"),
        ("[server]\nmetrics = '0.0.0.0:9464'", "metrics = '0.0.0.0:9464' is open to the network", "tls_certificate"),
        ("[server]\nmetrics = 'here'", "metrics = 'here' is no address", "127.0.0.1"),
        ("[server]\ntls_key = 'k.pem'", "[server] tls_certificate is missing", "PEM"),
        ("[server]\ntrusted_proxies = ['10.0.0.1/8']", "[server] trusted_proxies: no network", "10.0.0.0/8"),
        ("[server]\nlisten = 'nowhere'", "is no address", "127.0.0.1"),
        ("[server]\nlisten = '127.0.0.1:99999'", "is no address", "127.0.0.1"),
        ("[server\n", "cannot read", ""),
        ("[policy]\nresidency = ['Germny']", "[policy] residency: no country 'Germny'", "DE (Germany)"),
        ("[machine]\ncountry = 'XX'", "[machine] country: no country 'XX'", "ISO 3166"),
        ("[policy]\nuse = 'internal'\nserves_others = true", "contradict each other", "use = 'commercial'"),
        ("[policy]\nuse = 'fun'", "policy.use", "docs/freehold.toml"),
        ("[policy]\npublisher = ['x']", "unknown key `publisher` in [policy]", "`publishers`"),
        ("[policy.accepted.mit]\nby = 'x'\non = 2026-01-01", "why", "docs/freehold.toml"),
        ("[policy.accepted.mrl-0.1]\nby = 'x'", "unknown key `1` in [policy.accepted.mrl-0]", "known keys: by"),
        ("[endpoints.a]\nweights = 'x'\ncountry = 'DE'", "country means nothing", ""),
        ("[endpoints.a]\nweights = 'x'\nreplicas = [{ url = 'http://x' }]", "takes a number of replicas", "docs"),
        ("[endpoints.a]\nengine = 'external'\nurl = 'http://x'\nreplicas = 2", "takes [[endpoints.NAME.replicas]]", ""),
        ("[endpoints.a]\nweights = 'x'\nspeculative = 'draft'", "go together", "draft ="),
        ("[endpoints.a]\nweights = 'x'\ndraft_tokens = 5", "without speculative", "ngram"),
        ("[endpoints.a]\nweights = 'x'\nembeddings = true\nparallel = 2", "one request at a time", "parallel = 1"),
        ("[endpoints.a]\nengine = 'external'\nurl = 'http://x'\nmax_loras = 2", "max_loras means nothing", ""),
        ("[endpoints.a]\nengine = 'external'\nurl = 'http://x'\ncontext = 'auto'", "needs an engine", "name"),
        ("[[rates]]\nqqq = 1", "unknown key `qqq` in [rates]", "known keys"),
        ("[endpoints.a]\nengine = 'external'\nurl = 'http://:1'", "needs url", "http://"),
        (f"{TWO}ulr = 'x'", "unknown key `ulr` in [endpoints.a.replicas]", "`url`"),
        (f"{TWO}country = 'XX'", "[endpoints.a] replicas 2 country: no country", "ISO 3166"),
        (f"{TWO}[endpoints.a-2]\nweights = 'x'", "`a-2` is an endpoint", "another name"),
        (TWO.replace("[[", "country = 'DE'\n[[", 1), "country beside replicas", "in each table"),
        (TWO.replace("[[", "fallback = ['b']\n[[", 1), "fallback: `b` is no endpoint", "no others"),
        (TWO.replace("[[", "fallback = ['a']\n[[", 1), "`a` is this endpoint itself", ""),
        ("[endpoints.a]\nweights = 'x'\noperator = ''", "operator means nothing", ""),
        ("[policy.accepted.mit]\nby = ''\non = 2026-01-01\nwhy = 'read'", "policy.accepted", "docs/freehold.toml"),
        ("[models.a]\nlike = 'x'\npublisher_country = 'Germny'", "no country 'Germny'", "DE (Germany)"),
        ("[policy]\nisolation = 'maybe'", "isolation", "docs/freehold.toml"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, says, hints):
    with pytest.raises(BadConfig) as refused:
        load(written(tmp_path, text))
    assert says in str(refused.value)
    assert hints in refused.value.hint


def test_a_missing_file(tmp_path):
    with pytest.raises(BadConfig, match=r"no .*freehold\.toml"):
        load(tmp_path / "freehold.toml")


def test_paths_are_seen_from_the_file(tmp_path):
    config = load(written(tmp_path, "[endpoints.a]\nweights = 'm/a.gguf'\nbinary = '/opt/llama-server'"))
    assert config.endpoints["a"].weights == str(tmp_path / "m/a.gguf")
    assert config.endpoints["a"].binary == "/opt/llama-server"
    assert config.state_dir == str(tmp_path / ".freehold")


def test_prices_are_exact(tmp_path):
    text = "[machine]\nhourly_price = 2.10\n[endpoints.a]\nweights = 'x'\nprompt_price = 0.1\ncompletion_price = 0.07"
    config = load(written(tmp_path, text))
    assert config.machine.pico_per_hour == 2_100_000_000_000
    price = config.endpoints["a"].price
    assert (price.prompt_pico_per_token, price.completion_pico_per_token) == (100_000, 70_000)


def test_open_to_the_network_with_tls(tmp_path):
    lines = "listen = '0.0.0.0:443'\nmetrics = '[::]:9464'\ntls_certificate = 'c.pem'\ntls_key = '/etc/k.pem'"
    server = load(written(tmp_path, f"[server]\n{lines}")).server
    assert (server.tls_certificate, server.tls_key) == (str(tmp_path / "c.pem"), "/etc/k.pem")


def test_open_to_the_network_behind_a_proxy(tmp_path):
    config = load(written(tmp_path, "[server]\nlisten = '[::]:8080'\nbehind_proxy = true"))
    assert config.server.address == ("::", 8080)
