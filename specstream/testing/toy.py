"""A scripted toy model: the interface of a real one, without weights, ready at once.

It is a byte-level n-gram model of a few sentences. Its streams, heads and early exit see less context than its main
stream, so some of their drafts are rejected. For tests, and for the page without a model.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from specstream import tree
from specstream.decoding.interfaces import never
from specstream.engine import Engine, versions
from specstream.events import Draft
from specstream.info import EngineInfo, processor
from specstream.params import Streaming
from specstream.target.lens import Watched
from specstream.target.model_target import Variant

EOS = 256
VOCAB = 257
GAMMA = 4
CONTEXT = 4096
ORDER, EXIT_ORDER, STREAM_ORDER, HEAD_ORDER = 12, 6, 4, 3  # bytes of context that each uses
DRAFT_SPEED, EXIT_SPEED = 10, 5  # how many times faster the draft model and the first layers are
SENTENCES = (
    "The Copper Kettle is a quiet café by the river that serves warm bread and good coffee at a low price.",
    "The Copper Kettle is a family friendly café near the old harbour. Guests praise its warm bread.",
    "Near the old harbour there is a small restaurant called The Green Lantern. It serves fresh fish at a fair price.",
    "The Green Lantern is a small restaurant in the city centre with a high customer rating and fresh fish.",
    "In the city centre you can find a pub called The Brass Owl, which serves good food at a moderate price.",
    "The Brass Owl is a pub by the river. It is not family friendly, but its food is good and its price is low.",
)
NOTE = "This is a scripted toy model that paces itself so that it can be watched: its speeds mean nothing."


class ByteTokenizer:
    """One token per UTF-8 byte; 256 is the end of text. Its chat template is one line per message."""

    eos_token_id = EOS
    bos_token = None
    chat_template = "{role}: {content}"

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        return SimpleNamespace(input_ids=list(text.encode()))

    def apply_chat_template(self, messages: Sequence[dict[str, str]], **_: Any) -> str:
        return "".join(self.chat_template.format(**message) + "\n" for message in messages) + "Text:"

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True, **_: Any) -> str:
        text = bytes(i for i in ids if i < EOS).decode(errors="replace")
        return text + ("" if skip_special_tokens else "<eos>" * sum(i == EOS for i in ids))


class Ngrams:
    """Counts of the byte ``ahead`` positions after every context in the sentences."""

    def __init__(self, order: int, ahead: int) -> None:
        self.order = order
        self.counts: dict[bytes, Counter[int]] = defaultdict(Counter)
        for sentence in SENTENCES:
            body = ("Text: " + sentence).encode()
            for at in range(len(body) + 1 - ahead):
                target = body[at + ahead] if at + ahead < len(body) else EOS
                for length in range(min(order, at) + 1):
                    self.counts[body[at - length : at]][target] += 1

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits ``[vocab]`` after ``ids``: the slightly smoothed counts of the longest known context."""
        tail = bytes(i for i in ids[-self.order :] if i < EOS)
        while tail and tail not in self.counts:
            tail = tail[1:]
        out = torch.full((VOCAB,), 1e-4)
        for token, count in self.counts[tail].items():
            out[token] += count
        return out.log()


class ToyTarget:
    """A target over n-gram counts. ``pace`` is the time of a pass in seconds; each row adds a hundredth of it. The
    draft model is another instance, with shorter n-grams."""

    context, vocabulary, medusa_depth = CONTEXT, VOCAB, GAMMA
    stream_ids = medusa_ids = None  # all tokens
    stream_pairs = None

    def __init__(self, streams: Variant | None, pace: float, main: Ngrams | None = None) -> None:
        self._main = main or MAIN
        self.gamma = GAMMA if streams else 0
        self.stream_rows = 0
        self.pruned: Collection[int] = frozenset()
        self._pace = pace
        self._deferred, self._threshold = (streams.deferred, streams.prune) if streams else (False, 0.0)
        self._kept: list[int] = []
        self._paths: list[list[int]] = []

    def prefill(self, ids: Sequence[int], should_stop: Callable[[], bool] = never) -> Tensor:
        self._kept = list(ids)
        self._paths = [[]]
        self.stream_rows = 0 if self._deferred else self.gamma
        self.pruned = frozenset()
        self._wait(1)
        return self._main.logits(self._kept)[None]

    def verify(self, root: int, draft: Draft) -> Tensor:
        self._paths = [[root]]
        for token, parent in zip(draft.tokens, draft.parents, strict=True):
            self._paths.append([*self._paths[parent + 1], token])
        self.pruned = tree.pruned(draft.parents, self._likely(draft))
        scored = [path for row, path in enumerate(self._paths) if row - 1 not in self.pruned]
        self.stream_rows = self.gamma * (1 if self._deferred else len(scored))
        self._wait(len(scored))
        return torch.stack([self._main.logits(self._kept + path) for path in scored])

    def _likely(self, draft: Draft) -> list[bool]:
        """For each node, whether the early exit gives it at least the threshold probability after its parent."""
        if not self._threshold:
            return [True] * len(draft)
        above = [EXIT.logits(self._kept + self._paths[p + 1]).softmax(-1) for p in draft.parents]
        return [bool(probs[token] >= self._threshold) for probs, token in zip(above, draft.tokens, strict=True)]

    def stream_logits(self, row: int) -> Tensor:
        # Called after ``keep``, so the accepted path is already committed.
        return torch.stack([s.logits(self._kept) for s in STREAMS])

    def look(self, ids: Sequence[int]) -> Watched:
        """The streams' predictions with less context, then with all of theirs; they attend to the last tokens."""
        logits = [torch.stack([s.logits(ids[-order - 1 : -1]) for s in STREAMS]) for order in (1, 2, STREAM_ORDER)]
        shares = torch.zeros(self.gamma, len(ids) - 1)
        shares[:, -STREAM_ORDER:] = 1 / STREAM_ORDER
        return Watched(torch.stack(logits), None, shares)

    def medusa_logits(self, row: int) -> Tensor:
        return torch.stack([head.logits(self._kept) for head in MEDUSA])

    @contextmanager
    def early_exit(self) -> Iterator[Callable[[int], Tensor]]:
        drafted: list[int] = []

        def logits_after(token: int) -> Tensor:
            time.sleep(self._pace / EXIT_SPEED)
            drafted.append(token)
            return EXIT.logits(self._kept + drafted)[None]

        yield logits_after

    def keep(self, rows: Sequence[int]) -> None:
        self._kept += self._paths[rows[-1]]

    def rewind(self, length: int) -> None:
        del self._kept[length:]

    def synchronize(self) -> None:
        """Nothing runs asynchronously."""

    def release(self) -> None:
        self._kept, self._paths = [], []

    def _wait(self, rows: int) -> None:
        time.sleep(self._pace * (1 + rows / 100))


MAIN, EXIT = Ngrams(ORDER, 0), Ngrams(EXIT_ORDER, 0)
STREAMS = [Ngrams(STREAM_ORDER, ahead) for ahead in range(1, GAMMA + 1)]
MEDUSA = [Ngrams(HEAD_ORDER, ahead) for ahead in range(1, GAMMA + 1)]


def load_toy(pace: float = 0.04) -> Engine:
    """An Engine on the toy model."""
    info = EngineInfo(
        model="toy",
        source="scripted in the program",
        adapter="toy",
        task="e2e",
        mode="shared",
        tuned=True,
        device="cpu",
        device_reason="the toy model needs no accelerator",
        dtype="float32",
        dtype_reason="the toy model counts in float32",
        parameters=0,
        extra_parameters=0,
        gamma=GAMMA,
        context=CONTEXT,
        chat=True,
        notes=(NOTE,),
        versions=versions(),
        draft_model="toy",
        processor=processor(),
    )
    return Engine(
        info,
        ByteTokenizer(),
        {EOS},
        lambda method: ToyTarget(Variant.of(method) if isinstance(method, Streaming) else None, pace),
        make_second=lambda: ToyTarget(None, pace / DRAFT_SPEED, EXIT),
    )
