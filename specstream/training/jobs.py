"""Training runs as separate processes, one at a time, which outlive the page and the program that started them.

Each has a folder among your adapters, with its record, its progress, its output and finally its adapter, so any
program that opens the folder later finds the run, whether it is still running or not. No torch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from specstream import installation
from specstream.adapters import local
from specstream.data.datasets import HUB
from specstream.training.progress import Progress, Tail, Writer

RECORD, PROGRESS, OUTPUT, DATA = "training.json", "progress.jsonl", "output.log", "data"
PATIENCE = 10.0  # seconds to wait for another program that starts or stops a training run
GRACE = 120.0  # seconds for the current step and its checkpoint after Stop
KILLED = (
    f"It did not end within {GRACE:.0f} seconds of Stop and was killed: progress after its last checkpoint is lost."
)
PROGRAM = tuple(installation.python("specstream"))
QUIET = 10  # niceness: a page that generates at the same time has priority


class RegistryError(ValueError):
    """A training run can't be started, stopped or read; the message is one sentence for the user."""


class Busy(RegistryError):
    """Another training run is active."""


class State(StrEnum):
    """The state of a training run. ``DIED``: it ended before its budget was used up, without being asked to stop."""

    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FINISHED = "finished"
    DIED = "died"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Plan:
    """What to train. ``data`` is a file, which is copied, or ``hub:NAME``; ``options`` are options of ``train``.

    ``owner`` may stop and resume the run. Raises RegistryError for a name that can't be a folder name.
    """

    name: str
    model: str
    task: str
    mode: str
    data: str
    minutes: float
    owner: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}", self.name):
            raise RegistryError(
                f"{self.name!r} can't be the name of an adapter: use up to 60 letters, digits, dots, - and _."
            )

    def command(self, folder: Path) -> list[str]:
        """The command line, without ``python -m specstream``."""
        copy = folder / DATA / self.data  # under its own name, which the adapter's card states
        data = str(copy) if copy.is_file() else self.data
        given = {"model": self.model, "task": self.task, "mode": self.mode, "data": data, "minutes": self.minutes}
        given |= self.options | {"out": folder, "progress": folder / PROGRESS}
        return ["train", *(word for name, value in given.items() for word in (_switch(name), str(value)))]


def _switch(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Record:
    """The record of a training run on disk: its plan, its creation time, its process, whether it was asked to stop,
    and whether it was killed because it did not."""

    plan: Plan
    created: str
    pid: int = 0
    asked: bool = False
    killed: bool = False

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Raises RegistryError for a damaged record."""
        try:
            found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            plan = Plan(**{f.name: found["plan"][f.name] for f in fields(Plan)})
            return cls(plan, str(found["created"]), int(found["pid"]), bool(found["asked"]),
                       bool(found.get("killed")))  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RegistryError(f"The record {folder / RECORD} can't be read: it is damaged.") from error

    def write(self, folder: Path) -> None:
        """Write a new file, then replace the old one, so that a crash leaves one complete."""
        new = folder / f"{RECORD}.new"
        new.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        new.replace(folder / RECORD)


@dataclass(frozen=True)
class Training:
    """A training run and its current state. ``plan`` is None if the record is damaged; ``reason`` says why it died."""

    name: str
    folder: Path
    state: State
    plan: Plan | None
    progress: Progress
    created: str = ""
    reason: str = ""

    @property
    def active(self) -> bool:
        return self.state in (State.RUNNING, State.STOPPING)

    @property
    def resumable(self) -> bool:
        """Whether the run is incomplete and can be continued."""
        return self.plan is not None and self.state in (State.STOPPED, State.DIED)

    @property
    def has_adapter(self) -> bool:
        return local.base(self.folder) is not None


class Registry:
    """All training runs in a folder. Safe to share between threads, and between programs that use the same folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or local.adapters_folder()
        self._guard = threading.Lock()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._tails: dict[str, Tail] = {}

    def all(self) -> list[Training]:
        """Every training run, newest first."""
        try:
            folders = [folder for folder in self.root.iterdir() if (folder / RECORD).is_file()]
        except OSError:  # there is no folder yet
            return []
        return sorted(map(self._training, folders), key=lambda t: t.created, reverse=True)

    def get(self, name: str) -> Training | None:
        """The training run with this name."""
        folder = self.root / name
        return self._training(folder) if name and (folder / RECORD).is_file() else None

    def active(self) -> Training | None:
        """The active training run."""
        return next((t for t in self.all() if t.active), None)

    def like(self, model: str, mode: str) -> Training | None:
        """The newest training run of a model in a mode that made some steps: its cost predicts that of the next."""
        known = (t for t in self.all() if t.plan and t.plan.mode == mode and local.same_model(t.plan.model, model))
        return next((t for t in known if t.progress.seconds and t.progress.step), None)

    def free_name(self, wish: str) -> str:
        """The requested name, with a number appended if it is taken."""
        names = (wish, *(f"{wish}-{number}" for number in range(2, 10_000)))
        return next(name for name in names if not (self.root / name).exists())

    def start(self, plan: Plan) -> Training:
        """Start a training run in a new folder. Raises Busy or RegistryError."""
        folder = self.root / plan.name
        with self._alone(folder):
            self._refuse_second()
            plan = self._furnish(folder, plan)
            self._spawn(folder, Record(plan, datetime.now(UTC).isoformat(timespec="milliseconds")))
        return self._training(folder)

    def _furnish(self, folder: Path, plan: Plan) -> Plan:
        """Create the folder, with a copy of the file to train on; if that fails, nothing is left behind."""
        try:
            folder.mkdir()
        except FileExistsError:
            raise RegistryError(f"There is already an adapter {plan.name}: choose another name.") from None
        if plan.data.startswith(HUB):
            return plan
        try:
            copy = folder / DATA / Path(plan.data).name
            copy.parent.mkdir()
            shutil.copyfile(plan.data, copy)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return replace(plan, data=copy.name)

    @contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """A lock under which no other process starts, stops or deletes a run. System errors become RegistryError."""
        with self._guard, _told(folder):
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / ".lock", timeout=PATIENCE):
                yield

    def resume(self, name: str) -> Training:
        """Resume a run from its checkpoint, or restart it if there is none. Raises Busy or RegistryError."""
        folder = self.root / name
        with self._alone(folder):
            self._refuse_second()
            if (found := self.get(name)) is None or not found.resumable:
                raise RegistryError(f"There is nothing to continue in {name}: start a new training run.")
            self._spawn(folder, Record.read(folder), resume=has_checkpoint(folder))
        return self._training(folder)

    def _refuse_second(self) -> None:
        if other := self.active():
            raise Busy(f"A training run is under way ({other.name}): wait until it ends, or stop it first.")

    def _spawn(self, folder: Path, record: Record, resume: bool = False) -> None:
        Writer(folder / PROGRESS).phase("Starting")
        record = replace(record, pid=0, asked=False, killed=False)
        record.write(folder)  # first, so that the folder is recognised whatever happens next
        command = [*PROGRAM, *record.plan.command(folder), *["--resume"] * resume]
        environment = installation.environment(TQDM_MININTERVAL="30", PYTHONUNBUFFERED="1")
        with (folder / OUTPUT).open("ab") as out:
            child = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        self._children[folder.name] = child
        _be_nice(child.pid)
        replace(record, pid=child.pid).write(folder)

    def stop(self, name: str) -> None:
        """Ask a run to save a checkpoint and end; it is killed after ``GRACE``. Raises RegistryError."""
        folder = self.root / name
        with self._alone(folder):
            record = Record.read(folder)
            if not self._alive(record, folder):
                return
            if not record.asked:
                replace(record, asked=True).write(folder)
                psutil.Process(record.pid).terminate()
                threading.Thread(target=self._end, args=(record, folder), daemon=True, name="stop").start()

    def _end(self, record: Record, folder: Path) -> None:
        """Kill a process that does not exit on its own."""
        try:
            psutil.Process(record.pid).wait(GRACE)
        except psutil.TimeoutExpired:
            if self._alive(record, folder):
                replace(record, asked=True, killed=True).write(
                    folder
                )  # before the kill, after which a new process may write a new record
                psutil.Process(record.pid).kill()
        except psutil.NoSuchProcess:
            return

    def delete(self, name: str) -> None:
        """Delete a training run with its adapter. Raises RegistryError while it is active."""
        with self._alone(self.root / name):
            if (found := self.get(name)) is None:
                return
            if found.active:
                raise RegistryError(f"{name} is still training: stop it first.")
            self._tails.pop(name, None)
            shutil.rmtree(found.folder)

    def _training(self, folder: Path) -> Training:
        progress = self._progress(folder)
        try:
            record = Record.read(folder)
        except RegistryError as error:
            return Training(folder.name, folder, State.DAMAGED, None, progress, reason=str(error))
        state = self._state(record, folder, progress)
        reason = "" if state is not State.DIED else KILLED if record.killed else last_words(folder)
        return Training(folder.name, folder, state, record.plan, progress, record.created, reason)

    def _progress(self, folder: Path) -> Progress:
        return self._tails.setdefault(folder.name, Tail(folder / PROGRESS)).read()

    def _state(self, record: Record, folder: Path, progress: Progress) -> State:
        if self._alive(record, folder):
            return State.STOPPING if record.asked else State.RUNNING
        progress = self._progress(folder)  # read again: the run may have ended in the meantime
        if progress.ended and not progress.stopped:
            return State.FINISHED
        return State.STOPPED if progress.ended or (record.asked and not record.killed) else State.DIED

    def _alive(self, record: Record, folder: Path) -> bool:
        """Whether the process of a run is alive. It must also have the folder among its arguments, because process ids
        are reused."""
        child = self._children.get(folder.name)
        if child is not None and child.pid == record.pid:
            return child.poll() is None
        try:
            process = psutil.Process(record.pid)
            return process.status() != psutil.STATUS_ZOMBIE and str(folder) in process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False


def has_checkpoint(folder: Path) -> bool:
    """Whether a training run can be resumed where it stopped."""
    found = folder.glob("checkpoint*")  # those of heads include their kind; one that ends in .new is incomplete
    return any(f.is_dir() and f.suffix != ".new" for f in found)


def last_words(folder: Path) -> str:
    """Why a training run died, from the end of its output."""
    try:
        with (folder / OUTPUT).open("rb") as out:
            out.seek(max(0, out.seek(0, os.SEEK_END) - 8192))
            lines = out.read().decode("utf-8", errors="replace").replace("\r", "\n").splitlines()
    except OSError:
        lines = []
    if errors := [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]:
        return errors[-1]
    return "It ended without a message, as when memory runs out or the machine is switched off."


def _be_nice(pid: int) -> None:
    try:
        if os.name == "posix":
            psutil.Process(pid).nice(QUIET)
    except psutil.Error:  # it has ended already
        return


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turn system errors into RegistryError."""
    try:
        yield
    except psutil.Error as error:
        raise RegistryError(f"The process of {folder.name} can't be reached ({error}).") from error
    except OSError as error:
        raise RegistryError(
            f"{folder} can't be read or written ({error.strerror or error}): free or unlock that folder, "
            "or set SPECSTREAM_HOME to another one."
        ) from error
