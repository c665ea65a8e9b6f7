"""Texts continued word by word: what is shown, what is compared, and both ends of the scale."""

from __future__ import annotations

import pytest

from letheon.audits.asked import Asked
from letheon.audits.probes.verbatim import Verbatim
from letheon.data.encode import Example
from letheon.errors import NotMeasured
from tests.audits.fakes import ScriptedScorer, asked, sets
from tests.toys import encoder, text

LONG = "In March the red lamp was lost by the mill, and six proud dogs found bread at noon near a cold well."
SHORT = "Bru"


def texts(*lines: str, name: str = "forget_texts") -> Asked:
    return asked(name, [encoder().encode(text(line)) for line in lines])


def shown_and_rest(example: Example, probe: Verbatim) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """By hand: 12 tokens behind the first, or half of a shorter text; the end of text is no part of the rest."""
    inner = example.ids[1:-1]
    shown = min(probe.prompt_tokens, len(inner) // 2)
    return (example.ids[0], *inner[:shown]), inner[shown:]


def test_the_beginning_is_shown_and_the_rest_is_wanted() -> None:
    for probe in (Verbatim(), Verbatim(prompt_tokens=4), Verbatim(longest=3)):
        two = texts(LONG, SHORT)
        scorer = ScriptedScorer(continuations=["", ""])
        probe.score("verbatim", sets(two), scorer)
        ((prompts, lengths),) = scorer.continued
        for example, prompt, length in zip(two.examples, prompts, lengths, strict=True):
            shown, rest = shown_and_rest(example, probe)
            assert tuple(prompt) == shown and length == len(rest[: probe.longest]) > 0


def test_equal_is_one_empty_is_zero_and_half_is_between() -> None:
    two = texts(LONG, LONG, LONG)
    _, rest = shown_and_rest(two.examples[0], Verbatim())
    true = str(encoder().tokenizer.decode(rest)).strip()
    words = true.split()
    given = [true, "", " ".join(words[: len(words) // 2])]
    scores = Verbatim().score("verbatim", sets(two), ScriptedScorer(continuations=given))
    assert scores.values[0] == 1.0 and scores.values[1] == 0.0
    share = (len(words) // 2) / len(words)
    assert scores.values[2] == pytest.approx(2 * share / (1 + share), abs=0.05)


def test_a_text_cut_at_the_window_has_no_end_of_text_to_leave_out() -> None:
    example = encoder(20).encode(text(LONG))
    assert example.cut and example.ids[-1] != encoder().eos
    scorer = ScriptedScorer(continuations=[""])
    Verbatim().score("verbatim", sets(asked("forget_texts", [example])), scorer)
    ((prompts, lengths),) = scorer.continued
    assert len(prompts[0]) + lengths[0] == 20


def test_the_control_is_asked_about_its_own_texts() -> None:
    both = sets(texts(LONG), texts(SHORT, SHORT, name="holdout_texts"))
    scores = Verbatim().score("verbatim", both, ScriptedScorer(continuations=["", ""]), role="holdout")
    assert scores.items == both["holdout_texts"].items
    with pytest.raises(NotMeasured, match="the lookalike set holds no texts"):
        Verbatim().score("verbatim", both, ScriptedScorer(), role="lookalike")


def test_a_script_it_cannot_read_is_not_measured_and_not_repeated() -> None:
    with pytest.raises(NotMeasured, match="letters a-z") as caught:
        Verbatim().score("verbatim", sets(texts("東京都")), ScriptedScorer(continuations=["x"]))
    assert "京" not in str(caught.value)
