"""Checkpoints: the same bits come back, or nothing does."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from letheon.errors import BadInput, CannotFinish
from letheon.runs import folder as folders
from letheon.runs.resume import Checkpoints


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool],
)
def test_every_bit_of_a_tensor_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    raw = torch.randint(0, 256, (24, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    if dtype == torch.bool:
        raw %= 2
    tensor = raw.view(dtype)  # random bits: NaN payloads, denormals and -0.0 among them
    Checkpoints(tmp_path).save(7, {"w": tensor, "row": tensor[:, :1].t(), "one": tensor[0, 0], "none": tensor[:0]}, {})
    loaded = Checkpoints(tmp_path).load()
    assert loaded is not None
    step, tensors, _ = loaded
    assert step == 7
    assert tensors["w"].dtype == dtype and bits(tensors["w"]) == bits(tensor)
    assert bits(tensors["row"]) == bits(tensor[:, :1])
    assert tensors["one"].shape == () and tensors["none"].shape == tensor[:0].shape


def test_every_bit_of_a_number_comes_back(tmp_path: Path) -> None:
    floats = [0.1, 1 / 3, -0.0, 5e-324, math.nextafter(1, 2), 1.7976931348623157e308, math.inf, -math.inf]
    state: dict[str, Any] = {
        "floats": floats,
        "n": 2**70,
        "flag": True,
        "none": None,
        "text": "é\u2028",
        "in": {"a": []},
    }
    Checkpoints(tmp_path).save(0, {}, {**state, "nan": math.nan})
    loaded = Checkpoints(tmp_path).load()
    assert loaded is not None
    found = loaded[2]
    assert math.isnan(found.pop("nan"))
    assert [struct.pack("d", number) for number in found["floats"]] == [struct.pack("d", n) for n in floats]
    assert found == state and found["flag"] is True


def test_a_generator_goes_on_where_it_stopped(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    torch.randn(3, generator=generator)
    Checkpoints(tmp_path).save(1, {"generator": generator.get_state()}, {})
    expected = torch.randn(4, generator=generator)
    loaded = Checkpoints(tmp_path).load()
    assert loaded is not None
    again = torch.Generator()
    again.set_state(loaded[1]["generator"])
    assert torch.equal(torch.randn(4, generator=again), expected)


def test_tied_and_overlapping_tensors_come_back(tmp_path: Path) -> None:
    flat = torch.arange(6.0)
    tensors = {"a": flat, "tied": flat, "tail": flat[3:], "grad": torch.nn.Parameter(torch.ones(2))}
    Checkpoints(tmp_path).save(1, tensors, {})
    loaded = Checkpoints(tmp_path).load()
    assert loaded is not None
    assert all(torch.equal(loaded[1][name], tensor) for name, tensor in tensors.items())
    assert torch.equal(flat, torch.arange(6.0))


def test_loaded_tensors_may_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, {"w": torch.zeros(1000)}, {})
    for _ in range(2):
        loaded = Checkpoints(tmp_path).load()
        assert loaded is not None
        assert float(loaded[1]["w"].sum()) == 0
        loaded[1]["w"].add_(1)


def test_only_the_last_one_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.load() is None
    for step in (1, 2, 2):
        checkpoints.save(step, {"w": torch.full((2,), float(step))}, {"step": step})
    loaded = checkpoints.load()
    assert loaded is not None and loaded[0] == 2 and loaded[2] == {"step": 2}
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.mark.parametrize("state", [{"a": (1, 2)}, {"a": {1: 2}}, {"a": [object()]}, {"a": torch.ones(1)}])
def test_a_state_that_json_would_change_is_refused(tmp_path: Path, state: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"^state\.a.* would not come back as it is$"):
        Checkpoints(tmp_path).save(1, {}, state)


def truncate_weights(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    os.truncate(file, file.stat().st_size - 1)


def alter_weights(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def remove_weights(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    file.unlink()


def truncate_json(folder: Path) -> None:
    path = folder / "checkpoint.json"
    os.truncate(path, path.stat().st_size // 2)


def alter_step(folder: Path) -> None:
    path = folder / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "step": 4}))


@pytest.mark.parametrize("damage", [truncate_weights, alter_weights, remove_weights, truncate_json, alter_step])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: Any) -> None:
    Checkpoints(tmp_path).save(3, {"w": torch.ones(5)}, {"a": 1})
    damage(tmp_path)
    with pytest.raises(BadInput, match=r"The checkpoint is damaged: .*Remove .* to begin this stage anew") as caught:
        Checkpoints(tmp_path).load()
    assert str(tmp_path) in str(caught.value)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    from letheon.runs import resume
    kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    moment, folder = sys.argv[1], Path(sys.argv[2])
    write = resume.write_text
    if moment == "tensors half written":
        os.fsync = kill
    elif moment == "tensors written":
        Path.rename = lambda *_: kill()
    elif moment == "tensors named":
        resume.write_text = lambda *_: kill()
    elif moment == "json replaced":
        resume.write_text = lambda *given: (write(*given), kill())
    resume.Checkpoints(folder).save(2, {"w": torch.full((4,), 2.0)}, {"a": 2})
"""


@pytest.mark.parametrize(
    ("moment", "kept"),
    [("tensors half written", 1), ("tensors written", 1), ("tensors named", 1), ("json replaced", 2)],
)
def test_after_a_kill_the_old_or_the_new_one_is_there(tmp_path: Path, moment: str, kept: int) -> None:
    Checkpoints(tmp_path).save(1, {"w": torch.full((4,), 1.0)}, {"a": 1})
    command = [sys.executable, "-c", textwrap.dedent(KILLED), moment, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    loaded = Checkpoints(tmp_path).load()
    assert loaded is not None
    assert (loaded[0], loaded[2]["a"], loaded[1]["w"].tolist()) == (kept, kept, [float(kept)] * 4)
    Checkpoints(tmp_path).save(3, {"w": torch.ones(1)}, {})
    assert len(list(tmp_path.iterdir())) == 2, "what the kill left is gone"


@pytest.mark.parametrize("write", [0, 1, 2, 3])
def test_a_full_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int) -> None:
    Checkpoints(tmp_path).save(1, {"w": torch.ones(4)}, {})
    calls, fsync = iter(range(100)), os.fsync

    def full(handle: int) -> None:
        if next(calls) == write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(folders.os, "fsync", full)
    with pytest.raises(CannotFinish, match="The disk is full"):
        Checkpoints(tmp_path).save(2, {"w": torch.zeros(4)}, {})
    loaded = Checkpoints(tmp_path).load()
    assert loaded is not None
    assert (loaded[0], float(loaded[1]["w"].sum())) == ((2, 0.0) if write == 3 else (1, 4.0))
