"""What smoothing, balancing, a fitted rate and few active rows cost: steps of the real loop, in turn, as ratios.

sam / npo_gdr      one more forget pass: 9 units of forward work against 6, so 1.50 at best; the shorter the texts, the
                   more of a step is what each pass costs whatever its length, and NPO + GDR needs one pass where SAM
                   needs three: measured at two lengths
ngdiff / two_pass  the same two gradients, brought to length 1 instead of added
gen / two_pass     with a rate fitted to three points in every tenth step
roste / npo_gdr    through four-bit weights, activations, keys and values, with every rotation
sure               bytes of the optimizer's state with a tenth of the rows active, against all

OMP_NUM_THREADS=2 python benchmarks/unlearning_steps.py
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import spread, write
from npo_klr_step import BATCHES, CONFIG, OPTIMIZER, PAD, SIZE, batch, examples
from transformers import LlamaConfig, LlamaForCausalLM

from letheon.lowbit.low_bit_pass import Basis, pass_named
from letheon.lowbit.rotations.hadamard import HadamardRotation
from letheon.methods import build
from letheon.training.active import Active, Movers
from letheon.training.gradients import MeanGradient, MeanLoss, Parts
from letheon.training.loop import FittedRate, Loop, _step
from letheon.training.losses import Body
from letheon.training.stepping import make_optimizer
from letheon.training.straight_through import trained_through
from letheon.unlearning.objective import TermLoss, make_gradient
from letheon.unlearning.reference import cache_log_probs

SIDES: dict[str, dict[str, Any]] = {
    "npo_gdr": {},
    "sam": {"smooth": "sam"},
    "two_pass": {"method": "gradient_ascent", "is_joint": False},
    "ngdiff": {"method": "gradient_ascent", "balance": "ngdiff"},
    "gen": {"method": "gradient_ascent", "is_joint": False, "rate": {"name": "gen", "every": 10}},
    "sure": {"scope": {"name": "sure", "percentile": 90.0}},
    "roste": {"through": "w4a4kv4"},
}
ROUND = 10
"""A fitted rate looks in every tenth step."""
RATIOS = {"sam": "npo_gdr", "ngdiff": "two_pass", "gen": "two_pass", "sure": "npo_gdr", "roste": "npo_gdr"}


def side(
    base: LlamaForCausalLM,
    longest: int,
    *,
    method: str = "npo",
    balance: str = "weighted",
    smooth: str = "none",
    scope: Any = "all",
    rate: Any = "constant",
    is_joint: bool = True,
    through: str | None = None,
) -> tuple[Callable[[int], None], int]:
    """A step of the real loop on a copy of the model, and the bytes of its optimizer's state."""
    model = copy.deepcopy(base).eval()
    forget, retain = (examples(SIZE * BATCHES, None, seed, longest=longest) for seed in (1, 2))
    body = Body(model)
    chosen_pass, basis = pass_named(through), Basis()
    if through is not None:
        basis = Basis(online=HadamardRotation().rotate(model).online)
    inside = trained_through(model, chosen_pass, basis)
    inside.__enter__()  # as long as the side's model lives
    term = build("forget_term", method)
    needs_reference = "reference_log_probs" in term.needs
    reference = (
        {"reference_log_probs": cache_log_probs(body, forget, reduction=term.reduction, pad=PAD, device="cpu")}
        if needs_reference
        else {}
    )
    forget_term, retain_term = TermLoss(term, body, reference), TermLoss(build("retain_term", "gdr"), body)
    smoother, chosen = build("smoother", smooth), build("scope", scope)
    moving: dict[str, Any] = chosen.select(model)

    def parts(step: int) -> Parts:
        return {"forget": [batch(forget, step)], "retain": [batch(retain, step)]}

    active: dict[str, Active] = {}
    if hasattr(chosen, "active"):
        whole = MeanGradient(forget_term, "forget", list(moving.values()))(model, parts(0)).tensors
        active = chosen.active(model, moving, whole)
        moving = {name: moving[name] for name in active}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in moving)
    movers = Movers(moving, active)
    gradient = make_gradient(
        forget=forget_term,
        retain=retain_term,
        balance=build("balance", balance),
        smoother=smoother,
        smoother_state=smoother.init(movers.of, 0),
        parameters=movers,
        pad=PAD,
        is_joint=is_joint,
    )
    made = build("rate", rate)
    loop = Loop(
        model=model,
        moving=moving,
        gradient=gradient,
        parts=parts,
        steps=10**6,
        optimizer=OPTIMIZER,
        rate=made,
        probe=MeanLoss(retain_term, "retain"),
        movers=movers,
    )
    optimizer = make_optimizer(list(movers.of.values()), OPTIMIZER)
    state = made.init(OPTIMIZER.learning_rate) if isinstance(made, FittedRate) else {}

    def step(number: int, inside: Any = inside) -> None:
        nonlocal state
        _, state = _step(loop, movers, optimizer, number, state)

    step(0)
    held = sum(
        tensor.numel() * tensor.element_size()
        for memory in optimizer.state.values()
        for tensor in memory.values()
        if isinstance(tensor, torch.Tensor)
    )
    return step, held


def main() -> None:
    """All sides in turn, so that the machine's mood is everybody's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help=f"rounds of {ROUND} timed steps of each side")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 128], help="length of the longest text")
    given = parser.parse_args()
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**{**CONFIG.to_dict(), "max_position_embeddings": max(given.tokens)}))
    write(
        "unlearning_steps",
        {
            "batch": f"{SIZE} + {SIZE}",
            "steps": given.rounds * ROUND,
            "parameters": sum(parameter.numel() for parameter in base.parameters()),
            "texts": {f"up to {tokens} tokens": measured(base, tokens, given.rounds) for tokens in given.tokens},
        },
    )


def measured(base: LlamaForCausalLM, tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds of each side at one length, and the ratios."""
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(rounds):
        # From the same weights each round: a model that has collapsed takes another time for the same work.
        made = {name: side(base, tokens, **settings) for name, settings in SIDES.items()}
        for number in range(1, ROUND + 1):
            for name, (step, _) in made.items():
                began = time.perf_counter()
                step(number)
                times[name].append(time.perf_counter() - began)
    return {
        "seconds": {name: spread(values) for name, values in times.items()},
        # A fitted rate looks in every tenth step, so that side is compared by its mean.
        "ratio_of_means": {
            f"{name} / {other}": round(statistics.fmean(times[name]) / statistics.fmean(times[other]), 3)
            for name, other in RATIOS.items()
        },
        "median_of_ratios": {
            f"{name} / {other}": round(
                statistics.median(one / two for one, two in zip(times[name], times[other], strict=True)), 3
            )
            for name, other in RATIOS.items()
        },
        "optimizer_state_of_sure": round(made["sure"][1] / made["npo_gdr"][1], 4),
    }


if __name__ == "__main__":
    main()
