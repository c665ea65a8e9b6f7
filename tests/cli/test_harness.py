"""The command: what it writes, what it says is left out, and the command to type next."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.audits.benchmarks.data import model_folder, tofu_files


def test_it_writes_and_says_what_to_run(letheon: Callable[..., Any], here: Path) -> None:
    model_folder(here / "wide")
    tofu_files(here / "tofu", forget=3, other=2)
    words = ("harness", "wide", "--benchmark", "tofu", "--benchmark.data", "tofu", "--benchmark.split", "forget01")
    ended = letheon(*words, "--out", "tasks")
    assert ended.code == 0
    assert "written: letheon_tofu_forget01" in ended.out and "lm_eval cannot say: forget_quality" in ended.out
    run = "lm_eval --model hf --model_args pretrained=wide,dtype=float32 --include_path tasks --tasks letheon_tofu"
    assert ended.out.rstrip().endswith(f"next: {run}")
    assert len((here / "tasks/letheon_tofu_forget01.jsonl").read_text().splitlines()) == 3
    found = json.loads(letheon(*words, "--out", "tasks", "--json").out)
    assert found["tasks"][0] == "letheon_tofu_forget01" and found["exit_code"] == 0


def test_faults_are_one_message_with_code_2(letheon: Callable[..., Any], here: Path) -> None:
    ended = letheon("harness", "no", "--benchmark", "tofu", "--benchmark.split", "forget02")
    assert ended.code == 2 and "MODEL no" in ended.err and "'forget02' is not one of" in ended.err
    assert "Did you mean 'muse'" in letheon("harness", "m", "--benchmark", "mus").err
