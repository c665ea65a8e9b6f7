"""Rotated and rounded while it runs: from request to folder, and the folder in other people's software."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from letheon.data.records import read_records
from letheon.errors import BadInput, UnknownName
from letheon.lowbit.activations import ActivationGrids, grids_named, low_bit_activations
from letheon.lowbit.low_bit_pass import Basis, kept_online, pass_named, take_basis
from letheon.lowbit.rotations.adaptive import AdaptiveRotation
from letheon.lowbit.rotations.hadamard import HadamardRotation
from letheon.methods import build
from letheon.models import load_model
from letheon.numerics.token_grids import TokenGrid, round_tokens
from letheon.quantization.activation_config import read_grids
from letheon.quantization.basis import (
    activation_grids,
    basis_of,
    fitting_rotation,
    left_out,
    online_parts,
    unpadded_batches,
)
from letheon.quantization.calibrate import make_calibration
from letheon.quantization.pipeline import QuantizeResult
from letheon.quantization.pipeline import quantize as quantize_loudly
from letheon.quantization.reading import inspect_any, load_any, load_low_bit
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder
from letheon.training.straight_through import trained_through
from letheon.training.train import train
from tests.architectures.models import ARCHITECTURES, make_model, save_model_folder, saved
from tests.quantization.low_bit import PROMPT, config_of, edit_config, fresh
from tests.quantization.test_fresh_process import GREEDY
from tests.toys import bits, llama, tokenizer, write_lines

QUIET = Progress(quiet=True)
IDS = torch.arange(2, 34).reshape(2, 16)
FULL = {"name": "rtn", "bits": 16}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    places = ("the sea", "a river", "the old mill", "the market")
    lines = [{"text": f"Number {count} stands by {places[count % 4]} and waits."} for count in range(40)]
    return write_lines(tmp_path_factory.mktemp("text") / "text.jsonl", lines)


def quantize(model: Path, **settings: Any) -> QuantizeResult:
    return quantize_loudly(model, progress=QUIET, **{"sequences": 6, "sequence_length": 16, **settings})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=IDS).logits)


def loss_on(model: Any, text: Path) -> float:
    ids = make_calibration(read_records(text, role="calibration"), tokenizer(), sequences=6, length=16, seed=0).ids
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


# --- what nobody has said is filled in


def test_an_adaptive_rotation_weighs_the_grids_that_are_asked_for() -> None:
    found = fitting_rotation("adaptive", bits=3, act_bits=8, kv_bits=16)
    assert (found.bits, found.input_bits, found.cache_bits) == (3, 8, 16)
    told = fitting_rotation({"name": "adaptive", "bits": 2, "down": True}, bits=3, act_bits=8, kv_bits=16)
    assert (told.bits, told.input_bits, told.down, told.keys) == (2, 8, True, False)


def test_parts_that_would_stay_in_the_forward_pass_are_there_only_where_they_are_asked_for() -> None:
    found = fitting_rotation("hadamard", bits=4, act_bits=4, kv_bits=4)
    assert found == HadamardRotation(keys=False, down=False) and online_parts(found, kv_bits=4) == ()
    assert "R4, which would stay" in left_out("hadamard", found)
    given = {"name": "hadamard", "down": True}
    asked = fitting_rotation(given, bits=4, act_bits=4, kv_bits=4)
    assert online_parts(asked, kv_bits=4) == ("R4",) and not left_out(given, asked)
    every = HadamardRotation(keys=True, down=True)
    assert fitting_rotation(every, bits=4, act_bits=4, kv_bits=4) == every and not left_out(every, every)
    written_out = {"name": "hadamard", "keys": None, "down": None}  # as a resolved recipe has it
    assert fitting_rotation(written_out, bits=4, act_bits=4, kv_bits=4) == found
    assert online_parts(every, kv_bits=4) == ("R3", "R4") and online_parts(every, kv_bits=16) == ("R4",)
    assert left_out("none", fitting_rotation("none", bits=4, act_bits=4, kv_bits=4)) == ""


def test_bits_that_do_not_exist_are_refused() -> None:
    for given in ((1, 16), (16, 9), (32, 16)):
        with pytest.raises(BadInput, match=r"does not exist\. Use 2 to 8, or 16"):
            activation_grids(*given)
    with pytest.raises(UnknownName, match="hadamard"):
        fitting_rotation("hadamrd", bits=4, act_bits=4, kv_bits=4)
    assert activation_grids(16, 16) is None


# --- the folder


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_rotated_folder_is_the_same_function_in_other_software(name: str, text: Path, tmp_path: Path) -> None:
    """At 16 bits nothing is rounded, so only the rotation is left: other weights, the same logits."""
    for rotation in ("hadamard", "adaptive"):
        made = quantize(
            saved(name), method=FULL, rotation=rotation, calibration_data=text, format="dense", out=tmp_path / rotation
        )
        theirs = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32).eval()
        before = load_model(saved(name))
        torch.testing.assert_close(logits(theirs), logits(before), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(theirs.get_input_embeddings().weight, before.get_input_embeddings().weight, atol=1e-2)
        assert made.loss_after == pytest.approx(made.loss_before, rel=1e-6)
        assert made.loss_before == pytest.approx(loss_on(before, text), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["compressed_tensors", "gptq", "gguf", "dense"])
def test_what_was_measured_is_what_the_rotated_file_holds(
    layout: str, dtype: torch.dtype, text: Path, tmp_path: Path
) -> None:
    tied = llama(intermediate_size=64, tie_word_embeddings=True)
    source = save_model_folder(tied, tmp_path / "model", dtype=dtype)
    method = {"name": "gptq", "bits": 8 if layout == "gguf" else 4, "group": 32}
    made = quantize(
        source, method=method, rotation="hadamard", calibration_data=text, format=layout, out=tmp_path / "run"
    )
    opened = load_any(made.folder)
    assert made.loss_after == pytest.approx(loss_on(opened, text), rel=1e-6)
    assert opened.config.tie_word_embeddings is False


@pytest.mark.parametrize("name", ["llama_grouped", "llama_tied", "qwen2", "mistral", "gemma"])
@pytest.mark.parametrize("method", ["rtn", "gptaq"])
def test_transformers_rounds_what_was_measured_rounded(name: str, method: str, text: Path, tmp_path: Path) -> None:
    settings = {"act_bits": 4, "kv_bits": 4, "rotation": "adaptive", "calibration_data": text}
    made = quantize(saved(name), method={"name": method, "bits": 4}, out=tmp_path, **settings)
    ours = load_any(made.folder)
    theirs = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32).eval()
    assert bits(logits(theirs)) == bits(logits(ours))
    assert made.loss_after == pytest.approx(loss_on(ours, text), rel=1e-6)
    edit_config(made.folder, **_plain(made.folder))
    alone = load_any(made.folder)
    assert not torch.allclose(logits(alone), logits(ours), atol=1e-2), "nothing was rounded on the way"
    with low_bit_activations(alone, grids=grids_named("w4a4kv4")[1]):
        assert bits(logits(alone)) == bits(logits(ours))


def _plain(folder: Path) -> dict[str, Any]:
    """The configuration without what is rounded on the way."""
    said = config_of(folder)["quantization_config"]
    groups = {name: {**group, "input_activations": None} for name, group in said["config_groups"].items()}
    return {"config_groups": groups, "kv_cache_scheme": None}


def test_each_of_activations_and_cache_alone(tmp_path: Path) -> None:
    found = {}
    for act, cache in ((16, 4), (4, 16), (8, 3)):
        made = quantize(saved("llama_grouped"), act_bits=act, kv_bits=cache, out=tmp_path / f"{act}-{cache}")
        grids = read_grids(inspect_any(made.folder))
        assert grids is not None and (grids.inputs.bits, grids.keys.bits, grids.values.bits) == (act, cache, cache)
        theirs = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32).eval()
        found[act, cache] = logits(theirs)
        assert bits(found[act, cache]) == bits(logits(load_any(made.folder)))
    assert len({bits(one) for one in found.values()}) == 3


def test_w8a8_is_a_byte_a_weight_and_opens(tmp_path: Path) -> None:
    made = quantize(saved("qwen2"), method={"name": "rtn", "bits": 8}, act_bits=8, out=tmp_path)
    assert config_of(made.folder)["quantization_config"]["format"] == "int-quantized"
    theirs = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32).eval()
    assert bits(logits(theirs)) == bits(logits(load_any(made.folder)))
    torch.testing.assert_close(logits(theirs), logits(load_model(saved("qwen2"))), rtol=0.1, atol=0.1)


def test_a_fresh_process_continues_alike_with_a_cache_of_four_bits(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from tests.quantization.low_bit import greedy, tiny_llama

    made = quantize(tiny_llama(), act_bits=4, kv_bits=4, rotation="hadamard", out=tmp_path)
    ours = greedy(load_low_bit(made.folder))
    script = (
        GREEDY
        + """
from transformers import AutoModelForCausalLM
found = {folder: greedy(AutoModelForCausalLM.from_pretrained(folder)) for folder in sys.argv[1:]}
assert not any(name.startswith("letheon") for name in sys.modules)
print(json.dumps(found))
"""
    )
    assert fresh(script, str(made.folder)) == {str(made.folder): ours}
    assert len(set(ours)) > 10 and len(PROMPT) == 1


@pytest.mark.parametrize("name", ["llama_grouped", "qwen2", "mistral"])
@pytest.mark.parametrize("kind", ["hadamard", "adaptive"])
def test_what_stays_in_the_forward_pass_is_run_by_the_package_as_by_us(
    name: str, kind: str, text: Path, tmp_path: Path
) -> None:
    """The card's own lines, in a process that has never heard of letheon."""
    rotation = {"name": kind, "down": True}
    made = quantize(
        saved(name),
        method={"name": "gptq", "bits": 4},
        rotation=rotation,
        act_bits=4,
        kv_bits=4,
        calibration_data=text,
        out=tmp_path / "run",
    )
    said = config_of(made.folder)["quantization_config"]["transform_config"]["config_groups"]
    assert set(said) == {"R4"}
    ours = load_any(made.folder)
    assert made.loss_after == pytest.approx(loss_on(ours, text), rel=1e-5)
    card = (made.folder / "README.md").read_text()
    lines = [line[4:] for line in card.splitlines() if line.startswith("    ")]
    script = "\n".join(["import json, sys, torch", "FOLDER = sys.argv[1]", *lines])
    script += """
ids = torch.arange(2, 34).reshape(2, 16)
print(json.dumps(model(input_ids=ids).logits.tolist()))
assert not any(name.startswith("letheon") for name in sys.modules)
"""
    theirs = torch.tensor(fresh(script, str(made.folder)))
    torch.testing.assert_close(theirs, logits(ours), rtol=1e-4, atol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32).eval()
    assert not torch.allclose(logits(plain), logits(ours), atol=0.05), "the transforms change nothing"


# --- trained through low bits


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    return train(
        saved("llama_tied"),
        data=text,
        out=tmp_path_factory.mktemp("trained"),
        through="w4a4kv4",
        rotation="hadamard",
        epochs=1,
        learning_rate=3e-3,
        batch_size=8,
        device="cpu",
        progress=QUIET,
    ).folder


def trained_logits(folder: Path) -> torch.Tensor:
    """As it was trained: the basis taken again, everything rounded."""
    model = load_model(folder)
    online = kept_online(model)
    take_basis(model, online)
    with trained_through(model, pass_named("w4a4kv4"), Basis(online=online)):
        return logits(model)


def test_what_ships_of_a_model_trained_through_low_bits_is_what_was_trained(trained: Path, tmp_path: Path) -> None:
    made = quantize(trained, out=tmp_path)
    found = logits(load_any(made.folder))
    torch.testing.assert_close(found, trained_logits(trained), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found, logits(load_model(trained)), atol=2e-2), "nothing was rounded"
    assert set(config_of(made.folder)["quantization_config"]["transform_config"]["config_groups"]) == {"R4"}
    (entry,) = RunFolder.open(tmp_path).record().stages
    assert (entry.settings["act_bits"], entry.settings["kv_bits"]) == (4, 4)
    (told,) = entry.warnings
    assert "R4) stays in the forward pass, and transformers opens the folder without it" in told


def test_another_rounding_than_it_was_trained_through_is_told(trained: Path, text: Path, tmp_path: Path) -> None:
    quantize(trained, method={"name": "rtn", "bits": 3}, out=tmp_path / "three")
    quantize(trained, act_bits=8, out=tmp_path / "eight")
    quantize(trained, method="gptq", calibration_data=text, out=tmp_path / "solved")
    for name in ("three", "eight", "solved"):
        (entry,) = RunFolder.open(tmp_path / name).record().stages
        assert any("was trained through w4a4kv4, and this is another rounding" in text for text in entry.warnings)
    with pytest.raises(BadInput, match=r"in a basis of its own, which is put back by itself\. Use --rotation none"):
        quantize(trained, rotation="hadamard", out=tmp_path / "no")
    with pytest.raises(BadInput, match="keeps R4 in the forward pass, which no file of format dense"):
        quantize(trained, act_bits=16, kv_bits=16, format="dense", out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_keys_that_are_not_rounded_need_no_rotation(tmp_path: Path) -> None:
    """R3 has no effect then, so nothing is left in the forward pass and any format holds the file."""
    given = {"name": "hadamard", "keys": True}
    made = quantize(saved("llama"), method=FULL, rotation=given, format="dense", out=tmp_path)
    torch.testing.assert_close(
        logits(load_model(made.folder)), logits(load_model(saved("llama"))), rtol=1e-4, atol=1e-4
    )


# --- what layers are solved for


def test_layers_are_solved_for_what_they_are_going_to_hear(text: Path, tmp_path: Path) -> None:
    """Moments of rounded inputs, by hand: the first layer's hidden states through its norm, rounded token by token."""
    heard: list[torch.Tensor] = []
    from letheon.quantization import block_walk

    real = block_walk.Moments.add

    def listen(self: Any, found: torch.Tensor, *rest: Any) -> None:
        heard.append(found)
        real(self, found, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_walk.Moments, "add", listen)
        quantize(saved("llama"), method="gptq", act_bits=3, calibration_data=text, out=tmp_path)
    ids = make_calibration(read_records(text, role="calibration"), tokenizer(), sequences=6, length=16, seed=0).ids
    model = load_model(saved("llama"))
    with torch.no_grad():
        plain = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))
    wanted = round_tokens(plain, TokenGrid(bits=3)).reshape(-1, plain.shape[-1])
    torch.testing.assert_close(heard[0], wanted, rtol=1e-5, atol=1e-5)


def test_every_token_of_calibration_text_counts_in_the_choice() -> None:
    (batch,) = unpadded_batches(IDS)
    assert bool(batch.attention_mask.all()) and torch.equal(batch.ids, IDS) and not len(batch.label_ids)


def test_choices_are_kept_and_depend_on_the_bits(text: Path, tmp_path: Path) -> None:
    made = quantize(saved("llama"), rotation="adaptive", act_bits=4, calibration_data=text, out=tmp_path)
    (entry,) = RunFolder.open(tmp_path).record().stages
    choices = entry.notes["rotation_choices"]
    assert {choice["site"] for choice in choices} == {"values"} and len(choices) == 2
    assert all(choice["errors"]["identity"]["activation"] > 0 for choice in choices)
    assert "rotated first: adaptive" in (made.folder / "README.md").read_text()
    assert config_of(made.folder)["letheon_rotation"]["online"] == {"keys": [], "down": []}


def test_sites_that_are_off_are_not_rotated(text: Path) -> None:
    ids = make_calibration(read_records(text, role="calibration"), tokenizer(), sequences=6, length=16, seed=0).ids
    rotation = AdaptiveRotation(values=True, keys=False, down=False, least_gain=0.0)
    found = basis_of(make_model("llama"), rotation, ids, stored=torch.float32)
    assert not found.online.keys and not found.online.down and {choice.site for choice in found.choices} == {"values"}


# --- refused


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        (
            "llama",
            {"rotation": {"name": "hadamard", "down": True}, "format": "dense"},
            "keeps R4 in the forward pass, which no file of format dense can say",
        ),
        (
            "llama",
            {"rotation": {"name": "hadamard", "keys": True}, "kv_bits": 4},
            "rounds queries too where it rotates",
        ),
        ("llama", {"rotation": "adaptive"}, "rotation 'adaptive' looks at what the layers hear"),
        ("llama", {"format": "gptq", "act_bits": 8}, "format gptq cannot say how activations, keys and values"),
        ("llama", {"format": "dense", "kv_bits": 8}, "format dense cannot say how activations"),
        ("llama", {"act_bits": 8, "method": {"name": "rtn", "scheme": "asym"}}, "asymmetric weights are opened in"),
        ("gpt_neox", {"kv_bits": 8}, "does not find the keys that a fused layer makes"),
        ("llama", {"act_bits": 1}, "act_bits 1 does not exist"),
        ("llama", {"rotation": {"name": "hadamard", "sed": 1}}, "unknown key 'sed'"),
        ("llama", {"rotation": {"name": "hadamard", "seed": -1}}, "seed of -1 is not usable"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_begins(
    name: str, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=said):
        quantize(saved(name), out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_rotated_folder_is_not_rotated_again(tmp_path: Path) -> None:
    made = quantize(saved("llama"), method=FULL, rotation="hadamard", format="dense", out=tmp_path / "one")
    with pytest.raises(BadInput, match="has been rotated already"):
        quantize(made.folder, rotation="hadamard", out=tmp_path / "two")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"symmetric": True}, "input_activations with symmetric True"),
        ({"dynamic": False}, "input_activations with dynamic False"),
        ({"strategy": "tensor"}, "input_activations with strategy tensor"),
        ({"num_bits": 16}, "input_activations of 16 bits"),
    ],
)
def test_grids_that_are_not_run_here_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    made = quantize(saved("llama"), act_bits=4, out=tmp_path).folder
    config = json.loads((made / "config.json").read_text())
    (group,) = config["quantization_config"]["config_groups"].values()
    group["input_activations"].update(changes)
    (made / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=said):
        inspect_any(made)


def test_a_transform_of_somebody_else_is_refused_although_we_have_rotated_the_weights(tmp_path: Path) -> None:
    """The marker says what was merged; it does not say that a transform in the file is the one that it knows of."""
    made = quantize(saved("llama"), rotation="hadamard", out=tmp_path / "merged").folder
    other = quantize(saved("llama"), rotation={"name": "hadamard", "down": True}, out=tmp_path / "stays").folder
    said = config_of(other)["quantization_config"]["transform_config"]
    assert inspect_any(other)
    edit_config(made, transform_config=said)
    with pytest.raises(BadInput, match="has transform_config, which is not run here"):
        inspect_any(made)
    fewer = {**said["config_groups"]["R4"]}
    fewer["apply"] = [{**fewer["apply"][0], "targets": fewer["apply"][0]["targets"][:1]}]
    edit_config(other, transform_config={"config_groups": {"R4": fewer}})
    with pytest.raises(BadInput, match="has transform_config, which is not run here"):
        inspect_any(other)


def test_a_method_that_no_rotation_was_built_for_has_no_bits_to_weigh() -> None:
    found = build("rotation", "adaptive")
    assert (found.values, found.keys, found.down) == (True, None, None)
    assert ActivationGrids() == grids_named("w4a4kv4")[1]
