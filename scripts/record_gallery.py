"""Record the runs of the gallery, including the worst: each prompt with streams and standard decoding, measured here.

python -m scripts.record_gallery [--out assets/gallery] [--adapter NAME]
"""

import argparse
from itertools import groupby
from pathlib import Path
from typing import Any

from scripts.record_run import ASSETS, record, write
from specstream import engine
from specstream.engine import Engine
from specstream.params import Sampling, Streaming

TOKENS, REPEATS = 128, 3
METHODS = {"12-tree-too-large": Streaming(budget=64)}  # files whose method is not the default
# (file, what it shows, adapter, task, prompt), grouped by adapter
RUNS = (
    ("01-restaurant", "A restaurant from a list of facts", "e2e", "e2e",
     "name[Marlow & Rye], eatType[pub], food[English], priceRange[less than £20], customer rating[low], "
     "area[riverside], familyFriendly[yes]"),
    ("02-coffee-shop", "A coffee shop with few facts", "e2e", "e2e",
     "name[Paper Moon], eatType[coffee shop], customer rating[3 out of 5], area[city centre], near[Tram Museum]"),
    ("03-two-restaurants", "A name that the model never saw", "e2e", "e2e",
     "name[Zxqv & Daughters], eatType[restaurant], food[French], priceRange[high], area[city centre]"),
    ("04-sql-where", "A question turned into SQL", "sql", "sql",
     "CREATE TABLE harbours (harbour VARCHAR, country VARCHAR, ships INTEGER, opened VARCHAR)\n\n"
     "Which country has the harbour that was opened in 1921?"),
    ("05-sql-count", "SQL that counts", "sql", "sql",
     "CREATE TABLE trams (line INTEGER, depot VARCHAR, seats INTEGER, built VARCHAR)\n\n"
     "How many lines have a depot called North Yard?"),
    ("06-sql-two-conditions", "SQL with two conditions", "sql", "sql",
     "CREATE TABLE seasons (season INTEGER, coach VARCHAR, wins INTEGER, venue VARCHAR)\n\n"
     "How many wins did coach Anna Berg have in the 1998 season?"),
    ("07-dialogue", "A conversation in a shop, summed up", "dialogsum", "dialogsum",
     "#Person1#: Good morning, I would like to return this kettle.\n#Person2#: What is wrong with it?\n"
     "#Person1#: It leaks, and I bought it only last week.\n#Person2#: I'm sorry. Do you have the receipt?\n"
     "#Person1#: Yes, here it is.\n#Person2#: Then I'll give you a new one."),
    ("08-dialogue-train", "A late train, summed up", "dialogsum", "dialogsum",
     "#Person1#: Excuse me, has the train to Dover left already?\n#Person2#: No, it is forty minutes late because of "
     "the storm.\n#Person1#: Then I will miss the ferry at six.\n#Person2#: There is another one at nine. Your ticket "
     "is valid for it too."),
    ("09-chat-tips", "Chat: a list of tips", "chat", "chat", "Give me five tips for a job interview."),
    ("10-chat-explain", "Chat: an explanation", "chat", "chat", "Explain in three sentences why the sky is blue."),
    ("11-story", "A story: hard to guess", "chat", "chat",
     "Write the beginning of a story about a lighthouse keeper who had not spoken to anyone for a month."),
    ("12-tree-too-large", "The worst: a draft of 64 tokens costs more than it brings", "chat", "chat",
     "Explain in three sentences why the sky is blue."),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ASSETS / "gallery")
    parser.add_argument("--adapter", help="Only its runs.")
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    for adapter, runs in groupby(RUNS, key=lambda run: run[2]):
        if arguments.adapter not in (None, adapter):
            continue
        loaded = engine.load("smollm2-135m", adapter)
        loaded.refresh(wait=True)  # wait for compiled layers, so that all runs use the same ones
        for file, label, _, task, prompt in runs:
            example = {"label": label, "task": task, "prompt": prompt}
            write(out / f"{file}.json", middle(loaded, example, METHODS.get(file, Streaming())))


def middle(loaded: Engine, example: dict[str, str], method: Streaming) -> dict[str, Any]:
    """The run with the median speed-up of several: a single one may have been disturbed by other processes."""
    runs = [record(loaded, example, method, Sampling(max_new_tokens=TOKENS)) for _ in range(REPEATS)]
    return sorted(runs, key=lambda run: run["verdict"]["speedup"] or 0)[REPEATS // 2]


if __name__ == "__main__":
    main()
