"""One judge for every low-bit model: how far it is from the one in full precision, on text that neither has fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from letheon.data.batches import by_length
from letheon.data.encode import Example
from letheon.training.losses import Body


class Judge:
    """Compares models with the one in full precision on some parts of text, such as "facts" and "texts"."""

    def __init__(self, model: Any, parts: Mapping[str, Sequence[Example]], *, pad: int) -> None:
        self.model = model
        self._batches = {part: by_length(examples, pad=pad) for part, examples in parts.items()}
        self._known = {part: self._log_probs(model, part) for part in parts}

    @torch.no_grad()
    def _log_probs(self, model: Any, part: str) -> list[Tensor]:
        """Of every labelled token, over the vocabulary."""
        body = Body(model)
        return [torch.log_softmax(body.logits(batch), 1) for batch in self._batches[part]]

    def figures(self, model: Any) -> dict[str, float]:
        """KL(full precision || model) and the model's loss, nats a token: "kl", "loss", and "kl_PART", "loss_PART"."""
        sums = {part: self._sums(model, part) for part in self._batches}
        whole = torch.stack(list(sums.values())).sum(0)
        found = {"kl": float(whole[0] / whole[2]), "loss": float(whole[1] / whole[2])}
        if len(sums) > 1:
            for part, (divergence, loss, tokens) in sums.items():
                found |= {f"kl_{part}": float(divergence / tokens), f"loss_{part}": float(loss / tokens)}
        return found

    def _sums(self, model: Any, part: str) -> Tensor:
        """Divergence, loss and tokens, added up in float64."""
        total = torch.zeros(3, dtype=torch.float64)
        for batch, before, now in zip(
            self._batches[part], self._known[part], self._log_probs(model, part), strict=True
        ):
            divergence = (before.double().exp() * (before.double() - now.double())).sum()
            loss = -now.gather(1, batch.label_ids[:, None]).double().sum()
            total += torch.stack([divergence, loss, torch.tensor(float(len(now)), dtype=torch.float64)])
        return total
