"""What a run was made with, and what of it changed since.

Sums of floating-point numbers change with the number of threads, the kernels and the version of torch, so a
stage that was stopped is continued on the same ones, or refused.

Source: this project.  Checked against: a changed thread count and a changed package version, each named.
"""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("letheon", "torch", "transformers", "numpy")
_HARMLESS = frozenset({"cpus", "command"})
"""Recorded, but decides no number: threads do, and the settings that the command came to."""
command_line: ContextVar[str] = ContextVar("command_line", default="")
"""What was typed, where a person typed it: what continues a run that stopped."""


def describe_environment(given: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, machine, letheon's own code, and what the caller knows: threads, device, kernels."""
    versions = {package: _version(package) for package in _PACKAGES}
    return {
        **versions,
        "python": platform.python_version(),
        "code_sha256": code_sha256(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        **given,
    }


def environment_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line a change that may change a number, `threads: 1 -> 2`; empty when there is none."""
    names = [name for name in {**before, **now} if name not in _HARMLESS]
    return [
        f"{name}: {_short(before.get(name))} -> {_short(now.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def process_count() -> int:
    """How many processes were started to work together, as torchrun says; 1 for a process of its own."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def process_number() -> int:
    """Which of them this one is, from 0. The first one writes, and speaks to the person."""
    return int(os.environ["RANK"]) if process_count() > 1 else 0


def local_number() -> int:
    """Which of those on this machine this one is, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if process_count() > 1 else 0


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in units of 10^6 bytes."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    in_bytes = largest if sys.platform == "darwin" else largest * 1024
    return round(in_bytes / 1e6, 1)


@cache
def code_sha256() -> str:
    """SHA-256 over the names and bytes of letheon's own Python files."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py"), key=lambda file: file.relative_to(package).as_posix()):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _short(value: Any) -> str:
    """Hashes by their first twelve digits, everything else as it is."""
    is_hash = isinstance(value, str) and len(value) == 64
    return value[:12] if is_hash else "(not recorded)" if value is None else str(value)
