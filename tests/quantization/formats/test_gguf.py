"""GGUF files: blocks against a loop over single nibbles and the gguf package, names, interleaving, and what is refused."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from letheon.errors import BadInput
from letheon.methods import build
from letheon.numerics.grids import CodebookGrid, Grid, dequantize
from letheon.quantization.gguf_file import Q4_1, Q8_0, read_gguf, write_gguf
from letheon.quantization.reading import load_low_bit, read_low_bit
from tests.architectures.models import saved
from tests.quantization.low_bit import in_memory, low_bit_model, plan_of, same_bits, tiny_llama, written
from tests.toys import bits

NAME, STORED = "model.layers.1.mlp.down_proj", "blk.1.ffn_down.weight"
HALF: dict[str, Any] = {"scale_dtype": "float16"}
QWEN: dict[str, Any] = {"model_type": "qwen2"}


def half(value: float) -> bytes:
    return struct.pack("<e", value)


@pytest.mark.parametrize("group", ["row", "tensor", 32, 96])
@pytest.mark.parametrize("scheme", ["sym", "sym_clipped", "sym_centred"])
@pytest.mark.parametrize("width", [4, 8])
def test_every_block_is_stored_as_the_layout_says(width: int, scheme: str, group: str | int, tmp_path: Path) -> None:
    grid = Grid(bits=width, scheme=scheme, group=32 if group == 96 else group, **HALF)  # type: ignore[arg-type]
    model = low_bit_model(tiny_llama(), grid)
    file = read_gguf(written("gguf", model, tmp_path / "out") / "model.gguf")
    layer = model.layers[NAME]
    offset = 2 ** (width - 1) if scheme == "sym_centred" else 0
    codes, expected = (layer.codes - offset).tolist(), bytearray()
    for row, line in enumerate(codes):
        for block in range(3):
            scales = layer.scale[row if layer.scale.shape[0] > 1 else 0]
            expected += half(float(scales[block * len(scales) // 3]))
            part = line[32 * block : 32 * block + 32]
            if width == 4:
                expected += bytes((part[at] + 8) | (part[at + 16] + 8) << 4 for at in range(16))
            else:
                expected += bytes(code % 256 for code in part)
    entry = file.entries[STORED]
    assert (entry.type, entry.shape) == ((2, 8)[width == 8], (64, 96))
    assert file.bytes_of(entry).tobytes() == bytes(expected)
    assert same_bits(load_low_bit(tmp_path / "out").state_dict(), in_memory(tiny_llama(), model).state_dict())


@pytest.mark.parametrize("width", [4, 8])
def test_the_gguf_package_computes_the_same_weights(width: int, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model = low_bit_model(tiny_llama(), Grid(bits=width, group=32, **HALF))
    reader = gguf.GGUFReader(written("gguf", model, tmp_path / "out") / "model.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    values = gguf.dequantize(found[STORED].data, found[STORED].tensor_type)
    assert np.array_equal(values, dequantize(model.layers[NAME]).numpy())
    assert {name for name in found if not name.startswith("blk.")} == {
        "token_embd.weight",
        "output_norm.weight",
        "output.weight",
    }
    assert len(found) == 3 + 2 * 9


def test_rows_of_queries_and_keys_are_interleaved_and_others_are_not(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF))
    file = read_gguf(written("gguf", model, tmp_path / "out") / "model.gguf")
    plain = {name: file.bytes_of(file.entries[f"blk.0.attn_{name}.weight"]).reshape(-1, 36).tolist() for name in "qkv"}
    straight = {
        name: read_gguf(written("gguf", qwen_like(model, name), tmp_path / name) / "model.gguf") for name in "qkv"
    }
    for name in "qkv":
        source = straight[name]
        rows = source.bytes_of(source.entries["blk.0.attn_v.weight"]).reshape(-1, 36).tolist()
        order = list(range(len(rows)))
        if name != "v":  # of 16 rows to a head, row 0 is followed by row 8, then 1, 9, ...
            order = [16 * head + i + 8 * part for head in range(len(rows) // 16) for i in range(8) for part in (0, 1)]
        assert plain[name] == [rows[place] for place in order]


def qwen_like(model: Any, name: str) -> Any:
    """The same model with a projection in the place of v, whose rows no file changes; shapes do not matter here."""
    layers = dict(model.layers)
    layers["model.layers.0.self_attn.v_proj"] = layers[f"model.layers.0.self_attn.{name}_proj"]
    return replace(model, layers=layers)


@pytest.mark.parametrize("name", ["llama", "llama_tied", "llama_grouped", "qwen2"])
def test_transformers_opens_it_with_equal_logits(name: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    source = tiny_llama() if name == "llama" else wide(name, tmp_path / "model")
    model = low_bit_model(source, Grid(bits=4, group=32, **HALF))
    folder = written("gguf", model, tmp_path / "out")
    ids = torch.arange(2, 40).unsqueeze(0)
    with torch.no_grad():
        expected = in_memory(source, model)(ids).logits
        assert torch.equal(load_low_bit(folder)(ids).logits, expected)
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf")
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert ("output.weight" in read_gguf(folder / "model.gguf").entries) == (name != "llama_tied")


def wide(name: str, folder: Path) -> Path:
    """An architecture 64 wide, so that blocks of 32 go into every layer; biases that are not zero."""
    from tests.architectures.models import ARCHITECTURES, make_from, save_model_folder

    config = ARCHITECTURES[name]()
    config.hidden_size, config.intermediate_size, config.initializer_range = 64, 96, 0.2
    if hasattr(config, "head_dim"):
        config.head_dim = 16
    model = make_from(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.add_(torch.linspace(-1, 1, parameter.numel()))
    return save_model_folder(model, folder)


def test_biases_of_queries_and_keys_are_interleaved_too(tmp_path: Path) -> None:
    source = tiny_llama(attention_bias=True)
    from letheon.models import load_model
    from tests.architectures.models import save_model_folder

    loaded = load_model(source)
    with torch.no_grad():
        for key, parameter in loaded.named_parameters():
            if key.endswith("bias"):
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()))
    source = save_model_folder(loaded, tmp_path / "model")
    model = low_bit_model(source, Grid(bits=4, group=32, **HALF))
    folder = written("gguf", model, tmp_path / "out")
    assert same_bits(load_low_bit(folder).state_dict(), in_memory(source, model).state_dict())
    file = read_gguf(folder / "model.gguf")
    stored = np.frombuffer(file.bytes_of(file.entries["blk.0.attn_q.bias"]).tobytes(), np.float32)
    before = torch.linspace(-1, 1, 64)
    assert stored[:4].tolist() == [float(before[place]) for place in (0, 8, 1, 9)]


def test_the_file_alone_is_a_model_with_its_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF))
    folder = written("gguf", model, tmp_path / "out")
    (tmp_path / "alone").mkdir()
    alone = (folder / "model.gguf").rename(tmp_path / "alone" / "some.gguf")
    assert same_bits(load_low_bit(alone).state_dict(), in_memory(tiny_llama(), model).state_dict())
    again = AutoTokenizer.from_pretrained(tmp_path / "alone", gguf_file="some.gguf")
    assert again("Who wrote it?").input_ids == AutoTokenizer.from_pretrained(folder)("Who wrote it?").input_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_not_rounded_keeps_its_dtype_but_for_norms(dtype: torch.dtype, tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(dtype), Grid(bits=4, group=32, **HALF))
    folder = written("gguf", model, tmp_path / "out")
    file = read_gguf(folder / "model.gguf")
    wanted = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}[dtype]
    assert file.entries["token_embd.weight"].type == file.entries["output.weight"].type == wanted
    assert file.entries["output_norm.weight"].type == file.entries["blk.0.attn_norm.weight"].type == 0
    read = dict(read_low_bit(folder).tensors())
    assert all(bits(read[name]) == bits(tensor.float()) for name, tensor in model.others.items())


def test_llama_3_s_scaled_frequencies_are_written(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    source = tiny_llama(rope_parameters=Frozen({**rope, "original_max_position_embeddings": 64}))
    model = low_bit_model(source, Grid(bits=4, group=32, **HALF))
    folder = written("gguf", model, tmp_path / "out")
    entry = read_gguf(folder / "model.gguf").entries["rope_freqs.weight"]
    assert (entry.type, entry.shape) == (0, (8,))
    loaded = load_low_bit(folder)
    assert loaded.config.rope_parameters["factor"] == 4.0
    assert same_bits(loaded.state_dict(), in_memory(source, model).state_dict())
    (folder / "config.json").unlink()
    with pytest.raises(BadInput, match=r"has scaled rotary frequencies.*Put the model's config\.json beside it"):
        read_low_bit(folder)


class Frozen(dict[str, Any]):
    """A setting that can be part of a cached folder's name."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


def test_offsets_in_float16_are_read(tmp_path: Path) -> None:
    """Q4_1: w = d * code + m."""
    model = low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF))
    folder = written("gguf", model, tmp_path / "out")
    file = read_gguf(folder / "model.gguf")
    block = half(0.5) + half(-1.25) + bytes(range(16))
    tensors = []
    for name, entry in file.entries.items():
        data, kind = file.bytes_of(entry).tobytes(), entry.type
        if name == STORED:
            data, kind = block * (64 * 3), Q4_1
        tensors.append((name, kind, entry.shape, data))
    write_gguf(tmp_path / "b.gguf", file.metadata, {name: len(e.shape) for name, e in file.entries.items()}, tensors)
    weight = dict(read_low_bit(tmp_path / "b.gguf").tensors())[f"{NAME}.weight"]
    expected = [0.5 * (at % 16) - 1.25 for at in range(16)] + [-1.25] * 16  # high nibbles are 0
    assert weight[3, 32:64].tolist() == expected


@pytest.mark.parametrize(
    ("name", "grid", "changes", "words"),
    [
        ("tiny", Grid(bits=3, **HALF), {}, r"no layout for 3 bits \(it has: 4, 8\)"),
        ("tiny", Grid(bits=4, scheme="asym", **HALF), {}, "cannot say scheme asym exactly.*Use --method.scheme sym"),
        ("tiny", Grid(bits=4, group=32), {}, "stores scales as float16"),
        (
            "tiny",
            Grid(bits=4, group=16, **HALF),
            {},
            "a group of 16 does not go into format gguf, whose blocks are of 32",
        ),
        ("tiny", CodebookGrid("nf4"), {}, "has no table nf4"),
        ("tiny", Grid(bits=4, **HALF), {"online": ("R3",)}, "keeps R3 in the forward pass"),
        ("llama", Grid(bits=4, **HALF), {}, r"layer model\.layers\.0\.mlp\.down_proj and 1 others have 48 inputs"),
        ("gemma", Grid(bits=4, **HALF), {}, "covers the architectures llama, mistral, qwen2, not 'gemma'"),
        ("gpt2", Grid(bits=4, **HALF), {}, r"stored as \(in, out\)"),
        ("mistral", Grid(bits=4, **HALF), {}, "no sliding window, and config.json has one of 16 tokens"),
    ],
)
def test_what_the_file_cannot_hold_is_refused_before(name: str, grid: Any, changes: dict[str, Any], words: str) -> None:
    model = low_bit_model(tiny_llama() if name == "tiny" else saved(name), Grid(bits=4))
    with pytest.raises(BadInput, match=words):
        build("format", "gguf").check(plan_of(model, grid, **changes))


def test_a_tokenizer_that_the_file_cannot_describe_is_refused_before(tmp_path: Path) -> None:
    import shutil

    from tests.toys import prefixing_tokenizer

    source = shutil.copytree(tiny_llama(), tmp_path / "model")
    prefixing_tokenizer().save_pretrained(source)
    grid = Grid(bits=4, group=32, **HALF)
    with pytest.raises(BadInput, match="its tokenizer cannot be written into a GGUF file"):
        build("format", "gguf").check(plan_of(low_bit_model(source, grid), grid))


def test_a_dtype_that_the_file_has_no_place_for_is_refused(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF))
    wide_head = {**model.others, "lm_head.weight": model.others["lm_head.weight"].double()}
    with pytest.raises(BadInput, match=r"tensor lm_head\.weight is torch\.float64, which a GGUF file has no place for"):
        build("format", "gguf").write(replace(model, others=wide_head), tmp_path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    one = [("t", Q8_0, (1, 32), bytes(34))]
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "gemma"}, {"t": 2}, one)
    with pytest.raises(BadInput, match=r"architecture 'gemma' are not read\. Readable: llama, qwen2"):
        read_low_bit(tmp_path / "a.gguf")
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "llama"}, {"t.weight": 2}, [("t.weight", *one[0][1:])])
    with pytest.raises(BadInput, match=r"tensor t\.weight of the GGUF file belongs to no part that is known here"):
        read_low_bit(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "qwen2"}, "is a llama file, and config.json beside it is of another model"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "letheon never runs remote code"),
    ],
)
def test_a_configuration_beside_it_that_is_wrong_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = written("gguf", low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF)), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(BadInput, match=words):
        read_low_bit(folder)
