"""A probe: ridge regression by hand, a planted code, shuffled labels at chance, and answers that the head cannot say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from letheon.audits.attacker import Attacker
from letheon.audits.conditions.linear_probe import LinearProbe, Ridge, _parts, best
from letheon.audits.readers import Reader
from letheon.data.encode import Example
from letheon.errors import BadInput, NotMeasured
from tests.audits.fakes import target_of
from tests.audits.planted import planted
from tests.toys import encoder, llama, random_examples, text

RANDOM = np.random.default_rng(0)


def test_it_is_ridge_regression_in_its_primal_form() -> None:
    rows, others = RANDOM.normal(size=(30, 7)) * 3 + 1, RANDOM.normal(size=(5, 7))
    truth, penalty = RANDOM.integers(0, 4, 30), 0.3
    scaled = (rows - rows.mean(0)) / rows.std(0)
    targets = np.eye(4)[truth]
    size = (scaled**2).sum(1).mean()
    primal = np.linalg.solve(scaled.T @ scaled + penalty * size * np.eye(7), scaled.T @ (targets - targets.mean(0)))
    by_hand = (others - rows.mean(0)) / rows.std(0) @ primal + targets.mean(0)
    np.testing.assert_allclose(Ridge(rows, truth, 4, penalty).scores(others), by_hand, rtol=1e-8, atol=1e-10)


def test_an_input_that_never_changes_is_no_division_by_zero() -> None:
    rows = np.concatenate([RANDOM.normal(size=(9, 2)), np.full((9, 1), 5.0)], 1)
    assert np.isfinite(Ridge(rows, np.arange(9) % 2, 2, 0.1).scores(rows)).all()


def test_the_block_with_the_code_is_chosen_and_nobody_is_in_training_and_left_out() -> None:
    truth = np.arange(40) % 4
    coded = np.eye(4)[truth] @ RANDOM.normal(size=(4, 6)) + 0.1 * RANDOM.normal(size=(40, 6))
    noise = RANDOM.normal(size=(40, 6))
    units = [str(place // 4) for place in range(32)]
    parts = _parts(units, 3, others=8)
    assert best({0: noise, 1: coded}, truth, 4, parts, (0.1,))[0] == 1
    assert best({0: coded, 1: noise}, truth, 4, parts, (0.1,))[0] == 0
    assert sorted(np.concatenate(parts).tolist()) == list(range(32)), "what is retained is never left out"
    of = [{units[place] for place in part} for part in parts]
    assert not (of[0] & of[1] or of[1] & of[2] or of[0] & of[2])


PEOPLE = 60
VALUES = [(300 + place, 1) for place in range(4)]


def person(number: int) -> Example:
    """Two questions about each of thirty people, of two lengths; one of four answers."""
    who, wording = divmod(number, 2)
    prompt = (20, 21, 100 + who) if wording else (22, 100 + who, 23, 24)
    return Example((*prompt, *VALUES[who * 7 % 13 % 4]), len(prompt))


def read(*, code: float, block: int = 1, **settings: Any) -> dict[str, float]:
    """Share of T read, each way of labelling, of a model whose states hold the answer as one of four directions."""
    model = llama(seed=1)
    everybody = [person(number) for number in range(PEOPLE)]
    directions = torch.linalg.qr(torch.randn(32, 4, generator=torch.Generator().manual_seed(0)))[0].T
    of_token = {token: VALUES.index(one.answer_ids) for one in everybody for token in one.prompt_ids if token >= 100}
    about: list[torch.Tensor] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        rows = kwargs["input_ids"].tolist()
        about[:] = [
            torch.stack([directions[next((of_token[one] for one in row if one in of_token), 0)] for row in rows])
        ]

    handle = model.model.register_forward_pre_hook(look, with_kwargs=True)
    learned, kept, asked = everybody[0:20], everybody[20:40], everybody[40:60]
    attacker = Attacker(tuple(learned), {"retain": tuple(kept)}, None, tuple(str(number // 2) for number in range(20)))
    found: dict[str, float] = {}

    def then(labels: str, reader: Reader) -> None:
        said = reader([example.prompt_ids for example in asked])
        given = [said.answers[place] for place in said.scores.argmax(1)]
        found[labels] = float(np.mean([one == example.answer_ids for one, example in zip(given, asked, strict=True)]))

    with planted(model, block, lambda hidden: hidden + code * about[0][:, None, :].to(hidden)):
        LinearProbe(**settings).walk(target_of(model), attacker, then)
    handle.remove()
    return found


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("on", ["both", "forget"])
def test_a_planted_code_is_read_of_people_who_were_never_trained_on(block: int, on: str) -> None:
    found = read(code=4.0, block=block, on=on)
    assert list(found) == ["answers", "shuffled"] and found["answers"] > 0.9 and found["shuffled"] < 0.55


def test_without_the_code_there_is_nothing_to_be_read() -> None:
    assert read(code=0.0)["answers"] < 0.55


def test_the_same_twice_and_another_deal_under_another_seed() -> None:
    assert read(code=0.3) == read(code=0.3)
    assert len({read(code=0.3, seed=seed, labels=("shuffled",))["shuffled"] for seed in range(4)}) > 1


def test_what_cannot_be_learned_from_is_not_measured() -> None:
    learned = tuple(random_examples(6, seed=1, labelled=2))
    texts = (encoder().encode(text("A river in a land.")),)
    alone = Attacker(learned, None, None, ("a",) * 6)
    one_answer = Attacker(tuple(Example((start, 7, 5, 1), 2) for start in range(2, 8)))

    def then(labels: str, reader: Reader) -> None:
        raise AssertionError

    only = LinearProbe(on="forget")
    with pytest.raises(NotMeasured, match="the attacker's half holds texts alone"):
        only.walk(target_of(llama()), Attacker(texts), then)
    with pytest.raises(NotMeasured, match="needs two learned units to choose its block by; there are 1"):
        only.walk(target_of(llama()), alone, then)
    with pytest.raises(NotMeasured, match="needs two answers to tell apart"):
        only.walk(target_of(llama()), one_answer, then)
    with pytest.raises(NotMeasured, match=r"needs retain records \(--retain FILE\)"):
        LinearProbe().walk(target_of(llama()), Attacker(learned), then)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ()}, "needs different labels"),
        ({"labels": ("answers", "answers")}, "needs different labels"),
        ({"penalties": (0.0,)}, "penalties > 0, got"),
        ({"folds_of_units": 1}, "folds_of_units >= 2, got 1"),
        ({"seed": -1}, "seed >= 0, got -1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        LinearProbe(**settings)
