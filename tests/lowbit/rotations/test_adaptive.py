"""The choice: I where whole numbers would be spoiled, H where an outlier is, I again where nothing is gained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from letheon.data.batches import Batch
from letheon.errors import BadInput
from letheon.lowbit.activations import low_bit_activations
from letheon.lowbit.architectures import block_layout
from letheon.lowbit.online import read_online
from letheon.lowbit.rotating import site_rotation
from letheon.lowbit.rotations.adaptive import AdaptiveRotation
from letheon.lowbit.rotations.hadamard import HadamardRotation
from letheon.lowbit.site_errors import SiteError, SiteGrids, site_errors
from letheon.numerics.grids import Grid
from letheon.numerics.token_grids import TokenGrid
from tests.architectures.models import ARCHITECTURES, make_model
from tests.lowbit.lively import lively, logits
from tests.toys import batch_of, bits, random_examples


def text(seed: int = 0) -> list[Batch]:
    return [batch_of(random_examples(6, seed=seed))]


def chosen(method: AdaptiveRotation, **totals: float) -> str:
    return method.choose({name: SiteError(weight=total, activation=0.0) for name, total in totals.items()})


def whole_numbers(model: Any, index: int) -> None:
    """The last linear of a block hears whole numbers 0..15 with both ends, and holds whole numbers -7..7 with a 7."""
    mlp = model.model.layers[index].mlp
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 16, (768, mlp.down_proj.in_features), generator=generator).double()
    tokens[:, 0], tokens[:, 1] = 0, 15
    weight = torch.randint(-7, 8, mlp.down_proj.weight.shape, generator=generator).double()
    weight[:, 0] = 7

    def hear(_: Any, arguments: Any) -> Any:
        x = arguments[0]
        return (tokens[: x.shape[0] * x.shape[1]].view(x.shape).to(x),)

    mlp.down_proj.register_forward_pre_hook(hear)
    with torch.no_grad():
        mlp.down_proj.weight.copy_(weight)


def outlier(model: Any, index: int) -> None:
    """One channel of the last linear's input is 50 times as large as the others."""
    mlp = model.model.layers[index].mlp
    with torch.no_grad():
        mlp.up_proj.weight[5] *= 50
        mlp.down_proj.weight[:, 5] /= 50


def test_whole_numbers_stay_and_an_outlier_is_rotated_in_the_same_model() -> None:
    model = make_model("llama", seed=2)
    whole_numbers(model, 0)
    outlier(model, 1)
    rotated = AdaptiveRotation(residual=False).rotate(model, text())
    down = {choice.block: choice for choice in rotated.choices if choice.site == "down"}
    assert down[0].chosen == "identity" and down[1].chosen == "hadamard"
    assert down[0].errors["identity"] == SiteError(weight=0.0, activation=0.0)
    assert down[0].errors["hadamard"].weight > 1e-3 and down[0].errors["hadamard"].activation > 1e-3
    assert down[1].errors["hadamard"].activation < 0.5 * down[1].errors["identity"].activation
    assert list(rotated.online.down) == [1]


def test_the_rule() -> None:
    method = AdaptiveRotation()
    assert chosen(method, identity=1.0, hadamard=0.98) == "hadamard"
    assert chosen(method, identity=1.0, hadamard=0.995) == "identity"
    assert chosen(method, identity=1.0, hadamard=1.0) == "identity"
    assert chosen(method, identity=0.0, hadamard=0.0) == "identity"
    assert chosen(method, identity=1.0, hadamard=2.0) == "identity"
    assert chosen(method, identity=1.0, hadamard=0.9, plain=0.8) == "plain"
    assert chosen(AdaptiveRotation(least_gain=0.0), identity=1.0, hadamard=0.9999) == "hadamard"
    both = {"identity": SiteError(weight=0.5, activation=0.5), "hadamard": SiteError(weight=0.1, activation=1.0)}
    assert both["identity"].total == 1.0 and method.choose(both) == "identity"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whatever_is_chosen_the_model_says_the_same(name: str) -> None:
    model = lively(name, seed=6)
    before = logits(model)
    rotated = AdaptiveRotation(seed=1).rotate(model, text())
    assert len(rotated.choices) == 6
    names = {choice.chosen for choice in rotated.choices}
    assert names <= {"identity", "hadamard"}
    with low_bit_activations(model, online=read_online(model.config)):
        torch.testing.assert_close(logits(model), before, rtol=1e-10, atol=1e-10)


def test_errors_are_those_behind_the_first_rotation() -> None:
    """R1 is merged before anything is measured: it changes the rows of v."""
    model, other = make_model("llama", seed=6), make_model("llama", seed=6)
    choices = AdaptiveRotation(bits=3).rotate(model, text()).choices
    HadamardRotation(values=False, keys=False, down=False).rotate(other)
    candidates = {
        site: {"identity": None, "hadamard": site_rotation(site, size, seed=0)}
        for site, size in (("values", 8), ("keys", 8), ("down", 48))
    }
    grids = SiteGrids(weights=Grid(bits=3), inputs=TokenGrid(bits=4), cache=TokenGrid(bits=4))
    expected = site_errors(other, block_layout(other), candidates, text(), grids=grids)
    assert [(choice.block, choice.site) for choice in choices] == list(expected)
    assert all(choice.errors == expected[choice.block, choice.site] for choice in choices)


def test_a_plain_matrix_is_tried_on_request() -> None:
    model = make_model("llama", seed=2)
    choices = AdaptiveRotation(plain=True).rotate(model, text()).choices
    assert all(set(choice.errors) == {"identity", "hadamard", "plain"} for choice in choices)
    online = read_online(model.config)
    for choice in choices:
        places = {"keys": online.keys, "down": online.down}.get(choice.site, {})
        if choice.block in places:
            assert (places[choice.block].signs is None) == (choice.chosen == "plain")


def test_sixteen_bits_choose_nothing_and_the_weights_stay_bit_by_bit() -> None:
    model = make_model("llama_tied")
    before = [bits(parameter) for parameter in model.parameters()]
    method = AdaptiveRotation(bits=16, input_bits=16, cache_bits=16, residual=False)
    rotated = method.rotate(model, text())
    assert {choice.chosen for choice in rotated.choices} == {"identity"}
    assert [bits(parameter) for parameter in model.parameters()] == before
    assert not rotated.online.keys and not rotated.online.down and not rotated.is_untied


def test_the_same_seed_and_text_choose_the_same() -> None:
    first, second = (AdaptiveRotation(seed=2).rotate(make_model("qwen2"), text()) for _ in range(2))
    assert first.choices == second.choices
    other = AdaptiveRotation(seed=3).rotate(make_model("qwen2"), text())
    assert first.choices != other.choices


def test_padding_has_no_say() -> None:
    examples = random_examples(6)
    longest = max(examples, key=lambda example: len(example.ids))
    together = [batch_of(examples)]
    apart = [batch_of([example]) for example in examples]
    assert sum(int(batch.attention_mask.sum()) for batch in apart) == int(together[0].attention_mask.sum())
    assert together[0].ids.shape[1] == len(longest.ids)
    found = [AdaptiveRotation().rotate(make_model("gpt_neox"), batches).choices for batches in (together, apart)]
    for one, other in zip(*found, strict=True):
        for name, error in one.errors.items():
            assert error.activation == pytest.approx(other.errors[name].activation, rel=1e-4)


def test_bad_input_is_refused() -> None:
    with pytest.raises(BadInput, match=r"chooses on calibration text and got none. Give --calibration c.jsonl"):
        AdaptiveRotation().rotate(make_model("llama"), [])
    for settings in ({"bits": 1}, {"input_bits": 9}, {"cache_bits": 12}):
        ((name, value),) = settings.items()
        with pytest.raises(BadInput, match=f"rotation adaptive: {name} {value} does not exist"):
            AdaptiveRotation(**settings)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"least_gain of 1\.0 is not usable"):
        AdaptiveRotation(least_gain=1.0)
    with pytest.raises(BadInput, match="seed of -2 is not usable"):
        AdaptiveRotation(seed=-2)
