"""The benchmark: the same prompts with every method, interleaved in one process, on the engine's own clock.

Names are loaded on first use, so results can be read and tabulated without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specstream.bench.baselines import references as references
    from specstream.bench.prompts import Case as Case
    from specstream.bench.prompts import prompts_as_cases as prompts_as_cases
    from specstream.bench.prompts import read_cases as read_cases
    from specstream.bench.prompts import spec_bench as spec_bench
    from specstream.bench.prompts import task_of as task_of
    from specstream.bench.provenance import commit as commit
    from specstream.bench.provenance import described as described
    from specstream.bench.results import result_rows as result_rows
    from specstream.bench.results import total_of as total_of
    from specstream.bench.runner import MethodRuns as MethodRuns
    from specstream.bench.runner import Ours as Ours
    from specstream.bench.runner import bench as bench
    from specstream.bench.runner import runs_of as runs_of
    from specstream.bench.tables import REFERENCES as REFERENCES
    from specstream.bench.tables import categories as categories
    from specstream.bench.tables import differences as differences
    from specstream.bench.tables import table as table

_HOME = {
    "Case": "prompts",
    "prompts_as_cases": "prompts",
    "read_cases": "prompts",
    "spec_bench": "prompts",
    "task_of": "prompts",
    "commit": "provenance",
    "described": "provenance",
    "references": "baselines",
    "result_rows": "results",
    "total_of": "results",
    "Ours": "runner",
    "MethodRuns": "runner",
    "bench": "runner",
    "runs_of": "runner",
    "REFERENCES": "tables",
    "categories": "tables",
    "differences": "tables",
    "table": "tables",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'specstream.bench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"specstream.bench.{_HOME[name]}"), name)
