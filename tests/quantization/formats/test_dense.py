"""The dense folder: the dtype that was asked for, tied weights once, and no file that cannot hold its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from letheon.audits.conditions.quantized import QuantizedWeights
from letheon.errors import BadInput, CannotFinish
from letheon.methods import build, describe
from letheon.models import inspect_model, load_model
from letheon.numerics.grids import Grid
from letheon.quantization.pipeline import quantize
from letheon.runs.progress import Progress
from tests.architectures.models import make_model, save_model_folder
from tests.quantization.low_bit import low_bit_model, written
from tests.toys import bits

QUIET = Progress(quiet=True)
IDS = torch.arange(2, 14).unsqueeze(0)


def test_float32_holds_the_grid_of_a_bfloat16_model_and_bfloat16_rounds_it_once_more(tmp_path: Path) -> None:
    source = save_model_folder(make_model("llama"), tmp_path / "model", dtype=torch.bfloat16)
    folder = inspect_model(source)
    model = load_model(source)
    with torch.no_grad(), QuantizedWeights().applied(model, folder):
        on_grid = model(input_ids=IDS).logits
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wide = quantize(source, format={"name": "dense", "dtype": "float32"}, out=tmp_path / "wide", progress=QUIET).folder
    narrow = quantize(source, format="dense", out=tmp_path / "narrow", progress=QUIET).folder
    with torch.no_grad():
        assert torch.equal(load_model(wide)(input_ids=IDS).logits, on_grid)
        assert not torch.equal(load_model(narrow)(input_ids=IDS).logits, on_grid)
    stored = load_model(narrow).state_dict()
    assert all(torch.equal(stored[name], tensor.bfloat16().float()) for name, tensor in expected.items())


def test_what_float16_cannot_hold_is_not_written(tmp_path: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[2, 3] = 1e6
    source = save_model_folder(model, tmp_path / "model")
    with pytest.raises(CannotFinish, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity as float16"):
        quantize(source, format={"name": "dense", "dtype": "float16"}, out=tmp_path / "run", progress=QUIET)
    assert not (tmp_path / "run" / "1-quantize").exists()


def test_a_dtype_that_is_none_is_refused() -> None:
    with pytest.raises(BadInput, match=r"dense\.dtype: 'int8'.*'bfloat16'"):
        build("format", {"name": "dense", "dtype": "int8"})
    assert describe(build("format", "dense")) == {"name": "dense", "dtype": "original"}


@pytest.mark.parametrize("dtype", ["original", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama_tied", "gpt2"])
def test_a_low_bit_model_is_stored_as_asked_and_tied_weights_once(name: str, dtype: str, tmp_path: Path) -> None:
    source = save_model_folder(make_model(name), tmp_path / "model", dtype=torch.bfloat16)
    model = low_bit_model(source, Grid(bits=4), card="what it is\n")
    target = written({"name": "dense", "dtype": dtype}, model, tmp_path / "out")
    wanted = torch.bfloat16 if dtype == "original" else getattr(torch, dtype)
    before, after = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    assert after.keys() == before.keys() and {tensor.dtype for tensor in after.values()} == {wanted}
    assert all(bits(after[key]) == bits(tensor.to(wanted)) for key, tensor in model.dense())
    assert json.loads((target / "config.json").read_text())["dtype"] == str(wanted).removeprefix("torch.")
    assert (target / "README.md").read_text().startswith("what it is\n\n## How to load it")
    again = AutoModelForCausalLM.from_pretrained(target)
    assert again.dtype == wanted and again.get_output_embeddings().weight is again.get_input_embeddings().weight


def test_the_command_writes_what_the_format_writes(tmp_path: Path) -> None:
    source = save_model_folder(make_model("llama"), tmp_path / "model")
    old = quantize(source, format="dense", out=tmp_path / "run", progress=QUIET).folder
    new = written("dense", low_bit_model(source, Grid(bits=4)), tmp_path / "new")
    first, second = (load_file(folder / "model.safetensors") for folder in (old, new))
    assert first.keys() == second.keys() and all(bits(first[key]) == bits(second[key]) for key in first)


def test_a_low_bit_model_that_float16_cannot_hold_is_not_written(tmp_path: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[2, 3] = 1e6
    source = save_model_folder(model, tmp_path / "model")
    with pytest.raises(CannotFinish, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity as float16"):
        written({"name": "dense", "dtype": "float16"}, low_bit_model(source, Grid(bits=4)), tmp_path / "out")
