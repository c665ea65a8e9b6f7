"""A step in the units that its own forget gradient chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from letheon.training.active import Active, Movers
from letheon.training.gradients import Gradients, global_norm
from letheon.training.losses import Body
from letheon.unlearning.balances.ngdiff import NGDiff
from letheon.unlearning.balances.weighted import Weighted
from letheon.unlearning.choosing import choice_of, counts_of, make_step_gradient
from letheon.unlearning.forget_terms.gradient_ascent import GradientAscent
from letheon.unlearning.gate import Gate
from letheon.unlearning.objective import TermLoss, make_gradient
from letheon.unlearning.retain_terms.gdr import GDR
from letheon.unlearning.scopes.all import All
from letheon.unlearning.scopes.sure import Sure
from letheon.unlearning.smoothers.gradient_penalty import GradientPenalty
from letheon.unlearning.smoothers.none import NoSmoothing
from letheon.unlearning.smoothers.sam import SAM
from tests.toys import bits, llama, micro_batches, random_examples

PARTS = {
    "forget": micro_batches(random_examples(6, seed=1), 3),
    "retain": micro_batches(random_examples(6, seed=2), 3),
}


def everything(moving: Mapping[str, Tensor]) -> dict[str, Active]:
    return {name: Active(torch.arange(len(parameter))) for name, parameter in moving.items()}


def gradient(choose: Any, *, gate: Gate | None = None, has_retain: bool = True, **changes: Any) -> Gradients:
    """Of one step on a fresh model; `choose` None: apart and without a choice."""
    model: Any = llama().requires_grad_(True)
    moving = dict(model.named_parameters())
    terms = {
        "forget": TermLoss(GradientAscent(), Body(model), gate=gate),
        "retain": TermLoss(GDR(), Body(model)) if has_retain else None,
        "balance": changes.get("balance", Weighted(alpha=0.7)),
        "smoother": changes.get("smoother", NoSmoothing()),
    }
    if choose is None:
        return make_gradient(parameters=list(moving.values()), pad=0, is_joint=False, **terms)(model, PARTS)  # type: ignore[arg-type]
    chosen = choose(model, moving)
    return make_step_gradient(movers=Movers(moving), smoother_state={}, pad=0, choose=chosen, **terms)(model, PARTS)  # type: ignore[arg-type]


CHANGES: list[dict[str, Any]] = [
    {},
    {"balance": NGDiff()},
    {"smoother": SAM(rho=0.05)},
    {"smoother": GradientPenalty(mu=0.1)},
    {"has_retain": False},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_with_everything_chosen_it_is_the_plain_gradient_to_the_bit(changes: dict[str, Any]) -> None:
    found = gradient(lambda model, moving: lambda tensors: everything(moving), **changes)
    plain = gradient(None, **changes)
    assert [bits(one) for one in found.tensors] == [bits(one) for one in plain.tensors]
    assert {name: found.figures[name] for name in plain.figures} == plain.figures
    assert plain.units is None and found.units is not None


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_what_is_not_chosen_is_0_and_is_not_measured(changes: dict[str, Any]) -> None:
    """Every gradient that a balance measures or a smoother looks along is cut first."""
    rows = torch.tensor([1, 4])

    def choose(model: Any, moving: Mapping[str, Tensor]) -> Any:
        name = list(moving)[3]
        return lambda tensors: {name: Active(rows)}

    found = gradient(choose, **changes)
    assert found.units is not None and found.figures["active_units"] == 2.0
    for number, tensor in enumerate(found.tensors):
        touched = torch.nonzero(tensor.reshape(len(tensor), -1).any(1)).flatten().tolist()
        assert touched == (rows.tolist() if number == 3 else [])
    if "smoother" not in changes and "forget_gradient_norm" in found.figures:
        slope = gradient(None, has_retain=False).tensors[3][rows]
        assert found.figures["forget_gradient_norm"] == pytest.approx(float(slope.norm()), rel=1e-5)


def test_the_choice_sees_the_forget_gradient_where_the_weights_stand() -> None:
    seen: list[list[Tensor]] = []

    def choose(model: Any, moving: Mapping[str, Tensor]) -> Any:
        def note(tensors: Sequence[Tensor]) -> dict[str, Active]:
            seen.append([tensor.clone() for tensor in tensors])
            return everything(moving)

        return note

    gradient(choose, smoother=SAM(rho=5.0))
    alone = gradient(None, has_retain=False)
    [at] = seen
    assert [bits(one) for one in at] == [bits(one) for one in alone.tensors]


def test_a_gate_that_closes_all_items_leaves_nothing_to_choose() -> None:
    scope = Sure(refresh="step", percentile=50)
    found = gradient(lambda model, moving: choice_of(scope, model, moving), gate=Gate(torch.zeros(6)))
    assert found.units == {} and found.figures["active_units"] == 0.0
    assert float(global_norm(found.tensors)) == 0.0


def test_what_is_not_finite_is_left_for_the_loop_to_report() -> None:
    model = llama()
    scope, moving = Sure(refresh="step"), dict(model.named_parameters())
    tensors = [torch.ones_like(parameter) for parameter in moving.values()]
    tensors[2][0] = float("nan")
    assert scope.active_now(model, moving, tensors) is None
    found = gradient(lambda model, moving: lambda tensors: None)
    assert found.units is None and float(global_norm(found.tensors)) > 0


def test_scopes_that_choose_once_or_not_at_all_have_no_choice() -> None:
    model = llama()
    moving = dict(model.named_parameters())
    for scope in (All(), Sure(), Sure(refresh="step", percentile=0)):
        assert choice_of(scope, model, moving) is None
        assert counts_of(scope, scope.init(model, moving)) == {}
    scope = Sure(refresh="step")
    assert choice_of(scope, model, moving) is not None
    counts = counts_of(scope, scope.init(model, moving))
    assert {name: len(count) for name, count in counts.items()} == {name: len(one) for name, one in moving.items()}
