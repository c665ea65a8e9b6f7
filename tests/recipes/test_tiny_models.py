"""The kept world and its models: whole after a kill, wherever it came, and made once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from letheon.models import inspect_model
from letheon.recipes import tiny_models as module
from letheon.recipes.tiny_models import TinyModels, tiny_models
from letheon.runs.progress import Progress
from letheon.tiny.world import WorldSize

SIZE = WorldSize(forget=2, retain=6, holdout=2, attributes=1, countries=4)
QUIET = Progress(quiet=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and no training."""
    monkeypatch.setenv("LETHEON_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "train", lambda base, *, out, **_: SimpleNamespace(folder=out))
    return tmp_path


def made() -> TinyModels:
    return tiny_models(0, SIZE, progress=QUIET, steps=1)


def contents(files: Mapping[str, Path]) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files.items()}


def test_a_kill_while_the_last_file_is_written_leaves_no_world(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(files: Mapping[str, Path], **_: Any) -> None:
        files["retain"].with_name("keep.jsonl").write_bytes(b'{"prompt": "Wh')
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(module, "_keep", torn)
        with pytest.raises(KeyboardInterrupt):
            made()
    files = made().files
    retain, keep = files["retain"].read_bytes(), files["keep"].read_bytes()
    assert keep.startswith(retain) and set(keep.splitlines()) == {
        *retain.splitlines(),
        *files["general_train"].read_bytes().splitlines(),
    }


def test_a_kill_before_the_weights_leaves_no_untrained_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.save_untrained

    def torn(folder: Path, seed: int) -> Path:
        real(folder, seed)
        (folder / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(module, "save_untrained", torn)
        with pytest.raises(KeyboardInterrupt):
            made()
    made()
    (base,) = cache.glob("tiny/*/base")
    inspect_model(base)


def test_a_second_call_finds_the_same_files(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = contents(made().files)
    for name in ("write_world", "save_untrained"):
        monkeypatch.delattr(module, name)  # neither is asked again
    assert contents(made().files) == first
    assert {"forget", "retain", "holdout", "general_train", "general", "train", "keep"} == first.keys()
