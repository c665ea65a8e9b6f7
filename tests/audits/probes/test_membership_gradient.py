"""Membership by the size of the gradient: what was learned pulls less; the norms themselves are tested with `scoring`."""

from __future__ import annotations

import pytest
import torch

from letheon.audits.probes.membership_gradient import MembershipGradient
from letheon.audits.probes.membership_scores import MembershipScores
from letheon.errors import NotMeasured
from tests.audits.fakes import scorer_of, sets
from tests.audits.probes.test_membership_scores import asked
from tests.toys import llama

PROBE = MembershipGradient()


def test_a_learned_text_pulls_less_at_the_weights_than_a_new_one() -> None:
    model, some = llama(3, layers=1), asked()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        for example in some["forget_texts"].examples:
            ids = torch.tensor([example.ids])
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = PROBE.score("membership_gradient", some, scorer_of(model))
    assert found.aggregate("auc") == 1.0 and max(found.values) < 0
    assert MembershipScores().score("membership_loss", some, scorer_of(model)).aggregate("auc") == 1.0


def test_gradients_that_are_no_numbers_are_not_measured() -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NotMeasured, match="gradients of the model's loss on forget_texts are not finite"):
        PROBE.score("membership_gradient", asked(), scorer_of(model))


def test_a_model_that_takes_no_gradient_now_is_measured_and_left_as_it_was() -> None:
    """An audit freezes its models."""
    model = llama(3)
    free = PROBE.score("membership_gradient", asked(), scorer_of(model)).values
    model.requires_grad_(False)
    assert PROBE.score("membership_gradient", asked(), scorer_of(model)).values == free
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("missing", ["forget", "holdout"])
def test_one_side_alone_is_not_measured(missing: str) -> None:
    some = sets(*(one for name, one in asked().sets.items() if not name.startswith(missing)))
    with pytest.raises(NotMeasured, match="--holdout"):
        PROBE.score("membership_gradient", some, scorer_of(llama()))
