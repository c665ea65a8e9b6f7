"""The kernels in Triton: run in its interpreter on the processor, and compiled for a GPU that need not be there.

Triton looks at TRITON_INTERPRET when it is imported, so both need a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from letheon.errors import BadInput
from letheon.quantization.kernels import columns
from tests.quantization.kernels.test_columns import block

HERE = Path(__file__).parent
FILES = ["interpreted_columns.py", "interpreted_low_bit.py"]

COLUMNS = """
import inspect, re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from letheon.quantization.kernels.columns_triton import _round_rows

types = {name: "*fp32" for name in inspect.signature(_round_rows).parameters}
types |= {"codes": "*i16", "rows": "i32", "columns": "i32"}
known = dict(LOW=0.0, HIGH=15.0, TILE=16, WIDTH=128, HAS_DRIFT=True, HAS_RESIDUAL=True, IS_DOUBLE=False)
source = ASTSource(fn=triton.jit(_round_rows), signature=types | dict.fromkeys(known, "constexpr"), constexprs=known)
text = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False}).asm["ptx"]
assert "div.rn.f32" in text and "div.full" not in text and "div.approx" not in text, "not divided by IEEE rules"
assert "fma" not in text, "what torch rounds in between is not"
assert "0f4B400000" in text and "0fCB400000" in text, "the rounding has been folded away"
"""

PRODUCT = """
import inspect, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from letheon.quantization.kernels.low_bit_triton import _multiply

for dtype, kind, cut in (("bf16", 1, "cvt.rn.bf16"), ("fp16", 2, "cvt.rn.f16")):
    types = dict.fromkeys(inspect.signature(_multiply).parameters, "i32")
    types |= {"x": f"*{dtype}", "found": f"*{dtype}", "codes": "*u8", "zero": "*u8", "scale": "*fp32"}
    known = dict(IS_HALVED=True, KEPT=kind, GIVEN=kind, TOKENS=16, OUTPUTS=64, PIECE=64, IS_INTERPRETED=False)
    source = ASTSource(fn=triton.jit(_multiply), signature=types | dict.fromkeys(known, "constexpr"), constexprs=known)
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False}).asm["ptx"]
    assert cut in text, "weights are not rounded to nearest"
    assert "mma" in text and ".f32" in text, "not on tensor cores"
"""


def ran(*arguments: str, **variables: str) -> None:
    found = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("file", FILES)
def test_the_interpreter_gives_what_torch_gives(file: str) -> None:
    pytest.importorskip("triton")
    ran("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file), TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.parametrize("file", FILES)
def test_a_gpu_gives_what_torch_gives(file: str) -> None:
    pytest.importorskip("triton")
    ran("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file), TRITON_INTERPRET="0")


@pytest.mark.parametrize("script", [COLUMNS, PRODUCT], ids=["columns", "product"])
def test_it_is_compiled_as_torch_computes(script: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    ran("-c", script, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))


def test_a_gpu_gets_triton_where_it_is_and_torch_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "find_spec", lambda name: object())
    assert columns.kernel_for("cuda") == columns.kernel_for(torch.device("cuda", 1)) == "triton"
    assert columns.kernel_for("cpu") == "numba" and columns.kernel_for("mps") == "torch"
    monkeypatch.setattr(columns, "find_spec", lambda name: None)
    assert columns.kernel_for("cuda") == "torch"
    with pytest.raises(BadInput, match=r"the column loop in Triton needs the package triton, which is not installed"):
        columns.round_block(block("gptq"), kernel="triton")
