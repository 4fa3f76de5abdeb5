"""Record the run that the page shows before a model is loaded: the first example prompt, both methods, measured here.

python -m scripts.record_run [--out assets/recorded_run.json]
"""

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from specstream import engine
from specstream.bench.provenance import commit, machine
from specstream.engine import Engine
from specstream.events import Lane, Verdict, to_dict
from specstream.params import NODES, Sampling, Streaming
from specstream.session import run_session
from specstream.target.lens import look

ASSETS = Path(__file__).parents[1] / "assets"
METHOD = Streaming(budget=NODES)  # on every machine: a larger tree would be unreadable on a phone
DIGITS = 6  # digits of numbers in the file: microseconds, and more of a probability than is ever shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ASSETS / "recorded_run.json")
    out = parser.parse_args().out
    loaded = engine.load("smollm2-135m", "e2e")
    loaded.refresh(wait=True)  # wait for compiled layers
    example = json.loads((ASSETS / "prompts.json").read_text(encoding="utf-8"))[0]
    values = record(loaded, example, METHOD, Sampling(max_new_tokens=96))
    write(out, values | {"looks": looks(loaded, values)})


def record(loaded: Engine, example: dict[str, str], method: Streaming, sampling: Sampling) -> dict[str, Any]:
    """The values of a recorded run: the request, the model and machine, all events of both methods."""
    prompt = loaded.prompt(example["task"], example["prompt"])
    list(run_session(loaded, prompt, method, sampling))  # warms up both methods
    lanes: dict[str, list[dict[str, Any]]] = {str(lane): [] for lane in Lane}
    for item in run_session(loaded, prompt, method, sampling):
        if isinstance(item, Verdict):
            verdict = asdict(item)
        else:
            lanes[str(item[0])].append(to_dict(item[1]))
    about = {"recorded": f"{datetime.now(UTC):%Y-%m-%d}", "processor": machine()["processor"], "commit": commit()}
    values = example | {"method": Streaming.name, "info": loaded.info.to_dict()} | about
    settings = {"method": method.to_dict(), "sampling": sampling.to_dict()}
    return values | {"settings": settings, "lanes": lanes, "verdict": verdict}


def looks(loaded: Engine, values: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The stream lens before each step of a recorded run."""
    ids = loaded.encode(loaded.prompt(values["task"], values["prompt"]))
    found = {}
    for step in values["lanes"][str(Lane.METHOD)]:
        if step["kind"] == "step":
            if step["index"]:
                found[step["index"]] = look(loaded, ids)
            ids += [token["id"] for token in step["tokens"]]
    return found


def write(out: Path, values: dict[str, Any]) -> None:
    """Write a recorded run."""
    out.write_text(json.dumps(rounded(values), ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    """The same values with rounded numbers."""
    if isinstance(value, dict):
        return {name: rounded(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return round(value, DIGITS) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
