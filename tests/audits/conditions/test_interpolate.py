"""The straight line to the original: both ends to the bit, the middle by hand, and what was moved by a hair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from letheon.audits.attacker import Attacker
from letheon.audits.conditions.interpolate import Interpolate
from letheon.errors import BadInput, NotMeasured
from letheon.lowbit.online import MARKER
from letheon.models import ModelFolder, inspect_model, load_model
from letheon.training.losses import Body
from letheon.training.scoring import score_examples
from tests.audits.fakes import target_of
from tests.audits.mini import Mini
from tests.toys import bits, llama, tokenizer


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("original")
    llama(seed=7).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return inspect_model(folder)


def at(shares: tuple[float, ...], original: ModelFolder, model: Any = None) -> dict[float, dict[str, torch.Tensor]]:
    model, found = model or llama(seed=1), {}

    def then(share: float) -> None:
        found[share] = {name: one.clone() for name, one in model.state_dict().items()}

    Interpolate(shares=shares).walk(target_of(model), Attacker(original=original), then)
    return found


def test_both_ends_are_met_to_the_bit(original: ModelFolder) -> None:
    found = at((1.0, 0.3, 0.0), original)
    assert list(found) == [0.0, 0.3, 1.0]
    mine, theirs = llama(seed=1).state_dict(), load_model(original.path).state_dict()
    for name in mine:
        assert bits(found[0.0][name]) == bits(mine[name]), name
        assert bits(found[1.0][name]) == bits(theirs[name]), name
        assert bits(found[0.3][name]) not in (bits(mine[name]), bits(theirs[name])) or "norm" in name


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_it_is_the_line_in_float64(share: float, original: ModelFolder) -> None:
    found = at((0.05, share), original)[share]
    mine, theirs = llama(seed=1).double().state_dict(), load_model(original.path).double().state_dict()
    for name, tensor in found.items():
        by_hand = mine[name] + share * (theirs[name] - mine[name])
        torch.testing.assert_close(tensor.double(), by_hand, rtol=1e-6, atol=1e-8)


def test_a_model_that_was_moved_by_a_hair_is_brought_back(mini: Mini) -> None:
    """What was done to it is a small step in a direction that hurts; half of the way back is enough."""
    model = load_model(mini.target)
    examples = mini.questions("forget")

    def known() -> float:
        return float(score_examples(Body(model), examples, pad=0).exact.mean())

    generator, before = torch.Generator().manual_seed(0), known()
    with torch.no_grad():
        for parameter in model.parameters():
            size = 0.6 * parameter.std() if parameter.dim() > 1 else 0.0
            parameter += size * torch.randn(parameter.shape, generator=generator)
    damaged, seen = known(), {}
    attack = Interpolate(shares=(0.5, 1.0))
    attack.walk(
        target_of(model), Attacker(original=inspect_model(mini.target)), lambda share: seen.update({share: known()})
    )
    assert damaged < 0.3 < 0.7 < seen[0.5] and seen[1.0] == before


def test_what_cannot_be_moved_is_not_measured(original: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match=r"needs the original \(--original DIR\)"):
        Interpolate().walk(target_of(llama()), Attacker(), lambda share: None)
    with pytest.raises(NotMeasured, match=r"is not the same architecture: .* has the shape"):
        at((0.5,), original, llama(width=64))
    with pytest.raises(NotMeasured, match=r"is not the same architecture: model.layers.2.* is in one of them alone"):
        at((0.5,), original, llama(layers=3))
    with pytest.raises(NotMeasured, match="the model has the original's weights"):
        at((0.5,), original, llama(seed=7))
    packed = ModelFolder(tmp_path, {"quantization_config": {"quant_method": "x"}}, {})
    turned = ModelFolder(tmp_path, {MARKER: {"online": {}}}, {})
    for folder in (packed, turned):
        with pytest.raises(NotMeasured, match="needs weights in the original's own basis"):
            Interpolate().walk(target_of(llama(), folder=folder), Attacker(original=original), lambda share: None)


@pytest.mark.parametrize("shares", [(), (0.5, 0.5), (-0.1,), (1.5,), (float("nan"),)])
def test_settings_that_cannot_be(shares: tuple[float, ...]) -> None:
    with pytest.raises(BadInput, match=r"interpolate needs different shares in \[0, 1\], got"):
        Interpolate(shares=shares)
