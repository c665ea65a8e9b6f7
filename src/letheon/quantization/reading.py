"""Read the low-bit file that ships: whichever format it is in, as the dense weights that its codes stand for.

A folder says in config.json (quantization_config.quant_method) what it is; a *.gguf file says it itself. Nothing is
loaded that could run code: no pickles, no code of the model's own, and none of the packages that the formats belong to.
The weights are what a loader of the file computes with: scale * (code - zero) in float32, in the dtype of config.json.

Source: this project.  Checked against: every format written and read again in a fresh process; transformers' own
loading where it has one; damaged folders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from letheon.errors import BadInput
from letheon.lowbit.activations import install
from letheon.lowbit.online import read_online
from letheon.methods import load, names
from letheon.models import ModelFolder, check_loaded, inspect_model, load_model, read_folder
from letheon.numerics.grids import Quantized
from letheon.quantization.activation_config import read_grids
from letheon.quantization.low_bit_linear import run_on_codes
from letheon.quantization.packed_linear import pack_linears
from letheon.quiet import quiet_transformers

_BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".masked_bias", ".attention.bias")
"""Positions and masks that older files keep beside their weights."""


_WITH_CODES = ("compressed_tensors", "gptq", "awq")
"""Formats that give their codes out."""


@dataclass(frozen=True)
class LowBitFile:
    """What there is to read."""

    folder: ModelFolder
    """Its configuration and headers. For a *.gguf without config.json, the configuration that its metadata say."""
    format: str
    """A method of kind format: "gptq"; "dense" for a folder that is not quantized."""

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the dense model."""
        return {key: value for key, value in self.folder.config.items() if key != "quantization_config"}

    def rounded(self) -> Iterator[tuple[str, Quantized]]:
        """The codes and scales of the rounded layers, under the names of their weights.

        Raises:
            BadInput: a format whose codes are not read as such.
        """
        if self.format not in _WITH_CODES:
            raise BadInput(
                f"{self.folder.path}: the codes of format {self.format} are read as values alone. Use a file of format "
                f"{', '.join(_WITH_CODES)}"
            )
        for name, found in load("format", self.format).read(self.folder, as_codes=True):
            if isinstance(found, Quantized):
                yield name, found

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor under its name in a dense folder, one at a time. Raises BadInput for what does not fit."""
        return load("format", self.format).read(self.folder)  # type: ignore[no-any-return]


def read_low_bit(path: Path, *, role: str = "MODEL") -> LowBitFile:
    """Look at a low-bit model, whatever its format.

    Args:
        path: a folder with config.json and safetensors, a *.gguf file, or a folder with one.
        role: named in faults.
    Raises:
        BadInput: what `read_folder` refuses; a quant_method that is not read, with those that are.
    """
    path = Path(path)
    if (file := _gguf_file(path, role)) is not None:
        return LowBitFile(load("format", "gguf").open(file, role=role), "gguf")
    folder = read_folder(path, role=role, allow_quantized=True)
    found = folder.config.get("quantization_config")
    method = str(found.get("quant_method", "?")) if isinstance(found, dict) else ""
    methods = {load("format", name).quant_method: name for name in names("format")}
    if method not in methods:
        readable = ", ".join(sorted(known for known in methods if known))
        raise BadInput(
            f"{role} {path}: quant_method {method!r} is not read. Readable: {readable}, and folders that are not "
            "quantized. Convert it with the software it was made with"
        )
    if methods[method] == "compressed_tensors":
        read_grids(folder)
    return LowBitFile(folder, methods[method])


def inspect_any(path: Path, *, role: str = "MODEL") -> ModelFolder:
    """Look at a model, low-bit or not, without loading it. Raises what `inspect_model` or `read_low_bit` refuses."""
    path = Path(path)
    found = read_low_bit(path, role=role) if path.exists() else None
    if found is not None and path.is_file() and _gguf_file(path.parent, role) != path:
        raise BadInput(
            f"{role} {path}: other weights lie beside it, and it has to be clear which are asked. Move it to a folder "
            "of its own"
        )
    return inspect_model(path, role=role) if found is None or found.format == "dense" else found.folder


def load_any(path: Path, *, device: str = "cpu") -> Any:
    """The model of a folder or file, low-bit or not, in float32 and evaluation mode. Raises what its loader does."""
    is_dense = read_low_bit(path).format == "dense"
    return load_model(path, device=device) if is_dense else load_low_bit(path, device=device)


def _gguf_file(path: Path, role: str) -> Path | None:
    if path.suffix == ".gguf" and path.is_file():
        return path
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if not files or (path / "model.safetensors").is_file() or (path / "model.safetensors.index.json").is_file():
        return None
    if len(files) > 1:
        raise BadInput(f"{role} {path}: holds {len(files)} GGUF files ({files[0].name}, ...). Give one of them")
    return files[0]


def load_packed(path: Path, *, exact: bool = False) -> tuple[Any, dict[str, str]]:
    """The model of a low-bit file on the CPU, its layers as the codes they are: faster for few tokens, and small.

    Args:
        path: a file or folder of compressed_tensors, gptq or awq.
        exact: multiply with the weights that the file stands for, in float32, 4 and 8 bits (see `low_bit_linear`):
            the logits are those of `load_low_bit` but for the order of sums. False: 4 bits in bfloat16 (see
            `packed_linear`), faster, and for running a model only.
    Returns:
        The model, and layer -> why it stays as dense weights.
    Raises:
        BadInput: what `load_low_bit` and `rounded` refuse.
    """
    model = load_low_bit(path)
    layers = read_low_bit(path).rounded()
    return model, run_on_codes(model, layers) if exact else pack_linears(model, layers)


def load_low_bit(path: Path, *, device: str = "cpu") -> Any:
    """The model of a low-bit file in float32 and evaluation mode, as an audit asks it.

    Where the file says that something is rounded or rotated while it runs, hooks on the model do so from then on.

    Raises:
        BadInput: what `read_low_bit` refuses, or weights that are missing or of another shape than the configuration
            says (transformers would make them up).
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, GenerationConfig

    architectures: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    found = read_low_bit(path)
    state = {name: tensor.float() for name, tensor in found.tensors()}
    with quiet_transformers():
        try:
            config = AutoConfig.for_model(**found.config)
            loaded: Any = architectures[type(config)].from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, by name
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"MODEL {path}: transformers cannot open {found.folder.model_type!r} as a causal language model "
                f"({str(error).splitlines()[0]})"
            ) from error
    model, report = loaded
    check_loaded(path, report)
    strange = sorted(str(name) for name in report["unexpected_keys"] if not str(name).endswith(_BUFFERS))
    if strange:
        raise BadInput(
            f"MODEL {path}: {len(strange)} tensors belong to no part of the model ({strange[0]}). What they change "
            "would not be asked. Merge adapters first, or convert it with the software it was made with"
        )
    if (found.folder.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(found.folder.path), local_files_only=True)
    model = model.to(device).eval()
    install(model, grids=read_grids(found.folder), online=read_online(model.config))
    return model
