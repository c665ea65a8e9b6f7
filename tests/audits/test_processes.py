"""Threads and processes: the log-probabilities are the same, and audits at once do not come in one another's way.

An audit works in one process (under torchrun it is refused, see tests/training/test_several_processes.py), so what is
left to agree is a process with another number of threads, and several audits by as many processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from letheon.audits.audit import audit
from letheon.audits.verify import verify
from letheon.errors import BadInput
from letheon.runs.folder import lock
from letheon.runs.progress import Progress
from letheon.training.losses import Body
from letheon.training.scoring import score_examples
from tests.audits.mini import Mini

SCORE = """
import json, sys, torch
from letheon.data.encode import Encoder
from letheon.data.records import read_records
from letheon.models import load_model, load_tokenizer
from letheon.training.losses import Body
from letheon.training.scoring import score_examples
folder, data, half = sys.argv[1:]
encoder = Encoder(load_tokenizer(folder), max_length=128, template="auto")
examples = encoder.encode_all(read_records(data, role="forget").records)
chosen = range(len(examples)) if half == "all" else range(int(half), len(examples), 2)
found = score_examples(Body(load_model(folder)), [examples[at] for at in chosen], pad=encoder.pad)
said = {at: values.tolist() for at, values in zip(chosen, found.token_log_probs, strict=True)}
print(json.dumps({"threads": torch.get_num_threads(), "found": said}))
"""
AUDIT = """
import sys, json
from letheon.audits.audit import audit
from letheon.runs.progress import Progress
given = json.loads(sys.argv[1])
print(audit(given.pop("model"), progress=Progress(quiet=True), **given).verdict.word)
"""


def started(program: str, *given: str, threads: int = 1, cache: Path | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if cache is not None:
        environment["LETHEON_CACHE"] = str(cache)
    command = [sys.executable, "-c", program, *given]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out


def scored(mini: Mini, threads: int, half: str = "all") -> dict[int, np.ndarray[Any, Any]]:
    found = json.loads(said(started(SCORE, str(mini.target), str(mini.files["forget"]), half, threads=threads)))
    assert found["threads"] == threads, "the process has not the threads it was to have"
    return {int(at): np.array(values) for at, values in found["found"].items()}


@pytest.mark.slow
def test_neither_threads_nor_processes_change_a_log_probability(mini: Mini) -> None:
    examples = mini.encoder.encode_all(mini.data("forget").records)
    here = score_examples(Body(mini.load(mini.target)), examples, pad=mini.encoder.pad).token_log_probs
    one, two = scored(mini, 1), scored(mini, 2)
    halves = scored(mini, 1, "0") | scored(mini, 1, "1")  # two processes, each with every other item
    assert len(one) == len(two) == len(halves) == len(here) > 20
    for other in (one, two, halves):
        for at, values in enumerate(here):
            np.testing.assert_allclose(other[at], values, rtol=0, atol=1e-5)


def given_to(mini: Mini, run: Path) -> str:
    inputs = {name: str(path) for name, path in mini.inputs.items()}
    return json.dumps(
        {"model": str(mini.reference), "reference": str(mini.target), "out": str(run), "resamples": 1000, **inputs}
        | {"original": str(mini.base)}
    )


@pytest.mark.slow
def test_two_audits_at_once_find_what_one_alone_finds(mini: Mini, tmp_path: Path) -> None:
    """They share the folder in which tables of the original and of the reference are kept."""
    alone = said(started(AUDIT, given_to(mini, tmp_path / "alone"), cache=tmp_path / "own"))
    both = [started(AUDIT, given_to(mini, tmp_path / name), cache=tmp_path / "shared") for name in ("one", "two")]
    assert [said(process) for process in both] == [alone, alone]
    cells = [json.loads((tmp_path / name / "audit.json").read_text())["cells"] for name in ("alone", "one", "two")]
    assert cells[0] == cells[1] == cells[2]
    assert verify(tmp_path / "one").problems == verify(tmp_path / "two").problems == ()
    assert len(list((tmp_path / "shared").glob("*.json"))) == 2, "one table of each, and nothing torn or left"


def test_a_run_folder_is_audited_by_one_process_at_a_time(mini: Mini, tmp_path: Path) -> None:
    """A second holder of the lock is refused within one process as between two: see tests/runs/test_folder.py."""
    run = tmp_path / "run"
    given = json.loads(given_to(mini, run))
    with lock(run), pytest.raises(BadInput) as refused:
        audit(given.pop("model"), progress=Progress(quiet=True), **given)
    assert f"{run} is in use by process {os.getpid()}. Wait until it ends, or give another --out." in str(refused.value)
    assert not (run / "audit.json").exists()
