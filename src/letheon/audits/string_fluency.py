"""How far a string is from something that anybody would write: its own log-probability, and tokens that come again.

    fluency(s) = -1/n sum_j log p(s_j | before, s_1 ... s_j-1)        nats; of the first token only behind another one
    repetition(s) = 1/n sum_i<j [s_i = s_j] = 1/n sum_i<j x_i . x_j        x: one-hot rows of s
The first depends on a one-hot entry in two ways, as what is read and as what is predicted; both are in its slope.

Source: Thompson and Sklar 2024, arXiv:2407.17447 (its repetition term is another one).
Checked against: central differences along one-hot directions in float64, strings one by one, pairs counted by hand.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from letheon.audits.attacker import Target
from letheon.audits.string_losses import finite, slopes
from letheon.audits.string_reads import Free, Many, One, Reads
from letheon.audits.strings import Slot, Tokens
from letheon.data.encode import Example
from letheon.training.scoring import score_examples


@dataclass(frozen=True)
class Fluency:
    """-log p of a string's own tokens, their mean.

    Args:
        target: the model that reads them.
        before: what stands before the string.
    """

    target: Target
    before: Tokens

    def of(self, strings: Many, near: One | None = None) -> Float[Tensor, " strings"]:
        """Of each string, nats, float64; `near` changes nothing."""
        first = max(1, len(self.before))
        examples = [Example((*self.before, *map(int, string)), first) for string in strings]
        scores = score_examples(
            self.target.body, examples, pad=self.target.encoder.pad, device=self.target.device
        ).log_probs("sum")
        counts = torch.tensor([len(string) for string in strings], dtype=torch.float64)
        return finite(-torch.from_numpy(scores) / counts)

    def gradient(self, string: One, tokens: Int[Tensor, " tokens"]) -> tuple[float, Float[Tensor, "n tokens"]]:
        """The mean, and its slope by one-hot entries."""
        count, first = len(string), 0 if self.before else 1
        reads = Reads(self.target, [Slot(self.before, (), 0)])
        predicted: list[Tensor] = []

        def loss(free: Free) -> Tensor:
            states = reads.states(**free.given)[0, len(self.before) + first - 1 : len(self.before) + count - 1]
            predicted[:] = [reads.logits(states).log_softmax(-1)]
            own = torch.tensor([int(token) for token in string][first:], device=predicted[0].device)
            return -predicted[0].gather(1, own.unsqueeze(1)).sum() / count

        found, slope = slopes(reads, string, tokens, loss)
        slope = slope.clone()
        slope[first:] -= predicted[0].detach()[:, tokens.to(slope.device)] / count
        return found, slope

    @torch.no_grad()
    def next_token(self, string: One, tokens: Int[Tensor, " tokens"]) -> Float[Tensor, "places tokens"]:
        """p of some tokens at each place of the string and behind it, as shares of their sum.

        The first place of a string that nothing stands before has no model: every token is as likely there.
        """
        reads = Reads(self.target, [])
        ids = torch.tensor([[*self.before, *map(int, string)]], device=self.target.device)
        states = reads.states(input_ids=ids, use_cache=False)[0, max(len(self.before) - 1, 0) :]
        shares = reads.logits(states)[:, tokens.to(states.device)].softmax(-1).cpu()
        return shares if self.before else torch.cat([torch.full_like(shares[:1], 1 / len(tokens)), shares])


@dataclass(frozen=True)
class Repetition:
    """Pairs of equal tokens for each token of a string."""

    def of(self, strings: Many, near: One | None = None) -> Float[Tensor, " strings"]:
        """Of each string, float64; `near` changes nothing."""
        found = []
        for string in strings:
            counts = Counter(int(token) for token in string)
            found.append(sum(count * (count - 1) / 2 for count in counts.values()) / len(string))
        return torch.tensor(found, dtype=torch.float64)

    def gradient(self, string: One, tokens: Int[Tensor, " tokens"]) -> tuple[float, Float[Tensor, "n tokens"]]:
        """The number, and its slope by one-hot entries: how often a token stands in the other places."""
        own = torch.tensor([int(token) for token in string])
        same = (own.unsqueeze(1) == tokens.cpu().unsqueeze(0)).double()
        return float(self.of([tuple(own.tolist())])[0]), (same.sum(0, keepdim=True) - same) / len(own)
