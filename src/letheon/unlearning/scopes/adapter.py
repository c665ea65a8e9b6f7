"""The weights stay; a low-rank change beside each linear layer moves, and is added to them at the end.

    y = x (W + s B A)^T + b        A: (rank, in), B: (out, rank), s = alpha / rank
A is drawn from the run's seed, uniform within 1 / root(in); B is 0, so the first step begins at the original. What is
clipped, smoothed, balanced and remembered by the optimizer is A and B alone: sam's radius is a length in their space,
where it is tiny beside one of all weights. The change is added in float32 and saved as the original is stored.

Small changes in many places are what rounding takes back (see sure), so audit the folder at the bits that it ships in.

Source: LoRA, Hu et al. 2021, arXiv:2106.09685; the layers are those of the peft package (pip install
'letheon[adapters]').
Checked against: the original to the bit before the change is added, the change added = beside in float64, peft's own
loading of the saved adapter, GPT-2's turned weights, a run stopped and continued.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from letheon.errors import BadInput, MissingExtra, require
from letheon.models import Exact, as_matrix, decoder_linears
from letheon.training.low_rank import NAME, factors, join_low_rank, low_rank_layers


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """How wide the change is, and where it stands."""

    rank: int = 8
    """Columns of B, >= 1."""
    alpha: float = 16.0
    """The change is alpha / rank times B A, > 0."""
    dropout: float = 0.0
    """Has to be 0: a step is a function of weights and batch, so that a killed run continues to the same bits."""
    targets: tuple[str, ...] = ()
    """Patterns of layers such as *.mlp.down_proj; each has to fit the whole name. None: all linear layers inside the
    decoder's blocks."""
    merge: bool = True
    """What is saved is the model with the change added, an ordinary folder. false: beside it, in its folder adapter/,
    the change alone, which peft loads onto the original."""

    is_narrow: ClassVar[bool] = True
    """Most weights never move."""
    is_factored: ClassVar[bool] = True
    """What moves are factors of a change: their mean over steps is not the mean of the weights."""
    extra: ClassVar[tuple[str, str]] = ("peft", "adapters")
    """The package that it needs, and the extra that brings it."""

    def __post_init__(self) -> None:
        require(1 <= self.rank <= 2**16, f"adapter needs 1 <= rank <= {2**16}, got {self.rank}")
        require(math.isfinite(self.alpha) and self.alpha > 0, f"adapter needs alpha > 0, got {self.alpha}")
        require(
            self.dropout == 0,
            f"adapter needs dropout 0, got {self.dropout}: the loop draws nothing while it steps, so that a run that "
            "was killed continues to the same bits",
        )

    def layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """Name -> linear layer that gets a change. Raises BadInput where a pattern fits none."""
        linears = decoder_linears(model)
        idle = [pattern for pattern in self.targets if not any(fnmatchcase(name, pattern) for name in linears)]
        if idle:
            shown = ", ".join(list(linears)[:3])
            raise BadInput(
                [
                    f"adapter: target {pattern!r} fits no linear layer of {type(model).__name__}. Names are such as "
                    f"{shown}"
                    for pattern in idle
                ]
            )
        chosen = self.targets or ("*",)
        return {name: layer for name, layer in linears.items() if any(fnmatchcase(name, pattern) for pattern in chosen)}

    def attach(self, model: nn.Module, *, seed: int) -> None:
        """Put the change beside the layers. Raises MissingExtra without peft, BadInput where a pattern fits none."""
        if find_spec("peft") is None:
            raise MissingExtra("scope 'adapter'", "adapters")
        from peft import LoraConfig, inject_adapter_in_model
        from transformers.pytorch_utils import Conv1D

        layers = self.layers(model)
        alpha: Any = self.alpha  # annotated as an int there, and any number is taken
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=alpha,
            target_modules=list(layers),
            fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in layers.values()),
        )
        inject_adapter_in_model(config, model, low_cpu_mem_usage=True)  # without values: they are drawn below
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
        for layer in low_rank_layers(model).values():
            plain = layer.base_layer
            inputs = as_matrix(plain, plain.weight).shape[1]
            dtype = torch.promote_types(plain.weight.dtype, torch.float32)
            drawn = torch.rand(self.rank, inputs, generator=generator, dtype=dtype) * 2 - 1
            outputs = factors(layer)[1].shape[0]
            layer.lora_A[NAME].weight = nn.Parameter((drawn / math.sqrt(inputs)).to(plain.weight.device))
            layer.lora_B[NAME].weight = nn.Parameter(
                torch.zeros(outputs, self.rank, dtype=dtype).to(plain.weight.device)
            )

    def select(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Name -> each A and B of a model that was attached to."""
        found = low_rank_layers(model)
        return {
            f"{name}.{part}.{NAME}.weight": factor
            for name, layer in found.items()
            for part, factor in zip(("lora_A", "lora_B"), factors(layer), strict=True)
        }

    def init(self, model: nn.Module, moving: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """No state."""
        return {}

    def after_step(self, moving: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
        """Nothing to put back: the weights themselves never get a gradient."""

    def detach(self, model: nn.Module, *, original: Path) -> tuple[AdapterFiles | None, Exact]:
        """Add the change to the weights, and leave the model as it was made.

        Args:
            model: attached to.
            original: the folder that it was loaded from, named in the adapter's configuration.
        Returns:
            With merge=False the change for a file, and what is still to be added to weights in a half precision.
        """
        kept = None if self.merge else _files(model, original)
        changes = join_low_rank(model)
        for name in ("peft_config", "active_adapter"):
            model.__dict__.pop(name, None)
        return kept, changes.exact


class AdapterFiles:
    """A change alone, as peft keeps it."""

    def __init__(self, config: Any, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self.tensors = dict(tensors)

    def save(self, folder: Path) -> None:
        """Write adapter_config.json and adapter_model.safetensors into `folder`/adapter."""
        from safetensors.torch import save_file

        target = folder / "adapter"
        target.mkdir()
        self.config.save_pretrained(str(target))
        save_file(self.tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})


def _files(model: Any, original: Path) -> AdapterFiles:
    """The change of an attached model under the names that peft asks for."""
    from copy import deepcopy

    config = deepcopy(model.peft_config[NAME])
    config.base_model_name_or_path = str(original)
    config.inference_mode = True
    tensors = {
        f"base_model.model.{name}.{part}.weight": factor.detach().cpu().contiguous()
        for name, layer in low_rank_layers(model).items()
        for part, factor in zip(("lora_A", "lora_B"), factors(layer), strict=True)
    }
    return AdapterFiles(config, tensors)
