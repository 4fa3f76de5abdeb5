"""Settings of a run: defaults, limits, labels and help texts, defined once for the command line and the page."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

NODES = 5  # drafted nodes that a pass verifies at little extra cost, on most machines
MOST_NODES = 12  # of a tree whose size is left to its probabilities
ROW_COST = 0.03  # share of a step that one more row is taken to cost: no task was slower with it than with NODES
COLDEST = 1e-6  # a lower temperature means greedy: logits divided by it overflow float32
NODES_IN_TILES = 12  # the same where a bfloat16 matmul works on sixteen rows at a time (AMX)


def number(default: Any, label: str, help: str, low: float, high: float, step: float = 1) -> Any:
    return field(default=default, metadata={"label": label, "help": help, "min": low, "max": high, "step": step})


def choice(default: str, label: str, help: str, choices: tuple[str, ...]) -> Any:
    return field(default=default, metadata={"label": label, "help": help, "choices": choices})


def free(default: Any, label: str, help: str) -> Any:
    """A setting without limits: texts, or a boolean."""
    return field(default=default, metadata={"label": label, "help": help})


def tree_budget() -> Any:
    """The budget of every method that drafts trees: one default for all, so that comparisons are fair."""
    words = (
        f"Most drafted nodes that one pass verifies. 0: left to the machine. Streams and Medusa heads then draft up to "
        f"{MOST_NODES} nodes, each only if it is likely enough to pay for its row; other methods {NODES}. On a "
        f"processor all draft {NODES_IN_TILES} in bfloat16 with AMX, and {NODES} in float16 without "
        "AVX-512."
    )
    return number(0, "Tree budget", words, 0, 64)


class Checked:
    """Checks every field that has limits or choices; raises ValueError with one sentence."""

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            value, meta = getattr(self, f.name), f.metadata
            if "choices" in meta and value not in meta["choices"]:
                raise ValueError(f"{meta['label']} must be one of {', '.join(meta['choices'])}, not {value!r}.")
            if "min" in meta:
                self._check_number(f.name, value, meta, isinstance(f.default, int))

    def _check_number(self, name: str, value: Any, meta: Any, whole: bool) -> None:
        limits = (
            f"{meta['label']} must be a {'whole number' if whole else 'number'} from {meta['min']} to {meta['max']}"
        )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{limits}, not {'empty' if value is None else repr(value)}.")
        # First the limits, which neither infinity nor NaN is within: int() and float() fail for what is too large.
        if not meta["min"] <= value <= meta["max"] or (whole and value != int(value)):
            long = isinstance(value, int) and abs(value) > sys.maxsize  # it may have thousands of digits
            raise ValueError(f"{limits}, not {'so long a number' if long else repr(value)}.")
        object.__setattr__(self, name, int(value) if whole else float(value))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive a round trip through JSON."""
        values = asdict(self)  # type: ignore[call-overload]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


class Labelled(Checked):
    """A method, with a ``name`` for programs and a ``label`` for people."""

    name: ClassVar[str]
    label: ClassVar[str]

    def exact(self, sampling: Sampling) -> bool:
        """Whether its tokens are those of standard decoding with the same seed."""
        return True

    def described(self) -> str:
        """The label, with the non-default settings."""
        changed = [f for f in fields(self) if getattr(self, f.name) != f.default]  # type: ignore[arg-type]
        return ", ".join([self.label, *(f"{f.metadata['label'].lower()} {getattr(self, f.name)}" for f in changed)])

    def on(self, device: str, nodes: int = 0) -> Self:
        """A copy with the unset settings settled for a ``device`` ("cpu", "cuda", "mps"), on which ``nodes`` drafted
        nodes are nearly free (0: each has its cost)."""
        return self


class Treed(Labelled):
    """A method that drafts trees of at most ``budget`` nodes; 0 means the machine's default."""

    budget: int

    @property
    def nodes(self) -> int:
        """The budget; if unset, the number that suits most machines."""
        return self.budget or NODES

    def on(self, device: str, nodes: int = 0) -> Self:
        return replace(self, budget=self.budget or nodes or NODES)  # type: ignore[type-var]


@dataclass(frozen=True)
class Sampling(Checked):
    """How the target chooses tokens and when a run ends. The same for every method.

    Logits are warped in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p.
    """

    max_new_tokens: int = number(128, "Max new tokens", "The run ends after this many tokens.", 1, 4096)
    temperature: float = number(0.0, "Temperature", "0 always takes the likeliest token (greedy).", 0, 5, 0.05)
    top_k: int = number(0, "Top-k", "Sample among the k likeliest tokens only; 0 switches it off.", 0, 1000)
    top_p: float = number(1.0, "Top-p", "Sample among the likeliest tokens that together hold p; 1 is off.", 0, 1, 0.01)
    min_p: float = number(0.0, "Min-p", "Drop tokens below this share of the likeliest token; 0 is off.", 0, 1, 0.01)
    repetition_penalty: float = number(
        1.0, "Repetition penalty", "Above 1 makes tokens that already appeared less likely.", 0.5, 2, 0.05
    )
    seed: int = number(0, "Seed", "The same seed gives the same text, with every method.", 0, 2**31 - 1)
    stop: tuple[str, ...] = free((), "Stop strings", "The run ends where one of these, or a special token, appears.")
    ignore_eos: bool = free(False, "Ignore end of text", "Continue after the model's own end of text.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.ignore_eos, bool):
            raise ValueError("Ignore end of text must be true or false.")
        stop = [self.stop] if isinstance(self.stop, str) else [] if self.stop is None else self.stop
        if not isinstance(stop, list | tuple) or not all(isinstance(s, str) for s in stop):
            raise ValueError("Stop strings must be a text or a list of texts.")
        object.__setattr__(self, "stop", tuple(s for s in stop if s))
        if self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)


@dataclass(frozen=True)
class Standard(Labelled):
    """Standard autoregressive decoding: one token per pass."""

    name: ClassVar[str] = "standard"
    label: ClassVar[str] = "Standard decoding"


@dataclass(frozen=True)
class LevelTree(Treed):
    """The tree of a method that has one distribution per depth."""

    tree: str = choice(
        "best-first",
        "Tree",
        "best-first: the likeliest nodes within the budget; full: every combination of the top k (the paper).",
        ("best-first", "full"),
    )
    budget: int = tree_budget()
    width: int = number(4, "Width k", "Most children of a node: the top k tokens of each depth.", 1, 8)
    depth: int = number(
        0, "Depth", "Deepest level of the tree; 0: as deep as the adapter was trained for, and 16 for copies.", 0, 16
    )
    pause: float = number(
        1.3,
        "Pause below",
        "Draft nothing for some steps when recent steps gave fewer tokens each than this, because they cost more "
        "than they gain; 0: never pause.",
        0,
        17,
        0.1,
    )
    copies: str = choice(
        "on",
        "Copies",
        "on: the best-first tree also holds n-gram copies: what followed the last tokens where they occurred before "
        "in the text, as far as copies have been right in this run; off: the method's own guesses alone (the paper).",
        ("on", "off"),
    )

    @property
    def nodes(self) -> int:
        """The most nodes of a tree."""
        return self.budget or MOST_NODES

    def least(self, tokens_per_step: float) -> float:
        """The joint probability from which on a node is drafted. A node brings as many tokens as it is likely, and its
        row takes time in which others would come: with a budget left at 0, it must bring more than it takes."""
        return 0.0 if self.budget else ROW_COST * tokens_per_step

    def on(self, device: str, nodes: int = 0) -> Self:
        return replace(self, budget=self.budget or nodes)


@dataclass(frozen=True)
class Streaming(LevelTree):
    """Speculative Streaming: the model's own streams draft a tree, the next pass verifies it."""

    name: ClassVar[str] = "streaming"
    label: ClassVar[str] = "Speculative Streaming"

    streams: str = choice(
        "auto",
        "Streams",
        "in-pass: every verified token carries streams (the paper); deferred: a short second pass computes those of "
        "the last accepted token. The drafts are the same. auto: deferred on a CPU and on CUDA, where it was measured "
        "to be faster; else in-pass.",
        ("auto", "in-pass", "deferred"),
    )
    pairs: str = choice(
        "on",
        "Pairs",
        "on: score the candidates of a depth also by how well they follow their parent token, if the adapter has "
        "learned that (the pair map, a low-rank bigram bias); off: every depth independently (the paper).",
        ("on", "off"),
    )
    prune: float = number(
        0.0,
        "Pruning",
        "Drop drafted tokens that an early exit, below the stream layers, finds less likely than this; 0 keeps all.",
        0,
        1,
        0.01,
    )

    def on(self, device: str, nodes: int = 0) -> Self:
        """On "mps" streams have not been measured, so they stay as published: in-pass."""
        faster = "deferred" if device in ("cpu", "cuda") else "in-pass"
        streams = faster if self.streams == "auto" else self.streams
        return replace(super().on(device, nodes), streams=streams)


@dataclass(frozen=True)
class Medusa(LevelTree):
    """Medusa heads: small heads on the last hidden state draft one token each. They are trained beside an adapter."""

    name: ClassVar[str] = "medusa"
    label: ClassVar[str] = "Medusa heads"


@dataclass(frozen=True)
class ChainTree(Treed):
    """The tree of a method that drafts one token after another: a chain, with alternatives beside it."""

    budget: int = tree_budget()
    width: int = number(2, "Width k", "Most alternatives at a depth; only the likeliest is extended.", 1, 8)
    depth: int = number(4, "Depth", "Most tokens drafted one after another, each in its own pass.", 1, 16)
    confidence: float = number(
        0.2, "Confidence", "Keep drafting only while the draft so far is at least this likely; 0: always.", 0, 1, 0.01
    )


@dataclass(frozen=True)
class EarlyExit(ChainTree):
    """Early exit: the model's first layers draft one token at a time. The exit is trained beside an adapter."""

    name: ClassVar[str] = "early_exit"
    label: ClassVar[str] = "Early exit"


@dataclass(frozen=True)
class DraftModel(ChainTree):
    """Draft model: a second, smaller model with the same tokenizer drafts one token at a time. It needs no training."""

    name: ClassVar[str] = "draft_model"
    label: ClassVar[str] = "Draft model"

    drafts: str = choice(
        "greedy",
        "Drafts",
        "greedy: its likeliest tokens. coupled: the tokens it would write itself with the same seed. Both give the "
        "text of standard decoding. sampled: independent samples; the text differs but has the same distribution. "
        "coupled and sampled draft no alternatives, always to the full depth, and are greedy at temperature 0.",
        ("greedy", "coupled", "sampled"),
    )

    def exact(self, sampling: Sampling) -> bool:
        return self.drafts != "sampled" or sampling.temperature == 0


@dataclass(frozen=True)
class PromptLookup(Treed):
    """Prompt lookup: drafts what followed the same words earlier in the text. Needs no training."""

    name: ClassVar[str] = "prompt_lookup"
    label: ClassVar[str] = "Prompt lookup"

    budget: int = tree_budget()
    depth: int = number(5, "Depth", "Most tokens copied in a row.", 1, 16)
    candidates: int = number(2, "Candidates", "Most different continuations in one tree.", 1, 8)
    longest: int = number(3, "Longest match", "Looks for the last n tokens in the text, from this n down.", 1, 8)
    shortest: int = number(1, "Shortest match", "Drafts nothing if fewer tokens than this match.", 1, 8)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shortest > self.longest:
            raise ValueError(f"Shortest match must be at most the longest match ({self.longest}), not {self.shortest}.")


Method = Standard | Streaming | PromptLookup | Medusa | EarlyExit | DraftModel
METHODS: dict[str, type[Method]] = {
    m.name: m for m in (Standard, Streaming, PromptLookup, Medusa, EarlyExit, DraftModel)
}


def method(name: str, /, **values: Any) -> Method:
    """The parameters of a method by name. Raises ValueError for an unknown name or setting."""
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}: choose one of {', '.join(METHODS)}.")
    known = {f.name for f in fields(METHODS[name])}
    if unknown := set(values) - known:
        raise ValueError(f"{METHODS[name].label} has no setting {', '.join(sorted(unknown))}.")
    return METHODS[name](**values)


def configure(text: str, settings: Mapping[str, Any]) -> tuple[Method, Sampling]:
    """A method and its sampling, from the method's name and a mapping with the settings of both.

    The name may include settings, which take precedence: ``streaming:budget=12``. Raises ValueError for an unknown
    name or setting, and for a value outside its limits.
    """
    name, own = parse(text)
    method(name)  # report an unknown name before anything else
    shared = {f.name for f in fields(Sampling)}
    given = {n: value for n, value in settings.items() if n not in shared}
    return method(name, **given | own), Sampling(**{n: value for n, value in settings.items() if n in shared})


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """A method's name and own settings from ``NAME:setting=value:...``. Raises ValueError for another form."""
    name, *parts = (part.strip() for part in text.split(":"))
    values: dict[str, Any] = {}
    for part in parts:
        setting, equals, value = part.partition("=")
        if not equals:
            raise ValueError(
                f"{part!r} in {text!r} is not a setting: write NAME:setting=value, as in streaming:budget=12."
            )
        key = setting.strip().replace("-", "_")
        if key in values:
            raise ValueError(f"{text!r} gives {key} twice: give it once.")
        values[key] = _plain(value.strip())
    return name, values


def _plain(text: str) -> int | float | str:
    """A whole number, a number, or the text as it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
