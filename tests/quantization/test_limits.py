"""What a format cannot hold is said before anything is solved, with the layer and the way out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from letheon.errors import BadInput
from letheon.models import inspect_model
from letheon.numerics.grids import CodebookGrid, Grid
from letheon.quantization.limits import Limits, Plan, check_dense, stored_dtype, stored_exactly
from tests.architectures.models import saved

LIMITS = Limits(format="mine", bits=(3, 4), schemes=("sym", "asym"), scale_dtype="float16", outputs=8, inputs=32)


def plan(grid: Grid | CodebookGrid | None = None, **changes: Any) -> Plan:
    shapes = {"a.q": (16, 64), "a.k": (8, 64), "b.down": (64, 96)}
    made = Plan(
        original=inspect_model(saved("llama")),
        shapes=shapes,
        grid=grid or Grid(bits=4, group=32, scale_dtype="float16"),
    )
    return replace(made, **changes)


def test_a_plan_within_the_limits_passes() -> None:
    LIMITS.check(plan())
    LIMITS.check(plan(Grid(bits=3, scheme="asym", scale_dtype="float16")))


FP16: dict[str, Any] = {"scale_dtype": "float16"}
REFUSED: dict[str, tuple[Plan, str]] = {
    "bits": (plan(Grid(bits=5, **FP16)), r"has no layout for 5 bits \(it has: 3, 4\)\. Use other --method\.bits, or"),
    "off": (plan(Grid(bits=16, **FP16)), r"16 bits has no codes .* Use --format dense"),
    "scheme": (plan(Grid(scheme="sym_clipped", **FP16)), r"cannot say scheme sym_clipped .* Use --method\.scheme sym"),
    "table": (plan(CodebookGrid("nf4")), r"has no table nf4\. Use --format bitsandbytes or dense"),
    "scales": (
        plan(Grid(bits=4)),
        r"stores scales as float16 here, and the grid has them in float32.*--method\.scale-dtype float16",
    ),
    "bfloat16 scales": (plan(Grid(bits=4, scale_dtype="bfloat16")), r"the grid has them in bfloat16"),
    "groups": (
        plan(Grid(bits=4, group=64, **FP16)),
        r"layer b\.down has 96 inputs, and a group of 64 needs a multiple of 64\. Use --method\.group row or a divisor "
        "of 96",
    ),
    "inputs": (plan(shapes={"a.q": (16, 48), "a.k": (16, 48)}), r"layer a\.q and 1 others have 48 inputs, and format "),
    "outputs": (plan(shapes={"a.q": (12, 64)}), r"layer a\.q has 12 outputs, and format mine needs a multiple of 8"),
    "transposed": (plan(transposed=frozenset({"h.c"})), r"layer h\.c is stored as \(in, out\).*Use --format dense"),
    "online": (plan(online=("R3", "R4")), r"keeps R3, R4 in the forward pass.*Rotate with R1 and R2 alone"),
    "dynamic groups": (plan(has_group_index=True), r"no place for groups .* Use static groups .* or --format gptq"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_limit_is_refused_with_its_remedy(name: str) -> None:
    asked, words = REFUSED[name]
    with pytest.raises(BadInput, match=words):
        LIMITS.check(asked)


def test_a_format_that_has_it_does_not_refuse_it() -> None:
    replace(LIMITS, has_group_index=True).check(plan(has_group_index=True))
    replace(LIMITS, codebooks=("nf4",)).check(plan(CodebookGrid("nf4")))
    replace(LIMITS, scale_dtype="float32").check(plan(Grid(bits=4, scale_dtype="bfloat16")))


def test_blocks_of_a_format_want_groups_of_whole_blocks() -> None:
    with pytest.raises(BadInput, match="a group of 16 does not go into format mine, whose blocks are of 32 inputs"):
        replace(LIMITS, group=32).check(plan(Grid(bits=4, group=16, **FP16)))
    replace(LIMITS, group=32).check(plan(Grid(bits=4, group="row", **FP16)))


def test_all_faults_come_at_once_with_those_the_format_found() -> None:
    asked = plan(Grid(bits=5), transposed=frozenset({"h.c"}), online=("R4",), shapes={"a.q": (12, 48)})
    with pytest.raises(BadInput) as caught:
        LIMITS.check(asked, "another one")
    assert len(caught.value.problems) == 7 and caught.value.problems[-1] == "another one"


def test_a_dense_folder_refuses_what_stays_in_the_forward_pass_alone() -> None:
    check_dense(plan(Grid(bits=16), transposed=frozenset({"h.c"}), has_group_index=True), "dense")
    with pytest.raises(BadInput, match="the rotation keeps R3 in the forward pass, which no file of format dense"):
        check_dense(plan(online=("R3",)), "dense")


def test_scales_are_stored_exactly_or_not_at_all() -> None:
    exact = torch.tensor([[0.5, 2.0**-24, 65504.0]])
    assert stored_exactly("a.q", exact, torch.float16).dtype == torch.float16
    cases = {
        7e4: "layer a.q: a scale of 7e.04 is beyond the largest float16, 65504",
        1e-8: "layer a.q: a scale of 1e-08 is 0 as float16",
        0.1: "layer a.q: a scale of 0.1 would be rounded to float16.*scale-dtype float16",
    }
    for value, words in cases.items():
        with pytest.raises(BadInput, match=words):
            stored_exactly("a.q", torch.tensor([[0.5, value]]), torch.float16)


def test_what_a_loader_takes_is_what_the_configuration_says() -> None:
    folder = inspect_model(saved("llama"))
    assert stored_dtype(folder) == "float32"
    assert stored_dtype(replace(folder, config={**folder.config, "dtype": "bfloat16"})) == "bfloat16"
    older = {key: value for key, value in folder.config.items() if key != "dtype"}
    assert stored_dtype(replace(folder, config={**older, "torch_dtype": "float16"})) == "float16"
    assert stored_dtype(replace(folder, config=older)) == "float32"
