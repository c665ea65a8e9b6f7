"""A folder around its tensors: shards and index, tied weights once, and everything that stands beside the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from letheon.errors import BadInput, CannotFinish
from letheon.models import GATE_NAME, read_folder
from letheon.numerics.grids import Grid
from letheon.quantization.low_bit import LowBitModel
from letheon.quantization.saving import FolderWriter
from tests.architectures.models import ARCHITECTURES, saved
from tests.quantization.low_bit import FromDisk, low_bit_model, same_bits
from tests.toys import bits


def written(model: LowBitModel, target: Path, *, limit: int = 2**31, **finish: Any) -> Path:
    target.mkdir()
    folder = FolderWriter(target, model)
    dense = ((name, tensor) for name, tensor in model.dense() if name not in folder.tied_again)
    folder.write_shards(dense, limit=limit)
    folder.finish(**{"quantization": None, "load": "load it", **finish})
    return target


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_shards_hold_what_one_file_holds_and_the_index_says_where(name: str, tmp_path: Path) -> None:
    model = low_bit_model(saved(name), Grid(bits=4))
    whole, parts = written(model, tmp_path / "whole"), written(model, tmp_path / "parts", limit=60_000)
    assert not (whole / "model.safetensors.index.json").exists()
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in parts.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    found = {}
    for file in files:
        shard = load_file(parts / file)
        assert all(index["weight_map"][tensor] == file for tensor in shard)
        assert len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= 60_000
        with safe_open(parts / file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        found |= shard
    assert same_bits(found, load_file(whole / "model.safetensors"))
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    assert found.keys() == index["weight_map"].keys() == read_folder(parts).tensors.keys()
    loaded = [AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (whole, parts)]
    assert same_bits(*loaded)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_loads_with_every_tensor_it_had(name: str, tmp_path: Path) -> None:
    model = low_bit_model(saved(name), Grid(bits=4))
    target = written(model, tmp_path / "out")
    assert load_file(target / "model.safetensors").keys() == load_file(saved(name) / "model.safetensors").keys()
    AutoModelForCausalLM.from_pretrained(target)


def test_tensors_are_read_once_each_and_no_more_than_a_shard_is_held(tmp_path: Path) -> None:
    model = low_bit_model(saved("llama"), Grid(bits=4))
    assert isinstance(model.others, FromDisk)
    asked_at_first = model.others.asked
    written(model, tmp_path / "out")
    assert model.others.asked - asked_at_first == len(model.others)


def test_a_head_that_is_tied_is_stored_once_under_either_of_two_names(tmp_path: Path) -> None:
    model = low_bit_model(saved("llama_tied"), Grid(bits=4))
    twice = {**model.others, "lm_head.weight": model.others["model.embed_tokens.weight"].clone()}
    target = written(LowBitModel(original=model.original, layers=model.layers, others=twice), tmp_path / "out")
    assert "lm_head.weight" not in load_file(target / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(target)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_a_head_that_a_rotation_has_untied_is_stored_beside_the_embedding(tmp_path: Path) -> None:
    model = low_bit_model(saved("llama_tied"), Grid(bits=4))
    head = model.others["model.embed_tokens.weight"] * 2
    untied = LowBitModel(
        original=model.original,
        layers=model.layers,
        others={**model.others, "lm_head.weight": head},
        config={"tie_word_embeddings": False},
    )
    target = written(untied, tmp_path / "out")
    assert json.loads((target / "config.json").read_text())["tie_word_embeddings"] is False
    loaded = AutoModelForCausalLM.from_pretrained(target)
    assert bits(loaded.lm_head.weight) == bits(head) != bits(loaded.model.embed_tokens.weight)


def test_what_stands_beside_the_weights(tmp_path: Path) -> None:
    source = shutil.copytree(saved("llama"), tmp_path / "model")
    (source / "generation_config.json").write_text('{"eos_token_id": 7, "max_new_tokens": 5}')
    (source / GATE_NAME).write_text('{"gate_units": ["aa"]}')
    model = low_bit_model(source, Grid(bits=4), card="---\nlibrary_name: transformers\n---\nwhat it is\n")
    target = written(model, tmp_path / "out", quantization={"quant_method": "mine"}, load="    load_it()\n")
    config = json.loads((target / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "mine"} and config["dtype"] == "float32"
    assert {
        **json.loads((source / "config.json").read_text()),
        "quantization_config": {"quant_method": "mine"},
    } == config
    assert (target / "generation_config.json").read_bytes() == (source / "generation_config.json").read_bytes()
    assert (target / GATE_NAME).read_bytes() == (source / GATE_NAME).read_bytes()
    card = (target / "README.md").read_text()
    assert card.startswith("---\nlibrary_name") and card.endswith("what it is\n\n## How to load it\n\nload_it()\n")
    assert (
        AutoTokenizer.from_pretrained(target)("Who?").input_ids
        == AutoTokenizer.from_pretrained(source)("Who?").input_ids
    )
    assert sorted(path.name for path in target.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "letheon.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


def test_linears_that_are_not_rounded_are_known_and_the_head_too(tmp_path: Path) -> None:
    model = low_bit_model(saved("gpt_neox"), Grid(bits=4))
    kept = {name: layer for name, layer in model.layers.items() if "dense_h_to_4h" not in name}
    found = FolderWriter(tmp_path, LowBitModel(original=model.original, layers=kept, others=model.others))
    assert found.head == "lm_head"
    assert found.left_dense == [f"gpt_neox.layers.{number}.mlp.dense_h_to_4h" for number in range(2)]


def test_a_configuration_that_makes_no_model_is_refused(tmp_path: Path) -> None:
    model = low_bit_model(saved("llama"), Grid(bits=4), config={"num_attention_heads": 0})
    with pytest.raises(BadInput, match="cannot open 'llama' as a causal language model"):
        FolderWriter(tmp_path, model)


def test_what_is_no_number_is_not_written(tmp_path: Path) -> None:
    model = low_bit_model(saved("llama"), Grid(bits=4))
    folder = FolderWriter(tmp_path, model)
    with pytest.raises(CannotFinish, match="tensor b holds NaN or infinity as float16; nothing was saved"):
        folder.write_shards(iter([("a", torch.ones(2)), ("b", torch.tensor([1.0, torch.inf]).half())]))
