"""For every test: no network, no telemetry. Set before gradio, transformers or huggingface_hub is imported."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:  # only browser tests need playwright
    from playwright.sync_api import Browser

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["SPECSTREAM_NO_COMPILER"] = "layers"  # each model would start a build; what is tested is its own code
settings.register_profile("any machine", deadline=None)  # a busy one takes its time
settings.load_profile("any machine")
if "PYTEST_XDIST_WORKER" in os.environ:  # processes that all use every core slow each other down
    os.environ["OMP_NUM_THREADS"] = "1"


# Files that train, load many models, or start programs: left out of make test-fast.
SLOW = {
    f"test_{name}.py"
    for name in (
        "ablations", "api", "bad_data", "bench_memory", "catalogue", "checkpoint", "draft_model", "engine_parts",
        "evaluation", "exact", "exact_runs", "figures", "finetune", "golden", "heads", "invariance", "native",
        "pair_map", "playground", "pretrained", "quantized", "streaming_variants", "training", "training_heads",
        "training_jobs", "transformers_generate", "visitors", "wheel", "zerogpu",
    )
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a browser or the real model run first: they take longest, so parallel workers finish together."""
    long = {item.path for item in items if {"browser", "real_model"} & {mark.name for mark in item.iter_markers()}}
    for item in items:
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def collectable() -> Iterator[None]:
    """What a test's load excluded from garbage collection is freed: a process loads one model, a worker hundreds."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests; each opens windows of its own."""
    from tests.browsing import chromium

    with chromium() as found:
        yield found


class Pace:
    """The toy model's clock. ``factor`` lengthens its pauses, and may be changed while it runs."""

    factor = 1.0

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds * self.factor)


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    """The speed of the toy model, for tests that need a run to last or to end."""
    from specstream.testing import toy

    pace = Pace()
    monkeypatch.setattr(toy, "time", pace)
    return pace
