"""`python -m freehold` is the same program as `freehold`."""

from freehold.cli.main import main

main()
