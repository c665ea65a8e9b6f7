"""Token by token: shares by hand, greedy generation from every beginning, what is no target."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from letheon.audits.probes.memorisation import Memorisation, exact_memorisation, extraction_strength
from letheon.audits.scorer import Scorer
from letheon.errors import NotMeasured
from letheon.training.losses import Body
from letheon.training.scoring import ExampleScores
from tests.audits.fakes import ScriptedScorer, asked, scorer_of, sets, uniform_model
from tests.audits.mini import Mini
from tests.toys import encoder, llama, random_examples, text


def right(*values: int) -> Any:
    return np.array(values, dtype=np.bool_)


def test_strength_by_its_definition_over_all_patterns() -> None:
    """1 - k / T with the least k behind which all is right; both are 1 together, and neither leaves [0, 1]."""
    for length in range(1, 9):
        for pattern in product([0, 1], repeat=length):
            least = next(k for k in range(length + 1) if all(pattern[k:]))
            strength, share = extraction_strength(right(*pattern)), exact_memorisation(right(*pattern))
            assert strength == pytest.approx(1 - least / length)
            assert share == pytest.approx(sum(pattern) / length) and share >= strength - 1e-12
            assert (strength == 1) == (share == 1) and (pattern[-1] == 1) == (strength > 0)


class Told(ScriptedScorer):
    """Knows for each token whether it is right."""

    def __init__(self, told: dict[str, list[list[int]]]) -> None:
        super().__init__()
        self.told = told

    def scores(self, one: Any, *, moments: bool = False) -> ExampleScores:
        return ExampleScores([], [right(*values) for values in self.told[one.name]])


def test_the_end_of_text_is_no_target_and_a_cut_text_has_none() -> None:
    whole, cut = encoder().encode(text("He ran home.")), encoder(6).encode(text("He ran home over the hill by day."))
    assert cut.cut and not whole.cut
    two = sets(asked("forget_texts", [whole, cut]), asked("forget_questions", random_examples(1)))
    told = Told({"forget_texts": [[1, 1, 0, 1, 1, 0], [0, 1, 1, 1, 0]], "forget_questions": [[0, 1, 1, 0]]})
    found = {column: Memorisation().score(column, two, told).values for column in Memorisation.columns}
    assert found["exact_memorisation_texts"] == pytest.approx([4 / 5, 3 / 5])
    assert found["extraction_strength_texts"] == pytest.approx([2 / 5, 0.0])
    assert found["exact_memorisation_questions"] == pytest.approx([2 / 3])
    assert found["extraction_strength_questions"] == pytest.approx([2 / 3])


@torch.no_grad()
def test_strength_is_what_greedy_generation_gives_away(mini: Mini) -> None:
    """The shortest beginning of a learned text from which the model says the rest, found by asking."""
    model = mini.load(mini.target)
    data = mini.data("forget").texts[:3] + mini.data("holdout").texts[:2]
    examples = mini.encoder.encode_all(data)
    values = Memorisation().score(
        "extraction_strength_texts", sets(asked("forget_texts", examples)), Scorer(model, Body(model), mini.encoder, "cpu")
    ).values  # fmt: skip
    for example, value in zip(examples, values, strict=True):
        target = example.ids[1:-1]
        logits = model(input_ids=torch.tensor([example.ids])).logits[0].argmax(-1)[: len(target)].tolist()
        wrong = [place for place, token in enumerate(target) if logits[place] != token]
        k = wrong[-1] + 1 if wrong else 0
        ids = list(example.ids[: 1 + k])
        while len(ids) < len(example.ids) - 1:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert tuple(ids[1:]) == target and value == pytest.approx(1 - k / len(target))
    assert max(values) > 0.5 > min(values)


def test_a_uniform_model_holds_nothing_and_control_and_nothing_are_told() -> None:
    both = sets(
        asked("forget_questions", random_examples(4, labelled=3)),
        asked("holdout_questions", random_examples(3, seed=2, labelled=2)),
    )
    assert Memorisation().score("exact_memorisation_questions", both, scorer_of(uniform_model())).values == [0.0] * 4
    control = Memorisation().score("extraction_strength_questions", both, scorer_of(llama()), role="holdout")
    assert control.items == both["holdout_questions"].items
    with pytest.raises(NotMeasured, match="forget_questions/0 has no token beside the end"):
        alone = sets(asked("forget_questions", random_examples(1, labelled=1)))
        Memorisation().score("exact_memorisation_questions", alone, scorer_of(llama()))
    with pytest.raises(NotMeasured, match="the forget set holds no texts"):
        Memorisation().score("exact_memorisation_texts", both, scorer_of(llama()))
