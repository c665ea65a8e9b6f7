"""What the model would say if it ended at an earlier block, the one that knows most of half of what was forgotten.

    p_l = softmax(W_U norm(h_l))        l: the block, but for the last, at which V's answers are likeliest; T is asked
An unlearning that acts late leaves the answer readable on the way. Asked is a whole model whose later blocks pass on
what they are given, so that every column is asked as always, and the last block would give the model itself. The block
is chosen on V: the best of many on T would be found by chance. The control's is chosen in the same way.

Source: nostalgebraist 2020 (logit lens); Belrose et al. 2023, arXiv:2303.08112.  Checked against: the head on the
model's own list of hidden states, the last block = the model's logits to the bit, a model whose last block was broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from letheon.audits.attacker import Attacker, Target
from letheon.audits.hidden import depth_of
from letheon.errors import NotMeasured
from letheon.training.activations import blocks
from letheon.training.scoring import score_examples


@dataclass(frozen=True, kw_only=True)
class LogitLens:
    """No settings."""

    along: ClassVar[str] = ""
    folds: ClassVar[int] = 2

    @property
    def label(self) -> str:
        """The row's name for readers."""
        return "read at an earlier block"

    @property
    def provenance(self) -> str:
        """One line for the report."""
        return (
            "final norm and head on the block before the last that knows most of one half of the people to be "
            "forgotten (logit lens), asked about the other; both ways round"
        )

    def walk(self, target: Target, attacker: Attacker, then: Callable[[int], None]) -> None:
        """Choose the block, and call `then(0)` while the model ends there.

        Raises:
            NotMeasured: nothing learned, a model of one block, or log-probabilities that are not finite.
        """
        learned, depth = attacker.learned, depth_of(target.model)
        if depth < 2:
            raise NotMeasured("a model of one block has no earlier one to be read at")

        def known(layer: int) -> float:
            with ending_at(target.model, layer):
                scores = score_examples(target.body, learned, pad=target.encoder.pad, device=target.device)
            return float(scores.log_probs("mean").mean())

        found = {layer: known(layer) for layer in range(depth - 1)}
        if not all(abs(value) < float("inf") for value in found.values()):
            raise NotMeasured("log-probabilities at an earlier block are not finite")
        with ending_at(target.model, max(found, key=found.__getitem__)):
            then(0)


@contextmanager
def ending_at(model: Any, layer: int) -> Iterator[None]:
    """Inside, the blocks after `layer` pass on what they are given."""

    def pass_on(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    handles = [block.register_forward_hook(pass_on, with_kwargs=True) for block in blocks(model)[layer + 1 :]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
