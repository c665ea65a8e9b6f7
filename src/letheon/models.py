"""Model folders: inspect without loading, load without running a stranger's code, save in the original's precision.

A folder is a Hugging Face causal language model: config.json, safetensors weights, a tokenizer. Pickled weights and
remote code are refused. After saving, the files are read back, because a bfloat16 file cannot hold a change smaller
than half its grid: what does not survive the file was not forgotten.

Source: the safetensors format (an 8-byte length, a JSON header, the bytes).  Checked against: half a download, a pickle,
remote code, tied weights, a change below the bfloat16 grid.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from letheon.errors import BadInput, CannotFinish

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
QUANTIZABLE = ("llama", "qwen2", "mistral", "gemma", "gpt2", "gpt_neox")
"""Architectures (config.model_type) whose decoder linears are known, hence can be quantized."""
SURVIVAL_WARNING = 0.9
SURVIVAL_ERROR = 0.5


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor stands, as its file's header says."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder says of itself, read without torch."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def model_type(self) -> str:
        """The architecture's name, such as "llama"."""
        return str(self.config.get("model_type", ""))

    @property
    def dtype(self) -> str:
        """The storage dtype of most weights: "float32", "bfloat16", ..."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
        return DTYPES[max(sizes, key=lambda name: sizes[name])]

    @property
    def parameters(self) -> int:
        """Number of stored weights (tied ones once)."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def window(self) -> int:
        """Context window in tokens; 2048 where the config does not say."""
        for key in ("max_position_embeddings", "n_positions"):
            if isinstance(self.config.get(key), int):
                return int(self.config[key])
        return 2048


def inspect_model(path: Path, *, role: str = "MODEL") -> ModelFolder:
    """Read config and headers, and refuse what cannot be loaded safely.

    Raises:
        BadInput: with every fault: missing, not a model, half a download, pickled weights, remote code, quantized.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"{role} {path}: no such folder. Give a Hugging Face model folder (config.json, *.safetensors)")
    if not (path / "config.json").is_file():
        raise BadInput(f"{role} {path}: no config.json, so this is not a Hugging Face model folder")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{role} {path / 'config.json'}: not JSON ({error}). Download the folder again") from error
    problems: list[str] = []
    if not isinstance(config, dict) or "model_type" not in config:
        raise BadInput(f"{role} {path / 'config.json'}: no 'model_type', so the architecture is unknown")
    if "auto_map" in config:
        problems.append(f"{role} {path}: needs the model's own code (auto_map in config.json). letheon never runs remote code")
    if "quantization_config" in config:
        problems.append(f"{role} {path}: is already quantized. Give the full-precision folder it was made from")
    tensors: dict[str, StoredTensor] = {}
    try:
        tensors = _read_headers(path, role)
    except BadInput as error:
        problems.extend(error.problems)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            problems.append(f"{role} {path}: tensor {name} is stored as {tensor.dtype}; known: {', '.join(DTYPES)}")
            break
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        problems.append(f"{role} {path}: no tokenizer (tokenizer.json). Copy the tokenizer files of the model beside its weights")
    if problems:
        raise BadInput(problems)
    return ModelFolder(path=path, config=config, tensors=tensors)


def _read_headers(path: Path, role: str) -> dict[str, StoredTensor]:
    files = sorted(path.glob("*.safetensors"))
    index = path / "model.safetensors.index.json"
    if index.is_file():
        wanted = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in wanted if not (path / name).is_file()]
        if missing:
            raise BadInput(f"{role} {path}: half a download, {len(missing)} of {len(wanted)} files are missing ({missing[0]}). Download it again")
        files = [path / name for name in wanted]
    if not files:
        pickles = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern)]
        if pickles:
            raise BadInput(
                f"{role} {path}: pickled weights ({pickles[0]}) can run code when they are opened, and are refused. "
                "Convert them with transformers' save_pretrained, which writes safetensors"
            )
        raise BadInput(f"{role} {path}: no *.safetensors weights")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors.update(_read_header(file, role))
    if not tensors:
        raise BadInput(f"{role} {path}: its weight files hold no tensors")
    return tensors


def _read_header(file: Path, role: str) -> dict[str, StoredTensor]:
    broken = BadInput(f"{role} {file}: is cut off or damaged (half a download?). Download it again")
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if len(start) < 8:
            raise broken
        (length,) = struct.unpack("<Q", start)
        if length > size - 8:
            raise broken
        try:
            header = json.loads(stream.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise broken from None
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if size != 8 + length + end:
        raise broken
    return {name: StoredTensor(file.name, entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)


def load_model(path: Path, *, dtype: str = "float32", device: str = "cpu") -> Any:
    """The model of a folder, in evaluation mode. `dtype` is "float32" (masters) or "stored"."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = inspect_model(path)
    wanted = getattr(torch, folder.dtype if dtype == "stored" else dtype)
    with _quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=wanted, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    return model.to(device).eval()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Loading bars of transformers stay out of our own progress line."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class Survival:
    """What the saved file kept of the change that was made in memory."""

    moved: int
    """Weights that differ from the original in memory."""
    survived: int
    """Of those, the ones whose saved value differs from the original's saved value."""
    total: int

    @property
    def share(self) -> float | None:
        """survived / moved; None when nothing moved."""
        return self.survived / self.moved if self.moved else None


def save_model(model: Any, target: Path, *, original: ModelFolder, save_dtype: str = "original", card: str = "") -> Survival:
    """Write a model folder next to nothing else: weights in the original's precision, tokenizer, model card.

    Args:
        model: the model in memory (float32 masters).
        target: an empty folder; the caller makes the swap atomic.
        original: the folder the model was loaded from; its dtypes, tokenizer and generation config are kept.
        save_dtype: "original" or a torch dtype's name.
        card: text of the README.md.
    Returns:
        How much of the change survived the file (read back from it).
    """
    import torch

    state = {name: tensor.detach().to("cpu") for name, tensor in model.state_dict().items()}
    stored = {name: tensor.dtype for name, tensor in original.tensors.items()}
    ready: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            ready[name] = tensor
            continue
        if not torch.isfinite(tensor).all():
            raise CannotFinish(f"tensor {name} holds NaN or infinity; nothing was saved. Use a smaller learning rate")
        wanted = DTYPES[stored.get(name, _majority(original))] if save_dtype == "original" else save_dtype
        ready[name] = tensor.to(getattr(torch, wanted))
    config_dtype = model.config.dtype
    model.config.dtype = getattr(torch, original.dtype if save_dtype == "original" else save_dtype)
    try:
        model.save_pretrained(target, state_dict=ready, safe_serialization=True)
    finally:
        model.config.dtype = config_dtype
    load_tokenizer(original.path).save_pretrained(target)
    if card:
        (target / "README.md").write_text(card, encoding="utf-8")
    return survival(model, target, original=original)


def _majority(folder: ModelFolder) -> str:
    return next(short for short, name in DTYPES.items() if name == folder.dtype)


def survival(model: Any, saved: Path, *, original: ModelFolder) -> Survival:
    """Compare memory, saved file and original file, tensor by tensor."""
    import torch

    state = model.state_dict()
    saved_folder = inspect_model(saved, role="saved folder")
    moved = survived = total = 0
    for name, before in read_tensors(original):
        if name not in saved_folder.tensors or not before.is_floating_point():
            continue
        after = read_tensor(saved_folder, name)
        has_moved = state[name].detach().cpu().to(torch.float32) != before.to(torch.float32)
        stays_moved = after.to(torch.float32) != before.to(torch.float32)
        moved += int(has_moved.sum())
        survived += int((has_moved & stays_moved).sum())
        total += before.numel()
    return Survival(moved, survived, total)


def read_tensors(folder: ModelFolder, names: Sequence[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a folder one by one, in the dtype of the file."""
    for name in names if names is not None else folder.tensors:
        yield name, read_tensor(folder, name)


def read_tensor(folder: ModelFolder, name: str) -> Tensor:
    """One tensor, in the dtype of the file."""
    from safetensors import safe_open

    with safe_open(str(folder.path / folder.tensors[name].file), framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def check_quantizable(folder: ModelFolder) -> None:
    """Refuse, by name and before anything runs, an architecture whose linears are not known."""
    if folder.model_type not in QUANTIZABLE:
        raise BadInput(
            f"MODEL {folder.path}: quantization does not know the architecture {folder.model_type!r}. "
            f"Known: {', '.join(QUANTIZABLE)}"
        )


def decoder_linears(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers inside the decoder's blocks by name; embeddings and head are not among them.

    Hugging Face's Conv1D (GPT-2) counts; its weight is (in, out): see `as_matrix`.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    outside = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}  # type: ignore[operator]
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) not in outside
    }
    if not found:
        raise BadInput(f"{type(model).__name__} has no linear layers inside its blocks that could be quantized")
    return found


def as_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    """A weight, or anything of its shape, as (out, in). Its own inverse."""
    from transformers.pytorch_utils import Conv1D

    return weight.t() if isinstance(module, Conv1D) else weight


def pick_device(device: str = "auto") -> str:
    """ "auto" is cuda where there is one, else cpu."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"device {device!r}: this machine has no CUDA device. Use --device cpu")
    return device


def working_dtype(device: str) -> torch.dtype | None:
    """Autocast dtype of a forward: bfloat16 on a GPU, none (float32) on the CPU, where bfloat16 is emulated."""
    import torch

    return torch.bfloat16 if device.startswith("cuda") else None
