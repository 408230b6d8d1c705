"""The plot of `opensora bench sample`: adherence by steps, and the distance to many steps of the same scheduler.

Run: opensora bench sample --json sample.json
     python -m bench.sample_plot sample.json docs/few-steps.png
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PANELS = (("adherence", "share of videos that follow their prompt"), ("psnr", "PSNR to most steps, dB"))


def plot(results: Mapping[str, Any], path: Path) -> Path:
    """Draw one line per scheduler in two panels, and write them to `path` as png; returns the path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (key, label) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for name, steps, values in lines(results, key):
            axes.plot(steps, values, "o-", markersize=4, label=name)
        counts = sorted({row["steps"] for row in results["few_steps"]})
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set(xlabel="denoising steps", ylabel=label)
        axes.grid(True, alpha=0.25)
        axes.legend()
    figure.savefig(str(path), format="png")
    return path


def lines(results: Mapping[str, Any], key: str) -> list[tuple[str, list[int], list[float]]]:
    """(scheduler, steps, values) of a figure; the most steps have no distance to themselves."""
    rows = results["few_steps"]
    most = {name: max(row["steps"] for row in rows if row["scheduler"] == name) for name in _names(rows)}
    shown = [row for row in rows if key != "psnr" or row["steps"] < most[row["scheduler"]]]
    return [
        (
            name,
            [row["steps"] for row in shown if row["scheduler"] == name],
            [row[key] for row in shown if row["scheduler"] == name],
        )
        for name in _names(rows)
    ]


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["scheduler"] for row in rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the file of --json")
    parser.add_argument("path", type=Path, help="png to write")
    arguments = parser.parse_args(argv)
    try:
        results = json.loads(arguments.results.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(
            f"error: {arguments.results}: cannot be read ({error}); `opensora bench sample --json` writes it",
            file=sys.stderr,
        )
        return 2
    print(plot(results, arguments.path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
