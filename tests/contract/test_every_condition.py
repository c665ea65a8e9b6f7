"""What every condition promises, run over the folder: it acts while it is applied, and leaves no bit behind.

A condition is applied as a whole (`applied`), is an attack with the help of what an attacker knows (`walk`), or changes
what is asked (`asked`): see test_every_wording.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from letheon.audits.asked import Asked, AskedSets
from letheon.audits.attacked import attacked_rows, hooks, rows_of, stops
from letheon.audits.attacker import Attacker
from letheon.audits.protocol import names as protocols
from letheon.audits.protocol import read_protocol
from letheon.data.encode import Example
from letheon.errors import NotMeasured
from letheon.lowbit.matrices import decoder_matrices
from letheon.methods import build, card, describe, load, names
from letheon.models import ModelFolder, inspect_model, load_model
from tests.architectures.models import make_model, save_model_folder, saved
from tests.audits.fakes import asked, scorer_of, sets, target_of
from tests.contract.register import every_variation
from tests.toys import bits

IDS = torch.arange(2, 12).unsqueeze(0)
ARCHITECTURES = ("llama_tied", "gpt2", "gpt_neox")


def is_attack(spec: dict[str, Any]) -> bool:
    return hasattr(load("condition", spec["name"]), "walk")


def is_wording(spec: dict[str, Any]) -> bool:
    return hasattr(load("condition", spec["name"]), "asked")


def given(*, attacks: bool = False, everything: bool = False, varied: bool = True) -> list[Any]:
    """Every condition with its settings varied, and those of the protocols; a path is filled with another model."""
    if not varied:
        specs = [describe(build("condition", name)) for name in names("condition") if is_attack({"name": name})]
        return [pytest.param(spec, id=spec["name"]) for spec in specs]
    shipped = [spec for name in protocols() for spec in read_protocol(name).conditions.values()]
    found = [*(param.values[1] for param in every_variation("condition")), *shipped]
    specs = [spec for spec in found if everything or (is_attack(spec) == attacks and not is_wording(spec))]  # type: ignore[arg-type]
    seen: set[str] = set()
    params = []
    for number, spec in enumerate(specs):
        name = str(spec["name"])  # type: ignore[index,call-overload]
        marks = [pytest.mark.slow] if name in seen else []  # one of each is enough while somebody waits
        params.append(pytest.param(spec, id=f"{name}-{number}", marks=marks))
        seen.add(name)
    return params


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


def world() -> AskedSets:
    """Twelve people to be forgotten, and others."""

    def some(name: str, start: int, count: int) -> Asked:
        return asked(name, [Example((*range(first, first + 8), 1), 5) for first in range(start, start + count)])

    return sets(some("forget_questions", 2, 12), some("retain_questions", 40, 20), some("general_questions", 80, 9))


def in_other_words(now: AskedSets) -> tuple[Any, ...]:
    """What is asked of the forgotten that does not stand in the world."""
    plain = {example.ids for example in world()["forget_questions"].examples}
    return tuple(example.ids for example in now["forget_questions"].examples if example.ids not in plain)


def briefly(spec: dict[str, Any]) -> Any:
    """The attack, with few steps where it takes any, and at a layer that models of two blocks have."""
    attack = build("condition", spec)
    if getattr(attack, "layer", None) is not None:
        attack = replace(attack, layer=1)
    if spec["name"] == "quantize_with":
        return replace(attack, length=16)
    if spec["name"] == "gcg":
        attack = replace(attack, candidates=max(attack.candidates // 8, 1), questions=attack.questions // 4)
    if spec["name"] == "gcg_enhanced":
        few = {name: max(getattr(attack, name) // 8, 2) for name in ("tokens", "spare", "questions")}
        return replace(attack, steps=(1, 4), **few)
    return replace(attack, steps=(1, 3)) if attack.along == "steps" else attack


@cache
def another(architecture: str) -> ModelFolder:
    """A model of the same shape: the original, for attackers who have it."""
    return inspect_model(
        save_model_folder(make_model(architecture, seed=7), saved(architecture).parent / f"{architecture}-7")
    )


def attacked(
    attack: Any,
    model: Any,
    architecture: str,
    look: Callable[[str, AskedSets, Any], list[Any]],
    *,
    whole: AskedSets | None = None,
) -> None:
    attacked_rows(
        rows_of("row", attack),
        scorer_of(model),
        whole or world(),
        look,
        folder=inspect_model(saved(architecture)),
        original=another(architecture),
    )


@pytest.mark.parametrize("spec", given(attacks=True))
def test_an_attack_acts_is_the_same_twice_and_leaves_no_bit_behind(spec: dict[str, Any]) -> None:
    for architecture in ARCHITECTURES if spec == describe(build("condition", spec["name"])) else ("llama_tied",):
        attack, said = briefly(spec), []
        for _ in range(2):
            model = load_model(saved(architecture))
            before, plain, seen = state(model), logits(model), []

            def look(row: str, now: AskedSets, reader: Any, seen: list[Any] = seen, model: Any = model) -> list[Any]:
                said = logits(model) if reader is None else reader([tuple(IDS[0].tolist())]).scores.tobytes()
                seen.append((said, in_other_words(now)))
                return [{}]

            attacked(attack, model, architecture, look)
            ways = max(attack.folds, 1)
            assert len(seen) == ways * len(stops(attack))
            assert (plain, ()) not in seen, "the model is another at every look, or the words are"
            for way in range(ways):
                of_way = seen[way * len(stops(attack)) :][: len(stops(attack))]
                assert len(set(of_way)) == len(of_way)
            assert state(model) == before and logits(model) == plain and not hooks(model)
            assert not any(one.requires_grad or one.grad is not None for one in model.parameters())
            said.append(seen)
        assert said[0] == said[1]


@pytest.mark.parametrize("spec", given(attacks=True, varied=False))
def test_an_attack_leaves_no_bit_behind_after_a_fault(spec: dict[str, Any]) -> None:
    model = load_model(saved("llama_tied"))
    before, plain = state(model), logits(model)

    def look(row: str, now: AskedSets, reader: Any) -> list[Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        attacked(briefly(spec), model, "llama_tied", look)
    assert state(model) == before and logits(model) == plain and not hooks(model)


@pytest.mark.parametrize("spec", given(attacks=True, varied=False))
def test_a_model_of_nan_is_not_measured_and_no_bit_is_left_behind(spec: dict[str, Any]) -> None:
    model, whole = load_model(saved("llama_tied")), world()
    with torch.no_grad():
        decoder_matrices(model)["model.layers.0.mlp.down_proj"].weight[0, 0] = float("nan")
    before = state(model)
    scorer = scorer_of(model)

    def look(row: str, reader: Any) -> list[Any]:
        scorer.scores(whole["forget_questions"])
        return [{}]

    with pytest.raises(NotMeasured, match=r"not finite|could not go on|NaN"):
        attacked_rows(
            rows_of("row", briefly(spec)),
            scorer,
            whole,
            lambda row, now, reader: look(row, reader),
            folder=inspect_model(saved("llama_tied")),
            original=inspect_model(saved("llama_tied")),
        )
    assert state(model) == before and not hooks(model)


@pytest.mark.parametrize("spec", given(attacks=True, varied=False))
def test_an_attack_without_data_is_not_measured(spec: dict[str, Any]) -> None:
    model = load_model(saved("llama_tied"))
    said = r"neither questions nor texts|holds no questions|needs (retain|general) records|needs the original"
    with pytest.raises(NotMeasured, match=said):
        briefly(spec).walk(target_of(model), Attacker(), lambda stop: None)
    assert not hooks(model)


@pytest.mark.parametrize("spec", given(attacks=True, varied=False))
def test_one_person_is_not_enough_to_learn_and_to_ask(spec: dict[str, Any]) -> None:
    attack, model = briefly(spec), load_model(saved("llama_tied"))
    one = asked("forget_questions", [Example((*range(2, 10), 1), 5)])
    whole = AskedSets({**world().sets, "forget_questions": one})
    if attack.folds == 0:
        attacked(attack, model, "llama_tied", lambda row, now, reader: [{}], whole=whole)
        return
    with pytest.raises(NotMeasured, match="the forget set has 1"):
        attacked(attack, model, "llama_tied", lambda row, now, reader: [{}], whole=whole)


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
