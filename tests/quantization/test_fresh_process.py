"""What ships, opened by somebody else: 64 greedy tokens in a new process equal those of the rounded model in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from letheon.numerics.grids import CodebookGrid, Grid
from tests.quantization.low_bit import PROMPT, TOKENS, fresh, greedy, in_memory, low_bit_model, tiny_llama, written

GREEDY = f"""
import json, sys, torch
ids = torch.tensor({PROMPT})
def greedy(model):
    made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                          min_new_tokens={TOKENS}, max_new_tokens={TOKENS})
    return made[0, ids.shape[1]:].tolist()
"""
WITH_TRANSFORMERS = (
    GREEDY
    + """
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
found = {}
for folder in sys.argv[1:]:
    more = {}
    if folder.endswith("gguf"):
        more["gguf_file"] = "model.gguf"
    if folder.endswith("asym"):
        more["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    found[folder] = greedy(AutoModelForCausalLM.from_pretrained(folder, **more))
assert not any(name.startswith("letheon") for name in sys.modules)
print(json.dumps(found))
"""
)
WITH_OUR_READER = (
    GREEDY
    + """
from pathlib import Path
from letheon.quantization.reading import load_low_bit
found = {folder: greedy(load_low_bit(Path(folder))) for folder in sys.argv[1:]}
packages = ("gptqmodel", "optimum", "awq", "bitsandbytes", "compressed_tensors", "gguf")
assert not any(name.split(".")[0] in packages for name in sys.modules)
print(json.dumps(found))
"""
)
HALF = Grid(bits=4, group=32, scale_dtype="float16")


def expected(folders: dict[str, tuple[str, Grid | CodebookGrid]], where: Path) -> dict[str, list[int]]:
    """Folder, written in a format with a grid -> the tokens of the model in memory."""
    found = {}
    for name, (form, grid) in folders.items():
        model = low_bit_model(tiny_llama(), grid)
        found[str(written(form, model, where / name))] = greedy(in_memory(tiny_llama(), model))
    assert all(len(set(tokens)) > 10 for tokens in found.values())  # no loop that any model falls into
    return found


def test_transformers_alone_continues_alike(tmp_path: Path) -> None:
    for package in ("compressed_tensors", "gguf", "accelerate"):
        pytest.importorskip(package)
    wanted = expected(
        {
            "dense": ("dense", Grid(bits=3)),
            "packed": ("compressed_tensors", Grid(bits=4, group=32)),
            "three": ("compressed_tensors", Grid(bits=3, group=32)),
            "asym": ("compressed_tensors", Grid(bits=4, scheme="asym", group=32)),
            "gguf": ("gguf", HALF),
        },
        tmp_path,
    )
    assert len({tuple(tokens) for tokens in wanted.values()}) == len(wanted)  # each rounding shows
    assert fresh(WITH_TRANSFORMERS, *wanted) == wanted


@pytest.mark.slow
def test_our_reader_continues_alike_without_any_package_of_a_format(tmp_path: Path) -> None:
    asym = Grid(bits=4, scheme="asym", group=32, scale_dtype="float16")
    wanted = expected(
        {
            "gptq": ("gptq", HALF),
            "gptq-asym": ("gptq", Grid(bits=3, scheme="asym", scale_dtype="float16")),
            "awq": ("awq", asym),
            "nf4": ("bitsandbytes", CodebookGrid("nf4")),
            "gguf": ("gguf", Grid(bits=8, group="row", scale_dtype="float16")),
            "packed": ("compressed_tensors", asym),
        },
        tmp_path,
    )
    assert fresh(WITH_OUR_READER, *wanted) == wanted


def test_tokens_depend_on_the_rounding() -> None:
    """Of the oracle: another grid gives other tokens, so equal ones say something."""
    models = [in_memory(tiny_llama(), low_bit_model(tiny_llama(), Grid(bits=bits))) for bits in (3, 4)]
    assert greedy(models[0]) != greedy(models[1])
    assert torch.equal(torch.tensor(greedy(models[0])), torch.tensor(greedy(models[0])))
