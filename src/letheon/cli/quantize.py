"""Round a model's weights to few bits: a folder that other software loads as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letheon.cli.ending import Outcome, quoted
from letheon.cli.verb import verb_app


def _done(result: Any, given: Mapping[str, Any]) -> Outcome:
    folder = quoted(result.folder)
    following = f"letheon audit {quoted(given['model'])} --shipped {folder}"
    lines = [f"quantized: {folder}"]
    if result.fallen_back:
        lines.append(
            f"{len(result.fallen_back)} of its layers could not be solved and are rounded to the nearest values: "
            f"{', '.join(result.fallen_back)}"
        )
    return Outcome(result, lines, next=following)


app = verb_app(
    "quantize",
    summary="Round a model's weights to few bits: a folder that other software loads as it is.",
    main=("device",),
    examples=(
        "letheon quantize runs/mine/1-forget --method rtn --bits 4",
        "letheon quantize MODEL --method gptq --bits 4 --group 128 --calibration text.jsonl --out runs/small",
    ),
    done=_done,
    short_for="method",
)
