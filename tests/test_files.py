"""Files to download: they never fill the disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

import gradio as gr
import pytest

from ui import files


def put(folder: Path, name: str, size: int, age: float) -> Path:
    file = folder / name
    file.write_bytes(b"x" * size)
    then = time.time() - age
    os.utime(file, (then, then))
    return file


def test_the_oldest_files_make_room_for_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROOM", 100)
    old, middle, new = put(tmp_path, "a", 60, 900), put(tmp_path, "b", 60, 600), put(tmp_path, "c", 30, 300)
    assert files.place(tmp_path, "d") == tmp_path / "d"
    assert [file.exists() for file in (old, middle, new)] == [False, True, True]


def test_a_file_that_was_just_made_stays_until_it_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROOM", 100)
    fresh, old = put(tmp_path, "a", 500, 5), put(tmp_path, "b", 10, 900)
    files.place(tmp_path, "c")
    assert fresh.exists() and not old.exists()


def test_gradio_serves_the_files_where_they_are_and_keeps_no_copies() -> None:
    folder = files.downloads()
    file = folder / "run.txt"
    file.write_text("x")
    button = gr.DownloadButton()
    assert button.move_resource_to_block_cache(file) == str(file)
    assert folder == files.downloads()  # one for all tabs: there is one limit
