"""A prompt continued behind a kept beginning says what it says when it is read from its first token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from letheon.audits import shared_prefix as module
from letheon.audits.shared_prefix import common_prefix, continuations
from letheon.errors import NotMeasured
from tests.architectures.models import ARCHITECTURES, make_model
from tests.audits.fakes import scorer_of
from tests.toys import encoder, llama


def prompts(seed: int = 0, *, shared: int = 30, count: int = 9) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(2, 700, (n,), generator=generator).tolist()  # noqa: E731
    first = draw(shared)
    return [[*first, *draw(1 + (5 * at) % 11)] for at in range(count)]


@torch.no_grad()
def slowly(model: Any, prompt: list[int], most: int) -> str:
    ids = list(prompt)
    for _ in range(most):
        token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token == 1:
            break
        ids.append(token)
    return str(encoder().tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_equals_reading_every_prompt_alone(name: str) -> None:
    model = make_model(name, seed=3)
    given = prompts()
    expected = [slowly(model, prompt, 12) for prompt in given]
    assert len(set(expected)) > 4, "a model that says one thing to all shows nothing"
    assert continuations(scorer_of(model), given, 12) == expected


def test_the_beginning_is_read_once_and_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(4)
    given = prompts(1)
    whole = continuations(scorer_of(model), given, 8)
    monkeypatch.setattr(module, "BATCH", 2)
    seen: list[int] = []
    handle = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    assert continuations(scorer_of(model), given, 8) == whole
    handle.remove()
    assert sum(length >= 30 for length in seen) == 1 and max(seen) == common_prefix(given)


def test_a_token_of_every_prompt_is_left_to_be_read() -> None:
    assert common_prefix([[5, 6], [5, 6, 7]]) == 1 and common_prefix([[5, 6, 8]]) == 2


def test_nothing_in_common_is_no_fault() -> None:
    model = llama(4)
    given = [[5, 6, 7], [8, 9], [10]]
    assert common_prefix(given) == 0 == common_prefix([])
    assert continuations(scorer_of(model), given, 6) == [slowly(model, prompt, 6) for prompt in given]


def test_edges_are_kept_and_an_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """MUSE cuts at line ends: where these were stripped, the text behind them would stand for the answer."""
    ids = encoder().tokenizer.encode("\n\nQuestion", add_special_tokens=False)
    monkeypatch.setattr(module, "_generate", lambda *_: [[*ids, 1, 5], [*ids, 7]])
    model, given = llama(0), [[5, 6], [5, 7]]
    words = encoder().tokenizer.decode([7])
    assert continuations(scorer_of(model), given, 9) == ["\n\nQuestion", f"\n\nQuestion{words}"]
    assert continuations(scorer_of(model), given, 9, stops=[ids[0]]) == ["", ""]


def test_nan_is_not_an_answer() -> None:
    model = llama(0)
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(NotMeasured, match="NaN"):
        continuations(scorer_of(model), [[5, 6], [5, 7]], 3)
