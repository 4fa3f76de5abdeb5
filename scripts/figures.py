"""Figures of results: one HTML file each, with plotly's script beside them, so that they open offline.

python -m scripts.figures RESULT.json [MORE.json ...] --out FOLDER
The results are from `python -m specstream bench --json` (one per task) and `python -m specstream cost --json`.
"""

import argparse
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ui.charts.benchmarks import figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    for file in write([json.loads(file.read_text(encoding="utf-8")) for file in options.results], options.out):
        print(file)


def write(reports: Sequence[dict[str, Any]], folder: Path, only: Collection[str] = ()) -> Iterator[Path]:
    """Draw every figure for which the results have numbers, or only those named. Yields the files as they are
    written."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(reports).items():
        if name in only or not only:
            figure.write_html(folder / f"{name}.html", include_plotlyjs="directory")
            yield folder / f"{name}.html"


if __name__ == "__main__":
    main()
