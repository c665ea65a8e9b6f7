"""Answers drawn at random: from the right distribution, and the same whatever is asked beside them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from letheon.audits import sampler as module
from letheon.audits.probes.sequence_probability import SequenceProbability
from letheon.audits.sampler import Sampling, drawn, probabilities, sampled_ids, uniforms_of
from letheon.data.encode import Example
from letheon.errors import BadInput, NotMeasured
from tests.architectures.models import ARCHITECTURES, make_model
from tests.audits.fakes import asked, questions, scorer_of, sets
from tests.audits.test_scorer import prompts_of, slowly
from tests.toys import llama, random_examples

END = 1


def draw(model: Any, prompts: Sequence[Sequence[int]], lengths: Sequence[int], sampling: Sampling) -> Any:
    return sampled_ids(model, prompts, lengths, sampling, ends={END}, device="cpu")


@torch.no_grad()
def alone(model: Any, prompt: Sequence[int], most: int, sampling: Sampling) -> list[tuple[int, ...]]:
    """One answer after the other, one whole forward pass a token, by a loop over the vocabulary in float64."""
    answers = []
    for stream in uniforms_of(prompt, sampling, most).tolist():
        ids: list[int] = []
        for u in stream:
            logits = model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, -1].double()
            p = torch.softmax(logits / sampling.temperature, 0).tolist()
            kept: set[int] = set()
            for token in sorted(range(len(p)), key=lambda token: (-p[token], token)):
                if math.fsum(p[one] for one in kept) >= sampling.top_p:
                    break
                kept.add(token)
            mass, below = math.fsum(p[token] for token in kept), 0.0
            for token in sorted(kept):
                below += p[token]
                if below > u * mass:
                    break
            ids.append(token)
            if token == END:
                break
        answers.append(tuple(ids))
    return answers


@torch.no_grad()
def _between(model: Any, prompt: Sequence[int]) -> float:
    """A temperature at which some answers begin alike and some do not."""
    return float(model(input_ids=torch.tensor([prompt])).logits[0, -1].std()) / 4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_are_those_drawn_one_by_one_without_a_cache(name: str) -> None:
    """Rows that part and end at different places, prompts of several lengths, every kind of cache."""
    model = make_model(name, seed=3)
    prompts, lengths = prompts_of(4, longest=24), [5, 2, 4, 3]
    prompts += [prompts[0][::-1], prompts[1][::-1]]
    lengths += [1, 4]
    sampling = Sampling(6, temperature=_between(model, prompts[0]), top_p=0.8)
    found = draw(model, prompts, lengths, sampling)
    assert found == [alone(model, prompt, most, sampling) for prompt, most in zip(prompts, lengths, strict=True)]
    shared = sum(len(answers) - len({ids[:1] for ids in answers}) for answers in found)
    assert shared > 0 and any(len(set(answers)) > 1 for answers in found), "nothing begins alike, or nothing parts"


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_top_p_and_temperature_are_those_of_transformers(temperature: float, top_p: float) -> None:
    logits = 4 * torch.randn(50, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits))  # type: ignore[arg-type]
    ours = probabilities(logits, temperature, top_p)
    assert ((ours > 0) == (warped > float("-inf"))).all()
    torch.testing.assert_close(ours / ours.sum(-1, keepdim=True), torch.softmax(warped, -1))
    whole = torch.softmax(logits / temperature, -1)
    for row, all_of_it in zip(ours, whole, strict=True):
        least = float(row[row > 0].min())
        assert float(row.sum()) >= top_p - 1e-12 > float(row.sum()) - least - 2e-12, "not the smallest such set"
        assert float(all_of_it[row == 0].max()) <= least


def test_a_token_is_drawn_where_the_cumulated_weight_passes() -> None:
    weights = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.05, 0.0]], dtype=torch.float64)
    uniforms = torch.tensor([[0.0, 0.3124, 0.3126, 0.93, 0.94, 1 - 2**-53]], dtype=torch.float64)
    assert drawn(weights, uniforms).tolist() == [[1, 1, 3, 3, 4, 4]]
    tiny = torch.tensor([[0.1, 0.7, 0.0]], dtype=torch.float64) * 1e-300
    assert drawn(tiny, uniforms[:, -1:]).tolist() == [[1]]


def test_neither_batch_nor_order_nor_number_changes_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = llama(4), prompts_of(12, longest=6)
    lengths = [6] * 12
    sampling = Sampling(8, temperature=0.5)
    whole = draw(model, prompts, lengths, sampling)
    turned = draw(model, prompts[::-1], lengths, sampling)
    assert turned == whole[::-1]
    assert [draw(model, [prompt], [6], sampling)[0] for prompt in prompts] == whole
    assert draw(model, prompts, lengths, Sampling(3, temperature=0.5)) == [answers[:3] for answers in whole]
    monkeypatch.setattr(module, "ROWS", 20)
    monkeypatch.setattr(module, "_ENTRIES", 768 * 3)
    assert draw(model, prompts, lengths, sampling) == whole
    assert draw(model, prompts, lengths, sampling) == whole, "the same seed"
    assert draw(model, prompts, lengths, Sampling(8, temperature=0.5, seed=1)) != whole


def test_prompts_are_not_drawn_alike() -> None:
    """Streams of two prompts, of two answers and of two tokens are all different."""
    sampling = Sampling(4)
    streams = torch.stack([uniforms_of(prompt, sampling, 3) for prompt in ([5, 6], [6, 5], [56], [5, 6, 0])])
    assert len(set(streams.ravel().tolist())) == streams.numel()


@torch.no_grad()
def test_answers_come_as_often_as_their_exact_probability_says() -> None:
    """Every one-token answer of a model that is not sure, at temperature 1: chi-square below its 0.999 quantile."""
    model, prompt, n = llama(5, initializer_range=0.5), [5, 90, 33], 20_000
    p = torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1].double(), 0)
    drawings = [Sampling(n // 8, seed=seed) for seed in range(8)]
    counts = Counter(ids[0] for drawing in drawings for ids in draw(model, [prompt], [1], drawing)[0])
    common = [token for token in range(len(p)) if n * float(p[token]) > 20]
    assert len(common) > 10
    expected = [n * float(p[token]) for token in common] + [n * (1 - float(p[common].sum()))]
    observed = [counts[token] for token in common] + [n - sum(counts[token] for token in common)]
    chi_square = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    assert chi_square < chi2.ppf(0.999, df=len(common))


@torch.no_grad()
def test_whole_answers_come_as_often_as_the_exact_probe_says() -> None:
    """The most frequent answers with their end, against teacher forcing, within three sigma."""
    model, n = llama(5, initializer_range=1.0), 3000
    prompts = prompts_of(3, longest=5, seed=2)
    likely = []
    for prompt in prompts:
        (answers,) = draw(model, [prompt], [4], Sampling(200, seed=9))
        ids, _ = Counter(answers).most_common(1)[0]
        likely.append(ids)
    some = sets(asked("forget_questions", [
        Example((*prompt, *ids), len(prompt)) for prompt, ids in zip(prompts, likely, strict=True)
    ]))  # fmt: skip
    exact = SequenceProbability().score("forget_leak_at_1", some, scorer_of(model)).values
    found = draw(model, prompts, [len(ids) for ids in likely], Sampling(n))
    for p, ids, answers in zip(exact, likely, found, strict=True):
        often = sum(answer == ids for answer in answers) / n
        assert p > 0.003 and abs(often - p) < 3 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_cold_answers_are_the_greedy_ones(top_p: float) -> None:
    model, prompts = llama(6), prompts_of(7)
    cold = Sampling(3, temperature=1e-5, top_p=top_p)
    for prompt, answers in zip(prompts, draw(model, prompts, [8] * 7, cold), strict=True):
        greedy = slowly(model, prompt, 8)
        assert {tuple(token for token in ids if token != END) for ids in answers} == {tuple(greedy)}


def test_top_p_of_next_to_nothing_is_greedy_as_well() -> None:
    model, several = llama(6), questions("set", [(f"Who is {name}?", "Bru Dax") for name in ("Fel", "Jev Kip", "Lod")])
    found = scorer_of(model).samples(several, Sampling(2, top_p=1e-9))
    assert found == [[text, text] for text in scorer_of(model).answers(several)]


def test_samples_are_kept_until_the_model_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, several = llama(6), asked("set", random_examples(4))
    scorer = scorer_of(model)
    first = scorer.samples(several, Sampling(4))
    assert scorer.samples(several, Sampling(4)) is first
    assert scorer.samples(several, Sampling(4, seed=2)) != first
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    scorer.forget_results()
    assert scorer.samples(several, Sampling(4)) != first


def test_an_answer_ends_at_the_true_ones_end_and_within_the_window() -> None:
    answers = draw(llama(6, initializer_range=0.001), [[5, 6]], [60], Sampling(200))[0]  # each token about 1 in 768
    ended = [ids for ids in answers if len(ids) < 60]
    assert ended and all(ids.index(END) == len(ids) - 1 for ids in ended)
    assert draw(llama(6), [[5, 6], [7]], [0, 0], Sampling(2)) == [[(), ()], [(), ()]]
    assert all(len(ids) <= 3 for ids in draw(llama(6), [[5, 6]], [3], Sampling(20))[0])
    with pytest.raises(NotMeasured, match="a prompt of 8 tokens leaves no room"):
        scorer_of(llama(6), 8).samples(asked("set", [Example((5,) * 9, 8)]), Sampling(2))


def test_logits_that_are_none_are_not_measured() -> None:
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(NotMeasured, match="logits are NaN"):
        draw(model, [[5, 6]], [3], Sampling(2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": 0}, "samples >= 1, got 0"),
        ({"temperature": 0.0}, "a temperature > 0, got 0.0"),
        ({"temperature": math.nan}, "a temperature > 0, got nan"),
        ({"top_p": 0.0}, "0 < top_p <= 1, got 0.0"),
        ({"top_p": 1.1}, "0 < top_p <= 1, got 1.1"),
    ],
)
def test_settings_that_draw_nothing_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Sampling(**{"samples": 4, **changes})
