"""Compares the token ids of every method with those of standard decoding, in thousands of runs: none may differ.

python -m scripts.exact_runs --out RUNS.jsonl [--runs 10000] [--shard 0/2] [--compiled] [--seconds 200]

It uses tiny random models of every family, and the default model with each of its adapters, in every number format that
the processor has. A case is a prompt with sampling settings; each method runs once per case, with its own random tree.
Runs already in RUNS.jsonl are not repeated, so the work can be spread over hours and, with --shard, over processes with
a file each. --show FILE ... only summarises. The exit status is 1 if a token differs.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from scripts.formats import available
from specstream.adapters import weights
from specstream.adapters.find import bundled
from specstream.engine import Engine, load
from specstream.events import Event, Step
from specstream.model.hardware import computes_bfloat16
from specstream.model.introspection import Anatomy, dissect
from specstream.native.compiler import NO_COMPILER, NO_LAYERS
from specstream.params import EarlyExit, Medusa, Method, PromptLookup, Sampling, Standard, Streaming
from tests import test_heads, tiny

REAL = "smollm2-135m"
FORMATS = ("bfloat16", "float16", "float32")
VISIT = 5  # cases of one model before the next is loaded
MODES = ("shared", "lossless")  # of tiny models, alternately
TEMPERATURES, PENALTIES = (0.0, 0.7, 1.3), (1.0, 1.0, 1.15)
# Numbers in a prompt: below and above a sliding window, and at block boundaries of the cache. Some tokenizers need two
# tokens for a number.
TINY_PROMPTS = (1, 7, 21, 31, 60, 90)
FACTS = "name[{}], eatType[{}], food[{}], customer rating[{}], area[{}], near[Harbour Hall]"
TABLE = "CREATE TABLE {} ({} VARCHAR, town VARCHAR, built INTEGER, visitors INTEGER)\n\n{}"
TALK = (
    "#Person1#: Good morning, I would like to return this kettle.\n#Person2#: What is wrong with it?\n"
    "#Person1#: It leaks, and I bought it only last week.\n#Person2#: Do you have the receipt?\n"
)
TEXTS = {
    "e2e": (
        FACTS.format("The Salted Fig", "pub", "Italian", "high", "riverside"),
        FACTS.format("Juniper Lane", "coffee shop", "Japanese", "3 out of 5", "city centre"),
        FACTS.format("Old Mill", "restaurant", "French", "low", "riverside"),
        "name[Paper Moon], priceRange[cheap]",
    ),
    "sql": (
        TABLE.format("bridges", "bridge", "Which town has the bridge that was built in 1921?"),
        TABLE.format("museums", "museum", "How many museums had more than 500 visitors?"),
        TABLE.format("table_31_2", "theatre", "What is the highest number of visitors in Lund?"),
        "\n".join(TABLE.format(f"places_{i}", f"place_{i}", "") for i in range(14)) + "How many towns are there?",
    ),
    "dialogsum": (
        TALK + "#Person1#: Yes, here it is.\n#Person2#: Then I'll give you a new one.",
        "#Person1#: Did you find a flat?\n#Person2#: Yes, near the station. I move in on the first of May.\n"
        "#Person1#: I'll bring my brother's van.",
        TALK * 9 + "#Person1#: Yes, here it is.",  # longer than one pass of a prompt
    ),
    "chat": (
        "Explain in three sentences why the sky is blue.",
        "Write a short invitation to a birthday party.",
        "List the planets, then list them again in reverse order.",
        "Repeat this ten times: the quick brown fox jumps over the lazy dog.",
        "Give me advice for each of these: " + ", ".join(f"question number {i} at a job interview" for i in range(75)),
    ),
    "code": (
        "Write a Python function that checks whether two lists have an item in common.",
        "Write a shell one-liner to show the five largest folders.",
        "Write a Python class for a bank account, with a docstring in every method.",
    ),
}

Record = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """A model in a number format. ``part`` is an adapter of the real model, or a family of tiny ones."""

    model: str
    part: str
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.model}, {self.part}, {self.dtype}"


INT8_FAMILIES = ("llama", "qwen3", "opt")  # tiny families; most of their linear layers are too small to be quantised
GROUPS = [Group(REAL, name, dtype) for dtype in (*FORMATS, "int8") for name in bundled(REAL)] + [
    *(Group("tiny", family, dtype) for dtype in FORMATS for family in tiny.FAMILIES),
    *(Group("tiny", family, "int8") for family in INT8_FAMILIES),
]


# ---- cases -----------------------------------------------------------------------------------------------------------


def sampling_of(rng: random.Random) -> Sampling:
    """Random sampling settings for a case."""
    return Sampling(
        max_new_tokens=rng.randint(16, 48),
        temperature=rng.choice(TEMPERATURES),
        repetition_penalty=rng.choice(PENALTIES),
        seed=rng.randrange(2**31),
        ignore_eos=rng.random() < 0.5,
    )


def methods_of(rng: random.Random, engine: Engine) -> dict[str, Method]:
    """Every method that this model can run, by its name in the table, each with its own random tree."""

    def tree() -> dict[str, Any]:
        return {"budget": rng.randint(1, 64), "width": rng.randint(1, 8), "pause": rng.choice((0, 1.3))}

    found: dict[str, Method] = {
        f"streaming, {streams}": Streaming(**tree(), streams=streams, copies=rng.choice(("on", "off")))
        for streams in ("deferred", "in-pass")
    }
    adapter = engine.make_target(Streaming()).adapter if "streaming" not in engine.info.unavailable else None
    if adapter is not None and adapter.streams.exit_rank:
        found["streaming, pruned"] = Streaming(**tree(), prune=0.02, streams=rng.choice(("deferred", "in-pass")))
    found["prompt lookup"] = PromptLookup(budget=rng.randint(1, 64), depth=rng.randint(1, 16), candidates=4)
    found["Medusa heads"] = Medusa(**tree(), copies=rng.choice(("on", "off")))
    found["early exit"] = EarlyExit(budget=rng.randint(1, 64), width=rng.randint(1, 4), confidence=0)
    return {name: method for name, method in found.items() if method.name not in engine.info.unavailable}


def prompt_of(group: Group, rng: random.Random, engine: Engine) -> str:
    if group.model != REAL:
        return " ".join(map(str, tiny.prompt(rng.choice(TINY_PROMPTS), seed=rng.randrange(1000))))
    return engine.prompt(group.part, rng.choice(TEXTS[group.part]))


def run_case(group: Group, number: int, engine: Engine) -> Record:
    """Run one case: for each method, the number of tokens, and how many tokens and log-probabilities differ."""
    rng = random.Random(f"{group.name} {number}")
    prompt, sampling = prompt_of(group, rng, engine), sampling_of(rng)
    methods = methods_of(rng, engine)
    want = written(list(engine.generate(prompt, Standard(), sampling)))
    runs = {}
    for name, method in methods.items():
        events = list(engine.generate(prompt, method, sampling))
        got = written(events)
        pairs = list(itertools.zip_longest(got, want, fillvalue=(None, None)))
        runs[name] = {
            "tokens": len(got),
            "steps": sum(isinstance(e, Step) for e in events) - 1,
            "different": sum(a[0] != b[0] for a, b in pairs),
            "bits": sum(a[1] != b[1] for a, b in pairs),
            "method": method.to_dict(),
        }
    here = {"model": group.model, "part": group.part, "dtype": engine.info.dtype, "exact": engine.info.exact}
    here |= {"compiled": engine.info.compiled, "sampling": sampling.to_dict(), "prompt": prompt[:80]}
    return {"group": group.name, "case": number, **here, "runs": runs}


def written(events: Sequence[Event]) -> list[tuple[int, float | None]]:
    """Tokens with their log-probabilities."""
    return [(t.id, t.logprob) for e in events if isinstance(e, Step) for t in e.tokens]


# ---- models ----------------------------------------------------------------------------------------------------------


def _soon(group: Group, device: str) -> bool:
    """Whether a model is decoded in reasonable time: emulated bfloat16 takes minutes for a text of the real one."""
    if group.model != REAL or group.dtype != "bfloat16" or device != "cpu" or computes_bfloat16(device):
        return True
    click.echo(f"{group.name} is left out: this processor only emulates bfloat16.", err=True)
    return False


def engine_of(group: Group, folder: Path, device: str, compiled: bool) -> Engine:
    if group.model == REAL:
        engine = load(REAL, group.part, device, group.dtype)
    else:
        made = folder / group.part
        if not made.exists():
            make_tiny(group.part, made, MODES[list(tiny.FAMILIES).index(group.part) % 2])
        engine = load(str(made), str(made / "adapter"), device, group.dtype)
    if compiled:
        engine.refresh(wait=True)
    return engine


def make_tiny(family: str, folder: Path, mode: str) -> None:
    """Write a tiny model with streams, a pruning exit, Medusa heads and a drafting exit, all random."""
    folder.mkdir(parents=True)
    model = tiny.tiny(family).cpu()
    tiny.save(model, folder)
    anatomy: Anatomy = dissect(model)
    adapter = tiny.random_adapter(anatomy, gamma=3, mode=mode, exit_rank=4, pair_rank=4)
    beside = test_heads.random_heads(anatomy)
    parts = [part for part in (beside.medusa, beside.exit) if part]
    card = replace(adapter.card, heads={part.card.kind: part.card for part in parts})
    weights.save(adapter, folder / "adapter", card)
    for part in parts:
        weights.save_weights(part, folder / "adapter" / part.card.file)


# ---- the work --------------------------------------------------------------------------------------------------------


def visits(groups: Sequence[Group], done: set[tuple[str, int]]) -> Iterator[tuple[Group, list[int]]]:
    """Cycle through the models endlessly, each with the numbers of its next unfinished cases."""
    for first in itertools.count(0, VISIT):
        for group in groups:
            if numbers := [n for n in range(first, first + VISIT) if (group.name, n) not in done]:
                yield group, numbers


def read(files: Iterable[Path]) -> list[Record]:
    """The cases in these files, without incomplete lines."""
    found = []
    for line in (line for file in files if file.exists() for line in file.read_text(encoding="utf-8").splitlines()):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def summary(records: Sequence[Record]) -> Iterator[str]:
    """Lines of a Markdown table by model, format and method."""
    sums: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for record in records:
        model = f"{record['model']} {record['part']}" if record["model"] == REAL else record["model"]
        for name, run in record["runs"].items():
            layers = "compiled" if record["compiled"] else "not compiled"
            counts = {k: run[k] for k in ("tokens", "steps", "different", "bits")}
            sums[model, record["dtype"], layers, name].update(runs=1, **counts)
    yield "| model | format | layers | method | runs | tokens | steps | tokens differ | log-probabilities differ |"
    yield "|---" * 9 + "|"
    for key, total in sorted(sums.items()):
        columns = (f"{total[k]:,}" for k in ("runs", "tokens", "steps", "different", "bits"))
        yield f"| {' | '.join((*key, *columns))} |"
    runs = [run for record in records for run in record["runs"].values()]
    differ, bits = (sum(run[k] for run in runs) for k in ("different", "bits"))
    yield f"\n{len(runs):,} runs, {sum(r['tokens'] for r in runs):,} tokens: {differ:,} differ, and {bits:,} of their "
    inexact = sorted({record["group"] for record in records if not record["exact"]})
    yield f"log-probabilities. Not exact according to the self-test: {'; '.join(inexact) or 'none'}."


def different(records: Sequence[Record]) -> int:
    return sum(run["different"] for record in records for run in record["runs"].values())


def work(options: dict[str, Any], groups: Sequence[Group], out: Path) -> None:
    """Run cases until there are enough runs or the time is up."""
    records = read([out])
    done = {(record["group"], record["case"]) for record in records}
    runs, until = sum(len(r["runs"]) for r in records), time.monotonic() + options["seconds"]
    with out.open("a", encoding="utf-8") as file, tempfile.TemporaryDirectory() as folder:
        if out.stat().st_size and not out.read_bytes().endswith(b"\n"):
            file.write("\n")
        for group, numbers in visits(groups, done):
            if runs >= options["runs"] or time.monotonic() > until:
                return
            engine = engine_of(group, Path(folder), options["device"], options["compiled"])
            for number in numbers:
                if runs >= options["runs"] or time.monotonic() > until:
                    return
                record = run_case(group, number, engine)
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
                runs += len(record["runs"])


def shard_of(words: str) -> tuple[int, int]:
    """Parse ``i/n``, part i of n. Raises BadParameter."""
    part, _, parts = words.partition("/")
    if not part.isdigit() or not parts.isdigit() or not int(part) < int(parts):
        raise click.BadParameter(f"{words!r} is not a shard: write 0/2 for the first of two.")
    return int(part), int(parts)


@click.command(help=__doc__)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="The file of results, one JSON object per case."
)
@click.option("--runs", default=10_000, show_default=True, help="Total number of runs, over all shards.")
@click.option("--shard", default="0/1", show_default=True, help="i/n: this process does part i of n.")
@click.option("--seconds", default=float("inf"), help="Stop after this long; the next call continues.")
@click.option("--only", default="", help="Only models whose name contains this, such as tiny, e2e or float16.")
@click.option("--compiled/--no-compiled", default=False, show_default=True, help="With compiled layers.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--show", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(out: Path | None, shard: str, only: str, show: tuple[Path, ...], **options: Any) -> None:
    part, parts = shard_of(shard)
    if not show:
        if out is None:
            raise click.UsageError("Give --out RUNS.jsonl, or --show RUNS.jsonl.")
        os.environ[NO_COMPILER] = "0" if options["compiled"] else NO_LAYERS
        wanted = [group for group in GROUPS if only in group.name]
        formats = available([group.dtype for group in wanted], options["device"]) if wanted else []
        groups = [group for group in wanted if group.dtype in formats and _soon(group, options["device"])][part::parts]
        if not groups:
            raise click.BadParameter(f"No model's name contains {only!r}, or there are fewer than {parts} of them.")
        options["runs"] = -(-options["runs"] // parts)
        work(options, groups, out)
    records = read(show or [out])
    for line in summary(records):
        click.echo(line)
    raise SystemExit(1 if different(records) else 0)


if __name__ == "__main__":
    main()
