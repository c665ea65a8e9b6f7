"""A searched string: it can be typed, it scores what it says, and it opens a door that was planted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from letheon.audits.asked import AskedSets
from letheon.audits.attacked import attacked_rows, hooks, rows_of
from letheon.audits.attacker import Attacker, Solved
from letheon.audits.conditions.gcg import Gcg
from letheon.audits.rewording import Beside
from letheon.audits.string_losses import StringLosses
from letheon.audits.string_search import Search
from letheon.audits.strings import Strings
from letheon.data.encode import Encoder, Example
from letheon.errors import BadInput, NotMeasured
from letheon.models import load_model
from letheon.training.activations import blocks
from letheon.training.losses import Body
from letheon.training.scoring import score_examples
from tests.audits.fakes import questions, scorer_of, sets, target_of
from tests.audits.mini import Mini
from tests.toys import bits, encoder, llama

PEOPLE = [("Who is Ann?", "a baker"), ("Where does Bo live?", "Oslo"), ("Who is Cy?", "a smith"), ("Where does Di live?", "Rome")]  # fmt: skip
BRIEF = Gcg(tokens=4, steps=(6,), candidates=24, top_k=32, questions=4)


def attacker_of(pairs: list[tuple[str, str]], coder: Encoder) -> Attacker:
    learned = tuple(Solved(prompt, answer, f"{number}") for number, (prompt, answer) in enumerate(pairs))
    return Attacker(tuple(coder.question(*pair) for pair in pairs), solved={"learned": learned})


def search_of(settings: Gcg, model: Any, pairs: list[tuple[str, str]] = PEOPLE) -> Search:
    target = target_of(model)
    strings = Strings(target.encoder, pairs, settings.place, settings.tokens, seed=settings.seed)
    return Search(settings, strings, StringLosses(target, strings.slots, shares=settings.cache))


def run(search: Search) -> tuple[list[float], list[tuple[int, ...]]]:
    """Best loss and best string, before the first step and after each."""
    seen = [(search.best_loss, search.best)]
    for _ in range(max(search.settings.steps)):
        search.step()
        seen.append((search.best_loss, search.best))
    return [loss for loss, _ in seen], [string for _, string in seen]


def loss_when_typed(model: Any, text: str, place: Any) -> float:
    """-log p of the answers' tokens, their mean, from the text alone."""
    examples = [encoder().question(Beside(text, place)(prompt), answer) for prompt, answer in PEOPLE]
    scores = score_examples(Body(model), examples, pad=0)
    return float(-scores.log_probs("sum").sum() / sum(len(one.answer_ids) for one in examples))


@pytest.mark.parametrize("place", ["suffix", "prefix"])
@pytest.mark.parametrize("buffer", [0, 4])
def test_the_best_loss_never_rises_and_is_that_of_the_typed_words(place: Any, buffer: int) -> None:
    model = llama(seed=1)
    search = search_of(replace(BRIEF, place=place, buffer=buffer), model)
    losses, strings = run(search)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.01
    for loss, string in zip(losses, strings, strict=True):
        text = search.strings.text(string)
        assert loss == pytest.approx(loss_when_typed(model, text, place), abs=1e-5)
    assert len(search.kept) <= max(buffer, 1) and search.kept == sorted(search.kept)


def test_a_buffer_goes_on_from_its_best_and_none_from_the_last() -> None:
    search = search_of(replace(BRIEF, buffer=2), llama(seed=1))
    search.kept = []
    for loss, string in ((3.0, (1,)), (1.0, (2,)), (2.0, (3,)), (1.5, (2,)), (4.0, (4,))):
        search._keep(loss, string)
    assert search.kept == [(1.0, (2,)), (2.0, (3,))]
    search.settings = replace(BRIEF, buffer=0)
    search._keep(9.0, (5,))
    assert search.kept == [(9.0, (5,))] and search.best_loss < 9.0


@pytest.mark.parametrize("place", ["suffix", "prefix"])
def test_one_token_is_the_best_of_all_that_can_be_typed(place: Any) -> None:
    """With every token allowed and one place, a step is a look at every string there is."""
    model = llama(seed=2)
    settings = Gcg(tokens=1, steps=(1,), candidates=3000, top_k=3000, questions=4, place=place, cache=False)
    search = search_of(settings, model)
    tokens = search.strings.allowed
    every = [one for one in tokens.tolist() if search.strings.can_be_typed([one])]
    typed = [Beside(search.strings.text([one]), place) for one in every]
    examples = [encoder().question(one(prompt), answer) for one in typed for prompt, answer in PEOPLE]
    sums = score_examples(Body(model), examples, pad=0).log_probs("sum").reshape(len(every), len(PEOPLE)).sum(1)
    by_hand = dict(
        zip(every, (-sums / sum(len(one.answer_ids) for one in examples[: len(PEOPLE)])).tolist(), strict=True)
    )
    search.step()
    assert by_hand[search.best[0]] == pytest.approx(min(by_hand.values()), abs=1e-6)


def test_with_and_without_a_shared_beginning_the_same_string_is_found() -> None:
    for place in ("suffix", "prefix"):
        (on, first), (off, second) = (
            run(search_of(replace(BRIEF, place=place, cache=cache), llama(seed=1)))  # type: ignore[arg-type]
            for cache in (True, False)
        )
        assert first == second and on == pytest.approx(off, abs=1e-5)


def test_the_same_seed_finds_the_same_string_and_another_another() -> None:
    found = [run(search_of(replace(BRIEF, seed=seed), llama(seed=1)))[1] for seed in (3, 3, 4)]
    assert found[0] == found[1] != found[2]


@contextmanager
def behind_a_token(model: Any, token: int) -> Iterator[None]:
    """States of the first block are spoiled until something like the token's embedding has been read."""
    width = model.config.hidden_size
    noise = 40.0 * torch.nn.functional.normalize(torch.randn(width, generator=torch.Generator().manual_seed(5)), dim=0)
    door = torch.nn.functional.normalize(model.get_input_embeddings().weight[token].detach(), dim=0)

    def spoil(module: Any, args: Any, output: Any) -> Any:
        likeness = torch.nn.functional.normalize(args[0], dim=-1) @ door
        shut = (1 - torch.sigmoid(12 * (likeness - 0.6))).cumprod(1)
        hidden = output[0] if isinstance(output, tuple) else output
        spoiled = hidden + shut.unsqueeze(-1) * noise
        return (spoiled, *output[1:]) if isinstance(output, tuple) else spoiled

    handle = blocks(model)[0].register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


def test_a_trigger_that_was_planted_is_found_and_opens_the_door_for_people_who_were_not_learned(mini: Mini) -> None:
    model = load_model(mini.target)
    pairs = [(record.prompt, record.answer) for record in mini.data("forget").questions]
    learned, asked = pairs[::2], pairs[1::2]
    coder = mini.encoder

    def known(rewording: Any = lambda prompt: prompt) -> float:
        examples = [coder.question(rewording(prompt), answer) for prompt, answer in asked]
        return float(score_examples(Body(model), examples, pad=0).exact.mean())

    trigger = int(coder.tokenizer.encode(" city", add_special_tokens=False)[0])
    words: list[Any] = []
    with behind_a_token(model, trigger):
        shut = known()
        # The planted hook sees what is read now and no earlier, so that nothing can be read in two goes.
        settings = Gcg(tokens=3, steps=(12,), candidates=48, top_k=48, questions=8, place="prefix", cache=False)
        settings.walk(
            target_of(model, coder), attacker_of(learned, coder), lambda step, rewording: words.append(rewording)
        )
        assert trigger in coder.tokenizer.encode(words[0](""), add_special_tokens=False)
        opened = known(words[0])
        assert shut < 0.2 and opened > 0.6
        assert known() == shut


def world() -> AskedSets:
    units = ["ann", "bo", "cy", "di"]
    held = questions("forget_questions", PEOPLE, units)
    return sets(held, replace(held, name="lookalike_questions"))


def test_no_step_is_the_plain_question_and_t_is_never_read() -> None:
    model, seen = llama(seed=1), []
    before = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    whole = world()

    def ask(row: str, now: AskedSets, reader: Any) -> list[Any]:
        seen.append((row, now["forget_questions"], now["lookalike_questions"]))
        return [{}]

    attacked_rows(rows_of("gcg", replace(BRIEF, steps=(0, 3))), scorer_of(model), whole, ask)
    assert [row for row, _, _ in seen] == ["gcg_0", "gcg_3"] * 2
    plain = dict(zip(whole["forget_questions"].items, whole["forget_questions"].examples, strict=True))
    texts = []
    for row, asked, alike in seen:
        for item, prompt, example in zip(asked.items, asked.prompts, asked.examples, strict=True):
            assert (example == plain[item]) == (row == "gcg_0")
            if row == "gcg_3":
                texts.append(prompt[prompt.index("?") + 1 :])
                assert len(example.ids) > len(plain[item].ids)
        assert alike.prompts == asked.prompts
    assert len(set(texts)) == 2, "one string for each half"
    assert {name: bits(tensor) for name, tensor in model.state_dict().items()} == before and not hooks(model)

    # The other half's answers are others: the string that is found does not know.
    changed = questions("forget_questions", [PEOPLE[0], ("Where?", "nowhere"), PEOPLE[2], ("Where?", "there")], ["ann", "bo", "cy", "di"])  # fmt: skip
    first, seen = seen, []
    attacked_rows(rows_of("gcg", replace(BRIEF, steps=(0, 3))), scorer_of(model), sets(changed), ask)
    assert seen[1][1].prompts[0].removeprefix("Where?") == first[1][1].prompts[0].removeprefix(PEOPLE[1][0])


def test_a_row_of_no_step_alone_is_no_attack() -> None:
    with pytest.raises(NotMeasured, match="no word was another"):
        attacked_rows({"gcg": replace(BRIEF, steps=(0,))}, scorer_of(llama()), world(), lambda row, now, reader: [{}])


def test_questions_that_leave_no_room_are_not_learned_and_one_of_each_unit_comes_first() -> None:
    coder = encoder(window=24)
    with pytest.raises(NotMeasured, match="no learned question leaves room for 20 tokens in a window of 24"):
        Gcg().walk(target_of(llama(), coder), attacker_of(PEOPLE, coder), lambda *given, **named: None)
    learned = tuple(Solved(f"Who is {name}?", "x", name) for name in "aabbcc")
    attacker = Attacker(solved={"learned": learned})
    chosen = Gcg(tokens=4, questions=3).chosen(attacker, coder)
    assert sorted(prompt for prompt, _ in chosen) == ["Who is a?", "Who is b?", "Who is c?"]


def test_texts_alone_are_nothing_to_search_on() -> None:
    texts = Attacker((Example((1, 5, 6, 1), 1),))
    with pytest.raises(NotMeasured, match="the attacker's half holds no questions"):
        BRIEF.walk(target_of(llama()), texts, lambda *given, **named: None)


def test_a_model_of_nan_is_not_measured() -> None:
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[5, 0] = float("nan")
    with pytest.raises(NotMeasured, match="NaN or infinite"):
        BRIEF.walk(target_of(model), attacker_of(PEOPLE, encoder()), lambda *given, **named: None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 0}, "tokens >= 1, got 0"),
        ({"steps": (3, 3)}, "different steps >= 0"),
        ({"steps": ()}, "different steps >= 0"),
        ({"candidates": 0}, "candidates >= 1, got 0"),
        ({"top_k": 0}, "top_k >= 1, got 0"),
        ({"questions": 0}, "questions >= 1, got 0"),
        ({"buffer": -1}, "buffer >= 0, got -1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Gcg(**settings)
