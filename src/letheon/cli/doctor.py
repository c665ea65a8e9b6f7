"""Say what this machine can do: versions, device, memory, disk, key, extras."""

from __future__ import annotations

import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import letheon
from letheon.cli.ending import Outcome, finish, quoted
from letheon.cli.simple import JSON, command, new_app
from letheon.cli.table import table
from letheon.errors import LetheonError

app = new_app()

CORE = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "scipy", "cryptography")
EXTRAS: dict[str, tuple[str, ...]] = {
    "quantize": ("compressed-tensors", "numba"),
    "adapters": ("peft",),
    "privacy": ("dp-accounting",),
    "serve": (
        *("fastapi", "uvicorn", "httpx", "sqlalchemy", "psycopg", "orjson"),
        *("ahocorasick_rs", "rapidfuzz", "prometheus-client"),
    ),
    "images": ("diffusers",),
    "eval": ("lm-eval", "datasets"),
    "track": ("trackio",),
}
"""Extra -> its packages, as pyproject.toml has them (an installed package does not carry that file)."""


@command(app, "letheon doctor", "letheon doctor --json")
def doctor(json: bool = JSON) -> None:
    """Say what this machine can do: versions, device, memory, disk, key, extras."""
    found = examine()
    rows = [
        ("letheon", found["letheon"]),
        ("python", f"{found['python']['version']} ({found['python']['path']})"),
        *((name, version or "not installed") for name, version in found["packages"].items()),
        ("device", found["device"]["name"] + _gigabytes(found["device"]["memory_gb"], " with ")),
        ("threads", f"{found['threads']['used']} of {found['threads']['cpus']} CPUs"),
        ("memory", _gigabytes(found["memory_gb"])),
        ("disk", f"{found['disk']['free_gb']:.1f} GB free in {found['disk']['path']}"),
        ("key", _key_words(found["key"])),
        *((f"[{name}]", _extra_words(extra)) for name, extra in found["extras"].items()),
    ]
    lines = [*table(rows), *(f"problem: {problem}" for problem in found["problems"])]
    code = LetheonError.exit_code if found["problems"] else 0
    outcome = Outcome(found, lines, next="" if code else "letheon demo", code=code, is_listing=True)
    finish(outcome, command="doctor", as_json=json)


def examine() -> dict[str, Any]:
    """Everything that `letheon doctor` says, as plain data."""
    packages = {name: _version(name) for name in CORE}
    problems = [f"{name} is not installed. Run: pip install letheon" for name, known in packages.items() if not known]
    key = _key(problems)
    return {
        "letheon": letheon.__version__,
        "python": {"version": ".".join(map(str, sys.version_info[:3])), "path": sys.executable},
        "packages": packages,
        **_machine(bool(packages["torch"])),
        "memory_gb": _memory_gb(),
        "disk": {"path": str(Path.cwd()), "free_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1)},
        "key": key,
        "extras": {name: _extra(name) for name in EXTRAS},
        "problems": problems,
    }


def _machine(has_torch: bool) -> dict[str, Any]:
    if not has_torch:
        return {
            "device": {"kind": "cpu", "name": "cpu", "memory_gb": None},
            "threads": {"used": None, "cpus": os.cpu_count()},
        }
    import torch

    device: dict[str, Any] = {"kind": "cpu", "name": "cpu", "memory_gb": None}
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        device = {"kind": "cuda", "name": torch.cuda.get_device_name(0), "memory_gb": round(memory / 1e9, 1)}
    return {"device": device, "threads": {"used": torch.get_num_threads(), "cpus": os.cpu_count()}}


def _memory_gb() -> float | None:
    """What this process may use: the machine's memory, or its container's limit."""
    sizes = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
        sizes.append(int(text))
    return round(min(sizes) / 1e9, 1) if sizes else None


def _key(problems: list[str]) -> dict[str, Any]:
    """The key that signs verdicts; it is made when the first verdict is signed, not here."""
    from letheon.runs.signing import fingerprint, key_path, public_key

    path, shown = key_path(), None
    if path.exists():
        try:
            shown = fingerprint(public_key())
        except LetheonError as error:
            problems.append(str(error))
    return {"path": str(path), "exists": path.exists(), "fingerprint": shown}


def _extra(name: str) -> dict[str, Any]:
    missing = [package for package in EXTRAS[name] if _version(package) is None]
    return {"installed": not missing, "missing": missing, "install": f"pip install 'letheon[{name}]'"}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gigabytes(size: float | None, before: str = "") -> str:
    return f"{before}{size:.1f} GB" if size is not None else ""


def _key_words(key: dict[str, Any]) -> str:
    state = key["fingerprint"] or ("cannot be used" if key["exists"] else "made when the first verdict is signed")
    return f"{quoted(key['path'])} ({state})"


def _extra_words(extra: dict[str, Any]) -> str:
    return "installed" if extra["installed"] else f"not installed: {extra['install']}"
