"""Greedy continuations of prompts that all begin alike: the common beginning is read once and its keys and values kept.

What is common is found in the tokens, never in the text: a text cut anywhere may be tokens that its whole does not
have. The rest of each prompt is padded on its left, behind the common part, and positions are counted without padding.
A model whose layers see a window of tokens only would count padding among them, so there only prompts of one length
share a batch.

Source: this project.  Checked against: every prompt continued alone from its first token, on every architecture.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from letheon.audits.scorer import Scorer
from letheon.errors import NotMeasured

BATCH = 64


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; at least one token of each is left over.

    >>> common_prefix([[1, 2, 3], [1, 2, 4, 5]]), common_prefix([[1, 2], [1, 2, 3]])
    (2, 1)
    """
    if not prompts:
        return 0
    shortest = min(map(len, prompts)) - 1
    return next((place for place in range(shortest) if len({prompt[place] for prompt in prompts}) > 1), shortest)


@torch.no_grad()
def continuations(
    scorer: Scorer, prompts: Sequence[Sequence[int]], new_tokens: int, *, stops: Iterable[int] = ()
) -> list[str]:
    """What the model says behind each prompt, as it stands: spaces and line ends at its edges are kept.

    Args:
        scorer: of the model.
        prompts: tokens, each with `new_tokens` of room in the window.
        new_tokens: most tokens of a continuation.
        stops: tokens that end one, beside the end of text.
    Raises:
        NotMeasured: logits that are NaN.
    """
    ends = sorted({scorer.encoder.eos, *stops})
    shared = common_prefix(prompts)
    cache = _read(scorer, prompts[0][:shared]) if shared else None
    texts = [""] * len(prompts)
    for chosen in _batches([len(prompt) - shared for prompt in prompts], only_alike=_has_window(scorer.model.config)):
        made = _generate(scorer, cache, [prompts[item] for item in chosen], shared, new_tokens, ends)
        for item, ids in zip(chosen, made, strict=True):
            end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
            texts[item] = scorer.encoder.tokenizer.decode(ids[:end], skip_special_tokens=True)
    return texts


def _read(scorer: Scorer, prefix: Sequence[int]) -> Any:
    """Keys and values of the common beginning, one row."""
    cache = DynamicCache(config=scorer.model.config)
    ids = torch.tensor([list(prefix)], device=scorer.device)
    scorer.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _generate(
    scorer: Scorer, cache: Any, prompts: Sequence[Sequence[int]], shared: int, new_tokens: int, ends: list[int]
) -> list[list[int]]:
    pad, width = scorer.encoder.pad, max(map(len, prompts))
    gaps = [width - len(prompt) for prompt in prompts]
    ids = [[*prompt[:shared], *[pad] * gap, *prompt[shared:]] for prompt, gap in zip(prompts, gaps, strict=True)]
    mask = [[1] * shared + [0] * gap + [1] * (width - shared - gap) for gap in gaps]
    rows = None
    if cache is not None:
        rows = copy.deepcopy(cache)  # generation writes into it
        rows.batch_repeat_interleave(len(prompts))
    made: list[list[int]] = scorer.model.generate(
        input_ids=torch.tensor(ids, device=scorer.device),
        attention_mask=torch.tensor(mask, device=scorer.device),
        past_key_values=rows,
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=new_tokens, do_sample=False, num_beams=1, pad_token_id=pad, eos_token_id=ends
        ),
        logits_processor=LogitsProcessorList([_Numbers()]),
    )[:, width:].tolist()
    return made


class _Numbers(LogitsProcessor):
    """The arg-max of NaN is a token like any other."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if bool(torch.isnan(scores).any()):
            raise NotMeasured("the model's logits are NaN")
        return scores


def _has_window(config: Any) -> bool:
    """Whether a layer sees the last tokens only."""
    return bool(getattr(config, "sliding_window", None)) or "sliding_attention" in (
        getattr(config, "layer_types", None) or ()
    )


def _batches(lengths: Sequence[int], *, only_alike: bool) -> Iterator[list[int]]:
    """Positions in batches of like length, or of one length."""
    batch: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda item: lengths[item]):
        if batch and (len(batch) == BATCH or (only_alike and lengths[item] != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
