"""Asks one model under one condition, and never the same thing twice.

Source: this project.  Checked against: greedy generation without a cache, batch size and order.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from letheon.audits.asked import Asked
from letheon.audits.columns import Scores
from letheon.data.encode import Encoder
from letheon.errors import NotMeasured
from letheon.training.losses import Body
from letheon.training.scoring import ExampleScores, score_examples

GENERATION_BATCH = 128


@dataclass
class Scorer:
    """One model, ready to be asked. Results are kept by the set's name until the condition changes."""

    model: Any
    body: Body
    encoder: Encoder
    device: str
    _scores: dict[str, ExampleScores] = field(default_factory=dict)
    _answers: dict[str, list[str]] = field(default_factory=dict)

    def forget_results(self) -> None:
        """The model has changed: nothing that was asked before holds."""
        self._scores.clear()
        self._answers.clear()

    def scores(self, asked: Asked) -> ExampleScores:
        """Log-probabilities and exact matches of a set, by one forward pass."""
        if asked.name not in self._scores:
            found = score_examples(self.body, asked.examples, pad=self.encoder.pad, device=self.device)
            if not all(map(_is_finite, found.token_log_probs)):
                raise NotMeasured(f"the model's log-probabilities on {asked.name} are not finite")
            self._scores[asked.name] = found
        return self._scores[asked.name]

    def answers(self, asked: Asked) -> list[str]:
        """Greedy answers to a set's questions."""
        if asked.name not in self._answers:
            prompts = [example.prompt_ids for example in asked.examples]
            lengths = [len(example.answer_ids) + 8 for example in asked.examples]
            self._answers[asked.name] = self.continuations(prompts, lengths)
        return self._answers[asked.name]

    @torch.no_grad()
    def continuations(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[str]:
        """Greedy continuations of token prompts, each at most its own length, in batches of like length with a cache."""
        order = sorted(range(len(prompts)), key=lambda item: (len(prompts[item]), lengths[item]))
        texts = [""] * len(prompts)
        for start in range(0, len(order), GENERATION_BATCH):
            chosen = order[start : start + GENERATION_BATCH]
            for item, ids in zip(
                chosen, self._generate([prompts[i] for i in chosen], max(lengths[i] for i in chosen)), strict=True
            ):
                texts[item] = self.encoder.tokenizer.decode(ids[: lengths[item]], skip_special_tokens=True).strip()
        return texts

    def _generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """Left-padded greedy generation; what follows the end of text is cut off."""
        width = max(len(prompt) for prompt in prompts)
        room = self.encoder.max_length - width
        if room < 1:
            raise NotMeasured(
                f"a prompt of {width} tokens leaves no room for an answer in a window of {self.encoder.max_length}"
            )
        pad, eos = self.encoder.pad, self.encoder.eos
        ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.device)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # generation flags of the stranger's generation_config that greedy decoding ignores
            made = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=min(new_tokens, room),
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=pad,
                eos_token_id=eos,
            )[:, width:].tolist()
        return [row[: row.index(eos)] if eos in row else row for row in made]


def exact_answers(asked: Asked, scorer: Scorer) -> Scores:
    """1 where the answer is exact, else 0."""
    return Scores(asked.items, asked.units, scorer.scores(asked).exact.astype(float).tolist())


def _is_finite(values: Any) -> bool:
    return bool((abs(values) < float("inf")).all())
