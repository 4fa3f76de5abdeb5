"""Options that several commands share: the model, sampling, and the settings of every method."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specstream import processes
from specstream.cli.output import note, progress, progress_done
from specstream.data.tasks import NAMES
from specstream.hub.catalogue import TOY, check_scripted
from specstream.params import METHODS, Method, Sampling, configure, parse

if TYPE_CHECKING:
    from specstream.engine import Engine

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]
STREAMING_WHERE_POSSIBLE = (
    f"{', '.join(METHODS)}; settings may follow: streaming:budget=12 (default: streaming if the model supports it)."
)


@dataclass(frozen=True)
class Loading:
    """The options that select what is loaded."""

    model: str
    adapter: str
    device: str
    dtype: str
    draft_model: str

    def engine(self, task_name: str | None = None) -> Engine:
        """Load the model. Adapter ``auto`` means the bundled adapter of the task, if there is one; else the same as for
        ``specstream.load``, with a note if that changes what the model writes."""
        with no_garbage_collection():
            engine = self._loaded(task_name)
        for words in engine.info.notes:
            note(words)
        if self.adapter == "auto" and self.model != TOY and engine.info.tuned and engine.info.adapter != task_name:
            note(
                f"the adapter {engine.info.adapter} is loaded, which changes what the model writes: name another "
                "--task, or --adapter none for the model itself."
            )
        return engine

    def _loaded(self, task_name: str | None) -> Engine:
        from specstream.adapters.find import bundled
        from specstream.engine import load

        if self.model == TOY:
            from specstream.testing.toy import load_toy

            check_scripted(adapter=self.adapter, device=self.device, dtype=self.dtype, draft=self.draft_model)
            return load_toy()

        bundled_for_task = self.adapter == "auto" and task_name in bundled(self.model)
        adapter = str(task_name) if bundled_for_task else self.adapter
        processes.join(self.device)
        try:
            return load(self.model, adapter, self.device, self.dtype, progress=progress, draft=self.draft_model)
        finally:
            progress_done()

    def adapter_of(self, engine: Engine) -> str:
        """A name that loads the same adapter again."""
        return engine.info.adapter if self.adapter == "auto" else self.adapter


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A context without garbage collection. Libraries and models create a million objects that all stay alive;
    scanning them repeatedly takes a fifth of the start, and once more, 0.2 s in the middle of a run."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # later collections leave out what exists now
        gc.enable()


MODEL = click.option(
    "--model", default="smollm2-135m", show_default=True, help="A name from `models list`, a Hub id or a folder."
)
MODEL_OPTIONS = (
    MODEL,
    click.option(
        "--adapter",
        default="auto",
        show_default=True,
        help="auto (the one bundled for the task), none, a name from `adapters list`, a folder or hub:OWNER/NAME.",
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        help="auto, cpu, cuda, mps or offload (for a model larger than the device).",
    ),
    click.option(
        "--dtype",
        default="auto",
        show_default=True,
        help="auto, float32, bfloat16, float16 or int8 (faster on a CPU; close to bfloat16, but a different model).",
    ),
    click.option(
        "--draft-model",
        default="none",
        show_default=True,
        help="A second, smaller model with the same tokenizer: a name, a Hub id or a folder.",
    ),
)


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order of --help."""
    return lambda command: functools.reduce(lambda done, option: option(done), reversed(options), command)


def _folded(kind: type, name: str, command: Command) -> Command:
    """Wrap a command so that the options named like ``kind``'s fields are passed as one object, ``name``."""
    names = [f.name for f in fields(kind)]

    @functools.wraps(command)
    def folded(**values: Any) -> Any:
        return command(**{name: kind(**{n: values.pop(n) for n in names if n in values})}, **values)

    return folded


def model_options(command: Command) -> Command:
    """Pass the options that select what is loaded as ``loading``."""
    return together(*MODEL_OPTIONS)(_folded(Loading, "loading", command))


def sampling_options(command: Command) -> Command:
    """Pass the options of Sampling as ``sampling``."""
    return params_options(Sampling)(_folded(Sampling, "sampling", command))


def params_options(kind: type) -> Decorator:
    """One option per labelled field of a parameter class, with its default and help."""
    return together(*(_option(f) for f in fields(kind)))


def _option(f: Field[Any]) -> Decorator:
    assert f.default is not MISSING
    words = f.metadata["help"]
    if isinstance(f.default, bool):
        return click.option(_flag(f.name), f.name, is_flag=True, help=words)
    if isinstance(f.default, tuple):
        return click.option(_flag(f.name), f.name, multiple=True, help=f"{words} May be given several times.")
    return click.option(_flag(f.name), f.name, type=_form(f), default=f.default, show_default=True, help=words)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _form(f: Field[Any]) -> Any:
    """The type of a field's option."""
    choices = f.metadata.get("choices")
    return click.Choice(choices) if choices else type(f.default)


def method_options(command: Command) -> Command:
    """One option per setting of any method, None if not given, because methods that share a setting differ in its
    default."""
    owners: dict[str, dict[str, Field[Any]]] = {}  # setting: the field of every method that has it
    for name, kind in METHODS.items():
        for f in fields(kind):
            owners.setdefault(f.name, {})[name] = f
    return together(*(_shared_option(name, found) for name, found in owners.items()))(command)


def _shared_option(name: str, owners: dict[str, Field[Any]]) -> Decorator:
    first, *_ = owners.values()
    defaults = ", ".join(f"{owner}: {f.default}" for owner, f in owners.items())
    return click.option(
        _flag(name), name, type=_form(first), default=None, help=f"{first.metadata['help']} ({defaults})"
    )


def json_option(words: str = "Write the result as one JSON object to this file; - is standard output.") -> Decorator:
    return click.option("--json", "json_file", type=click.Path(path_type=Path), help=words)


def repeats_option(words: str) -> Decorator:
    return click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help=words)


def a_number(_context: click.Context, option: click.Parameter, value: float) -> float:
    """Refuse NaN, which a range lets pass. Raises BadParameter."""
    if value != value:
        raise click.BadParameter("nan is not a number.", param=option)
    return value


def limit_option(
    default: int = 0, words: str = "How many rows of --data to use, from its start; 0 is all."
) -> Decorator:
    return click.option("--limit", type=click.IntRange(0), default=default, show_default=True, help=words)


def _temperature(_context: click.Context, _option: click.Parameter, values: tuple[float, ...]) -> tuple[float, ...]:
    """The temperatures that Sampling accepts, without repetitions. Raises ValueError."""
    return tuple(dict.fromkeys(Sampling(temperature=value).temperature for value in values))


OWN_ANSWER_OPTIONS = (
    limit_option(words="How many rows of --data to use, evenly spread over it; 0 is all."),
    click.option(
        "--own-prompts",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="How many prompts the model should write; for code, how many instructions to assemble from parts.",
    ),
    click.option(
        "--temperatures",
        type=float,
        multiple=True,
        default=[0.0],
        show_default=True,
        callback=_temperature,
        help="The model answers every prompt at each temperature; may be given several times.",
    ),
    click.option(
        "--max-length", type=click.IntRange(2), default=512, show_default=True, help="Longest row of data in tokens."
    ),
    click.option(
        "--max-answer", type=click.IntRange(1), default=192, show_default=True, help="Longest own answer in tokens."
    ),
)


def own_answer_options(command: Command) -> Command:
    """The options of data, and of answers and prompts that the model writes itself."""
    return together(*OWN_ANSWER_OPTIONS)(command)


def task_option(also: str = "", required: bool = False) -> Decorator:
    """``also`` describes what else the command accepts as a task."""
    words = f"{NAMES}, {also}" if also else f"{NAMES}."
    return click.option("--task", "task_name", required=required, help=words)


def pick(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values whose names are fields of a parameter class."""
    return {f.name: values[f.name] for f in fields(kind) if f.name in values}


def chosen_method(text: str, values: dict[str, Any]) -> Method:
    """A method by its name, which may include settings (``streaming:budget=12``). ``values`` are settings for all
    methods that have them; None means the default. Raises ValueError."""
    name, _ = parse(text)
    given = pick(METHODS[name], values) if name in METHODS else {}
    return configure(text, {k: v for k, v in given.items() if v is not None})[0]


def check_settings(values: dict[str, Any]) -> None:
    """Check settings while the method is still unknown. Raises ValueError for a value that no method takes."""
    for name, value in values.items():
        owners = [kind for kind in METHODS.values() if value is not None and name in {f.name for f in fields(kind)}]
        refused = [words for kind in owners if (words := _refusal(kind, name, value))]
        if owners and len(refused) == len(owners):
            raise ValueError(refused[0])


def _refusal(kind: type, name: str, value: Any) -> str:
    """Why a method does not take a setting; empty if it does."""
    try:
        kind(**{name: value})
    except ValueError as error:
        return str(error)
    return ""


def chosen_methods(names: Collection[str], values: dict[str, Any]) -> list[Method]:
    """Our methods among the names (not transformers'), each with its own settings. Raises ValueError."""
    from specstream.bench.tables import REFERENCES

    return [chosen_method(name, values) for name in names if name not in REFERENCES]


def adapter_task(task_name: str | None) -> str | None:
    """The task whose adapter fits: Spec-Bench's questions are asked as chat."""
    from specstream.bench.tables import SPEC_BENCH

    return "chat" if task_name == SPEC_BENCH else task_name
