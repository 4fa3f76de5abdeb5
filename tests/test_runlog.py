"""The log: round trips, processes that die or collide, search, export, and files that can't be used."""

from __future__ import annotations

import csv
import io
import json
import math
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlite_utils import Database, Migrations

from specstream.events import (
    Agreement,
    Draft,
    Event,
    Fate,
    Finished,
    Lane,
    Origin,
    Reason,
    Started,
    Step,
    Token,
    Verdict,
)
from specstream.info import EngineInfo
from specstream.runlog import (
    SORTS,
    Filter,
    RunLog,
    RunLogError,
    default_path,
    migrations,
    snapshot,
    write_jsonl,
    write_runs_csv,
    write_steps_csv,
)
from specstream.runlog.filters import order
from specstream.runlog.recorder import INTERVAL
from specstream.runlog.schema import COLUMNS, markdown
from specstream.runlog.serialization import dumps
from specstream.runlog.store import LISTED
from specstream.stats import summarize

ROOT = Path(__file__).parents[1]
INFO = EngineInfo(
    "tiny", "scripted", "tiny-adapter", "demo", "shared", "cpu", "the only one", "float32", "exact", 10, 2, 2, 64,
    notes=("A note.",), versions={"torch": "0.0"},
)  # fmt: skip
NAMES = [m.name for m in migrations.migrations.pending(Database(memory=True))]


def step(index: int, text: str) -> Step:
    """A step that emits one drafted and one target token out of a tree of three nodes."""
    draft = Draft(
        (7, 8, 9), (-1, -1, 0), (0.5, 0.25, 0.1), (Fate.ACCEPTED, Fate.REJECTED, Fate.REJECTED), (0.75, 0.1, None),
        ("a", 'quote"', "ü\n"),
    )  # fmt: skip
    tokens = (Token(7, text, Origin.DRAFT, 1, 0, -0.25), Token(10 + index, "!", Origin.TARGET, logprob=-1 / 3))
    return Step(index, draft, tokens, {"draft": 0.01, "verify": 0.2, "accept": 0.001, "keep": 0.002}, 4, 6)


def events(method: str = "streaming", words: str = "one two", reason: Reason = Reason.EOS) -> list[Event]:
    first = Step(0, Draft(), (Token(1, "Start ", Origin.TARGET, logprob=-0.1),), {"verify": 0.5}, 5, 2)
    steps = [step(i, word + " ") for i, word in enumerate(words.split(), 1)]
    return [Started(method, 5, {"seed": 3, "stop": ["x"]}), first, *steps, Finished(reason, tail="…")]


def write(log: RunLog, prompt: str = "a prompt", words: str = "one two", **more: str) -> str:
    method = more.pop("method", "streaming")
    with log.start(INFO, prompt, "demo", method, {"seed": 3}, **more) as recorder:
        for event in events(method, words):
            recorder.add(Lane.METHOD, event)
    return recorder.run_id


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path / "runs.db")


def child(code: str, *args: object, **options: object) -> subprocess.Popen[str]:
    """A process that runs ``code`` with this module's names."""
    command = [sys.executable, "-c", "from tests.test_runlog import *\n" + code, *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


def test_events_come_back_as_they_were(log: RunLog) -> None:
    ours, standard = events(), events("standard", "one")
    with log.start(INFO, "tell me", "demo", "streaming", {"budget": 3}, visitor="v1") as recorder:
        for lane, lane_events in ((Lane.METHOD, ours), (Lane.BASELINE, standard)):
            for event in lane_events:
                recorder.add(lane, event)
        recorder.verdict(Verdict(Agreement.TIE, 4, "A tie.", 4, 0.125, 1.5))
    assert log.events(recorder.run_id, Lane.METHOD) == ours
    assert log.events(recorder.run_id, "baseline") == standard
    run = log.run(recorder.run_id)
    expected = {
        "status": "finished", "prompt": "tell me", "visitor": "v1", "settings": {"budget": 3}, "model": "tiny",
        "adapter": "tiny-adapter", "device": "cpu", "dtype": "float32", "output": "Start one !two !…",
        "token_ids": [1, 7, 11, 7, 12], "baseline_output": "Start one !…", "agreement": "tie", "compared": 4,
        "position": 4, "margin": 0.125, "speedup": 1.5, "message": "A tie.", "error": None, "star": False,
        "stats": json.loads(json.dumps(summarize(ours).to_dict())),
        "baseline_stats": json.loads(json.dumps(summarize(standard).to_dict())),
    }  # fmt: skip
    assert {name: run[name] for name in expected} == expected
    assert run["info"]["versions"] == {"torch": "0.0"}
    assert run["started_utc"] <= run["finished_utc"]
    assert run["tokens_per_step"] == 2.0


@pytest.mark.parametrize("cut", range(5))
def test_a_run_that_was_cut_off_is_stopped_and_keeps_its_text(log: RunLog, cut: int) -> None:
    recorder = log.start(INFO, "p", "", "streaming", {})
    for event in events()[:cut]:
        recorder.add(Lane.METHOD, event)
    recorder.close()
    recorder.close()
    run = log.run(recorder.run_id)
    assert run["status"] == "stopped"
    assert log.events(recorder.run_id) == events()[:cut]
    assert (run["output"] or "") == "".join(t.text for e in events()[:cut] if isinstance(e, Step) for t in e.tokens)


def test_status_follows_from_the_events(log: RunLog) -> None:
    with log.start(INFO, "p", "", "streaming", {}) as stopped:
        for event in events(reason=Reason.STOPPED):
            stopped.add(Lane.METHOD, event)
    with log.start(INFO, "p", "", "streaming", {}) as failed:
        failed.add(Lane.METHOD, Started("streaming", 1))
        failed.add(Lane.METHOD, Finished(Reason.ERROR, "It broke."))
    with pytest.raises(RuntimeError), log.start(INFO, "p", "", "streaming", {}) as raised:
        raise RuntimeError("out of memory")
    with pytest.raises(KeyboardInterrupt), log.start(INFO, "p", "", "streaming", {}) as interrupted:
        raise KeyboardInterrupt
    found = [(log.run(r.run_id)["status"], log.run(r.run_id)["error"]) for r in (stopped, failed, raised, interrupted)]
    assert found == [("stopped", None), ("error", "It broke."), ("error", "out of memory"), ("stopped", None)]


def test_steps_are_saved_within_the_interval_and_a_running_run_can_be_read(log: RunLog) -> None:
    recorder = log.start(INFO, "p", "", "streaming", {})
    for event in events()[:3]:
        recorder.add(Lane.METHOD, event)
    deadline = time.monotonic() + 200 * INTERVAL  # a busy machine
    while not log.events(recorder.run_id) and time.monotonic() < deadline:
        time.sleep(INTERVAL / 10)
    assert log.events(recorder.run_id) == events()[:3]
    assert (log.run(recorder.run_id)["status"], log.run(recorder.run_id)["output"]) == ("running", "Start one !")
    with pytest.raises(RunLogError, match="still being written"):
        log.delete(recorder.run_id)
    recorder.close()
    with pytest.raises(RunLogError, match="is closed"):
        recorder.add(Lane.METHOD, events()[3])


def test_add_does_not_commit_per_token(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[int] = []
    original = log.file.writing
    monkeypatch.setattr(log.file, "writing", lambda db: commits.append(1) or original(db))
    recorder = log.start(INFO, "p", "", "standard", {})
    recorder.add(Lane.METHOD, Started("standard", 1))
    began = time.monotonic()
    for index in range(500):
        recorder.add(Lane.METHOD, step(index, "w "))
    recorder.close()
    assert len(commits) <= 4 + (time.monotonic() - began) / INTERVAL
    assert len(log.events(recorder.run_id)) == 501


WRITE_AND_WAIT = """
log = RunLog(sys.argv[1])
recorder = log.start(INFO, "killed prompt", "demo", "streaming", {})
for event in events()[:4]:
    recorder.add(Lane.METHOD, event)
while len(log.events(recorder.run_id)) < 4:
    time.sleep(0.02)
recorder.add(Lane.METHOD, step(3, "too late"))
print(recorder.run_id, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")
def test_kill_9_leaves_finished_steps_and_an_interrupted_run(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    process = child(WRITE_AND_WAIT, path)
    try:
        run_id = process.stdout.readline().strip()  # type: ignore[union-attr]
        assert RunLog(path).run(run_id)["status"] == "running"  # its writer lives: opening must not touch it
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    log = RunLog(path)
    run = log.run(run_id)
    saved = log.events(run_id)
    assert run["status"] == "interrupted"
    assert saved[:4] == events()[:4]
    assert run["output"] == "".join(t.text for e in saved if isinstance(e, Step) for t in e.tokens)
    assert run["output"].startswith("Start one !two !")
    assert [r["id"] for r in log.runs(search="killed two")] == [run_id]
    with log.file.connect() as db:
        assert db.execute("pragma integrity_check").fetchone()[0] == "ok"
    assert list(tmp_path.glob("*.lock")) == []  # the dead writer's lock is gone


def test_a_run_of_the_same_process_is_not_taken_for_dead(log: RunLog) -> None:
    recorder = log.start(INFO, "p", "", "streaming", {})
    recorder.add(Lane.METHOD, Started("streaming", 1))
    again = RunLog(log.path)
    assert again.run(recorder.run_id)["status"] == "running"
    recorder.close()
    assert again.run(recorder.run_id)["status"] == "stopped"


def test_a_process_that_ends_leaves_no_lock(tmp_path: Path) -> None:
    process = child("write(RunLog(sys.argv[1]))", tmp_path / "runs.db")
    process.communicate()
    assert process.returncode == 0
    assert [f.name for f in tmp_path.iterdir()] == ["runs.db"]


def test_six_threads_write_at_once(log: RunLog) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(3):
                write(log, f"thread{number} turn{turn}", "w " * 30)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert log.count() == 18
    assert all(len(log.events(run)) == 33 for run in log.ids())
    assert {r["status"] for r in log.runs()} == {"finished"}


def test_processes_that_open_a_new_file_at_once(tmp_path: Path) -> None:
    """All wait on a pipe, so that they migrate at the same time."""
    code = "sys.stdin.readline()\nlog = RunLog(sys.argv[1])\nwrite(log)\nprint(log.count())"
    processes = [child(code, tmp_path / "runs.db", stdin=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        process.stdin.write("go\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    outputs = [process.communicate()[0] for process in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], outputs
    assert RunLog(tmp_path / "runs.db").count() == 3


def test_threads_that_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Closer together than processes can be started; SQLite serialises them all the same."""
    failures: list[BaseException] = []

    def work(barrier: threading.Barrier, path: Path) -> None:
        try:
            barrier.wait()
            RunLog(path)
        except BaseException as error:
            failures.append(error)

    for number in range(10):
        barrier = threading.Barrier(6)
        threads = [threading.Thread(target=work, args=(barrier, tmp_path / f"{number}.db")) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_new_file_waits_for_who_writes_before_it_changes_the_journal(tmp_path: Path) -> None:
    """SQLite refuses this change at once, whatever the connection's patience."""
    path = tmp_path / "runs.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, other.rollback)
    timer.start()
    try:
        assert RunLog(path).count() == 0
    finally:
        timer.join()
        other.close()


def test_a_recorder_may_change_threads(log: RunLog) -> None:
    recorder = log.start(INFO, "p", "", "streaming", {})
    for event in events():
        thread = threading.Thread(target=recorder.add, args=(Lane.METHOD, event))
        thread.start()
        thread.join()
    thread = threading.Thread(target=recorder.close)
    thread.start()
    thread.join()
    assert log.events(recorder.run_id) == events()


def _schema(path: Path) -> list[tuple[str, ...]]:
    conn = sqlite3.connect(path)
    try:
        return conn.execute("select type, name, sql from sqlite_master order by type, name").fetchall()
    finally:
        conn.close()


@pytest.mark.parametrize("version", range(len(NAMES) + 1))
def test_every_earlier_version_migrates_and_keeps_its_runs(tmp_path: Path, version: int) -> None:
    path = tmp_path / "old.db"
    with Database(path) as old:
        migrations.migrations.apply(old, stop_before=NAMES[version:])
        if version:
            row = {"id": "OLD", "started_utc": "t", "status": "finished", "method": "standard"}
            old.table("runs").insert(row | {"prompt": "ancient words"})
    log = RunLog(path)
    assert [r["id"] for r in log.runs(search="ancient")] == (["OLD"] if version else [])
    write(log)
    assert log.count() == 1 + bool(version)
    RunLog(tmp_path / "new.db")
    assert _schema(path) == _schema(tmp_path / "new.db")


def test_what_was_copied_is_told_node_by_node_after_the_migration(tmp_path: Path) -> None:
    path, nodes = tmp_path / "old.db", {"tokens": [5, 6], "parents": [-1, 0], "probs": [1.0, 1.0], "fate": []}
    words = '"copied":true, "copied":false'  # a text, which stays as it is
    with Database(path) as old:
        migrations.migrations.apply(old, stop_before="m007_copied_nodes")
        run = {"id": "R", "started_utc": "t", "status": "finished", "method": "streaming", "prompt": "x"}
        old.table("runs").insert(run | {"settings_json": '{"method":{"lookup":-1,"width":4}}'})
        for lane, lookup in (("method", 2), ("baseline", 0)):
            old.table("lanes").insert({"run_id": "R", "lane": lane, "method": "streaming", "prompt_tokens": 1,
                                       "settings_json": dumps({"method": {"lookup": lookup}})})  # fmt: skip
        steps = [(nodes, True), ({name: [] for name in nodes}, False), (nodes, False)]
        for index, (draft, copied) in enumerate(steps):
            row = {"run_id": "R", "lane": "method", "idx": index, "tokens_json": "[]", "seconds_json": "{}", "rows": 1}
            values = draft | {"target_probs": [], "texts": [words] * len(draft["tokens"]), "copied": copied}
            old.table("steps").insert(row | {"stream_rows": 0, "draft_json": dumps(values)})
    log = RunLog(path)
    started, *events = log.events("R")
    assert [event.draft.copied for event in events] == [(True, True), (), ()]
    assert events[0].draft.texts == (words, words)
    assert started.settings == {"method": {"copies": "on"}}
    assert log.events("R", Lane.BASELINE)[0].settings == {"method": {"copies": "off"}}
    assert log.run("R")["settings"] == {"method": {"width": 4}}


def test_a_later_migration_may_rebuild_the_table(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write(log, "kept prompt")
    later = Migrations(migrations.migrations.name)
    later._migrations = [*migrations.migrations._migrations]

    @later()
    def m900_rename(db: Database) -> None:
        db.table("runs").transform(types={"task": str}, defaults={"task": "none"})

    monkeypatch.setattr("specstream.runlog.database.migrations", later)
    again = RunLog(log.path)
    assert again.events(run) == events()
    assert again.count(search="kept") == 1
    monkeypatch.undo()
    with pytest.raises(RunLogError, match="newer version .m900_rename."):
        RunLog(log.path)


def test_a_migration_that_fails_leaves_the_old_version(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _schema(log.path)
    later = Migrations(migrations.migrations.name)
    later._migrations = [*migrations.migrations._migrations]

    @later()
    def m900_whole(db: Database) -> None:
        db.table("runs").add_column("whole", str)

    @later()
    def m901_half(db: Database) -> None:
        db.table("runs").add_column("half", str)
        db.execute("insert into nowhere values (1)")

    monkeypatch.setattr("specstream.runlog.database.migrations", later)
    with pytest.raises(RunLogError):
        RunLog(log.path)
    assert _schema(log.path) == before


def test_search_covers_prompt_output_and_note(log: RunLog) -> None:
    first = write(log, "Weather in Köln", "rain falling")
    second = write(log, "A recipe", "soup")
    log.set_note(second, "weather-proof, don't lose")
    assert [r["id"] for r in log.runs(search="weather")] == [second, first]
    assert [r["id"] for r in log.runs(search="köln falls")] == [first]  # stems, over two columns
    assert [r["id"] for r in log.runs(search="recip")] == [second]  # the beginning of a word
    assert log.count(search="don't") == 1
    log.set_note(second, "")
    assert log.count(search="weather") == 1
    log.delete(first)
    assert log.count(search="weather") == 0
    with log.file.connect() as db:
        assert db.execute("select count(*) from steps where run_id = ?", [first]).fetchone()[0] == 0
        db.execute("insert into runs_fts(runs_fts) values ('integrity-check')")


@pytest.mark.parametrize(
    "search", ['"', "NOT AND", "a* OR (", "🙂", "!!!", "\ud800", "x\x00y", "note:x", "'; drop runs"]
)
def test_no_search_is_an_error(log: RunLog, search: str) -> None:
    write(log, "plain")
    assert log.count(search=search) == len(log.runs(search=search)) == 0


def test_pages_and_filters(log: RunLog) -> None:
    ids = [write(log, f"p{n}", method="standard" if n % 2 else "streaming", visitor=f"v{n % 3}") for n in range(7)]
    assert [r["id"] for r in log.runs(limit=3)] == ids[:3:-1]
    assert [r["id"] for r in log.runs(limit=3, offset=3)] == ids[3:0:-1]
    assert log.runs(limit=3, offset=7) == []
    assert log.count(method="standard") == 3
    assert log.count(visitor="v0", method="streaming") == 2
    assert log.count(model="tiny") == 7 and log.count(model="other") == 0
    assert log.count(search="") == 7
    assert log.ids() == ids
    assert log.ids(method="standard") == ids[1::2]
    assert log.used("method") == ["standard", "streaming"] and log.used("model") == ["tiny"]
    assert log.used("method", visitor="nobody") == []


def dated(log: RunLog, values: list[dict[str, object]]) -> None:
    """Rows of finished runs, written directly: one per day, from 2026-01-01 on."""
    info = json.dumps(INFO.to_dict())
    row = {"status": "finished", "model": "tiny", "method": "streaming", "visitor": "me", "info_json": info}
    with log.file.connect() as db:
        days = (f"2026-{1 + n // 28 % 12:02}-{1 + n % 28:02}T23:59:59.999+00:00" for n in range(len(values)))
        rows = (
            row | {"id": f"{n:026}", "started_utc": day, "prompt": f"prompt {n}"} | more
            for n, (day, more) in enumerate(zip(days, values, strict=True))
        )
        db.table("runs").insert_all(rows)


def test_days_stars_and_orders(log: RunLog) -> None:
    dated(log, [{"speedup": n % 3 or None, "tokens": n, "star": int(n == 2)} for n in range(5)])
    found = {name: [r["tokens"] for r in log.runs(sort=name)] for name in ("newest", "oldest", "speed-up", "tokens")}
    assert found["newest"] == found["tokens"] == [4, 3, 2, 1, 0] == found["oldest"][::-1]
    assert found["speed-up"] == [2, 4, 1, 3, 0]  # not measured: last
    assert [r["tokens"] for r in log.runs(since="2026-01-02", until=" 2026-01-03 ")] == [2, 1]  # both days included
    for zone, tokens in (("Asia/Tokyo", [1, 0]), ("America/New_York", [2, 1]), ("no/zone", [2, 1]), ("..", [2, 1])):
        found_there = log.runs(since="2026-01-02", until="2026-01-03", zone=zone)
        assert [r["tokens"] for r in found_there] == tokens  # each began a moment before midnight in UTC
    assert log.runs(since="0001-01-01", zone="Asia/Tokyo") and not log.runs(since="9999-12-31", zone="America/New_York")
    assert [r["tokens"] for r in log.runs(starred=True)] == [2]
    for wrong, words in (({"since": "yesterday"}, "not a day: write it as"), ({"sort": "number; drop"}, "choose one")):
        with pytest.raises(RunLogError, match=words):
            log.runs(**wrong)  # type: ignore[arg-type]


def test_a_visitor_has_their_own_runs_only(log: RunLog) -> None:
    mine, theirs = write(log, visitor="me"), write(log, visitor="them")
    assert log.ids(visitor="me") == [mine] and log.ids(visitor="") == []
    assert log.run(mine, visitor="me")["id"] == mine and log.run(theirs)["id"] == theirs
    for work in (log.run, log.events, log.delete, log.set_star):
        with pytest.raises(RunLogError, match="There is no run"):
            work(theirs, visitor="me")  # type: ignore[operator]
    with pytest.raises(RunLogError, match="There is no run"):
        log.set_note(theirs, "mine now", visitor="me")
    assert log.run(theirs)["note"] == ""


def test_five_thousand_runs_are_paged_by_an_index(log: RunLog) -> None:
    methods = ("standard", "streaming", "prompt_lookup")
    dated(
        log, [{"method": methods[n % 3], "speedup": n / 7, "tokens": n, "output": "word " * 400} for n in range(5000)]
    )
    last = log.runs(limit=15, offset=4995)
    assert [r["tokens"] for r in log.runs(sort="tokens", limit=2)] == [4999, 4998] and len(last) == 5
    one_filter: list[dict[str, str | bool]] = [
        {}, {"method": "standard"}, {"model": "tiny"}, {"visitor": "me"}, {"starred": True}, {"since": "2026-03-01"},
    ]  # fmt: skip
    for filters in one_filter:
        newest = plan(log, "newest", **filters)
        assert "INDEX" in newest and "TEMP B-TREE" not in newest, (filters, newest)
    for sort in SORTS:
        assert "TEMP B-TREE" not in plan(log, sort) and "INDEX" in plan(log, sort), sort
        for filters in ({"search": "prompt 17"}, {"method": "standard", "since": "2026-03-01"}):
            assert "SEARCH runs" in plan(log, sort, **filters), (sort, filters)  # only what matches is read


def plan(log: RunLog, sort: str, **filters: str | bool) -> str:
    """SQLite's query plan for a page of runs."""
    where, values = Filter(**filters).where()  # type: ignore[arg-type]
    sql = f"explain query plan select {LISTED} from runs where {where} order by {order(sort)} limit 15 offset 4500"
    with log.file.connect() as db:
        return "; ".join(row["detail"] for row in db.query(sql, values))


def test_ids_may_be_shortened_and_unknown_ones_are_named(log: RunLog) -> None:
    run = write(log)
    assert log.run(run[:20].lower())["id"] == run
    write(log)
    for wanted, words in (("nope", "no run 'nope'"), ("", "no run"), (run[:4], "More than one"), ("%", "no run")):
        with pytest.raises(RunLogError, match=words):
            log.run(wanted)
    log.set_star(run[:20])
    assert [r["star"] for r in log.runs()] == [False, True]


def test_odd_text_and_numbers_are_kept_as_far_as_utf8_and_json_can(log: RunLog) -> None:
    with log.start(INFO, "half \ud83d pair \x00 'x' 🙂", "", "standard", {"t": math.nan}) as recorder:
        recorder.add(Lane.METHOD, Started("standard", 1))
        token = Token(1, "\udc00é", Origin.TARGET, logprob=-math.inf)
        recorder.add(Lane.METHOD, Step(0, Draft(), (token,), {"verify": 0.0}, 1))
    run = log.run(recorder.run_id)
    assert run["prompt"] == "half ? pair \x00 'x' 🙂"
    assert run["output"] == "?é"
    assert log.events(recorder.run_id)[1].tokens[0].logprob < -1e300  # type: ignore[union-attr]


def test_switched_off_keeps_nothing(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECSTREAM_LOG", "off")
    off = RunLog(log.path)
    with off.start(INFO, "secret", "", "streaming", {}) as recorder:
        recorder.add(Lane.METHOD, Started("streaming", 1))
        recorder.verdict(Verdict(Agreement.UNKNOWN, 0, "x"))
    assert (off.enabled, recorder.run_id, off.count()) == (False, "", 0)
    assert RunLog(log.path, enabled=True).enabled


def test_where_the_file_is_and_how_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECSTREAM_DB", raising=False)
    assert default_path().name == "runs.db" and "specstream" in str(default_path())
    monkeypatch.setenv("SPECSTREAM_DB", str(tmp_path / "deep" / "er" / "my [1].db"))
    log = RunLog()
    write(log)
    assert log.path == tmp_path / "deep" / "er" / "my [1].db" and log.count() == 1
    for setting, mode in (("off", "delete"), ("on", "wal")):
        monkeypatch.setenv("SPECSTREAM_WAL", setting)
        with RunLog().file.connect() as db:
            assert db.journal_mode == mode
            assert db.execute("pragma foreign_keys").fetchone()[0] == 1
            assert db.execute("pragma synchronous").fetchone()[0] == 1
        assert write(log)


def _one_sentence(error: RunLogError) -> bool:
    words = str(error)
    return "\n" not in words and words.endswith(".") and ("runs.db" in words or "/dev/null" in words)


def test_a_corrupt_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(RunLogError, match="not a readable log") as caught:
        RunLog(path)
    assert _one_sentence(caught.value)
    assert path.read_bytes() == b"this is no database at all" * 100


def test_a_damaged_database_is_refused(log: RunLog) -> None:
    for _ in range(3):
        write(log, "x" * 20_000)
    with log.file.connect() as db:
        db.execute("pragma wal_checkpoint(truncate)")
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(RunLogError) as caught:
        RunLog(log.path)
    assert _one_sentence(caught.value)


@pytest.mark.parametrize("made", [
    "create table runs (theirs)",
    "create table places (theirs)",
    "create view runs as select 1 as theirs",
    "create table runs (theirs); create view _sqlite_migrations as select 1 migration_set, 2 name, 3 applied_at",
])  # fmt: skip
def test_a_database_of_another_program_is_left_as_it_is(made: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    db = sqlite3.connect(path)
    db.executescript(made)
    db.close()
    theirs = path.read_bytes()
    with pytest.raises(RunLogError, match="another program"):
        RunLog(path)
    assert path.read_bytes() == theirs and list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "runs.db").mkdir()
    for path in (tmp_path / "file" / "runs.db", tmp_path / "runs.db", Path("/dev/null")):
        with pytest.raises(RunLogError, match="can't be written") as caught:
            RunLog(path)
        assert _one_sentence(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_read_only_folder_and_a_read_only_file(log: RunLog) -> None:
    """In a child without the rights of root, to whom no folder is read-only."""
    folder = log.path.parent
    code = (
        "import os\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "for path in sys.argv[1:]:\n"
        "    try: RunLog(path)\n"
        "    except RunLogError as error: print(error)\n"
    )
    (folder / "free").mkdir()
    snapshot(log, folder / "free" / "runs.db").chmod(0o444)
    (folder / "closed").mkdir(mode=0o555)
    for place in [folder, *folder.parents[:3]]:  # pytest's folders are closed to others
        if place.owner() == folder.owner() and place != Path("/tmp"):
            place.chmod(place.stat().st_mode | 0o055)
    (folder / "free").chmod(0o777)
    out, _ = child(code, folder / "closed" / "runs.db", folder / "free" / "runs.db").communicate()
    lines = out.splitlines()
    assert len(lines) == 2 and all("can't be written" in line for line in lines), out


def test_a_disk_that_fails_is_reported_by_the_next_call(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        tried.set()
        raise sqlite3.OperationalError("database or disk is full")

    tried = threading.Event()
    recorder = log.start(INFO, "p", "", "streaming", {})
    with monkeypatch.context() as patch:
        patch.setattr("specstream.runlog.serialization.write_events", full)
        recorder.add(Lane.METHOD, events()[0])
        assert tried.wait(20 * INTERVAL)
        with pytest.raises(RunLogError, match="disk is full"):
            recorder.verdict(Verdict(Agreement.UNKNOWN, 0, "x"))
        with pytest.raises(RunLogError, match="disk is full"):
            recorder.add(Lane.METHOD, events()[1])
    recorder.close()  # there is space again: buffered events are saved
    assert log.events(recorder.run_id) == events()[:1]


def test_exports_are_read_by_json_and_csv(log: RunLog) -> None:
    run = write(log, 'comma, "quote"\nline', "one two")
    write(log, "second")
    out = io.StringIO()
    write_jsonl(log, out)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in out.getvalue().splitlines()]
    assert [line["prompt"] for line in lines] == ['comma, "quote"\nline', "second"]
    assert [e["kind"] for e in lines[0]["events"]["method"]] == ["started", "step", "step", "step", "finished"]
    assert lines[0]["stats"]["tokens"] == 5
    out = io.StringIO(newline="")
    write_runs_csv(log, out)
    rows = list(csv.DictReader(io.StringIO(out.getvalue(), newline="")))
    assert [row["prompt"] for row in rows] == ['comma, "quote"\nline', "second"]
    assert json.loads(rows[0]["token_ids"]) == [1, 7, 11, 7, 12]
    out = io.StringIO(newline="")
    write_steps_csv(log, out, [run])
    steps = list(csv.DictReader(io.StringIO(out.getvalue(), newline="")))
    assert [(s["step"], s["text"], s["drafted"], s["accepted"]) for s in steps] == [
        ("0", "Start ", "0", "0"),
        ("1", "one !", "3", "1"),
        ("2", "two !", "3", "1"),
    ]
    assert steps[1]["verify_seconds"] == "0.2" and steps[0]["draft_seconds"] == ""


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", "\n=", "＝"])
def test_no_cell_of_a_table_is_a_formula(log: RunLog, start: str) -> None:
    evil = f'{start}HYPERLINK("http://x","y")'
    run = write(log, evil, evil.split()[0])
    log.set_note(run, evil)
    tables = {}
    for name, write_csv in (("runs", write_runs_csv), ("steps", write_steps_csv)):
        out = io.StringIO(newline="")
        write_csv(log, out, [run])
        tables[name] = list(csv.DictReader(io.StringIO(out.getvalue(), newline="")))
        assert not any(cell.startswith(start) for row in tables[name] for cell in row.values())
    assert tables["runs"][0]["prompt"] == tables["runs"][0]["note"] == "'" + evil
    assert tables["runs"][0]["tokens"] == "3" and tables["steps"][1]["text"].endswith("!")


@pytest.mark.parametrize("path", [":memory:", "./:memory:", "file::memory:?cache=shared"])
def test_a_log_in_memory_is_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECSTREAM_DB", path)
    with pytest.raises(
        RunLogError, match="^:memory: keeps nothing: choose a file with SPECSTREAM_DB, or set SPECSTREAM_L"
    ):
        RunLog()
    assert not list(tmp_path.iterdir())


def test_a_snapshot_is_one_whole_file_even_while_a_run_is_written(log: RunLog, tmp_path: Path) -> None:
    done = write(log, "done before")
    recorder = log.start(INFO, "still going", "", "streaming", {})
    target = tmp_path / "copies" / "copy.db"
    target.parent.mkdir()
    target.write_text("an older copy")
    assert snapshot(log, target) == target
    recorder.close()
    assert [f.name for f in target.parent.iterdir()] == ["copy.db"]
    copy = RunLog(target)
    assert copy.events(done) == events()
    assert [r["status"] for r in copy.runs()] == ["interrupted", "finished"]
    with pytest.raises(RunLogError):
        snapshot(log, tmp_path / "missing" / "copy.db")


def test_the_schema_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "schema.md").read_text(encoding="utf-8") == markdown()
    with Database(memory=True) as db:
        migrations.migrations.apply(db)
        assert {t: list(c) for t, c in COLUMNS.items()} == {t: list(db.table(t).columns_dict) for t in COLUMNS}


def test_the_log_is_light_to_import() -> None:
    code = "import specstream.runlog, sys; print({'torch', 'transformers', 'gradio', 'ui'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
