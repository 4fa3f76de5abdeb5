"""The one decode loop: draft, verify, accept, keep. Standard decoding is this loop with an empty draft."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor

from specstream.decoding import verify
from specstream.decoding.detokenize import TextStream
from specstream.decoding.interfaces import Drafter, Stopped, Target
from specstream.decoding.sampling import Picker
from specstream.events import Draft, Finished, Origin, Reason, Step, Token


class NotFinite(ValueError):
    """The model computed NaN; the message says what to do."""


@dataclass
class Clock:
    """Seconds per phase of one step. Synchronises, so that each phase is charged for the work it launched."""

    synchronize: Callable[[], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def move(self, phase: str, other: str, seconds: float) -> None:
        """Move a part of one phase's time to another."""
        if seconds:
            self.seconds[phase] -= seconds
            self.seconds[other] = seconds


@dataclass
class Run:
    """One run: its committed ids and how it ends. ``show`` returns the display text of a drafted token."""

    target: Target
    drafter: Drafter
    picker: Picker
    text: TextStream
    ids: list[int]
    eos: Collection[int]
    show: Callable[[int], str]
    emitted: int = 0
    index: int = 0
    reason: Reason | None = None

    def prompt_pass(self, should_stop: Callable[[], bool]) -> Step:
        """Step 0: run the prompt through the model and emit the first token."""
        clock = Clock(self.target.synchronize)
        with clock.phase("verify"):
            logits = self.target.prefill(self.ids, should_stop)
        return self._finish_step(clock, Draft(), logits, rows=len(self.ids), keep=False)

    def step(self) -> Step:
        """One pass over the newest token and a draft, and its outcome."""
        clock = Clock(self.target.synchronize)
        with clock.phase("draft"):
            before = self.drafter.busy
            draft = self.drafter.propose(self._room())
        clock.move("draft", "draft_pass", self.drafter.busy - before)
        with clock.phase("verify"):
            logits = self.target.verify(self.ids[-1], draft)
        assert len(logits) == 1 + len(draft) - len(self.target.pruned), "logits of other rows than the scored ones"
        return self._finish_step(clock, draft, logits, rows=1 + len(draft), keep=True)

    def _room(self) -> int:
        """The deepest useful draft: a step emits at most depth + 1 tokens, within the limits of length and context."""
        return max(0, min(self._most(), self.target.context) - len(self.ids) - 1)

    def _most(self) -> int:
        """The most ids, with the prompt's, that this run may have."""
        return len(self.ids) - self.emitted + self.picker.sampling.max_new_tokens

    def _finish_step(self, clock: Clock, draft: Draft, logits: Tensor, rows: int, keep: bool) -> Step:
        with clock.phase("accept"):
            picks, texts = self._accept(draft, logits)
            scores = verify.Scores.of(logits, picks)
            if not scores.finite():
                raise NotFinite("The model computed NaN or infinity: choose float32, or another model.")
            judged = verify.judge(draft, picks, scores, self.target.pruned)
            draft = replace(judged, texts=tuple(map(self.show, draft.tokens)))
            tokens = self._tokens(draft, picks, texts, scores)
        with clock.phase("keep"):
            if keep:  # the last token is not in the cache: it is the next root
                self.target.keep([p.row for p in picks])
            self.drafter.observe(picks[-1].row)
        step = Step(self.index, draft, tokens, clock.seconds, rows, self.target.stream_rows)
        self.index += 1
        return step

    def _accept(self, draft: Draft, logits: Tensor) -> tuple[list[verify.Pick], list[str]]:
        picks, texts = [], []
        for pick in verify.walk(logits, draft, self.picker, self.ids, self.target.pruned):
            picks.append(pick)
            self.ids.append(pick.token)
            self.emitted += 1
            text, stopped = self.text.push(pick.token)
            texts.append(text)
            self.reason = self._end(pick.token, stopped)
            if self.reason:
                break
        return picks, texts

    def _end(self, token: int, stopped: bool) -> Reason | None:
        if token in self.eos:
            return Reason.EOS
        if stopped:
            return Reason.STOP_STRING
        if self.emitted >= self.picker.sampling.max_new_tokens:
            return Reason.LENGTH
        return Reason.CONTEXT if len(self.ids) >= self.target.context else None

    @staticmethod
    def _tokens(draft: Draft, picks: list[verify.Pick], texts: list[str], scores: verify.Scores) -> tuple[Token, ...]:
        values = scores.logprobs(range(len(picks)), [p.token for p in picks])
        depths = draft.depths()
        return tuple(
            Token(p.token, text, Origin.DRAFT, depths[p.node], p.node, value)
            if p.node >= 0
            else Token(p.token, text, Origin.TARGET, logprob=value)
            for p, text, value in zip(picks, texts, values, strict=True)
        )


def decode(run: Run, should_stop: Callable[[], bool]) -> Generator[Step | Finished, None, None]:
    """Run to the end: one Step per pass, then Finished. The cache is freed however the run ends."""
    try:
        yield run.prompt_pass(should_stop)
        while run.reason is None and not should_stop():
            yield run.step()
        yield Finished(
            run.reason or Reason.STOPPED, tail=run.text.flush() if run.reason is not Reason.STOP_STRING else ""
        )
    except Stopped:
        yield Finished(Reason.STOPPED)
    finally:
        run.target.release()
