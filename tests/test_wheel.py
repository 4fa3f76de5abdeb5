"""The program installed from a wheel, run from a folder without any of its files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from sysconfig import get_path
from typing import Any

import pytest
from gradio_client import Client

from scripts.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.timeout(600)  # a busy machine


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel; its dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(folder), "install", "-q", "--no-deps", "--no-index", str(wheel)],
        check=True,
    )
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "ours.pth").write_text(get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, Any]:
    """How a process is started far from the checkout."""
    hidden = {"PYTHONPATH", "SPECSTREAM_DB"}
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    return {"cwd": tmp_path, "env": env | {"SPECSTREAM_HOME": str(tmp_path / "home"), "SPECSTREAM_LOG": "off"}}


def test_the_wheel_puts_one_package_with_all_data_beside_other_peoples(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"specstream"}
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "specstream", "ui", "assets"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    kept = [name for name in tracked if (ROOT / name).exists()]
    wanted = {name if name.startswith("specstream/") else f"specstream/{name}" for name in kept}
    assert len(wanted) > 100 and wanted | {"specstream/docs/metrics.md"} == {
        name for name in names if ".dist-info/" not in name
    }


def test_the_command_line_runs_anywhere(installed: Path, elsewhere: dict[str, Any]) -> None:
    call = [installed / "specstream", "generate", "--model", "toy", "--prompt", "Once", "--max-new-tokens", "8"]
    done = subprocess.run([*call, "--json", "out.json"], **elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads((elsewhere["cwd"] / "out.json").read_text())
    assert answer["method"] == "streaming" and answer["token_ids"]


def test_processes_of_an_installed_program_find_it(installed: Path, elsewhere: dict[str, Any]) -> None:
    """Training, compilation and memory measurements start processes this way; files in the folder are not imported."""
    (elsewhere["cwd"] / "specstream.py").write_text("raise SystemExit('not this one')")
    code = (
        "import subprocess; from specstream.adapters import find; from specstream.installation import *\n"
        "print(len(find.bundled('smollm2-135m')), PACKAGE)\n"
        "raise SystemExit(subprocess.call(python('specstream', '--help'), env=environment()))"
    )
    done = subprocess.run([installed / "python", "-P", "-c", code], **elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 ") and str(installed.parent) in done.stdout


@pytest.fixture
def page(installed: Path, elsewhere: dict[str, Any]) -> Iterator[str]:
    """The URL of a page started by its installed command."""
    port = str(free_port())
    with subprocess.Popen([installed / "specstream-ui", "--toy", "--port", port], **elsewhere) as program:
        yield f"http://127.0.0.1:{port}"
        program.send_signal(signal.SIGTERM)


def patiently(call: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while True:
        try:
            return call()
        except Exception:  # not served yet
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


def test_the_page_starts_anywhere(page: str) -> None:
    client = patiently(lambda: Client(page, verbose=False))
    answer = client.predict("Once upon a time", method="streaming", api_name="/generate")
    assert answer["text"] and answer["verdict"]["agreement"] == "identical"
    shown = json.dumps(client.config)
    assert "--ss-" in shown or ".ss-" in shown  # the style sheet
    assert "step cost" in shown  # the glossary, docs/metrics.md
