"""How much a base install is: packages and megabytes of requirements.lock in a throw-away virtual environment.

Its bounds are promises to whoever installs Freehold; the build packages in the lock count too, pip does not.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

MAX_PACKAGES = 30
MAX_MB = 200  # of 10^6 bytes
ROOT = Path(__file__).resolve().parents[1]


def measure(folder: Path) -> tuple[int, float]:
    """Install the lock and Freehold itself into `folder`; packages and MB on disk, compiled Python included."""
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--compile"]
    subprocess.run([*install, "--require-hashes", "-r", str(ROOT / "requirements.lock")], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    files = [path for path in site.rglob("*") if path.is_file()]
    files += [path for path in (ROOT / "src").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return len(list(site.glob("*.dist-info"))) + 1, sum(path.stat().st_size for path in files) / 10**6


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        packages, size_mb = measure(Path(folder))
    print(f"base install: {packages} packages (at most {MAX_PACKAGES}), {size_mb:.1f} MB (at most {MAX_MB})")
    return int(packages > MAX_PACKAGES or size_mb > MAX_MB)


if __name__ == "__main__":
    sys.exit(main())
