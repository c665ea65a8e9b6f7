"""The matrices of a decoder that are rounded, each by itself: weights of linears, and those of a mixture's experts.

transformers holds the experts of a block as tensors of three axes, files hold them one by one (Mixtral, E experts):
    mlp.experts.gate_up_proj  (E, 2 inner, width)     block_sparse_moe.experts.e.w1 (gate), .w3 (up)  (inner, width)
    mlp.experts.down_proj     (E, width, inner)       block_sparse_moe.experts.e.w2                   (width, inner)
So a matrix has the name that files give its layer, and is a view: what is written into it is written into the model.
A tensor of three axes whose layout is not known is refused wherever all matrices are asked for: passing over it would
leave most of the model as it was.

Source: transformers' own renaming of experts at saving (conversion_mapping, "mixtral").
Checked against: the tensors of a saved folder, one by one; an architecture whose experts are not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from letheon.errors import BadInput
from letheon.models import as_matrix, decoder_linears

if TYPE_CHECKING:
    from torch import Tensor, nn

    from letheon.lowbit.architectures import BlockLayout


@dataclass(frozen=True, kw_only=True)
class ExpertLayers:
    """Names of one expert's layers in files, without ".weight"."""

    index: int
    gate: str
    up: str
    down: str

    @property
    def names(self) -> tuple[str, str, str]:
        """In the order in which they run."""
        return self.gate, self.up, self.down


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrix:
    """One weight of the model."""

    weight: Tensor
    """(out, in), a view without a gradient."""
    parameter: str
    """Name of the parameter that it is a part of, or all of."""
    is_turned: bool = False
    """Whether the parameter, and every file, holds (in, out): Conv1D of GPT-2."""
    is_expert: bool = False
    """Whether it is one of the experts' of a mixture, which the parameter holds all of."""

    def of_file(self, stored: Tensor) -> Tensor:
        """What a file holds of this matrix, as (out, in)."""
        return stored.t() if self.is_turned else stored


def expert_layers(experts: str, count: int) -> tuple[ExpertLayers, ...]:
    """The layers of a module of experts as Mixtral's files name them, such as "model.layers.0.mlp.experts"."""
    stem = f"{experts.removesuffix('.mlp.experts')}.block_sparse_moe.experts"
    return tuple(
        ExpertLayers(index=index, gate=f"{stem}.{index}.w1", up=f"{stem}.{index}.w3", down=f"{stem}.{index}.w2")
        for index in range(count)
    )


def router_layer(experts: str) -> str:
    """What Mixtral's files call the layer that chooses among the experts; it is never rounded."""
    return f"{experts.removesuffix('.mlp.experts')}.block_sparse_moe.gate"


def fused_experts(model: nn.Module) -> list[str]:
    """Names of modules that hold several matrices in one tensor, which no list of linears has."""
    from torch.nn.modules.conv import _ConvNd

    def is_fused(module: nn.Module) -> bool:
        if isinstance(module, _ConvNd):
            return False
        own = dict(module.named_parameters(recurse=False))
        return any(
            tensor.dim() == 3 and (min(tensor.shape) > 1 or name.endswith("_proj")) for name, tensor in own.items()
        )

    return [name for name, module in model.named_modules() if is_fused(module)]


def decoder_matrices(model: nn.Module) -> dict[str, Matrix]:
    """Every matrix inside the decoder's blocks by the name of its layer; embeddings, head and routers are not there.

    Raises:
        BadInput: no linears, or experts whose layout is not known.
    """
    found = {name: _of_linear(name, module) for name, module in decoder_linears(model).items()}
    for name in fused_experts(model):
        found |= _of_experts(model, name)
    return found


def block_matrices(model: Any, block: BlockLayout) -> dict[str, Matrix]:
    """The matrices of `block.layers`, in that order."""
    found = {name: _of_linear(name, model.get_submodule(name)) for name in block.linears}
    return found if block.experts is None else found | _of_experts(model, block.experts)


def _of_linear(name: str, module: Any) -> Matrix:
    weight = as_matrix(module, module.weight)
    return Matrix(weight=weight.detach(), parameter=f"{name}.weight", is_turned=weight is not module.weight)


def _of_experts(model: Any, name: str) -> dict[str, Matrix]:
    config = getattr(model, "config", None)
    if getattr(config, "model_type", "") != "mixtral" or not name.endswith(".mlp.experts"):
        raise BadInput(
            f"{type(model).__name__}: {name} holds several matrices in one tensor, and which they are is known of "
            "Mixtral alone. Give a model without experts, or Mixtral"
        )
    module = model.get_submodule(name)
    gates, downs = (f"{name}.{part}" for part in ("gate_up_proj", "down_proj"))
    found: dict[str, Matrix] = {}
    for expert in expert_layers(name, len(module.down_proj)):
        gate, up = module.gate_up_proj.detach()[expert.index].chunk(2)
        found[expert.gate] = Matrix(weight=gate, parameter=gates, is_expert=True)
        found[expert.up] = Matrix(weight=up, parameter=gates, is_expert=True)
        found[expert.down] = Matrix(weight=module.down_proj.detach()[expert.index], parameter=downs, is_expert=True)
    return found
