"""What every benchmark shares: the machine it ran on, the file it writes."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Cores, processor, versions, threads, and how busy the machine was."""
    names = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    return {
        "cores": os.cpu_count(),
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "numpy")},
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, seconds."""
    low, middle, high = statistics.quantiles(seconds, n=4)
    return {"median": round(middle, 5), "lower_quartile": round(low, 5), "upper_quartile": round(high, 5)}


def write(name: str, found: dict[str, Any]) -> None:
    """Print the result, and keep it in results/NAME.json."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    command = f"python {Path(sys.argv[0]).parent.name}/{shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}"
    text = json.dumps({"date": date, "command": command, "machine": machine(), **found}, indent=1)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def earlier(name: str) -> dict[str, Any]:
    """What results/NAME.json holds, for a script that adds to it. Raises FileNotFoundError where there is none."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def parts(before: dict[str, Any]) -> list[dict[str, Any]]:
    """Date, command and machine of all that went into an earlier result, oldest first."""
    return [*before.get("parts", []), {key: before[key] for key in ("date", "command", "machine")}]


def by_seed(found: dict[str, Any]) -> dict[int, Any]:
    """Seeds as the numbers they were before a file made texts of them."""
    return {int(seed): each for seed, each in found.items()}


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
