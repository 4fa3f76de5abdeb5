"""``python -m specstream.runlog``: print ``docs/schema.md``."""

from specstream.runlog.schema import markdown

print(markdown(), end="")
