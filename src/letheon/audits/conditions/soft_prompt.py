"""A few free vectors before every question, trained on half of what was to be forgotten; the other half is asked.

    p(answer | v_1 ... v_k, prompt)        v: in place of embeddings of tokens, the only thing that is trained
The weights stay as they are. Vectors are freer than words: whatever a text before the question brings out, some vectors
do, at a hundredth of the cost of a search for words. It is no bound all the same, since the training may miss them.
What they teach about T they teach the control as well: its vectors are trained on the same V.

Source: prompt tuning, Lester et al. 2021, arXiv:2104.08691; soft prompt threats, Schwinn et al. 2024, arXiv:2402.09063.
Checked against: embeddings of real tokens = the tokens themselves, no vectors = the plain model, knowledge that was
hidden behind a planted trigger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from letheon.audits.attacker import Attacker, Target
from letheon.audits.learning import learn, learning_of
from letheon.audits.prefix import prefixed
from letheon.errors import NotMeasured, require


@dataclass(frozen=True, kw_only=True)
class SoftPrompt:
    """Settings of the attacker."""

    tokens: int = 8
    """k, vectors, >= 1."""
    steps: tuple[int, ...] = (50,)
    """Steps after which T is asked, each > 0: a row of the matrix for each."""
    learning_rate: float = 0.1
    """Of AdamW, constant, > 0, in units of the root mean square of the model's own embeddings."""
    batch_size: int = 16
    """Records a step."""
    clip: float | None = 1.0
    """Largest gradient norm; null: none."""
    seed: int = 0
    """Of the tokens whose embeddings the vectors begin at, and order of the records."""

    along: ClassVar[str] = "steps"
    folds: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _ = learning_of("soft_prompt", self)  # its rules
        require(self.tokens >= 1, f"soft_prompt needs tokens >= 1, got {self.tokens}")

    @property
    def label(self) -> str:
        """The row's name for readers."""
        return f"soft prompt of {self.tokens}, {'/'.join(map(str, sorted(self.steps)))} steps"

    @property
    def provenance(self) -> str:
        """One line for the report."""
        after = ", ".join(map(str, sorted(self.steps)))
        return (
            f"{self.tokens} free vectors before every question, trained for {after} steps (AdamW, "
            f"{self.learning_rate:g}, batch {self.batch_size}) on one half of the people to be forgotten, asked about "
            "the other; both ways round; weights as they are"
        )

    def walk(self, target: Target, attacker: Attacker, then: Callable[[int], None]) -> None:
        """Train the vectors on what the attacker learns, and call `then(k)` with them in place after each of the steps.

        Raises:
            NotMeasured: nothing to learn that leaves room for the vectors, or a loss that is NaN.
        """
        window = target.encoder.max_length
        learned = [example for example in attacker.learned if len(example.ids) + self.tokens <= window]
        if not learned:
            raise NotMeasured(f"no learned record leaves room for {self.tokens} vectors in a window of {window}")
        free, size = self.start(target.model)
        with prefixed(target.model, lambda: free * size, window=window):
            settings = learning_of("soft_prompt", self)
            learn(target, learned, then, settings=settings, moving={"vectors": free})

    def start(self, model: Any) -> tuple[nn.Parameter, Tensor]:
        """The embeddings of a few tokens, drawn from the seed, in units of a size; and that size."""
        table: Tensor = model.get_input_embeddings().weight.detach()
        drawn = torch.randint(len(table), (self.tokens,), generator=torch.Generator().manual_seed(self.seed))
        size = table.square().mean().sqrt()
        if not bool(torch.isfinite(size)) or float(size) == 0.0:
            raise NotMeasured("the model's embeddings are not finite, or all 0")
        return nn.Parameter(table[drawn.to(table.device)] / size), size
