"""The database file: its path, connections, the processes writing to it, and errors as sentences."""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_data_path
from sqlite_utils import Database

from specstream.runlog.migrations import migrations

MEMORY = ":memory:"  # in SQLite, a database that lives as long as one connection; every call here opens its own
PATIENCE = 10.0  # seconds to wait for another writer before an error
_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
_OFF = {"off", "0", "no", "false"}


class RunLogError(ValueError):
    """A request that the log can't fulfil; the message is one sentence for the user."""


def switched_off(variable: str) -> bool:
    """Whether an environment variable is off, 0, no or false."""
    return os.environ.get(variable, "").strip().lower() in _OFF


def default_path() -> Path:
    """``SPECSTREAM_DB``, or a file in the user's data folder."""
    if chosen := os.environ.get("SPECSTREAM_DB", "").strip():
        return Path(chosen).expanduser()
    return user_data_path("specstream", appauthor=False) / "runs.db"


def new_id() -> str:
    """A ULID: 26 characters that begin with the time in milliseconds, so ids sort by age."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return "".join(_LETTERS[number >> shift & 31] for shift in range(125, -1, -5))


class LogFile:
    """A migrated database. Every connection belongs to its caller, who closes it.

    Every writing process locks a file of its own beside the database. The system releases the lock however the
    process ends, so a run whose writer's lock is free was interrupted. Process ids are reused, so they prove nothing.
    """

    def __init__(self, path: Path) -> None:
        if MEMORY in path.name:
            raise RunLogError(f"{MEMORY} keeps nothing: choose a file with SPECSTREAM_DB, or set SPECSTREAM_LOG=off.")
        if path.exists() and not path.is_file():  # SQLite would put a journal beside a device
            raise RunLogError(f"The log {path} can't be written, since it is not a file: name one with SPECSTREAM_DB.")
        self.path = path
        self._mutex = threading.Lock()
        self._writer: str | None = None
        with self.errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._migrate()

    def _migrate(self) -> None:
        with self.connect(foreign_keys=False) as db:  # off: a migration that rebuilds a table must not cascade
            self._refuse_foreign(db)
            self._refuse_newer(db)
            if switched_off("SPECSTREAM_WAL"):
                db.disable_wal()
            else:
                _enable_wal(db)
            with self.writing(db):  # if two processes open a new file, the second waits and finds it migrated
                migrations.apply(db)

    def _refuse_foreign(self, db: Database) -> None:
        """Leave a database alone that has contents, but none of ours: migrating it would write into it."""
        theirs = {*db.table_names(), *db.view_names()} - {migrations.migrations_table}
        if theirs and not migrations.applied(db):
            raise RunLogError(f"{self.path} is a database of another program: choose another file with SPECSTREAM_DB.")

    def _refuse_newer(self, db: Database) -> None:
        with Database(memory=True, execute_plugins=False) as empty:
            ours = {m.name for m in migrations.pending(empty)}
        if newer := sorted({m.name for m in migrations.applied(db)} - ours):
            raise RunLogError(f"{self.path} was written by a newer version ({newer[-1]}): update specstream.")

    @contextmanager
    def connect(self, foreign_keys: bool = True, any_thread: bool = False) -> Iterator[Database]:
        """A connection for the duration of the block. With ``any_thread`` the caller serialises access."""
        with self.errors():
            db = self.open(foreign_keys, any_thread)
            try:
                yield db
            finally:
                db.close()

    def open(self, foreign_keys: bool = True, any_thread: bool = False) -> Database:
        """A connection that the caller closes."""
        conn = sqlite3.connect(self.path, timeout=PATIENCE, check_same_thread=not any_thread)
        try:
            db = Database(conn, execute_plugins=False)
            db.execute(f"PRAGMA foreign_keys={'on' if foreign_keys else 'off'}")
            db.execute("PRAGMA synchronous=normal")
        except BaseException:
            conn.close()
            raise
        return db

    @contextmanager
    def writing(self, db: Database) -> Iterator[None]:
        """One transaction. It takes the write lock at once: one that reads first may fail when it comes to write."""
        with self.errors():
            db.execute("BEGIN IMMEDIATE")
            try:
                yield
                db.commit()
            except BaseException:
                db.rollback()
                raise

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn SQLite and file system errors into RunLogError."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:  # filelock.Timeout is an OSError
            raise RunLogError(_sentence(self.path, error)) from error

    def writer(self) -> str:
        """The name under which this process writes; the first call takes its lock."""
        with self._mutex, self.errors():
            if self._writer is None:
                name = new_id()
                lock = FileLock(self._lock_path(name), thread_local=False)
                lock.acquire(timeout=0)
                weakref.finalize(self, _let_go, lock, os.getpid())
                self._writer = name
            return self._writer

    def living_writers(self) -> set[str]:
        """Names of the processes that may still write; the locks of dead ones are removed."""
        files = self.path.parent.glob(f"{_glob_escape(self.path.name)}.*.lock")
        return {f.name.removeprefix(f"{self.path.name}.").removesuffix(".lock") for f in files if _held(f)}

    def _lock_path(self, writer: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{writer}.lock")


def _enable_wal(db: Database) -> None:
    """Enable WAL, retrying for ``PATIENCE``: SQLite fails at once if two connections change the journal mode."""
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            return db.enable_wal()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.005)


def _glob_escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _held(file: Path) -> bool:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    with suppress(OSError):  # before the release, so that nobody can take it in between
        file.unlink()
    lock.release()
    return False


def _let_go(lock: FileLock, process: int) -> None:
    if os.getpid() != process:  # a forked child: the lock belongs to its parent
        return
    with suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()


def _sentence(path: Path, error: Exception) -> str:
    words = str(error).strip().rstrip(".") or type(error).__name__
    if isinstance(error, Timeout) or "locked" in words:
        return f"The log {path} is in use by another process: close that process, or try again."
    if isinstance(error, sqlite3.IntegrityError):
        return f"The log {path} refused an entry ({words})."
    if isinstance(error, sqlite3.Error) and any(w in words for w in ("not a database", "malformed", "no such")):
        return f"{path} is not a readable log ({words}): move it away, or choose another file with SPECSTREAM_DB."
    hint = "choose another file with SPECSTREAM_DB, or switch the log off with SPECSTREAM_LOG=off"
    return f"The log {path} can't be written ({words}): {hint}."
