"""What rounding one layer costs: the solvers by way of the column loop, and where GPTQ's and GPTAQ's time goes.

factor    the inverse of the inputs' moments, float64
drift     what later columns are given of the drift, two products in float64 (GPTAQ)
loop      the columns of all blocks
product   each block's errors carried to the columns beyond it (with GPTAQ their drift too), and what is left

OMP_NUM_THREADS=2 python benchmarks/solvers.py --size 4096
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measuring import write

from letheon.quantization import compensation
from letheon.quantization.compensation import round_compensated
from letheon.quantization.factors import factorize, passed_on
from letheon.quantization.kernels.columns import Block, Kernel, RoundedBlock, kernel_for, round_block
from letheon.quantization.quantizers.gptaq import GPTAQ
from letheon.quantization.quantizers.gptq import GPTQ
from letheon.quantization.quantizers.refit import Refit
from letheon.quantization.quantizers.rescomp import ResComp
from letheon.quantization.quantizers.rtn import RTN
from letheon.quantization.statistics import Moments, Statistics

KERNELS: tuple[Kernel, ...] = ("torch", "numba")


def layer(size: int) -> tuple[torch.Tensor, Statistics]:
    """A square layer, and its inputs' statistics: correlated, drifted, more tokens than inputs."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(size, size, generator=generator) / size**0.5 * torch.logspace(0, -1, size)
    moments = Moments(size, has_drift=True)
    for _ in range(3):
        original = torch.randn(size // 2, size, generator=generator) @ mixed.T
        moments.add(original + 0.1 * torch.randn(original.shape, generator=generator), original)
    return torch.randn(size, size, generator=generator) * 0.02, moments.statistics()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def split(weight: torch.Tensor, known: Statistics, method: GPTQ | GPTAQ, kernel: Kernel) -> dict[str, float]:
    """Seconds of each part of one solve, with the loop's way forced."""
    in_loop = 0.0

    def watched(block: Block, *, kernel: Kernel | None = None) -> RoundedBlock:
        nonlocal in_loop
        seconds, found = timed(lambda: round_block(block, kernel=kernel))
        in_loop += seconds
        rounded: RoundedBlock = found
        return rounded

    factor_s, inverse = timed(lambda: factorize(known.gram, damping=method.damping, is_sorted=True))
    drift_s, drift = timed(lambda: passed_on(known.drift, inverse, method.alpha) if isinstance(method, GPTAQ) else None)
    compensation.round_block = watched  # type: ignore[attr-defined]
    try:
        rest_s, _ = timed(
            lambda: round_compensated(
                weight, method.grid, inverse, act_order="static", block=method.block, drift=drift, kernel=kernel
            )
        )
    finally:
        compensation.round_block = round_block  # type: ignore[attr-defined]
    total = factor_s + drift_s + rest_s
    return {
        "factor": factor_s, "drift": drift_s, "loop": in_loop, "product": rest_s - in_loop, "total": total
    }  # fmt: skip


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of each part."""
    return {name: round(statistics.median(one[name] for one in rounds), 5) for name in rounds[0]}


def agreement(weight: torch.Tensor, known: Statistics) -> float:
    """Share of equal codes of the two ways."""
    method = GPTQ()
    inverse = factorize(known.gram, damping=method.damping, is_sorted=True)
    first, second = (
        round_compensated(weight, method.grid, inverse, act_order="static", block=128, kernel=kernel)
        for kernel in KERNELS
    )
    return float((first.codes == second.codes).double().mean())


def main() -> None:
    """Each part by each way, then the methods as a user calls them, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="inputs and outputs of the layer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bits", type=int, default=4)
    asked = parser.parse_args()
    weight, known = layer(asked.size)
    methods = [made(bits=asked.bits) for made in (RTN, GPTQ, GPTAQ, ResComp, Refit)]
    # Compiling is paid once by a process, and told apart.
    compile_s, _ = timed(lambda: GPTAQ().quantize_layer(weight[:8, :8], layer(8)[1]))
    parts: dict[str, list[dict[str, float]]] = {}
    whole: dict[str, list[float]] = {}
    for _ in range(asked.rounds):
        for made in (GPTQ(bits=asked.bits), GPTAQ(bits=asked.bits)):
            for kernel in KERNELS:
                name = f"{type(made).__name__} {kernel}"
                parts.setdefault(name, []).append(split(weight, known, made, kernel))
        for method in methods:
            seconds, _ = timed(partial(method.quantize_layer, weight, known))
            whole.setdefault(type(method).__name__, []).append(seconds)
    write(
        f"solvers_{asked.size}",
        {
            "layer": f"{asked.size} x {asked.size}",
            "bits": asked.bits,
            "rounds": asked.rounds,
            "kernel_by_default": kernel_for("cpu"),
            "first_call_seconds": round(compile_s, 3),
            "seconds_of_parts": {name: medians(rounds) for name, rounds in parts.items()},
            "seconds_of_methods": {name: round(statistics.median(values), 5) for name, values in whole.items()},
            "equal_codes_of_the_two_ways": round(agreement(weight, known), 6),
        },
    )


if __name__ == "__main__":
    main()
