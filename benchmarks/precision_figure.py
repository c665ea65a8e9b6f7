"""The picture of precision.json: what each grid gives back, by width and by how the weights were stored.

python benchmarks/precision_figure.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from measuring import RESULTS

mpl.use("svg")
import matplotlib.pyplot as plt

SHOWN = {
    "bf16 1e-05": ("bfloat16, rate 1e-5", "#b2182b", "o"),
    "bf16 2e-05": ("bfloat16, rate 2e-5", "#ef8a62", "s"),
    "bf16 5e-05": ("bfloat16, rate 5e-5", "#fddbc7", "^"),
    "float32 2e-05": ("float32, rate 2e-5", "#2166ac", "D"),
    "sure": ("bfloat16, SURE", "#4dac26", "v"),
}
GRIDS = ("as_is", "int8", "nf4", "fp4", "int4/128", "int4", "int3/64", "int3")
NAMES = {
    "as_is": "as it is",
    "int4": "int4\nrow",
    "int4/128": "int4\n128",
    "int3": "int3\nrow",
    "int3/64": "int3\n64",
}
TARGET = Path(__file__).parents[1] / "docs" / "images" / "precision.svg"


def means(seeds: Mapping[str, Mapping[str, Any]], row: str) -> list[float] | None:
    """Mean over seeds of the share of forgotten facts that is answered, grid by grid."""
    found = [rows[row]["forget"] for rows in seeds.values() if "forget" in rows.get(row, {})]
    return [statistics.fmean(one[grid] for one in found) for grid in GRIDS] if found else None


def main() -> None:
    """One panel a width."""
    widths = json.loads((RESULTS / "precision.json").read_text(encoding="utf-8"))["rows"]
    widths = {width: seeds for width, seeds in widths.items() if any(means(seeds, row) for row in SHOWN)}
    plt.rcParams.update({"svg.hashsalt": "letheon", "font.size": 9, "svg.fonttype": "none"})
    figure, axes = plt.subplots(1, len(widths), figsize=(10.5, 3.6), sharey=True, layout="constrained")
    for panel, width in zip(axes, sorted(widths, key=int), strict=True):
        for row, (label, colour, marker) in SHOWN.items():
            if heights := means(widths[width], row):
                panel.plot(
                    heights, color=colour, marker=marker, label=label, markeredgecolor="#333333", markeredgewidth=0.4
                )
        panel.set_title(f"width {width}")
        panel.set_xticks(range(len(GRIDS)), [NAMES.get(grid, grid) for grid in GRIDS])
        panel.set_ylim(0, 1.05)
        panel.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("forgotten facts that are answered")
    axes[0].legend(loc="lower left", fontsize=8)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(TARGET, metadata={"Date": None})


if __name__ == "__main__":
    main()
