"""How much processor time a resumable script has taken: user and system time of its process, piece by piece."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from letheon.runs.folder import write_text

Done = TypeVar("Done")


@dataclass
class Ledger:
    """Processor seconds by piece of work, in a file. What was counted once is not counted again."""

    path: Path

    def spent(self) -> dict[str, float]:
        """Piece -> seconds."""
        return dict(json.loads(self.path.read_text(encoding="utf-8"))) if self.path.is_file() else {}

    def counted(self, piece: str, work: Callable[[], Done]) -> Done:
        """Do a piece; what an interrupted one took is counted as `piece, stopped`."""
        start, name = time.process_time(), f"{piece}, stopped"
        try:
            done = work()
            name = piece
            return done
        finally:
            before = self.spent()
            if piece not in before:
                seconds = before.get(name, 0.0) + time.process_time() - start
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_text(self.path, json.dumps({**before, name: round(seconds, 2)}, indent=0))


def minutes(spent: Mapping[str, float]) -> dict[str, float]:
    """Processor minutes by kind of work, and in all."""
    kinds: dict[str, float] = {}
    for piece, seconds in spent.items():
        kind = {"models": "training the worlds' models", "sweep": "sweep", "row": "forgetting and audits"}
        said = kind[piece.split(" ")[0]]
        kinds[said] = kinds.get(said, 0.0) + seconds / 60
    return {**{kind: round(value, 1) for kind, value in kinds.items()}, "in all": round(sum(kinds.values()), 1)}
