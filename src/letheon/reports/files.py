"""The figures and numbers of a report as files of their own, in the run's folder `figures/`.

    *.svg            each figure, standing alone, in light colours, with its words as description
    matrix.csv       every cell of the audit          distances.csv    what the verdict rests on
    recovery.csv     every point of the curves of attacks      roc.csv    every point of the curves of membership
A table without rows is its heading alone. Numbers are written in full, so that reading them back gives the audit's
own; what a cell lacks is empty. No raw text is in any of them, so `letheon runs purge` leaves them. The same bytes
every time.

Source: this project.  Checked against: each file read back against audit.json; a name of a forgotten person.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from letheon.reports import figures, scatter
from letheon.reports.numbers import CELL, cell_rows
from letheon.reports.reading import AuditedRun, printable, read_run
from letheon.reports.recovery import POINT, recovery, recovery_rows
from letheon.reports.roc import CUT, roc, roc_rows
from letheon.reports.svg import Figure, standalone
from letheon.runs.folder import write_text

FOLDER = "figures"
Rows = Sequence[Mapping[str, Any]]


def write_files(run: Path) -> list[Path]:
    """Write `run`/figures/*.svg and *.csv from the audit in the run's folder; returns their paths.

    Raises:
        BadInput: there is no audit in `run`, or a file in it cannot be read.
        CannotFinish: the disk refuses.
    """
    read = read_run(run)
    texts = {f"{name}.svg": standalone(figure) for name, figure in figures_of(read).items()}
    texts |= {f"{name}.csv": as_csv(heads, rows) for name, (heads, rows) in tables_of(read.audit).items()}
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def figures_of(run: AuditedRun) -> dict[str, Figure]:
    """File name without its ending -> figure."""
    several = {
        "distances": figures.distances(run.audit, "d"),
        "recovery": recovery(run.audit, "r"),
        "roc": roc(run.audit, "m"),
    }
    found = {
        f"{name}-{at}" if len(drawn) > 1 else name: figure
        for name, drawn in several.items()
        for at, figure in enumerate(drawn, start=1)
    }
    training = {f"training-{label}": figures.curves(label, lines, "c") for label, lines in run.metrics.items()}
    single = {"trade-off": scatter.trade_off(run.audit, "t"), **training}
    return found | {printable(name): figure for name, figure in single.items() if figure is not None}


def tables_of(audit: Mapping[str, Any]) -> dict[str, tuple[Sequence[str], Rows]]:
    """File name without its ending -> (headings, rows)."""
    drawn = {(cell["condition"], cell["column"]) for cell in figures.distant_cells(audit)}
    cells = cell_rows(audit)
    return {
        "matrix": (CELL, cells),
        "distances": (DISTANCE, [row for row in cells if (row["condition"], row["column"]) in drawn]),
        "recovery": (POINT, recovery_rows(audit)),
        "roc": (CUT, roc_rows(audit)),
    }


DISTANCE = (
    "condition", "column", "required", "value", "control", "d", "d_lower", "d_upper", "margin", "side", "judgement",
)  # fmt: skip


def as_csv(heads: Sequence[str], rows: Rows) -> str:
    """Rows as RFC 4180 has them, with plain line ends: numbers in full, None empty, booleans as JSON has them."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([_plain(row.get(head)) for head in heads] for row in rows)
    return file.getvalue()


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)
