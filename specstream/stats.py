"""RunStats: the name and formula of every metric, in one place. A fold over the events of one run."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from specstream.events import Draft, Event, Fate, Finished, Origin, Reason, Started, Step

Interval = tuple[float, float] | tuple[None, None]
SAMPLES, FEWEST = 2000, 5  # bootstrap resamples, and the fewest values that it accepts
PHASES = ("draft", "draft_pass", "verify", "accept", "keep")


@dataclass
class RunStats:
    """Metrics of one run. Only emitted tokens count: tokens cut off by EOS, a stop string or the limit are in no Step.

    The prompt pass (step 0) emits the first token. It counts in ``tokens`` and ``seconds``, but in no per-step
    metric, for every method alike.
    """

    method: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    accepted: int = 0
    steps: int = 0
    drafted: int = 0
    pruned: int = 0
    rows: int = 0
    stream_rows: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    phase_seconds: Counter[str] = field(default_factory=Counter)
    reached_depth: Counter[int] = field(default_factory=Counter)
    accepted_depth: Counter[int] = field(default_factory=Counter)
    compared_tenth: Counter[int] = field(
        default_factory=Counter
    )  # compared nodes, by the tenth in which their probability lies
    accepted_tenth: Counter[int] = field(default_factory=Counter)
    said_tenth: Counter[int] = field(default_factory=Counter)  # sum of the probabilities, in millionths
    reason: Reason | None = None

    def add(self, event: Event) -> None:
        """Fold one event in."""
        if isinstance(event, Started):
            self.method, self.prompt_tokens = event.method, event.prompt_tokens
        elif isinstance(event, Finished):
            self.reason = event.reason
        elif event.index == 0:
            self.tokens += len(event.tokens)
            self.prefill_seconds += event.total_seconds
        else:
            self._add_step(event)

    def _add_step(self, step: Step) -> None:
        self.steps += 1
        self.tokens += len(step.tokens)
        self.accepted += sum(t.origin is Origin.DRAFT for t in step.tokens)
        self.drafted += len(step.draft)
        self.pruned += step.pruned
        self.rows += step.rows
        self.stream_rows += step.stream_rows
        self.decode_seconds += step.total_seconds
        self.phase_seconds.update(step.seconds)
        fates = list(zip(step.draft.depths(), step.draft.fate, strict=False))
        self.reached_depth.update({d for d, fate in fates if fate in (Fate.ACCEPTED, Fate.REJECTED)})
        self.accepted_depth.update({d for d, fate in fates if fate is Fate.ACCEPTED})
        self._add_guesses(step.draft)

    def _add_guesses(self, draft: Draft) -> None:
        copied = draft.copied or (False,) * len(draft)
        for prob, fate, copy in zip(draft.probs, draft.fate, copied, strict=False):
            if fate in (Fate.ACCEPTED, Fate.REJECTED) and not copy:
                tenth = min(int(10 * prob), 9)
                self.compared_tenth[tenth] += 1
                self.accepted_tenth[tenth] += fate is Fate.ACCEPTED
                self.said_tenth[tenth] += round(1e6 * prob)

    @property
    def seconds(self) -> float:
        """Wall time of the run on the engine's clock, prompt pass included."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def decode_tokens(self) -> int:
        """Tokens after the first."""
        return self.tokens - 1 if self.tokens else 0

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first per second of the steps that made them."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds > 0 else None

    @property
    def tokens_per_step(self) -> float | None:
        """Emitted tokens per step, the target's own included; 1 for standard decoding."""
        return self.decode_tokens / self.steps if self.steps else None

    @property
    def calls_saved(self) -> int | None:
        """Additional model calls that standard decoding would have needed for the same tokens."""
        return self.decode_tokens - self.steps if self.steps else None

    @property
    def acceptance_by_depth(self) -> list[float]:
        """Of the steps that compared a node at depth d, the share that accepted one there."""
        return [self.accepted_depth[d] / n for d, n in sorted(self.reached_depth.items())]

    @property
    def calibration(self) -> list[tuple[float, float, int]]:
        """For each tenth of the drafted probability, over the compared nodes: mean probability, share accepted, and
        number of nodes."""
        return [
            (self.said_tenth[tenth] / 1e6 / count, self.accepted_tenth[tenth] / count, count)
            for tenth, count in sorted(self.compared_tenth.items())
        ]

    @property
    def rows_per_token(self) -> float | None:
        """Rows put through the model per emitted token (waste: 1 is none)."""
        return (self.rows + self.stream_rows) / self.decode_tokens if self.decode_tokens else None

    @property
    def outside_share(self) -> float | None:
        """Share of the decode time spent outside passes of the target and of its drafter."""
        if self.decode_seconds <= 0:
            return None
        return 1 - (self.phase_seconds["verify"] + self.phase_seconds["draft_pass"]) / self.decode_seconds

    def to_dict(self) -> dict[str, Any]:
        """All metrics as plain values."""
        return {
            "method": self.method,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "steps": self.steps,
            "drafted": self.drafted,
            "pruned": self.pruned,
            "accepted": self.accepted,
            "tokens_per_step": self.tokens_per_step,
            "tokens_per_second": self.tokens_per_second,
            "calls_saved": self.calls_saved,
            "acceptance_by_depth": self.acceptance_by_depth,
            "seconds": self.seconds,
            "prefill_seconds": self.prefill_seconds,
            "decode_seconds": self.decode_seconds,
            "phase_seconds": {p: self.phase_seconds[p] for p in PHASES},
            "outside_share": self.outside_share,
            "rows": self.rows,
            "stream_rows": self.stream_rows,
            "rows_per_token": self.rows_per_token,
            "reason": str(self.reason) if self.reason else None,
        }


def summarize(events: Iterable[Event]) -> RunStats:
    """The stats of a whole run."""
    stats = RunStats()
    for event in events:
        stats.add(event)
    return stats


def speedup(standard: RunStats, method: RunStats) -> float | None:
    """Wall time of standard decoding / that of the method, both per token, prompt pass included."""
    if not (standard.tokens and method.tokens and standard.seconds > 0 and method.seconds > 0):
        return None
    return (standard.seconds / standard.tokens) / (method.seconds / method.tokens)


def median_step(runs: Iterable[RunStats]) -> float | None:
    """Median over runs of the seconds per step, without the prompt pass."""
    seconds = [run.decode_seconds / run.steps for run in runs if run.steps]
    return statistics.median(seconds) if seconds else None


def step_cost(standard: Iterable[RunStats], method: Iterable[RunStats]) -> float | None:
    """Time of one step divided by that of one standard-decoding step, each the median over the runs."""
    ours, theirs = median_step(method), median_step(standard)
    return ours / theirs if ours and theirs else None


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 token, 1,200 tokens."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def bootstrap(
    statistic: Callable[[Sequence[int]], float | None], size: int, samples: int = SAMPLES, seed: int = 0
) -> Interval:
    """95 % bootstrap interval of a statistic of ``size`` values, which is given the resampled indices.

    (None, None) for fewer than ``FEWEST`` values, which are too few for an interval.
    """
    if size < FEWEST:
        return None, None
    rng = random.Random(seed)
    drawn = (statistic(rng.choices(range(size), k=size)) for _ in range(samples))
    values = sorted(v for v in drawn if v is not None and math.isfinite(v))
    return (values[int(0.025 * len(values))], values[int(0.975 * len(values))]) if values else (None, None)


def mean_interval(values: Sequence[float]) -> Interval:
    """95 % bootstrap interval of the mean; (None, None) for fewer than ``FEWEST`` values."""
    return bootstrap(lambda picked: statistics.fmean(values[i] for i in picked), len(values))
