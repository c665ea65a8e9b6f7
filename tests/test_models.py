"""Model folders: what is refused before anything is loaded, and what a saved file keeps."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

from letheon.errors import BadInput, CannotFinish
from letheon.models import (
    Survival,
    as_matrix,
    check_quantizable,
    decoder_linears,
    inspect_model,
    load_model,
    load_tokenizer,
    pick_device,
    read_tensor,
    read_tensors,
    save_model,
    survival,
    working_dtype,
)
from letheon.training.active import Movers
from tests.architectures.models import (
    ARCHITECTURES,
    LINEARS_PER_BLOCK,
    make_from,
    make_model,
    save_model_folder,
    saved,
)
from tests.toys import bits, tokenizer

Damage = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model folder that a test may damage."""
    return shutil.copytree(saved("llama"), tmp_path / "model")


def sharded(folder: Path) -> None:
    model = load_model(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")


def edit_json(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


def rename_to(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)


def cut_short(folder: Path, name: str = "model.safetensors", *, by: int = 1) -> None:
    file = folder / name
    file.write_bytes(file.read_bytes()[:-by])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def without_a_shard(folder: Path) -> None:
    sharded(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def with_a_cut_shard(folder: Path) -> None:
    sharded(folder)
    cut_short(folder, sorted(folder.glob("model-*.safetensors"))[1].name, by=100)


def without_the_index(folder: Path) -> None:
    sharded(folder)
    (folder / "model.safetensors.index.json").unlink()


def with_a_damaged_index(folder: Path) -> None:
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a"')


def with_an_index_that_names_more(folder: Path) -> None:
    sharded(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.layers.9.weight"] = sorted(index["weight_map"].values())[0]
    path.write_text(json.dumps(index))


def with_header(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def eight_bit_floats(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors")


def only_whole_numbers(folder: Path) -> None:
    save_file({"codes": torch.zeros(3, dtype=torch.uint8)}, folder / "model.safetensors")


def remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


REFUSED: dict[str, tuple[Damage, str]] = {
    "missing": (shutil.rmtree, r"no such folder\. Give a Hugging Face model folder"),
    "no config": (lambda f: remove(f, "config.json"), r"no config\.json, so this is not a Hugging Face model"),
    "config cut off": (lambda f: cut_short(f, "config.json", by=20), r"config\.json: not JSON .*Download the folder"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]") and None, r"no 'model_type'"),
    "no model type": (lambda f: (f / "config.json").write_text("{}") and None, r"no 'model_type'"),
    "remote code": (
        lambda f: edit_json(f / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"}),
        r"needs the model's own code \(auto_map in config\.json\)\. letheon never runs remote code",
    ),
    "remote tokenizer": (
        lambda f: edit_json(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tok", None]}),
        r"needs the model's own code \(auto_map in tokenizer_config\.json\)",
    ),
    "quantized": (
        lambda f: edit_json(f / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        r"is already quantized\. Give the full-precision folder",
    ),
    "pickled": (pickled, r"pickled weights \(pytorch_model\.bin\) can run code .* are refused\. Convert them"),
    "no weights": (lambda f: remove(f, "model.safetensors"), r"no model\.safetensors\. Give the folder of a whole"),
    "an adapter": (
        lambda f: rename_to(f, "adapter_model.safetensors"),
        r"no model\.safetensors \(only adapter_model\.safetensors\)",
    ),
    "no tokenizer": (
        lambda f: remove(f, "tokenizer.json", "tokenizer_config.json"),
        r"no tokenizer \(tokenizer\.json\)\. Copy the tokenizer files",
    ),
    "cut by a byte": (
        cut_short,
        r"model\.safetensors: is cut off or damaged \(half a download\?\)\. Download it again",
    ),
    "cut in the header": (lambda f: cut_short(f, by=(f / "model.safetensors").stat().st_size - 100), r"is cut off"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b"") and None, r"is cut off or damaged"),
    "a byte too many": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"x") and None,
        r"is cut off or damaged",
    ),
    "header is no JSON": (lambda f: with_header(f, b"not json"), r"is cut off or damaged"),
    "header is a list": (lambda f: with_header(f, b"[1, 2]"), r"is cut off or damaged"),
    "header without places": (lambda f: with_header(f, b'{"a": {"dtype": "F32"}}'), r"is cut off or damaged"),
    "no tensors": (lambda f: with_header(f, b"{}"), r"its weight files hold no tensors"),
    "only codes": (only_whole_numbers, r"its weight files hold only U8"),
    "float8": (eight_bit_floats, r"tensor model\.norm\.weight is stored as F8_E4M3; known: F32, BF16"),
    "a shard is missing": (without_a_shard, r"half a download, 1 of \d files are missing \(model-00002-of-0000\d\.saf"),
    "a shard is cut": (with_a_cut_shard, r"model-00002-of-0000\d\.safetensors: is cut off"),
    "no index": (without_the_index, r"half a download, model-00001-.* without model\.safetensors\.index\.json"),
    "a damaged index": (with_a_damaged_index, r"model\.safetensors\.index\.json: is damaged"),
    "an index names more": (with_an_index_that_names_more, r"1 tensors of the index are in no file \(model\.layers\.9"),
}


@pytest.mark.parametrize("damage", list(REFUSED))
def test_each_damage_is_refused_with_its_remedy(folder: Path, damage: str) -> None:
    act, words = REFUSED[damage]
    act(folder)
    with pytest.raises(BadInput, match=words) as caught:
        inspect_model(folder, role="ORIGINAL")
    assert str(caught.value).startswith("ORIGINAL ") and str(folder) in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_faults_of_a_folder_come_at_once(folder: Path) -> None:
    for damage in ("remote code", "quantized", "pickled", "no tokenizer"):
        REFUSED[damage][0](folder)
    with pytest.raises(BadInput) as caught:
        inspect_model(folder)
    found = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    assert all(word in found for word in ("own code", "already quantized", "pickled", "no tokenizer"))


def test_a_pickle_beside_safetensors_is_left_alone(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (folder / "ran",))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    load_model(folder)
    assert not (folder / "ran").exists()


def test_what_a_folder_says_of_itself(folder: Path) -> None:
    model = make_model("llama")
    found = inspect_model(folder)
    assert (found.model_type, found.dtype, found.window, found.depth) == ("llama", "float32", 128, 2)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in found.tensors.items()
    }


def test_an_index_and_its_shards_are_one_model(folder: Path) -> None:
    before = {name: bits(tensor) for name, tensor in read_tensors(inspect_model(folder))}
    sharded(folder)
    found = inspect_model(folder)
    assert len({tensor.file for tensor in found.tensors.values()}) > 1
    assert {name: bits(read_tensor(found, name)) for name in found.tensors} == before


def test_files_that_transformers_would_not_read_do_not_count(folder: Path) -> None:
    save_file({"extra": torch.zeros(7)}, folder / "consolidated.safetensors")
    assert "extra" not in inspect_model(folder).tensors


def test_masks_stored_by_older_folders_do_not_count(folder: Path) -> None:
    # Pythia's files hold `attention.bias` as bytes, GPT-2's the causal mask.
    found = inspect_model(folder)
    tensors = dict(read_tensors(found))
    mask = torch.ones(128, 128, dtype=torch.bool)
    save_file({**tensors, "model.layers.0.attn.bias": mask}, folder / "model.safetensors")
    again = inspect_model(folder)
    assert (again.dtype, again.parameters) == ("float32", found.parameters)


def test_weights_that_are_not_there_are_not_made_up(folder: Path) -> None:
    tensors = dict(read_tensors(inspect_model(folder)))
    lost = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BadInput, match=r"1 weights are missing .*\(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        load_model(folder)
    save_file({**tensors, "model.layers.1.mlp.up_proj.weight": lost[:-1].contiguous()}, folder / "model.safetensors")
    with pytest.raises(BadInput, match=r"1 weights are .* of another shape .*\(model\.layers\.1\.mlp\.up_proj"):
        load_model(folder)


@pytest.mark.parametrize("model_type", ["t5", "no_such_architecture"])
def test_what_is_no_causal_language_model_is_refused(folder: Path, model_type: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(BadInput, match=rf"cannot open '{model_type}' as a causal language model"):
        load_model(folder)


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(BadInput, match=r"its tokenizer cannot be opened \(.*\)\. Copy the tokenizer files"):
        load_tokenizer(folder)


def test_masters_are_float32_whatever_is_stored(tmp_path: Path) -> None:
    folder = save_model_folder(make_model("llama"), tmp_path / "m", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in load_model(folder).parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in load_model(folder, dtype="stored").parameters()} == {torch.bfloat16}
    assert not load_model(folder).training


# --- saving


def shift_(model: Any, amount: float = 0.1) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_saved_folder_is_the_model_in_the_originals_precision(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    original = inspect_model(save_model_folder(make_model(name), tmp_path / "original", dtype=dtype))
    model = load_model(original.path)
    shift_(model)
    found = save_model(model, tmp_path / "new", original=original, card="what it is\n")
    new = inspect_model(tmp_path / "new")
    assert {key: (t.dtype, t.shape) for key, t in new.tensors.items()} == {
        key: (t.dtype, t.shape) for key, t in original.tensors.items()
    }
    assert new.parameters == sum(parameter.numel() for parameter in model.parameters())  # tied ones once
    assert new.config["dtype"] == str(dtype).removeprefix("torch.")  # what readers take where they are not told
    assert (tmp_path / "new/README.md").read_text() == "what it is\n"
    again = load_model(new.path).state_dict()
    for key, tensor in model.state_dict().items():
        assert bits(again[key]) == bits(tensor.to(dtype).float()), key
    assert load_tokenizer(new.path).encode("Who is it?") == load_tokenizer(original.path).encode("Who is it?")
    assert model.config.dtype in (torch.float32, "float32")
    # Every weight moved; a bfloat16 file loses a shift of 0.1 only where the weight is about 0.1 in size or none.
    assert found.total == new.parameters
    assert found.moved == found.total == found.survived


def test_a_mixed_file_stays_mixed(tmp_path: Path) -> None:
    folder = save_model_folder(make_model("gpt_neox"), tmp_path / "m", dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    tensors["embed_out.weight"] = tensors["embed_out.weight"].float()  # in memory it is called lm_head
    save_file(tensors, folder / "model.safetensors")
    original = inspect_model(folder)
    model = load_model(folder)
    shift_(model)
    save_model(model, tmp_path / "new", original=original)
    new = inspect_model(tmp_path / "new")
    assert {name: tensor.dtype for name, tensor in new.tensors.items()} == {
        name: tensor.dtype for name, tensor in original.tensors.items()
    }


def test_another_precision_can_be_asked_for(tmp_path: Path) -> None:
    original = inspect_model(save_model_folder(make_model("llama"), tmp_path / "m", dtype=torch.bfloat16))
    save_model(load_model(original.path), tmp_path / "new", original=original, save_dtype="float32")
    new = inspect_model(tmp_path / "new")
    assert (new.dtype, new.config["dtype"]) == ("float32", "float32")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_a_number_that_the_file_cannot_hold_saves_nothing(tmp_path: Path, value: float) -> None:
    original = inspect_model(save_model_folder(make_model("llama"), tmp_path / "m", dtype=torch.float16))
    model = load_model(original.path)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    (tmp_path / "new").mkdir()
    with pytest.raises(
        CannotFinish, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"
    ) as caught:
        save_model(model, tmp_path / "new", original=original)
    assert caught.value.exit_code == 4 and not list((tmp_path / "new").iterdir())


def test_survival_counts_what_a_slow_comparison_counts(tmp_path: Path) -> None:
    original = inspect_model(save_model_folder(make_model("llama_tied"), tmp_path / "m", dtype=torch.bfloat16))
    model = load_model(original.path)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # about a third stays, the others move by around half a bfloat16 step
            factor = 1 + torch.randn(parameter.shape, generator=generator) * 2**-8
            stays = torch.rand(parameter.shape, generator=generator) < 0.3
            parameter.copy_(torch.where(stays, parameter, parameter * factor))
    found = save_model(model, tmp_path / "new", original=original)
    before, after = load_file(original.path / "model.safetensors"), load_file(tmp_path / "new/model.safetensors")
    moved = survived = total = 0
    for name, old in before.items():
        memory = model.get_parameter(name).detach().flatten().tolist()
        for was, held, stands in zip(
            old.float().flatten().tolist(), memory, after[name].float().flatten().tolist(), strict=True
        ):
            total += 1
            moved += held != was
            survived += held != was and stands != was
    assert found == Survival(moved, survived, total)
    assert 0 < survived < moved < total


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_what_experts_hold_beyond_the_file_is_counted(tmp_path: Path, kind: str) -> None:
    """Memory holds the experts of a layer as one tensor, files one by one."""
    common: dict[str, Any] = {
        "vocab_size": 768, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "pad_token_id": 0,
    }  # fmt: skip
    config: Any = {
        "mixtral": lambda: MixtralConfig(**common, num_local_experts=4),
        "qwen3_moe": lambda: Qwen3MoeConfig(
            **common, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=8
        ),
    }[kind]()
    made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    made.save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    original = inspect_model(tmp_path / "m")
    model = load_model(original.path, dtype="stored")
    experts = {name: one for name, one in model.named_parameters() if ".experts." in name}
    movers = Movers(experts)
    with torch.no_grad():
        for mover in movers:
            mover.mul_(1.003)  # bfloat16 steps are 0.4 to 0.8 % wide
    movers.put_back()
    (tmp_path / "new").mkdir()
    kept = save_model(model, tmp_path / "new", original=original, exact=movers.exact)
    assert kept.moved == sum(one.numel() for one in experts.values())
    assert 0.2 < kept.survived / kept.moved < 0.8


def test_a_change_below_half_the_grid_does_not_survive(tmp_path: Path) -> None:
    original = inspect_model(save_model_folder(make_model("llama"), tmp_path / "m", dtype=torch.bfloat16))
    model = load_model(original.path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 2**-10)  # a bfloat16 step is at least 2^-8 of a number, half of it 2^-9
    found = save_model(model, tmp_path / "new", original=original)
    assert found.moved > 0.99 * found.total and found.survived == 0 and found.share == 0.0
    assert Survival(0, 0, 5).share is None


def test_rounding_by_a_coarser_file_is_no_change_that_was_made(tmp_path: Path) -> None:
    original = inspect_model(saved("llama"))
    model = load_model(original.path)
    with torch.no_grad():
        model.lm_head.weight[5, 6] += 1.0
    found = save_model(model, tmp_path / "new", original=original, save_dtype="bfloat16")
    assert found == Survival(1, 1, original.parameters)


def test_survival_of_a_folder_of_another_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CannotFinish, match="shares no tensor with"):
        survival(load_model(saved("gpt2")), saved("gpt2"), original=inspect_model(saved("llama")))


def test_names_without_the_models_prefix_are_found(tmp_path: Path) -> None:
    # The published GPT-2 files say `h.0.attn.c_attn.weight`, where the model says `transformer.h.0...`.
    tensors = load_file(saved("gpt2") / "model.safetensors")
    folder = shutil.copytree(saved("gpt2"), tmp_path / "m")
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    original = inspect_model(folder)
    model = load_model(folder)
    shift_(model)
    found = save_model(model, tmp_path / "new", original=original)
    assert found.moved == found.total == original.parameters
    again = load_model(tmp_path / "new").state_dict()
    assert all(bits(again[name]) == bits(tensor) for name, tensor in model.state_dict().items())


# --- layers


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_decoders_matrices_are_found_and_no_others(name: str) -> None:
    model = make_model(name)
    found = decoder_linears(model)
    assert len(found) == 2 * LINEARS_PER_BLOCK[name]
    in_blocks = {
        id(parameter)
        for path, parameter in model.named_parameters()
        if parameter.ndim == 2 and any(part.isdigit() for part in path.split("."))
    }
    assert {id(module.weight) for module in found.values()} == in_blocks
    assert all(model.get_submodule(path) is module for path, module in found.items())


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_matrix_is_out_by_in(name: str) -> None:
    # The oracle: the layer's own output is x @ matrix.T + bias, whichever way its file keeps the weight.
    for module in decoder_linears(make_model(name)).values():
        matrix = as_matrix(module, module.weight)
        inputs = torch.randn(3, matrix.shape[1], generator=torch.Generator().manual_seed(0))
        bias = torch.zeros(len(matrix)) if module.bias is None else module.bias
        torch.testing.assert_close(module(inputs), inputs @ matrix.T + bias)
        assert torch.equal(as_matrix(module, matrix), module.weight)


def test_a_model_without_known_layers_is_refused_by_name() -> None:
    class Odd(torch.nn.Module):
        def get_input_embeddings(self) -> None: ...
        def get_output_embeddings(self) -> None: ...

    with pytest.raises(BadInput, match="Odd has no linear layers inside its blocks"):
        decoder_linears(Odd())


def test_an_architecture_that_quantization_does_not_know_is_refused_by_name(folder: Path) -> None:
    check_quantizable(inspect_model(folder))
    edit_json(folder / "config.json", model_type="opt")
    with pytest.raises(
        BadInput, match=r"does not know the architecture 'opt'\. Known: llama, qwen2, mistral, mixtral, gemma"
    ):
        check_quantizable(inspect_model(folder))


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (pick_device(), pick_device("cpu"), working_dtype("cpu")) == ("cpu", "cpu", None)
    with pytest.raises(BadInput, match=r"device 'cuda:1': this machine has no CUDA device\. Use --device cpu"):
        pick_device("cuda:1")
    with pytest.raises(BadInput, match=r"device 'gpu' is not one of auto, cpu, cuda"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (pick_device(), pick_device("cuda:1"), working_dtype("cuda")) == ("cuda", "cuda:1", torch.bfloat16)


def test_a_random_model_is_a_function_of_its_seed() -> None:
    one, same, other = (make_from(ARCHITECTURES["llama"](), seed) for seed in (1, 1, 2))
    assert bits(one.lm_head.weight) == bits(same.lm_head.weight) != bits(other.lm_head.weight)
