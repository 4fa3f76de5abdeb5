"""Time of one pass against the number of drafted nodes, with and without streams.

python -m scripts.pass_cost [--unpacked] [--dtype bfloat16]
"""

import argparse
import statistics
import time
from collections.abc import Callable

from specstream import engine
from specstream.bench.provenance import heading
from specstream.events import Draft
from specstream.model import cpu_linear

PROMPT = "Facts: name[The Salted Fig], eatType[pub], food[Italian], area[riverside]\nText: The Salted Fig is"
WIDTH, REPEATS = 4, 9


def median_ms(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unpacked", action="store_true", help="use PyTorch's own linear layers")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    if options.unpacked:
        engine.suits = cpu_linear.suits = lambda *_: False
    loaded = engine.load("smollm2-135m", "e2e", dtype=options.dtype)
    print(heading(loaded.info.dtype, loaded.info.versions["linear"]))
    print("| nodes | pass, ms | with streams, ms | stream logits, ms | step / standard step |\n|---|---|---|---|---|")
    single = 0.0
    for nodes in (0, 2, 4, 6, 8, 12, 16, 24, 32):
        draft = Draft(tuple(range(100, 100 + nodes)), tuple(max(-1, i - WIDTH) for i in range(nodes)), (1.0,) * nodes)
        times = []
        for streaming in (False, True):
            target = loaded.make_target(streaming)
            target.prefill(loaded.encode(PROMPT))

            def one_pass(target=target, draft=draft) -> None:
                target.verify(50, draft)
                target.keep([])

            times.append(median_ms(one_pass))
        target.verify(50, draft)
        times.append(median_ms(lambda target=target: target.stream_logits(0)))
        single = single or times[0]
        print(f"| {nodes} | " + " | ".join(f"{t:.0f}" for t in times) + f" | {(times[1] + times[2]) / single:.2f} |")


if __name__ == "__main__":
    main()
