"""A linear layer on its 4-bit codes against the same layer in float32: time by number of tokens, memory, digits.

dense      y = x W^T with W in float32, dequantized once
unpacked   W is dequantized at every call
codes      `PackedLinear`: torch's int4 kernel, bfloat16 inside

    OMP_NUM_THREADS=1 python benchmarks/low_bit_linear.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import write

from letheon.numerics.grids import Grid, dequantize, quantize
from letheon.quantization.packed_linear import PackedLinear

SIZES = (1024, 4096)
TOKENS = (1, 8, 64, 512)


def seconds(call: Callable[[], Any]) -> float:
    """Of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measured(size: int, rounds: int) -> dict[str, Any]:
    """One square layer, groups of 128."""
    generator = torch.Generator().manual_seed(size)
    weight = torch.randn(size, size, generator=generator)
    layer = quantize(weight, Grid(bits=4, scheme="asym", group=128, scale_dtype="bfloat16"))
    dense, packed = dequantize(layer), PackedLinear(layer, None)
    found: dict[str, Any] = {}
    for tokens in TOKENS:
        x = torch.randn(tokens, size, generator=generator)
        arms: dict[str, Callable[[], torch.Tensor]] = {
            "dense": lambda x=x: x @ dense.T,
            "unpacked": lambda x=x: x @ dequantize(layer).T,
            "codes": lambda x=x: packed(x),
        }
        exact = x.double() @ dense.double().T
        times = {name: [seconds(arm) for _ in range(2)][:0] for name, arm in arms.items()}
        for _ in range(rounds):
            for name, arm in arms.items():
                times[name].append(seconds(arm))
        middle = {name: statistics.median(values) for name, values in times.items()}
        ratios = {
            name: round(statistics.median(a / b for a, b in zip(times["dense"], times[name], strict=True)), 2)
            for name in ("unpacked", "codes")
        }
        found[str(tokens)] = {
            "milliseconds": {name: round(1e3 * value, 3) for name, value in middle.items()},
            "times as fast as dense": ratios,
            "relative error of codes": round(float((packed(x).double() - exact).norm() / exact.norm()), 5),
        }
    held = sum(tensor.nbytes for tensor in packed.buffers())
    return {"tokens": found, "bytes of dense": dense.nbytes, "share of them": round(held / dense.nbytes, 4)}


def main() -> None:
    """Every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        write("low_bit_linear", {"layers": {str(size): measured(size, given.rounds) for size in SIZES}})


if __name__ == "__main__":
    main()
