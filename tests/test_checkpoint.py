"""Checkpoints: nothing in them is unpickled; damaged, old or unwritable ones give a one-sentence error."""

from __future__ import annotations

import json
import math
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from specstream import cli
from specstream.adapters.card import CARD, WEIGHTS
from specstream.training import checkpoint, command
from specstream.training.batches import DataError
from specstream.training.config import Config
from specstream.training.jobs import has_checkpoint
from tests.test_training import DATA, trainer
from tests.trainings import rows, save_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a training run that stopped after three steps."""
    run = trainer(tmp_path / "out", epochs=1)
    run.train(DATA, [], lambda event: None, lambda: run.progress.step == 3)
    return tmp_path / "out"


def refused(out: Path) -> str:
    with pytest.raises(DataError) as error:
        trainer(out, epochs=1).resume()
    words = str(error.value)
    assert "\n" not in words and str(out) in words and words.endswith(f"give --start {out} instead of --resume.")
    return words


def test_a_checkpoint_is_json_and_safetensors(saved: Path) -> None:
    assert {file.suffix for file in (saved / "checkpoint").iterdir()} == {".json", ".safetensors"}


class Trap:
    """An object that writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.write_text, (self.file, "code ran")


@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "scaler.pt"])
@pytest.mark.parametrize("old", [True, False])
def test_resuming_runs_no_code_of_a_checkpoint(old: bool, name: str, saved: Path, tmp_path: Path) -> None:
    """An untrusted folder, in the format of an earlier version or with a pickle added."""
    folder = saved / "checkpoint"
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    if old:
        (folder / checkpoint.STATE).unlink(missing_ok=True)
        assert "from an earlier version" in refused(saved)
    else:
        assert trainer(saved, epochs=1).resume()
    assert not (tmp_path / "trapped").exists()


def test_the_adapter_of_an_old_checkpoint_is_what_a_training_begins_with(saved: Path) -> None:
    shutil.rmtree(saved / "checkpoint")
    run = trainer(saved, epochs=1)
    run.start_from(saved)
    assert run.train(DATA, [], lambda event: None).training["progress"]["step"] == 4


@pytest.mark.parametrize("name", [CARD, checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.STATE])
@pytest.mark.parametrize("harm", ["empty", "cut", "missing", "other"])
def test_a_damaged_checkpoint_is_told(name: str, harm: str, saved: Path) -> None:
    file = saved / "checkpoint" / name
    if harm == "missing":
        file.unlink()
    elif harm == "other":
        other = {"a": torch.zeros(2)}
        save_file(other, file) if file.suffix == ".safetensors" else file.write_text('{"progress": {"step": "x"}}')
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 if harm == "cut" else 0])
    assert f"damaged ({name} is" in refused(saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [("step", -4), ("seconds", math.nan), ("seconds", math.inf), ("best", math.nan), ("epoch", 1e300)],
)
def test_numbers_that_no_training_reaches_are_told(name: str, value: float, saved: Path) -> None:
    file = saved / "checkpoint" / checkpoint.STATE
    state = json.loads(file.read_text())
    state["progress"][name] = value
    file.write_text(json.dumps(state))
    assert f"damaged ({checkpoint.STATE} is" in refused(saved)


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.OPTIMIZER])
def test_tensors_that_are_not_finite_are_told(name: str, saved: Path) -> None:
    file = saved / "checkpoint" / name
    kept = load_file(file)
    next(t for t in kept.values() if t.numel() > 1).view(-1)[0] = math.nan
    save_file(kept, file)
    assert f"damaged ({name} is" in refused(saved)


@pytest.mark.parametrize("missing", [CARD, WEIGHTS])
def test_an_adapter_that_was_moved_away_is_written_again(missing: str, tmp_path: Path) -> None:
    """It was the best one, so nothing was saved when training went on, however long, or had ended."""
    run = trainer(tmp_path, epochs=1)
    run.train(DATA, DATA[:2], lambda event: None)
    run.progress.best = 99.0  # as if nothing better came later
    run.save_checkpoint()
    for epochs in (1, 2):
        (tmp_path / missing).unlink()
        again = trainer(tmp_path, epochs=epochs)
        assert again.resume()
        card = again.train(DATA, DATA[:2], lambda event: None)
        assert card.training["progress"]["best_step"] == again.progress.step and (tmp_path / missing).is_file()


@pytest.mark.parametrize("harm", ["another shape", "missing", "of another parameter"])
def test_bad_moments_are_told_before_anything_is_filled(harm: str, saved: Path) -> None:
    file = saved / "checkpoint" / checkpoint.OPTIMIZER
    kept = load_file(file)
    name = next(n for n in kept if n.startswith("exp_avg:"))
    moment = kept.pop(name)
    new = {"another shape": {name: torch.zeros(3)}, "missing": {}, "of another parameter": {"exp_avg:x": moment}}
    save_file(kept | new[harm], file)
    run = trainer(saved, epochs=1)
    before = [p.clone() for p in run.adapter.parameters()]
    with pytest.raises(DataError, match="damaged"):
        run.resume()
    assert all(torch.equal(p, b) for p, b in zip(run.adapter.parameters(), before, strict=True))


def test_a_checkpoint_that_lacks_the_heads_is_told(tmp_path: Path) -> None:
    from tests.test_training_heads import started, trainer_of

    start, out = started(tmp_path / "start"), tmp_path / "out"
    trainer_of("medusa", out, start, epochs=1).train(DATA, [], lambda event: None)
    card = out / "checkpoint-medusa" / CARD
    card.write_text(json.dumps(json.loads(card.read_text()) | {"heads": {}}))
    with pytest.raises(DataError, match="has other heads"):
        trainer_of("medusa", out, start, epochs=1).resume()


def test_training_draws_nothing_from_the_global_generators(tmp_path: Path) -> None:
    """So a checkpoint needs no state of theirs."""
    run = trainer(tmp_path, epochs=1, share=0.5, probes=1, validate_every=2)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    run.train(DATA, DATA[:2], lambda event: None)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


def test_a_checkpoint_that_was_being_written_is_none_to_go_on_from(tmp_path: Path) -> None:
    """A training run killed while it wrote its first one."""
    (tmp_path / "checkpoint.new").mkdir()
    assert not has_checkpoint(tmp_path) and not trainer(tmp_path).resume()
    (tmp_path / "checkpoint-medusa.old").mkdir()
    assert has_checkpoint(tmp_path)


# ---- float16 ---------------------------------------------------------------------------------------------------------


def in_float16(run, monkeypatch: pytest.MonkeyPatch, scale: float):
    """Give training on a CPU what it has in float16: a gradient scaler, and gradients that overflow above 65,504."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    run.accelerator.native_amp = True
    monkeypatch.setattr(Accelerator, "mixed_precision", property(lambda self: "fp16"))
    plain = run.optimizer.optimizer
    run.optimizer = AcceleratedOptimizer(plain, scaler=run.accelerator.scaler)
    run.accelerator._optimizers = [run.optimizer]
    for weight in run.adapter.parameters():
        weight.register_hook(lambda grad: grad.half().float())
    return run


def test_a_step_with_infinite_gradients_is_skipped_in_float16(tmp_path: Path, monkeypatch) -> None:
    """The scaler starts with a factor that is too large."""
    run = in_float16(trainer(tmp_path, epochs=4), monkeypatch, 2.0**24)
    before = [p.clone() for p in run.adapter.parameters()]
    moved = []

    def look(event) -> None:
        now = [p.clone() for p in run.adapter.parameters()]
        moved.append(any(not torch.equal(p, b) for p, b in zip(now, before, strict=True)))
        before[:] = now

    run.train(DATA, [], look)
    assert not moved[0] and moved[-1] and run.progress.step == 16
    assert run.accelerator.scaler.get_scale() < 2.0**24
    assert all(p.isfinite().all() for p in run.adapter.parameters())
    again = in_float16(trainer(tmp_path, epochs=5), monkeypatch, 2.0**24)
    assert again.resume() and again.accelerator.scaler.get_scale() == run.accelerator.scaler.get_scale()


@pytest.mark.parametrize("scale", [None, 2.0**16])
def test_a_loss_that_is_lost_ends_the_training(scale: float | None, tmp_path: Path, monkeypatch) -> None:
    run = trainer(tmp_path, epochs=2)
    if scale:
        in_float16(run, monkeypatch, scale)
    with torch.no_grad():
        next(iter(run.adapter.parameters())).fill_(float("nan"))
    with pytest.raises(DataError, match="smaller learning rate"):
        run.train(DATA, [], lambda event: None)


def test_gradients_that_are_infinite_at_every_factor_end_the_training(tmp_path: Path, monkeypatch) -> None:
    run = in_float16(trainer(tmp_path, epochs=100), monkeypatch, 8.0)
    next(iter(run.adapter.parameters())).register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(DataError, match="smaller learning rate"):
        run.train(DATA, [], lambda event: None)
    assert run.progress.step < 6


def test_a_processor_does_not_train_in_float16() -> None:
    with pytest.raises(ValueError, match="choose precision auto, float32 or bfloat16"):
        Config(precision="float16").chosen_precision("cpu")
    assert Config(precision="float16").chosen_precision("cuda") == "fp16"


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_a_readme_of_somebody_elses_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As in the folder of the model, or with ``--out .`` in a project."""
    model = save_model(tmp_path / "model")
    (model / "README.md").write_text("theirs")
    (tmp_path / "rows.jsonl").write_text(rows(8))
    args = ["train", "--model", str(model), "--task", "sql", "--data", str(tmp_path / "rows.jsonl")]
    with pytest.raises(SystemExit):
        cli.main([*args, "--layers", "2", "--epochs", "1", "--out", str(model)])
    assert "README.md that is no adapter's" in capsys.readouterr().err
    assert (model / "README.md").read_text() == "theirs"


@pytest.mark.parametrize("out", ["file", "file/below", "x" * 300])
def test_a_folder_that_cant_be_made_is_told_before_the_model_is_loaded(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "rows.jsonl").write_text(rows(3))
    monkeypatch.setattr(command.loading, "fetch", lambda *given: pytest.fail("the model was loaded"))
    model = str(save_model(tmp_path / "model"))
    where = ["--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / out)]
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--model", model, "--task", "sql", *where])
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    assert ended.value.code == 1 and str(tmp_path / out) in line and "give --out a" in line
