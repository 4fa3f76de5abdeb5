"""The internals of the page on the toy engine: worker, engines, forms, named endpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import pytest
from click import ClickException
from gradio_client import Client
from gradio_client.exceptions import AppError

from scripts.ports import free_port
from specstream import params
from specstream.data.chat import Chat
from specstream.events import Agreement, Finished, Lane, Reason, Step, Verdict
from specstream.info import PARTS
from specstream.params import Sampling, Standard, Streaming
from specstream.runlog import RunLog
from specstream.testing.toy import load_toy
from tests.test_ui_headline import PLAIN, run, steps
from ui import app
from ui.components import race
from ui.jobs import job
from ui.jobs.comparisons import Contest, Entry, Lap
from ui.jobs.engine_host import Busy, Engines, NotLoaded, Stopped
from ui.jobs.job import Jobs
from ui.jobs.measure_again import TIMES, MeasureAgain
from ui.jobs.runs import RunJob, RunRequest
from ui.state.feed import Feed
from ui.state.headline import Ratio, headline
from ui.state.messages import Item, Notice
from ui.state.methods import CannotRun, Offer
from ui.state.view import View
from ui.tabs import compare, playground

pytestmark = pytest.mark.timeout(120)
CHOICE = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}
PROMPT = "name[The Salted Fig], food[Italian]"


def loaded(pace: float = 0.0) -> Engines:
    engines = Engines(CHOICE, lambda progress, **choice: load_toy(pace))
    engines.load()
    assert list(engines.watch(0.01))[-1].info
    return engines


@pytest.fixture(scope="module")
def engines() -> Engines:
    return loaded()


@pytest.fixture
def runlog(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path / "runs.db")


def ask(tokens: int = 40, baseline: bool = True, prompt: str = PROMPT, **sampling: Any) -> RunRequest:
    return RunRequest(prompt, "e2e", Streaming(), Sampling(max_new_tokens=tokens, **sampling), baseline)


def items(run: RunJob) -> list[Item]:
    return [item for batch in run.batches() for item in batch]


def finished(found: list[Item], lane: Lane) -> Finished:
    return next(i[1] for i in found if isinstance(i, tuple) and i[0] is lane and isinstance(i[1], Finished))


def test_a_run_gives_both_lanes_and_a_verdict(engines: Engines, runlog: RunLog) -> None:
    found = items(RunJob(engines, runlog, ask()))
    verdict = next(i for i in found if isinstance(i, Verdict))
    assert verdict.agreement is Agreement.IDENTICAL and verdict.speedup
    assert {i[0] for i in found if isinstance(i, tuple)} == set(Lane)
    assert not any(isinstance(i, Notice) and i.failed for i in found)


def test_a_run_without_baseline_is_not_compared(engines: Engines) -> None:
    found = items(RunJob(engines, None, ask(baseline=False)))
    assert {i[0] for i in found if isinstance(i, tuple)} == {Lane.METHOD}
    assert next(i for i in found if isinstance(i, Verdict)).speedup is None


def test_stop_ends_a_run_after_the_step_under_way() -> None:
    run = RunJob(loaded(pace=0.02), None, ask(tokens=2000, ignore_eos=True))
    found: list[Item] = []
    for batch in run.batches():
        found += batch
        if any(isinstance(i, tuple) and isinstance(i[1], Step) for i in batch):
            run.stop.set()
    assert finished(found, Lane.METHOD).reason is Reason.STOPPED
    assert not any(isinstance(i, tuple) and i[0] is Lane.BASELINE for i in found)


def test_stop_is_told_at_once_not_with_the_next_update(monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunJob(loaded(pace=0.01), None, ask(tokens=2000, ignore_eos=True))
    batches = run.batches()
    next(batches)
    monkeypatch.setattr(job, "UPDATES_PER_SECOND", 0.1)
    run.stop.set()
    began = time.monotonic()
    last = [item for batch in batches for item in batch]
    assert finished(last, Lane.METHOD).reason is Reason.STOPPED and time.monotonic() - began < 8  # an update takes 10 s


def test_a_run_begins_once_the_page_has_drawn_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "DRAWING", 600)
    drawn, stopped = RunJob(loaded(), None, ask()), RunJob(loaded(), None, ask())
    drawn.drawn.set()
    stopped.stop.set()
    for one in (drawn, stopped):
        one.wait_for_drawing()
        assert not one.begun
        assert items(one)
        one.wait_for_drawing()  # of a run that has begun, for a page that was reloaded
    monkeypatch.setattr(job, "DRAWING", 0.1)
    RunJob(loaded(), None, ask()).wait_for_drawing()  # a page that never says anything


def test_a_short_run_is_over_before_the_first_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "UPDATES_PER_SECOND", 1 / 600)
    assert len(list(RunJob(loaded(), None, ask(tokens=10)).batches())) == 1


def test_stop_does_not_wait_for_a_slow_step() -> None:
    run = RunJob(loaded(pace=4), None, ask(tokens=2000))
    view = View(Feed("live"))
    for batch in run.batches():
        for item in batch:
            view.add(item)
        if view.steps:
            run.stop.set()
    assert run._thread.is_alive()  # still inside its step
    view.close(run.stop.is_set())
    assert view.words.startswith("Done: stopped by you") and view.tone == "plain"
    run._thread.join()


def test_stop_in_the_prompt_pass_says_that_nothing_was_written() -> None:
    run = RunJob(loaded(pace=4), None, ask(tokens=2000))
    view = View(Feed("live"))
    for batch in run.batches():
        for item in batch:
            view.add(item)
        if view.stats[Lane.METHOD].method:
            run.stop.set()
    assert run._thread.is_alive() and not view.steps
    view.close(run.stop.is_set())
    assert (view.words, view.tone) == ("Stopped by you before the first token", "plain")
    run._thread.join()


def test_a_run_that_nobody_watches_stops_after_the_grace_time_and_frees_the_engine() -> None:
    engines = loaded(pace=0.02)
    run = RunJob(engines, None, ask(tokens=2000, ignore_eos=True))
    run.grace = 0.2
    batches = run.batches()
    next(batches)
    batches.close()
    assert not run.stop.is_set()
    after = items(RunJob(engines, None, ask(tokens=5)))  # waits for the engine: it must become free
    assert run.stop.is_set() and finished(after, Lane.METHOD).reason is Reason.LENGTH


def test_a_viewer_that_comes_back_in_time_finds_everything_from_the_start() -> None:
    run = RunJob(loaded(pace=0.02), None, ask(tokens=40, baseline=False))
    run.grace = 0.3
    first = run.batches("page")
    seen = next(first)
    first.close()
    again = [item for batch in run.batches("the same page, loaded again") for item in batch]
    assert again[: len(seen)] == seen and finished(again, Lane.METHOD).reason is Reason.LENGTH


def test_a_page_that_closes_while_it_waits_is_no_viewer() -> None:
    engines = loaded(pace=0.02)
    going = RunJob(engines, None, ask(tokens=4000, ignore_eos=True)).batches()
    next(going)
    known, waiting = Jobs(), RunJob(engines, None, ask())
    waiting.grace = 0.1
    known.put("visitor", "session", waiting)
    batches = waiting.batches("session")
    assert next(batches) == [Notice("Waiting for the model: 1 ahead of you")]
    known.close("session")  # its generator is still inside a step
    assert [i for batch in batches for i in batch] == [Notice("Stopped before it began")]
    going.close()


def test_stop_reaches_the_job_of_its_visitor_only() -> None:
    known, mine, theirs = Jobs(), RunJob(loaded(), None, ask()), RunJob(loaded(), None, ask())
    known.put("me", "1", mine)
    known.put("them", "2", theirs)
    known.stop("me")
    known.stop("nobody")
    assert mine.stop.is_set() and not theirs.stop.is_set() and known.get("them") is theirs
    known.put("them", "2", RunJob(loaded(), None, ask()))
    assert theirs.stop.is_set()  # a visitor has one job at a time


def test_the_run_does_not_wait_for_the_page(engines: Engines) -> None:
    run = RunJob(engines, None, ask(tokens=200, ignore_eos=True))
    batches = run.batches()
    first = next(batches)
    run._thread.join(timeout=60)  # nobody drains the queue meanwhile
    assert not run._thread.is_alive()
    rest = [item for batch in batches for item in batch]
    assert any(isinstance(item, Verdict) for item in first + rest)


def test_updates_are_coalesced() -> None:
    started = time.monotonic()
    batches = list(RunJob(loaded(pace=0.002), None, ask(tokens=300, ignore_eos=True)).batches())
    assert len(batches) <= 13 * (time.monotonic() - started) + 2
    assert max(len(batch) for batch in batches) > 2


def test_a_second_run_waits_and_can_be_stopped_while_it_waits() -> None:
    engines = loaded(pace=0.02)
    first = RunJob(engines, None, ask(tokens=4000, ignore_eos=True))
    going = first.batches()
    while not any(isinstance(item, tuple) for item in next(going)):
        pass
    second = RunJob(engines, None, ask())
    waiting = second.batches()
    assert next(waiting) == [Notice("Waiting for the model: 1 ahead of you")]
    second.stop.set()
    assert [i for batch in waiting for i in batch] == [Notice("Stopped before it began")]
    going.close()


@pytest.mark.parametrize("prompt", ["", " \n ", "x" * 100_000])
def test_a_refused_prompt_is_one_sentence_and_not_a_logged_run(engines: Engines, runlog: RunLog, prompt: str) -> None:
    found = items(RunJob(engines, runlog, RunRequest(prompt, "raw", Streaming(), Sampling(), True)))
    failed = [i for i in found if isinstance(i, Notice) and i.failed]
    assert len(failed) == 1 and "prompt" in failed[0].text and "\n" not in failed[0].text
    assert runlog.count() == 0
    assert finished(items(RunJob(engines, None, ask(tokens=3))), Lane.METHOD)


def test_a_log_that_fails_costs_a_sentence_not_the_run(engines: Engines) -> None:
    class Broken:
        def start(self, *values: Any, **named: Any) -> Any:
            raise OSError("disk full")

    found = items(RunJob(engines, Broken(), ask()))
    assert [i.text for i in found if isinstance(i, Notice) and "Not logged" in i.text and "disk full" in i.text]
    assert any(isinstance(item, Verdict) for item in found)


def test_the_log_has_what_the_page_showed(engines: Engines, runlog: RunLog) -> None:
    view = View(Feed("live"))
    for item in items(RunJob(engines, runlog, ask())):
        view.add(item)
    assert view.log_id
    logged = runlog.events(view.log_id, Lane.METHOD)
    assert [e for e in logged if isinstance(e, Step)] == view.steps


def test_a_failed_load_keeps_the_old_engine_and_says_why(engines: Engines) -> None:
    def loader(progress: Any, model: str, **choice: str) -> Any:
        if model == "broken":
            raise ValueError("There is no model broken: choose another.")
        return load_toy(0)

    both = Engines(CHOICE, loader)
    with pytest.raises(NotLoaded), both.lend(threading.Event(), print):
        pass
    both.load(**CHOICE | {"model": "broken"})
    state = list(both.watch(0.01))[-1]
    assert state.error == "There is no model broken: choose another." and state.info is None
    assert "no model broken" in items(RunJob(both, None, ask()))[-1].text  # type: ignore[union-attr]
    both.load(**CHOICE)
    list(both.watch(0.01))
    both.load(**CHOICE | {"model": "broken"})
    state = list(both.watch(0.01))[-1]
    assert state.error and state.info and state.info.model == "toy"
    assert finished(items(RunJob(both, None, ask(tokens=3))), Lane.METHOD)


class Counted:
    """A toy engine that notes its runs; the first ones of a real model are slower than the rest."""

    def __init__(self, fails: bool = False) -> None:
        self.engine, self.ran, self.fails = load_toy(0), [], fails  # type: ignore[var-annotated]
        self.generate, self.engine.generate = self.engine.generate, self.noted  # type: ignore[method-assign]

    def noted(self, prompt: str, method: Any, *rest: Any) -> Any:
        self.ran.append(method.name)
        if self.fails:
            raise RuntimeError("out of memory")
        return self.generate(prompt, method, *rest)


def ready(known: Counted) -> Engines:
    engines = Engines(CHOICE, lambda progress, **choice: known.engine)
    engines.load()
    assert list(engines.watch(0.01))[-1].info
    return engines


def test_a_loaded_model_is_warm_before_the_first_run_is_measured(runlog: RunLog) -> None:
    known = Counted()
    engines = ready(known)
    assert known.ran == ["streaming", "standard"]  # what a run measures, in its order
    items(RunJob(engines, runlog, ask(tokens=3)))
    assert known.ran == ["streaming", "standard"] * 2 and runlog.count() == 1


def test_newly_swapped_in_layers_are_warm_before_the_run_that_found_them() -> None:
    known = Counted()
    engines = ready(known)
    known.ran.clear()
    known.engine.refresh = lambda wait=False: setattr(  # type: ignore[method-assign]
        known.engine, "info", replace(known.engine.info, compiled=True)
    )
    for _ in range(2):
        with engines.lend(threading.Event(), print):
            assert known.ran == ["streaming", "standard"]


def test_a_warm_up_that_fails_leaves_the_model_loaded() -> None:
    engines = ready(Counted(fails=True))
    assert engines.state.words == "Ready" and not engines.state.error


def test_only_one_load_at_a_time_and_a_run_waits_for_it() -> None:
    gate = threading.Event()

    def loader(progress: Any, **choice: str) -> Any:
        progress("Fetching", 0.5)
        gate.wait(30)
        return load_toy(0)

    engines = Engines(CHOICE, loader)
    engines.load()
    with pytest.raises(Busy):
        engines.load()
    batches = RunJob(engines, None, ask(tokens=3)).batches()
    assert next(batches) == [Notice("Waiting for the model to load")]
    assert engines.state.words == "Fetching" and engines.state.fraction == 0.5
    gate.set()
    assert any(isinstance(item, Verdict) for batch in batches for item in batch)


def test_waiting_for_the_engine_ends_on_stop() -> None:
    gate, stop = threading.Event(), threading.Event()

    def loader(progress: Any, **choice: str) -> Any:
        gate.wait(30)
        return load_toy(0)

    engines = Engines(CHOICE, loader)
    engines.load()
    stop.set()
    with pytest.raises(Stopped), engines.lend(stop, lambda words: None):
        pass
    gate.set()


def test_a_method_that_cannot_run_keeps_its_place_and_says_what_it_lacks(engines: Engines) -> None:
    info = engines.state.info
    assert info is not None and engines.offer.info is info
    said = {name: PARTS[name].sentence for name in ("streaming", "medusa")}  # as the engine says it
    lacking = Offer(replace(info, unavailable=said))
    assert Offer().choices() == Offer(info).choices() and Offer().choices()[0] == ("Speculative Streaming", "streaming")
    assert [name for _, name in lacking.choices()] == [name for _, name in Offer().choices()]
    assert lacking.label("medusa") == "Medusa heads (needs heads)" and lacking.label("standard") == "Standard decoding"
    assert lacking.fitting("streaming") == "standard" and lacking.fitting("prompt_lookup") == "prompt_lookup"
    with pytest.raises(CannotRun, match="^No Medusa heads are loaded: .*tab Fine-tune, or command train"):
        lacking.check("medusa")
    assert {name: lacking.words(name) for name in said} == said
    demo = replace(lacking, demo=True).reason("medusa")
    assert demo.startswith(f"{PARTS['medusa'].missing}: this demo") and "train" not in demo
    plain = Offer(
        replace(info, unavailable=dict.fromkeys(set(params.METHODS) - {"standard"}, "It fails the self-test."))
    )
    assert plain.label("medusa") == "Medusa heads (not with this model)" and plain.fitting("medusa") == "standard"
    assert plain.words("medusa") == "It fails the self-test." and plain.words("standard").endswith("per pass.")


def test_a_loaded_model_keeps_the_chosen_method_where_it_can_run(engines: Engines) -> None:
    with gr.Blocks():
        tab = playground.layout(engines)
    bare = Offer(replace(engines.offer.info, unavailable={"streaming": "No streams."}))  # type: ignore[type-var]
    assert tab.wish in tab.chosen and tab.method not in tab.chosen  # a method that was moved comes back
    kept, moved = (tab.loaded(engines.state, bare, "raw", name)[tab.method] for name in ("prompt_lookup", "streaming"))
    assert kept["value"] == "prompt_lookup" and moved["value"] == "standard"
    assert kept["choices"] == bare.choices() and len(kept["choices"]) == len(params.METHODS)


def test_the_button_beside_a_slow_run_mends_its_cause(engines: Engines) -> None:
    with gr.Blocks():
        tab = playground.layout(engines)
    events = playground.RunEvents(tab, engines, None)
    large = replace(ask(), method=Streaming(budget=64))
    last = playground.Last(large, run(steps((1, 1.0), *[(2, 6.0)] * 6), PLAIN, budget=64), engines.state.info)
    assert events.mend(last) == {tab.settings.parts["streaming", "budget"]: 0}
    assert tab.view.said(headline(last.view))[tab.view.mend]["value"] == "Try the default"
    assert last.still(engines.state.info) and not last.still(replace(engines.state.info, adapter="other"))  # type: ignore[type-var]


def test_a_run_is_measured_again_without_a_log(engines: Engines) -> None:
    found = [item for batch in MeasureAgain(engines, None, ask(tokens=8)).batches() for item in batch]
    ratios = [item for item in found if isinstance(item, Ratio)]
    assert len(ratios) == TIMES and all(ratio.whole > 0 and ratio.writing for ratio in ratios)


def test_an_example_gives_way_to_that_of_the_adapter_but_typed_text_stays() -> None:
    known = playground.examples()[0]
    other = playground.example_of("sql", known["prompt"])
    assert other.startswith("CREATE TABLE") and not playground.example_of(known["task"], known["prompt"])
    assert playground.example_of("sql", "my own words") == ""


def test_what_is_measured_with_an_adapter_of_another_task_says_so(engines: Engines) -> None:
    contest = Contest(engines, None, replace(ask(tokens=4), task="sql"), [Streaming()])
    told = [item for batch in contest.batches() for item in batch if isinstance(item, Notice) and item.lasting]
    assert len(told) == 1 and "was trained for" in told[0].text
    fits = Contest(engines, None, replace(ask(tokens=4), task="e2e"), [Streaming()])
    assert not [i for batch in fits.batches() for i in batch if isinstance(i, Notice)]


def entries(contest: Contest) -> list[Entry]:
    return [item for batch in contest.batches() for item in batch if isinstance(item, Entry)]


def every_method() -> list[Any]:
    return [params.method(name) for name in params.METHODS if name != Standard.name]


def test_a_contest_measures_standard_decoding_first_and_logs_every_run(engines: Engines, runlog: RunLog) -> None:
    found = entries(Contest(engines, runlog, ask(tokens=20), every_method(), "me"))
    assert [entry.method for entry in found] == [Standard.name, *(m.name for m in every_method())]
    assert [entry.verdict and entry.verdict.agreement for entry in found[1:]] == [Agreement.IDENTICAL] * (
        len(found) - 1
    )
    assert found[0].verdict is None and runlog.count(visitor="me") == len(found)
    for entry in found:
        assert runlog.run(entry.run)["status"] == "finished"
        assert tuple(runlog.events(entry.run, Lane.METHOD)) == entry.events
    assert tuple(runlog.events(found[1].run, Lane.BASELINE)) == found[0].events
    assert runlog.run(found[1].run)["agreement"] == "identical"


def test_a_stopped_contest_keeps_what_was_measured_to_the_end(
    engines: Engines, runlog: RunLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ui.jobs.job.UPDATES_PER_SECOND", 50)  # stopped before the second method has ended
    contest = Contest(loaded(pace=0.02), runlog, ask(tokens=30, ignore_eos=True), every_method())
    progress = compare.ComparisonProgress(race.Live([params.METHODS[name].label for name in contest.names]))
    for batch in contest.batches():
        for item in batch:
            progress.add(item)
        if progress.entries:
            contest.stop.set()
    progress.close(stopped=True)
    assert [entry.method for entry in progress.entries] == [Standard.name]
    assert progress.words.startswith("Stopped by you. Measured to the end: Standard decoding")


def test_a_contest_leaves_out_what_the_model_it_gets_cannot_run() -> None:
    engines = loaded()
    engines._engine.info = replace(engines._engine.info, unavailable={"draft_model": "No second model is loaded."})
    contest = Contest(engines, None, ask(tokens=8), [Streaming(), params.DraftModel()])
    progress = compare.ComparisonProgress(race.Live([params.METHODS[name].label for name in contest.names]))
    for item in (item for batch in contest.batches() for item in batch):
        progress.add(item)
    progress.close(stopped=False)
    assert [entry.method for entry in progress.entries] == ["standard", "streaming"] and progress.tone == "good"
    assert "Left out: Draft model. No second model is loaded" in progress.words
    assert progress.live.labels == ["Standard decoding", "Speculative Streaming"]
    only = Contest(engines, None, ask(tokens=8), [params.DraftModel()])
    found = [item for batch in only.batches() for item in batch]
    assert [item.failed for item in found] == [True] and "No second model is loaded" in found[0].text


def test_every_lane_is_seen_while_it_is_measured(engines: Engines) -> None:
    """The messages together contain exactly what was measured."""
    contest = Contest(engines, None, ask(tokens=12), [Streaming()])
    live = race.Live([params.METHODS[name].label for name in contest.names])
    seen: list[list[Any]] = [[], []]
    states, found = [], []
    for item in (item for batch in contest.batches() for item in batch):
        found += [item] if isinstance(item, Entry) else []
        if isinstance(item, Lap):
            live.add(item)
            lanes = json.loads(live.message())["lanes"]
            states.append([lane["state"] for lane in lanes])
            for steps, lane in zip(seen, lanes, strict=True):
                assert lane["at"] == len(steps)
                steps += lane["steps"]
    assert ["measured", "waiting"] in states and states[-1] == ["over", "measured"]
    final = json.loads(race.message(found))["lanes"]
    texts = [["".join(text for _, new in lane for text, _ in new) for lane in lanes] for lanes in (
        seen, [lane["steps"] for lane in final])]  # fmt: skip
    assert texts[0] == texts[1] and texts[0][0]
    assert [len(lane) for lane in seen] == [len(lane["steps"]) for lane in final]


def test_compare_disables_what_the_model_cannot_run(engines: Engines) -> None:
    assert engines.state.info
    with gr.Blocks():
        tab = compare.layout()
    assert set(tab.methods) == set(params.METHODS) - {Standard.name}
    info = replace(engines.state.info, unavailable={"streaming": "This model has no trained streams."})
    wished = ["streaming", "medusa"]
    updates = tab.available(engines.state, Offer(info), "sql", wished)
    assert "trained for" in updates[tab.hint]["value"]  # every tab warns of the mismatch
    box = updates[tab.methods["streaming"]]
    assert box["interactive"] is False and box["value"] is False and "no trained streams" in box["info"]
    assert all(updates[part]["interactive"] for name, part in tab.methods.items() if name != "streaming")
    back = tab.available(engines.state, Offer(engines.state.info), "e2e", wished)
    ticked = [name for name, part in tab.methods.items() if back[part]["value"]]
    assert ticked == wished and back[tab.hint]["visible"] is False


def test_every_letter_is_of_one_font() -> None:
    """Gradio's semibold files lack most letters."""
    faces = "".join(app.look()._font_css)
    assert "SourceSansPro-Bold" in faces and "SourceSansPro-Regular" in faces and "SemiBold" not in faces


def test_while_the_adapter_of_a_task_is_loaded_nothing_says_that_it_is_missing(engines: Engines) -> None:
    with gr.Blocks():
        tab = playground.layout(engines)
    models = playground.ModelEvents(tab, engines)
    assert models.suited("sql")[tab.suit.group]["visible"]  # the toy model has none for it
    engines.state = replace(engines.state, loading=True, words="Loading the model")
    assert not models.suited("sql")[tab.suit.group]["visible"]
    said = models.changing("sql", engines.state)[tab.status]
    assert "Loading the adapter for Questions to SQL" in said
    waits = replace(engines.state, words="Waiting: 1 ahead of it")
    assert "1 ahead of it" in models.changing("sql", waits)[tab.status]


def test_compare_needs_a_method_and_a_prompt() -> None:
    with gr.Blocks():
        tab = compare.layout()
    values = {part: part.value for part in tab.inputs}
    asked, methods = tab.ask(values)
    assert asked.prompt and [m.name for m in methods] == list(tab.methods)
    with pytest.raises(ValueError, match="The prompt is empty"):
        tab.ask(values | {tab.prompt: " "})
    with pytest.raises(ValueError, match="No method is chosen"):
        tab.ask(values | dict.fromkeys(tab.methods.values(), False))


def test_a_page_that_is_loaded_again_shows_the_last_run_from_the_log(engines: Engines, runlog: RunLog) -> None:
    items(RunJob(engines, runlog, ask(tokens=6, prompt="mine"), "me"))
    items(RunJob(engines, runlog, ask(tokens=6, prompt="theirs"), "them"))
    with gr.Blocks():
        tab = playground.layout(engines)
    updates = playground.last_run(tab, runlog, "me", Chat())
    assert updates[tab.prompt] == "mine" and "Your last run" in updates[tab.status]
    assert len([s for s in updates[tab.view.steps] if s.tokens]) > 1
    assert tab.view.player not in playground.last_run(tab, runlog, "nobody", Chat())
    assert tab.view.player not in playground.last_run(tab, None, "me", Chat())


@pytest.fixture(scope="module")
def client(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    page = app.build(engines, RunLog(tmp_path_factory.mktemp("log") / "runs.db"))
    page.launch(prevent_thread_lock=True, quiet=True, server_port=free_port(), **app.launch_options())
    yield Client(page.local_url, verbose=False)
    page.close()


def test_the_named_endpoints_are_all_there_is(client: Client) -> None:
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {
        "/generate",
        "/stream",
        "/model",
        "/settings",
    }


def test_generate_by_program(client: Client, engines: Engines) -> None:
    out = client.predict(PROMPT, "e2e", "streaming", {"max_new_tokens": 30}, api_name="/generate")
    assert out["verdict"]["agreement"] == "identical" and out["run"]
    with engines.lend(threading.Event(), print) as engine:
        text = engine.prompt("e2e", PROMPT)
        steps = [e for e in engine.generate(text, Standard(), Sampling(max_new_tokens=30)) if isinstance(e, Step)]
    assert out["text"] == "".join(token.text for step in steps for token in step.tokens)
    assert out["stats"]["method"]["tokens_per_step"] > 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("", "raw"), "The prompt is empty"),
        (("x" * 100_000, "raw"), "tokens or more; this model's context"),
        (("a", "poems"), "Unknown task 'poems'"),
        (("a", "raw", "magic"), "Unknown method 'magic'"),
        (("a", "raw", "streaming", {"temperature": 9}), "Temperature must be a number"),
        (("a", "raw", "streaming", {"max_new_tokens": 0}), "Max new tokens must be"),
        (("a", "raw", "streaming", {"budget": "many"}), "Tree budget must be"),
        (("a", "raw", "streaming", {"wings": 2}), "no setting wings"),
        (("a", "raw", "streaming", {"stop": 3}), "Stop strings"),
    ],
)
def test_bad_calls_get_one_sentence(client: Client, values: tuple[Any, ...], words: str) -> None:
    with pytest.raises(AppError) as error:
        client.predict(*values, api_name="/generate")
    assert words in str(error.value) and "Traceback" not in str(error.value)
    assert client.predict(api_name="/model")["info"]["model"] == "toy"


def test_nan_from_outside_is_one_sentence(client: Client) -> None:
    url = f"{client.src.rstrip('/')}/gradio_api/call/generate"
    body = b'{"data": ["a", "raw", "streaming", {"temperature": NaN}, true]}'  # not JSON, but what json.loads takes
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}") as answer:
        told = answer.read().decode()
    assert "event: error" in told and "Temperature must be a number" in told


def test_no_event_of_the_page_shows_progress_on_components(engines: Engines) -> None:
    """Each such component is looked up with every message of a run."""
    page = app.build(engines, None)
    events = [event for event in page.fns.values() if event.fn and event.api_visibility != "public" and event.outputs]
    assert len(events) > 50 and [event.name for event in events if event.show_progress_on != []] == []


def test_the_page_is_built_without_torch() -> None:
    code = (
        "import os, sys; os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'\n"
        "from ui import app; from ui.jobs.engine_host import Engines\n"
        f"app.build(Engines({CHOICE!r}), None); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_app_help_does_not_import_gradio() -> None:
    root = Path(__file__).parents[1]
    code = "import sys; sys.argv = ['app.py', '--help']\nimport app\ntry:\n app.main()\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "assert 'gradio' not in sys.modules"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--toy" in done.stdout


def test_a_start_that_fails_is_told_in_one_sentence() -> None:
    from ui import launch as program

    class Page:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def launch(self, **options: Any) -> None:
            raise self.error

    taken = OSError("Cannot find empty port in range: 7860-7860.")
    with pytest.raises(ClickException, match="port 7860: something else uses it, or .* too busy .* --port"):
        program.serve(Page(taken), "127.0.0.1", 7860, {})
    behind = RuntimeError("Couldn't start the app because 'http://127.0.0.1/' failed (code 502).\nMore.")
    with pytest.raises(ClickException, match=r"\(code 502\)\): with a proxy, set NO_PROXY"):
        program.serve(Page(behind), "127.0.0.1", 7860, {})


def test_the_page_starts_where_gradio_would_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may answer later than gradio waits; gradio then asks for a share link and exits."""
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    with gr.Blocks() as page:
        gr.Markdown("Here")
    page.launch(prevent_thread_lock=True, quiet=True, server_port=free_port(), **app.launch_options())
    with urllib.request.urlopen(page.local_url) as answer:
        assert answer.status == 200
    page.close()
