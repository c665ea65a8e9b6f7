"""Reading what ships: every format is recognised, and what cannot be read safely is refused, as dense folders are."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from letheon.errors import BadInput
from letheon.numerics.grids import CodebookGrid, Grid
from letheon.quantization.reading import inspect_any, load_any, load_low_bit, read_low_bit
from tests.architectures.models import ARCHITECTURES, saved
from tests.quantization.low_bit import in_memory, low_bit_model, same_bits, tiny_llama, written

HALF = Grid(bits=4, group=32, scale_dtype="float16")
GRIDS: dict[str, Grid | CodebookGrid] = {
    "awq": HALF,
    "bitsandbytes": CodebookGrid("nf4"),
    "compressed_tensors": HALF,
    "dense": HALF,
    "gguf": HALF,
    "gptq": HALF,
}
Damage = Callable[[Path], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written("gptq", low_bit_model(tiny_llama(), HALF), tmp_path / "out")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", GRIDS)
def test_a_format_is_recognised_and_read_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), GRIDS[name])
    target = written(name, model, tmp_path / "out")
    found = read_low_bit(target)
    assert found.format == name and "quantization_config" not in found.config
    assert found.config["model_type"] == "llama"
    assert same_bits(dict(found.tensors()), dict(model.dense()))
    loaded = load_low_bit(target)
    assert same_bits(loaded.state_dict(), in_memory(tiny_llama(), model).state_dict())
    assert not loaded.training and loaded.dtype == torch.float32 and loaded.generation_config.eos_token_id == 1
    assert getattr(loaded.config, "quantization_config", None) is None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_comes_back_from_a_dense_folder(name: str, tmp_path: Path) -> None:
    model = low_bit_model(saved(name), Grid(bits=3))
    loaded = load_low_bit(written("dense", model, tmp_path / "out"))
    assert same_bits(loaded.state_dict(), in_memory(saved(name), model).state_dict())
    tied = loaded.config.tie_word_embeddings
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tied


def test_tensors_come_one_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    from letheon.quantization import stored_layers

    read = stored_layers.read_tensor
    monkeypatch.setattr(stored_layers, "read_tensor", lambda where, name: asked.append(name) or read(where, name))
    tensors = read_low_bit(folder).tensors()
    next(tensors)
    assert len(asked) == 1
    dict(tensors)
    assert sorted(asked) == sorted(load_file(folder / "model.safetensors"))


def test_loading_twice_gives_equal_bits(folder: Path) -> None:
    assert same_bits(load_low_bit(folder).state_dict(), load_low_bit(folder).state_dict())


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


REFUSED: dict[str, tuple[Damage, str]] = {
    "unknown": (
        lambda f: edit(f, quantization_config={"quant_method": "hqq"}),
        r"quant_method 'hqq' is not read\. Readable: awq, bitsandbytes, compressed-tensors, gguf, gptq, and folders",
    ),
    "nameless": (lambda f: edit(f, quantization_config={"bits": 4}), r"quant_method '\?' is not read"),
    "missing": (shutil.rmtree, "no such folder"),
    "cut off": (cut, r"model\.safetensors: is cut off or damaged"),
    "pickled": (pickled, r"pickled weights \(pytorch_model\.bin\) can run code when they are opened, and are refused"),
    "remote code": (
        lambda f: edit(f, auto_map={"AutoModelForCausalLM": "evil.Model"}),
        r"needs the model's own code \(auto_map in config\.json\)\. letheon never runs remote code",
    ),
    "no tokenizer": (
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "no tokenizer",
    ),
    "two files": (
        lambda f: [(f / "model.safetensors").unlink(), *((f / f"{n}.gguf").write_bytes(b"") for n in "ab")],
        r"holds 2 GGUF files \(a\.gguf, \.\.\.\)\. Give one of them",
    ),
    "not GGUF": (
        lambda f: [(f / "model.safetensors").unlink(), (f / "a.gguf").write_bytes(b"nothing of the kind")],
        "is not a GGUF file",
    ),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_each_damage_is_refused_with_its_remedy(folder: Path, damage: str) -> None:
    act, words = REFUSED[damage]
    act(folder)
    with pytest.raises(BadInput, match=words) as caught:
        read_low_bit(folder, role="SHIPPED")
    assert str(caught.value).startswith("SHIPPED ")
    with pytest.raises(BadInput, match=words):
        load_low_bit(folder)


def test_a_cut_gguf_file_is_refused(tmp_path: Path) -> None:
    file = written("gguf", low_bit_model(tiny_llama(), HALF), tmp_path / "out") / "model.gguf"
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(BadInput, match=r"model\.gguf: is cut off or damaged"):
        read_low_bit(file)


def test_the_weights_are_preferred_to_a_gguf_file_beside_them(folder: Path) -> None:
    (folder / "a.gguf").write_bytes(b"")
    assert read_low_bit(folder).format == "gptq"


def test_weights_that_transformers_would_make_up_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "1.mlp.up" not in name}, folder / "model.safetensors"
    )
    with pytest.raises(BadInput, match=r"1 weights are missing .* says \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        load_low_bit(folder)
    save_file(tensors, folder / "model.safetensors")
    edit(folder, vocab_size=700)
    with pytest.raises(BadInput, match=r"2 weights are missing or of another shape than config\.json says \(lm_head"):
        load_low_bit(folder)
    edit(folder, model_type="t5")
    with pytest.raises(BadInput, match="cannot open 't5' as a causal language model"):
        load_low_bit(folder)


def test_a_gguf_beside_other_weights_is_not_asked_about(tmp_path: Path) -> None:
    """By the folder's path the others would be opened, without a word."""
    model = low_bit_model(tiny_llama(), HALF)
    target = written("gguf", model, tmp_path / "out")
    (file,) = target.glob("*.gguf")
    assert inspect_any(file).tensors == inspect_any(target).tensors
    assert same_bits(load_any(file).state_dict(), load_any(target).state_dict())
    shutil.copy(tiny_llama() / "model.safetensors", target)
    with pytest.raises(BadInput, match=r"other weights lie beside it.*Move it to a folder of its own"):
        inspect_any(file)
