"""The shipped weights in the audited architecture say what the shipped folder itself says, and are taken out again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from letheon.audits.conditions.shipped import Shipped
from letheon.errors import NotMeasured
from letheon.models import inspect_model, load_model
from letheon.quantization.pipeline import quantize
from letheon.quantization.reading import inspect_any, load_any
from letheon.runs.progress import Progress
from tests.architectures.models import ARCHITECTURES, make_model, save_model_folder, saved
from tests.toys import bits

IDS = torch.arange(2, 12).unsqueeze(0)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=IDS).logits)


def state_bits(model: Any) -> dict[str, bytes]:
    return {name: bits(tensor) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_equals_loading_that_folder(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    ships = save_model_folder(make_model(name, seed=5), tmp_path, dtype=dtype)
    folder = inspect_model(saved(name))
    model = load_model(folder.path)
    before = state_bits(model)
    with Shipped(path=ships).applied(model, folder):
        assert torch.equal(logits(model), logits(load_model(ships)))
        assert state_bits(model) == state_bits(load_model(ships))
    assert state_bits(model) == before


@pytest.mark.parametrize("name", ["llama_tied", "llama_grouped", "gemma"])
def test_a_rotated_file_that_rounds_on_its_way_is_asked_as_it_runs(name: str, tmp_path: Path) -> None:
    made = quantize(
        saved(name), rotation="hadamard", act_bits=4, kv_bits=3, out=tmp_path, progress=Progress(quiet=True)
    )
    folder = inspect_model(saved(name))
    model = load_model(folder.path)
    before, said = state_bits(model), bits(logits(model))
    with Shipped(path=made.folder).applied(model, folder):
        assert bits(logits(model)) == bits(logits(load_any(made.folder))) != said
    assert state_bits(model) == before and bits(logits(model)) == said
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert is_tied == model.config.tie_word_embeddings


def test_a_file_that_rounds_otherwise_is_not_asked_through_the_audited_ones_rounding(tmp_path: Path) -> None:
    packed = [
        quantize(saved("llama"), act_bits=act, out=tmp_path / str(act), progress=Progress(quiet=True)).folder
        for act in (4, 8)
    ]
    folder, model = inspect_any(packed[0]), load_any(packed[0])
    with pytest.raises(NotMeasured, match="does not do it alike"), Shipped(path=packed[1]).applied(model, folder):
        pass
    with Shipped(path=packed[0]).applied(model, folder):
        assert bits(logits(model)) == bits(logits(load_any(packed[0])))


def test_the_audited_weights_come_back_when_something_goes_wrong_inside(tmp_path: Path) -> None:
    ships = save_model_folder(make_model("llama", seed=5), tmp_path)
    folder = inspect_model(saved("llama"))
    model = load_model(folder.path)
    before = state_bits(model)
    with pytest.raises(ZeroDivisionError), Shipped(path=ships).applied(model, folder):
        raise ZeroDivisionError
    assert state_bits(model) == before


@pytest.mark.parametrize(
    ("name", "setting"),
    [("qwen2", "model_type"), ("llama_grouped", "num_key_value_heads")],
)
def test_another_architecture_is_not_measured(name: str, setting: str) -> None:
    folder = inspect_model(saved("llama"))
    model = load_model(folder.path)
    with (
        pytest.raises(NotMeasured, match="not the same architecture") as caught,
        Shipped(path=saved(name)).applied(model, folder),
    ):
        raise AssertionError("must not run")
    if setting != "model_type":
        assert setting in str(caught.value)


@pytest.mark.parametrize(("setting", "value"), [("rms_norm_eps", 0.5), ("hidden_act", "relu"), ("rope_theta", 7.0)])
def test_equal_tensors_in_another_configuration_are_another_model(setting: str, value: Any, tmp_path: Path) -> None:
    """Its weights in the audited configuration would be a model that nobody ships."""
    ships = save_model_folder(make_model("llama"), tmp_path)
    config = json.loads((ships / "config.json").read_text())
    place = config["rope_parameters"] if setting == "rope_theta" else config
    place[setting] = value
    (ships / "config.json").write_text(json.dumps(config))
    folder = inspect_model(saved("llama"))
    model = load_model(folder.path)
    assert not torch.allclose(logits(load_model(ships)), logits(model), rtol=1e-4, atol=1e-5)
    with pytest.raises(NotMeasured, match=r"config\.json has another"), Shipped(path=ships).applied(model, folder):
        raise AssertionError("must not run")
