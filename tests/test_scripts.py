"""The measuring scripts: their computations, and the tables they make."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from scripts import container, llama_cpp, matmuls, new_names
from scripts.formats import available
from specstream.data.datasets import task_rows
from specstream.data.tasks import task

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}


@pytest.mark.parametrize("name", [name for name in matmuls.KINDS if "alone" not in name])
def test_every_matmul_is_that_of_the_linear_layer(name: str) -> None:
    dtype, make = matmuls.KINDS[name]
    half = name.startswith("float16")
    if not matmuls.works(name):
        pytest.skip("this processor or PyTorch has no such matmul")
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 32, bias=False), torch.randn(1, 3, 64)
    with torch.inference_mode():
        want = linear(x)
        got = make(linear)(x.to(dtype)).reshape(want.shape).float()
    limit = 0.002 if half else TOLERANCE[dtype]
    assert (got - want).abs().max() < limit * want.abs().max()


def absent(linear: nn.Linear) -> nn.Linear:
    raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512bw")


def test_a_matmul_that_the_processor_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"plain": (torch.float32, lambda linear: linear), "bfloat16, oneDNN packed": (torch.bfloat16, absent)}
    monkeypatch.setattr(matmuls, "SHAPES", [(32, 16, 2)])
    monkeypatch.setattr(matmuls, "ROWS", (1, 4))
    monkeypatch.setattr(matmuls, "KINDS", kinds | {"int8, oneDNN packed": (torch.float32, lambda linear: linear)})
    monkeypatch.setattr(matmuls.quantized, "works", lambda: False)  # no VNNI
    done = CliRunner().invoke(matmuls.main, ["--repeats", "1"])
    assert done.exit_code == 0, done.output
    assert "| plain |" in done.output and "| int8" not in done.output and "| bfloat16" not in done.output
    assert "Not on this processor: bfloat16, oneDNN packed; int8, oneDNN packed." in done.output


def test_the_matmul_of_bytes_is_that_of_our_format() -> None:
    """It is timed where its sums are exact, and calls a private method, so a new name would be noticed there only."""
    linear, x = nn.Linear(64, 32, bias=False), torch.randint(0, 3, (1, 3, 64)).float()
    try:
        got = matmuls.matmul_of_bytes(linear)(x)
    except (RuntimeError, NotImplementedError):
        pytest.skip("this build of PyTorch has no matmul of bytes")
    assert isinstance(got, torch.Tensor) and got.shape[-1] == 32


def test_the_matmuls_are_timed_and_shown_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmuls, "SHAPES", [(32, 16, 2), (48, 16, 1)])
    monkeypatch.setattr(matmuls, "ROWS", (1, 4))
    monkeypatch.setattr(matmuls, "KINDS", {"plain": (torch.float32, lambda linear: linear)})
    total = matmuls.milliseconds(["plain"], repeats=3)
    assert set(total) == {("plain", 1), ("plain", 4)} and min(total.values()) > 0
    total = {("plain", 1): 1.26, ("plain", 4): 30.0}
    assert list(matmuls.table(total))[2:] == ["| plain | 1.3 | 30.0 |"]


def test_a_number_format_that_the_processor_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("specstream.model.quantized.works", lambda: False)  # no VNNI
    assert available(["float32", "int8", "float32"]) == ["float32"]
    assert "int8 is left out: int8 is for processors with VNNI" in capsys.readouterr().err
    with pytest.raises(click.ClickException, match="No number format is left"):
        available(["int8", "int3"])


def test_without_llama_cpp_the_comparison_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waited forever for the answer of a process that had ended."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = CliRunner().invoke(llama_cpp.main, ["--gguf", __file__, "--task", "e2e", "--data", __file__])
    assert done.exit_code == 1 and "pip install xllamacpp" in done.output


def test_rates_beside_llama_cpp_are_compared_prompt_by_prompt() -> None:
    rates = {"llama.cpp": [100.0, 50.0, 80.0], "ours": [50.0, 50.0, 20.0], "streaming": [200.0, 100.0, 40.0]}
    prompts = {"llama.cpp": [0.4, 0.2, 0.3], "ours": [0.1, 0.2, 0.1], "streaming": [0.1, 0.1, 0.1]}
    lines = list(llama_cpp.table(rates, prompts))
    assert lines[2:] == [
        "| llama.cpp | 70.6 | 1.00 | 1.00 | 2.12 | 300 |",
        "| ours | 33.3 | 0.47 | 0.25 | 1.00 | 100 |",
        "| streaming | 75.0 | 1.06 | 0.50 | 2.25 | 100 |",
    ]


def test_new_names_keep_what_is_said_but_not_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_names, "OTHER_VALUE", 0)
    meanings = ["name[The Mill], eatType[pub], food[Thai], near[Avalon]", "name[Cocum], familyFriendly[no]"]
    rows = [{"meaning_representation": m, "human_reference": "-"} for m in (meanings[0], *meanings)]
    source, target = tmp_path / "train.jsonl", tmp_path / "mixed.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    done = CliRunner().invoke(new_names.main, [str(source), str(target), "--count", "60", "--seed", "1"])
    assert done.exit_code == 0, done.output
    prompts = [row.prompt for row in task_rows(str(target), "", task("e2e"), answers=False)]
    assert len(prompts) == 62 and all(m in p for m, p in zip(meanings, prompts, strict=False))
    plain = 0
    for prompt in prompts[2:]:
        assert "Mill]" not in prompt and "Avalon" not in prompt and "Cocum" not in prompt
        plain += "name[" not in prompt
        kinds = ("pub, Thai food, near ", "not family friendly") if "name[" not in prompt else (
            "eatType[pub], food[Thai], near[", "familyFriendly[no]")  # fmt: skip
        assert sum(kind in prompt for kind in kinds) == 1
    assert 0 < plain < 30


def test_new_values_are_of_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_names, "OTHER_VALUE", 1)
    meaning = "name[The Mill], customer rating[5 out of 5], familyFriendly[yes], area[riverside]"
    for seed in range(20):
        text = new_names.changed(meaning, random.Random(seed))
        assert text == new_names.changed(meaning, random.Random(seed))  # the seed determines everything
        for kind in ("customer rating", "area"):
            assert any(f"{kind}[{v}]" in text or v in text for v in new_names.VALUES[kind])
        assert "5 out of 5" not in text and "riverside" not in text and "yes" in text.replace("family friendly", "yes")
    assert new_names.in_words(meaning) == "The Mill, customer rating 5 out of 5, family friendly, riverside"


def test_the_dockerfile_is_read_as_docker_reads_it(tmp_path: Path) -> None:
    steps = list(container.instructions())
    assert steps[0][0] == "FROM" and steps[-1] == ("CMD", '["python", "app.py"]')
    assert {keyword for keyword, _ in steps} <= {
        "FROM", "RUN", "USER", "ENV", "WORKDIR", "COPY", "VOLUME", "EXPOSE", "CMD",
    }  # fmt: skip
    made = container.Container(tmp_path)
    for keyword, rest in steps:
        if keyword in ("ENV", "USER"):
            made.step(keyword, rest)
    assert made.user == "user" and made.env["PATH"].startswith("/home/user/.local/bin:/usr")
    assert made.env["SPECSTREAM_DB"] == "/home/user/data/runs.db"


def test_the_container_gets_what_the_program_needs_and_no_more() -> None:
    sent = container.context()
    assert {"app.py", "requirements.txt", "assets/style.css", "docs/metrics.md", "ui/app.py"} <= set(sent)
    assert [name for name in sent if name.startswith(("tests/", "docs/images/", ".ci/"))] == []
    assert container.ignored("a/b/__pycache__/c.pyc", ["**/__pycache__"])


def test_torch_finds_its_settings_in_every_script() -> None:
    """Threads of OpenMP that wait for work slow down by half what is measured beside them."""
    code = "import scripts.matmuls, os; print(os.environ['GOMP_SPINCOUNT'])"
    early = "import sys, scripts; assert 'specstream' in sys.modules and 'torch' not in sys.modules; "
    clean = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    done = subprocess.run([sys.executable, "-c", early + code], capture_output=True, text=True, env=clean, check=True)
    assert done.stdout == "1000\n"


SCRIPTS = sorted(
    file.stem for file in (Path(__file__).parents[1] / "scripts").glob("*.py") if file.name != "__init__.py"
)
SHARED = {"browser", "formats", "ports"}  # by several scripts


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_can_be_started_as_its_docstring_says(name: str) -> None:
    """What it imports is there, and so are the options that it names. (The numbers need the model, and time.)"""
    if name == "browser" or "chromium" in (Path(__file__).parents[1] / "scripts" / f"{name}.py").read_text(
        encoding="utf-8"
    ):
        pytest.importorskip("playwright")
    script = importlib.import_module(f"scripts.{name}")
    if name in SHARED:
        return
    words, text = str(script.__doc__), Path(str(script.__file__)).read_text(encoding="utf-8")
    assert f"python -m scripts.{name}" in words and '__name__ == "__main__"' in text
    own = words.split(f"python -m scripts.{name}", 1)[1].split("\n", 1)[0].split(" -- ")[0]
    assert [flag for flag in re.findall(r"(?<!\S)\[?(--[a-z-]+)", own) if f'"{flag}' not in text] == []
