"""Prompts of the task code as JSON lines: those to train on or, with --dev, the held-out ones.

python -m scripts.code_prompts --dev --limit 40 > code-dev.jsonl
"""

import argparse
import json
import sys
from collections.abc import Sequence

from specstream.data.instructions import instructions


def main(args: Sequence[str] | None = None) -> None:
    """Write the prompts to standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dev", action="store_true", help="the held-out prompts, which are never trained on")
    parser.add_argument("--limit", type=int, default=0, help="how many; 0 is all")
    chosen = parser.parse_args(args)
    prompts = instructions(held_out=chosen.dev)
    for prompt in prompts[: chosen.limit or None]:
        sys.stdout.write(json.dumps({"prompt": prompt}) + "\n")


if __name__ == "__main__":
    main()
