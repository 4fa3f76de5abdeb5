"""Exports of the page: a run or a race as one file, a picture, an animation, the gallery."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from scripts.record_gallery import RUNS
from specstream.events import Agreement, Verdict
from specstream.params import Streaming
from ui import product
from ui.components import share
from ui.export import gallery, page, picture, story
from ui.state import history, recording
from ui.state.origin import Origin
from ui.state.view import View

from .test_ui_insights import EVIL, FAST, SLOW

REPOSITORY = "https://github.com/someone/streams"
ORIGIN = Origin(EVIL, "e2e", "streaming", "toy", "toy", "cpu", "float32", "A Chip, 2 cores", "2026-01-02T03:04:05")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "repository", lambda: REPOSITORY)


@pytest.fixture
def view() -> View:
    return recording.load().view()


def race_story() -> story.Story:
    told = story.of_entries([SLOW, FAST], ORIGIN)
    assert told is not None
    return told


def test_the_copied_words_name_the_methods_and_the_adapter() -> None:
    words = race_story().words
    assert "Compared: Standard decoding, Speculative Streaming" in words and f"adapter {ORIGIN.adapter}" in words


def needs_nothing_else(html: str, *links: str) -> None:
    """No markup of the texts, and no address but these."""
    assert "<img" not in html and "default-src 'none'" in html
    assert html.count("</script>") == html.count("<script")
    assert "url(" not in html and "@import" not in html
    assert set(re.findall(r"""(?:src|href)=["']([^"']*)""", html)) == {REPOSITORY, product.PAPER, *links}


def test_the_file_of_a_race_needs_nothing_else_and_runs_no_markup() -> None:
    told, base = race_story(), "https://lab.example/"
    runs = [f"{base}?run=01RUN{name}" for name in ("STANDARD", "STREAMING")]
    needs_nothing_else(page.race_page([SLOW, FAST], told, base), *runs)
    alone = page.race_page([SLOW, FAST], told, None)
    needs_nothing_else(alone)
    assert "EAMING" in alone and product.NAME in alone and "A Chip, 2 cores" in alone and "3.0× faster" in alone


def test_the_file_of_a_run_needs_nothing_else_and_names_what_it_ran_on(view: View) -> None:
    assert view.origin is not None
    view.origin, view.log_id = replace(view.origin, prompt=EVIL), "01RUN"
    told = story.of_view(view)
    assert told is not None
    html = page.run_page(view, told, "https://lab.example/")
    needs_nothing_else(html, "https://lab.example/?run=01RUN")
    assert "smollm2-135m" in html and view.origin.processor in html and product.NAME in html
    needs_nothing_else(page.run_page(view, told, None))


def test_a_headline_says_what_was_measured() -> None:
    same = Verdict(Agreement.IDENTICAL, 28, "")
    assert story.headline(2.41, same, 10, 28) == "2.4× faster · same text · 10 passes instead of 28"
    assert story.headline(0.5, None, 1, 1) == "2.0× slower than standard decoding · 1 pass"
    assert story.headline(1.03, same, 9, 12).startswith("As fast as standard decoding")
    assert story.headline(None, None, 3, 4) == "3 passes instead of 4"


def test_a_run_of_unknown_origin_and_one_without_a_word_have_no_story(view: View) -> None:
    assert story.of_view(replace(view, origin=None)) is None
    assert story.of_view(replace(view, steps=[])) is None
    assert story.of_entries([], ORIGIN) is None


def test_settings_that_are_not_the_defaults_are_named() -> None:
    settings = {
        "method": {"budget": 9, "width": Streaming().width},
        "sampling": {"max_new_tokens": 7, "temperature": 0.0, "stop": []},
    }
    assert history.changed(settings, "streaming") == "Tree budget 9, Max new tokens 7"
    assert history.changed(None, "unknown") == ""


def test_the_picture_is_of_the_size_that_sites_show(view: View) -> None:
    told = story.of_view(view)
    assert told is not None
    drawn = Image.open(io.BytesIO(picture.png(told)))
    assert drawn.size == (1200, 630) and drawn.format == "PNG"


def test_the_animation_has_a_frame_for_every_pass_and_lasts_as_it_says(view: View) -> None:
    told = story.of_view(view)
    assert told is not None
    drawn = Image.open(io.BytesIO(picture.webp(told)))
    ends = {end for track in told.tracks for end, _ in track.passes}
    assert drawn.n_frames == len(ends) + 1  # type: ignore[attr-defined]
    assert picture.SHORTEST <= max(ends) / picture.pace(told) <= picture.LONGEST


def test_a_text_that_does_not_fit_is_drawn_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tuple((f" word{i}\n", 1 + i % 7) for i in range(300))
    told = replace(race_story(), tracks=(story.Track("Long", "#000000", ((1.0, tokens),)),))
    drawn: list[tuple[float, float, str]] = []

    def note(draw: Any, one: Any, at: tuple[float, float], size: int) -> None:
        drawn.append((*at, one.text))

    monkeypatch.setattr(picture, "_piece", note)
    picture.frame(told, 2)
    assert drawn[-2][2] == " word299" and len(drawn) < 200
    assert all(0 <= x < picture.WIDTH and 0 < y < picture.HEIGHT for x, y, _ in drawn)


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("git@github.com:someone/streams.git", REPOSITORY),
        ("https://token@github.com/someone/streams", REPOSITORY),
        ("ssh://git@github.com/someone/streams.git", REPOSITORY),
        ("/home/someone/streams", ""),
        ("", ""),
    ],
)
def test_a_repository_is_named_without_names_and_passwords(remote: str, address: str) -> None:
    assert product.public(remote) == address


@pytest.mark.parametrize(
    ("origin", "linked", "base"),
    [
        ("http://127.0.0.1:7860", True, None),
        ("http://localhost:7860", True, None),
        ("http://[::1]:7860", True, None),
        ("", True, None),
        ("https://lab.example", True, "https://lab.example/"),
        ("https://someone-something.hf.space", False, None),
    ],
)
def test_shared_links_lead_somewhere(origin: str, linked: bool, base: str | None) -> None:
    request: Any = SimpleNamespace(headers={"origin": origin} if origin else {})
    assert share.page_address(request, linked) == base


def test_the_gallery_has_a_page_a_picture_and_an_animation_for_every_run(tmp_path: Path) -> None:
    source, out = tmp_path / "runs", tmp_path / "site"
    source.mkdir()
    (source / "one.json").write_text(recording.FILE.read_text())
    values = json.loads(recording.FILE.read_text())
    values["label"] = EVIL
    (source / "two.json").write_text(json.dumps(values))
    done = CliRunner().invoke(
        gallery.main, ["--out", str(out), "--runs", str(source), "--base", "https://x.example/g/"]
    )
    assert done.exit_code == 0 and "2 runs" in done.output, done.output
    html = (out / "index.html").read_text()
    assert [(out / place).stat().st_size > 0 for place in re.findall(r"""(?:src|href)="((?!https:)[^"]*)""", html)] == [
        True
    ] * 4
    assert "onerror=alert(1)>" not in html
    for name in ("one", "two"):
        assert {file.name for file in (out / name).iterdir()} == {"index.html", "picture.png", "animation.webp"}
        assert f"https://x.example/g/{name}/picture.png" in (out / name / "index.html").read_text()


def test_the_runs_of_the_gallery_are_recorded_the_worst_too() -> None:
    files = sorted(gallery.RUNS.glob("*.json"))
    assert [file.stem for file in files] == sorted(name for name, *_ in RUNS)
    speedups = [recording.read(file).values["verdict"]["speedup"] for file in files]
    assert min(speedups) < 1 < max(speedups) and sum(file.stat().st_size for file in files) < 600_000


def test_a_gallery_of_nothing_says_so(tmp_path: Path) -> None:
    done = CliRunner().invoke(gallery.main, ["--out", str(tmp_path / "site"), "--runs", str(tmp_path)])
    assert done.exit_code == 1 and "holds no recorded runs" in done.output and "Traceback" not in done.output
