"""What a person sees before anything runs: help, names, versions; and that none of it loads torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import letheon as package
from letheon.cli.main import COMMANDS

HEAVY = {"torch", "transformers", "numpy", "scipy", "matplotlib", "tokenizers", "safetensors", "rich", "yaml"}
Letheon = Callable[..., Any]


@pytest.mark.parametrize("command", [None, "forget", "audit", "runs", "methods"])
def test_help_imports_nothing_heavy(command: str | None) -> None:
    args = [*([command] if command else []), "--help"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "letheon", *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: letheon" in done.stdout
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "letheon" in imported
    # `letheon runs` reads records, and their recipe.yaml, by the same file that lists them.
    assert imported & HEAVY <= ({"yaml"} if command == "runs" else set())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_with_two_examples_of_that_command(letheon: Letheon, command: str) -> None:
    ended = letheon(command, "--help")
    assert ended.code == 0
    examples = [line.strip() for line in ended.out.rsplit("Examples:\n", 1)[1].splitlines() if line.strip()]
    assert len(examples) == 2
    for example in examples:
        assert example.startswith(f"letheon {command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_fits_a_screen(letheon: Letheon, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = letheon(command, "--help").out.splitlines()
    assert len(lines) <= 50
    assert max(len(line) for line in lines) <= 110


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_an_example_exists(letheon: Letheon, command: str, here: Path) -> None:
    """An unknown option would be refused first, whatever else is wrong."""
    help_page = letheon(command, "--help").out
    for line in help_page.rsplit("Examples:\n", 1)[1].splitlines():
        words = line.split()[1:]
        if command in ("doctor", "demo", "methods", "runs") or not words:
            continue
        assert "no option" not in letheon(*words).err


def test_the_main_page_lists_every_command_with_the_first_line_of_its_file(letheon: Letheon) -> None:
    page = letheon().out
    assert page == letheon("--help").out
    listed = [line.split()[0] for line in page.split("Commands:\n")[1].split("\n\n")[0].splitlines() if line[2] != " "]
    assert listed == list(COMMANDS)
    for name in COMMANDS:
        first = (Path(package.__file__).parent / "cli" / f"{name}.py").read_text(encoding="utf-8").splitlines()[0]
        assert " ".join(first.strip('".').split()) in " ".join(page.split())


def test_every_file_of_a_command_is_listed() -> None:
    files = (Path(package.__file__).parent / "cli").glob("*.py")
    commands = {path.stem for path in files if "\napp = " in path.read_text(encoding="utf-8")}
    assert commands - {"main"} == set(COMMANDS)


def test_version(letheon: Letheon) -> None:
    assert letheon("--version").out == f"letheon {package.__version__}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["forgte"], "letheon: 'forgte' is not a command. Did you mean 'forget'? Known: ask, audit, "),
        (["--verison"], "letheon: no option --verison. Did you mean '--version'? See letheon --help"),
        (
            ["forget", "m", "--lerning-rate", "1"],
            "letheon forget: no option --lerning-rate. Did you mean '--learning-rate'?",
        ),
        (["forget", "m", "--smoth.rho", "1"], "letheon forget: no option --smoth.rho. Did you mean '--smooth.rho'?"),
        (
            ["forget", "m", "--epochs.x", "1"],
            "letheon forget: --epochs has no settings of its own, so --epochs.x means nothing",
        ),
        (
            ["forget", "m", "--stop", "1"],
            "letheon forget: --stop alone says nothing; set what belongs to it, --stop.KEY VALUE",
        ),
        (["forget", "m", "--method.beta"], "letheon forget: --method.beta needs a value"),
        (["forget", "m", "n"], "letheon forget: Got unexpected extra argument"),
        (["forget", "m", "--epochs"], "letheon forget: Option '--epochs' requires an argument"),
        (["forget", "m"], "- no --forget PATH: JSON lines to forget"),
        (
            ["forget"],
            "letheon forget: 2 faults:\n- no MODEL: A Hugging Face causal language model folder\n- no --forget PATH",
        ),
        (["forget", "m", "--forget", "f", "--columns", "answer"], "--columns answer: not OURS=YOURS"),
        (["verify"], "letheon verify: Missing argument 'PATH'"),
        (["runs", "--rot", "x"], "no option --rot. Did you mean '--root'?"),
        (["runs", "purge", "x", "--jsn"], "no option --jsn. Did you mean '--json'? See letheon runs purge --help"),
    ],
)
def test_what_was_typed_wrongly_is_named_with_the_nearest(letheon: Letheon, args: list[str], message: str) -> None:
    ended = letheon(*args)
    assert ended.code == 2
    assert message in ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err


def test_all_unknown_options_are_named_at_once(letheon: Letheon) -> None:
    ended = letheon("train", "m", "--lerning-rate", "1", "--epoch", "3")
    assert "letheon train: 2 faults:\n- no option --lerning-rate." in ended.err
    assert "- no option --epoch. Did you mean '--epochs'?" in ended.err
