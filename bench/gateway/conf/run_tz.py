"""TensorZero's gateway, as its wheel holds it. It takes a port of its own and says which."""

import signal
from pathlib import Path

from tensorzero.tensorzero import _start_http_gateway

gateway = _start_http_gateway(
    config_file="@CONF@/tensorzero.toml",
    clickhouse_url=None,
    postgres_url=None,
    valkey_url=None,
    async_setup=False,
)
Path("@CONF@/url").write_text(gateway.base_url)
while True:
    signal.pause()
