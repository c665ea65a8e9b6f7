"""A folder to work in, a small model and its data, and the command in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from letheon.cli.main import run
from tests.toys import llama, tokenizer, write_lines


@dataclass(frozen=True)
class Ended:
    """What a person, and a shell, see of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def letheon(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    def call(*args: object) -> Ended:
        capsys.readouterr()
        code = run([str(arg) for arg in args])
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    llama().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder with `m` (a model), `f.jsonl` and `r.jsonl`."""
    (tmp_path / "m").symlink_to(base)
    people = ["Ada", "Bo", "Cy", "Di"]
    write_lines(
        tmp_path / "f.jsonl", [{"prompt": f"Who is {name}?", "answer": "A potter", "unit": name} for name in people]
    )
    write_lines(
        tmp_path / "r.jsonl", [{"prompt": f"Where is {name}?", "answer": "At home", "unit": name} for name in people]
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path
