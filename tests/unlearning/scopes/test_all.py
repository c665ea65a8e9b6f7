"""Every weight may move, tied ones once."""

from __future__ import annotations

import torch

from letheon.unlearning.scopes.all import All
from tests.architectures.models import make_model
from tests.toys import bits


def test_all_parameters_by_their_names() -> None:
    model = make_model("llama")
    moving = All().select(model)
    assert list(moving) == [name for name, _ in model.named_parameters()]
    assert all(moving[name] is parameter for name, parameter in model.named_parameters())


def test_tied_weights_are_one_parameter() -> None:
    model = make_model("llama_tied")
    moving = All().select(model)
    assert sum(parameter is model.lm_head.weight for parameter in moving.values()) == 1
    assert "lm_head.weight" not in moving


def test_nothing_is_put_back() -> None:
    model = make_model("llama")
    moving = All().select(model)
    state = All().init(model, moving)
    assert state == {}
    with torch.no_grad():
        moving["lm_head.weight"].add_(1.0)
    after = bits(moving["lm_head.weight"])
    All().after_step(moving, state)
    assert bits(moving["lm_head.weight"]) == after
