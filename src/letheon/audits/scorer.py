"""Asks one model under one condition, and never the same thing twice.

Source: this project.  Checked against: greedy generation without a cache, batch size and order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from letheon.audits.asked import Asked
from letheon.audits.columns import Scores
from letheon.audits.near_ties import MARGIN
from letheon.audits.sampler import Sampling, sampled_ids
from letheon.data.batches import Batch, by_length
from letheon.data.encode import Encoder
from letheon.errors import NotMeasured
from letheon.training.losses import Body
from letheon.training.scoring import ExampleScores, first_log_probs, gradient_norms, score_batches

GENERATION_BATCH = 128
_ANSWERED = ("_questions", "_held_out")
"""Ends of the names of sets whose greedy answers are told by teacher forcing."""
SPARE_TOKENS = 8
"""Tokens that an answer may be longer than the true one."""


@dataclass
class Scorer:
    """One model, ready to be asked. Results are kept by the set's name until the condition changes, batches for good.

    The model's own generation settings (its folder may ask for sampling, penalties or a least length) are replaced by
    plain greedy ones: an audit measures the weights.
    """

    model: Any
    body: Body
    encoder: Encoder
    device: str
    _scores: dict[str, ExampleScores] = field(default_factory=dict)
    _firsts: dict[tuple[str, tuple[int, ...]], NDArray[np.float64]] = field(default_factory=dict)
    _answers: dict[tuple[str, int], str] = field(default_factory=dict)
    _leads: dict[str, float] = field(default_factory=dict)
    _samples: dict[tuple[str, Sampling], list[list[str]]] = field(default_factory=dict)
    _batches: dict[str, tuple[Asked, list[Batch]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        if getattr(self.model, "training", False):  # with dropout no two answers would be the same
            self.model.eval()

    def forget_results(self) -> None:
        """The model has changed: nothing that was asked before holds."""
        self._scores.clear()
        self._firsts.clear()
        self._answers.clear()
        self._leads.clear()
        self._samples.clear()

    def scores(self, asked: Asked, *, moments: bool = False) -> ExampleScores:
        """Log-probabilities and arg-max of a set, by one forward pass.

        Args:
            asked: the set.
            moments: whether mean and deviation of log p under p are needed. A set that says so itself has them from
                its first pass; any other is passed through the model once more.
        Raises:
            NotMeasured: a log-probability that is NaN or infinite.
        """
        moments = moments or asked.with_moments
        kept = self._scores.get(asked.name)
        if kept is None or (moments and kept.moments is None):
            kept = score_batches(self.body, self._in_batches(asked), moments=moments)
            if not all(map(_is_finite, kept.token_log_probs)):
                raise NotMeasured(f"the model's log-probabilities on {asked.name} are not finite")
            self._scores[asked.name] = kept
            if asked.name.endswith(_ANSWERED):
                self._note_leads(asked.items, kept.smallest_leads().tolist())
        return kept

    def near_ties(self) -> list[str]:
        """Items whose greedy answer, asked since the model changed, hangs by less than `MARGIN`: see `near_ties`."""
        return [item for item, lead in self._leads.items() if lead < MARGIN]

    def _note_leads(self, items: Iterable[str], leads: Iterable[float]) -> None:
        for item, lead in zip(items, leads, strict=True):
            self._leads[item] = min(lead, self._leads.get(item, lead))

    def first_log_probs(self, asked: Asked, tokens: Sequence[int]) -> NDArray[np.float64]:
        """(items, tokens) log p of some tokens as the first of each item's answer, nats; by one forward pass.

        Raises:
            NotMeasured: a log-probability that is NaN or infinite.
        """
        key = (asked.name, tuple(tokens))
        if key not in self._firsts:
            found = first_log_probs(self.body, self._in_batches(asked), tokens)
            if not _is_finite(found):
                raise NotMeasured(f"the model's log-probabilities on {asked.name} are not finite")
            self._firsts[key] = found
        return self._firsts[key]

    def gradient_norms(self, asked: Asked) -> NDArray[np.float64]:
        """(items,) mean over parameters of the 2-norm of the loss's gradient; a backward pass an item.

        Raises:
            NotMeasured: a norm that is NaN or infinite, or a model whose weights take no gradient.
        """
        found = gradient_norms(self.body, asked.examples, pad=self.encoder.pad, device=self.device)
        if not _is_finite(found):
            raise NotMeasured(f"the gradients of the model's loss on {asked.name} are not finite")
        return found

    def _in_batches(self, asked: Asked) -> list[Batch]:
        """The set in batches; halves of a set have its name, so the set itself is looked at."""
        kept, batches = self._batches.get(asked.name, (None, []))
        if kept is not asked:
            batches = by_length(asked.examples, pad=self.encoder.pad, device=self.device)
            self._batches[asked.name] = (asked, batches)
        return batches

    def answers(self, asked: Asked, items: Iterable[int] | None = None) -> list[str]:
        """Greedy answers to a set's questions, or to those at some positions.

        An answer ends where the true one would: at the end of text, or at the chat template's end of turn.
        """
        wanted = list(range(len(asked)) if items is None else items)
        missing = [item for item in wanted if (asked.name, item) not in self._answers]
        examples = [asked.examples[item] for item in missing]
        given = self.continuations(
            [example.prompt_ids for example in examples],
            [len(example.answer_ids) + SPARE_TOKENS for example in examples],
            stops={example.ids[-1] for example in examples},
            items=[asked.items[item] for item in missing],
        )
        self._answers.update({(asked.name, item): text for item, text in zip(missing, given, strict=True)})
        return [self._answers[asked.name, item] for item in wanted]

    def samples(self, asked: Asked, sampling: Sampling) -> list[list[str]]:
        """Answers drawn at random to each question of a set, ending as greedy ones do (see `sampler`).

        Raises:
            NotMeasured: a prompt that fills the window, or logits that are no number.
        """
        key = (asked.name, sampling)
        if key not in self._samples:
            prompts = [example.prompt_ids for example in asked.examples]
            lengths = self._within(prompts, [len(example.answer_ids) + SPARE_TOKENS for example in asked.examples])
            ends = {self.encoder.eos, *(example.ids[-1] for example in asked.examples)}
            drawn = sampled_ids(self.model, prompts, lengths, sampling, ends=ends, device=self.device)
            self._samples[key] = [self._in_words(answers, ends) for answers in drawn]
        return self._samples[key]

    def _in_words(self, answers: Sequence[tuple[int, ...]], ends: Collection[int]) -> list[str]:
        """Without the end; what was said several times is read once."""
        decode = self.encoder.tokenizer.decode
        said = {
            ids: str(decode(ids[:-1] if ids and ids[-1] in ends else ids, skip_special_tokens=True)).strip()
            for ids in dict.fromkeys(answers)
        }
        return [said[ids] for ids in answers]

    def continuations(
        self,
        prompts: Sequence[Sequence[int]],
        lengths: Sequence[int],
        *,
        stops: Iterable[int] = (),
        items: Sequence[str] = (),
    ) -> list[str]:
        """`continued_ids` in words, without special tokens and without space at the ends."""
        decode = self.encoder.tokenizer.decode
        return [
            str(decode(ids, skip_special_tokens=True)).strip()
            for ids in self.continued_ids(prompts, lengths, stops=stops, items=items)
        ]

    @torch.no_grad()
    def continued_ids(
        self,
        prompts: Sequence[Sequence[int]],
        lengths: Sequence[int],
        *,
        stops: Iterable[int] = (),
        items: Sequence[str] = (),
    ) -> list[list[int]]:
        """Greedy continuations of token prompts, in batches of like length with a cache, up to the first end.

        Args:
            prompts: tokens.
            lengths: most tokens of each continuation; the context window may leave fewer.
            stops: tokens that end a continuation, beside the end of text.
            items: what each continuation is about, for `near_ties`; none is noted where this is empty.
        Raises:
            NotMeasured: a prompt that fills the window, or logits that are NaN.
        """
        wanted = self._within(prompts, lengths)
        ends = sorted({self.encoder.eos, *stops})
        continued: list[list[int]] = [[] for _ in prompts]
        for chosen in _batches([len(prompt) for prompt in prompts], wanted, window=self.encoder.max_length):
            looked = _Looked()
            given = [prompts[item] for item in chosen]
            made = self._generate(given, max(wanted[item] for item in chosen), ends, looked)
            for item, ids, leads in zip(chosen, made, looked.leads(len(chosen)), strict=True):
                kept = ids[: wanted[item]]
                end = next((place for place, token in enumerate(kept) if token in ends), len(kept))
                continued[item] = kept[:end]
                if items:  # the token that ends it is chosen as well
                    self._note_leads([items[item]], [min(leads[: min(end + 1, len(kept))], default=float("inf"))])
        return continued

    def _within(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[int]:
        """Most tokens of each answer that the window leaves. Raises NotMeasured: a prompt that fills it."""
        room = [self.encoder.max_length - len(prompt) for prompt in prompts]
        if room and min(room) < 1:
            raise NotMeasured(
                f"a prompt of {self.encoder.max_length - min(room)} tokens leaves no room for an answer "
                f"in a window of {self.encoder.max_length}"
            )
        return [min(length, left) for length, left in zip(lengths, room, strict=True)]

    def _generate(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, ends: list[int], looked: _Looked
    ) -> list[list[int]]:
        """Left-padded greedy generation."""
        pad, width = self.encoder.pad, max(len(prompt) for prompt in prompts)
        ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        made: list[list[int]] = self.model.generate(
            input_ids=torch.tensor(ids, device=self.device),
            attention_mask=torch.tensor(mask, device=self.device),
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                max_new_tokens=new_tokens, do_sample=False, num_beams=1, pad_token_id=pad, eos_token_id=ends
            ),
            logits_processor=LogitsProcessorList([looked]),
        )[:, width:].tolist()
        return made


def refuse_broken(weights: Mapping[str, Tensor]) -> None:
    """Raise NotMeasured for a weight that is NaN or infinite.

    Its log-probabilities may be finite all the same: fused attention on a CPU turns a NaN query into 0.
    """
    if broken := [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]:
        raise NotMeasured(f"tensor {broken[0]} of the model holds NaN or infinity")


class _Looked(LogitsProcessor):
    """Looks at the logits of every step: by how much the largest leads.

    NaN is refused: its arg-max is a token like any other, and its answer would be a wrong one instead of none.
    """

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if bool(torch.isnan(scores).any()):
            raise NotMeasured("the model's logits are NaN")
        first, second = scores.topk(2, dim=-1).values.float().unbind(-1)
        self._steps.append(first - second)
        return scores

    def leads(self, rows: int) -> list[list[float]]:
        """For each row of the batch, one number a step."""
        if not self._steps:
            return [[] for _ in range(rows)]
        found: list[list[float]] = torch.stack(self._steps, 1).cpu().tolist()
        return found


def _batches(prompts: Sequence[int], wanted: Sequence[int], *, window: int) -> Iterator[list[int]]:
    """Positions in batches of like length. No batch is so mixed that its longest prompt and answer pass the window.

    Args:
        prompts: length of each prompt.
        wanted: tokens to be made for each; where none, the item is left out.
        window: the context window.
    """
    order = sorted(
        (item for item in range(len(prompts)) if wanted[item]), key=lambda item: (prompts[item], wanted[item])
    )
    batch: list[int] = []
    longest = 0
    for item in order:
        longest = max(longest, wanted[item])
        if batch and (len(batch) == GENERATION_BATCH or prompts[item] + longest > window):
            yield batch
            batch, longest = [], wanted[item]
        batch.append(item)
    if batch:
        yield batch


def exact_answers(asked: Asked, scorer: Scorer) -> Scores:
    """1 where the answer is exact, else 0."""
    return Scores(asked.items, asked.units, scorer.scores(asked).exact.astype(float).tolist())


def _is_finite(values: Any) -> bool:
    return bool((abs(values) < float("inf")).all())
