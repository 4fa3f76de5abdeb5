"""Sources of rows: a file and a dataset on the Hub give the same rows; every failure is one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from specstream.data import datasets as sources
from specstream.training.batches import DataError

ROWS = [{"question": f"How many {i}?", "context": f"CREATE TABLE t{i}", "answer": f"SELECT {i}"} for i in range(3)]
load_dataset = datasets.load_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset with two splits, as a folder of JSONL files."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, rows in (("train", ROWS), ("validation", ROWS[:1])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A Hub whose only dataset is that folder. Returns the requests it gets."""
    asked: list[tuple[Any, ...]] = []

    def load(name: str, config: str | None, split: str, revision: str | None) -> Any:
        asked.append((name, config, split, revision))
        return load_dataset(str(folder), split=split, cache_dir=str(folder.parent / "cache"))

    monkeypatch.setattr(sources, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, reachable: bool = True) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(sources, "hub_reachable", lambda: reachable)
    monkeypatch.setattr(datasets, "load_dataset", load)


def message(data: str, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        list(sources.rows(data, split))
    words = str(caught.value)
    assert "\n" not in words and words.endswith(".")
    return words


def test_a_dataset_gives_the_rows_of_a_file(hub: list[Any], folder: Path) -> None:
    from_file = list(sources.rows(str(folder / "train.jsonl"), "train"))
    assert list(sources.rows("hub:b-mc2/sql-create-context", "train")) == from_file == list(enumerate(ROWS, 1))
    assert hub == [("b-mc2/sql-create-context", None, "train", None)]


def test_splits_are_the_datasets_own(hub: list[Any]) -> None:
    assert [row for _, row in sources.rows("hub:x/y", "validation")] == ROWS[:1]
    assert "has no split 'dev'" in (words := message("hub:x/y", "dev")) and "validation" in words


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("hub:squad", ("squad", None, None)),
        ("hub:a/b.c-d", ("a/b.c-d", None, None)),
        ("hub:a/b:plain text", ("a/b", "plain text", None)),
        ("hub:a/b@refs/convert/parquet", ("a/b", None, "refs/convert/parquet")),
        ("hub:a/b:main_data@v1.0", ("a/b", "main_data", "v1.0")),
    ],
)
def test_names(data: str, name: tuple[str | None, ...]) -> None:
    assert sources.HubName.parse(data) == name


@pytest.mark.parametrize("data", ["hub:", "hub:a b", "hub:../x", "hub:a/b/c", "hub:a/b:", "hub:a/b@"])
def test_names_that_are_none(data: str) -> None:
    assert "is not the name of a dataset" in message(data)


def test_configuration_and_revision_are_passed_on(hub: list[Any]) -> None:
    list(sources.rows("hub:a/b:c@v2", "train"))
    assert hub == [("a/b", "c", "train", "v2")]


def test_a_dataset_that_is_a_program_is_read_from_the_hubs_tables(hub: list[Any], monkeypatch) -> None:
    real = datasets.load_dataset

    def load(name: str, config: str | None, split: str, revision: str | None) -> Any:
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found b.py")
        return real(name, config, split=split, revision=revision)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(list(sources.rows("hub:a/b", "train"))) == 3
    assert hub == [("a/b", None, "train", sources.CONVERTED)]


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in message("hub:a/b")


def test_without_a_network() -> None:
    """The real library, kept off the network by the environment of all tests."""
    assert "can't be reached" in message("hub:nobody/nothing-like-this")


def test_a_dataset_in_the_cache_needs_no_network(hub: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "hub_reachable", lambda: False)
    assert len(list(sources.rows("hub:a/b", "train"))) == 3


FAILURES = {
    "unknown": (
        datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist"),
        "There is no public dataset a/b",
    ),
    "gated": (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset"), "is gated"),
    "no parts": (ValueError("Config name is missing.\nPlease pick one among: ['one', 'two']"), "hub:a/b:CONFIG ('one'"),
    "wrong part": (ValueError("BuilderConfig 'x' not found. Available: ['one']"), "hub:a/b:CONFIG ('one')"),
    "anything": (OSError("disk full\nand more"), "can't be loaded (disk full)"),
    "broken off": (ConnectionError("reset"), "can't be reached"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error, words = FAILURES[name]
    failing(monkeypatch, error)
    assert words in message("hub:a/b")


def test_a_revision_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, datasets.exceptions.DatasetNotFoundError("Revision 'v9' doesn't exist for dataset 'a/b'"))
    assert "a/b with the revision v9" in message("hub:a/b@v9")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "can't be read" in message(str(tmp_path / "missing.jsonl"))
