"""What a scorer says is what the model says when it is asked alone, slowly, without a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from letheon.audits import scorer as module
from letheon.audits.scorer import Scorer, exact_answers, refuse_broken
from letheon.data.encode import Example
from letheon.errors import NotMeasured
from letheon.models import load_model
from letheon.tiny.model import new_tiny_model, tiny_config
from letheon.training import scoring
from letheon.training.losses import Body
from tests.architectures.models import ARCHITECTURES, make_model
from tests.audits.fakes import asked, questions, scorer_of
from tests.audits.mini import Mini
from tests.toys import CHATML, chat_tokenizer, encoder, llama, random_examples, tokenizer

STRANGE = {
    "do_sample": True,
    "temperature": 3.0,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 9,
}


@torch.no_grad()
def slowly(model: Any, prompt: Sequence[int], most: int, ends: Sequence[int] = (1,)) -> list[int]:
    """Greedy tokens by one whole forward pass a token."""
    ids = list(prompt)
    for _ in range(most):
        token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


def prompts_of(count: int, *, shortest: int = 2, longest: int = 20, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(2, 700, (length,), generator=generator).tolist() for length in lengths]


def in_words(ids: Sequence[int]) -> str:
    return str(encoder().tokenizer.decode(ids, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_generation_in_padded_batches_is_generation_alone(name: str) -> None:
    """Positions, sliding windows and padding: every architecture, prompts of unlike length in one batch."""
    model = make_model(name, seed=3)
    prompts, lengths = prompts_of(9), [3, 9, 5, 12, 1, 7, 12, 4, 20]
    expected = [in_words(slowly(model, prompt, most)) for prompt, most in zip(prompts, lengths, strict=True)]
    assert scorer_of(model).continuations(prompts, lengths) == expected
    assert len(set(expected)) > 5, "a model that says one thing to all shows nothing"


def test_neither_batch_size_nor_order_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(4)
    prompts, lengths = prompts_of(30), [1 + k % 11 for k in range(30)]
    whole = scorer_of(model).continuations(prompts, lengths)
    order = np.random.default_rng(0).permutation(30).tolist()
    turned = scorer_of(model).continuations([prompts[k] for k in order], [lengths[k] for k in order])
    assert turned == [whole[k] for k in order]
    monkeypatch.setattr(module, "GENERATION_BATCH", 4)
    assert scorer_of(model).continuations(prompts, lengths) == whole


def test_a_strangers_generation_settings_are_not_obeyed() -> None:
    """A folder may ask for sampling, penalties or a least length; the audit measures its weights."""
    model = llama(4)
    prompts = prompts_of(6)
    expected = [in_words(slowly(model, prompt, 12)) for prompt in prompts]
    model.generation_config = GenerationConfig(**STRANGE)
    assert scorer_of(model).continuations(prompts, [12] * 6) == expected


def test_an_answer_ends_at_the_end_of_text_and_at_the_end_of_a_turn() -> None:
    model = llama(5)
    prompt = prompts_of(1, seed=2)[0]
    ids = slowly(model, prompt, 12, ends=())
    stop = ids[4]
    first = ids.index(stop)
    scorer = scorer_of(model)
    assert scorer.continuations([prompt], [12], stops={stop}) == [in_words(ids[:first])]
    scorer.encoder.eos = stop
    assert scorer.continuations([prompt], [12]) == [in_words(ids[:first])]


def test_a_chat_answer_stops_where_the_true_one_does() -> None:
    from letheon.data.encode import Encoder

    coder = Encoder(chat_tokenizer(CHATML), max_length=128)
    end = coder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    example = coder.question("Who is it?", "Bru")
    assert example.ids[-1] == end != coder.eos
    model = llama(0, vocab_size=len(coder.tokenizer))
    model.resize_token_embeddings(len(coder.tokenizer))
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[end] = model.model.norm.weight  # whatever it is asked, it ends its turn
    seen: list[Any] = []
    scorer = scorer_of(model, coder=coder)
    made = scorer._generate
    scorer._generate = lambda prompts, new, ends, looked: seen.append(ends) or made(prompts, new, ends, looked)  # type: ignore[method-assign,func-returns-value]
    scorer.answers(asked("set", [example]))
    assert seen == [sorted({coder.eos, end})]


@pytest.mark.parametrize("window", [24, 30])
def test_prompts_near_the_end_of_the_window(window: int) -> None:
    """None goes beyond the window (an embedding of positions would fail), and none is cut short by its neighbour."""
    model = make_model("gpt2", seed=1)
    prompts = [prompts_of(1, shortest=length, longest=length, seed=length)[0] for length in (3, 9, 14, 20, 22, 23)]
    wanted = [20, 20, 12, 8, 8, 8]
    room = [min(most, window - len(prompt)) for most, prompt in zip(wanted, prompts, strict=True)]
    expected = [in_words(slowly(model, prompt, most)) for prompt, most in zip(prompts, room, strict=True)]
    assert scorer_of(model, window).continuations(prompts, wanted) == expected
    with pytest.raises(NotMeasured, match=f"a prompt of {window} tokens leaves no room"):
        scorer_of(model, window).continuations([[5] * window], [1])


def test_nothing_asked_is_nothing_said() -> None:
    scorer = scorer_of(llama())
    assert scorer.continuations([], []) == []
    assert scorer.continuations([[5, 6], [7]], [0, 0]) == ["", ""]
    assert scorer.scores(asked("none", [])).token_log_probs == []


# --- exact answers


def test_exact_is_the_exact_match_of_the_greedy_answer(mini: Mini) -> None:
    """On a model that has learned part of what it is asked: both kinds occur."""
    model = mini.load(mini.target)
    scorer = Scorer(model, Body(model), mini.encoder, "cpu")
    known, unknown = mini.questions("forget"), mini.questions("holdout")
    mixed = asked("mixed", [*known, *unknown])
    exact = scorer.scores(mixed).exact.tolist()
    greedy = []
    for example in mixed.examples:
        ids = slowly(model, example.prompt_ids, len(example.answer_ids) + 8)
        greedy.append([*ids, 1] == list(example.answer_ids))
    assert exact == greedy
    assert sum(exact[: len(known)]) > 0.8 * len(known) and sum(exact[len(known) :]) < 0.5 * len(unknown)
    assert exact_answers(mixed, scorer).values == [float(value) for value in exact]


def test_answers_of_some_positions_are_those_of_all() -> None:
    model = llama(6)
    several = questions("set", [(f"Who is {name}?", "Bru Dax") for name in ("Fel", "Gomhus", "Jev Kip", "Lod")])
    whole = scorer_of(model).answers(several)
    some = scorer_of(model)
    assert some.answers(several, [2, 0]) == [whole[2], whole[0]]
    assert some.answers(several) == whole
    assert some.answers(several, []) == []


def test_nothing_is_asked_twice_until_the_model_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(6)
    scorer = scorer_of(model)
    several = asked("set", random_examples(6))
    first, said = scorer.scores(several), scorer.answers(several)
    calls: list[int] = []
    monkeypatch.setattr(module, "score_batches", lambda *_, **__: calls.append(1))
    monkeypatch.setattr(scorer, "_generate", lambda *_: calls.append(1))
    assert scorer.scores(several) is first and scorer.answers(several) == said and not calls
    monkeypatch.undo()
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    scorer.forget_results()
    assert not np.array_equal(scorer.scores(several).log_probs("sum"), first.log_probs("sum"))
    assert scorer.answers(several) != said


def test_a_set_in_another_halfs_name_is_asked_itself() -> None:
    """An attacker's two halves are asked under one name, one after the other."""
    scorer = scorer_of(llama())
    halves = [asked("forget_questions", random_examples(3, seed=first)) for first in (0, 3)]
    wanted = [scorer_of(llama()).scores(half).log_probs("sum").tolist() for half in halves]
    found = []
    for half in halves:
        scorer.forget_results()
        found.append(scorer.scores(half).log_probs("sum").tolist())
    assert found == wanted and wanted[0] != wanted[1]


def test_numbers_that_are_none_are_not_measured() -> None:
    """The arg-max of NaN is a token like any other: an answer made of it would be a wrong one instead of none."""
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 3] = float("nan")
    scorer = scorer_of(model)
    several = asked("set", [Example((5, 6, 7, 8), 2)])
    with pytest.raises(NotMeasured, match="log-probabilities on set are not finite"):
        scorer.scores(several)
    with pytest.raises(NotMeasured, match="logits are NaN"):
        scorer.answers(several)


def test_moments_are_made_in_the_first_pass_where_the_set_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[bool] = []
    score = module.score_batches

    def counted(body: Any, batches: Any, *, moments: bool = False) -> Any:
        passes.append(moments)
        return score(body, batches, moments=moments)

    monkeypatch.setattr(module, "score_batches", counted)
    scorer = scorer_of(llama())
    bare = asked("bare", random_examples(3))
    ready = replace(asked("ready", random_examples(3)), with_moments=True)
    assert scorer.scores(bare).moments is None and scorer.scores(ready).moments is not None
    assert scorer.scores(bare, moments=True).moments is not None and scorer.scores(ready, moments=True) is not None
    assert passes == [False, True, True]
    scorer.scores(bare)
    assert len(passes) == 3


def slow_lead(model: Any, ids: Sequence[int]) -> float:
    """By how much the likeliest next token leads the second, from one plain pass, in float64."""
    logits = model(input_ids=torch.tensor([list(ids)])).logits[0, -1].double()
    first, second = logits.sort(descending=True).values[:2].tolist()
    return float(first - second)


@torch.no_grad()
def test_the_smallest_lead_is_that_of_a_slow_greedy_answer() -> None:
    """By teacher forcing up to the first wrong token, and by generation up to the end: one and the same walk."""
    model, coder = llama(0), encoder()
    examples = [coder.question(f"Who is {name}?", f"{name} {name}") for name in ("Ann", "Bob", "Cy Dunn")]
    several = replace(asked("forget_questions", examples), items=("a", "b", "c"))
    for one, example in zip(scorer_of(model).scores(several).smallest_leads(), examples, strict=True):
        ids, expected = list(example.prompt_ids), []
        for token in example.answer_ids:
            expected.append(slow_lead(model, ids))
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] != token:
                break
        assert one == pytest.approx(min(expected), abs=1e-5)
    scorer = scorer_of(model)
    given = scorer.continued_ids([example.prompt_ids for example in examples], [3, 9, 5], items=several.items)
    for item, example, made, most in zip(several.items, examples, given, [3, 9, 5], strict=True):
        steps = min(len(made) + 1, most)
        ids, expected = list(example.prompt_ids), []
        for token in [*made, 0][:steps]:
            expected.append(slow_lead(model, ids))
            ids.append(token)
        assert scorer._leads[item] == pytest.approx(min(expected), abs=1e-5)


def test_what_hangs_by_a_hair_is_named_until_the_model_changes() -> None:
    """A head with one row twice: wherever that token is the likeliest, another is just as likely."""
    model, coder = llama(0), encoder()
    examples = [coder.question(f"Who is {name}?", name) for name in ("Ann", "Bob", "Eve", "Cy Dunn")]
    several = replace(asked("forget_questions", examples), items=("a", "b", "c", "d"))
    texts = replace(several, name="forget_texts")
    assert scorer_of(model).near_ties() == []
    plain = scorer_of(model)
    plain.scores(several)
    assert plain.near_ties() == []
    ids = torch.tensor([examples[1].prompt_ids])
    with torch.no_grad():
        likeliest = int(model(input_ids=ids).logits[0, -1].argmax())
        model.lm_head.weight[7 if likeliest != 7 else 8] = model.lm_head.weight[likeliest]
    scorer = scorer_of(model)
    scorer.scores(texts)
    assert scorer.near_ties() == [], "a text is no answer"
    scorer.scores(several)
    found = scorer.near_ties()
    assert "b" in found
    generated = scorer_of(model)
    generated.continued_ids([example.prompt_ids for example in examples], [1] * 4, items=several.items)
    assert "b" in generated.near_ties() and set(generated.near_ties()) <= set(found)
    scorer.forget_results()
    assert scorer.near_ties() == []


def test_looking_at_leads_leaves_the_logits_as_they_were() -> None:
    logits = torch.randn(6, 11, generator=torch.Generator().manual_seed(0))
    before, largest = logits.clone(), logits.argmax(-1)
    leads = scoring._leads(logits, largest)
    top = before.double().sort(descending=True, dim=-1).values
    assert torch.equal(logits, before) and torch.allclose(leads.double(), top[:, 0] - top[:, 1], atol=1e-6)


def test_letters_are_asked_once_until_the_model_changes() -> None:
    model = llama(6)
    scorer, several = scorer_of(model), asked("set", random_examples(5))
    first = scorer.first_log_probs(several, [5, 6])
    assert first.shape == (5, 2) and scorer.first_log_probs(several, [5, 6]) is first
    assert scorer.first_log_probs(several, [6, 5]) == pytest.approx(first[:, ::-1])
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    scorer.forget_results()
    assert not np.allclose(scorer.first_log_probs(several, [5, 6]), first)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    scorer.forget_results()
    with pytest.raises(NotMeasured, match="log-probabilities on set are not finite"):
        scorer.first_log_probs(several, [5, 6])


def test_continuations_in_tokens_are_those_in_words() -> None:
    scorer, prompts = scorer_of(llama(4)), prompts_of(7)
    ids = scorer.continued_ids(prompts, [9] * 7)
    assert [in_words(each) for each in ids] == scorer.continuations(prompts, [9] * 7)
    assert [slowly(scorer.model, prompt, 9) for prompt in prompts] == ids


def test_a_weight_that_is_no_number_is_found_where_logits_are_finite_all_the_same() -> None:
    """Fused attention turns a NaN query into 0: an answer of eight tokens looks like one of a whole model."""
    model = new_tiny_model(0, tiny_config(layers=2, width=64)).eval()
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[-1] = float("nan")
        assert torch.isfinite(model(input_ids=torch.arange(2, 10)[None]).logits).all()
    with pytest.raises(NotMeasured, match=r"tensor model\.layers\.1\.self_attn\.q_proj\.weight of the model holds NaN"):
        refuse_broken(model.state_dict())
    refuse_broken(new_tiny_model(0, tiny_config(layers=2, width=64)).state_dict())


def test_a_model_that_drops_out_is_asked_without_it(tmp_path: Path) -> None:
    """A folder whose configuration asks for dropout: what is loaded is never in training mode."""
    model = make_model("gpt2", seed=1)
    model.config.attn_pdrop = model.config.resid_pdrop = model.config.embd_pdrop = 0.5
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.resid_pdrop == 0.5 and not any(part.training for part in loaded.modules())
    several = asked("forget_questions", [encoder().question(f"Who is {name}?", name) for name in ("Ann", "Bob")])
    first, second = (scorer_of(loaded).scores(several).log_probs("sum") for _ in range(2))
    assert first.tolist() == second.tolist()
    loaded.train()
    dropped = scorer_of(loaded).scores(several).log_probs("sum")
    assert dropped.tolist() == first.tolist(), "a scorer asks in evaluation mode whatever it is given"
