"""A text that makes a model's states the original's: it can be typed, it is as long as it may be, and it opens a door."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from letheon.audits.attacked import attacked_rows, hooks, rows_of
from letheon.audits.attacker import Attacker, Solved
from letheon.audits.conditions.gcg_enhanced import GcgEnhanced, own_answers, states_without
from letheon.audits.rewording import Beside
from letheon.audits.scorer import SPARE_TOKENS
from letheon.audits.string_losses import StateLosses, StringLosses
from letheon.audits.string_search import Search
from letheon.data.encode import Encoder
from letheon.errors import BadInput, NotMeasured
from letheon.models import ModelFolder, inspect_model, load_model
from letheon.training.activations import caught
from letheon.training.losses import Body
from letheon.training.scoring import score_examples
from tests.architectures.models import save_model_folder
from tests.audits.conditions.test_gcg import PEOPLE, behind_a_token, world
from tests.audits.fakes import questions, scorer_of, sets, target_of
from tests.audits.mini import Mini
from tests.toys import bits, encoder, llama

BRIEF = GcgEnhanced(tokens=5, spare=2, steps=(8,), questions=4, buffer=4)
EVERY_MOVE = replace(BRIEF, swap=0.25, insert=0.25, delete=0.25, steps=(24,))


def search_of(settings: GcgEnhanced, model: Any = None, original: Any = None) -> Search:
    return settings.search(target_of(model or llama(seed=1)), original or llama(seed=2), PEOPLE)


def run(search: Search, steps: int) -> tuple[list[float], list[tuple[int, ...]]]:
    """Best loss and best text, before the first step and after each."""
    seen = [(search.best_loss, search.best)]
    for _ in range(steps):
        search.step()
        seen.append((search.best_loss, search.best))
    return [loss for loss, _ in seen], [string for _, string in seen]


def states_when_typed(model: Any, original: Any, text: str, layer: int) -> float:
    """Distance of states at all tokens behind the text that both have, one question at a time, from the text alone."""
    apart = size = 0.0
    for prompt, answer in own_answers(target_of(model), original, PEOPLE, room=8):
        found = []
        for who, said in ((model, Beside(text, "prefix")(prompt)), (original, prompt)):
            ids = encoder().question(said, answer).ids
            with torch.no_grad():
                states = who(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]
            found.append((ids, states.double()))
        (ids, mine), (plain, theirs) = found
        same = 0
        while same < min(len(ids), len(plain)) and ids[-1 - same] == plain[-1 - same]:
            same += 1
        mine, theirs = mine[len(ids) - same : -1], theirs[len(plain) - same : -1]
        apart += float((mine - theirs).square().sum())
        size += float(theirs.square().sum())
    return apart / size


@pytest.mark.parametrize("aim", ["states", "answers"])
def test_the_best_loss_never_rises_and_is_that_of_the_typed_words(aim: Any) -> None:
    model, original = llama(layers=3, seed=1), llama(layers=3, seed=2)
    search = search_of(replace(BRIEF, aim=aim, fluency=0.0, repetition=0.0), model, original)
    losses, strings = run(search, 10)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.001
    for loss, string in zip(losses, strings, strict=True):
        text = search.strings.text(string)
        if aim == "states":
            assert loss == pytest.approx(states_when_typed(model, original, text, 1), abs=1e-5)
        else:
            asked = own_answers(target_of(model), original, PEOPLE, room=8)
            examples = [encoder().question(Beside(text, "prefix")(prompt), answer) for prompt, answer in asked]
            lost = -score_examples(Body(model), examples, pad=0).log_probs("sum").sum()
            assert loss == pytest.approx(lost / sum(len(one.answer_ids) for one in examples), abs=1e-5)


def test_every_move_keeps_the_length_within_its_bounds_and_what_is_kept_can_be_typed() -> None:
    search = search_of(EVERY_MOVE)
    lengths = set()
    for _ in range(24):
        search.step()
        lengths |= {len(tokens) for _, tokens in search.kept}
        assert len(search.kept) <= 4 and search.kept == sorted(search.kept)
        assert all(bool(search.strings.surviving([tokens])[0]) for _, tokens in search.kept)
        assert search.strings.can_be_typed(search.best)
    assert lengths == {5, 6, 7}


@pytest.mark.parametrize("move", ["swap", "insert", "delete"])
def test_each_move_is_what_its_name_says(move: str) -> None:
    search = search_of(replace(BRIEF, **{"swap": 0.0, "insert": 0.0, "delete": 0.0, move: 1.0}))
    current = search.best if move != "delete" else (*search.best, search.best[0])
    near = search.settings.near(search, current)
    assert near and len(set(near)) == len(near) <= 16
    for one in near:
        if move == "swap":
            assert len(one) == len(current) and sum(a != b for a, b in zip(one, current, strict=True)) == 1
        longer, shorter = (one, current) if move == "insert" else (current, one)
        if move != "swap":
            assert any((*longer[:at], *longer[at + 1 :]) == shorter for at in range(len(longer)))
    at_bounds = {"insert": (*current, *current[:2]), "delete": search.best}
    if move in at_bounds:  # no room for the move: a swap takes its place
        assert {len(one) for one in search.settings.near(search, at_bounds[move])} == {len(at_bounds[move])}


def test_a_string_is_gone_on_from_once() -> None:
    search = search_of(replace(BRIEF, buffer=64))
    _, first = search.kept[0]
    search.step()
    kept = [tokens for _, tokens in search.kept]
    assert first not in kept and 1 < len(kept) <= 16, "all that were looked at, and not the one they come from"


def test_a_text_that_some_question_does_not_take_is_gone_on_from_and_never_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = search_of(BRIEF)
    first = search.best
    monkeypatch.setattr(search.strings, "can_be_typed", lambda tokens: False)
    search._keep(-1.0, (2, 3))
    assert search.kept[0] == (-1.0, (2, 3)) and search.best == first


def test_a_search_that_finds_nothing_to_type_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Otherwise the plain question would be asked in its name."""
    original = folder_of(llama(seed=2), tmp_path)
    monkeypatch.setattr(Search, "_keep", lambda self, loss, tokens: self.kept.append((loss, tokens)))
    with pytest.raises(NotMeasured, match="no text was found in 8 steps that can be typed"):
        BRIEF.walk(target_of(llama(seed=1)), attacker_of(PEOPLE, encoder(), original), lambda *given, **named: None)


def test_no_distance_between_a_model_and_itself_behind_nothing_or_behind_what_it_cannot_see() -> None:
    model = llama(layers=3, seed=1)
    search = search_of(replace(BRIEF, tokens=4), model, model)
    (_, losses), *_ = search.losses.parts  # type: ignore[attr-defined]
    assert isinstance(losses, StateLosses) and float(losses.of([search.best])[0]) > 0.01
    plain = [encoder().question(prompt, answer).ids for prompt, answer in search.strings.wordings]
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
    blind = replace(losses, wanted=states_without(model, plain, losses.slots, 1, device="cpu"))
    for string in (search.best, search.strings.first):
        assert float(blind.of([string])[0]) < 1e-9
    bare = [replace(slot, after=ids, rest=len(ids) - (len(slot.after) - slot.rest)) for slot, ids in zip(losses.slots, plain, strict=True)]  # fmt: skip
    seeing = llama(layers=3, seed=1)
    empty = StateLosses(target_of(seeing), bare, states_without(seeing, plain, bare, 1, device="cpu"), 1)
    assert [len(one) for one in empty.wanted] == [len(ids) - 1 for ids in plain]
    assert float(empty.of([()])[0]) < 1e-9


def test_states_are_those_at_the_tokens_that_both_questions_have() -> None:
    """Behind a text the first word has a space before it and is another token."""
    model, search = llama(layers=3, seed=2), search_of(BRIEF, llama(layers=3, seed=1), llama(layers=3, seed=2))
    (_, losses), *_ = search.losses.parts  # type: ignore[attr-defined]
    for slot, wanted, (prompt, answer) in zip(losses.slots, losses.wanted, search.strings.wordings, strict=True):
        ids = encoder().question(prompt, answer).ids
        count = len(wanted)
        assert ids[-count - 1 :] == slot.after[-count - 1 :] and len(slot.after) == count + 2
        with caught(model, [1]) as hidden, torch.no_grad():
            model(input_ids=torch.tensor([ids]))
        assert torch.allclose(wanted, hidden[1][0, -count - 1 : -1], atol=1e-6)


def test_with_and_without_a_shared_beginning_the_same_text_is_found() -> None:
    for aim in ("states", "answers"):
        (on, first), (off, second) = (
            run(search_of(replace(EVERY_MOVE, aim=aim, cache=cache)), 6)  # type: ignore[arg-type]
            for cache in (True, False)
        )
        assert first == second and on == pytest.approx(off, abs=1e-5)


def test_the_same_seed_finds_the_same_text_and_another_another() -> None:
    found = [run(search_of(replace(BRIEF, seed=seed)), 4)[1] for seed in (3, 3, 4)]
    assert found[0] == found[1] != found[2]


def test_the_answers_are_the_originals_own_and_not_those_of_the_file() -> None:
    original = llama(seed=2)
    asked = own_answers(target_of(llama(seed=1)), original, PEOPLE, room=8)
    assert [prompt for prompt, _ in asked] == [prompt for prompt, _ in PEOPLE]
    for (prompt, said), (_, answer) in zip(asked, PEOPLE, strict=True):
        ids = encoder().prompt_ids(prompt)
        start = len(ids)
        for _ in range(len(encoder().question(prompt, answer).answer_ids) + SPARE_TOKENS):
            with torch.no_grad():
                ids = [*ids, int(original(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
            if ids[-1] == encoder().eos:
                break
        assert said == encoder().tokenizer.decode(ids[start:], skip_special_tokens=True).strip() != answer


def folder_of(model: Any, path: Path) -> ModelFolder:
    return inspect_model(save_model_folder(model, path))


def attacker_of(pairs: list[tuple[str, str]], coder: Encoder, original: ModelFolder | None) -> Attacker:
    learned = tuple(Solved(prompt, answer, f"{number}") for number, (prompt, answer) in enumerate(pairs))
    examples = tuple(coder.question(*pair) for pair in pairs)
    return Attacker(examples, original=original, solved={"learned": learned})


def test_a_trigger_that_was_planted_is_found_and_opens_the_door_for_people_who_were_not_learned(mini: Mini) -> None:
    model, coder = load_model(mini.target), mini.encoder
    pairs = [(record.prompt, record.answer) for record in mini.data("forget").questions]
    learned, asked = pairs[::2], pairs[1::2]

    def known(rewording: Any = lambda prompt: prompt) -> float:
        examples = [coder.question(rewording(prompt), answer) for prompt, answer in asked]
        return float(score_examples(Body(model), examples, pad=0).exact.mean())

    trigger = int(coder.tokenizer.encode(" city", add_special_tokens=False)[0])
    words: list[Any] = []
    with behind_a_token(model, trigger):
        shut = known()
        # The planted hook sees what is read now and no earlier, so that nothing can be read in two goes.
        settings = GcgEnhanced(tokens=3, spare=2, steps=(25,), candidates=32, questions=8, cache=False)
        attacker = attacker_of(learned, coder, inspect_model(mini.target))
        settings.walk(target_of(model, coder), attacker, lambda step, rewording: words.append(rewording))
        assert trigger in coder.tokenizer.encode(words[0](""), add_special_tokens=False)
        opened = known(words[0])
        assert shut < 0.2 and opened > 0.6
        assert known() == shut


def test_no_step_is_the_plain_question_and_t_is_never_read(tmp_path: Path) -> None:
    model, original, seen = llama(seed=1), folder_of(llama(seed=2), tmp_path), []
    before = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    whole = world()

    def ask(row: str, now: Any, reader: Any) -> list[Any]:
        seen.append((row, now["forget_questions"]))
        return [{}]

    rows = rows_of("gcg", replace(BRIEF, steps=(0, 2)))
    attacked_rows(rows, scorer_of(model), whole, ask, original=original)
    assert [row for row, _ in seen] == ["gcg_0", "gcg_2"] * 2
    plain = dict(zip(whole["forget_questions"].items, whole["forget_questions"].examples, strict=True))
    for row, asked in seen:
        for item, example in zip(asked.items, asked.examples, strict=True):
            assert (example == plain[item]) == (row == "gcg_0")
    assert {name: bits(tensor) for name, tensor in model.state_dict().items()} == before and not hooks(model)

    # The other half's questions are others: the text that is found does not know.
    changed = questions("forget_questions", [PEOPLE[0], ("Where?", "nowhere"), PEOPLE[2], ("Where?", "there")], ["ann", "bo", "cy", "di"])  # fmt: skip
    first, seen = seen, []
    attacked_rows(rows, scorer_of(model), sets(changed), ask, original=original)
    assert seen[1][1].prompts[0].removesuffix("Where?") == first[1][1].prompts[0].removesuffix(PEOPLE[1][0])


def test_it_needs_the_original_of_the_same_shape_and_room(tmp_path: Path) -> None:

    def walk(settings: GcgEnhanced, original: ModelFolder | None, window: int = 128, **of: Any) -> None:
        attacker = attacker_of(PEOPLE, encoder(window), original)
        settings.walk(target_of(llama(seed=1), encoder(window), **of), attacker, lambda *given, **named: None)

    with pytest.raises(NotMeasured, match=r"needs the original \(--original DIR\)"):
        walk(BRIEF, None)
    other = folder_of(llama(layers=3, seed=2), tmp_path / "deep")
    with pytest.raises(NotMeasured, match="of another shape, so that states cannot be compared; use aim answers"):
        walk(BRIEF, other)
    walk(replace(BRIEF, aim="answers", steps=(1,)), other)
    with pytest.raises(NotMeasured, match="no learned question leaves room for 120 tokens in a window of 100"):
        walk(GcgEnhanced(), other, window=100)
    turned = replace(other, config={**other.config, "letheon_rotation": {"online": {}}})
    with pytest.raises(NotMeasured, match=r"may stand in another basis than the original's\. Use aim answers"):
        walk(BRIEF, other, folder=turned)
    with pytest.raises(NotMeasured, match="layer 7 was asked for, and the model's layers are 0 to 1"):
        walk(replace(BRIEF, layer=7), folder_of(llama(seed=2), tmp_path / "same"))


def test_a_model_of_nan_is_not_measured(tmp_path: Path) -> None:
    model, original = llama(), folder_of(llama(seed=2), tmp_path)
    with torch.no_grad():
        model.lm_head.weight[5, 0] = float("nan")
    with pytest.raises(NotMeasured, match="NaN or infinite"):
        BRIEF.walk(target_of(model), attacker_of(PEOPLE, encoder(), original), lambda *given, **named: None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 1}, "tokens >= 2, got 1"),
        ({"spare": -1}, "spare >= 0, got -1"),
        ({"steps": (3, 3)}, "different steps >= 0"),
        ({"steps": ()}, "different steps >= 0"),
        ({"candidates": 0}, "candidates >= 1, got 0"),
        ({"top_k": 0}, "top_k >= 1, got 0"),
        ({"questions": 0}, "questions >= 1, got 0"),
        ({"buffer": 0}, "buffer >= 1, got 0"),
        ({"layer": -1}, "layer >= 0 or null, got -1"),
        ({"fluency": -0.1}, "fluency >= 0, got -0.1"),
        ({"swap": 0.5, "insert": 0.4, "delete": 0.2}, r"a sum of at most 1, got \[0.5, 0.4, 0.2\]"),
        ({"swap": -0.1}, r"swap, insert and delete >= 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        GcgEnhanced(**settings)


def test_the_aim_decides_what_is_compared() -> None:
    kinds = {aim: type(search_of(replace(BRIEF, aim=aim)).losses.parts[0][1]) for aim in ("states", "answers")}  # type: ignore[arg-type,attr-defined]
    assert kinds == {"states": StateLosses, "answers": StringLosses}
