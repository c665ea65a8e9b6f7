"""The command: a table of figures, the same as JSON, and a dry run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from letheon.audits.itemized import Figure
from letheon.cli.benchmark import measured
from tests.audits.benchmarks.data import choices_file, tofu_files

PEOPLE = (
    "benchmark",
    "m",
    "--benchmark",
    "people",
    "--benchmark.limit",
    20,
    "--resamples",
    1000,
    "--out",
    "o",
    "--quiet",
)


def test_it_prints_a_table_and_the_log_or_json(letheon: Callable[..., Any], here: Path) -> None:
    ended = letheon(*PEOPLE)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0].split() == ["figure", "value", "95", "%", "interval", "n", "better"]
    assert lines[1].startswith("forget.accuracy ") and lines[-1] == "log: o/benchmark.json"
    again = letheon(*PEOPLE, "--json")
    found = json.loads(again.out)
    assert found["exit_code"] == 0 and found["figures"][0]["name"] == "forget.accuracy"
    assert found["figures"] == json.loads((here / "o/benchmark.json").read_text())["figures"]


def test_numbers_are_readable_and_what_was_not_measured_is_no_number() -> None:
    class Result:
        run = log_path = Path("x")
        figures = (
            Figure("p", 1e-20, n=40, better="high", note="why"),
            Figure("none", None, note="give it"),
            Figure("zero", 0.0),
        )

    lines = measured(Result()).lines
    assert "1.000e-20" in lines[1] and lines[1].endswith("high; why")
    assert "not measured" in lines[2] and lines[2].endswith("give it") and "0.0000" in lines[3]


def test_faults_are_listed_together_with_code_2(letheon: Callable[..., Any], here: Path) -> None:
    ended = letheon("benchmark", "no", "--benchmark", "tofu", "--benchmark.data", "nowhere", "--seed", -1)
    assert ended.code == 2 and ended.out == ""
    for said in ("MODEL no", "no forget10_perturbed.json", "no world_facts_perturbed.json", "seed must be 0"):
        assert said in ended.err
    ended = letheon("benchmark", "m")
    assert ended.code == 2 and "no --benchmark NAME" in ended.err
    choices_file(here / "c.jsonl")
    ended = letheon("benchmark", "m", "--benchmark", "wmdp", "--benchmark.data", "c.jsonl")
    assert ended.code == 2 and "--benchmark.ask texts" in ended.err and not (here / "runs").exists()


def test_a_dry_run_reads_everything_and_writes_nothing(letheon: Callable[..., Any], here: Path) -> None:
    tofu_files(here / "tofu")
    given = ("--benchmark", "tofu", "--benchmark.data", "tofu", "--benchmark.split", "forget01")
    ended = letheon("benchmark", "m", *given, "--dry-run")
    assert ended.code == 0 and "benchmark: no fault in the inputs" in ended.out
    assert not (here / "runs").exists()
