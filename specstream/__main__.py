"""``python -m specstream``."""

from specstream.cli import main

main()
