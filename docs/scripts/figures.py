"""Figures of results: one HTML file each, with plotly's own script beside them, so that they open without a network.

python docs/scripts/figures.py RESULT.json [MORE.json ...] --out FOLDER
The results are those of `python -m specstream bench --json` (one for each task) and `python -m specstream cost --json`.
"""

import argparse
import json
from pathlib import Path

from ui.figures import figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in options.results]
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(reports).items():
        figure.write_html(options.out / f"{name}.html", include_plotlyjs="directory")
        print(options.out / f"{name}.html")


if __name__ == "__main__":
    main()
