"""The project as a whole: pins, the Spaces front matter, what README promises."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest

import specstream
from tests.conftest import SLOW

ROOT = Path(__file__).resolve().parent.parent
DOCS = {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
    for file in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
}
README = DOCS["README.md"]
STDLIB = sys.stdlib_module_names
OPTIONAL = {
    "specstream.bench.evaluation",
    "specstream.data.datasets",
}  # may import requirements-extra.txt, inside functions
PACKAGES = {"PIL": "pillow"}  # of imported names that differ
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


def test_the_wheel_needs_what_is_pinned_from_the_pinned_version_on_or_earlier() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [word for words in project["optional-dependencies"].values() for word in words]
    known = pins("requirements.txt") | pins("requirements-extra.txt")
    ranges = {}
    for word in [*project["dependencies"], *extras]:
        if not word.startswith(f"{project['name']}["):
            name, least = word.split(",")[0].split(">=")
            ranges[name.replace("-", "_")] = [int(part) for part in least.split(".")]
    assert set(ranges) == set(known)
    assert [n for n, least in ranges.items() if [int(part) for part in known[n].split(".")] < least] == []


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
    own = {"specstream", "ui", "app", "tests", "scripts"}
    for file in python_files():
        allowed = runtime | (extra if module(file) in OPTIONAL else set())
        allowed |= extra | dev if file.relative_to(ROOT).parts[0] in ("tests", "scripts") else set()
        foreign = {name.split(".")[0] for name in imports(file)} - STDLIB - own
        assert {n for n in foreign if PACKAGES.get(n, n.lower()) not in allowed} == set(), file


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
    table = DOCS["docs/README.md"].split("## Files")[1]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(names) > 8
    assert [n for n in names if not (ROOT / n).exists()] == []


def test_readme_fits_on_a_page_and_the_index_names_every_document() -> None:
    assert len(README.splitlines()) <= 110
    index = DOCS["docs/README.md"]
    assert [name for name in DOCS if name.startswith("docs/") and f"({name[5:]})" not in index] == ["docs/README.md"]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")


@pytest.mark.parametrize("name", DOCS)
def test_local_links_exist(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", DOCS[name]):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), link


@pytest.mark.parametrize("name", DOCS)
def test_files_named_in_documents_exist(name: str) -> None:
    """The appendix names files as they were at the time."""
    named = re.findall(r"`((?:specstream|ui|tests|docs|scripts|assets)/[\w/.-]+\.\w+)`", DOCS[name])
    assert name.endswith("appendix.md") or [file for file in named if not (ROOT / file).exists()] == []


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        found for text in DOCS.values() for found in re.findall(r"(?:^|`)make ([\w-]+)(?=$|`| [A-Z]+=)", text, re.M)
    }
    assert {"run", "test", "test-fast", "check"} <= named <= targets


def commands(start: str) -> list[tuple[str, str]]:
    """Document and line of every command that begins with ``start``, except in the appendix, which has older ones."""
    lines = [(name, line) for name, text in DOCS.items() for line in text.splitlines() if line.startswith(start)]
    return [(name, line) for name, line in lines if not name.endswith("appendix.md")]


@pytest.mark.parametrize("name, line", commands("python -m specstream "))
def test_commands_in_documents_parse(name: str, line: str) -> None:
    from specstream.cli import cli

    command: click.Command | None = cli
    words = shlex.split(line)[3:]
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
    assert command is not None, name
    command.make_context(command.name, words).close()


def test_scripts_named_in_documents_exist() -> None:
    named = {script for text in DOCS.values() for script in re.findall(r"python -m (scripts\.\w+)", text)}
    assert len(named) > 5
    assert [script for script in named if not (ROOT / f"{script.replace('.', '/')}.py").exists()] == []


def test_the_table_in_readme_is_that_of_the_benchmarks() -> None:
    table = README.split("writes this table -->\n")[1].split("<!-- end")[0]
    assert len(table.splitlines()) == 6 and table in DOCS["docs/benchmarks.md"]


@pytest.mark.real_model
def test_the_python_in_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    assert len(code) == 1
    exec(compile(code[0], "README.md", "exec"), {})
    text, tokens_per_step = capsys.readouterr().out.rsplit(maxsplit=1)
    assert "Salted Fig" in text and float(tokens_per_step) > 1


# ---- files and their imports -----------------------------------------------------------------------------------------


def variables(file: Path) -> Iterator[str]:
    """The environment variables that a module reads, named by a literal or by a constant of the module."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    named = {
        target.id: node.value.value
        for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets if isinstance(target, ast.Name)
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            read = node.args[:1] if called in ("os.environ.get", "os.getenv", "switched_off") else []
            read += [word.value for word in node.keywords if word.arg == "envvar"]
            values = (named.get(at.id) if isinstance(at, ast.Name) else ast.literal_eval(at) for at in read)
            yield from (str(value) for value in values if value)


def test_every_environment_variable_that_is_read_is_documented() -> None:
    read = {name for top in ("specstream", "ui") for file in (ROOT / top).rglob("*.py") for name in variables(file)}
    documented = set(re.findall(r"`([A-Z_]+)`", DOCS["docs/spaces.md"].split("## Environment variables")[1]))
    assert len(read) > 12 and read - documented == set()


def python_files() -> list[Path]:
    return [f for f in our_files() if f.suffix == ".py"]


def our_files() -> list[Path]:
    """Every file of the project, except hidden ones (but with .ci), tool output, and files left by use."""
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


def test_files_of_slow_tests_exist() -> None:
    assert [name for name in SLOW if not (ROOT / "tests" / name).is_file()] == []


def test_continuous_integration_runs_make_check() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().rstrip().endswith("make check")


def test_what_the_page_offers_first_needs_no_more_than_the_packages_to_run() -> None:
    """Fine-tune begins with the task's public dataset."""
    assert "datasets" in pins("requirements.txt")
