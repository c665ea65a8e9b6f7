"""E by hand, and E of a whole model measured again from tensors that were taken out of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from letheon.data.batches import Batch
from letheon.errors import BadInput
from letheon.lowbit.architectures import block_layout
from letheon.lowbit.rotating import site_rotation
from letheon.lowbit.site_errors import SiteGrids, relative_error, site_errors, weight_error
from letheon.models import as_matrix
from letheon.numerics.grids import Grid, fake_quantize
from letheon.numerics.hadamard import Hadamard
from letheon.numerics.token_grids import TokenGrid, token_errors
from tests.architectures.models import ARCHITECTURES, make_model
from tests.lowbit.lively import lively
from tests.toys import batch_of, random_examples

GRIDS = SiteGrids(weights=Grid(bits=4), inputs=TokenGrid(bits=4), cache=TokenGrid(bits=3))
OFF = SiteGrids(weights=Grid(bits=16), inputs=TokenGrid(bits=16), cache=TokenGrid(bits=16))
CANDIDATES = {
    site: {"identity": None, "hadamard": site_rotation(site, size, seed=3)}
    for site, size in (("values", 8), ("keys", 8), ("down", 48))
}


def text(seed: int = 0) -> list[Batch]:
    """Two batches, padded to different lengths."""
    examples = random_examples(7, seed=seed, longest=14)
    return [batch_of(examples[:4]), batch_of(examples[4:])]


def candidates(model: Any) -> Any:
    down = block_layout(model)[0].down
    assert down is not None
    size = as_matrix(model.get_submodule(down), model.get_submodule(down).weight).shape[1]
    return {**CANDIDATES, "down": {"identity": None, "hadamard": site_rotation("down", size, seed=3)}}


def test_weight_error_by_hand() -> None:
    """Steps of the rows: 1, 1, 2 and 1/7; the first row loses 0.25 twice, the second nothing, the third 1 four times."""
    weight = torch.tensor(
        [[7.0, 1.25, -2.25, 0.0], [7.0, -3.0, 2.0, 1.0], [14.0, 1.0, -3.0, 5.0], [1.0, -1.0, 1.0, 1.0]]
    )
    lost = 2 * 0.25**2 + 3 * 1.0**2
    size = 49 + 1.25**2 + 2.25**2 + 63 + 231 + 4
    assert relative_error(weight, Grid(bits=4)) == pytest.approx(lost / size, rel=1e-6)


def test_both_errors_by_hand_on_four_by_four() -> None:
    """Walsh's matrix halves and mixes: (0, 1, 2, 15) R = (9, -7, -8, 6) / 1, a range of 17 in 15 steps."""
    rotation = Hadamard(size=4)
    token = torch.tensor([0.0, 1.0, 2.0, 15.0], dtype=torch.float64)
    turned = rotation.rotate(token)
    assert turned.tolist() == [9.0, -7.0, -8.0, 6.0]
    assert float(token_errors(token, TokenGrid(bits=4))) == 0
    step = 17 / 15  # zero at code 7: 9 -> 8 steps, -7 -> -6, -8 -> -7, 6 -> 5
    lost = (9 - 8 * step) ** 2 + (7 - 6 * step) ** 2 + (8 - 7 * step) ** 2 + (6 - 5 * step) ** 2
    assert float(token_errors(turned, TokenGrid(bits=4))) == pytest.approx(lost / 230, rel=1e-9)
    weight = torch.tensor([[7.0, 1.0, -3.0, 1.0]] * 4, dtype=torch.float64)
    assert rotation.rotate(weight)[0].tolist() == [3.0, 1.0, 5.0, 5.0]
    assert relative_error(weight.float(), Grid(bits=4)) == 0
    step = 5 / 7  # 3 -> 4 steps, 1 -> 1, 5 -> 7
    lost = (3 - 4 * step) ** 2 + (1 - step) ** 2
    assert relative_error(rotation.rotate(weight).float(), Grid(bits=4)) == pytest.approx(lost / 60, rel=1e-5)


def test_weight_error_does_not_know_size_and_order_and_is_none_at_sixteen_bits() -> None:
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    error = relative_error(weight, Grid(bits=4))
    assert error > 0
    assert relative_error(weight * 8, Grid(bits=4)) == error
    assert relative_error(weight[[3, 0, 5, 1, 2, 4]], Grid(bits=4)) == pytest.approx(error, rel=1e-12)
    assert relative_error(weight, Grid(bits=16)) == 0 == relative_error(torch.zeros(2, 4), Grid(bits=4))


def taken_out(model: Any, batch: Batch, block: Any) -> dict[str, Tensor]:
    """Keys, values and inputs of a block for the real tokens of one batch, by other means."""
    given: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, x, __, name=name: given.update({name: x[0]}))
        for name in (block.output, block.down)
    ]
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=batch.ids, attention_mask=batch.attention_mask, past_key_values=cache)
    for hook in hooks:
        hook.remove()
    is_token = batch.attention_mask.bool()
    layer = cache.layers[block.index]
    keys, values = (part.transpose(1, 2)[is_token] for part in (layer.keys, layer.values))
    return {
        "keys": keys,
        "values": values,
        "output": given[block.output][is_token],
        "down": given[block.down][is_token],
    }


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "mistral"])
def test_every_site_of_every_architecture(name: str) -> None:
    """Weights as they are after merging, tokens as they come out of the model; padding is left out."""
    model = lively(name, seed=5)
    found = site_errors(model, block_layout(model), candidates(model), text(), grids=GRIDS)
    assert len(found) == 6
    for block in block_layout(model):
        assert block.down is not None
        taken = [taken_out(model, batch, block) for batch in text()]
        tokens = {part: torch.cat([one[part] for one in taken]) for part in taken[0]}
        assert len(tokens["down"]) == sum(int(batch.attention_mask.sum()) for batch in text())
        for candidate in ("identity", "hadamard"):

            def turned(site: str, x: Tensor, candidate: str = candidate) -> Tensor:
                rotation = candidates(model)[site][candidate]
                return x if rotation is None else rotation.rotate(x)

            def mean(x: Tensor, grid: TokenGrid) -> float:
                return float(token_errors(x, grid).mean())

            by_head = turned("values", tokens["output"].view(-1, block.heads, 8)).flatten(1)
            expected = {
                "keys": mean(turned("keys", tokens["keys"]), GRIDS.cache),
                "values": mean(turned("values", tokens["values"]), GRIDS.cache) + mean(by_head, GRIDS.inputs),
                "down": mean(turned("down", tokens["down"]), GRIDS.inputs),
            }
            for site, value in expected.items():
                assert found[block.index, site][candidate].activation == pytest.approx(value, rel=1e-6), (
                    site,
                    candidate,
                )
    assert found == site_errors(model, block_layout(model), candidates(model), text(), grids=GRIDS)


@pytest.mark.parametrize("name", ["llama_grouped", "gpt2", "gpt_neox"])
def test_weights_of_a_site_are_those_that_merging_makes(name: str) -> None:
    from letheon.lowbit.rotating import rotate_down, rotate_values

    model = make_model(name, seed=5)
    grid = Grid(bits=4)
    block = block_layout(model)[1]
    assert block.down is not None
    expected = {
        site: weight_error(model, block, site, candidates(model)[site]["hadamard"], grid)
        for site in ("values", "down", "keys")
    }
    rotate_values(model, block, candidates(model)["values"]["hadamard"])
    rotate_down(model, block, candidates(model)["down"]["hadamard"])

    def lost(linear: str, rows: Tensor | None = None) -> float:
        weight = as_matrix(model.get_submodule(linear), model.get_submodule(linear).weight).detach()
        weight = weight if rows is None else weight[rows.flatten()]
        return float((fake_quantize(weight.contiguous(), grid) - weight).square().sum() / weight.square().sum())

    assert expected["down"] == pytest.approx(lost(block.down), rel=1e-4)
    assert expected["values"] == pytest.approx(lost(block.value, block.rows("value")) + lost(block.output), rel=1e-4)
    assert expected["keys"] == 0


def test_nothing_is_lost_at_sixteen_bits_and_hooks_are_gone() -> None:
    model = make_model("llama")
    found = site_errors(model, block_layout(model), CANDIDATES, text(), grids=OFF)
    assert all(error.total == 0 for site in found.values() for error in site.values())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_text_without_tokens_and_a_broken_model_are_refused() -> None:
    model = make_model("llama")
    with pytest.raises(BadInput, match="has no token to choose rotations by"):
        site_errors(model, block_layout(model), CANDIDATES, [], grids=GRIDS)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(
        BadInput, match=r"model.layers.1: what site down sees on the calibration text is NaN or infinite"
    ):
        site_errors(model, block_layout(model), CANDIDATES, text(), grids=GRIDS)
