"""The engine: a loaded model with its adapter, behind ``generate``."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from specstream.adapters.card import AdapterError
from specstream.adapters.find import bundled, find_adapter
from specstream.adapters.heads import Heads
from specstream.adapters.weights import Adapter
from specstream.data.chat import Chat
from specstream.data.tasks import copy_after, task
from specstream.decoding.drafters.registry import make_drafter
from specstream.decoding.interfaces import DraftingTarget, RewindableTarget
from specstream.decoding.loop import Run, decode
from specstream.decoding.sampling import Picker
from specstream.decoding.text import (
    NOTHING_BEFORE,
    PromptError,
    TextStream,
    Tokenizer,
    chat_prompt,
    encode,
    least_tokens,
    token_text,
    too_long,
)
from specstream.events import Event, Started
from specstream.hub import catalogue
from specstream.info import EngineInfo, processor
from specstream.model import devices, introspection
from specstream.params import METHODS, Method, Sampling, Standard, Streaming
from specstream.target import draft_model as pairing
from specstream.target import loading, self_test
from specstream.target.compiled import Layers
from specstream.target.model_target import ModelTarget, PlainTarget, Variant
from specstream.target.offload import offload

NO_COMPILER = "SPECSTREAM_NO_COMPILER"  # set to 1: layers are not compiled
Progress = Callable[[str, float | None], None]


class MethodUnavailable(ValueError):
    """A method can't run on the loaded model; the message says why."""


class Turn:
    """A lock for one run at a time. Who holds it already would wait for ever: that raises RuntimeError instead."""

    def __init__(self) -> None:
        self._lock, self._holder = threading.Lock(), 0

    def __enter__(self) -> None:
        if self._holder == threading.get_ident() and self._lock.locked():
            raise RuntimeError("Another run of this thread is still open: read it to its end or close it first.")
        self._lock.acquire()
        self._holder = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self._holder = 0
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()


@contextmanager
def _unchanged() -> Iterator[bool]:
    yield False


@dataclass
class Engine:
    """One loaded model. Runs are one at a time: a second ``generate`` waits for the first to end.

    ``make_target(method)`` gives a fresh view of the model for one run of a settled method, ``make_second`` one of the
    draft model (None where none is loaded). ``float32`` is a context in which the model computes in float32, to tell a
    numerical tie from a real mismatch; it gives False where that changes nothing.
    """

    info: EngineInfo
    tokenizer: Tokenizer
    eos: Collection[int]
    make_target: Callable[[Method], DraftingTarget]
    float32: Callable[[], AbstractContextManager[bool]] = field(default_factory=lambda: _unchanged)
    make_second: Callable[[], RewindableTarget | None] = lambda: None
    lock: Turn = field(default_factory=lambda: Turn())
    layers: Layers | None = None

    def __post_init__(self) -> None:
        self.show = functools.lru_cache(maxsize=65536)(functools.partial(token_text, self.tokenizer))

    def prompt(self, task_name: str, text: str, before: Chat = NOTHING_BEFORE) -> str:
        """The prompt for a user's text: the task's template; for one that is ``asked`` the model's own, if it has one.

        ``before`` is the conversation that a ``chat`` message continues.
        """
        if task_name in ("", "none", "raw"):
            return text
        chosen = task(task_name)
        if chosen.asked and getattr(self.tokenizer, "chat_template", None):
            return chat_prompt(self.tokenizer, text, before)
        return chosen.prompt(text)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt. Raises PromptError for an empty one, one that is no text, or one that does not fit the
        context."""
        if not prompt.strip():
            raise PromptError("The prompt is empty: type some text first.")
        context = self.info.context
        if least := least_tokens(self.tokenizer, prompt, context):
            raise PromptError(too_long(least, context, " or more"))
        ids = encode(self.tokenizer, prompt)
        if not ids:
            raise PromptError("The prompt holds no tokens for this model: type some text first.")
        if len(ids) >= context:
            raise PromptError(too_long(len(ids), context))
        return ids

    def generate(
        self,
        prompt: str,
        method: Method | None = None,
        sampling: Sampling | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Generator[Event, None, None]:
        """Run to the end: Started, Steps, Finished.

        Raises PromptError, MethodUnavailable or ValueError before the first event. Closing the iterator early frees
        the cache and leaves the engine ready.
        """
        method, sampling = method or self.default_method(), sampling or Sampling()
        if reason := self.info.unavailable.get(method.name):
            raise MethodUnavailable(reason)
        method = self.settled(method)
        ids = self.encode(prompt)
        with self.lock:
            run = self.new_run(ids, method, sampling)
            yield Started(method.name, len(ids), {"method": method.to_dict(), "sampling": sampling.to_dict()})
            yield from decode(run, should_stop)

    def refresh(self, wait: bool = False) -> None:
        """Put compiled layers in place if they have been built, or wait until they are. Between runs to compare, never
        inside: compiled layers round otherwise.

        Raises RuntimeError while a run of this thread is open.
        """
        if self.layers is None or self.layers.ready:
            return
        with self.lock:
            self.layers.use(wait)
        self.info = replace(self.info, compiled=self.layers.ready, compiling=self.layers.words)

    def settled(self, method: Method) -> Method:
        """The method with what its settings leave to the device and the adapter decided."""
        return method.on(self.info.device, self.info.nodes, copy_after(self.info.task))

    def default_method(self) -> Method:
        return Standard() if Streaming.name in self.info.unavailable else Streaming()

    def new_run(self, ids: list[int], method: Method, sampling: Sampling) -> Run:
        """A run that has not begun; its ``ids`` grow as it goes."""
        target = self.make_target(method)
        picker = Picker(sampling)
        drafter = make_drafter(method, target, ids, picker, self.make_second())
        text = TextStream(self.tokenizer, sampling.stop)
        eos = () if sampling.ignore_eos else self.eos
        return Run(target, drafter, picker, text, ids, eos, self.show)


def load(
    model: str = catalogue.DEFAULT,
    adapter: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = lambda words, fraction: None,
    draft: str = "none",
) -> Engine:
    """Load a model and an adapter, and a draft model where ``draft`` names one.

    ``model`` and ``draft`` are a catalogue name, a Hub id or a folder; ``adapter`` "auto", "none", a bundled task or a
    folder. Raises ModelError, AdapterError or DraftModelError (all ValueError) with one sentence.
    """
    started = time.perf_counter()
    where, device_reason = devices.choose_device(device)
    kind, dtype_reason = devices.choose_dtype(dtype, where)
    _read_grouped_keys(where)
    folder = find_adapter(adapter, model)
    kind, half = devices.loaded_in(kind, where)
    pieces = device == devices.OFFLOAD
    network, tokenizer, source = loading.fetch(model, "cpu" if pieces else where, kind, progress)
    parameters = sum(p.numel() for p in network.parameters())
    parts, reason = _parts(network)
    half = half and parts is not None and not pieces  # nothing is packed of a model whose parts are not known
    loaded, beside = _put_on(folder, parts, reason)
    extra = loaded.drafting_count() if loaded else 0
    streams = loaded if loaded and loaded.card.gamma else None
    pair = None if draft in pairing.NONE else pairing.load(draft, tokenizer, where, network.dtype, progress, half)
    progress("Checking that the model can verify draft trees", None)
    if parts is not None:
        loading.made_ready(parts, loaded, beside)
        parts = offload(parts, where, loaded, beside) if pieces else loading.packed_up(parts, loaded, beside, half)
        attention, reason = loading.tested(parts, streams)
        network.set_attn_implementation(attention)
    unavailable = _unavailable(reason, streams, pair, beside)
    nodes, nodes_reason = devices.cheap_nodes(network.dtype, loading.is_packed(parts))
    info = EngineInfo(
        model=model,
        source=source.origin,
        adapter=_name(adapter, model, folder),
        task=loaded.card.task if loaded else "",
        mode=loaded.card.mode if loaded else "",
        tuned=bool(loaded and loaded.card.tuning[0]),
        device=where,
        device_reason=device_reason,
        dtype="float16" if half else str(network.dtype).removeprefix("torch."),
        dtype_reason=dtype_reason + (": weights in float16, arithmetic in float32" if half else ""),
        parameters=parameters,
        extra_parameters=extra,
        gamma=loaded.card.gamma if loaded else 0,
        context=introspection.context_of(network.config),
        chat=bool(getattr(tokenizer, "chat_template", None)),
        unavailable=unavailable,
        notes=tuple(dict.fromkeys(w for name, w in unavailable.items() if reason or name == Streaming.name)),
        versions=versions() | {"linear": _product_of(parts, half)},
        layers=len(parts.layers) if parts else 0,
        stream_layers=loaded.card.layers if loaded else 0,
        draft_model=pair.name if pair else "none",
        draft_parameters=pair.parameters if pair else 0,
        draft_bytes=pair.size if pair else 0,
        head_parameters=beside.parameters(),
        nodes=nodes,
        nodes_reason=nodes_reason,
        exact=parts is not None and reason is None and self_test.exact(parts),
        processor=processor(),
    )
    targets = _targets(network, parts, streams, reason, beside)
    second = pair.target if pair else _no_draft_model
    compiles = parts is not None and not reason and not pieces and os.environ.get(NO_COMPILER) != "1"
    layers = _layers(parts, streams, source.path) if parts and compiles else None
    engine = Engine(info, tokenizer, _eos(network, tokenizer), targets, _float32(network), second, layers=layers)
    if layers:
        layers.start()
        engine.refresh()
    engine.info = replace(engine.info, load_seconds=time.perf_counter() - started)
    return engine


def _no_draft_model() -> None:
    """Where none is loaded."""


def _read_grouped_keys(device: str) -> None:
    """On a CPU, let transformers' attention read keys and values that several heads share where they lie, also under a
    mask: it copies the whole cache for each head otherwise. On a GPU that would take a slower kernel."""
    os.environ["TRANSFORMERS_SDPA_FORCE_GQA"] = "1" if device == "cpu" else "0"


def _name(adapter: str, model: str, folder: Path | None) -> str:
    """What an adapter is called on the page and in the log."""
    if folder is None:
        return "none"
    return adapter if adapter in bundled(model) or adapter.startswith("hub:") else folder.name


def _parts(network: PreTrainedModel) -> tuple[introspection.Anatomy | None, str | None]:
    try:
        return loading.parts_of(network), None
    except introspection.UnsupportedModel as error:  # standard decoding may still work
        return None, str(error)


def _put_on(
    folder: Path | None, parts: introspection.Anatomy | None, reason: str | None
) -> tuple[Adapter | None, Heads]:
    if parts is not None:
        return loading.drafting_parts(folder, parts)
    if folder is not None:
        raise AdapterError(f"{reason} Load it with adapter none.")
    return None, Heads()


def _layers(parts: introspection.Anatomy, streams: Adapter | None, folder: Path) -> Layers:
    """The compiled layers, not yet in place."""

    def check() -> str | None:
        wrong = self_test.failure(parts, streams)
        return wrong or (None if self_test.exact(parts) else "tokens would depend on what is decoded beside them")

    turned = streams is not None and streams.streams.rotation  # by hooks inside the layers, which compiled ones lack
    return Layers(parts, streams.merged if streams else (), folder, check, possible=not turned)


def _product_of(parts: introspection.Anatomy | None, half: bool) -> str:
    """What computes the linear maps."""
    if not loading.is_packed(parts):
        return "PyTorch"
    return "FBGEMM, packed" if half else "oneDNN, packed"


def _unavailable(
    reason: str | None, loaded: Adapter | None, pair: pairing.Pair | None, beside: Heads
) -> dict[str, str]:
    if reason:
        return {name: reason for name in METHODS if name != Standard.name}
    return loading.lacking(loaded, beside, pair, pairing.NO_DRAFT_MODEL)


def _targets(
    network: PreTrainedModel,
    parts: introspection.Anatomy | None,
    adapter: Adapter | None,
    reason: str | None,
    beside: Heads,
) -> Callable[[Method], DraftingTarget]:
    def target(method: Method) -> ModelTarget:
        assert parts is not None
        return ModelTarget(parts, adapter, Variant.of(method) if isinstance(method, Streaming) else None, beside)

    def plain(_method: Method) -> DraftingTarget:
        return cast(DraftingTarget, PlainTarget(network))  # for standard decoding alone, which drafts nothing

    return plain if reason else target


def _eos(network: PreTrainedModel, tokenizer: Tokenizer) -> set[int]:
    ids = network.generation_config.eos_token_id
    out = set(ids if isinstance(ids, list) else [ids]) | {tokenizer.eos_token_id}
    return {i for i in out if i is not None}


def _float32(network: PreTrainedModel) -> Callable[[], AbstractContextManager[bool]]:
    @contextmanager
    def context() -> Iterator[bool]:
        """Every parameter and buffer in float32; the tensors themselves are put back afterwards, not converted back."""
        tensors = [*network.parameters(), *network.buffers()]
        before = [(t, t.data) for t in tensors if t.is_floating_point() and t.dtype != torch.float32]
        try:
            for tensor, data in before:
                tensor.data = data.float()
            yield bool(before)
        finally:
            for tensor, data in before:
                tensor.data = data

    return context


@functools.cache
def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("torch", "transformers", "gradio")
    found = {n: importlib.metadata.version(n) for n in names if _installed(n)}
    return {"python": platform.python_version(), **found, "threads": str(torch.get_num_threads())}


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
