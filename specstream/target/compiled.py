"""The decoder layer as one compiled function, since small operations otherwise take a third of a pass.

A model's own layer is traced with its weights as arguments, so that one small library serves every layer, every adapter
and every process on this machine. A C++ compiler builds it in a separate process; it is stored in the cache folder, and
is optional: without it the layer's own Python code runs. The compiled layer keeps the guarantee of
``specstream.model.attention``: a row's result has the same bits whatever other rows are computed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from specstream import native
from specstream.hub import download
from specstream.installation import environment, python
from specstream.model import attention
from specstream.model.cpu_linear import LEAST, Format, PackedLinear, PackedPart, format_of, pack, suits
from specstream.model.introspection import Anatomy, bind, dissect
from specstream.model.kv_cache import BLOCK, TreeCache
from specstream.model.native_linear import NativeLinear
from specstream.model.quantized import Int8Linear
from specstream.native import compiler
from specstream.target.self_test_cache import PACKAGE, digest

MOST_ROWS = 512  # of a pass: a chunk of a long prompt
EXAMPLE_ROWS, EXAMPLE_KEYS = 7, 11 * BLOCK  # sizes that no other dimension of a model is likely to have
LIMIT = 600  # time limit of a build in seconds
CACHE = "past_key_values"
FORM = "form.json"  # in the folder of a library: how it is called
OPTIONS = {  # of the compiler: one allocation per call, and how our functions in C++ are called
    "memory_planning": True,
    "memory_pool": "intermediates",
    "aot_inductor.custom_ops_to_c_shims": native.SHIMS,
}
COMPILED_IN = (  # source files that are part of a library's cache key
    "model/attention.py",
    "model/cpu_linear.py",
    "native/__init__.py",
    "native/functions.cpp",
    "model/quantized.py",
    "model/kv_cache.py",
    "model/native_linear.py",
    "target/compiled.py",
)
Place = tuple[nn.Module, str]  # a module and the name of a tensor in it
Extra = tuple[str, int | None]  # an argument of a layer, and which of its tensors


class NotCompiled(RuntimeError):
    """The layers can't be compiled here; the message says why in one sentence."""


class CompiledLayer:
    """Replaces the ``forward`` of one decoder layer for calls of the kind that was compiled."""

    def __init__(self, run: Callable[..., list[Tensor]], form: dict[str, Any], layer: nn.Module, index: int) -> None:
        self._run, self._index, self._own = run, index, layer.forward
        self._extras: list[Extra] = [tuple(e) for e in form["extras"]]
        self._constants: dict[str, Any] = form["constants"]
        self._tuple = form["tuple"]
        self._weights = [getattr(module, name) for module, name in places(layer)]
        self._dtype = getattr(torch, form["dtype"])

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get(CACHE)
        if args or not isinstance(cache, TreeCache) or not self._fits(hidden_states, cache, kwargs):
            return self._own(hidden_states, *args, **kwargs)
        rows = hidden_states.shape[1]
        layer = cache.layers[self._index]
        slots = cache.slots(layer.append(rows), rows)
        extras = [kwargs[name] if at is None else kwargs[name][at] for name, at in self._extras]
        (out,) = self._run([hidden_states, *extras, *layer.whole(), slots, *self._weights])
        return (out,) if self._tuple else out

    def _fits(self, states: Tensor, cache: TreeCache, kwargs: dict[str, Any]) -> bool:
        size = states.shape
        return (
            LEAST <= size[1] <= MOST_ROWS
            and size[0] == 1
            and states.dtype == self._dtype
            and cache.layers[self._index].is_initialized
            and self._constants.items() <= kwargs.items()
        )


def places(layer: nn.Module) -> list[Place]:
    """The places of a packed layer's tensors, in an order that is the same for all layers of one structure."""
    found: list[Place] = []
    shared: set[int] = set()
    for module in layer.modules():
        if isinstance(module, PackedPart) and id(module.shared) not in shared:
            shared.add(id(module.shared))
            module = module.shared.linear
        if isinstance(module, PackedLinear | NativeLinear):
            found += [(module, name) for name in ("packed", "bias") if getattr(module, name) is not None]
        if isinstance(module, Int8Linear):
            found += [(module, name) for name in module.TENSORS if getattr(module, name) is not None]
        found += [
            (module, name) for name in (*module._parameters, *module._buffers) if getattr(module, name) is not None
        ]
    return found


def shapes(layer: nn.Module) -> list[list[int]]:
    """The shapes of a layer's tensors, which show whether it has the structure that was compiled."""
    return [list(getattr(module, name).shape) for module, name in places(layer)]


# ---- the kept libraries ----------------------------------------------------------------------------------------------


def can_compile(anatomy: Anatomy) -> bool:
    """Whether the layers of this model can be compiled: on a CPU, with packed weights."""
    return (
        anatomy.device.type == "cpu"
        and isinstance(anatomy.head, PackedLinear | NativeLinear)
        and anatomy.model.config._attn_implementation == attention.NAME
    )


def structures(anatomy: Anatomy, copies: Sequence[nn.Module] = ()) -> list[nn.Module]:
    """One layer of each structure among a model's layers, of which all but ``copies`` are taken to have the same. The
    copies may be packed in another format."""
    own, *_ = anatomy.layers
    return [own, *(c for c in copies[:1] if shapes(c) != shapes(own))]


def kept(anatomy: Anatomy, layer: nn.Module | None = None) -> Path:
    """The folder of the library for layers like ``layer`` (None: the first) on this machine, if it exists or not."""
    layer = anatomy.layers[0] if layer is None else layer
    config = anatomy.model.config.to_dict()
    told = {k: v for k, v in config.items() if k not in ("_name_or_path", "torch_dtype", "num_hidden_layers")}
    code = [(PACKAGE / name).read_text(encoding="utf-8") for name in COMPILED_IN]
    layout = shapes(layer)  # which differ between layouts of the weights
    return download.home() / "compiled" / digest(told, str(anatomy.dtype), _words(format_of(layer)), layout, code)


def _words(form: Format) -> str:
    """The parts of a format that determine a layer's structure."""
    return " ".join([form.name, *sorted(form.kept)])


def is_kept(anatomy: Anatomy, layer: nn.Module | None = None) -> bool:
    """Whether the library for layers like ``layer`` exists on this machine."""
    return (kept(anatomy, layer) / FORM).is_file()


def attach(anatomy: Anatomy, copies: Sequence[nn.Module] = ()) -> Callable[[], None]:
    """Make the layers, and ``copies`` of the last ones, run compiled with their stored libraries.

    Returns a function that undoes this. Raises NotCompiled for a damaged library.
    """
    native.library(build=False)  # whose functions the libraries may call
    libraries = [_library(kept(anatomy, layer)) for layer in structures(anatomy, copies)]
    first = len(anatomy.layers) - len(copies)
    replaced = []
    for index, layer in [*enumerate(anatomy.layers), *enumerate(copies, first)]:
        for run, form in libraries:
            if shapes(layer) == form["shapes"]:
                layer.forward = CompiledLayer(run, form, layer, index)
                replaced.append(layer)

    def detach() -> None:
        for layer in replaced:
            vars(layer).pop("forward", None)

    return detach


def _library(folder: Path) -> tuple[Callable[..., list[Tensor]], dict[str, Any]]:
    try:
        form = json.loads((folder / FORM).read_text(encoding="utf-8"))
        return torch._C._aoti.AOTIModelPackageLoader(str(folder / "layer.pt2"), "model", False, 1, -1).boxed_run, form
    except Exception as error:  # a truncated file, or a library of another system
        raise NotCompiled(f"The compiled layers in {folder} can't be loaded: delete that folder.") from error


class Layers:
    """The compiled layers of one loaded model: built in the background, then swapped in by ``use``.

    ``copies`` are merged copies of the last layers, ``source`` is the folder of the model, and ``check`` returns what
    is wrong with the model in its current state, or None. ``words`` is a sentence for the user about the current state.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        copies: Sequence[nn.Module],
        source: Path,
        check: Callable[[], str | None],
        possible: bool = True,
    ) -> None:
        self._anatomy, self._copies, self._source, self._check = anatomy, copies, source, check
        self._build: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  of the build, for as long as it may write there
        self.ready = False
        self._possible = possible and can_compile(anatomy)
        self._kinds = structures(anatomy, copies) if self._possible else []
        self.words = "" if self._possible else "The layers of this model can't be compiled."

    def start(self) -> None:
        """Start to build what is missing in a separate process: a quarter of a minute on one core for each library."""
        missing = [layer for layer in self._kinds if not is_kept(self._anatomy, layer)]
        if not self._possible or self._build or not missing:
            return
        if not compiler.works(compiler.command()):
            self._refuse(f"there is no C++ compiler ({compiler.command()}; Debian: apt install g++)")
            return
        words = [str(self._source), str(self._anatomy.dtype)]
        for layer in missing:
            words += [str(kept(self._anatomy, layer)), _words(format_of(layer))]
        self._build = subprocess.Popen(
            python("specstream.target.compiled", *words),
            env=environment(OMP_NUM_THREADS=str(torch.get_num_threads())),
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )
        self.words = "Faster passes are being built in the background, once for this machine (about half a minute)."

    def use(self, wait: bool = False) -> bool:
        """Swap the library in if it has been built; with ``wait``, wait for it. Call this only between runs.

        It is checked, and removed again if the check fails.
        """
        if self.ready or not self._possible:
            return self.ready
        if wait:
            self.start()
        if self._build and not self._ended(wait):
            return False
        if all(is_kept(self._anatomy, layer) for layer in self._kinds):
            self._put_in_place()
        return self.ready

    def _ended(self, wait: bool) -> bool:
        """Whether the build has finished and produced a library."""
        assert self._build is not None
        if not wait and self._build.poll() is None:
            return False
        try:
            failed = self._build.wait(LIMIT) != 0
        except subprocess.TimeoutExpired:
            compiler.end(self._build)
            failed = True
        if failed:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            self._refuse(f"the compiler failed ({said[-1][:200] if said else 'it said nothing'})")
        self._build = None
        return not failed

    def _put_in_place(self) -> None:
        try:
            detach = attach(self._anatomy, self._copies)
        except NotCompiled as error:
            self._refuse(str(error))
            return
        if problem := self._check():
            detach()
            self._refuse(problem)
            return
        self.ready, self.words = True, "Layers are compiled for this machine."

    def _refuse(self, why: str) -> None:
        self._possible, self.words = False, f"Layers are not compiled, which makes passes slower: {why}."


# ---- building --------------------------------------------------------------------------------------------------------


class _TracedCache:
    """A cache that consists of arguments of the traced function."""

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        self._keys, self._values, self._slots = keys, values, slots

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self._keys.index_copy_(3, self._slots, keys.transpose(2, 3))
        self._values.index_copy_(2, self._slots, values)
        return self._keys.transpose(2, 3), self._values


class _Traced(nn.Module):
    """A layer as a function of its states, masks, positions, cache and weights."""

    def __init__(self, layer: nn.Module, extras: Sequence[Extra], constants: dict[str, Any]) -> None:
        super().__init__()
        # Not registered as the module's own tensors, which would become constants.
        object.__setattr__(self, "_layer", [layer, places(layer), extras, constants])

    def forward(
        self, states: Tensor, extras: list[Tensor], keys: Tensor, values: Tensor, slots: Tensor, weights: list[Tensor]
    ) -> Tensor:
        layer, where, names, constants = vars(self)["_layer"]
        for (module, name), weight in zip(where, weights, strict=True):
            if name in module._parameters:
                module._parameters[name] = weight
            else:
                setattr(module, name, weight)
        call = dict(constants)
        for (name, at), tensor in zip(names, extras, strict=True):
            call[name] = tensor if at is None else (*call.get(name, ()), tensor)
        out = layer(states, **call, **{CACHE: _TracedCache(keys, values, slots)})
        return out[0] if isinstance(out, tuple) else out


def _one_layer(folder: Path, dtype: torch.dtype, form: Format) -> Anatomy:
    """A model with one layer and random weights, otherwise like the one in ``folder``."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    text = config.get_text_config(decoder=True)
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    anatomy = dissect(AutoModelForCausalLM.from_config(config, dtype=dtype).eval())
    assert suits(anatomy, form.half)
    anatomy = pack(anatomy, form)
    attention.install(anatomy.model)
    return anatomy


def _call(anatomy: Anatomy) -> tuple[dict[str, Any], bool]:
    """How the layer is called in a pass: its arguments, and whether it returns a tuple."""
    from specstream.events import Draft
    from specstream.target.model_target import ModelTarget

    calls: list[tuple[Any, dict[str, Any], Any]] = []
    nodes = EXAMPLE_ROWS - 1
    layer = anatomy.layers[0]
    target = ModelTarget(anatomy)
    target.prefill([1] * LEAST)
    assert target.cache is not None
    target.cache.reserve(EXAMPLE_KEYS)
    hook = layer.register_forward_hook(lambda m, args, kwargs, out: calls.append((args, kwargs, out)), with_kwargs=True)
    target.verify(1, Draft((1,) * nodes, (-1,) * nodes, (1.0,) * nodes))
    hook.remove()
    args, kwargs, out = calls[-1]
    return bind(layer, args, kwargs), isinstance(out, tuple)


def _build(folder: Path, dtype: torch.dtype, out: Path, packing: Format) -> None:
    """Trace and compile the layer of a model, and write the library to ``out``."""
    import torch._inductor as inductor

    with torch.inference_mode():
        anatomy = _one_layer(folder, dtype, packing)
        kwargs, is_tuple = _call(anatomy)
    states, cache = kwargs.pop("hidden_states"), kwargs.pop(CACHE)
    extras = list(_extras(kwargs))
    constants = {n: v for n, v in kwargs.items() if not any(isinstance(t, Tensor) for t in pytree.tree_leaves(v))}
    layer = anatomy.layers[0]
    form = {"extras": extras, "constants": constants, "tuple": is_tuple, "shapes": shapes(layer)}
    form["dtype"] = str(dtype).removeprefix("torch.")
    for module, name in places(layer):
        if name == "packed":
            setattr(module, name, torch.empty(module.packed.shape, dtype=module.packed.dtype))  # type: ignore[arg-type]
    weights = [torch.empty_like(getattr(module, name)) for module, name in places(layer)]
    given = [kwargs[n] if at is None else kwargs[n][at] for n, at in extras]
    keys, values = cache.layers[0].whole()
    example = tuple(
        t.clone() if isinstance(t, Tensor) else [e.clone() for e in t]
        for t in (states, given, keys, values, torch.arange(EXAMPLE_ROWS), weights)
    )
    rows, blocks = torch.export.Dim("rows", min=2, max=MOST_ROWS), torch.export.Dim("blocks", min=1, max=4096)
    length = BLOCK * blocks
    by_size = {EXAMPLE_ROWS: rows, EXAMPLE_KEYS: length}
    shown = [{d: by_size[s] for d, s in enumerate(t.shape) if s in by_size} for t in given]
    dynamic = ({1: rows}, shown, {3: length}, {2: length}, {0: rows}, [None] * len(weights))
    _lower_operations()
    small = native.takes(states.dtype, values.shape[3])  # what is left are loops too small to share
    with torch.no_grad(), inductor.config.patch(OPTIONS | ({"cpp.threads": 1} if small else {})):
        program = torch.export.export(_Traced(layer, extras, constants), example, dynamic_shapes=dynamic, strict=False)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent) as made:
            complete = Path(made) / out.name
            complete.mkdir()
            inductor.aoti_compile_and_package(program, package_path=str(complete / "layer.pt2"))
            (complete / FORM).write_text(json.dumps(form), encoding="utf-8")
            _install(complete, out)


def _install(complete: Path, folder: Path) -> None:
    """Move a complete library into place. If another process was faster, its library stays."""
    if not (folder / FORM).is_file():
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one, if any
    try:
        complete.rename(folder)
    except OSError:
        if not (folder / FORM).is_file():
            raise


def _extras(kwargs: dict[str, Any]) -> Iterator[Extra]:
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            yield name, None
        elif isinstance(value, tuple) and value and all(isinstance(t, Tensor) for t in value):
            yield from ((name, i) for i in range(len(value)))


def _lower_operations() -> None:
    """Register our operations with the compiler: oneDNN's matmuls, and a tensor that must be materialised."""
    from torch._inductor import ir, mkldnn_ir
    from torch._inductor.lowering import make_fallback, register_lowering, require_contiguous

    for operation in native.SHIMS:
        make_fallback(operation, require_contiguous)

    @register_lowering(torch.ops.specstream.linear.default)
    def linear(x: Any, packed: Any, bias: Any) -> Any:
        return ir.TensorBox.create(mkldnn_ir.LinearUnary.create(x, packed, bias, "none", [], ""))

    @register_lowering(torch.ops.specstream.linear_int8.default, type_promotion_kind=None)
    def linear_int8(x: Any, unit: Any, middle: Any, packed: Any, scale: Any, zero: Any) -> Any:
        bias: Any = None  # added after applying the scale of each row
        made = mkldnn_ir.QLinearPointwisePT2E.create(
            x, unit, middle, packed, scale, zero, bias, 1.0, 0, torch.float32, "none", [], ""
        )
        return ir.TensorBox.create(made)

    @register_lowering(torch.ops.specstream.hold.default)
    def hold(x: Any) -> Any:
        return ir.TensorBox.create(ir.ExternKernel.require_contiguous(ir.ExternKernel.copy_input(x)))


if __name__ == "__main__":
    _folder, _dtype, *_libraries = sys.argv[1:]
    native.library()
    for _out, _words_of_form in zip(_libraries[::2], _libraries[1::2], strict=True):
        _name, *_left = _words_of_form.split()
        _form = Format(_name, kept=frozenset(_left))
        _build(Path(_folder), getattr(torch, _dtype.removeprefix("torch.")), Path(_out), _form)
