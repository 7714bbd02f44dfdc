"""`python -m infra.cli`: the command `millrace` where its script is not installed."""

from infra.cli import main

main()
