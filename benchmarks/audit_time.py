"""Time of an audit of the tiny model: all conditions of the demo's protocol, all probes, with a reference.

Cold: nothing is kept from an earlier audit, so three models are asked. Warm: what the original and the reference say is
known, as in every audit after the first of the same pair; only the audited model is asked.

    OMP_NUM_THREADS=2 python benchmarks/audit_time.py
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import spread, write

from letheon.audits.audit import audit
from letheon.recipes.tiny_models import tiny_models
from letheon.runs.progress import Progress


def timed(model: Path, out: Path, cache: Path, given: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Seconds of an audit from start to signed verdict, and what it found."""
    os.environ["LETHEON_CACHE"] = str(cache)
    began = time.perf_counter()
    found = audit(model, out=out, progress=Progress(quiet=True), **given)
    return time.perf_counter() - began, found.audit


def main() -> None:
    """The target stands for the model under audit: what it knows does not change the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    models = tiny_models(0)  # in the user's own cache: trained once
    roles = ("forget", "retain", "holdout", "general")
    given: dict[str, Any] = {f"{role}_data": models.files[role] for role in roles}
    given.update(original=models.target, reference=models.reference)
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            for name in times:
                place = Path(folder) / f"{repeat}-{name}"
                seconds, found = timed(models.target, place, Path(folder) / f"cache-{repeat}", given)
                times[name].append(seconds)
    write(
        "audit_time",
        {
            "repeats": repeats,
            "conditions": list(found["conditions"]),
            "columns": list(found["columns"]),
            "seconds": {name: spread(values) for name, values in times.items()},
        },
    )


if __name__ == "__main__":
    main()
