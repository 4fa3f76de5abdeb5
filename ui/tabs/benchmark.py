"""The Benchmark tab: several methods on a task's prompts, the cost of a step, and the settings for this machine."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gradio as gr

from specstream.bench.prediction import fastest_tried
from specstream.bench.tables import REFERENCES
from specstream.info import PARTS
from specstream.params import METHODS, DraftModel, Method, PromptLookup, Standard, Streaming
from specstream.runlog import RunLog, RunLogError
from specstream.stats import counted

from ..access_rules import Rules
from ..charts import benchmarks as figures
from ..components import controls, task_hint
from ..components.controls import Controls
from ..components.handlers import QUIET, Updates
from ..files import downloads, place
from ..html import render, results
from ..jobs import visitor
from ..jobs.engine_host import Engines, State
from ..jobs.job import Jobs
from ..jobs.measurements import Benchmark, Lap, Measurement, MeasurementRequest, Report, Result, Tuning
from ..state.messages import Notice
from ..state.methods import Offer
from .playground import MOST_WAITING, Playground, examples, task_choices

TAB = "benchmark"
READY = "Choose prompts and methods, then press Run benchmark. Speed-ups are relative to standard decoding."
TUNABLE = (Streaming.name, PromptLookup.name)
PACES = {"About a minute": 60.0, "Quick, less exact": 15.0}
CHARTS = {
    "speedup": "Speed-up over standard decoding",
    "calls": "Tokens per step and measured speed-up",
    "acceptance": "Acceptance by tokens ahead",
    "pruning": "Pruning on and off",
    "cost": "Cost of a step",
    "prediction": "Predicted against measured",
}
LIBRARY = "The library's own code, on a second copy of the model."
MOST_EARLIER = 100  # results in the list


@dataclass
class Form:
    """What is asked for."""

    task: gr.Dropdown
    file: gr.File
    count: gr.Number
    repeats: gr.Number
    methods: dict[str, gr.Checkbox]
    references: dict[str, gr.Checkbox]
    settings: Controls
    wished: gr.State
    hint: gr.HTML
    tuned: gr.Radio
    tuned_wish: gr.State
    pace: gr.Radio
    earlier: gr.Dropdown
    key: gr.Textbox
    zone: gr.Textbox  # the visitor's time zone, as the browser names it

    @property
    def inputs(self) -> set[Any]:
        boxes = [*self.methods.values(), *self.references.values(), *self.settings.parts.values()]
        own = [self.task, self.file, self.count, self.repeats, self.tuned, self.pace, self.earlier, self.key, self.zone]
        return {*own, *boxes}

    def order(self, values: Mapping[Any, Any]) -> MeasurementRequest:
        """A benchmark. Raises ValueError with one sentence."""
        chosen = [name for name, box in self.methods.items() if values[box]]
        references = tuple(name for name, box in self.references.items() if values[box])
        if not chosen and not references:
            raise ValueError("No method is chosen: tick at least one to compare with standard decoding.")
        methods = tuple(self.settings.parse(values, name)[0] for name in chosen)
        return replace(self._prompts(values, methods), references=references)

    def tuning(self, values: Mapping[Any, Any]) -> MeasurementRequest:
        """A measurement of this machine. Raises ValueError with one sentence."""
        if not values[self.tuned]:
            raise ValueError("The loaded model runs standard decoding only, so there is no tree to tune: load another.")
        method = self.settings.parse(values, values[self.tuned])[0]
        return replace(self._prompts(values, (method,)), seconds=PACES[values[self.pace]])

    def _prompts(self, values: Mapping[Any, Any], methods: tuple[Method, ...]) -> MeasurementRequest:
        task, limit = values[self.task], controls.whole(values[self.count], "Prompts", 1000)
        repeats = controls.whole(values[self.repeats], "Repeats", 20)
        sampling = self.settings.parse(values, Standard.name)[1]
        if values[self.file]:
            return MeasurementRequest(task, (), methods, sampling, Path(values[self.file]), limit, repeats=repeats)
        known = tuple(e["prompt"] for e in examples() if e["task"] == task)[:limit]
        if not known:
            raise ValueError("There are no example prompts of this task: choose another one, or give a file.")
        return MeasurementRequest(task, known, methods, sampling, repeats=repeats)


@dataclass
class Shown:
    """The displayed progress and results."""

    run: gr.Button
    tune: gr.Button
    cancel: gr.Button
    status: gr.HTML
    bar: gr.HTML
    group: gr.Column
    tables: gr.HTML
    charts: dict[str, gr.Plot]
    frames: dict[str, gr.Column]
    advice: gr.HTML
    use: gr.Button
    file: gr.DownloadButton
    reports: gr.State  # results of this page: the newest benchmark and the newest tuning

    @property
    def outputs(self) -> list[Any]:
        own = [self.run, self.tune, self.cancel, self.status, self.bar, self.group, self.tables, self.advice, self.use]
        return [*own, self.file, self.reports, *self.charts.values(), *self.frames.values()]

    def working(self, busy: bool) -> Updates:
        buttons = {button: gr.update(interactive=not busy) for button in (self.run, self.tune)}
        return buttons | {self.cancel: gr.update(interactive=busy)} | ({} if busy else {self.bar: ""})

    def drawn(self, reports: Sequence[Report]) -> Updates:
        """Tables and charts of results; parts without numbers are hidden."""
        made = figures.figures(reports)
        updates: Updates = {self.group: gr.update(visible=bool(reports)), self.tables: results.tables(reports)}
        for name, plot in self.charts.items():
            updates[self.frames[name]] = gr.update(visible=name in made)
            if name in made:
                updates[plot] = figures.on_page(made[name])
        tuned = advised(reports)
        return updates | {
            self.advice: results.recommendation(tuned),
            self.use: gr.update(visible=usable(tuned) is not None),
        }


def advised(reports: Sequence[Report]) -> dict[str, Any] | None:
    """The first tuning among the results of a method that there is."""
    return next((r["tuned"] for r in reports if r.get("tuned") and r["tuned"]["method"] in METHODS), None)


def usable(tuned: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The settings of a tuning that are worth using; None if it found none better than the given ones."""
    best = fastest_tried(tuned) if tuned else None
    return best if tuned and best == tuned["settings"] else None


@dataclass
class BenchmarkTab:
    """The tab's parts."""

    form: Form
    shown: Shown
    upload: gr.File

    def available(self, state: State, offer: Offer, task: str, wished: Collection[str], tuned: str) -> Updates:
        """The changes for a loaded model: methods that it can't run are disabled, with the reason.

        ``wished`` are the methods that the visitor ticked, ``tuned`` is the one to tune.
        """
        form = self.form
        updates: Updates = {box: controls.method_update(name, offer, wished) for name, box in form.methods.items()}
        updates[form.hint] = task_hint.hint(task, state.info)
        for name, box in form.references.items():
            updates[box] = reference_update(name, state, wished)
        if offer.info:
            able = [name for name in TUNABLE if not offer.reason(name)]
            value = tuned if tuned in able else next(iter(able), None)
            updates[form.tuned] = gr.update(choices=[(offer.label(name), name) for name in TUNABLE], value=value)
        return updates

    def suited(self, state: State) -> Updates:
        """The task for which the loaded adapter was trained, if there are prompts for it."""
        task = state.info.task if state.info else ""
        fits = any(e["task"] == task for e in examples())
        return {self.form.task: task, self.form.hint: gr.update(visible=False)} if fits else {}

    @property
    def depends(self) -> list[Any]:
        """The components that a loaded model updates."""
        form = self.form
        return [*form.methods.values(), *form.references.values(), form.hint, form.tuned, form.task]

    @property
    def chosen(self) -> list[Any]:
        """The inputs of that update."""
        return [self.form.task, self.form.wished, self.form.tuned_wish]


def reference_update(name: str, state: State, wished: Collection[str]) -> Any:
    """The checkbox of another library's method: as the visitor chose, or disabled with the reason."""
    alone = not (state.info and state.info.draft_parameters)
    reason = PARTS[DraftModel.name].sentence if name == "hf-assistant" and alone else ""
    if state.info and state.info.model == "toy":
        reason = "Not with the toy model: transformers does not know it."
    if reason:
        return gr.update(value=False, interactive=False, info=reason)
    return gr.update(value=name in wished, interactive=True, info=LIBRARY)


@dataclass
class MeasurementProgress:
    """The page's state of a measurement: a fold over its items."""

    words: str = "Starting"
    tone: str = "busy"
    lap: Lap | None = None
    report: Report | None = None
    final: bool = False
    warnings: list[str] = field(default_factory=list)

    def add(self, item: Any) -> None:
        """Fold one item in."""
        if isinstance(item, Lap):
            self.lap, self.words = item, "Measuring"
        elif isinstance(item, Result):
            self.report, self.final = item.report, item.final
        elif isinstance(item, Notice):
            self.words, self.tone = item.text, "bad" if item.failed else self.tone
            self.warnings += [item.text] if item.lasting else []

    def close(self, stopped: bool) -> None:
        """There are no more items."""
        if self.tone == "bad" and not stopped:
            return
        if stopped:
            kept = "What was complete is shown and kept." if self.final else "Nothing was complete."
            self.words, self.tone = f"Stopped by you. {kept}", "plain"
        elif self.final:
            self.words, self.tone = "Done.", "good"
        self.words = " ".join([self.words, *self.warnings])

    @property
    def bar(self) -> str:
        lap = self.lap
        return results.progress(lap.words, lap.done, lap.total, lap.left) if lap else ""


def layout(engines: Engines) -> BenchmarkTab:
    """Lay out the tab."""
    rules = engines.rules
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            parts = _prompt_fields(rules)
            settings = controls.each_method("Settings: length, temperature, each method", {"max_new_tokens": 64})
            tuned, pace, tune = _tuning_fields()
            earlier, upload = _earlier_fields(rules.may_upload)
        with gr.Column(scale=2, min_width=320), gr.Group(elem_classes="ss-boxes"):
            gr.Checkbox(
                True, label=Standard.label, info="Always runs: the others are compared with it.", interactive=False
            )
            methods = {name: controls.method_box(name) for name in METHODS if name != Standard.name}
            references = {
                name: gr.Checkbox(
                    False,
                    label=label[:1].upper() + label[1:],
                    info=LIBRARY,
                    interactive=True,
                    visible=rules.may_measure_others,
                )
                for name, label in REFERENCES.items()
            }
    run, cancel, status, bar = _toolbar()
    form = Form(**parts, methods=methods, references=references, settings=settings, tuned=tuned, pace=pace,
                earlier=earlier, key=visitor.layout(), zone=gr.Textbox(visible=False), wished=gr.State(list(methods)),
                tuned_wish=gr.State(Streaming.name))  # fmt: skip
    return BenchmarkTab(form, _results(run, tune, cancel, status, bar), upload)


def _prompt_fields(rules: Rules) -> dict[str, Any]:
    known = examples()
    tasks = [(label, name) for label, name in task_choices()]
    with gr.Row():
        task = gr.Dropdown(
            tasks, value=known[0]["task"], label="Task", interactive=True, scale=2, min_width=240,
            info="Its example prompts are used, or your file.",
        )  # fmt: skip
        whole_one = {"minimum": 1, "precision": 0, "interactive": True, "min_width": 130}
        count = controls.Number(8, label="Prompts", maximum=1000, info="At most this many.", **whole_one)
        repeats = controls.Number(
            1, label="Repeats", maximum=rules.most_repeats, info="The median counts.", **whole_one
        )
    hint = gr.HTML(visible=False)
    with gr.Accordion("Your own prompts: a file with the columns of the task, or Spec-Bench's questions",
                      open=False, visible=rules.may_upload):  # fmt: skip
        file = gr.File(label="Prompts, a JSON object on each line", file_types=[".jsonl", ".json"], height=160)
    return {"task": task, "hint": hint, "file": file, "count": count, "repeats": repeats}


def _tuning_fields() -> tuple[gr.Radio, gr.Radio, gr.Button]:
    with gr.Accordion("Tune for this machine", open=False):
        gr.HTML(
            '<p class="ss-words">Measures what a step costs with trees of every size, watches what is accepted on the '
            "prompts above, and finds the settings that should be fastest here. Half of the prompts choose, the other "
            "half try the choice.</p>"
        )
        with gr.Row(elem_classes="ss-search"):
            able = [(METHODS[name].label, name) for name in TUNABLE]
            tuned = gr.Radio(able, value=Streaming.name, label="Method to tune", interactive=True, min_width=260)
            pace = gr.Radio(list(PACES), value=next(iter(PACES)), label="Time for the cost of a step",
                            interactive=True, min_width=260)  # fmt: skip
            tune = gr.Button("Find the best settings", scale=0, min_width=230)
    return tuned, pace, tune


def _toolbar() -> tuple[gr.Button, gr.Button, gr.HTML, gr.HTML]:
    with gr.Row(elem_classes="ss-toolbar", equal_height=True):
        run = gr.Button("Run benchmark", variant="primary", elem_classes="ss-run", scale=0, min_width=190)
        cancel = gr.Button("Cancel", variant="stop", interactive=False, elem_classes="ss-stop", scale=0, min_width=120)
        with gr.Column(min_width=160):
            status = gr.HTML(render.status(READY))
            bar = gr.HTML()
    return run, cancel, status, bar


def _earlier_fields(files: bool) -> tuple[gr.Dropdown, gr.File]:
    with gr.Accordion("Earlier results, to compare with", open=False):
        earlier = gr.Dropdown(
            [], value=[], multiselect=True, label="From the log", interactive=True,
            info="Benchmarks of this page and of the command line, newest first.",
        )  # fmt: skip
        upload = gr.File(
            label="Files that bench --json and cost --json wrote", file_types=[".json"], file_count="multiple",
            height=160, visible=files,
        )  # fmt: skip
    return earlier, upload


def _results(run: gr.Button, tune: gr.Button, cancel: gr.Button, status: gr.HTML, bar: gr.HTML) -> Shown:
    charts, frames = {}, {}
    with gr.Column(visible=False) as group:
        advice = gr.HTML()
        use = gr.Button("Use these settings", variant="primary", visible=False, scale=0, min_width=200)
        tables = gr.HTML(js_on_load=render.KEEP_LOCAL)
        with gr.Row(elem_classes="ss-charts"):
            for name, heading in CHARTS.items():
                with gr.Column(visible=False, min_width=320) as frames[name]:
                    gr.HTML(f'<h2 class="ss-heading">{heading}</h2>')
                    charts[name] = gr.Plot(label=heading, show_label=False, container=False, elem_classes="ss-plot")
        file = gr.DownloadButton("Download these results as JSON", size="sm", visible=False)
    return Shown(run, tune, cancel, status, bar, group, tables, charts, frames, advice, use, file, gr.State([]))


class Handlers:
    """The handlers of the tab's events."""

    def __init__(self, tab: BenchmarkTab, engines: Engines, runlog: RunLog | None) -> None:
        self._tab, self._engines, self._runlog = tab, engines, runlog
        self._jobs, self._folder = Jobs(), downloads()
        self.earlier = Earlier(tab, engines, runlog, self._folder)

    def run(self, values: dict[Any, Any], request: gr.Request) -> Iterator[Updates]:
        yield from self._begin(values, request, Benchmark)

    def tune(self, values: dict[Any, Any], request: gr.Request) -> Iterator[Updates]:
        yield from self._begin(values, request, Tuning)

    def _begin(self, values: dict[Any, Any], request: gr.Request, kind: type[Measurement]) -> Iterator[Updates]:
        form, shown = self._tab.form, self._tab.shown
        try:
            order = form.tuning(values) if kind is Tuning else form.order(values)
            others = [*values[shown.reports], *self.earlier.chosen(values)]
        except (ValueError, RunLogError) as error:
            yield {shown.status: render.status(str(error), "bad")}
            return
        who = visitor.name(values[form.key], request)
        job = kind(self._engines, self._runlog, order, who)
        self._jobs.put(who, str(request.session_hash), job)
        yield from stream(shown, job, str(request.session_hash), others, self._folder)

    def resume(self, key: str, request: gr.Request) -> Iterator[Updates]:
        job = self._jobs.get(who := visitor.name(key, request))
        if isinstance(job, Measurement):
            self._jobs.put(who, str(request.session_hash), job)
            yield from stream(self._tab.shown, job, str(request.session_hash), [], self._folder)
        else:
            yield self.earlier.last(who)

    def cancel(self, key: str, request: gr.Request) -> None:
        self._jobs.stop(visitor.name(key, request))

    def close(self, request: gr.Request) -> None:
        self._jobs.close(str(request.session_hash))

    def watch(self, task: str, wished: list[str], tuned: str) -> Iterator[Updates]:
        for state in self._engines.watch():
            yield self._tab.available(state, self._engines.offer, task, wished, tuned) | self._tab.suited(state)

    def refresh(self, key: str, zone: str, task: str, wished: list[str], tuned: str, request: gr.Request) -> Updates:
        fitted = self._tab.available(self._engines.state, self._engines.offer, task, wished, tuned)
        return fitted | self.earlier.listed(visitor.name(key, request), zone)


def wire(
    tab: BenchmarkTab,
    opened: gr.Tab,
    tabs: gr.Tabs,
    demo: gr.Blocks,
    engines: Engines,
    runlog: RunLog | None,
    play: Playground,
) -> None:
    """Connect the tab to the engine, the log and the Playground."""
    form, shown, on = tab.form, tab.shown, Handlers(tab, engines, runlog)
    inputs = form.inputs | {shown.reports, tab.upload}
    work: dict[str, Any] = {"concurrency_id": "engine", "concurrency_limit": MOST_WAITING, **QUIET}
    listing = [*tab.depends, form.earlier]
    for button, start in ((shown.run, on.run), (shown.tune, on.tune)):
        button.click(start, inputs, shown.outputs, **work).then(
            on.refresh, [form.key, form.zone, *tab.chosen], listing, queue=False, **QUIET
        )
    shown.cancel.click(on.cancel, form.key, queue=False, **QUIET)
    for event in (opened.select, play.panel.known.change):
        event(on.refresh, [form.key, form.zone, *tab.chosen], listing, queue=False, **QUIET)
    form.task.change(lambda task: task_hint.hint(task, engines.state.info), form.task, form.hint, queue=False, **QUIET)
    form.tuned.input(lambda tuned: tuned, form.tuned, form.tuned_wish, queue=False, **QUIET)
    controls.wire_wishes(form.wished, form.methods | form.references)
    for picked in (form.earlier, tab.upload):
        picked.change(on.earlier.drawn, inputs, shown.outputs, **QUIET)
    shown.use.click(
        lambda values: used(play, tabs, on.earlier.shown(values)), inputs, used_outputs(play, tabs), **QUIET
    )
    visitor.wire(form.key, demo)
    demo.load(None, None, form.zone, js=visitor.ZONE, api_visibility="private")
    demo.load(on.watch, tab.chosen, tab.depends, concurrency_limit=None, **QUIET).then(
        on.resume, form.key, shown.outputs, concurrency_limit=None, **QUIET
    )
    demo.unload(on.close)


def stream(shown: Shown, job: Measurement, session: str, others: Sequence[Report], folder: Path) -> Iterator[Updates]:
    """Follow a measurement and yield the changes of the page. ``others`` are drawn beside its result."""
    progress, drawn = MeasurementProgress(), None
    busy = shown.working(True)  # in every update, as in the Playground's
    yield busy | {shown.status: render.status(progress.words, progress.tone), shown.bar: ""}
    with closing(job.batches(session)) as batches:
        for batch in batches:
            for item in batch:
                progress.add(item)
            updates = busy | {shown.status: render.status(progress.words, progress.tone), shown.bar: progress.bar}
            if progress.report is not drawn:
                drawn = progress.report
                updates |= shown.drawn(beside(drawn, others))
            yield updates
    progress.close(job.stop.is_set())
    yield (
        shown.working(False)
        | {shown.status: render.status(progress.words, progress.tone)}
        | ended(shown, progress, others, folder)
    )


def beside(report: Report | None, others: Sequence[Report]) -> list[Report]:
    """A result with those that it does not replace: one of each kind from this page, and all named ones."""
    if report is None:
        return list(others)
    return [report, *(r for r in others if r.get("name") or ("rows" in r) != ("rows" in report))]


def ended(shown: Shown, progress: MeasurementProgress, others: Sequence[Report], folder: Path) -> Updates:
    """The final result, for the page and as a file; nothing if there is none."""
    if progress.report is None:
        return {}
    mine = beside(progress.report, [r for r in others if not r.get("name")])
    return shown.drawn(beside(progress.report, others)) | {
        shown.reports: mine, shown.file: gr.update(value=str(written(progress.report, folder)), visible=True),
    }  # fmt: skip


def written(report: Report, folder: Path) -> Path:
    """A result as a file, in the form of the command line's."""
    kind = "bench" if "rows" in report else "cost"
    file = place(folder, f"{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.json")
    file.write_text(json.dumps(report, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


class Earlier:
    """Earlier results, from the log and from files."""

    def __init__(self, tab: BenchmarkTab, engines: Engines, runlog: RunLog | None, folder: Path) -> None:
        self._tab, self._rules, self._runlog, self._folder = tab, engines.rules, runlog, folder

    def listed(self, who: str, zone: str = "") -> Updates:
        """The results in the log, to choose from."""
        field = self._tab.form.earlier
        if self._runlog is None:
            return {field: gr.update(choices=[], info="Results are not kept here: the page says why at the top.")}
        try:
            found = self._runlog.benchmarks(MOST_EARLIER, self._rules.seen_by(who))
        except RunLogError as error:
            return {field: gr.update(choices=[], info=str(error))}
        return {field: gr.update(choices=[(words(one, zone), one["id"]) for one in found])}

    def chosen(self, values: Mapping[Any, Any]) -> list[Report]:
        """The chosen results, each with a name. Raises ValueError with one sentence."""
        who = self._rules.seen_by(values[self._tab.form.key] or "")
        keys, zone = values[self._tab.form.earlier] or [], values[self._tab.form.zone]
        logged = [self._runlog.benchmark(key, who) for key in keys] if self._runlog is not None else []
        files = [Path(file) for file in values[self._tab.upload] or []]
        self._rules.check_files(*files)
        return [*(r | {"name": results.named(r, zone)} for r in logged), *(read(file) for file in files)]

    def shown(self, values: Mapping[Any, Any]) -> list[Report]:
        """This page's own results and the chosen ones."""
        return [*values[self._tab.shown.reports], *self.chosen(values)]

    def drawn(self, values: dict[Any, Any]) -> Updates:
        """Everything that is shown, after another choice."""
        shown = self._tab.shown
        try:
            return shown.drawn(self.shown(values))
        except (ValueError, RunLogError) as error:
            return {shown.status: render.status(str(error), "bad")}

    def last(self, who: str) -> Updates:
        """What a reloaded page shows: the visitor's last result, from the log."""
        shown = self._tab.shown
        try:
            report = _newest(self._runlog, who) if self._runlog is not None else None
        except RunLogError as error:
            return {shown.status: render.status(str(error), "bad")}
        if report is None:
            return {shown.status: gr.skip()}
        return shown.drawn([report]) | {
            shown.reports: [report], shown.status: render.status("Your last result, from the log."),
            shown.file: gr.update(value=str(written(report, self._folder)), visible=True),
        }  # fmt: skip


def words(found: Mapping[str, Any], zone: str = "") -> str:
    """A logged result in one line."""
    count = counted(found["prompts"], "prompt") if found["prompts"] else "cost of a step"
    when = render.minute(str(found["measured_utc"]), zone)
    model, adapter = (render.model_name(found[name]) for name in ("model", "adapter"))
    return f"{when}, {found['task'] or 'no task'}, {count}, {model} + {adapter}"


def read(file: Path) -> Report:
    """A result written by the command line. Raises ValueError with one sentence for anything else."""
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        if not ("rows" in report or "cost" in report):
            raise KeyError
        report |= {"name": file.stem}
        results.tables([report])
        results.recommendation(report.get("tuned"))
        figures.figures([report])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"{file.name} is no result of bench --json or cost --json: choose another file.") from None
    return report


def used_outputs(play: Playground, tabs: gr.Tabs) -> list[Any]:
    return [tabs, play.method, play.wish, *(part for _, part in play.settings.of_method())]


def used(play: Playground, tabs: gr.Tabs, reports: Sequence[Report]) -> Updates:
    """Put the recommended settings into the Playground and show it."""
    tuned = advised(reports)
    settings = usable(tuned)
    if tuned is None or settings is None:
        return {tabs: gr.skip()}
    parts = {key: part for key, part in play.settings.parts.items() if key[0] == tuned["method"]}
    updates = {part: settings[name] for (_, name), part in parts.items() if name in settings}
    return {tabs: gr.update(selected="playground"), play.method: tuned["method"], play.wish: tuned["method"]} | updates


def _newest(runlog: RunLog, who: str) -> Report | None:
    """A visitor's last result. Raises RunLogError."""
    found = runlog.benchmarks(1, who)
    return runlog.benchmark(found[0]["id"]) if found else None
