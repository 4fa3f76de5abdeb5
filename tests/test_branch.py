"""Continuing from another token, and the guessing game."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specstream.params import Sampling, Streaming
from specstream.runlog import RunLog
from specstream.testing.toy import load_toy
from ui.components import branch, guess
from ui.jobs import lens
from ui.jobs.engine_host import Engines
from ui.jobs.runs import RunJob, RunRequest
from ui.state import history, recording
from ui.state.feed import Feed
from ui.state.view import View

PROMPT = "name[The Copper Kettle]"
CHOICE = {"model": "toy", "adapter": "auto", "device": "auto", "dtype": "auto"}


def run(engines: Engines, runlog: RunLog, ask: RunRequest) -> View:
    view, job = View(Feed("test")), RunJob(engines, runlog, ask)
    for batch in job.batches():
        for item in batch:
            view.add(item)
    view.close()
    return view


def loaded() -> Engines:
    engines = Engines(CHOICE, lambda progress, **chosen: load_toy(pace=0))
    engines.load()
    list(engines.watch(0.01))
    return engines


def test_a_branch_begins_as_it_was_told_and_is_linked_to_its_run(tmp_path: Path) -> None:
    engines, runlog = loaded(), RunLog(tmp_path / "runs.db")
    first = run(engines, runlog, RunRequest(PROMPT, "e2e", Streaming(), Sampling(max_new_tokens=40), True))
    begin, last = branch.beginning(first, 2, -1, 0)
    assert first.text.startswith(begin) and begin.endswith(last)
    ask = branch.asked(first, begin)
    again = run(engines, runlog, ask)
    assert begin + again.text[: 40 - len(begin)] == first.text[:40]  # the same model continues as before
    row = runlog.run(again.log_id)
    assert row["settings"]["branch"] == {"of": first.log_id, "after": begin} and row["prompt"] == PROMPT
    assert dict(history.facts(row))["Goes on after"] == f"{begin} (from run {first.log_id})"
    further = branch.asked(again, "X")
    assert (further.prefix, further.parent) == (begin + "X", again.log_id)
    logged = history.view(runlog, row)
    assert logged.origin is not None
    ids = lens.prompt_ids(load_toy(pace=0), logged.origin)
    assert bytes(ids).decode().endswith(begin)
    assert "branch" not in history.flat(row["settings"]) and "after" not in history.flat(row["settings"])


def test_a_guess_that_was_not_kept_leads_on_from_its_parents() -> None:
    view = recording.load().view()
    index, node = next(
        (i, n) for i, step in enumerate(view.steps) for n, fate in enumerate(step.draft.fate)
        if fate == "rejected" and step.draft.parents[n] >= 0
    )  # fmt: skip
    step = view.steps[index]
    begin, last = branch.beginning(view, index, node, -1)
    above = step.draft.texts[step.draft.parents[node]]
    assert last == step.draft.texts[node] and begin.endswith(above + last)
    assert branch.beginning(view, 0, -1, -1) == ("", "")


def test_both_texts_are_shown_as_text() -> None:
    view = recording.load().view()
    other: Any = View(Feed("x"))
    html = branch.both(view, other, "<b>")
    assert "<b>" not in html and "&lt;b&gt;" in html and "0 tokens in 0 passes" in html


def test_the_game_counts_words_in_a_row() -> None:
    assert guess.in_a_row("A Cheap pub,", ["a", "cheap", "English"]) == 2
    assert guess.in_a_row("", ["a"]) == 0 and guess.in_a_row("a b", ["a", "b"]) == 2
    view = recording.load().view()
    index = guess.places(view)[0]
    came = "".join(token.text for step in view.steps[index:] for token in step.tokens).split()
    yours, theirs, words = guess.judged(view, index, " ".join(came[:3]))
    assert yours == 3 and words == came[: guess.WORDS]
    assert 0 <= theirs <= len(view.steps[index].tokens)
    said = guess.result(3, 1, ["<b>"], (3, 1))
    assert "You win: you had 3 words right" in said and "<b>" not in said
