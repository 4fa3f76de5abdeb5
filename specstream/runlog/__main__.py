"""``python -m specstream.runlog``: print the page about the schema."""

from specstream.runlog.schema import markdown

print(markdown(), end="")
