"""How commands end: one exit code, one message, no traceback."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from letheon.audits.verdict import EXIT_CODES, Verdict
from letheon.cli import ending
from letheon.errors import BadInput, CannotFinish, MissingExtra, UnknownName
from letheon.recipes import verbs
from tests.toys import write_lines

Letheon = Callable[..., Any]


class OutOfMemoryError(RuntimeError):
    """As torch.cuda.OutOfMemoryError is named, and derived."""


def _raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(model: Any, *, progress: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr(verbs, "function", lambda verb: call)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (BadInput("no 'answer' field"), 2, "letheon forget: no 'answer' field\n"),
        (BadInput(["one", "two"]), 2, "letheon forget: 2 faults:\n- one\n- two\n"),
        (UnknownName("npoo", ["npo"], what="a method"), 2, "'npoo' is not a method. Did you mean 'npo'? Known: npo"),
        (MissingExtra("GPTQ", "quantize"), 2, "pip install 'letheon[quantize]'"),
        (CannotFinish("step 3: NaN in model.head"), 4, "letheon forget: step 3: NaN in model.head\n"),
        (MemoryError(), 4, "out of memory (MemoryError). Use a smaller --batch-size or --micro-batch-size"),
        (OutOfMemoryError("CUDA out of memory.\n Tried 2 GiB"), 4, "out of memory (CUDA out of memory. Tried 2 GiB)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 bytes"), 4, "out of memory (DefaultCPUAllocator"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            4,
            "runs/x: No space left on device. Free some space",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "runs/x"),
            4,
            "letheon forget: runs/x: Permission denied\n",
        ),
        (
            KeyboardInterrupt(),
            130,
            "letheon forget: interrupted. The same command continues where it stopped:\n  letheon forget m ",
        ),
        (ZeroDivisionError("oh"), 4, "ZeroDivisionError: oh\nThis is a fault of letheon itself. LETHEON_DEBUG=1 shows"),
    ],
)
def test_each_error_has_its_code_and_one_message(
    letheon: Letheon, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    _raising(error, monkeypatch)
    ended = letheon("forget", "m", "--forget", "f.jsonl")
    assert ended.code == code
    assert message in ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err


def test_an_error_as_json_has_all_faults_and_the_code(letheon: Letheon, monkeypatch: pytest.MonkeyPatch) -> None:
    _raising(BadInput(["one", "two"]), monkeypatch)
    ended = letheon("forget", "m", "--forget", "f.jsonl", "--json")
    said = {"command": "forget", "error": "BadInput", "problems": ["one", "two"], "exit_code": 2}
    assert json.loads(ended.out) == said
    assert ended.code == 2


def test_debugging_shows_where_it_happened(letheon: Letheon, monkeypatch: pytest.MonkeyPatch) -> None:
    _raising(BadInput("one"), monkeypatch)
    monkeypatch.setenv("LETHEON_DEBUG", "1")
    ended = letheon("forget", "m", "--forget", "f.jsonl")
    assert "Traceback" in ended.err and ended.code == 2


def test_the_notes_of_an_error_are_shown(letheon: Letheon, monkeypatch: pytest.MonkeyPatch) -> None:
    error = CannotFinish("NaN")
    error.add_note("The record could not be written either")
    _raising(error, monkeypatch)
    assert "The record could not be written either" in letheon("forget", "m", "--forget", "f").err


# --- verdicts


@dataclass(frozen=True)
class Audited:
    """What an audit returns."""

    run: Path
    audit_path: Path
    verdict: Verdict
    audit: dict[str, Any]


CELLS = [
    {"column": "forget_accuracy", "condition": "as_is", "status": "measured", "value": 0.1, "judgement": "clear"},
    {
        "column": "forget_accuracy",
        "condition": "int4_row",
        "status": "measured",
        "value": 0.625,
        "judgement": "knowledge found",
    },
    {"column": "verbatim", "condition": "int4_row", "status": "not measured", "value": None},
]


@pytest.mark.parametrize("word", list(EXIT_CODES))
def test_the_exit_code_of_an_audit_is_that_of_its_verdict(
    letheon: Letheon, monkeypatch: pytest.MonkeyPatch, here: Path, word: str
) -> None:
    run = here / "runs" / "x"
    audited = Audited(run, run / "audit.json", Verdict(word, ("a reason",), "under 2 conditions"), {"cells": CELLS})
    monkeypatch.setattr(verbs, "function", lambda verb: lambda model, progress: audited)
    monkeypatch.setattr("letheon.reports.page.report", lambda run: run / "report.html")
    ended = letheon("audit", "m")
    assert ended.code == EXIT_CODES[word]
    assert ended.out.splitlines() == [
        "                 as_is  int4_row",
        "forget_accuracy  0.10   0.62*",
        "verbatim                -",
        f"verdict: {word}",
        "  - a reason",
        "  under 2 conditions",
        "report: runs/x/report.html",
        "next: letheon verify runs/x",
    ]
    said = json.loads(letheon("audit", "m", "--json").out)
    assert (said["verdict"]["word"], said["exit_code"]) == (word, EXIT_CODES[word])
    assert said["report"].endswith("runs/x/report.html")
    assert "audit" not in said, "every single score stands in audit.json"


@dataclass(frozen=True)
class Verified:
    """What verify returns."""

    problems: tuple[str, ...]
    word: str = "DELETED"
    fingerprint: str = "ab" * 16
    is_pinned: bool = False


@pytest.mark.parametrize(
    ("found", "code", "words"),
    [
        (Verified(()), 0, ["whole: p", "verdict: DELETED", "no key was named, so this shows integrity only"]),
        (Verified((), word="NOT DELETED", is_pinned=True), 0, ["verdict: NOT DELETED", "by the key you named"]),
        (Verified((), word=""), 0, ["whole: p", "there is no verdict yet", "the record and what it names are whole"]),
        (Verified(("audit.json was altered",)), 1, ["not whole: p", "  - audit.json was altered"]),
    ],
)
def test_verify_says_whether_it_is_whole_and_by_whom(
    letheon: Letheon, monkeypatch: pytest.MonkeyPatch, found: Verified, code: int, words: list[str]
) -> None:
    asked: list[Any] = []

    def verify(path: Path, *, key: str | None) -> Verified:
        asked.append((path, key))
        return found

    monkeypatch.setattr("letheon.verify", verify, raising=False)
    ended = letheon("verify", "p", "--key", "ab")
    assert ended.code == code
    for word in words:
        assert word in ended.out
    assert asked == [(Path("p"), "ab")]
    assert ("signed with" in ended.out) == ("verdict: " in ended.out) == (bool(found.word) and not found.problems)
    assert json.loads(letheon("verify", "p", "--json").out)["problems"] == list(found.problems)


# --- the real command


def _start(*args: str, cwd: Path) -> subprocess.Popen[str]:
    # A shell may have told its background jobs to ignore Ctrl-C; a person's shell has not.
    code = "import signal as s; s.signal(s.SIGINT, s.default_int_handler); import letheon.cli.main as m; m.main()"
    command = [sys.executable, "-c", code, *args]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_same_command_continues(here: Path) -> None:
    write_lines(here / "d.jsonl", [{"prompt": f"{n} and {n}?", "answer": str(2 * n)} for n in range(8)])
    words = ["train", "m", "--data", "d.jsonl", "--epochs", "30", "--batch-size", "4"]
    with _start(*words, cwd=here) as started:
        assert started.stderr is not None
        for line in started.stderr:
            if line.startswith("train: 8 records"):
                break
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=300)
    assert (started.returncode, out) == (130, ""), err
    message = "letheon train: interrupted. The same command continues where it stopped:\n  letheon "
    assert message + " ".join(words) + "\n" in err
    assert "Traceback" not in err
    with _start(*words, cwd=here) as again:
        out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert "train: 8 records, 60 steps, continued" in err
    assert "next: letheon forget runs/train/1-train" in out


@pytest.mark.parametrize("optimised", [False, True])
def test_asking_wrongly_is_the_same_under_python_o(here: Path, optimised: bool) -> None:
    (here / "f.jsonl").write_text('{"prompt": "a"}\nnot json\n')
    words = ["forget", "nowhere", "--forget", "f.jsonl", "--method", "npoo", "--method.beta", "x"]
    done = subprocess.run(
        [sys.executable, *(["-O"] if optimised else []), "-m", "letheon", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    assert (done.returncode, done.stdout) == (2, "")
    for part in (
        "letheon forget: 5 faults:",
        "'npoo' is not a forget term. Did you mean 'npo'?",
        "MODEL nowhere: no such folder",
        "forget set f.jsonl, line 1: no 'answer' field",
        "forget set f.jsonl, line 2: not JSON",
        "--retain r.jsonl",
    ):
        assert part in done.stderr
    assert not (here / "runs").exists()


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    code = (
        "import os, sys\n"
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
        "from letheon.cli.main import run\n"
        "sys.exit(run(['methods', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


# --- several processes


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """This process is the second of two; how long it waited before it spoke."""
    waited: list[float] = []
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ending.time, "sleep", waited.append)
    return waited


def test_of_several_processes_the_first_one_speaks(
    letheon: Letheon, here: Path, monkeypatch: pytest.MonkeyPatch, second: list[float]
) -> None:
    made = SimpleNamespace(folder=here, steps=1, reason="enough", notes={})
    monkeypatch.setattr(verbs, "function", lambda verb: lambda model, *, progress, **settings: made)
    said = letheon("forget", "m", "--forget", "f.jsonl")
    assert (said.code, said.out, said.err) == (0, "", "")
    monkeypatch.setenv("RANK", "0")
    assert "stopped after 1 steps, enough" in letheon("forget", "m", "--forget", "f.jsonl").out
    assert second == []


def test_a_process_that_is_not_the_first_waits_with_its_fault(
    letheon: Letheon, here: Path, monkeypatch: pytest.MonkeyPatch, second: list[float]
) -> None:
    _raising(BadInput("no such file"), monkeypatch)
    said = letheon("forget", "m", "--forget", "f.jsonl", "--json")
    assert (said.code, said.out) == (2, "") and said.err == "process 1: letheon forget: no such file\n"
    assert second == [ending.GRACE_S]
    _raising(KeyboardInterrupt(), monkeypatch)
    said = letheon("forget", "m", "--forget", "f.jsonl")
    assert (said.code, said.out, said.err) == (130, "", "") and second == [ending.GRACE_S]
    monkeypatch.setenv("RANK", "0")
    said = letheon("forget", "m", "--forget", "f.jsonl")
    assert "\n  torchrun --nproc-per-node 2 -m letheon forget m --forget f.jsonl" in said.err


@pytest.mark.parametrize("args", [("audit", "m"), ("demo",), ("run", "recipe.yaml"), ("runs",)])
def test_what_works_in_one_process_says_so(
    letheon: Letheon, here: Path, monkeypatch: pytest.MonkeyPatch, second: list[float], args: tuple[str, ...]
) -> None:
    monkeypatch.setenv("RANK", "0")
    said = letheon(*args)
    assert said.code == 2 and f"{args[0]} works in one process, and 2 were started (WORLD_SIZE)" in said.err


def test_a_dry_run_is_of_one_process(
    letheon: Letheon, here: Path, monkeypatch: pytest.MonkeyPatch, second: list[float]
) -> None:
    monkeypatch.setenv("RANK", "0")
    said = letheon("forget", "m", "--forget", "f.jsonl", "--retain", "r.jsonl", "--dry-run")
    assert said.code == 2 and "a dry run estimates what one process needs, and there are 2" in said.err
