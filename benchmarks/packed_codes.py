"""A linear layer on its codes against the same layer in dense float32: time by number of tokens, memory, digits.

dense       y = x W^T with W in float32, dequantized once
unpacked    W is dequantized whole at every call
compiled    every weight made in a register (exact float32, `low_bit_compiled`)
tiles       some rows dequantized, multiplied, forgotten (exact float32, `low_bit_matmul`)
int4pack    torch's own kernel for int4, x in bfloat16; steps and offsets are bfloat16 in it

The arms take turns. What is compared is processor time of one thread, which other work on the machine does not
count into; it still shares caches and memory with it. Wall time stands beside it.

    OMP_NUM_THREADS=1 python benchmarks/packed_codes.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import write
from torch import Tensor

from letheon.numerics.grids import Grid, Quantized, dequantize, quantize
from letheon.quantization.kernels.low_bit_matmul import FEW, multiply
from letheon.quantization.kernels.packed_codes import PackedCodes, pack_codes

SIZES = (1024, 2048, 4096)
TOKENS = (1, 4, 8, 16, 64, 512)
GROUP = 128

Arm = Callable[[Tensor], Tensor]


def int4pack(layer: Quantized) -> Arm:
    """torch's kernel: w = (code - 8) * step + offset, with step and offset in the dtype of x."""
    columns = layer.codes.shape[1]
    words = torch.ops.aten._convert_weight_to_int4pack_for_cpu(layer.codes.to(torch.int32), 1)
    offset = layer.scale * (8 - layer.zero.float())
    pairs = torch.stack([layer.scale.T, offset.T], dim=-1).to(torch.bfloat16).contiguous()
    group = columns // layer.scale.shape[1]
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x.to(torch.bfloat16), words, group, pairs).float()


def arms_of(layer: Quantized, packed: PackedCodes, dense: Tensor) -> dict[str, Arm]:
    """Every way to y."""
    found: dict[str, Arm] = {
        "dense": lambda x: x @ dense.T,
        "unpacked": lambda x: x @ dequantize(layer).float().T,
        "compiled": lambda x: multiply(x, packed, way="compiled"),
        "tiles": lambda x: multiply(x, packed, way="tiles"),
    }
    return {**found, "int4pack": int4pack(layer)} if packed.bits == 4 else found


def timed(arms: dict[str, Arm], x: Tensor, rounds: int) -> dict[str, Any]:
    """Medians of every arm, and of the ratios round by round."""
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    wall: dict[str, list[float]] = {name: [] for name in arms}
    for call in arms.values():
        call(x)
    for _ in range(rounds):
        for name, call in arms.items():
            began, busy = time.perf_counter(), time.thread_time()
            call(x)
            cpu[name].append(time.thread_time() - busy)
            wall[name].append(time.perf_counter() - began)
    others = [name for name in arms if name != "dense"]
    ratio = {
        label: {
            name: round(statistics.median(a / b for a, b in zip(of["dense"], of[name], strict=True)), 2)
            for name in others
        }
        for label, of in (("processor", cpu), ("wall", wall))
    }
    return {
        "milliseconds of processor": {name: round(1e3 * statistics.median(values), 3) for name, values in cpu.items()},
        "times as fast as dense": ratio["processor"],
        "times as fast as dense, wall": ratio["wall"],
    }


def measured(size: int, bits: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """One square layer."""
    generator = torch.Generator().manual_seed(size)
    weight = torch.randn(size, size, generator=generator).to(dtype)
    layer = quantize(weight, Grid(bits=bits, scheme="asym", group=GROUP, scale_dtype="bfloat16"))
    packed, dense = pack_codes(layer), dequantize(layer).float()
    arms = arms_of(layer, packed, dense)
    found: dict[str, Any] = {}
    for tokens in TOKENS:
        x = torch.randn(tokens, size, generator=generator)
        exact = x.double() @ dense.double().T
        errors = {name: float(f"{float((call(x) - exact).norm() / exact.norm()):.2e}") for name, call in arms.items()}
        found[str(tokens)] = {**timed(arms, x, rounds if tokens < 512 else 5), "relative error": errors}
    held = sum(tensor.nbytes for tensor in (packed.codes, packed.scale, packed.zero))
    return {"tokens": found, "share of dense memory": round(held / dense.nbytes, 4)}


def main() -> None:
    """Every size at 4 bits of a bfloat16 model; 8 bits, and a float32 model, at the largest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(size, 4, torch.bfloat16) for size in SIZES]
    cases += [(SIZES[-1], 8, torch.bfloat16), (SIZES[-1], 4, torch.float32)]
    with torch.inference_mode():
        layers = {
            f"{size} x {size}, {bits} bits, {str(dtype).removeprefix('torch.')}": measured(
                size, bits, dtype, given.rounds
            )
            for size, bits, dtype in cases
        }
    write("packed_codes", {"group": GROUP, "few": FEW, "layers": layers})


if __name__ == "__main__":
    main()
