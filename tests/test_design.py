"""docs/design.md leads to the code: every name in it exists, and every package has its line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
PACKAGES = [p.parent for top in ("specstream", "ui") for p in sorted((ROOT / top).glob("*/__init__.py"))]


def test_every_file_that_is_named_exists() -> None:
    names = set(re.findall(r"`((?:specstream|ui|docs|tests|assets)/[\w./]+)`", DESIGN))
    assert len(names) > 25 and [name for name in names if not (ROOT / name).exists()] == []


def test_what_is_to_be_read_first_is_five_files_that_exist() -> None:
    part = DESIGN.split("## Read this first")[1].split("How one token")[0]
    files = re.findall(r"^\d\. `([^`]+)`", part, re.MULTILINE)
    assert len(files) == 5 and all((ROOT / file).is_file() for file in files)


def test_every_package_has_its_line_and_says_what_it_is() -> None:
    table = DESIGN.split("## Packages")[1].split("\n## ")[0]
    for package in PACKAGES:
        assert f"`{package.name}`" in table or f"`{package.parent.name}.{package.name}`" in table, package
        assert ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))), package


def test_modules_in_the_table_of_packages_exist() -> None:
    for line in DESIGN.split("## Packages")[1].split("\n## ")[0].splitlines():
        if line.startswith("| `specstream.") and line.count("`") > 2:
            first, *rest = re.findall(r"`([^`]+)`", line)
            package = ROOT / first.replace(".", "/")
            for name in rest if package.is_dir() else ():
                near = (package / name, package.parent / name, package / "drafters" / name)
                assert any(f.exists() or f.with_suffix(".py").is_file() for f in near), f"{first}: {name}"


def test_the_table_of_packages_names_every_module_of_the_engine() -> None:
    """Except one file per command and per method; of the page, those that are in no package."""
    rows = [row.split(" | ") for row in DESIGN.split("## Packages")[1].split("\n## ")[0].splitlines() if " | " in row]
    first = {name.rpartition(".")[2] for cells in rows for name in re.findall(r"`([^`]+)`", cells[0])}
    for top in ("specstream", "ui"):
        assert [file.stem for file in (ROOT / top).glob("[!_]*.py") if file.stem not in first] == []
    for package in PACKAGES:
        if package.parent.name == "specstream" and package.name != "cli":
            row = next(" ".join(cells) for cells in rows if f"{package.name}`" in cells[0])
            missing = [file.stem for file in package.glob("[!_]*.py") if f"`{file.stem}`" not in row]
            assert missing == [], package
