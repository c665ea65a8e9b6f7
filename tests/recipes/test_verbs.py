"""What verbs can be told, read from their files, is what they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from letheon.errors import BadInput, UnknownName
from letheon.methods import settings_in
from letheon.recipes import verbs
from letheon.unlearning.forget_terms.npo import NPO
from letheon.unlearning.presets import PRESETS
from letheon.unlearning.stopping import StopRule

NEEDED: dict[str, dict[str, Any]] = {
    "train": {"model": "m", "data": "d.jsonl"},
    "forget": {"model": "m", "forget_data": "f.jsonl"},
    "quantize": {"model": "m"},
    "audit": {"model": "m"},
    "benchmark": {"model": "m", "benchmark": "people"},
}


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_resolved_settings_are_complete_and_resolve_to_themselves(verb: str) -> None:
    resolved = verbs.resolve(verb, NEEDED[verb])
    assert list(resolved) == [setting.name for setting in verbs.settings(verb)]
    assert verbs.resolve(verb, resolved) == resolved


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_resolves_to_its_settings(name: str) -> None:
    resolved = verbs.resolve("forget", {**NEEDED["forget"], "preset": name, "batch_size": 4})
    assert resolved["batch_size"] == 4
    for setting, value in PRESETS[name].settings.items():
        if setting in verbs.kinds("forget"):
            chosen = {"name": value} if isinstance(value, str) else value
            assert chosen.items() <= resolved[setting].items()
        elif setting != "batch_size":
            assert resolved[setting] == value


def test_instances_and_mappings_resolve_alike() -> None:
    made = verbs.resolve("forget", {**NEEDED["forget"], "method": NPO(beta=0.5), "stop": StopRule(every=3)})
    read = verbs.resolve(
        "forget", {**NEEDED["forget"], "method": {"name": "npo", "beta": "0.5"}, "stop": {"every": "3"}}
    )
    assert made == read


def test_every_fault_has_its_place_once() -> None:
    values = {
        "model": "m",
        "epochs": "x",
        "method": {"name": "npo", "beta": "y"},
        "rate": "cosin",
        "stop": {"every": -1},
    }
    with pytest.raises(BadInput) as raised:
        verbs.resolve("forget", values, where="step 2, forget")
    assert sorted(problem.split(": ")[0] for problem in raised.value.problems) == [
        "step 2, forget",  # no forget_data
        "step 2, forget.epochs",
        "step 2, forget.method npo.beta",
        "step 2, forget.rate",
        "step 2, forget.stop",
    ]


def test_an_unknown_verb_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"'forgte' is not a verb\. Did you mean 'forget'\?"):
        verbs.settings("forgte")


def test_fields_of_fields_are_read_from_the_file_they_come_from() -> None:
    (stop,) = [setting for setting in verbs.settings("forget") if setting.inner]
    assert stop.name == "stop"
    assert [setting.name for setting in stop.inner] == list(vars(StopRule()))


def test_a_description_leaves_out_what_every_method_says() -> None:
    described = {setting.name: verbs.description(setting) for verb in verbs.VERBS for setting in verbs.settings(verb)}
    assert described["method"] and described["balance"] == "How two gradients become one"
    assert not any("of kind" in text for text in described.values())


def test_a_class_that_is_not_in_the_file_has_no_settings(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("class A:\n    x: int = 1\n")
    assert settings_in(tmp_path / "a.py", "A") == ()
    assert settings_in(tmp_path / "a.py", "B") == ()
