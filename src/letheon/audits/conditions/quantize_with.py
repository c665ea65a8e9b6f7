"""Every matrix of the blocks rounded by a quantizer that looks at text: gptq, awq and whatever else is installed.

    W <- solver(W, what its layer hears of the text)        block by block, each on what the ones before it have become
What a solver makes up for on one text it may bring back on another, so the text is chosen: retained records, general
ones, or half of what was to be forgotten, which is what somebody would calibrate on to get it back; the other half is
then asked. The model is rounded in memory, by the code of `letheon quantize`; embeddings, norms and head are kept, but
for a norm that a quantizer scales. The control is rounded in the same way on the same text.

Source: GPTQ, Frantar et al. 2022, arXiv:2210.17323; AWQ, Lin et al. 2023, arXiv:2306.00978; on unlearned models, Zhang
et al. 2024, arXiv:2410.16454.  Checked against: the folder of `letheon quantize` on the same text, rtn = `quantized`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

from letheon.audits.attacker import Attacker, Target
from letheon.errors import BadInput, CannotFinish, NotMeasured, UnknownName, require
from letheon.lowbit.architectures import model_layout
from letheon.lowbit.low_bit_pass import THROUGH
from letheon.lowbit.online import MARKER
from letheon.methods import build, names
from letheon.quantization.block_walk import Walk, walk
from letheon.quantization.calibrate import drawn_sequences


@dataclass(frozen=True, kw_only=True)
class QuantizeWith:
    """Which quantizer, to which grid, on what text."""

    method: str = "gptq"
    """A quantizer, such as gptq, gptaq, awq; its other settings are its own defaults."""
    bits: int = 4
    """2 to 8."""
    group: int | Literal["row"] = "row"
    """Weights that share a scale."""
    text: Literal["retain", "general", "forget"] = "retain"
    """What it is calibrated on. forget: one half of what was to be forgotten, and the other is asked; both ways
    round."""
    sequences: int = 64
    """Most sequences of text, >= 1."""
    length: int = 64
    """Tokens of each, >= 2 and at most the context window."""
    seed: int = 0
    """Of the draw, where there is more text."""

    along: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.method not in names("quantizer"):
            raise UnknownName(self.method, names("quantizer"), what="a quantizer")
        _ = self.quantizer  # its rules
        require(self.sequences >= 1, f"quantize_with needs sequences >= 1, got {self.sequences}")
        require(self.length >= 2, f"quantize_with needs length >= 2, got {self.length}")
        require(self.seed >= 0, f"quantize_with needs seed >= 0, got {self.seed}")

    @property
    def folds(self) -> int:
        """2 where the attacker has to know some of the forgotten."""
        return 2 if self.text == "forget" else 0

    @property
    def quantizer(self) -> Any:
        """The method with its grid."""
        return build("quantizer", {"name": self.method, "bits": self.bits, "group": self.group})

    @property
    def label(self) -> str:
        """The row's name for readers."""
        scale = "a row" if self.group == "row" else f"in groups of {self.group}"
        return f"{self.method}, {self.bits} bits {scale}, calibrated on {_SAID[self.text]}"

    @property
    def provenance(self) -> str:
        """One line for the report."""
        return f"{self.label}; asked about {'the other half; both ways round' if self.folds else 'everything'}"

    def walk(self, target: Target, attacker: Attacker, then: Callable[[int], None]) -> None:
        """Round the model in place, and call `then(0)`.

        Raises:
            NotMeasured: no such records or too few, a folder that is rounded already, an unknown architecture, or what
                the quantizer refuses or cannot solve.
        """
        folder = target.folder
        if folder is not None and (folder.is_packed or MARKER in folder.config or THROUGH in folder.config):
            raise NotMeasured(
                f"needs full-precision weights; {folder.path} is rounded, or has a low-bit basis of its own"
            )
        records = attacker.learned if self.folds else attacker.kept(self.text)
        stream = [token for example in records for token in example.ids]
        length = min(self.length, target.encoder.max_length)
        if len(stream) < length:
            raise NotMeasured(f"{len(stream)} tokens to calibrate on are fewer than one sequence of {length}")
        ids = drawn_sequences(stream, sequences=self.sequences, length=length, seed=self.seed)
        try:
            with TemporaryDirectory() as keep:
                layout = model_layout(target.model)
                walk(Walk(target.model, layout, self.quantizer, ids, Path(keep), device=target.device))
        except (BadInput, CannotFinish) as error:
            raise NotMeasured(f"{self.method}: {error}") from error
        finally:
            target.model.to(target.device)  # finished blocks are left on the CPU
        then(0)


_SAID = {"retain": "retained records", "general": "general records", "forget": "half of what was to be forgotten"}
