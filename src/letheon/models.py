"""Model folders: inspect without loading, load without running a stranger's code, save in the original's precision.

A folder is a Hugging Face causal language model: config.json, safetensors weights, a tokenizer. Pickled weights and
remote code are refused. After saving, the files are read back, because a bfloat16 file cannot hold a change smaller
than half its grid: what does not survive the file was not forgotten.

Source: the safetensors format (an 8-byte length, a JSON header, the bytes).  Checked against: half a download, a
pickle, remote code, tied weights, renamed tensors, a change below the bfloat16 grid.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from letheon.blueprint import misfits
from letheon.errors import BadInput, CannotFinish
from letheon.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

GATE_NAME = "letheon.json"
"""File in a model folder that says which strangers a gate looked at."""
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
"""Floating-point types of a safetensors header, and torch's names for them: what weights may be stored as."""
_BUFFERS = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
"""Types of masks and positions, which older folders (GPT-2, Pythia) keep beside their weights."""
QUANTIZABLE = ("llama", "qwen2", "mistral", "mixtral", "gemma", "gpt2", "gpt_neox")
"""Architectures (config.model_type) whose decoder's matrices are known, hence can be quantized."""
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
            if tensor.dtype in DTYPES:
                sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
        return DTYPES[max(sizes, key=lambda name: sizes[name])]

    @property
    def parameters(self) -> int:
        """Number of stored weights (tied ones once)."""
        return sum(tensor.size for tensor in self.tensors.values() if tensor.dtype in DTYPES)

    @property
    def is_packed(self) -> bool:
        """Whether its layers are stored as codes of a low-bit format, so that no weight can be read as it is."""
        return bool(self.config.get("quantization_config")) or any(
            tensor.file.endswith(".gguf") for tensor in self.tensors.values()
        )

    @property
    def depth(self) -> int | None:
        """Number of the decoder's blocks; None where the config does not say."""
        for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
            if isinstance(self.config.get(key), int):
                return int(self.config[key])
        return None

    @property
    def window(self) -> int:
        """Context window in tokens; 2048 where the config does not say."""
        for key in ("max_position_embeddings", "n_positions"):
            if isinstance(self.config.get(key), int):
                return int(self.config[key])
        return 2048


def inspect_model(path: Path, *, role: str = "MODEL") -> ModelFolder:
    """Read config and headers, and refuse what cannot be loaded safely, or cannot be loaded at all.

    Raises:
        BadInput: with every fault: what `read_folder` refuses, an architecture that is no causal language model,
            weights of other names or shapes than the configuration asks for.
    """
    folder = read_folder(path, role=role)
    shapes = {name: tensor.shape for name, tensor in folder.tensors.items()}
    if problems := misfits(folder.path, shapes, role=role):
        raise BadInput(problems)
    return folder


def read_folder(path: Path, *, role: str = "MODEL", allow_quantized: bool = False) -> ModelFolder:
    """Read config and headers, without torch, and refuse what cannot be loaded safely.

    Args:
        path: the folder.
        role: named in faults.
        allow_quantized: whether it may be quantized: its tensors are then those of a packed format.
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
    if not isinstance(config, dict) or "model_type" not in config:
        raise BadInput(f"{role} {path / 'config.json'}: no 'model_type', so the architecture is unknown")
    problems = _code_problems(path, config, role)
    if _stays_rotated(config) and not (allow_quantized and _says_transforms(config)):
        problems.append(
            f"{role} {path}: was rotated, and a part of the rotation stays in its forward pass (letheon_rotation in "
            "config.json): its weights alone are another model. Give the folder it was made from"
        )
    if config.get("quantization_config") and not allow_quantized:
        problems.append(f"{role} {path}: is already quantized. Give the full-precision folder it was made from")
    tensors: dict[str, StoredTensor] = {}
    try:
        tensors = _read_headers(path, role)
    except BadInput as error:
        problems.extend(error.problems)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES and tensor.dtype not in _BUFFERS:
            problems.append(f"{role} {path}: tensor {name} is stored as {tensor.dtype}; known: {', '.join(DTYPES)}")
            break
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        problems.append(
            f"{role} {path}: no tokenizer (tokenizer.json). Copy the tokenizer files of the model beside its weights"
        )
    if problems:
        raise BadInput(problems)
    return ModelFolder(path=path, config=config, tensors=tensors)


def read_weights(path: Path, *, role: str) -> ModelFolder:
    """The tensors of a folder that holds weights alone, as training puts them aside. Raises BadInput: no whole file."""
    return ModelFolder(path=path, config={}, tensors=_read_headers(path, role))


def _stays_rotated(config: Mapping[str, Any]) -> bool:
    """Whether a rotation has left a transform in the forward pass, which the weights alone do not have."""
    marker = config.get("letheon_rotation")
    online = marker.get("online") if isinstance(marker, dict) else None
    return marker is not None and (not isinstance(online, dict) or any(online.values()))


def _says_transforms(config: Mapping[str, Any]) -> bool:
    """Whether its format says what is rotated while it runs."""
    said = config.get("quantization_config")
    return isinstance(said, dict) and bool(said.get("transform_config"))


def _code_problems(path: Path, config: Mapping[str, Any], role: str) -> list[str]:
    """Whether the model or its tokenizer wants code of its own to be run."""
    settings: dict[str, Any] = {"config.json": config}
    try:
        settings["tokenizer_config.json"] = json.loads((path / "tokenizer_config.json").read_bytes())
    except FileNotFoundError:
        pass
    except ValueError as error:
        return [f"{role} {path / 'tokenizer_config.json'}: not JSON ({error}). Download the folder again"]
    return [
        f"{role} {path}: needs the model's own code (auto_map in {file}). letheon never runs remote code"
        for file, values in settings.items()
        if isinstance(values, dict) and values.get("auto_map")
    ]


def _read_headers(path: Path, role: str) -> dict[str, StoredTensor]:
    weight_map = _weight_map(path, role)
    files = [path / name for name in sorted(set(weight_map.values()))] or [path / "model.safetensors"]
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors.update(_read_header(file, role))
    lost = [name for name in weight_map if name not in tensors]
    if lost:
        raise BadInput(
            f"{role} {path}: half a download, {len(lost)} tensors of the index are in no file ({lost[0]}). "
            "Download it again"
        )
    if not any(tensor.dtype in DTYPES for tensor in tensors.values()):
        found = f"only {next(iter(tensors.values())).dtype}" if tensors else "no tensors"
        raise BadInput(f"{role} {path}: its weight files hold {found}, so there are no weights to train")
    return tensors


def _weight_map(path: Path, role: str) -> dict[str, str]:
    """Tensor -> file by the index; empty where all stand in model.safetensors, which is preferred to an index."""
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").is_file():
        return {}
    if index.is_file():
        try:
            weight_map = {str(key): str(value) for key, value in json.loads(index.read_bytes())["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{role} {index}: is damaged (half a download?). Download it again") from error
        wanted = sorted(set(weight_map.values()))
        missing = [name for name in wanted if not (path / name).is_file()]
        if missing:
            raise BadInput(
                f"{role} {path}: half a download, {len(missing)} of {len(wanted)} files are missing ({missing[0]}). "
                "Download it again"
            )
        return weight_map
    others = sorted(file.name for file in path.glob("*.safetensors"))
    if any("-of-" in name for name in others):
        raise BadInput(
            f"{role} {path}: half a download, {others[0]} without model.safetensors.index.json. Download it again"
        )
    pickles = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern)]
    if pickles:
        raise BadInput(
            f"{role} {path}: pickled weights ({pickles[0]}) can run code when they are opened, and are refused. "
            "Convert them with transformers' save_pretrained, which writes safetensors"
        )
    beside = f" (only {others[0]})" if others else ""
    raise BadInput(f"{role} {path}: no model.safetensors{beside}. Give the folder of a whole model")


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
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
            tensors = {
                name: StoredTensor(file.name, str(entry["dtype"]), tuple(map(int, entry["shape"])))
                for name, entry in entries.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise broken from None
    if size != 8 + length + end:
        raise broken
    return tensors


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a folder. Raises BadInput when transformers cannot open it."""
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        raise BadInput(
            f"MODEL {path}: its tokenizer cannot be opened ({reason}). "
            "Copy the tokenizer files of the model beside its weights"
        ) from error


def load_model(path: Path, *, dtype: str = "float32", device: str = "cpu") -> Any:
    """The model of a folder, in evaluation mode. `dtype` is "float32" (masters) or "stored".

    Raises:
        BadInput: what `read_folder` refuses, an architecture that transformers does not know as a causal language
            model, or weights that are missing or of another shape (transformers would make them up).
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = read_folder(path)
    wanted = getattr(torch, folder.dtype if dtype == "stored" else dtype)
    with quiet_transformers():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(path),
                dtype=wanted,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, by name
            )
        except (ValueError, KeyError) as error:
            raise BadInput(
                f"MODEL {path}: transformers cannot open {folder.model_type!r} as a causal language model "
                f"({str(error).splitlines()[0]})"
            ) from error
    model, report = loaded
    check_loaded(path, report)
    return model.to(device).eval()


def check_loaded(path: Path, report: Mapping[str, Any]) -> None:
    """Raise BadInput where transformers has made weights up: they were missing, or of another shape."""
    wrong = sorted(str(entry[0]) for entry in report["mismatched_keys"])
    absent = sorted(str(name) for name in report["missing_keys"] if name not in wrong)
    if absent or wrong:
        raise BadInput(
            f"MODEL {path}: {len(absent) + len(wrong)} weights are missing or of another shape than config.json "
            f"says ({(absent + wrong)[0]}). Download it again"
        )


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


Exact = Callable[[str, "Tensor"], "Tensor"]
"""(name, tensor of the model) -> the same as training holds it, where the model's own precision is lower."""


def as_it_is(name: str, tensor: Tensor) -> Tensor:
    """The tensor that the model has."""
    return tensor


def save_model(
    model: Any,
    target: Path,
    *,
    original: ModelFolder,
    save_dtype: str = "original",
    card: str = "",
    gate_units: Sequence[str] = (),
    exact: Exact = as_it_is,
    start: ModelFolder | None = None,
) -> Survival:
    """Write a model folder next to nothing else: weights in the original's precision, tokenizer, model card.

    Args:
        model: the model in memory (float32 masters).
        target: an empty folder; the caller makes the swap atomic.
        original: the folder the model was loaded from; its dtypes, tokenizer and generation config are kept.
        save_dtype: "original" or a torch dtype's name.
        card: text of the README.md.
        gate_units: hashes of the strangers that a gate looked at; those of the original's own are carried over.
        exact: what training holds of a tensor beyond what the model does; asked for one tensor at a time.
        start: the weights that the change is counted from, where training began at others than the original's.
    Returns:
        How much of the change survived the file (read back from it).
    """
    import torch

    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    names, owners = _names_in_files(model, state), _owners(state)
    entries = {_bare(name, model): entry for name, entry in original.tensors.items()}
    wanted = original.dtype if save_dtype == "original" else save_dtype
    ready: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            ready[name] = tensor.cpu()
            continue
        if name == owners[name]:
            entry = entries.get(names.get(name, _bare(name, model)))
            keeps = save_dtype == "original" and entry is not None and entry.dtype in DTYPES
            dtype = DTYPES[entry.dtype] if entry is not None and keeps else wanted
            ready[name] = exact(name, tensor.cpu()).to(getattr(torch, dtype))
            if not torch.isfinite(ready[name]).all():
                raise CannotFinish(
                    f"tensor {name} holds NaN or infinity as {dtype}; nothing was saved. Use a smaller learning rate"
                )
        ready[name] = ready[owners[name]]  # tied weights stay one tensor, which is stored once
    with quiet_transformers():
        model.save_pretrained(target, state_dict=ready)
    del ready  # a whole model, and it is in its file
    _write_dtype(target / "config.json", wanted)
    load_tokenizer(original.path).save_pretrained(target)
    if card:
        (target / "README.md").write_text(card, encoding="utf-8")
    if used := sorted({*gate_units, *read_gate_units(original.path)}):
        (target / GATE_NAME).write_text(json.dumps({"gate_units": used}, indent=1) + "\n", encoding="utf-8")
    return survival(model, target, original=start or original, exact=exact)


def read_gate_units(folder: Path) -> list[str]:
    """Hashes of the strangers that a gate looked at when the model was made: they are no strangers to it any more.

    They lie in the model's folder, so that a copy of it keeps them. Raises BadInput where the file is damaged.
    """
    path = folder / GATE_NAME
    if not path.is_file():
        return []
    try:
        return [str(unit) for unit in json.loads(path.read_text(encoding="utf-8"))["gate_units"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is damaged ({error}). Take the folder from where it was made") from error


def _write_dtype(path: Path, dtype: str) -> None:
    """transformers writes the dtype in memory (float32 masters) into config.json; readers want the file's."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in {"dtype", "torch_dtype"} & set(config):
        config[name] = dtype
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _as_in_files(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model under the bare names of its files; transformers renames some on loading."""
    from transformers.core_model_loading import revert_weight_conversion

    return {_bare(name, model): tensor for name, tensor in revert_weight_conversion(model, dict(state)).items()}


def _bare(name: str, model: Any) -> str:
    """A tensor's name without the model's prefix, which some published files leave out (GPT-2)."""
    return name.removeprefix(f"{model.base_model_prefix}.")


def _names_in_files(model: Any, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Name in memory -> bare name in the file, for every tensor that is stored as it stands.

    Tied weights have a name each. Experts that memory holds as one tensor and files one by one are not in it.
    """
    in_files = _as_in_files(model, state)
    places: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, tensor in in_files.items():
        places.setdefault((tensor.data_ptr(), tuple(tensor.shape)), []).append(name)
    found: dict[str, str] = {}
    for name, tensor in state.items():
        same = places.get((tensor.data_ptr(), tuple(tensor.shape)), [])
        if same:
            found[name] = _bare(name, model) if _bare(name, model) in same else same[0]
    return found


def names_in_folder(model: Any, folder: ModelFolder) -> dict[str, str]:
    """Parameter of a model (tied ones once) -> its name in a folder's files, or where it is not there, as saved."""
    parameters: dict[str, Tensor] = {name: parameter.detach() for name, parameter in model.named_parameters()}
    bare = {_bare(name, model): name for name in folder.tensors}
    found = _names_in_files(model, parameters)
    return {name: bare.get(found[name], found[name]) for name in parameters if name in found}


def _owners(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> the first name of the same tensor, which is what its parameter is called."""
    first: dict[int, str] = {}
    return {name: first.setdefault(tensor.data_ptr(), name) for name, tensor in state.items()}


def survival(model: Any, saved: Path, *, original: ModelFolder, exact: Exact = as_it_is) -> Survival:
    """Compare memory, saved file and original file, tensor by tensor; the original as the saved file would hold it."""
    import torch

    in_memory = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    in_files, owners = _names_in_files(model, in_memory), _owners(in_memory)
    names = {place: owners[name] for name, place in in_files.items()}
    state = _as_in_files(
        model,
        {name: tensor if name in in_files else exact(name, tensor.cpu()) for name, tensor in in_memory.items()},
    )
    saved_folder = read_folder(saved, role="saved folder")
    in_saved = {_bare(name, model): name for name in saved_folder.tensors}
    moved = survived = total = 0
    for stored_name, before in read_tensors(original):
        name = _bare(stored_name, model)
        if name not in in_saved or name not in state or not before.is_floating_point():
            continue
        after = read_tensor(saved_folder, in_saved[name])
        held = exact(names[name], state[name].cpu()) if name in names else state[name].cpu()
        has_moved = held.to(torch.float32) != before.to(torch.float32)
        stays_moved = after.to(torch.float32) != before.to(after.dtype).to(torch.float32)
        moved += int(has_moved.sum())
        survived += int((has_moved & stays_moved).sum())
        total += before.numel()
    if not total:
        raise CannotFinish(f"{saved}: shares no tensor with {original.path}, so what was saved cannot be checked")
    return Survival(moved, survived, total)


def stored_name(folder: ModelFolder, name: str) -> str:
    """A parameter's name in its file: some files leave the body's prefix out. Raises BadInput where it is in none."""
    if name in folder.tensors:
        return name
    for stored in folder.tensors:
        if name.endswith(f".{stored}"):
            return stored
    raise BadInput(f"{folder.path} holds no tensor {name}. Give a model of the same architecture")


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

    Experts of a mixture are no linear layers: `letheon.lowbit.matrices` has them as well.
    Hugging Face's Conv1D (GPT-2) counts; its weight is (in, out): see `as_matrix`.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    outside = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}  # type: ignore[operator]
    found: dict[str, nn.Module] = {
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
    """The device by name; "auto" is cuda where there is one, else cpu."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise BadInput(f"device {device!r} is not one of auto, cpu, cuda, cuda:0, cuda:1, ...")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"device {device!r}: this machine has no CUDA device. Use --device cpu")
    return device


def working_dtype(device: str) -> torch.dtype | None:
    """Autocast dtype of a forward: bfloat16 on a GPU, none (float32) on the CPU, where bfloat16 is emulated."""
    import torch

    return torch.bfloat16 if device.startswith("cuda") else None
