"""Measurements, and chores of the repository: each module is a command, ``python -m scripts.NAME``."""

import specstream  # noqa: F401  before torch, for which it sets an environment variable
