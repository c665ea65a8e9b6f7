"""Columns of text for a terminal.

Source: this project.  Checked against: cells of unequal length, a narrow terminal.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], *, indent: str = "") -> list[str]:
    """Rows in aligned columns. On a terminal the last column is cut to the width; in a pipe nothing is."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines = []
    for row in rows:
        line = indent + "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()
        lines.append(f"{line[: width - 1]}…" if width and len(line) > width else line)
    return lines
