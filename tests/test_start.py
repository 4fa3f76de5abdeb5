"""Starting the page: who counts as the machine's owner, and which checkout is the program's own."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
from click import ClickException
from click.testing import CliRunner

from specstream.bench import provenance
from ui import app as page
from ui import launch
from ui.access_rules import Rules


@pytest.mark.parametrize(
    "arguments, environment, local",
    [
        ([], {}, True),
        (["--port", "8000"], {}, True),
        (["--host", "0.0.0.0"], {}, False),
        (["--host", "127.0.0.1"], {}, False),  # for a proxy on this machine
        ([], {"GRADIO_SERVER_NAME": "127.0.0.1"}, False),
        ([], {"GRADIO_SHARE": "True"}, False),
        ([], {"SPACE_ID": "someone/something"}, False),
        ([], {"SPACE_ID": "someone/something", "SPECSTREAM_DEMO": "0"}, False),
    ],
)
def test_a_page_is_local_only_where_it_was_started_for_this_machine(
    arguments: list[str], environment: dict[str, str], local: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("GRADIO_SERVER_NAME", "GRADIO_SHARE", "SPACE_ID", "SPECSTREAM_DEMO"):
        monkeypatch.delenv(name, raising=False)
    found: list[Rules] = []

    def build(engines: Any, *log: Any) -> None:
        found.append(engines.rules)
        raise KeyboardInterrupt  # nothing is served

    monkeypatch.setattr(page, "build", build)
    CliRunner().invoke(launch.main, ["--toy", "--db", str(tmp_path / "runs.db"), *arguments], env=environment)
    assert [rules.local for rules in found] == [local]


def test_a_package_in_a_strange_repository_names_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True, capture_output=True)

    installed = tmp_path / ".venv" / "lib" / "specstream" / "bench" / "machine.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "-m", "theirs")
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.commit() == ""
    git("add", "--force", ".")  # a copy that they keep in a folder of theirs is not our commit either
    git("commit", "--quiet", "-m", "vendored")
    assert provenance.commit() == ""


def test_a_checkout_names_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "specstream" / "bench" / "machine.py"
    own.parent.mkdir(parents=True)
    own.write_text("")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "__file__", str(own))
    commit = provenance.commit()
    assert len(commit) == 12
    own.write_text("changed")
    assert provenance.commit() == f"{commit}-dirty"


def test_the_toy_model_refuses_what_has_no_effect_on_it(tmp_path: Path) -> None:
    for model in (["--toy"], ["--model", "toy"]):
        done = CliRunner().invoke(launch.main, [*model, "--device", "nosuch", "--db", str(tmp_path / "runs.db")])
        assert done.exit_code == 1 and "for which device nosuch means nothing: omit it." in done.output


def test_a_page_without_its_packages_says_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ui.app", None)
    monkeypatch.delattr("ui.app")
    with pytest.raises(
        ClickException, match=r"not installed: in a checkout, use make run, or pip install '\.\[ui\]'\.$"
    ):
        launch.page_modules()
