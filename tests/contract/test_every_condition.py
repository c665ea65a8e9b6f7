"""What every condition promises, run over the folder: it acts while it is applied, and leaves no bit behind.

A condition is applied as a whole (`applied`), or is an attack that takes steps with the help of data (`walk`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from letheon.audits.protocol import names as protocols
from letheon.audits.protocol import read_protocol
from letheon.audits.scorer import Scorer
from letheon.data.encode import Example
from letheon.errors import NotMeasured
from letheon.methods import build, card, load, names
from letheon.models import ModelFolder, inspect_model, load_model
from letheon.training.losses import Body
from tests.architectures.models import make_model, save_model_folder, saved
from tests.contract.register import every_variation
from tests.toys import bits, encoder

IDS = torch.arange(2, 12).unsqueeze(0)
ARCHITECTURES = ("llama_tied", "gpt2", "gpt_neox")


def is_attack(spec: dict[str, Any]) -> bool:
    return hasattr(load("condition", spec["name"]), "walk")


def given(*, attacks: bool = False, everything: bool = False) -> list[Any]:
    """Every condition with its settings varied, and those of the protocols; a path is filled with another model."""
    shipped = [spec for name in protocols() for spec in read_protocol(name).conditions.values()]
    found = [*(param.values[1] for param in every_variation("condition")), *shipped]
    specs = [spec for spec in found if everything or is_attack(spec) == attacks]  # type: ignore[arg-type]
    return [pytest.param(spec, id=f"{spec['name']}-{number}") for number, spec in enumerate(specs)]  # type: ignore[index,call-overload]


def made(spec: dict[str, Any], architecture: str, folder: Path) -> Any:
    if "path" not in load("condition", spec["name"]).__dataclass_fields__:
        return build("condition", spec)
    return build("condition", {**spec, "path": save_model_folder(make_model(architecture, seed=7), folder)})


def state(model: Any) -> dict[str, bytes]:
    return {name: bits(tensor) for name, tensor in model.state_dict().items()}


def logits(model: Any) -> bytes:
    with torch.no_grad():
        return bits(model(input_ids=IDS).logits)


@contextmanager
def applied(condition: Any, model: Any, folder: ModelFolder) -> Iterator[bool]:
    """Whether it could be applied; a group may not divide a layer."""
    try:
        with condition.applied(model, folder):
            yield True
    except NotMeasured:
        yield False


@pytest.mark.parametrize("spec", given())
def test_every_bit_comes_back_and_twice_is_the_same(spec: dict[str, Any], tmp_path: Path) -> None:
    for architecture in ARCHITECTURES:
        condition = made(spec, architecture, tmp_path / architecture)
        folder = inspect_model(saved(architecture))
        model = load_model(folder.path)
        before, said = state(model), []
        for _ in range(2):
            with applied(condition, model, folder) as could:
                said.append(logits(model))
                assert (state(model) != before) == (could and spec["name"] != "as_is")
                assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
                assert not model.training
            assert state(model) == before
        assert said[0] == said[1]


@pytest.mark.parametrize("spec", given())
def test_every_bit_comes_back_after_a_fault_inside(spec: dict[str, Any], tmp_path: Path) -> None:
    condition, folder = made(spec, "llama_tied", tmp_path), inspect_model(saved("llama_tied"))
    model = load_model(folder.path)
    before = state(model)
    with pytest.raises((ZeroDivisionError, NotMeasured)), condition.applied(model, folder):
        raise ZeroDivisionError
    assert state(model) == before


def learned() -> list[Example]:
    return [Example((*range(start, start + 8), 1), 5) for start in range(2, 9)]


def nothing(step: int) -> None:
    """What an attack may call between its steps."""


@pytest.mark.parametrize("spec", given(attacks=True))
def test_an_attack_acts_and_is_the_same_twice(spec: dict[str, Any]) -> None:
    attack = build("condition", {**spec, "steps": [1, 3]})
    for architecture in ARCHITECTURES:
        said: list[list[bytes]] = []
        for _ in range(2):
            model = load_model(saved(architecture))
            before, seen = logits(model), []

            def then(step: int, seen: list[Any] = seen, model: Any = model) -> None:
                seen.append((step, logits(model)))

            attack.walk(Scorer(model, Body(model), encoder(), "cpu"), learned(), then)
            assert [step for step, _ in seen] == [1, 3]
            assert len({before, *(found for _, found in seen)}) == 3, "the model is another at every look"
            said.append([found for _, found in seen])
        assert said[0] == said[1]


@pytest.mark.parametrize("spec", given(attacks=True))
def test_an_attack_without_data_is_not_measured(spec: dict[str, Any]) -> None:
    model = load_model(saved("llama_tied"))
    with pytest.raises(NotMeasured, match="neither questions nor texts"):
        build("condition", spec).walk(Scorer(model, Body(model), encoder(), "cpu"), [], nothing)


@pytest.mark.parametrize("spec", given(everything=True))
def test_a_report_can_say_what_was_done(spec: dict[str, Any]) -> None:
    said = build("condition", spec).provenance
    assert len(said) > 15 and "\n" not in said and not said.endswith(".")


def test_conditions_of_a_protocol_are_told_apart() -> None:
    for name in protocols():
        said = [build("condition", spec).provenance for spec in read_protocol(name).conditions.values()]
        assert len(set(said)) == len(said)
    assert {"as_is", "quantized", "shipped"} <= set(names("condition"))


def test_a_condition_that_leaves_a_bit_behind_would_be_found(tmp_path: Path) -> None:
    source = card("condition", "quantized").path.read_text()
    put_back = "_set(matrix, matrix.of_file(read_tensor(folder, stored[name])))"
    assert put_back in source
    broken = source.replace(put_back, "pass")
    (tmp_path / "mine.py").write_text(broken)
    with pytest.raises(AssertionError):
        test_every_bit_comes_back_and_twice_is_the_same({"name": str(tmp_path / "mine.py")}, tmp_path)
