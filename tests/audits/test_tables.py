"""Tables of answers: asked under every condition, kept in a cache without anybody's name, and asked again when they must."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from letheon.audits import tables as module
from letheon.audits.asked import Asked
from letheon.audits.columns import Scores
from letheon.audits.conditions.linear_probe import LinearProbe
from letheon.audits.conditions.quantized import QuantizedWeights
from letheon.audits.conditions.relearn import Relearn
from letheon.audits.matrix import HALF
from letheon.audits.plan import Plan, make_plan
from letheon.audits.protocol import read_protocol
from letheon.audits.scorer import Scorer
from letheon.audits.stored import Rows, to_plain
from letheon.audits.tables import Asker, cache_folder
from letheon.errors import NotMeasured
from letheon.models import ModelFolder, inspect_model, load_model
from letheon.training.losses import Body
from tests.audits.mini import Mini

SOME = ("as_is", "int4_row")


@pytest.fixture(scope="module")
def plan(mini: Mini) -> Plan:
    data = {role: mini.data(role) for role in ("forget", "retain", "holdout", "general")}
    made = make_plan(
        read_protocol("quick-1"),
        data,
        encoder=mini.encoder,
        has_reference=True,
        shipped=None,
        gate_units=frozenset(),
        seed=0,
    )
    return replace(made, conditions={name: made.conditions[name] for name in SOME})


def asker_of(plan: Plan, mini: Mini, told: list[str] | None = None, **environment: Any) -> Asker:
    said: list[str] = [] if told is None else told
    return Asker(plan, mini.encoder, "cpu", {"threads": 1, **environment}, said.append)


@pytest.fixture(scope="module")
def fresh(plan: Plan, mini: Mini) -> Rows:
    own, _, _ = asker_of(plan, mini).table(inspect_model(mini.target), plan.conditions)
    return own


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LETHEON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def plain(rows: Rows) -> dict[str, Any]:
    return to_plain({"rows": rows}, str)


def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that are loaded from now on."""
    seen: list[Path] = []

    def load(path: Path, **settings: Any) -> Any:
        seen.append(path)
        return load_model(path, **settings)

    monkeypatch.setattr(module, "load_any", load)
    return seen


def test_every_condition_asks_every_column(fresh: Rows, plan: Plan) -> None:
    for condition in SOME:
        assert list(fresh[condition]) == list(plan.columns)
        assert all(isinstance(answer, Scores) for answer in fresh[condition].values())
    as_is, rounded = (fresh[condition]["forget_probability"] for condition in SOME)
    assert isinstance(as_is, Scores) and isinstance(rounded, Scores) and as_is.values != rounded.values


def test_a_condition_is_asked_about_itself_and_not_about_the_one_before(fresh: Rows, plan: Plan, mini: Mini) -> None:
    turned = {name: plan.conditions[name] for name in reversed(SOME)}
    own, _, scorer = asker_of(plan, mini).table(inspect_model(mini.target), turned)
    assert {name: plain(fresh)["scores"]["rows"][name] for name in SOME} == {
        name: plain(own)["scores"]["rows"][name] for name in SOME
    }
    model = load_model(mini.target)
    again = Scorer(model, Body(model), mini.encoder, "cpu").scores(plan.sets["forget_questions"]).log_probs("mean")
    assert scorer.scores(plan.sets["forget_questions"]).log_probs("mean") == pytest.approx(again)


def test_a_model_that_is_its_own_control_is_asked_about_strangers(plan: Plan, mini: Mini) -> None:
    only = {"as_is": plan.conditions["as_is"]}
    own, control, _ = asker_of(plan, mini).table(inspect_model(mini.target), only, self_control="holdout")
    mine, theirs = own["as_is"]["forget_accuracy"], control["as_is"]["forget_accuracy"]
    assert isinstance(mine, Scores) and isinstance(theirs, Scores)
    assert theirs.items == plan.sets["holdout_questions"].items and mine.items == plan.sets["forget_questions"].items
    assert mine.aggregate("mean") > 0.8 > 0.5 > theirs.aggregate("mean")
    assert control["as_is"]["membership_questions"] is HALF
    assert str(control["as_is"]["retain_accuracy"]) == "utility has no control"


def test_what_was_kept_equals_what_is_asked(
    fresh: Rows, plan: Plan, mini: Mini, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    asker, seen = asker_of(plan, mini, told), opened(monkeypatch)
    first = asker.cached_table(inspect_model(mini.target), plan.conditions)
    second = asker.cached_table(inspect_model(mini.target), plan.conditions)
    assert plain(first) == plain(second) == plain(fresh)
    assert seen == [mini.target], "the second time nothing is loaded"
    assert told[:2] == list(SOME) and all("kept from an earlier audit" in line for line in told[2:])
    assert [file.suffix for file in cache.iterdir()] == [".json"]


def test_the_cache_is_no_new_store_of_names_and_answers(plan: Plan, mini: Mini, cache: Path) -> None:
    asker_of(plan, mini).cached_table(inspect_model(mini.target), plan.conditions)
    (file,) = cache.iterdir()
    held = json.loads(file.read_text(encoding="utf-8"))
    assert not [leaf for leaf in leaves(held) if isinstance(leaf, str)], "numbers alone"
    text = file.read_text(encoding="utf-8")
    assert not any(
        record.unit in text for role in ("forget", "retain", "holdout") for record in mini.data(role).records
    )


def leaves(held: Any) -> list[Any]:
    if isinstance(held, dict | list):
        return [leaf for part in (held.values() if isinstance(held, dict) else held) for leaf in leaves(part)]
    return [held]


def changed_weight(source: Path, target: Path) -> Path:
    """One weight of the file, in its last bit."""
    shutil.copytree(source, target)
    raw = bytearray((target / "model.safetensors").read_bytes())
    raw[-4] ^= 1
    (target / "model.safetensors").write_bytes(raw)
    return target


def with_record(asked: Asked, **changes: Any) -> Asked:
    """The first record of a set is another one."""
    return replace(asked, records=(replace(asked.records[0], **changes), *asked.records[1:]))


def test_what_may_change_an_answer_changes_the_key(plan: Plan, mini: Mini, tmp_path: Path) -> None:
    folder = inspect_model(mini.target)
    keys = {"as it is": asker_of(plan, mini)._key(folder, plan.conditions, None)}

    def key(name: str, made: Plan, where: ModelFolder, conditions: Mapping[str, Any], **environment: Any) -> None:
        keys[name] = asker_of(made, mini, **environment)._key(where, conditions, None)

    key("a bit of a weight", plan, inspect_model(changed_weight(mini.target, tmp_path / "changed")), plan.conditions)
    key("threads", plan, folder, plan.conditions, threads=2)
    key("code", plan, folder, plan.conditions, code_sha256="another")
    key("a condition less", plan, folder, {"as_is": plan.conditions["as_is"]})
    key("another grid", plan, folder, {**plan.conditions, "int4_row": QuantizedWeights(bits=3)})
    other = plan.sets["forget_questions"]
    for name, asked in {
        "another token": replace(other, examples=(replace(other.examples[0], ids=(*other.examples[0].ids[:-1], 5)), *other.examples[1:])),
        "another answer": replace(other, answers=("Zol", *other.answers[1:])),
        "another unit": replace(other, units=("somebody", *other.units[1:])),
        "another fact": with_record(other, fact="Zol/birthplace"),
        "another wrong answer": with_record(other, wrong=("Zol",)),
        "another alias": with_record(other, aliases=("Zol",)),
        "another border": replace(other, examples=(replace(other.examples[0], labelled_from=1), *other.examples[1:])),
    }.items():  # fmt: skip
        key(
            name,
            replace(plan, sets=type(plan.sets)({**plan.sets.sets, "forget_questions": asked})),
            folder,
            plan.conditions,
        )
    probe = plan.probe_of["membership_texts"]
    key(
        "a probe's setting",
        replace(plan, probe_of={**plan.probe_of, "membership_texts": replace(probe, share=0.2)}),
        folder,
        plan.conditions,
    )
    key("generated elsewhere", replace(plan, generated={}), folder, plan.conditions)
    keys["less utility"] = asker_of(plan, mini)._key(folder, plan.conditions, ("as_is",))
    wider = replace(asker_of(plan, mini), encoder=type(mini.encoder)(mini.encoder.tokenizer, max_length=64))
    keys["window"] = wider._key(folder, plan.conditions, None)
    assert {name for name in keys if list(keys.values()).count(keys[name]) > 1} == set()
    copy = Path(shutil.copytree(mini.target, tmp_path / "elsewhere"))
    (copy / "README.md").write_text("another card", encoding="utf-8")
    assert asker_of(plan, mini)._key(inspect_model(copy), plan.conditions, None) == keys["as it is"]


@pytest.mark.parametrize("harm", ["", "{", '{"asked": []}', "[]", "null"])
def test_a_damaged_cache_is_asked_again(
    harm: str, fresh: Rows, plan: Plan, mini: Mini, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asker = asker_of(plan, mini)
    cache.mkdir()
    (cache / f"{asker._key(inspect_model(mini.target), plan.conditions, None)}.json").write_text(harm)
    seen = opened(monkeypatch)
    assert plain(asker.cached_table(inspect_model(mini.target), plan.conditions)) == plain(fresh)
    assert len(seen) == 1


def test_the_cache_is_where_it_was_asked_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LETHEON_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("LETHEON_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "letheon"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "letheon"


def test_a_condition_that_cannot_be_applied_is_not_measured_in_every_column(plan: Plan, mini: Mini) -> None:
    wide = {"as_is": plan.conditions["as_is"], "int4_row": QuantizedWeights(group=48)}
    own, control, _ = asker_of(plan, mini).table(inspect_model(mini.target), wide, self_control="holdout")
    for row in (own["int4_row"], control["int4_row"]):
        assert set(row) == set(plan.columns)
        assert all(isinstance(answer, NotMeasured) and "group of 48" in str(answer) for answer in row.values())
    assert isinstance(own["as_is"]["forget_accuracy"], Scores)


def test_what_is_not_wanted_under_a_condition_is_not_asked(plan: Plan, mini: Mini) -> None:
    less = replace(plan, generated={"forget_rouge": {"as_is"}, "verbatim": {"int4_row"}})
    own, _, _ = asker_of(less, mini).table(inspect_model(mini.target), plan.conditions, utility_at=("as_is",))
    missing = {(at, name) for at in SOME for name in plan.columns if isinstance(own[at][name], NotMeasured)}
    utility = {name for name, column in plan.columns.items() if column.about == "utility"}
    assert missing == {("int4_row", name) for name in utility} | {("as_is", "verbatim"), ("int4_row", "forget_rouge")}


def test_a_column_that_cannot_be_asked_leaves_the_others(plan: Plan, mini: Mini) -> None:
    sets = type(plan.sets)({name: asked for name, asked in plan.sets.sets.items() if name != "holdout_texts"})
    only = {"as_is": plan.conditions["as_is"]}
    own, _, _ = asker_of(replace(plan, sets=sets), mini).table(inspect_model(mini.target), only)
    missing = {name for name, answer in own["as_is"].items() if isinstance(answer, NotMeasured)}
    assert missing == {"membership_texts"}


def test_an_empty_set_is_nothing_to_ask(plan: Plan, mini: Mini) -> None:
    sets = type(plan.sets)({name: asked for name, asked in plan.sets.sets.items() if name != "forget_held_out"})
    only = {"as_is": plan.conditions["as_is"]}
    own, _, _ = asker_of(replace(plan, sets=sets), mini).table(inspect_model(mini.target), only)
    assert (
        str(own["as_is"]["forget_accuracy_held_out"])
        == "there is nothing to ask for forget_accuracy_held_out (forget set)"
    )


@pytest.mark.parametrize("layer", ["model.norm", "model.layers.1.self_attn.q_proj"])
def test_weights_that_are_no_numbers_are_not_measured_anywhere(
    layer: str, plan: Plan, mini: Mini, tmp_path: Path
) -> None:
    """Not one column may turn NaN into a clean answer; fused attention passes a NaN query over in silence."""
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(mini.target, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors[f"{layer}.weight"][-1] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    own, _, _ = asker_of(plan, mini).table(inspect_model(broken), plan.conditions)
    assert all(isinstance(answer, NotMeasured) for row in own.values() for answer in row.values())
    said = {str(answer) for row in own.values() for answer in row.values()}
    assert said == {f"tensor {layer}.weight of the model holds NaN or infinity"}


def test_an_attack_is_asked_more_once_a_part_and_a_reader_never(plan: Plan, mini: Mini) -> None:
    seen: list[tuple[str, tuple[str, ...]]] = []
    asker_of(plan, mini).table(
        inspect_model(mini.target),
        {"relearn": Relearn(steps=(1,)), "linear_probe": LinearProbe(labels=("answers",))},
        meanwhile=lambda name, scorer, sets: seen.append((name, sets["forget_questions"].items)),
    )
    (first, one), (second, other) = seen
    assert first == second == "relearn" and one and other
    assert sorted([*one, *other]) == sorted(plan.sets["forget_questions"].items)


def test_what_is_asked_meanwhile_is_asked_under_the_condition(plan: Plan, mini: Mini) -> None:
    seen: dict[str, str] = {}
    asker_of(plan, mini).table(
        inspect_model(mini.target),
        plan.conditions,
        meanwhile=lambda name, scorer, sets: seen.update(
            {name: json.dumps(scorer.scores(sets["forget_texts"]).log_probs("sum").tolist())}
        ),
    )
    assert list(seen) == list(SOME) and seen["as_is"] != seen["int4_row"]
