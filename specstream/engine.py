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
from torch import nn
from transformers import PreTrainedModel

from specstream import native
from specstream.adapters.card import AdapterError
from specstream.adapters.find import bundled, find_adapter
from specstream.adapters.heads import Heads
from specstream.adapters.weights import Adapter
from specstream.data.chat import Chat
from specstream.data.tasks import task
from specstream.decoding.detokenize import TextStream, token_text
from specstream.decoding.drafters.registry import make_drafter
from specstream.decoding.encode import (
    NOTHING_BEFORE,
    PromptError,
    Tokenizer,
    chat_prompt,
    encode,
    least_tokens,
    too_long,
)
from specstream.decoding.interfaces import DraftingTarget, RewindableTarget
from specstream.decoding.loop import Run, decode
from specstream.decoding.sampling import Picker
from specstream.events import Event, Started
from specstream.hub import catalogue
from specstream.hub.download import ModelError, ModelSource, StatusCallback
from specstream.info import EngineInfo, processor
from specstream.model import devices, introspection, quantized
from specstream.model.cpu_linear import FLOAT16, NATIVE, Format
from specstream.model.native_linear import FbgemmLinear, NativeLinear
from specstream.native import compiler
from specstream.params import METHODS, Method, Sampling, Standard, Streaming
from specstream.target import draft_model as pairing
from specstream.target import loading, self_test
from specstream.target.compiled import Layers
from specstream.target.model_target import ModelTarget, PlainTarget, Variant
from specstream.target.offload import offload
from specstream.target.self_test_cache import SelfTestCache


class MethodUnavailable(ValueError):
    """A method can't run on the loaded model; the message says why."""


class RunLock:
    """A lock for one run at a time. A thread that already holds it would wait forever; it gets RuntimeError instead."""

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
    """``Engine.float32`` if nothing would change."""
    yield False


def _no_draft_model() -> None:
    """``Engine.make_second`` if no draft model is loaded: no target."""


@dataclass
class Engine:
    """One loaded model. Runs are serialised: a second ``generate`` waits for the first to end.

    ``make_target(method)`` returns a new target on the model for one run of a settled method, ``make_second`` one on
    the draft model (None if none is loaded). ``float32`` is a context in which the model computes in float32, to
    distinguish a numerical tie from a real mismatch; it yields False if that changes nothing.
    """

    info: EngineInfo
    tokenizer: Tokenizer
    eos: Collection[int]
    make_target: Callable[[Method], DraftingTarget]
    float32: Callable[[], AbstractContextManager[bool]] = _unchanged
    make_second: Callable[[], RewindableTarget | None] = _no_draft_model
    lock: RunLock = field(default_factory=RunLock)
    layers: Layers | None = None

    def __post_init__(self) -> None:
        self.show = functools.lru_cache(maxsize=65536)(functools.partial(token_text, self.tokenizer))

    def prompt(self, task_name: str, text: str, before: Chat = NOTHING_BEFORE) -> str:
        """The prompt for a user's text in the task's template; for an ``asked`` task in the model's own, if it has one.

        ``before`` is the conversation that the message continues.
        """
        if task_name in ("", "none", "raw"):
            return text
        chosen = task(task_name)
        if chosen.asked and getattr(self.tokenizer, "chat_template", None):
            return chat_prompt(self.tokenizer, text, before)
        return chosen.prompt(text)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt. Raises PromptError if it is empty, not valid text, or too long for the context."""
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
        the cache and leaves the engine ready for the next run.
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
        """Swap in compiled layers if they have been built; with ``wait``, wait until they are. Never call this between
        runs that are compared, because compiled layers round differently.

        Raises RuntimeError while this thread has an open run.
        """
        if self.layers is None or self.layers.ready:
            return
        with self.lock:
            self.layers.use(wait)
        self.info = replace(self.info, compiled=self.layers.ready, compiling=self.layers.words)

    def settled(self, method: Method) -> Method:
        """The method with all unset settings chosen for the device."""
        return method.on(self.info.device, self.info.nodes)

    def default_method(self) -> Method:
        return Standard() if Streaming.name in self.info.unavailable else Streaming()

    def new_run(self, ids: list[int], method: Method, sampling: Sampling) -> Run:
        """A run that has not started; its ``ids`` grow during the run."""
        target = self.make_target(method)
        picker = Picker(sampling)
        drafter = make_drafter(method, target, ids, picker, self.make_second())
        text = TextStream(self.tokenizer, sampling.stop)
        eos = () if sampling.ignore_eos else self.eos
        return Run(target, drafter, picker, text, ids, eos, self.show)


def load(
    model: str | os.PathLike[str] = catalogue.DEFAULT,
    adapter: str | os.PathLike[str] = "auto",
    device: str = "auto",
    dtype: str = "auto",
    progress: StatusCallback = lambda words, fraction: None,
    draft: str | os.PathLike[str] = "none",
) -> Engine:
    """Load a model and an adapter, and a draft model if ``draft`` names one.

    ``model`` and ``draft`` are a catalogue name, a Hub id or a folder; ``adapter`` is "none", a name of ``adapters
    list``, a folder, or "auto": the bundled one for the task e2e, else the first one bundled for the model, else none.
    An adapter may change what the model writes (``info.tuned``). Raises ModelError, AdapterError or DraftModelError
    (all ValueError) with one sentence.
    """
    started = time.perf_counter()
    model, adapter, draft = os.fspath(model), os.fspath(adapter), os.fspath(draft)
    native.library(build=False)  # the functions in C++, if the process that compiles layers has built them before
    placement = _placement(device, dtype)
    _read_grouped_keys(placement.device)
    folder = find_adapter(adapter, model)
    fetched = loading.fetch(model, "cpu" if placement.spread else placement.device, placement.kind, progress)
    loaded = _loaded(fetched, folder, placement, dtype, draft, progress)
    info = replace(_info(loaded, placement), model=model, adapter=_name(adapter, model, folder))
    layers = None if placement.spread else _layers(loaded)
    engine = Engine(
        info,
        loaded.tokenizer,
        _eos(loaded.network, loaded.tokenizer),
        _targets(loaded),
        _float32(loaded.network, *(loaded.adapter.copies() if loaded.adapter else ())),
        loaded.pair.target if loaded.pair else _no_draft_model,
        layers=layers,
    )
    if layers:
        layers.start()
        engine.refresh()
    engine.info = replace(engine.info, load_seconds=time.perf_counter() - started)
    return engine


@dataclass(frozen=True)
class Placement:
    """The device of a model and the dtype in which its weights are loaded, each with a reason. ``half``: they are
    packed in float16 afterwards. ``spread``: layers that don't fit on the device are offloaded."""

    device: str
    device_reason: str
    kind: torch.dtype
    dtype_reason: str
    half: bool
    spread: bool = False


@dataclass
class Loaded:
    """A model with all its drafting parts. For a model that can't verify trees, ``parts`` is None and ``reason`` says
    why; ``parameters`` counts the base model's weights and ``extra`` those added for drafting."""

    network: PreTrainedModel
    tokenizer: Tokenizer
    source: ModelSource
    parts: introspection.Anatomy | None
    reason: str | None
    adapter: Adapter | None
    heads: Heads
    pair: pairing.Pair | None
    form: Format
    passed: SelfTestCache
    parameters: int
    extra: int
    exact: bool = False

    @property
    def streams(self) -> Adapter | None:
        """The adapter, if it has streams."""
        return self.adapter if self.adapter and self.adapter.card.gamma else None


def _placement(device: str, dtype: str) -> Placement:
    """Raises ModelError for an unknown device or dtype."""
    where, device_reason = devices.choose_device(device)
    kind, dtype_reason = devices.choose_dtype(dtype, where)
    kind, half = devices.loaded_in(kind, where)
    spread = device == devices.OFFLOAD
    if spread and dtype == "int8":
        raise ModelError("An offloaded model can't be in int8: choose another dtype.")
    return Placement(where, device_reason, kind, dtype_reason, half and not spread, spread)


def _loaded(
    fetched: loading.Fetched,
    folder: Path | None,
    placement: Placement,
    dtype: str,
    draft: str,
    progress: StatusCallback,
) -> Loaded:
    """Load adapter and draft model, merge, pack and test. Raises ModelError, AdapterError or DraftModelError."""
    network, tokenizer, source = fetched
    parts, reason = _parts(network)
    if dtype == "int8" and parts is None:
        raise ModelError(loading.NO_INT8)
    form = FLOAT16 if placement.half and parts is not None else NATIVE  # without parts nothing can be packed
    texts = quantized.samples(tokenizer, introspection.context_of(network.config)) if dtype == "int8" else ()
    adapter, heads = _put_on(folder, parts, reason)
    parameters = sum(p.numel() for p in network.parameters())
    extra = adapter.drafting_count() if adapter else 0  # before the LoRA of the main stream is merged
    second = (placement.device, network.dtype, progress, form, texts)
    pair = None if draft in pairing.NONE else pairing.load(draft, tokenizer, *second)
    where = devices.OFFLOAD if placement.spread else placement.device
    passed = SelfTestCache((source.path, folder), where, dtype, str(placement.kind))
    progress("Checking that the model can verify draft trees", None)
    out = Loaded(network, tokenizer, source, parts, reason, adapter, heads, pair, form, passed, parameters, extra)
    if parts is not None:
        loading.made_ready(parts, adapter, heads)
        out.form = loading.in_int8(parts, texts) if texts else form
        if placement.spread:
            out.parts = offload(parts, placement.device, adapter, heads)
        else:
            out.parts = loading.packed_up(parts, adapter, heads, out.form)
        out.reason, out.exact = loading.checked(out.parts, out.streams, passed)
    if out.reason and (problem := self_test.plain_failure(network)):
        raise ModelError(f"The model in {source.path} can't be used: {problem}: choose another one.")
    return out


def _info(loaded: Loaded, placement: Placement) -> EngineInfo:
    """The facts about a loaded model, except the user's names for it and its adapter."""
    network, parts, pair = loaded.network, loaded.parts, loaded.pair
    card = loaded.adapter.card if loaded.adapter else None
    unavailable = _unavailable(loaded)
    nodes, nodes_reason = devices.cheap_nodes(network.dtype, loading.is_packed(parts), loaded.form.half)
    return EngineInfo(
        model="",
        source=loaded.source.origin,
        adapter="",
        task=card.task if card else "",
        mode=card.mode if card else "",
        tuned=bool(card and card.tuning[0]),
        device=placement.device,
        device_reason=placement.device_reason,
        dtype=str(network.dtype).removeprefix("torch.") if loaded.form.name == NATIVE.name else loaded.form.name,
        dtype_reason=placement.dtype_reason
        + (": weights in float16, arithmetic in float32" if loaded.form.half else ""),
        parameters=loaded.parameters,
        extra_parameters=loaded.extra,
        gamma=card.gamma if card else 0,
        context=introspection.context_of(network.config),
        chat=bool(getattr(loaded.tokenizer, "chat_template", None)),
        unavailable=unavailable,
        notes=tuple(dict.fromkeys(w for name, w in unavailable.items() if loaded.reason or name == Streaming.name)),
        versions=versions() | {"linear": _linear_layers(loaded)},
        layers=len(parts.layers) if parts else 0,
        stream_layers=card.layers if card else 0,
        draft_model=pair.name if pair else "none",
        draft_parameters=pair.parameters if pair else 0,
        draft_bytes=pair.size if pair else 0,
        head_parameters=loaded.heads.parameters(),
        nodes=nodes,
        nodes_reason=nodes_reason,
        exact=loaded.exact,
        processor=processor(),
    )


def _read_grouped_keys(device: str) -> None:
    """On a CPU, let transformers' attention read shared keys and values in place, even with a mask; otherwise it copies
    the whole cache for each head. On a GPU this would select a slower kernel."""
    os.environ["TRANSFORMERS_SDPA_FORCE_GQA"] = "1" if device == "cpu" else "0"


def _name(adapter: str, model: str, folder: Path | None) -> str:
    """The name of an adapter on the page and in the log."""
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


def _layers(loaded: Loaded) -> Layers | None:
    """The compiled layers, not yet swapped in; None if nothing is compiled."""
    parts, streams, passed = loaded.parts, loaded.streams, loaded.passed
    if parts is None or loaded.reason or not compiler.allowed_for_layers():
        return None

    def check() -> str | None:
        if passed.recall("compiled") is not None:
            return None
        wrong = self_test.failure(parts, streams)
        if not wrong and not self_test.exact(parts):
            wrong = "tokens would depend on what is decoded beside them"
        if not wrong:
            passed.note("compiled")
        return wrong

    turned = (
        streams is not None and streams.streams.rotation
    )  # works by hooks inside the layers, which compiled ones lack
    return Layers(parts, streams.merged if streams else (), loaded.source.path, check, possible=not turned)


def _linear_layers(loaded: Loaded) -> str:
    """The library that computes the linear layers."""
    if not loading.is_packed(loaded.parts):
        return "PyTorch"
    assert loaded.parts is not None
    by = {NativeLinear: "C++ for this processor", FbgemmLinear: "FBGEMM"}.get(type(loaded.parts.head), "oneDNN")
    return f"{by}, packed"


def _unavailable(loaded: Loaded) -> dict[str, str]:
    """The methods that can't run, each with its reason."""
    if loaded.reason:
        return {name: loaded.reason for name in METHODS if name != Standard.name}
    return loading.lacking(loaded.streams, loaded.heads, loaded.pair)


def _targets(loaded: Loaded) -> Callable[[Method], DraftingTarget]:
    parts, streams, heads = loaded.parts, loaded.streams, loaded.heads

    def target(method: Method) -> ModelTarget:
        assert parts is not None
        return ModelTarget(parts, streams, Variant.of(method) if isinstance(method, Streaming) else None, heads)

    def plain(_method: Method) -> DraftingTarget:
        return cast(DraftingTarget, PlainTarget(loaded.network))  # only for standard decoding, which drafts nothing

    return plain if loaded.reason else target


def _eos(network: PreTrainedModel, tokenizer: Tokenizer) -> set[int]:
    ids = network.generation_config.eos_token_id
    out = set(ids if isinstance(ids, list) else [ids]) | {tokenizer.eos_token_id}
    return {i for i in out if i is not None}


def _float32(*modules: nn.Module) -> Callable[[], AbstractContextManager[bool]]:
    """``Engine.float32`` for a network and the modules that are copied from it, which compute with its states."""

    @contextmanager
    def context() -> Iterator[bool]:
        """A context in which every parameter and buffer is float32; then the original tensors are restored, not
        converted back."""
        tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
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
    """The versions on which results depend."""
    names = ("torch", "transformers", "gradio")
    found = {n: importlib.metadata.version(n) for n in names if _installed(n)}
    return {"python": platform.python_version(), **found, "threads": str(torch.get_num_threads())}


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
