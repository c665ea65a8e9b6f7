"""One NPO + KLR step of letheon beside the same step written the plain way: time and tensor bytes.

Plain: two models in memory, four forward passes over all positions (model and reference, forget and retain), one
backward pass, as the published code of several methods has it. letheon: what the reference says is cached, forget and
retain are one pass, the head runs on labelled positions. Optimizer, clipping, batches and start are the same, and the
losses and gradients are compared before anything is timed.

    OMP_NUM_THREADS=2 python benchmarks/npo_klr_step.py
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measuring import spread, write
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, logsigmoid
from transformers import LlamaConfig, LlamaForCausalLM

from letheon.data.batches import Batch, collate
from letheon.data.encode import Example
from letheon.training.active import Movers
from letheon.training.gradients import Parts
from letheon.training.loop import Loop, _step
from letheon.training.losses import Body
from letheon.training.memory import PeakBytes
from letheon.training.rates.constant import Constant
from letheon.training.stepping import OptimizerSettings
from letheon.unlearning.balances.weighted import Weighted
from letheon.unlearning.forget_terms.npo import NPO
from letheon.unlearning.objective import TermLoss, make_gradient
from letheon.unlearning.reference import cache_log_probs, cache_logits
from letheon.unlearning.retain_terms.klr import KLR
from letheon.unlearning.smoothers.none import NoSmoothing

SIZE, BATCHES, PAD = 8, 8, 0
CONFIG = LlamaConfig(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=8,
    max_position_embeddings=128,
    tie_word_embeddings=False,
    initializer_range=0.05,
)
OPTIMIZER = OptimizerSettings(learning_rate=1e-5)
KINDS = {"texts": None, "answers": 16}
"""Kind of data -> labelled tokens at the end; None: all but the first, as in running texts."""


@dataclass
class Side:
    """One way to make a step."""

    model: LlamaForCausalLM
    step: Callable[[int], dict[str, float]]
    gradient: Callable[[], list[Tensor]]
    """Of the first batch; makes no step."""
    kept: list[Tensor]
    """What it holds besides model and optimizer."""


def examples(count: int, labelled: int | None, seed: int, *, longest: int = 64) -> list[Example]:
    """Random tokens, `longest` of them or up to an eighth less."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        length = int(torch.randint(longest - longest // 8, longest + 1, (1,), generator=generator))
        ids = torch.randint(2, CONFIG.vocab_size, (length,), generator=generator).tolist()
        made.append(Example(tuple(ids), length - labelled if labelled else 1))
    return made


def batch(data: list[Example], step: int) -> Batch:
    """The same for both sides."""
    items = [(step * SIZE + row) % len(data) for row in range(SIZE)]
    return collate([data[item] for item in items], items, pad=PAD)


def letheon_side(model: LlamaForCausalLM, forget: list[Example], retain: list[Example]) -> Side:
    """The real gradient and the real loop's step."""
    model.eval()
    body = Body(model)
    log_probs = cache_log_probs(body, forget, reduction="mean", pad=PAD, device="cpu")
    logits = cache_logits(body, retain, pad=PAD, device="cpu")
    moving = dict(model.named_parameters())
    gradient = make_gradient(
        forget=TermLoss(NPO(), body, {"reference_log_probs": log_probs}),
        retain=TermLoss(KLR(), body, {"reference_logits": logits}),
        balance=Weighted(),
        smoother=NoSmoothing(),
        parameters=list(moving.values()),
        pad=PAD,
    )

    def parts(step: int) -> Parts:
        return {"forget": [batch(forget, step)], "retain": [batch(retain, step)]}

    loop = Loop(
        model=model, moving=moving, gradient=gradient, parts=parts, steps=10**6, optimizer=OPTIMIZER, rate=Constant()
    )
    optimizer, movers = adamw(model), Movers(moving, {})
    kept = [log_probs.values, logits.weight, torch.from_numpy(logits.hidden)]
    return Side(
        model, lambda step: _step(loop, movers, optimizer, step, {})[0], lambda: gradient(model, parts(0)).tensors, kept
    )


def plain_side(model: LlamaForCausalLM, forget: list[Example], retain: list[Example]) -> Side:
    """Reference model in memory, its forward passes in every step."""
    model.eval()
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = adamw(model)
    beta = NPO().beta

    def losses(step: int) -> tuple[Tensor, Tensor]:
        one = batch(forget, step)
        with torch.no_grad():
            theirs = mean_log_probs(reference, one)
        forget_loss = -(2 / beta) * logsigmoid(-beta * (mean_log_probs(model, one) - theirs)).mean()
        other = batch(retain, step)
        with torch.no_grad():
            theirs = log_softmax(labelled_logits(reference, other), -1)
        ours = log_softmax(labelled_logits(model, other), -1)
        return forget_loss, kl_div(ours, theirs, reduction="sum", log_target=True) / len(ours)

    def backward(step: int) -> dict[str, float]:
        forget_loss, retain_loss = losses(step)
        (forget_loss + retain_loss).backward()
        return {"forget_loss": float(forget_loss.detach()), "retain_loss": float(retain_loss.detach())}

    def step(number: int) -> dict[str, float]:
        figures = backward(number)
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        return figures

    def gradient() -> list[Tensor]:
        backward(0)
        found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        model.zero_grad()
        return found

    return Side(model, step, gradient, list(reference.parameters()))


def labelled_logits(model: LlamaForCausalLM, given: Batch) -> Tensor:
    """Logits of every position, then those that predict a labelled token."""
    logits = model(input_ids=given.ids, attention_mask=given.attention_mask, use_cache=False).logits
    return logits[given.label_row, given.label_column]


def mean_log_probs(model: LlamaForCausalLM, given: Batch) -> Tensor:
    """(batch,) mean log-probability of the labelled tokens."""
    values = -cross_entropy(labelled_logits(model, given), given.label_ids, reduction="none")
    return torch.zeros(given.size).index_add(0, given.label_row, values) / given.label_counts


def adamw(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """The optimizer of both sides."""
    return torch.optim.AdamW(model.parameters(), lr=OPTIMIZER.learning_rate, weight_decay=0.0, fused=True)


def check_equal(sides: dict[str, Side]) -> None:
    """Stop unless gradients (once moved away from the reference) and losses agree."""
    for step in range(2):
        figures = [side.step(step) for side in sides.values()]
        for name in ("forget_loss", "retain_loss"):
            torch.testing.assert_close(
                torch.tensor(figures[0][name]), torch.tensor(figures[1][name]), rtol=1e-4, atol=1e-7
            )
    for one, other in zip(*(side.gradient() for side in sides.values()), strict=True):
        scale = float(one.abs().max())
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * scale)


def peak_bytes(side: Side) -> int:
    """Tensor bytes of two steps, with all that is held between them."""
    with PeakBytes() as counted:
        counted.hold([*side.model.parameters(), *side.model.buffers(), *side.kept])
        side.step(0)
        side.step(1)
    return counted.peak


def compare(labelled: int | None, steps: int) -> dict[str, Any]:
    """Both sides over the same data, interleaved step by step."""
    forget, retain = (examples(SIZE * BATCHES, labelled, seed) for seed in (1, 2))
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    sides = {
        "plain": plain_side(copy.deepcopy(model), forget, retain),
        "letheon": letheon_side(model, forget, retain),
    }
    check_equal(sides)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for step in range(2, steps + 5):
        for name, side in sides.items():
            began = time.perf_counter()
            side.step(step)
            if step >= 5:
                times[name].append(time.perf_counter() - began)
    pairs = [plain / ours for plain, ours in zip(times["plain"], times["letheon"], strict=True)]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": {name: spread(values) for name, values in times.items()},
        "ratio_of_medians": round(statistics.median(times["plain"]) / statistics.median(times["letheon"]), 3),
        "median_of_ratios": round(statistics.median(pairs), 3),
        "peak_tensor_bytes": {name: peak_bytes(side) for name, side in sides.items()},
    }


def main() -> None:
    """Both kinds of data; the one with every token labelled is the harder one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each side")
    steps = parser.parse_args().steps
    write(
        "npo_klr_step",
        {
            "batch": f"{SIZE} + {SIZE}",
            "steps": steps,
            **{kind: compare(labelled, steps) for kind, labelled in KINDS.items()},
        },
    )


if __name__ == "__main__":
    main()
