"""A verb without its work: all inputs checked as the verb checks them, then memory and time estimated.

No weight is loaded and nothing is written. Memory is the bytes of tensors at the highest moment; a kernel's own scratch
space, an allocator's reserve and the libraries themselves, about half a gigabyte, come on top. Time is rough: a timed
matrix product and a timed addition, on this machine as it is now, stand for all others.

Source: this project.  Checked against: faults of every verb, the measured peak of tensor bytes of real runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from letheon.errors import BadInput, UnknownName
from letheon.methods import name_of
from letheon.recipes import verbs
from letheon.runs.environment import process_count

if TYPE_CHECKING:
    from letheon.recipes.estimates import Estimate

_WORDS = {
    "weights": "weights, float32 copies included",
    "gradients": "gradients",
    "optimizer": "AdamW's moments",
    "references": "what the original said, and limits of a scope",
    "activations": "activations and all that is temporary",
}
TIGHT = 0.9
"""Share of the free memory above which a warning is given."""


@dataclass(frozen=True)
class DryRun:
    """What a verb would need. Sizes are in bytes."""

    verb: str
    device: str
    memory: dict[str, int]
    """What is there at the highest moment, by what it is; adds up to `peak`. Empty when it could not be estimated."""
    peak: int | None
    """Bytes of tensors at the highest moment; None when it could not be estimated."""
    free: int | None
    """Bytes of memory that the device has free now; None where the system does not say."""
    steps: int | None
    """Steps at most; None for a verb without steps."""
    step_seconds: float | None
    """Of a mean step, rough; None for a verb without steps."""
    seconds: float | None
    """Of everything, rough; None when it could not be estimated."""
    warnings: tuple[str, ...]
    """What the verb would warn of, and what stands against running it here."""

    def __str__(self) -> str:
        warned = [f"warning: {text}" for text in self.warnings]
        if self.peak is None or self.seconds is None:
            untried = f"{self.verb}: no fault in the inputs, but what runs was not tried; nothing was written"
            return "\n".join([untried, *warned])
        lines = [f"{self.verb}: all inputs are in order; nothing was run or written"]
        free = "" if self.free is None else f" (free on {self.device} now: {_size(self.free)})"
        lines.append(f"memory  {_size(self.peak):>9}  of tensors at the highest moment{free}")
        sizes = {part: self.memory.get(part, 0) for part in _WORDS}
        shown = {part: size for part, size in sizes.items() if size or part != "references"}  # often there are none
        lines += [f"        {_size(size):>9}  {_WORDS[part]}" for part, size in shown.items()]
        steps = f" with at most {self.steps} steps of {_time(self.step_seconds)}" if self.step_seconds else ""
        lines.append(f"time    {_time(self.seconds):>9}{steps}; rough")
        return "\n".join([*lines, *warned])


def dry_run(verb: str, settings: Mapping[str, Any]) -> DryRun:
    """Check a verb's inputs, and estimate what it needs.

    Args:
        verb: one of `verbs.VERBS`.
        settings: as the verb itself takes them, `model` among them.
    Raises:
        BadInput: with all faults of all inputs, as the verb would.
    """
    if process_count() > 1:
        raise BadInput(
            f"a dry run estimates what one process needs, and there are {process_count()}. Run it without torchrun"
        )
    checked = check(verb, settings)
    free = _free_bytes(checked.device)
    if checked.estimate is None:
        return DryRun(verb, checked.device, {}, None, free, None, None, None, checked.warnings)
    try:
        found = checked.estimate()
    except BadInput:  # such as an architecture that transformers does not know: the verb would refuse it as well
        raise
    except Exception as error:
        own = [name_of(method) for method in checked.methods if name_of(method).endswith(".py")]
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        text = (
            f"memory and time could not be estimated: {' or '.join(own) or 'the model or a method'} does what needs "
            f"real values ({reason}). A short real run shows whether it works, such as --steps 1"
        )
        return DryRun(verb, checked.device, {}, None, free, None, None, None, (*checked.warnings, text))
    peak = sum(found.memory.values())
    warnings = checked.warnings
    if free is not None and peak > TIGHT * free:
        warnings = (
            *warnings,
            f"{_size(peak)} is more than {checked.device} has room for. {_remedy(verb, found, TIGHT * free)}",
        )
    return DryRun(
        verb=verb,
        device=checked.device,
        memory=found.memory,
        peak=peak,
        free=free,
        steps=found.steps,
        step_seconds=found.step_seconds,
        seconds=found.seconds,
        warnings=warnings,
    )


def _remedy(verb: str, found: Estimate, room: float) -> str:
    """What takes less memory: smaller batches, or where these would not help, fewer weights that move."""
    held = sum(found.memory.get(part, 0) for part in ("weights", "gradients", "optimizer"))
    if verb == "forget" and held > room:
        return (
            f"Smaller batches would not help: weights, gradients and moments alone are {_size(held)}. Let fewer "
            "weights move (--scope sure or --scope adapter), keep them as the file does (--master-dtype param "
            "--weights stored), or use a larger machine"
        )
    if found.steps:
        return "Use a smaller --batch-size or --micro-batch-size, or a larger machine"
    return "Use a larger machine"


@dataclass(frozen=True)
class Checked:
    """A checked verb, and how to estimate it."""

    device: str
    warnings: tuple[str, ...]
    estimate: Callable[[], Estimate] | None
    """None where nothing is known of it."""
    methods: tuple[Any, ...]
    """What was chosen; a file of the user's own may be among them."""


def check(verb: str, settings: Mapping[str, Any]) -> Checked:
    """All that a verb checks before it begins. Raises BadInput with all faults of all inputs."""
    if verb not in verbs.VERBS:
        raise UnknownName(verb, verbs.VERBS, what="a verb")
    return _CHECKS[verb](dict(settings))


def _train(settings: dict[str, Any]) -> Checked:
    from letheon.recipes.training_estimates import of_train
    from letheon.training.train import check_request

    request = check_request(settings)
    return Checked(request.device, request.warnings, lambda: of_train(request), (request.rate,))


def _forget(settings: dict[str, Any]) -> Checked:
    from letheon.recipes.training_estimates import of_forget
    from letheon.unlearning.forget import check_request

    request = check_request(settings)
    methods = tuple(request.methods.values())
    return Checked(request.device, request.warnings, lambda: of_forget(request), methods)


def _quantize(settings: dict[str, Any]) -> Checked:
    from letheon.quantization.pipeline import check_request
    from letheon.recipes.quantize_estimates import of_quantize

    request = check_request(settings)
    return Checked(
        request.device,
        request.warnings,
        lambda: of_quantize(request),
        (request.quantizer, request.writer),
    )


def _audit(settings: dict[str, Any]) -> Checked:
    from letheon.audits import audit
    from letheon.recipes.audit_estimates import of_audit
    from letheon.recipes.audit_notes import notes_of, unmeasured

    request = audit.check_request(settings)
    _check_out(request.run)
    encoder, plan = audit.prepare(request)
    notes = notes_of(plan, encoder)
    warnings = (*request.warnings, *plan.warnings, *unmeasured(notes, plan, list(request.protocol.cells)))
    methods = tuple(request.also.values())
    return Checked(request.device, warnings, lambda: of_audit(request, encoder, plan, notes), methods)


def _benchmark(settings: dict[str, Any]) -> Checked:
    from letheon.audits import benchmark

    request = benchmark.check_request(settings)
    _check_out(request.run)
    benchmark.prepare(request)
    return Checked(request.device, request.warnings, None, (request.method,))


_CHECKS: dict[str, Callable[[dict[str, Any]], Checked]] = {
    "train": _train,
    "forget": _forget,
    "quantize": _quantize,
    "audit": _audit,
    "benchmark": _benchmark,
}


def _check_out(out: Path) -> None:
    """Raise BadInput where the run could not be opened."""
    from letheon.runs.record import RunFolder

    RunFolder.open(out)


def _free_bytes(device: str) -> int | None:
    """Memory that a new process may have."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
        known = all(name in os.sysconf_names for name in names)
        return os.sysconf(names[0]) * os.sysconf(names[1]) if known else None


def _size(size: int) -> str:
    value, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if round(value) < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
