"""A stream that stops in a block hears, and ends as, one that begins anew each time: to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from letheon.lowbit.activations import ActivationGrids, low_bit_activations
from letheon.lowbit.architectures import model_layout
from letheon.numerics.token_grids import TokenGrid
from letheon.quantization.passage import Passage
from letheon.quantization.streams import first_batches, heard, routed, through, through_hearing
from tests.architectures.models import ARCHITECTURES, make_model, mixture
from tests.toys import bits

IDS = torch.randint(2, 768, (6, 20), generator=torch.Generator().manual_seed(0))
ROUNDED = ActivationGrids(inputs=TokenGrid(bits=4), keys=TokenGrid(bits=4), values=TokenGrid(bits=4))


@torch.no_grad()
def change(model: Any, names: tuple[str, ...]) -> None:
    """As a solver does, in place."""
    for name in names:
        model.get_submodule(name).weight.mul_(0.9)


@pytest.mark.parametrize("grids", [None, ROUNDED], ids=["as it was", "rounding"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_stop_and_the_end_are_those_of_a_stream_that_begins_anew(
    name: str, grids: ActivationGrids | None
) -> None:
    model = make_model(name)
    layout = model_layout(model)
    batches = first_batches(model, layout, IDS, size=4, device="cpu")
    assert len(batches) == 2
    with low_bit_activations(model, grids=grids):
        for block in layout.blocks:
            passage = Passage(model, block, batches, device="cpu")
            for group in block.groups:
                stops = list(passage.heard(group[0]))
                for found, batch in zip(stops, batches, strict=True):
                    assert bits(found) == bits(heard(model, block, batch, [group[0]], device="cpu")[group[0]])
                change(model, group)
            ends, batches = passage.behind(), [through(model, block, batch, device="cpu") for batch in batches]
            assert [bits(end.hidden) for end in ends] == [bits(batch.hidden) for batch in batches]


def test_nothing_is_computed_twice_and_nothing_stays_behind() -> None:
    model = make_model("llama")
    block = model_layout(model).blocks[0]
    runs = dict.fromkeys(block.linears, 0)

    def count(name: str) -> Any:
        linear = model.get_submodule(name)
        forward = linear.forward

        def counted(x: Any) -> Any:
            runs[name] += 1
            return forward(x)

        return linear, counted

    for linear, counted in map(count, block.linears):
        linear.forward = counted
    passage = Passage(model, block, first_batches(model, model_layout(model), IDS, size=6, device="cpu"), device="cpu")
    for group in block.groups:
        list(passage.heard(group[0]))
    passage.behind()
    assert set(runs.values()) == {1}
    attention, mlp = model.get_submodule(block.attention), model.get_submodule(block.mlp)
    assert "forward" not in attention.__dict__ and "forward" not in mlp.__dict__


def test_the_experts_of_a_mixture_are_reached_behind_attention_as_it_has_become() -> None:
    model = mixture()
    layout = model_layout(model)
    (batch,) = first_batches(model, layout, IDS, size=6, device="cpu")
    block = layout.blocks[0]
    passage = Passage(model, block, [batch], device="cpu")
    for group in block.groups:
        list(passage.heard(group[0]))
        change(model, group)
    (found,), wanted = passage.routed(), routed(model, block, batch, device="cpu")
    assert bits(found.hidden) == bits(wanted.hidden) and torch.equal(found.chosen, wanted.chosen)
    assert bits(passage.behind()[0].hidden) == bits(through(model, block, batch, device="cpu").hidden)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "mixtral"])
def test_what_is_heard_on_the_way_to_the_end(name: str) -> None:
    model = mixture() if name == "mixtral" else make_model(name)
    layout = model_layout(model)
    (batch,) = first_batches(model, layout, IDS, size=6, device="cpu")
    block, names = layout.blocks[0], [group[0] for group in layout.blocks[0].groups]
    behind, on_the_way = through_hearing(model, block, batch, names, device="cpu")
    assert bits(behind.hidden) == bits(through(model, block, batch, device="cpu").hidden)
    wanted = heard(model, block, batch, names, device="cpu")
    assert {one: bits(found) for one, found in on_the_way.linears.items()} == {
        one: bits(found) for one, found in wanted.items()
    }
    assert (on_the_way.experts is None) == (block.experts is None)
