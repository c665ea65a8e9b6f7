"""The picture of leaderboard.json: a row a model, a column a required cell of the audit.

python benchmarks/leaderboard_figure.py
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from leaderboard_page import DOCS
from leaderboard_rows import COLUMNS, CONDITIONS, UTILITIES, cells, falls, presets_of, without_sign_of_zero
from measuring import RESULTS
from numpy.typing import NDArray

mpl.use("svg")
import matplotlib.pyplot as plt

PICTURE = DOCS / "images" / "leaderboard.svg"
UTILITY_MARGIN = 0.10


def required(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Column and condition of every required cell, in the order of the picture."""
    places = {
        (cell["column"], cell["condition"])
        for row in found["rows"].values()
        for one in row.values()
        for cell in cells(one)
    }
    return sorted(places, key=lambda place: (list(COLUMNS).index(place[0]), list(CONDITIONS).index(place[1])))


def matrix(found: Mapping[str, Any], places: list[tuple[str, str]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over worlds of the differences and of the falls, and their margins, (models, cells and utilities) each; a
    NaN was not measured on every world.
    """
    rows = found["rows"]
    shown = np.full((len(rows), len(places) + len(UTILITIES)), np.nan)
    margins = np.ones_like(shown)
    for down, row in enumerate(rows.values()):
        for across, (column, condition) in enumerate(places):
            here = [cell for one in row.values() for cell in cells(one, [column]) if cell["condition"] == condition]
            if len(here) == len(row):
                shown[down, across] = statistics.fmean(cell["d"] for cell in here)
                margins[down, across] = here[0]["margin"]
        for across, column in enumerate(UTILITIES, start=len(places)):
            if len(lost := falls(row, column)) == len(row):
                shown[down, across], margins[down, across] = statistics.fmean(lost), UTILITY_MARGIN
    return shown, margins


def draw(found: Mapping[str, Any]) -> None:
    """The matrix, a number in each cell."""
    names, places = list(found["rows"]), required(found)
    shown, scale = matrix(found, places)
    plt.rcParams.update({"svg.hashsalt": "letheon", "font.size": 8, "svg.fonttype": "none"})
    figure, axis = plt.subplots(figsize=(11.5, 0.27 * len(names) + 2.1), layout="constrained")
    picture = axis.imshow(shown / scale, cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto")
    for down, across in np.argwhere(~np.isnan(shown)):
        is_dark = abs(shown[down, across] / scale[down, across]) > 1.4
        text = without_sign_of_zero(f"{shown[down, across]:+.2f}").replace("0.", ".", 1)
        axis.text(across, down, text, ha="center", va="center", fontsize=6, color="white" if is_dark else "#222222")
    labels = [CONDITIONS[condition] for _, condition in places] + list(UTILITIES.values())
    axis.set_xticks(range(len(labels)), labels, rotation=60, ha="right")
    axis.set_yticks(range(len(names)), names)
    groups = Counter(column for column, _ in places)
    start = 0
    for column, wide in [
        *((COLUMNS[name], groups[name]) for name in COLUMNS if name in groups),
        ("fall", len(UTILITIES)),
    ]:
        axis.text(start + wide / 2 - 0.5, -0.7, column.replace(", ", ",\n"), ha="center", va="bottom", fontsize=7)
        start += wide
        axis.axvline(start - 0.5, color="#333333", lw=0.8)
    axis.axhline(len(names) - len(presets_of(found)) - 0.5, color="#333333", lw=0.8)
    figure.colorbar(picture, ax=axis, label="in margins", shrink=0.7, extend="both")
    figure.savefig(PICTURE, metadata={"Date": None})
    plt.close(figure)


def publish() -> None:
    """The picture from the result file."""
    draw(json.loads((RESULTS / "leaderboard.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    publish()
