"""Round a model block by block without any text: every layer by its weights alone.

Source: this project.  Checked against: each layer by hand; killed after any block; a layer that is refused, named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from letheon.errors import BadInput
from letheon.lowbit.architectures import ModelLayout
from letheon.lowbit.matrices import Matrix, block_matrices
from letheon.numerics.grids import Quantized, dequantize
from letheon.quantization.block_walk import Walked
from letheon.quantization.kept_blocks import KeptBlock, keep_block, kept_block


def round_plainly(
    model: Any,
    layout: ModelLayout,
    quantizer: Any,
    keep: Path,
    *,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Walked:
    """Round every block into a file in `keep`; those that are there are taken as they are.

    Raises:
        BadInput: a layer that the quantizer refuses, named.
    """
    found = Walked([])
    for block in layout.blocks:
        path = keep / f"block-{block.index:05d}.safetensors"
        if path.is_file():
            found.figures |= kept_block(path).figures["layers"]
        else:
            module = model.get_submodule(block.name).to(device)
            matrices = block_matrices(model, block)
            layers, lost = round_layers(matrices, quantizer)
            rounded = {matrix.parameter for matrix in matrices.values()}
            parameters = dict(module.named_parameters(prefix=block.name))
            others = {name: tensor.detach() for name, tensor in parameters.items() if name not in rounded}
            figures = {"layers": {name: {"weights": value} for name, value in lost.items()}}
            keep_block(path, KeptBlock(layers, others, figures))
            module.to("cpu")
            found.figures |= figures["layers"]
        found.files.append(path)
        progress(block.index + 1, len(layout.blocks), block.name)
    return found


@torch.no_grad()
def round_layers(matrices: Mapping[str, Matrix], quantizer: Any) -> tuple[dict[str, Quantized], dict[str, float]]:
    """Layers rounded one by one, and the relative squared error of each.

    Raises:
        BadInput: a layer that the quantizer refuses, named.
    """
    layers: dict[str, Quantized] = {}
    losses: dict[str, float] = {}
    for name, matrix in matrices.items():
        weight = matrix.weight.contiguous()
        try:
            layers[name] = quantizer.quantize_layer(weight, None)
        except BadInput as error:
            raise BadInput([f"layer {name}: {problem}" for problem in error.problems]) from error
        lost = (weight.double() - dequantize(layers[name]).double()).square().sum()
        losses[name] = float(lost / weight.double().square().sum().clamp_min(1e-300))
    return layers, losses
