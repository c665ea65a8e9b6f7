"""Make a language model forget, and prove that it stays forgotten.

    letheon.train      a fine-tuned folder: a model, or the reference that never saw the forget data
    letheon.forget     a folder that has forgotten, and a run record
    letheon.quantize   a low-bit folder
    letheon.audit      every probe under every condition, a verdict, a report
    letheon.benchmark  a published benchmark (TOFU, MUSE, WMDP) with its own definitions
    letheon.ask        questions to a model without its weights: numbers, no verdict
    letheon.verify     whether a verdict or a run is whole, and by whose key
    letheon.run        a recipe: any chain of the above

Each name is found on first use, so that importing this package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from letheon.audits.audit import audit
    from letheon.audits.benchmark import benchmark
    from letheon.audits.black_box import ask
    from letheon.audits.verify import verify
    from letheon.quantization.pipeline import quantize
    from letheon.recipes.recipe import run
    from letheon.training.train import train
    from letheon.unlearning.forget import forget

__version__ = "0.1.0"

__all__ = ["__version__", "ask", "audit", "benchmark", "forget", "quantize", "run", "train", "verify"]

_MODULES = {
    "ask": "letheon.audits.black_box",
    "audit": "letheon.audits.audit",
    "benchmark": "letheon.audits.benchmark",
    "forget": "letheon.unlearning.forget",
    "quantize": "letheon.quantization.pipeline",
    "run": "letheon.recipes.recipe",
    "train": "letheon.training.train",
    "verify": "letheon.audits.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        known = ", ".join(__all__)
        raise AttributeError(f"module 'letheon' has no attribute {name!r}. Public names: {known}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
