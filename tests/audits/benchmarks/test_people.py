"""The embedded world's own questions as a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from letheon.audits.benchmarks.people import People
from letheon.audits.itemized import Resampling, Table
from letheon.data.encode import Encoder
from letheon.errors import BadInput
from letheon.tiny.world import SMALL, make_world, write_world
from tests.audits.benchmarks.data import by_name, scorer
from tests.audits.fakes import uniform_model
from tests.audits.mini import Mini
from tests.toys import encoder, llama

HOW = Resampling(resamples=1000)


def measured(made: People, model: Any) -> dict[str, Table]:
    asker = scorer(model, coder=encoder())
    return {name: made.measure(one, asker).table for name, one in made.pose(made.read(), encoder()).items()}


def figures(made: People, model: Any) -> dict[str, Any]:
    return by_name(made.figures(measured(made, model), None, HOW))


def test_a_trained_model_knows_whom_it_was_taught_and_nobody_else(mini: Mini) -> None:
    made = People(data=mini.files["forget"].parent)
    target, reference = (figures(made, mini.load(path)) for path in (mini.target, mini.reference))
    assert target["forget.accuracy"].value > 0.9 > 0.3 > reference["forget.accuracy"].value
    assert target["retain.accuracy"].value > 0.9 and reference["retain.accuracy"].value > 0.9
    assert target["holdout.accuracy"].value < 0.3
    assert target["forget_choice.choice"].value > 0.9 > reference["forget_choice.choice"].value
    assert target["forget.accuracy"].better == "reference" and target["retain.accuracy"].better == "high"


def test_the_numbers_are_those_of_one_slow_forward_an_item(tmp_path: Path) -> None:
    write_world(tmp_path, 3, SMALL)
    made, model = People(data=tmp_path, limit=12), llama(3)
    tables = measured(made, model)
    posed = made.pose(made.read(), encoder())
    records = {f"forget/{one.line}": one for one in made.read()["forget"].records}
    with torch.no_grad():
        for at, item in enumerate(posed["forget_choice"].items):
            record = records[item]
            means = []
            for answer in (record.answer, *record.wrong):
                shown = encoder().tokenizer.encode(record.prompt)
                ids = [*shown, *encoder().tokenizer.encode(f" {answer}"), 1]
                log_probs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
                means.append(np.mean([float(log_probs[k - 1, ids[k]]) for k in range(len(shown), len(ids))]))
            assert tables["forget_choice"].columns["choice"][at] == float(np.argmax(means) == 0)
        assert len(posed["forget_choice"].items) >= 3 and set(posed["forget_choice"].counts) == {4}


def test_a_uniform_model_chooses_one_in_four(tmp_path: Path) -> None:
    write_world(tmp_path, 3, SMALL)
    found = figures(People(data=tmp_path), uniform_model())
    assert found["forget_choice.choice"].value == found["general_choice.choice"].value == 0.25
    assert found["forget.probability"].value == pytest.approx(1 / 768, rel=1e-5)


def test_the_world_of_a_seed_is_made_where_none_is_given() -> None:
    rows = People(seed=5).read()
    assert [group.path for group in rows.values()] == [None] * 4
    made = [record for record in make_world(5).files["forget"] if "prompt" in record]
    assert [one.prompt for one in rows["forget"].records] == [record["prompt"] for record in made]


def test_nobody_is_named_and_limits_keep_every_person(tmp_path: Path) -> None:
    files = write_world(tmp_path, 3, SMALL)
    posed = People(data=tmp_path, limit=16).pose(People(data=tmp_path).read(), encoder())
    assert len(posed["forget"].items) == 16 and len(set(posed["forget"].units)) == SMALL.forget
    assert set(posed["forget"].units) == {f"forget/unit {at}" for at in range(SMALL.forget)}
    assert files["forget"].is_file() and People().for_reference(["forget"]) == []


def test_faults_are_told(tmp_path: Path) -> None:
    write_world(tmp_path, 3, SMALL)
    (tmp_path / "general.jsonl").unlink()
    (tmp_path / "retain.jsonl").write_text('{"text": "a text"}\n')
    with pytest.raises(BadInput) as raised:
        People(data=tmp_path).read()
    told = "\n".join(raised.value.problems)
    assert "no general.json" in told and "retain.jsonl: holds no questions" in told
    write_world(tmp_path, 3, SMALL)
    with pytest.raises(BadInput, match=r"forget/1.*longer"):
        People(data=tmp_path).pose(People(data=tmp_path).read(), Encoder(encoder().tokenizer, max_length=8))
