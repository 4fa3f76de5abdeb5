"""The log of runs in SQLite: every run with its settings, outputs and metrics, every step with its tree."""

from specstream.runlog.database import RunLogError, default_path
from specstream.runlog.export import snapshot, write_jsonl, write_runs_csv, write_steps_csv
from specstream.runlog.filters import SORTS, Filter
from specstream.runlog.recorder import NullRecorder, Recorder
from specstream.runlog.store import RunLog

__all__ = [
    "SORTS",
    "Filter",
    "NullRecorder",
    "Recorder",
    "RunLog",
    "RunLogError",
    "default_path",
    "snapshot",
    "write_jsonl",
    "write_runs_csv",
    "write_steps_csv",
]
