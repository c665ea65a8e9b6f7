"""`letheon doctor`: what this machine can do."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from letheon.cli import doctor
from letheon.runs.signing import fingerprint, public_key

Letheon = Callable[..., Any]
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _names(requirements: list[str]) -> list[str]:
    return [requirement.partition(">")[0].partition("[")[0].partition("=")[0].strip() for requirement in requirements]


def test_the_extras_are_those_of_the_project() -> None:
    extras = {name: _names(needed) for name, needed in PROJECT["optional-dependencies"].items()}
    assert {name: list(packages) for name, packages in doctor.EXTRAS.items()} == {
        name: packages for name, packages in extras.items() if name not in ("dev", "docs")
    }
    assert set(doctor.CORE) <= set(_names(PROJECT["dependencies"]))


def test_json_says_what_this_machine_has(letheon: Letheon, here: Path) -> None:
    ended = letheon("doctor", "--json")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    assert found["problems"] == []
    assert found["threads"]["used"] >= 1 and found["memory_gb"] > 0 and found["disk"]["free_gb"] > 0
    assert found["disk"]["path"] == str(here)
    assert all(found["packages"].values())
    assert set(found["extras"]) == set(doctor.EXTRAS)


def test_a_missing_extra_says_how_to_get_it(letheon: Letheon, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "peft" else installed(name) or "1")
    page = letheon("doctor").out
    assert "not installed: pip install 'letheon[adapters]'" in page
    assert page.count("not installed") == 1


def test_a_missing_core_package_is_a_problem(letheon: Letheon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "torch" else "1")
    ended = letheon("doctor")
    assert ended.code == 2
    assert "problem: torch is not installed. Run: pip install letheon" in ended.out


def test_the_key_is_shown_but_never_made(letheon: Letheon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHEON_HOME", str(tmp_path / "home"))
    assert "made when the first verdict is signed" in letheon("doctor").out
    assert not (tmp_path / "home").exists()
    expected = fingerprint(public_key())
    assert expected in letheon("doctor").out
    (tmp_path / "home" / "key").chmod(0o644)
    ended = letheon("doctor")
    assert ended.code == 2
    assert "problem: " in ended.out and "can be read by others" in ended.out
