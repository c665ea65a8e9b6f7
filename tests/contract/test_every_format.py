"""What every format promises, run over the folder: a new file is covered by adding the grids that it can hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from letheon.errors import BadInput, CannotFinish
from letheon.methods import build, load, names
from letheon.numerics.grids import CodebookGrid, Grid, dequantize
from letheon.quantization.reading import load_low_bit, read_low_bit
from tests.architectures.models import saved
from tests.contract.register import every_variation
from tests.quantization.low_bit import FromDisk, in_memory, low_bit_model, plan_of, same_bits, tiny_llama, written

CANDIDATES: list[Any] = [
    CodebookGrid("nf4"),
    *(
        Grid(bits=bits, scheme=scheme, group=group, scale_dtype="float16")  # type: ignore[arg-type]
        for bits in (4, 8, 3)
        for scheme in ("sym", "asym")
        for group in (32, "row")
    ),
]
VARIATIONS = every_variation("format")


def holds(writer: Any, grid: Any) -> bool:
    """Whether a format takes a grid for the tiny Llama."""
    try:
        writer.check(plan_of(low_bit_model(tiny_llama(), grid), grid))
    except BadInput:
        return False
    return True


def written_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("kind", "spec"), VARIATIONS)
def test_what_it_takes_comes_back_bit_for_bit(kind: str, spec: dict[str, Any], tmp_path: Path) -> None:
    if spec.get("dtype", "original") not in ("original", "float32"):
        pytest.skip("stores what it is given in a narrower dtype, and says so")
    grids = [grid for grid in CANDIDATES if holds(build(kind, spec), grid)]
    assert grids, "takes no grid at all"
    for number, grid in enumerate(grids[:4]):
        model = low_bit_model(tiny_llama(), grid)
        folder = written(spec, model, tmp_path / str(number))
        assert same_bits(load_low_bit(folder).state_dict(), in_memory(tiny_llama(), model).state_dict())


@pytest.mark.parametrize("name", names("format"))
def test_it_is_written_alike_twice_and_the_model_is_not_touched(name: str, tmp_path: Path) -> None:
    grid = next(grid for grid in CANDIDATES if holds(build("format", name), grid))
    model = low_bit_model(tiny_llama(), grid)
    before = {key: (layer.codes.clone(), layer.scale.clone()) for key, layer in model.layers.items()}
    first, second = (written_files(written(name, model, tmp_path / each)) for each in "ab")
    assert first == second
    assert all(torch.equal(model.layers[key].codes, codes) for key, (codes, _) in before.items())
    assert all(torch.equal(model.layers[key].scale, scale) for key, (_, scale) in before.items())


@pytest.mark.parametrize("name", names("format"))
def test_tensors_are_asked_for_once(name: str, tmp_path: Path) -> None:
    grid = next(grid for grid in CANDIDATES if holds(build("format", name), grid))
    model = low_bit_model(tiny_llama(), grid)
    others = FromDisk(model.original, list(model.others))
    model = replace(model, others=others)
    others.asked = 0  # the check of types while testing looks into mappings as well
    written(name, model, tmp_path / "out")
    assert others.asked == len(others)


@pytest.mark.parametrize("name", names("format"))
def test_the_folder_is_whole(name: str, tmp_path: Path) -> None:
    grid = next(grid for grid in CANDIDATES if holds(build("format", name), grid))
    model = low_bit_model(tiny_llama(), grid, card="what it is\n")
    folder = written(name, model, tmp_path / "out")
    there = {path.name for path in folder.iterdir()}
    assert {"README.md", "config.json", "generation_config.json", "tokenizer.json"} <= there
    assert not [file for file in there if file.startswith(("shard", "."))]
    card = (folder / "README.md").read_text()
    assert card.startswith("what it is\n\n## How to load it\n\n") and "from_pretrained" in card
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("name", [name for name in names("format") if name != "dense"])
def test_the_file_is_hardly_larger_than_its_codes_and_scales(name: str, tmp_path: Path) -> None:
    grid = next(grid for grid in CANDIDATES if holds(build("format", name), grid))
    source = tiny_llama(hidden_size=256, intermediate_size=512, num_hidden_layers=3)
    model = low_bit_model(source, grid)
    folder = written(name, model, tmp_path / "out")
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf"))
    weights = sum(layer.codes.numel() for layer in model.layers.values())
    scales = sum(layer.scale.numel() for layer in model.layers.values())
    others = sum(tensor.nbytes for tensor in model.others.values())
    width = grid.bits if isinstance(grid, Grid) else 4
    theory = weights * width / 8 + scales * (2 if isinstance(grid, Grid) else 4) + others
    assert size <= 1.1 * theory


@pytest.mark.parametrize("name", names("format"))
def test_transforms_in_the_forward_pass_are_refused_by_all_but_the_one_that_can_say_one_of_them(name: str) -> None:
    grid = next(grid for grid in CANDIDATES if holds(build("format", name), grid))
    model, writer = low_bit_model(tiny_llama(), grid), build("format", name)
    said = r"the rotation keeps R3, R4 in the forward pass.*Rotate with R1 and R2 alone"
    if name == "compressed_tensors":
        writer.check(plan_of(model, grid, online=("R4",)))
        said = r"rounds queries too where it rotates keys \(R3\)"
    with pytest.raises(BadInput, match=said):
        writer.check(plan_of(model, grid, online=("R3", "R4")))


@pytest.mark.parametrize("name", names("format"))
def test_layers_that_are_stored_the_other_way_round_are_written_dense_alone(name: str, tmp_path: Path) -> None:
    grid = next(grid for grid in CANDIDATES if holds(build("format", name), grid))
    if isinstance(grid, Grid):
        grid = replace(grid, group=16)
    model = low_bit_model(saved("gpt2"), grid)
    assert len(model.transposed) == 8
    if name == "dense":
        found = dict(read_low_bit(written(name, model, tmp_path / "out")).tensors())
        key = "transformer.h.1.mlp.c_fc"
        assert torch.equal(found[f"{key}.weight"], dequantize(model.layers[key]).T)
        return
    with pytest.raises(BadInput, match=r"are stored as \(in, out\), which no file of format .*Use --format dense"):
        build("format", name).check(plan_of(model, grid))


@pytest.mark.parametrize("name", names("format"))
def test_groups_by_index_go_into_what_can_say_them(name: str, tmp_path: Path) -> None:
    grid = next(grid for grid in CANDIDATES if holds(build("format", name), grid))
    if not isinstance(grid, Grid):
        pytest.skip("a table has no groups of inputs")
    model = low_bit_model(tiny_llama(), grid)
    layers = {}
    for key, layer in model.layers.items():
        columns = layer.codes.shape[1]
        order = torch.randperm(columns, generator=torch.Generator().manual_seed(0))
        layers[key] = replace(layer, group_index=(torch.arange(columns) // 32)[order].to(torch.int32))
    model = replace(model, layers=layers)
    plan = plan_of(model, grid, has_group_index=True)
    if name in ("dense", "gptq"):
        build("format", name).check(plan)
        folder = written(name, model, tmp_path / "out")
        assert same_bits(load_low_bit(folder).state_dict(), in_memory(tiny_llama(), model).state_dict())
        return
    with pytest.raises(BadInput, match=r"no place for groups of inputs that do not lie side by side.*--format gptq"):
        build("format", name).check(plan)
    (tmp_path / "late").mkdir()
    with pytest.raises(BadInput, match="no place for groups of inputs"):
        build("format", name).write(model, tmp_path / "late")


@pytest.mark.parametrize("name", names("format"))
def test_what_is_no_number_is_not_written(name: str, tmp_path: Path) -> None:
    grid = next(grid for grid in CANDIDATES if holds(build("format", name), grid))
    model = low_bit_model(tiny_llama(), grid)
    broken = {**model.others, "model.norm.weight": torch.full((64,), torch.nan)}
    with pytest.raises(CannotFinish, match=r"tensor model\.norm\.weight holds NaN or infinity as float32"):
        written(name, replace(model, others=broken), tmp_path / "out")


def test_every_format_says_what_it_reads() -> None:
    methods = [load("format", name).quant_method for name in names("format")]
    assert len(set(methods)) == len(methods) and all(isinstance(method, str) for method in methods)
