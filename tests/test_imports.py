"""Imports: packages are layers without cycles, and each imports only what it may."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STDLIB = sys.stdlib_module_names
FILES = [ROOT / "app.py", *sorted((ROOT / "specstream").rglob("*.py")), *sorted((ROOT / "ui").rglob("*.py"))]
VALUES = {f"specstream.{name}" for name in ("events", "params", "stats", "tree", "info")}
HEAVY, PAGE = {"torch", "transformers", "accelerate"}, {"gradio", "plotly", "ui"}
# From the bottom up: a module imports from its own layer's package and from layers below. A line is one layer; packages
# in one line don't know each other.
LAYERS = (
    ("specstream.events", "specstream.params", "specstream.installation"),
    ("specstream.tree", "specstream.stats", "specstream.info"),
    ("specstream.hub", "specstream.runlog", "specstream.processes"),
    ("specstream.data", "specstream.native"),
    ("specstream.decoding", "specstream.model"),
    ("specstream.streams",),
    ("specstream.adapters",),
    ("specstream.target",),
    ("specstream.engine", "specstream.integrations"),
    ("specstream.divergence", "specstream.testing"),
    ("specstream.session",),
    ("specstream.bench",),
    ("specstream.training",),
    ("specstream.cli",),
    ("specstream.__main__",),
    ("ui.access_rules", "ui.theme", "ui.files", "ui.first_script", "ui.product"),
    ("ui.html",),
    ("ui.state", "ui.charts"),
    ("ui.jobs",),
    ("ui.components.player", "ui.components.race"),
    ("ui.export",),
    ("ui.components",),
    ("ui.tabs",),
    ("ui.api",),
    ("ui.app",),
    ("ui.launch",),
    ("app",),
)


def module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(file): file for file in FILES}


def statements(tree: ast.AST, inside: bool = True) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of a module; with ``inside`` False only those that run when it is imported."""
    for node in ast.iter_child_nodes(tree):
        types_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif inside or not (types_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from statements(node, inside)


@cache
def imports(name: str, inside: bool = True) -> tuple[str, ...]:
    """Full names of the modules, or the names in modules, that a module imports."""
    file, found = MODULES[name], []
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in statements(ast.parse(file.read_text(encoding="utf-8")), inside):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        else:
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [f"{base}.{alias.name}" for alias in node.names]
    return tuple(found)


def target(name: str) -> str | None:
    """The module of ours that an imported name is or lies in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def graph(inside: bool) -> dict[str, set[str]]:
    """Which module of ours imports which; a package's own __init__, which is imported with it, is no edge."""
    found = {name: {t for n in imports(name, inside) if (t := target(n))} for name in MODULES}
    return {name: {t for t in to if not name.startswith(f"{t}.") and t != name} for name, to in found.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """One cycle of a graph, or nothing."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        found = next((c for to in sorted(edges.get(name, ())) if (c := walk(to, [*path, name]))), [])
        done.add(name)
        return found

    return next((c for name in sorted(edges) if (c := walk(name, []))), [])


def layer(name: str) -> tuple[int, str]:
    """The layer of a module, from the bottom up, and its package there."""
    found = [(i, p) for i, line in enumerate(LAYERS) for p in line if name == p or name.startswith(f"{p}.")]
    assert found, f"{name} has no layer: add its package to LAYERS"
    return max(found, key=lambda pair: len(pair[1]))


def within(name: str, modules: set[str]) -> bool:
    return any(name == m or name.startswith(f"{m}.") for m in modules)


def forbidden(name: str) -> set[str]:
    """What a module of ours may never import."""
    if within(name, {"specstream.runlog"}):
        return HEAVY | PAGE
    if within(name, {"specstream"}):
        return PAGE | {"sqlite_utils"} | (set() if within(name, {"specstream.cli"}) else {"specstream.runlog"})
    if within(name, {"ui.html.render", "ui.charts.runs"}):
        return HEAVY | {"gradio", "sqlite_utils", "specstream.runlog"}
    return HEAVY | {"sqlite_utils"}


# What some may import at most, beside the standard library.
ALLOWED = {
    **{name: VALUES for name in VALUES},
    "app": {"specstream", "ui", "click"},
    "specstream.runlog": VALUES
    | {"specstream.runlog", "specstream.__version__", "sqlite_utils", "platformdirs", "filelock"},
}


@pytest.mark.parametrize("inside", [False, True], ids=["at import", "inside functions too"])
def test_no_module_imports_itself_by_way_of_others(inside: bool) -> None:
    assert circle(graph(inside)) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_packages_are_layers() -> None:
    """Imports inside functions and for type checkers count too."""
    own = {"specstream", "ui"}
    wrong = []
    for name, used in graph(inside=True).items():
        if name not in own:
            height, package = layer(name)
            wrong += [(name, to) for to in used - own if layer(to)[1] != package and layer(to)[0] >= height]
    assert wrong == []


def test_imports_keep_the_rules() -> None:
    assert [(name, n) for name in MODULES for n in imports(name) if within(n, forbidden(name))] == []


def test_some_packages_import_little() -> None:
    for package, allowed in ALLOWED.items():
        used = [(name, n) for name in MODULES if within(name, {package}) for n in imports(name)]
        assert [(name, n) for name, n in used if n.split(".")[0] not in STDLIB and not within(n, allowed)] == []


def test_replay_needs_no_torch_and_no_gradio() -> None:
    names = [
        *sorted(VALUES),
        "specstream.adapters.card",
        "specstream.adapters.find",
        "ui.html.render",
        "ui.charts.runs",
    ]
    code = f"import sys, {', '.join(names)}; print({{'torch', 'transformers', 'gradio'}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_the_files_that_are_compiled_are_there() -> None:
    """Their text is part of the key of a compiled layer, so the list must follow a file that moves."""
    from specstream.target.compiled import COMPILED_IN

    assert all((ROOT / "specstream" / name).is_file() for name in COMPILED_IN)


def test_a_passed_self_test_knows_the_code_that_decides_its_numbers() -> None:
    from specstream.target.self_test_cache import sources

    edges, needed, new = graph(True), set[str](), {"specstream.target.self_test"}
    while new:
        needed |= new
        new = {to for name in new for to in edges[name]} - needed
    # These decide no number that it compares: interfaces, names of settings, where files are, the choice among drafts.
    needed -= {f"specstream.{name}" for name in ("decoding.interfaces", "params", "hub.download", "decoding.softmax")}
    assert {str(MODULES[name]) for name in needed} <= {str(file) for file in sources()}
