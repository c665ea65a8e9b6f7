"""Checkpoints: everything a stopped stage needs to end with the very same bits.

Tensors go to a safetensors file named by its content, the rest to checkpoint.json, which names that file and
its hash. The JSON is replaced last, so that a kill at any moment leaves the old pair or the new one.

Source: this project.  Checked against: bit-equal round trips, a kill between the two writes, truncated files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from letheon.errors import BadInput
from letheon.runs.folder import remove_leftovers, replacing_file, sha256_file, write_text

if TYPE_CHECKING:
    import torch

_NAME = "checkpoint.json"


class Checkpoints:
    """The last checkpoint of one stage, in `folder`."""

    def __init__(self, folder: Path) -> None:
        """`folder` belongs to one stage and need not exist yet."""
        self.folder = folder

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Replace the last checkpoint.

        tensors: any dtype and device; generator states are uint8 tensors.  state: text, numbers (NaN and
        infinity too), lists and dicts with text keys; floats come back bit for bit.
        Raises TypeError on a state that JSON would change, CannotFinish when the disk refuses; the old
        checkpoint stays.
        """
        _check_state(state, "state")
        remove_leftovers(self.folder)
        name, digest = self._write_tensors(step, tensors)
        body = {"step": step, "state": dict(state), "tensors": name, "tensors_sha256": digest}
        write_text(self.folder / _NAME, json.dumps({"sha256": _hash(body), **body}, indent=1) + "\n")
        for file in self.folder.glob("step-*.safetensors"):
            if file.name != name:
                file.unlink()

    def load(self) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None:
        """(step, tensors on the CPU, state) of the last checkpoint, None if there is none.

        Raises BadInput when it is truncated or altered.
        """
        if not (self.folder / _NAME).exists():
            return None
        body = self._read()
        file = self.folder / str(body["tensors"])
        if not file.is_file():
            raise self._damaged(f"{file} is missing")
        if (now := sha256_file(file)) != body["tensors_sha256"]:
            raise self._damaged(f"{file} has the hash {now[:12]}, not {body['tensors_sha256'][:12]}")
        from safetensors.torch import load_file

        return int(body["step"]), load_file(file), body["state"]

    def _write_tensors(self, step: int, tensors: Mapping[str, torch.Tensor]) -> tuple[str, str]:
        """Write the tensors under a name that no earlier checkpoint has; return the name and the hash."""
        from safetensors.torch import save_file

        unnamed = self.folder / f"step-{step}.safetensors"
        with replacing_file(unnamed) as temporary:
            save_file(_independent(tensors), temporary)
            digest = sha256_file(temporary)
            name = f"step-{step}-{digest[:12]}.safetensors"
        unnamed.rename(self.folder / name)
        return name, digest

    def _read(self) -> dict[str, Any]:
        path = self.folder / _NAME
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            written = body.pop("sha256")
            if written != _hash(body):
                raise self._damaged(f"{path} was altered")
        except BadInput:
            raise
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise self._damaged(f"{path} cannot be read ({error})") from error
        return dict(body)

    def _damaged(self, what: str) -> BadInput:
        return BadInput(
            f"The checkpoint is damaged: {what}. Nothing was resumed from it. "
            f"Remove {self.folder} to begin this stage anew."
        )


def _independent(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors on the CPU of which no two share memory (tied weights do; a file cannot)."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        where = own.untyped_storage().data_ptr()
        result[name] = own.clone() if where in seen else own
        seen.add(where)
    return result


def _check_state(value: Any, name: str) -> None:
    """JSON would turn a tuple into a list and the key 1 into "1", without a word."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{name}: the key {key!r} is not text, so it would not come back as it is")
            _check_state(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_state(inner, f"{name}[{index}]")
    elif value is not None and type(value) not in (str, bool, int, float):
        raise TypeError(f"{name} is a {type(value).__name__}, which would not come back as it is")


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
