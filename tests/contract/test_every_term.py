"""What every unlearning method promises, run over the folders: a new file is covered without a line added here.

Covers forget terms, retain terms, balances, smoothers, scopes and rates. What only one method promises (a formula, a
limit) stands in that method's own test, cards and settings in test_every_method.py.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from letheon.data.encode import Example
from letheon.methods import build, card, load, names
from letheon.training.gradients import Gradients, global_norm
from letheon.training.loop import Loop, OptimizerSettings, run_loop
from letheon.training.losses import Body
from letheon.training.prepare import Opened
from letheon.training.rates.constant import Constant
from letheon.unlearning.attaching import attach, detach
from letheon.unlearning.balances.weighted import Weighted
from letheon.unlearning.binding import ask_original, bind, chosen_layer
from letheon.unlearning.forget_terms.gradient_ascent import GradientAscent
from letheon.unlearning.gate import Gate
from letheon.unlearning.objective import TermLoss, make_gradient
from letheon.unlearning.retain_terms.gdr import GDR
from letheon.unlearning.smoothers.none import NoSmoothing
from tests.architectures.models import make_model
from tests.contract.register import every_variation
from tests.toys import batch_of, bits, encoder, llama, micro_batches, random_examples

KINDS = ("forget_term", "retain_term", "balance", "smoother", "scope", "rate")
PER_SEQUENCE = ("log_probs", "reference_log_probs", "other_answer", "reference_other_answer")
PER_TOKEN = ("logits", "reference_logits")
PER_TEXT = ("hidden", "reference_hidden")
SIZES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(PER_SEQUENCE, ()),
    **dict.fromkeys(PER_TOKEN, (13,)),
    **dict.fromkeys(PER_TEXT, (5, 13)),
    "token_shares": (5,),
}
"""Need -> the shape of one row of it."""


# --- forget terms and retain terms


def has_loss(spec: dict[str, Any]) -> bool:
    return spec["name"] != "none"


TERMS = [each for each in every_variation("forget_term", "retain_term") if has_loss(each.values[1])]  # type: ignore[arg-type]


def tensors_for(term: Any, dtype: torch.dtype, *, seed: int = 0, rows: int = 6) -> list[Tensor]:
    """One tensor a need, as a model would give it."""
    generator = torch.Generator().manual_seed(seed)
    drawn = drawn_once(term)
    made = []
    for need in term.needs:
        assert need in SIZES or need in drawn, f"needs {need!r}, which unlearning/objective.py does not provide"
        if need in drawn:
            made.append(drawn[need].to(dtype))
            continue
        values = torch.randn((rows, *SIZES[need]), generator=generator, dtype=torch.float64)
        signed = {**dict.fromkeys(PER_SEQUENCE, -values.abs()), "token_shares": values.abs()}
        made.append(signed.get(need, values).to(dtype))
    return made


def drawn_once(term: Any) -> dict[str, Tensor]:
    """What the term draws for a whole run; it has no rows."""
    found: dict[str, Tensor] = term.init(13, 0) if hasattr(term, "init") else {}
    return found


def rows_of(term: Any, given: list[Tensor], rows: slice) -> list[Tensor]:
    drawn = drawn_once(term)
    return [tensor if need in drawn else tensor[rows] for need, tensor in zip(term.needs, given, strict=True)]


def test_a_term_without_a_loss_is_none_and_nothing_else() -> None:
    for kind in ("forget_term", "retain_term"):
        for name in names(kind):
            assert hasattr(load(kind, name), "loss") == (name != "none")


@pytest.mark.parametrize(("kind", "spec"), TERMS)
def test_a_loss_is_finite_deterministic_and_keeps_dtype_and_inputs(kind: str, spec: dict[str, Any]) -> None:
    term = build(kind, spec)
    assert term.denominator in ("sequence", "token") and term.needs
    for dtype in (torch.float32, torch.float64):
        results = []
        for _ in range(2):
            given = [tensor.requires_grad_() for tensor in tensors_for(term, dtype)]
            before = [bits(tensor) for tensor in given]
            total, count = term.loss(*given)
            slopes = torch.autograd.grad(total, given[:1])
            assert total.shape == () and total.dtype == dtype and total.device == given[0].device
            assert type(count) is int and count == 6
            assert bool(torch.isfinite(total)) and bool(torch.isfinite(slopes[0]).all())
            assert bool(slopes[0].abs().sum() > 0)
            assert [bits(tensor) for tensor in given] == before
            results.append((bits(total), bits(slopes[0])))
        assert results[0] == results[1]


@pytest.mark.parametrize(("kind", "spec"), TERMS)
def test_a_loss_is_a_sum_over_its_rows(kind: str, spec: dict[str, Any]) -> None:
    # Otherwise micro-batches could not be added up and divided once.
    term = build(kind, spec)
    given = tensors_for(term, torch.float64)
    whole = float(term.loss(*given)[0])
    pieces = [float(term.loss(*rows_of(term, given, rows))[0]) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    assert sum(pieces) == pytest.approx(whole, rel=1e-9)


FORGET, RETAIN = random_examples(8, seed=1, longest=20), random_examples(8, seed=2, longest=20)
OTHERS = random_examples(8, seed=3, longest=24)
"""The forget set's items with other answers."""


@cache
def models() -> tuple[Any, Any]:
    """A model, and its original."""
    return llama(seed=0, layers=3), llama(seed=5, layers=3)


def bound(term: Any, examples: Sequence[Example] = FORGET, *, gate: Gate | None = None) -> TermLoss:
    """The term on a model that has moved away from its original."""
    now, before = (Opened(each, Body(each), encoder(), "cpu", nullcontext) for each in models())
    layer = chosen_layer(term, now, beside=term)
    known = ask_original(term, before, examples, others=OTHERS, layer=layer)
    return bind(term, now, known, others=OTHERS, layer=layer, seed=7, gate=gate)


def gradient_of(
    loss: TermLoss, size: int, *, pad: int = 0, retain: TermLoss | None = None, is_joint: bool = True, **methods: Any
) -> Gradients:
    model, _ = models()
    smoother = methods.get("smoother", NoSmoothing())
    gradient = make_gradient(
        forget=loss,
        retain=retain,
        balance=methods.get("balance", Weighted()),
        smoother=smoother,
        smoother_state=smoother.init(dict(model.named_parameters()), 0),
        parameters=list(model.parameters()),
        pad=pad,
        is_joint=is_joint,
    )
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return gradient(
        model, {"forget": micro_batches(FORGET, size, pad=pad), "retain": micro_batches(RETAIN, size, pad=pad)}
    )


def close(one: Gradients, other: Gradients) -> None:
    for first, second in zip(one.tensors, other.tensors, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("kind", "spec"), TERMS)
def test_eight_batches_of_one_are_one_of_eight_and_padding_is_ignored(kind: str, spec: dict[str, Any]) -> None:
    loss = bound(build(kind, spec))
    whole = gradient_of(loss, 8)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in whole.tensors)
    assert any(bool(tensor.any()) for tensor in whole.tensors)
    close(gradient_of(loss, 1), whole)
    close(gradient_of(loss, 8, pad=701), whole)
    assert all(bits(a) == bits(b) for a, b in zip(gradient_of(loss, 8).tensors, whole.tensors, strict=True))


PAIRS = [(forget, retain) for forget in names("forget_term") for retain in names("retain_term") if retain != "none"]


@pytest.mark.parametrize(("forget", "retain"), PAIRS)
def test_every_forget_term_goes_with_every_retain_term_joined_or_apart(forget: str, retain: str) -> None:
    loss, kept = bound(build("forget_term", forget)), bound(build("retain_term", retain), RETAIN)
    joined = gradient_of(loss, 3, retain=kept, balance=Weighted(alpha=0.7))
    apart = gradient_of(loss, 3, retain=kept, balance=Weighted(alpha=0.7), is_joint=False)
    close(joined, apart)
    close(gradient_of(loss, 3, retain=kept, balance=Weighted(alpha=0.7), pad=701), joined)
    for name in ("forget_loss", "retain_loss"):
        assert joined.figures[name] == pytest.approx(apart.figures[name], rel=1e-4)
    assert abs(joined.figures["retain_loss"]) > 1e-3  # the model is not its original: there is something to hold


GATED = [each for each in TERMS if each.values[0] == "forget_term" and "until" in each.values[1]]  # type: ignore[operator]


@pytest.mark.parametrize(("kind", "spec"), GATED)
def test_a_gate_leaves_what_the_open_items_alone_would_give(kind: str, spec: dict[str, Any]) -> None:
    term = build(kind, spec)
    half = gradient_of(bound(term, gate=Gate(torch.tensor([1e9, 0.0] * 4))), 8)
    alone = bound(term)
    values = [alone(models()[0], batch_of(FORGET, [item]))[0].detach() for item in (0, 2, 4, 6)]
    counts = [alone.count(batch_of(FORGET, [item])) for item in range(8)]
    assert half.figures["forget_loss"] == pytest.approx(float(sum(values)) / sum(counts), rel=1e-4)
    shut = gradient_of(bound(term, gate=Gate(torch.zeros(8))), 8)
    assert shut.figures["forget_loss"] == 0.0 and not any(bool(tensor.any()) for tensor in shut.tensors)


# --- balances


def two_gradients(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 3), (5,), (2, 2, 2))
    forget = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return forget, [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize(("kind", "spec"), every_variation("balance"))
def test_a_balance_gives_one_finite_gradient_and_keeps_what_it_was_given(kind: str, spec: dict[str, Any]) -> None:
    balance = build(kind, spec)
    for dtype in (torch.float32, torch.float64):
        forget, retain = two_gradients(dtype)
        found = balance.combine(forget, retain)
        again = balance.combine(*two_gradients(dtype))
        assert [(tensor.shape, tensor.dtype) for tensor in found] == [(tensor.shape, dtype) for tensor in forget]
        assert all(bool(torch.isfinite(tensor).all()) for tensor in found)
        assert [bits(tensor) for tensor in found] == [bits(tensor) for tensor in again]
        assert [bits(t) for t in (*forget, *retain)] == [bits(t) for side in two_gradients(dtype) for t in side]
        if balance.is_linear:
            first, second = balance.weights
            for tensor, one, other in zip(found, forget, retain, strict=True):
                torch.testing.assert_close(tensor, first * one + second * other)


@pytest.mark.parametrize(("kind", "spec"), every_variation("balance"))
def test_a_balance_does_not_break_on_a_gradient_of_zeros(kind: str, spec: dict[str, Any]) -> None:
    balance = build(kind, spec)
    forget, retain = two_gradients()
    nothing = [torch.zeros_like(tensor) for tensor in forget]
    for pair in ((forget, nothing), (nothing, retain), (nothing, nothing)):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in balance.combine(*pair))


@pytest.mark.parametrize(("kind", "spec"), every_variation("balance", "smoother"))
def test_a_step_through_it_is_the_same_in_micro_batches_and_leaves_the_weights(kind: str, spec: dict[str, Any]) -> None:
    model, _ = models()
    before = {name: bits(parameter) for name, parameter in model.named_parameters()}
    method = {kind: build(kind, spec)}
    terms = {"loss": bound(GradientAscent()), "retain": TermLoss(GDR(), Body(model))}
    whole = gradient_of(**terms, size=8, **method)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in whole.tensors)
    assert [tensor.shape for tensor in whole.tensors] == [parameter.shape for parameter in model.parameters()]
    parts = gradient_of(**terms, size=1, **method)
    # As a whole: what is made of a small difference of two gradients is less exact entry by entry.
    gap = global_norm([one - other for one, other in zip(parts.tensors, whole.tensors, strict=True)])
    assert float(gap) < 2e-3 * float(global_norm(whole.tensors))
    again = gradient_of(**terms, size=8, **method)
    assert all(bits(a) == bits(b) for a, b in zip(again.tensors, whole.tensors, strict=True))
    assert {name: bits(parameter) for name, parameter in model.named_parameters()} == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(math.isfinite(value) for value in whole.figures.values())


# --- scopes


class Kept:
    """A checkpoint store in memory."""

    def __init__(self) -> None:
        self.last: Any = None

    def save(self, step: int, tensors: Any, state: Any) -> None:
        self.last = (step, {name: tensor.detach().clone() for name, tensor in tensors.items()}, copy.deepcopy(state))

    def load(self) -> Any:
        return copy.deepcopy(self.last)


def opened_in(scope: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A fresh model with what a scope adds to it."""
    model: nn.Module = make_model("llama").to(dtype)
    attach(scope, model, seed=0)
    return model


def run_in(
    scope: Any, steps: int, store: Kept, *, dtype: torch.dtype = torch.float32, stop_at: int | None = None
) -> nn.Module:
    """Steps of random gradients in a scope, on a fresh model."""
    model = opened_in(scope, dtype)
    moving = scope.select(model)
    state = scope.init(model, moving)

    def gradient(_: Any, parts: Any) -> Gradients:
        if parts["step"][0] == stop_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(parts["step"][0])
        return Gradients(
            [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype) for p in moving.values()], {}
        )

    run_loop(
        Loop(
            model=model,
            moving=moving,
            gradient=gradient,
            parts=lambda step: {"step": [step]},  # type: ignore[list-item]
            steps=steps,
            optimizer=OptimizerSettings(learning_rate=0.02, weight_decay=0.1),
            rate=Constant(),
            after_step=lambda parameters: scope.after_step(parameters, state),
            memory=state,
            checkpoints=store,
            checkpoint_every_s=0.0,
        )
    )
    return model


def weights(model: nn.Module) -> dict[str, bytes]:
    return {name: bits(parameter) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("kind", "spec"), every_variation("scope"))
def test_a_scope_moves_what_it_names_and_nothing_else(kind: str, spec: dict[str, Any]) -> None:
    scope = build(kind, spec)
    model = opened_in(scope)
    named = dict(model.named_parameters())
    moving = scope.select(model)
    assert moving and all(named[name] is parameter for name, parameter in moving.items())
    before, after = weights(model), weights(run_in(scope, 4, Kept()))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == set(moving)


@pytest.mark.parametrize(("kind", "spec"), every_variation("scope"))
def test_a_scope_puts_back_once_and_for_all(kind: str, spec: dict[str, Any]) -> None:
    scope = build(kind, spec)
    model = run_in(scope, 4, Kept())
    for dtype in (torch.float32, torch.float64):
        fresh = opened_in(scope, dtype)
        moving = scope.select(fresh)
        state = scope.init(fresh, moving)
        with torch.no_grad():
            for name, parameter in moving.items():
                parameter.copy_(model.get_parameter(name))
        scope.after_step(moving, state)
        once = weights(fresh)
        scope.after_step(moving, state)
        assert weights(fresh) == once
        assert {parameter.dtype for parameter in moving.values()} == {dtype}


@pytest.mark.parametrize(("kind", "spec"), every_variation("scope"))
def test_a_scope_continues_where_it_was_stopped(kind: str, spec: dict[str, Any]) -> None:
    scope = build(kind, spec)
    straight = weights(run_in(scope, 5, Kept()))
    store = Kept()
    with pytest.raises(KeyboardInterrupt):
        run_in(scope, 5, store, stop_at=3)
    assert weights(run_in(scope, 5, store)) == straight


@pytest.mark.parametrize(("kind", "spec"), every_variation("scope"))
def test_a_scope_leaves_the_model_as_it_was_made(kind: str, spec: dict[str, Any]) -> None:
    """Names, order and types; what it added is gone. Nothing has moved where no step was made."""
    model = opened_in(build(kind, spec))
    detach(build(kind, spec), model, original=Path("m"))
    assert weights(model) == weights(make_model("llama"))
    assert [type(module) for module in model.modules()] == [type(module) for module in make_model("llama").modules()]


# --- rates


@pytest.mark.parametrize(("kind", "spec"), every_variation("rate"))
def test_a_rate_is_a_share_of_the_base_rate_at_every_step(kind: str, spec: dict[str, Any]) -> None:
    rate = build(kind, spec)
    for steps in (1, 2, 10, 97):
        factors = [rate.factor(step, steps) for step in range(steps)]
        assert all(math.isfinite(factor) and 0 <= factor <= 1 for factor in factors)
        assert factors == [rate.factor(step, steps) for step in range(steps)] and max(factors) > 0


# --- the promise itself


BROKEN = {
    "mean instead of sum": "return current.mean(), len(current)",
    "in place": "current.data.add_(1.0)\n        return current.sum(), len(current)",
    "half precision": "return current.sum().half(), len(current)",
}


@pytest.mark.parametrize("fault", list(BROKEN))
def test_a_broken_term_would_be_found(tmp_path: Path, fault: str) -> None:
    source = card("forget_term", "gradient_ascent").path.read_text()
    path = tmp_path / "mine.py"
    path.write_text(source.replace("return current.sum(), len(current)", BROKEN[fault]))
    spec = {"name": str(path)}

    def all_checks() -> None:
        test_a_loss_is_finite_deterministic_and_keeps_dtype_and_inputs("forget_term", spec)
        test_a_loss_is_a_sum_over_its_rows("forget_term", spec)

    with pytest.raises(AssertionError):
        all_checks()


def test_the_folders_are_not_empty() -> None:
    assert all(names(kind) for kind in KINDS)
