"""Training in the merged basis against the published form, in which weights stay and are rotated on their way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from letheon.lowbit.activations import low_bit_activations
from letheon.lowbit.architectures import BlockLayout, block_layout, gain, model_layout
from letheon.lowbit.low_bit_pass import Basis, pass_named
from letheon.lowbit.online import OnlineRotations
from letheon.lowbit.rotating import rotate_down, rotate_values, site_rotation
from letheon.lowbit.rotations.hadamard import HadamardRotation
from letheon.models import as_matrix
from letheon.numerics.hadamard import Hadamard
from letheon.training.straight_through import trained_through
from tests.lowbit.lively import IDS, lively

VALUES, DOWN = site_rotation("values", 8, seed=3), site_rotation("down", 48, seed=3)
FOUR = pass_named("w4a4kv4")


class Columns(nn.Module):
    """W -> W R, every group of inputs alone."""

    def __init__(self, rotation: Hadamard) -> None:
        super().__init__()
        self.rotation = rotation

    def forward(self, weight: Tensor) -> Tensor:
        groups = weight.reshape(len(weight), -1, self.rotation.size)
        return self.rotation.rotate(groups).reshape(weight.shape)


class Rows(Columns):
    """W -> R^T W, every head of the outputs alone."""

    def forward(self, weight: Tensor) -> Tensor:
        return super().forward(weight.T).T


def merged() -> tuple[Any, Basis]:
    """R2 and R4 are in the weights before the first step."""
    model = lively("llama_grouped", seed=1)
    blocks = block_layout(model)
    for block in blocks:
        rotate_values(model, block, VALUES)
        rotate_down(model, block, DOWN)
    return model, basis_of(blocks)


def on_the_way() -> tuple[Any, Basis]:
    """Each weight stays in its own basis, and whoever reads it gets it rotated."""
    model = lively("llama_grouped", seed=1)
    blocks = block_layout(model)
    for block in blocks:
        for name, turn in ((block.value, Rows(VALUES)), (block.output, Columns(VALUES)), (block.down, Columns(DOWN))):
            parametrize.register_parametrization(model.get_submodule(str(name)), "weight", turn, unsafe=True)
    return model, basis_of(blocks)


def basis_of(blocks: list[BlockLayout]) -> Basis:
    indices = [block.index for block in blocks]
    return Basis(online=OnlineRotations(down=dict.fromkeys(indices, DOWN)), blocks=tuple(blocks))


def steps(model: Any, basis: Basis, optimizer: type[torch.optim.Optimizer], **settings: Any) -> list[float]:
    made = optimizer(model.requires_grad_(True).parameters(), **settings)
    losses = []
    with trained_through(model, FOUR, basis):
        for _ in range(4):
            loss = model(input_ids=IDS, labels=IDS).loss
            loss.backward()
            made.step()
            made.zero_grad()
            losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(("optimizer", "is_same"), [(torch.optim.SGD, True), (torch.optim.AdamW, False)])
def test_gradient_steps_are_those_of_weights_rotated_on_the_way_and_adaptive_ones_are_not(
    optimizer: Any, is_same: bool
) -> None:
    """A whole model in float64, all four bits on: what is trained, layer by layer, and every loss on the way."""
    (model, basis), (other, other_basis) = merged(), on_the_way()
    rate = {"lr": 0.05 if is_same else 1e-2}
    found, expected = steps(model, basis, optimizer, **rate), steps(other, other_basis, optimizer, **rate)
    assert found[0] == pytest.approx(expected[0], rel=1e-10) and len(set(found)) == 4
    assert (found == pytest.approx(expected, rel=1e-9)) is is_same
    for block in block_layout(model):
        for name in (*block.linears,):
            pair = [one.get_submodule(name).weight.detach() for one in (model, other)]
            assert torch.allclose(*pair, rtol=1e-8, atol=1e-9) is is_same, name


@pytest.mark.parametrize("name", ["llama_tied", "llama_grouped", "qwen2", "mistral", "gemma", "gpt2", "gpt_neox"])
def test_at_sixteen_bits_every_gradient_is_the_models_own_in_another_basis(name: str) -> None:
    """R1 to R4: W' = W diag(gain) Q in what reads the MLP's norm, so dL/dW = dL/dW' Q^T diag(gain). Float64."""
    model, other = lively(name, seed=1), lively(name, seed=1)
    layout = model_layout(other)
    rotated = HadamardRotation().rotate(other)
    for one in (model, other):
        one.requires_grad_(True)
    losses = [model(input_ids=IDS, labels=IDS).loss]
    with low_bit_activations(other, grids=pass_named("w16a16kv16").grids, online=rotated.online):
        losses.append(other(input_ids=IDS, labels=IDS).loss)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=1e-10)
    for block in layout.blocks:
        gains = gain(model.get_submodule(block.mlp_norm), block.norm_kind).double()
        for reader in block.readers[block.mlp_norm]:
            original, turned = (one.get_submodule(reader) for one in (model, other))
            before, after = (as_matrix(one, one.weight.detach()) for one in (original, turned))
            rotation = torch.linalg.lstsq(before * gains, after).solution  # Q, whatever keeps the mean in it
            torch.testing.assert_close(before * gains @ rotation, after, rtol=1e-8, atol=1e-8)
            expected = as_matrix(original, original.weight.grad)
            found = as_matrix(turned, turned.weight.grad)
            one = torch.eye(len(rotation), dtype=torch.float64)
            torch.testing.assert_close(rotation @ rotation.T, one, rtol=0, atol=1e-7)
            back = found @ rotation.T * gains
            if block.norm_kind == "layer":  # the norm's bias was read by W and stands in b' now
                back = back + torch.outer(turned.bias.grad, model.get_submodule(block.mlp_norm).bias.detach())
            torch.testing.assert_close(back, expected, rtol=1e-6, atol=1e-9)
