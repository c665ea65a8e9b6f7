"""A quantizer on text as a condition: the folder that `letheon quantize` makes, rounding without text, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from letheon.audits.attacker import Attacker
from letheon.audits.conditions.quantize_with import QuantizeWith
from letheon.audits.conditions.quantized import QuantizedWeights
from letheon.errors import BadInput, NotMeasured, UnknownName
from letheon.lowbit.online import MARKER
from letheon.methods import names
from letheon.models import ModelFolder, inspect_model, load_model
from letheon.quantization.pipeline import quantize
from letheon.quantization.reading import load_any
from tests.architectures.models import saved
from tests.audits.conftest import QUIET
from tests.audits.fakes import target_of
from tests.audits.mini import Mini
from tests.toys import bits, llama, random_examples

KEPT = tuple(random_examples(40, seed=1))
LEARNED = tuple(random_examples(40, seed=2))


def rounded(condition: QuantizeWith, attacker: Attacker, architecture: str = "llama_tied") -> dict[str, torch.Tensor]:
    model, found = load_model(saved(architecture)), {}

    def then(stop: int) -> None:
        found.update({name: one.clone() for name, one in model.state_dict().items()})

    condition.walk(target_of(model, folder=inspect_model(saved(architecture))), attacker, then)
    return found


@pytest.mark.parametrize("architecture", ["llama_tied", "gpt2"])
def test_without_a_look_at_the_text_it_is_plain_rounding_to_the_bit(architecture: str) -> None:
    found = rounded(QuantizeWith(method="rtn", bits=3), Attacker((), {"retain": KEPT}), architecture)
    model = load_model(saved(architecture))
    with QuantizedWeights(bits=3).applied(model, inspect_model(saved(architecture))):
        assert {name: bits(one) for name, one in model.state_dict().items()} == {name: bits(one) for name, one in found.items()}  # fmt: skip


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_it_is_the_folder_that_letheon_quantize_makes(method: str, mini: Mini, tmp_path: Path) -> None:
    records = mini.data("retain").questions
    lines = [json.dumps({"text": f"{record.prompt} {record.answer}"}) for record in records]
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    made = quantize(
        mini.target,
        method={"name": method, "bits": 4, "group": 32, "scale_dtype": "float32"},
        format="dense",
        calibration_data=tmp_path / "text.jsonl",
        sequences=16,
        sequence_length=32,
        out=tmp_path / "run",
        progress=QUIET,
    )
    model, found = load_model(mini.target), {}
    condition = QuantizeWith(method=method, bits=4, group=32, sequences=16, length=32)
    condition.walk(
        target_of(model, mini.encoder, folder=inspect_model(mini.target)),
        Attacker((), {"retain": tuple(mini.encoder.encode_all(records))}),
        lambda stop: found.update({name: one.clone() for name, one in model.state_dict().items()}),
    )
    theirs = load_any(made.folder).state_dict()
    plain = load_model(mini.target).state_dict()
    moved = [name for name in plain if not torch.equal(plain[name], found[name])]
    assert len(moved) >= 14 and found.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", [name for name in names("quantizer") if name != "rtn"])
def test_every_quantizer_hears_the_text_that_was_chosen(method: str) -> None:
    attacker = Attacker(LEARNED, {"retain": KEPT, "general": KEPT[::-1]})
    found = {text: rounded(QuantizeWith(method=method, text=text, length=16), attacker) for text in ("retain", "general", "forget")}  # type: ignore[arg-type]  # fmt: skip
    again = rounded(QuantizeWith(method=method, length=16), attacker)
    said = {text: b"".join(map(bits, state.values())) for text, state in found.items()}
    assert said["retain"] == b"".join(map(bits, again.values())) != said["forget"]
    assert [QuantizeWith(text=text).folds for text in ("retain", "general", "forget")] == [0, 0, 2]  # type: ignore[arg-type]


def test_what_cannot_be_rounded_is_not_measured(tmp_path: Path) -> None:
    attacker = Attacker((), {"retain": KEPT})
    for config in ({"quantization_config": {"quant_method": "x"}}, {MARKER: {}}):
        target = target_of(llama(), folder=ModelFolder(tmp_path, config, {}))
        with pytest.raises(NotMeasured, match="needs full-precision weights"):
            QuantizeWith().walk(target, attacker, lambda stop: None)
    with pytest.raises(NotMeasured, match=r"tokens to calibrate on are fewer than one sequence of 64"):
        QuantizeWith().walk(target_of(llama()), Attacker((), {"retain": KEPT[:2]}), lambda stop: None)
    with pytest.raises(NotMeasured, match=r"gptq: .*group"):
        QuantizeWith(group=7, length=16).walk(target_of(llama()), attacker, lambda stop: None)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"method": "gptqq"}, UnknownName, "'gptqq' is not a quantizer. Did you mean 'gptq'"),
        ({"bits": 1}, BadInput, "bits"),
        ({"sequences": 0}, BadInput, "quantize_with needs sequences >= 1, got 0"),
        ({"length": 1}, BadInput, "quantize_with needs length >= 2, got 1"),
        ({"seed": -1}, BadInput, "quantize_with needs seed >= 0, got -1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QuantizeWith(**settings)
