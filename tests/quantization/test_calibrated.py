"""`letheon quantize` with calibration text, from request to folder: what is told, kept, refused and taken up again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2Config

from letheon.data.records import read_records
from letheon.errors import BadInput, CannotFinish
from letheon.quantization import block_walk
from letheon.quantization.calibrate import make_calibration
from letheon.quantization.factors import NotPositiveDefinite
from letheon.quantization.pipeline import QuantizeResult
from letheon.quantization.pipeline import quantize as quantize_loudly
from letheon.quantization.reading import load_any
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder
from tests.architectures.models import ARCHITECTURES, make_from, make_model, save_model_folder, saved
from tests.toys import llama, tokenizer, write_lines

QUIET = Progress(quiet=True)
IDS = torch.arange(2, 22).reshape(2, 10)
SETTINGS: dict[str, Any] = {"sequences": 6, "sequence_length": 16}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    places = ("the sea", "a river", "the old mill", "the market")
    lines = [{"text": f"Number {count} stands by {places[count % 4]} and waits."} for count in range(40)]
    return write_lines(tmp_path_factory.mktemp("text") / "text.jsonl", lines)


def quantize(model: Path, text: Path, **settings: Any) -> QuantizeResult:
    return quantize_loudly(model, calibration_data=text, progress=QUIET, **{**SETTINGS, **settings})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=IDS).logits)


def loss_on(model: Any, text: Path) -> float:
    """Of the same sequences, by the model as it was loaded."""
    data = read_records(text, role="calibration")
    ids = make_calibration(data, tokenizer(), sequences=6, length=16, seed=0).ids
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize("name", ["llama_tied", "gemma", "gpt_neox", "qwen2"])
@pytest.mark.parametrize("method", ["awq", "gptaq"])
def test_what_was_measured_is_what_a_bfloat16_file_holds(name: str, method: str, text: Path, tmp_path: Path) -> None:
    """Norms that were scaled and layers that were rounded, as they are loaded: no digit is lost after the measuring."""
    source = save_model_folder(make_model(name), tmp_path / "model", dtype=torch.bfloat16)
    made = quantize(source, text, method={"name": method, "bits": 4}, out=tmp_path / "run")
    assert made.loss_after == pytest.approx(loss_on(load_any(made.folder), text), rel=1e-6)


@pytest.mark.parametrize("method", ["awq", "gptq", "gptaq", "rescomp", "refit", "rtn"])
def test_every_solver_goes_through_and_says_what_was_lost(method: str, text: Path, tmp_path: Path) -> None:
    found = quantize(saved("llama_grouped"), text, method={"name": method, "bits": 3, "group": 16}, out=tmp_path)
    assert set(found.layers) == set(found.outputs) and len(found.layers) == 14 and not found.fallen_back
    assert all(1e-4 < loss < 0.3 for loss in (*found.layers.values(), *found.outputs.values()))
    assert found.loss_before is not None and found.loss_after is not None and found.loss_before != found.loss_after
    (entry,) = RunFolder.open(tmp_path).record().stages
    said = {"before": found.loss_before, "after": found.loss_after, "divergence": found.divergence, "tokens": 96}
    assert entry.notes["losses"] == said
    assert set(entry.notes["blocks"]) == {"model.layers.0", "model.layers.1"}
    assert entry.settings["sequences"] == 6 and entry.inputs["calibration_data"] is not None
    assert not (tmp_path / "1-quantize" / "blocks").exists() and method in (found.folder / "README.md").read_text()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["compressed_tensors", "gptq", "dense"])
def test_formats_hold_the_same_model(layout: str, dtype: torch.dtype, text: Path, tmp_path: Path) -> None:
    """Of one solution with scales that each file can hold, and the losses are those of the file."""
    source = save_model_folder(llama(intermediate_size=64), tmp_path / "model", dtype=dtype)
    scales = "bfloat16" if dtype == torch.bfloat16 else "float16"
    method = {"name": "gptq", "bits": 4, "group": 16, "scheme": "sym", "scale_dtype": scales}
    if layout == "gptq" and scales == "bfloat16":
        with pytest.raises(BadInput, match="stores scales as float16 here, and the grid has them in bfloat16"):
            quantize(source, text, method=method, format=layout, out=tmp_path / "run")
        return
    result = quantize(source, text, method=method, format=layout, out=tmp_path / "run")
    made, found = result.folder, load_any(result.folder)
    if dtype == torch.float32:
        other = quantize(
            source, text, method=method, format={"name": "dense", "dtype": "float32"}, out=tmp_path / "one"
        )
        assert torch.equal(logits(found), logits(load_any(other.folder)))
    assert not torch.allclose(logits(found), logits(load_any(source)), rtol=1e-3, atol=1e-3)
    assert result.loss_after == pytest.approx(loss_on(found, text), rel=1e-5)
    if layout == "compressed_tensors" and dtype == torch.float32:
        theirs = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).eval()
        torch.testing.assert_close(logits(theirs), logits(found), rtol=1e-5, atol=1e-5)


def test_the_divergence_is_that_of_the_file_from_the_original(text: Path, tmp_path: Path) -> None:
    found = quantize(saved("qwen2"), text, method={"name": "gptq", "bits": 3}, out=tmp_path)
    ids = make_calibration(read_records(text, role="calibration"), tokenizer(), sequences=6, length=16, seed=0).ids
    with torch.no_grad():
        p, q = (load_any(one)(input_ids=ids).logits.double().softmax(-1) for one in (saved("qwen2"), found.folder))
    wanted = float((p * (p.log() - q.log())).sum(-1).mean())
    assert wanted > 1e-3 and found.divergence == pytest.approx(wanted, rel=1e-4)


def test_norms_that_were_scaled_are_as_the_file_of_a_bfloat16_model_holds_them(text: Path, tmp_path: Path) -> None:
    """GGUF keeps exact scales for the layers, but its norms are bfloat16 like the model's."""
    source = save_model_folder(llama(intermediate_size=64), tmp_path / "model", dtype=torch.bfloat16)
    method = {"name": "awq", "bits": 8, "group": 32, "scheme": "sym"}
    made = quantize(source, text, method=method, format="gguf", out=tmp_path / "run")
    assert made.loss_after == pytest.approx(loss_on(load_any(made.folder), text), rel=1e-6)


def killed_after(blocks: int, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The walk is stopped when it begins one block more."""
    real, seen = block_walk._round_block, []

    def stop(*given: Any) -> Any:
        if len(seen) == blocks:
            raise KeyboardInterrupt
        seen.append(given)
        return real(*given)

    monkeypatch.setattr(block_walk, "_round_block", stop)
    return stop


@pytest.mark.parametrize("method", ["gptaq", "awq"])
def test_killed_in_a_block_and_started_again_it_makes_the_same_files(
    method: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = quantize(saved("qwen2"), text, method=method, out=tmp_path / "straight")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(1, patch)
        quantize(saved("qwen2"), text, method=method, out=tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(block_walk, "_round_block", _only("model.layers.1"))
        again = quantize(saved("qwen2"), text, method=method, out=tmp_path / "killed")
    assert (again.layers, again.outputs, again.loss_after) == (straight.layers, straight.outputs, straight.loss_after)
    for file in sorted(straight.folder.iterdir()):
        assert (again.folder / file.name).read_bytes() == file.read_bytes(), file.name


def _only(name: str) -> Callable[..., Any]:
    real = block_walk._round_block

    def check(asked: Any, block: Any, *rest: Any) -> Any:
        assert block.name == name, "a block that was kept is made again"
        return real(asked, block, *rest)

    return check


def test_other_text_in_the_same_run_is_refused(text: Path, tmp_path: Path) -> None:
    quantize(saved("llama"), text, method="gptq", out=tmp_path / "run")
    other = write_lines(tmp_path / "other.jsonl", [{"text": "Quite another text. " * 40}])
    with pytest.raises(BadInput, match="input 'calibration_data' changed"):
        quantize(saved("llama"), other, method="gptq", out=tmp_path / "run")
    with pytest.raises(BadInput, match="sequences: 6 -> 5"):
        quantize(saved("llama"), text, method="gptq", sequences=5, out=tmp_path / "run")


def test_a_solver_without_text_is_refused_before_anything_begins(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="quantizer 'gptq' looks at what the layers hear, so it needs calibration text"):
        quantize_loudly(saved("llama"), method="gptq", out=tmp_path / "run", progress=QUIET)
    assert not (tmp_path / "run").exists()


def test_too_little_text_is_refused_before_anything_begins(tmp_path: Path) -> None:
    few = write_lines(tmp_path / "few.jsonl", [{"text": "Short."}])
    with pytest.raises(BadInput, match=r"fewer than one sequence of 16\. Give more text"):
        quantize(saved("llama"), few, method="gptq", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("gpt2", {"method": "gptq"}, r"stored as \(in, out\), which no file of format compressed_tensors can say"),
        ("llama", {"method": {"name": "gptq", "bits": 5}, "format": "gptq"}, "no layout for 5 bits"),
        ("llama", {"method": {"name": "gptq", "group": 24}}, "a group of 24 does not divide the 32 inputs"),
        (
            "llama",
            {"method": {"name": "gptq", "group": 24, "bits": 3}, "format": "awq"},
            r"a group of 24 does not divide the 32 inputs[\s\S]*format awq has no layout for 3 bits",
        ),
        (
            "llama",
            {"method": {"name": "gptq", "group": 16, "act_order": "dynamic"}},
            "no place for groups of inputs that do not lie side by side",
        ),
        ("llama", {"method": "gptq", "sequence_length": 1}, "sequence_length must be 2 or more, got 1"),
        ("llama", {"method": "gptq", "sequences": 0}, "sequences must be 1 or more, got 0"),
    ],
)
def test_what_does_not_go_is_refused_before_anything_begins(
    name: str, settings: dict[str, Any], said: str, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=said):
        quantize(saved(name), text, out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def _unsolvable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **settings: Any) -> Any:
        raise NotPositiveDefinite("no damping up to 1 makes its moments usable")

    monkeypatch.setattr("letheon.quantization.quantizers.gptq.factorize", refuse)


def test_a_layer_that_cannot_be_solved_stops_the_run_by_name_and_may_be_rounded_if_asked(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _unsolvable(monkeypatch)
    with pytest.raises(CannotFinish, match=r"layer model\.layers\.0\.self_attn\.q_proj .*--allow-rtn-fallback"):
        quantize(saved("llama"), text, method="gptq", out=tmp_path / "run")
    assert not (tmp_path / "run" / "1-quantize").exists()
    made = quantize(saved("llama"), text, method="gptq", allow_rtn_fallback=True, out=tmp_path / "run")
    assert len(made.fallen_back) == 14
    (warning,) = RunFolder.open(tmp_path / "run").record().stages[0].warnings
    assert warning.startswith("14 layers could not be solved and were rounded to the nearest values: model.layers.0")
    assert "14 layers could not be solved" in (made.folder / "README.md").read_text()
    with pytest.raises(BadInput, match="was made with --allow-rtn-fallback, and 14 of its layers are rounded"):
        quantize(saved("llama"), text, method="gptq", out=tmp_path / "run")


def test_scales_are_as_the_file_stores_them_unless_somebody_says_otherwise(text: Path, tmp_path: Path) -> None:
    source = save_model_folder(make_model("llama"), tmp_path / "model", dtype=torch.bfloat16)
    made = quantize(source, text, method="gptq", out=tmp_path / "run").folder
    stored = load_file(made / "model.safetensors")["model.layers.0.mlp.up_proj.weight_scale"]
    assert stored.dtype == torch.bfloat16
    settings = RunFolder.open(tmp_path / "run").record().stages[0].settings
    assert settings["method"]["scale_dtype"] == "bfloat16"
    with pytest.raises(BadInput, match="stores scales as bfloat16 here, and the grid has them in float32"):
        quantize(source, text, method={"name": "gptq", "scale_dtype": "float32"}, out=tmp_path / "other")
    config = json.loads((made / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_groups_of_inputs_by_power_go_into_the_one_format_that_has_a_place_for_them(text: Path, tmp_path: Path) -> None:
    source = save_model_folder(llama(intermediate_size=64), tmp_path / "model")
    method = {"name": "gptq", "bits": 4, "group": 16, "act_order": "dynamic"}
    made = quantize(source, text, method=method, format="gptq", out=tmp_path / "run").folder
    assert len(load_file(made / "model.safetensors")["model.layers.0.mlp.up_proj.g_idx"].unique()) == 2
    found = load_any(made)
    assert torch.allclose(logits(found), logits(load_any(source)), rtol=0.3, atol=0.3)
    assert (made / "model.safetensors").stat().st_mode == (made / "config.json").stat().st_mode


def test_a_file_of_ones_own_is_an_input(text: Path, tmp_path: Path) -> None:
    """What was rounded by its code before is not taken for what its code does now."""
    own = tmp_path / "own.py"
    source = Path("src/letheon/quantization/quantizers/rtn.py").read_text(encoding="utf-8")
    own.write_text(source, encoding="utf-8")
    quantize(saved("llama"), text, method=str(own), out=tmp_path / "run")
    own.write_text(source + "\n# changed\n", encoding="utf-8")
    with pytest.raises(BadInput, match="input 'method_code' changed"):
        quantize(saved("llama"), text, method=str(own), out=tmp_path / "run")


def test_tables_go_through_with_text(text: Path, tmp_path: Path) -> None:
    """Their blocks run over the ends of rows, so layers that read one input are not one matrix."""
    method = {"name": "rtn", "levels": "nf4"}
    with_text = quantize(saved("llama_grouped"), text, method=method, format="bitsandbytes", out=tmp_path / "text")
    plain = quantize_loudly(
        saved("llama_grouped"), method=method, format="bitsandbytes", out=tmp_path / "plain", progress=QUIET
    )
    assert with_text.layers == pytest.approx(plain.layers, rel=1e-6)
    assert (with_text.folder / "model.safetensors").read_bytes() == (plain.folder / "model.safetensors").read_bytes()


def test_blocks_of_several_kinds_go_through(text: Path, tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"]
    config = Qwen2Config(
        **{**ARCHITECTURES["qwen2"]().to_dict(), "use_sliding_window": True, "sliding_window": 8, "layer_types": kinds}
    )
    source = save_model_folder(make_from(config), tmp_path / "model")
    assert len(set(json.loads((source / "config.json").read_text())["layer_types"])) == 2
    made = quantize(source, text, method="gptq", out=tmp_path / "run")
    assert made.loss_before == pytest.approx(loss_on(load_any(source), text), rel=1e-5)
    assert made.loss_after == pytest.approx(loss_on(load_any(made.folder), text), rel=1e-5)


def test_few_tokens_are_told(text: Path, tmp_path: Path) -> None:
    quantize(saved("llama"), text, method="gptq", sequences=1, out=tmp_path / "run")
    (warning,) = RunFolder.open(tmp_path / "run").record().stages[0].warnings
    assert "16 tokens of calibration text are fewer than the 48 inputs of the widest layer" in warning


def test_a_model_that_stays_rotated_is_no_plain_model(text: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(saved("llama"), tmp_path / "model"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps({**config, "letheon_rotation": {"online": {"keys": [], "down": [1]}}})
    )
    for look in (lambda: load_any(source), lambda: quantize(source, text, method="gptq", out=tmp_path / "run")):
        with pytest.raises(BadInput, match="a part of the rotation stays in its forward pass"):
            look()
    (source / "config.json").write_text(
        json.dumps({**config, "letheon_rotation": {"online": {"keys": [], "down": []}}})
    )
    load_any(source)
