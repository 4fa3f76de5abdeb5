"""The pictures in the documentation, and the command that takes them of the running page."""

from __future__ import annotations

import re
from pathlib import Path

from tests.browsing import MARKS, load, served, window  # sets the environment of gradio

# isort: split
import pytest
from PIL import Image
from playwright.sync_api import Browser

from scripts import moving_picture, pictures
from scripts.pictures import DESKTOP, PHONE, Shot, shots
from specstream.runlog import RunLog

ROOT = Path(__file__).parents[1]
MOST = 1_500_000  # bytes of all pictures together


def test_every_tab_is_taken_once_and_a_missing_one_is_left_out() -> None:
    found = shots(["Playground", "Something new"], everything=False)
    assert {shot.name for shot in found} == {
        "playground.webp", "something-new.webp", "playground-dark.webp", "playground-phone.webp",
    }  # fmt: skip
    assert shots([], everything=False) == []
    every = shots(["Playground", "Compare"], everything=True)
    assert len({shot.name for shot in every}) == len(every) == 8


def test_pictures_and_pages_agree() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    linked = {
        (page.parent / target).resolve()
        for page in pages
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    files = set((ROOT / "docs" / "images").iterdir())
    assert linked == files
    assert sum(file.stat().st_size for file in files) < MOST


def test_the_moving_picture_lasts_as_long_as_what_it_shows(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (1600, 800), colour) for colour in ("red", "blue"))
    moving_picture.write([(0.0, red), (0.1, red), (0.4, blue), (0.5, blue)], tmp_path / "race.webp")
    with Image.open(tmp_path / "race.webp") as picture:
        lasted = []
        for frame in range(picture.n_frames):  # type: ignore[attr-defined]
            picture.seek(frame)
            picture.load()
            lasted.append(picture.info["duration"])
    assert picture.size == (800, 400) and lasted == [400, 2500]


def test_the_moving_picture_moves_and_is_small() -> None:
    file = moving_picture.FILE
    with Image.open(file) as picture:
        assert picture.n_frames > 10 and file.stat().st_size < 500_000  # type: ignore[attr-defined]


class TestInABrowser:
    pytestmark = MARKS

    def test_a_tab_is_taken_in_both_sizes_light_and_dark(
        self, tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pictures, "SETTLED", 100)  # nobody looks at these
        log = RunLog(tmp_path / "runs.db")
        with served(log) as url:
            page = window(browser, DESKTOP)
            load(page, f"{url}?__theme=light")
            files = list(pictures.pictures(page, tmp_path, True, ("How it works",)))
            page.close()
        assert [file.name for file in files] == [
            Shot("How it works", width, dark).name for width in (DESKTOP, PHONE) for dark in (False, True)
        ]
        data = [file.read_bytes() for file in files]
        assert all(file[:4] == b"RIFF" and file[8:12] == b"WEBP" and len(file) > 10_000 for file in data)
        assert len(set(data)) == 4
