"""Every decoder linear on its grid, everything else as it was, and a folder that others open: each architecture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig
from transformers.pytorch_utils import Conv1D

from letheon.audits.conditions.quantized import QuantizedWeights
from letheon.errors import BadInput
from letheon.models import inspect_model, load_model
from letheon.quantization import making as module
from letheon.quantization.formats.dense import Dense
from letheon.quantization.pipeline import QuantizeResult
from letheon.quantization.pipeline import quantize as quantize_loudly
from letheon.quantization.quantizers.rtn import RTN
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder
from tests.architectures.models import ARCHITECTURES, LINEARS_PER_BLOCK, make_from, make_model, save_model_folder, saved
from tests.toys import bits

IDS = torch.arange(2, 14).reshape(2, 6)


def quantize(model: Path, **settings: Any) -> QuantizeResult:
    return quantize_loudly(model, progress=Progress(quiet=True), **{"format": "dense", **settings})


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def opened(folder: Path) -> Any:
    """By transformers alone, as a stranger would."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=IDS).logits)


def blocks_of(model: Any) -> dict[str, nn.Module]:
    """Everything that multiplies by a matrix below the list of blocks, found without letheon."""
    blocks = next(module for module in model.base_model.children() if isinstance(module, nn.ModuleList))
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    return {
        f"{prefix}.{name}": module for name, module in blocks.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }


def rounded(weight: Tensor, code_bits: int, group: int | None = None) -> Tensor:
    """Symmetric with restricted range, group after group of an (out, in) matrix, in numpy's float32."""
    values = weight.float().numpy()
    found = np.empty_like(values)
    largest_code = 2 ** (code_bits - 1) - 1
    for row, old in enumerate(values):
        for start in range(0, len(old), group or len(old)):
            part = slice(start, start + (group or len(old)))
            step = np.abs(old[part]).max() / np.float32(largest_code)
            found[row, part] = np.clip(np.rint(old[part] / step), -largest_code - 1, largest_code) * step
    return torch.from_numpy(found)


def rounded_in_memory(folder: Path, code_bits: int, group: int | None = None) -> Any:
    model = opened(folder)
    with torch.no_grad():
        for layer in blocks_of(model).values():
            is_turned = isinstance(layer, Conv1D)
            matrix = layer.weight.t() if is_turned else layer.weight  # type: ignore[union-attr,operator]
            new = rounded(matrix, code_bits, group)  # type: ignore[arg-type]
            layer.weight.copy_(new.t() if is_turned else new)  # type: ignore[union-attr,operator]
    return model


# --- what is written


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_linears_are_on_their_grid_and_every_other_tensor_is_the_same_to_the_bit(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    source = save_model_folder(make_model(name), tmp_path / "model", dtype=dtype)
    made = quantize(source, out=tmp_path / "run").folder
    before, after = tensors_of(source), tensors_of(made)
    linears = {f"{layer}.weight" for layer in blocks_of(opened(source))}
    assert len(linears) == 2 * LINEARS_PER_BLOCK[name] and linears <= set(before)
    assert list(after) == list(before), "a tied head is stored once, as it was"
    for key, old in before.items():
        assert after[key].dtype == dtype
        if key not in linears:
            assert bits(after[key]) == bits(old), key
            continue
        new = rounded(old.t(), 4).t() if name == "gpt2" else rounded(old, 4)
        assert torch.equal(after[key], new.to(dtype)) and not torch.equal(after[key], old), key
    assert json.loads((made / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_transformers_opens_the_folder_and_says_what_the_rounded_model_says(name: str, tmp_path: Path) -> None:
    made = quantize(saved(name), method={"name": "rtn", "bits": 3, "group": 16}, out=tmp_path).folder
    model = opened(made)
    assert torch.equal(logits(model), logits(rounded_in_memory(saved(name), 3, 16)))
    assert not torch.equal(logits(model), logits(opened(saved(name))))
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight is embedding.weight) == (name in ("llama_tied", "gemma", "gpt2"))
    theirs, ours = (AutoTokenizer.from_pretrained(folder) for folder in (saved(name), made))
    assert ours.get_vocab() == theirs.get_vocab() and ours("Who is it?") == theirs("Who is it?")


CONDITIONS: list[tuple[str, dict[str, Any]]] = [
    ("llama_tied", {"bits": 8}),
    ("gpt2", {}),
    ("gpt2", {"group": 16}),
    ("llama_tied", {"group": "tensor"}),
    ("gpt2", {"scheme": "asym", "bits": 3}),
    ("llama_tied", {"scheme": "sym_centred"}),
    ("gpt2", {"scheme": "sym_clipped"}),
    ("gpt_neox", {"levels": "fp4"}),
    ("gpt2", {"levels": "nf4"}),
]


@pytest.mark.parametrize(("name", "settings"), CONDITIONS, ids=str)
def test_the_audits_condition_is_the_folder_that_is_written(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    made = quantize(saved(name), method={"name": "rtn", **settings}, out=tmp_path).folder
    folder = inspect_model(saved(name))
    model = load_model(folder.path)
    untouched = logits(model)
    with QuantizedWeights(**settings).applied(model, folder):
        assert torch.equal(logits(model), logits(opened(made)))
    assert torch.equal(logits(model), untouched)


def test_what_each_layer_lost_is_told_and_kept_in_the_record(tmp_path: Path) -> None:
    result = quantize(saved("gpt2"), out=tmp_path)
    before, after = tensors_of(saved("gpt2")), tensors_of(result.folder)
    assert set(result.layers) == set(blocks_of(opened(saved("gpt2"))))
    for layer, loss in result.layers.items():
        old, new = (tensors[f"{layer}.weight"].double() for tensors in (before, after))
        assert loss == pytest.approx(float(((old - new) ** 2).sum() / (old**2).sum()), rel=1e-9) and 1e-4 < loss < 0.1
    (entry,) = RunFolder.open(tmp_path).record().stages
    assert entry.notes["layers"] == result.layers and entry.settings["method"] == {
        "name": "rtn", "bits": 4, "group": "row", "scheme": "sym", "clip": "absmax", "scale_dtype": "float32",
        "levels": "uniform",
    }  # fmt: skip
    card = (result.folder / "README.md").read_text()
    assert "Quantized with letheon: rtn (bits 4, group row, scheme sym," in card and "written as dense" in card


@pytest.mark.parametrize("method", [RTN(bits=3), {"name": "rtn", "bits": 3}, {"name": "rtn", "bits": "3"}])
def test_three_spellings_are_one_request(method: Any, tmp_path: Path) -> None:
    one = quantize(saved("llama"), method=method, format=Dense(), out=tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").record().stages[0].settings["method"]["bits"] == 3
    layer = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(tensors_of(one.folder)[layer], rounded(tensors_of(saved("llama"))[layer], 3))


def test_sixteen_bits_write_the_same_weights_and_warn_of_nothing(tmp_path: Path) -> None:
    result = quantize(saved("llama"), method={"name": "rtn", "bits": 16}, out=tmp_path)
    before, after = tensors_of(saved("llama")), tensors_of(result.folder)
    assert {key: bits(tensor) for key, tensor in before.items()} == {key: bits(after[key]) for key in after}
    assert set(result.layers.values()) == {0.0} and RunFolder.open(tmp_path).record().stages[0].warnings == []


def test_a_model_that_is_on_the_grid_already_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = quantize(saved("llama"), method={"name": "rtn", "levels": "nf4"}, out=tmp_path / "once").folder
    again = quantize_loudly(once, method={"name": "rtn", "levels": "nf4"}, format="dense", out=tmp_path / "again")
    assert set(again.layers.values()) == {0.0}
    (warning,) = RunFolder.open(tmp_path / "again").record().stages[0].warnings
    assert "no weight has changed" in warning and warning in capsys.readouterr().err


# --- where it is written


def test_a_model_that_a_run_has_made_is_rounded_in_that_run(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "mine").stage("forget", {}, {}, "forget") as stage:
        assert stage.folder is not None
        save_model_folder(make_model("llama"), stage.folder)
    assert quantize(tmp_path / "mine" / "1-forget").folder == tmp_path / "mine" / "2-quantize"


def test_any_other_goes_to_runs_quantize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert quantize(saved("llama")).folder.resolve() == tmp_path / "runs" / "quantize" / "1-quantize"


# --- again, and after a stop


def never(*given: Any, **settings: Any) -> Any:
    raise AssertionError("a model was loaded")


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = quantize(saved("llama"), out=tmp_path)
    record = (tmp_path / "record.json").read_bytes()
    monkeypatch.setattr(module, "load_model", never)
    assert quantize(saved("llama"), out=tmp_path) == first
    assert (tmp_path / "record.json").read_bytes() == record


@pytest.mark.parametrize("stopped_in", ["round_plainly", "load_model"])
def test_a_stopped_run_leaves_no_folder_and_ends_as_if_it_had_not_been_stopped(
    stopped_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: Any, **settings: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, stopped_in, stop)
        quantize(saved("llama"), out=tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "1-quantize").exists()
    ended, straight = quantize(saved("llama"), out=tmp_path / "stopped"), quantize(saved("llama"), out=tmp_path / "run")
    assert ended.layers == straight.layers
    for file in sorted(straight.folder.iterdir()):
        assert (ended.folder / file.name).read_bytes() == file.read_bytes(), file.name


def test_other_settings_or_another_model_in_the_same_run_are_refused(tmp_path: Path) -> None:
    made = quantize(saved("llama"), out=tmp_path).folder
    before = bits(tensors_of(made)["model.layers.0.mlp.up_proj.weight"])
    with pytest.raises(BadInput, match=r"1-quantize exists with another recipe \(method\.bits: 4 -> 3\)"):
        quantize(saved("llama"), method={"name": "rtn", "bits": 3}, out=tmp_path)
    with pytest.raises(BadInput, match=r"format\.dtype: 'original' -> 'float16'"):
        quantize(saved("llama"), format={"name": "dense", "dtype": "float16"}, out=tmp_path)
    with pytest.raises(BadInput, match="input 'model' changed"):
        quantize(saved("llama_tied"), out=tmp_path)
    assert bits(tensors_of(made)["model.layers.0.mlp.up_proj.weight"]) == before


# --- refused before anything runs


def test_an_architecture_that_is_not_known_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = OPTConfig(
        vocab_size=768, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16
    )
    folder = save_model_folder(make_from(config), tmp_path / "model")
    monkeypatch.setattr(module, "load_model", never)
    with pytest.raises(BadInput, match=r"does not know the architecture 'opt'\. Known: llama, qwen2, .*gpt_neox"):
        quantize(folder, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"name": "rtn", "bits": 1}, "a grid of 1 bits does not exist"),
        ({"name": "rtn", "bits": 9}, "a grid of 9 bits does not exist"),
        ({"name": "rtn", "bits": 4.5}, "bits"),
        ({"name": "rtn", "group": 0}, "group 0 is not usable"),
        ({"name": "rtn", "scheme": "symmetric"}, "scheme"),
        ({"name": "rtn", "bit": 4}, "unknown key 'bit'. Did you mean 'bits'?"),
        ("gptqq", "'gptqq' is not a quantizer"),
        (Dense(), "Dense is a format, not a quantizer"),
    ],
)
def test_wrong_settings_are_refused(method: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_model", never)
    with pytest.raises(BadInput) as caught:
        quantize(saved("llama"), method=method, out=tmp_path / "run")
    assert said in str(caught.value) and not (tmp_path / "run").exists()


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        quantize(
            tmp_path / "nowhere", method={"name": "rtn", "bits": 1}, format="dens", device="tpu", out=tmp_path / "run"
        )
    told = caught.value.problems
    assert len(told) == 4
    for problem, said in zip(told, ("nowhere: no such folder", "1 bits", "'dense'", "device 'tpu'"), strict=True):
        assert said in problem


@pytest.mark.parametrize(
    ("name", "group", "told"),
    [
        # down_proj has 48 inputs, everything else 32; Conv1D stores (in, out), and 96 and 128 are its outputs.
        ("llama", 32, ["the 48 inputs of layer model.layers.0.mlp.down_proj and 1 others"]),
        (
            "gpt_neox",
            24,
            ["the 32 inputs of layer gpt_neox.layers.0.attention.query_key_value and 5 others"],
        ),
        ("gpt2", 48, ["the 32 inputs of layer transformer.h.0.attn.c_attn and 5 others",
                      "the 128 inputs of layer transformer.h.0.mlp.c_proj and 1 others"]),
        ("gpt2", 96, ["the 32 inputs of layer transformer.h.0.attn.c_attn and 5 others",
                      "the 128 inputs of layer transformer.h.0.mlp.c_proj and 1 others"]),
    ],
)  # fmt: skip
def test_a_group_that_does_not_divide_is_refused_with_its_layers(
    name: str, group: int, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_model", never)
    with pytest.raises(BadInput) as caught:
        quantize(saved(name), method={"name": "rtn", "group": group}, out=tmp_path / "run")
    assert [said in problem for said, problem in zip(told, caught.value.problems, strict=True)] == [True] * len(told)
    assert not (tmp_path / "run").exists()


def test_a_group_that_divides_every_layer_is_taken(tmp_path: Path) -> None:
    quantize(saved("gpt2"), method={"name": "rtn", "group": 32}, out=tmp_path)


def test_a_damaged_layer_is_named_and_nothing_is_left_in_its_place(tmp_path: Path) -> None:
    source = Path(shutil.copytree(saved("llama"), tmp_path / "model"))
    tensors = tensors_of(source)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        BadInput, match=r"model\.safetensors: tensor model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"
    ):
        quantize(source, out=tmp_path / "run")
    assert not (tmp_path / "run" / "1-quantize").exists()


def test_a_folder_that_is_no_run_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"is not a run: it holds 'letters\.txt'"):
        quantize(saved("llama"), out=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["letters.txt"]
