"""The benchmark: the same prompts with every method, interleaved in one process, on the engine's own clock."""

from specstream.bench.cases import Case, prompts_as_cases, spec_bench
from specstream.bench.machine import commit, described, machine
from specstream.bench.outside import LABELS as REFERENCES
from specstream.bench.outside import references
from specstream.bench.results import decode_tokens, result_rows, table, total_of
from specstream.bench.runner import Ours, Row, bench, runs_of

__all__ = [
    "REFERENCES",
    "Case",
    "Ours",
    "Row",
    "bench",
    "commit",
    "decode_tokens",
    "described",
    "machine",
    "prompts_as_cases",
    "references",
    "result_rows",
    "runs_of",
    "spec_bench",
    "table",
    "total_of",
]
