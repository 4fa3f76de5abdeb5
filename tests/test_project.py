"""The project as a whole: pins, the Spaces front matter, what README promises."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest

import specstream

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
STDLIB = sys.stdlib_module_names
OPTIONAL = {
    "specstream.bench.evaluation",
    "specstream.data.datasets",
}  # may import requirements-extra.txt, inside functions
NOT_OURS = {"checkpoints", "runs"}  # what training and use leave in a working tree


# ---- pins ------------------------------------------------------------------------------------------------------------


def pins(file: str) -> dict[str, str]:
    """Package name (as imported) to version."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("-r ")]
    return {name.replace("-", "_").lower(): exact for name, exact in (line.split("==") for line in lines)}


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-extra.txt", "requirements-dev.txt"])
def test_every_pin_is_exact_and_installed(file: str) -> None:
    for name, exact in pins(file).items():
        assert re.fullmatch(r"\d+(\.\d+)+", exact), name
        assert version(name).split("+")[0] == exact, name


@pytest.mark.parametrize("name", sorted(OPTIONAL))
def test_what_is_optional_is_imported_inside_functions(name: str) -> None:
    code = f"import sys, {name}; print({set(pins('requirements-extra.txt'))} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_specstream_is_this_repository_and_never_the_package_of_that_name() -> None:
    assert Path(specstream.__file__).resolve().parent == ROOT / "specstream"
    assert "specstream" not in pins("requirements.txt") | pins("requirements-dev.txt")


def test_everything_imported_is_pinned() -> None:
    runtime, extra, dev = (set(pins(f"requirements{kind}.txt")) for kind in ("", "-extra", "-dev"))
    own = {"specstream", "ui", "app", "tests", "docs"}
    for file in python_files():
        allowed = runtime | (extra if module(file) in OPTIONAL else set())
        allowed |= extra | dev if file.is_relative_to(ROOT / "tests") or file.is_relative_to(ROOT / "docs") else set()
        foreign = {name.split(".")[0] for name in imports(file)} - STDLIB - own
        assert {n for n in foreign if n.lower() not in allowed} == set(), file


# ---- README ----------------------------------------------------------------------------------------------------------


def front_matter() -> dict[str, str]:
    block = README.split("---\n")[1]
    return dict(re.findall(r'^(\w+): "?([^"\n]+)"?$', block, re.MULTILINE))


def test_front_matter_agrees_with_the_pins_and_files() -> None:
    matter = front_matter()
    assert matter["sdk"] == "gradio"
    assert matter["sdk_version"] == pins("requirements.txt")["gradio"]
    assert matter["python_version"] == "3.11"
    assert (ROOT / matter["app_file"]).is_file()


def test_names_in_the_file_map_exist() -> None:
    table = README.split("## Files")[1].split("##")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(names) > 8
    assert [n for n in names if not (ROOT / n).exists()] == []


def test_local_links_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_make_targets_in_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE))
    assert {"run", "test"} <= named <= targets


@pytest.mark.parametrize("line", re.findall(r"^python -m specstream .+$", README, re.MULTILINE))
def test_commands_in_readme_parse(line: str) -> None:
    from specstream.cli import cli

    command: click.Command | None = cli
    words = shlex.split(line)[3:]
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
    assert command is not None
    command.make_context(command.name, words).close()


# ---- files and their imports -----------------------------------------------------------------------------------------


def python_files() -> list[Path]:
    return [f for f in our_files() if f.suffix == ".py"]


def our_files() -> list[Path]:
    """Every file of the project, without what is hidden (except .ci), made by tools, or left by use."""
    found = []
    for file in ROOT.rglob("*"):
        parts = file.relative_to(ROOT).parts
        hidden = any(p.startswith(".") for p in parts[:-1]) and parts[0] != ".ci"
        if file.is_file() and not hidden and "__pycache__" not in parts and parts[0] not in NOT_OURS:
            found.append(file)
    return found


def imports(file: Path) -> Iterator[str]:
    """Full names of the modules (or names in modules) that a file imports, anywhere in it."""
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def module(file: Path) -> str:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


# ---- the tree --------------------------------------------------------------------------------------------------------


def test_no_file_names_a_folder_of_the_machine_it_was_written_on() -> None:
    marks = [b"/wo" + b"rk/", b"/ho" + b"me/" + b"root", b"/ro" + b"ot/"]
    assert [(f, m) for f in our_files() for m in marks if m in f.read_bytes()] == []


def test_continuous_integration_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().rstrip().endswith("make test")


def test_what_the_page_offers_first_needs_no_more_than_the_packages_to_run() -> None:
    """Fine-tune begins with the task's public dataset."""
    assert "datasets" in pins("requirements.txt")
