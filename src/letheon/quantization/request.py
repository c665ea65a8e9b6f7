"""What `letheon quantize` was asked for, once it is checked; and the checks of what belongs together.

Source: this project.  Checked against: one refused request for each fault, all faults at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from letheon.blueprint import make_blueprint
from letheon.data.overlap import overlap
from letheon.data.records import DataFile, read_records
from letheon.errors import BadInput, gathering, require
from letheon.lowbit.activations import ActivationGrids, check_grids
from letheon.lowbit.low_bit_pass import THROUGH, LowBitPass, pass_named
from letheon.lowbit.matrices import Matrix
from letheon.methods import name_of
from letheon.models import ModelFolder, check_quantizable, inspect_model, load_tokenizer
from letheon.numerics.grids import Grid
from letheon.quantization.basis import online_parts
from letheon.quantization.block_walk import no_experts
from letheon.quantization.calibrate import Calibration, make_calibration
from letheon.quantization.limits import Plan
from letheon.runs.folder import sha256_file
from letheon.runs.record import RunFolder, StageRecord, made_by

if TYPE_CHECKING:
    from letheon.quantization.pipeline import QuantizeSettings


@dataclass(frozen=True)
class Request:
    """What was asked for, checked; nothing is loaded yet."""

    wanted: QuantizeSettings
    folder: ModelFolder
    quantizer: Any
    writer: Any
    data: DataFile | None
    """Calibration text, where the solver looks at it."""
    device: str
    out: Path
    rotation: Any
    grids: ActivationGrids | None
    """Of linears' inputs, keys and values; None: they are left alone."""
    widest: int = 0
    """Most inputs of a layer."""
    warnings: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return min(self.wanted.sequence_length, self.folder.window)

    def calibration(self) -> Calibration | None:
        """The sequences. Raises BadInput where there is too little text."""
        if self.data is None:
            return None
        tokenizer, wanted = load_tokenizer(self.folder.path), self.wanted
        found = make_calibration(self.data, tokenizer, sequences=wanted.sequences, length=self.length, seed=wanted.seed)
        if found.tokens >= self.widest:
            return found
        few = (
            f"{found.tokens} tokens of calibration text are fewer than the {self.widest} inputs of the widest layer: "
            "what the text does not show is left to the damping. Give more text"
        )
        return Calibration(found.ids, (*found.warnings, few))


def with_scales(quantizer: Any, given: Any, writer: Any, folder: ModelFolder) -> Any:
    """The quantizer with scales as the file stores them, where nobody has said otherwise."""
    is_open = isinstance(given, str) or (isinstance(given, Mapping) and "scale_dtype" not in given)
    if (
        not is_open
        or not hasattr(writer, "scale_dtype")
        or "scale_dtype" not in {one.name for one in fields(quantizer)}
    ):
        return quantizer
    return replace(quantizer, scale_dtype=writer.scale_dtype(folder))


def quantizable(path: Path) -> ModelFolder:
    """Look at a full-precision folder. Raises BadInput for what cannot be quantized."""
    folder = inspect_model(path)
    check_quantizable(folder)
    return folder


def check_basis(folder: ModelFolder, rotation: Any, grids: ActivationGrids | None) -> None:
    """Refuse a model that cannot be rotated, or whose activations cannot be rounded. Raises BadInput with all faults.

    Both are asked of the architecture alone, before weights are loaded.
    """
    model = make_blueprint(folder.path)
    problems: list[str] = []
    if getattr(rotation, "refresh_every", None) is not None:
        problems.append(
            "refresh_every: rotations are chosen anew while a model is trained, and this trains nothing. Leave it out"
        )
    if THROUGH in folder.config and name_of(rotation) != "none":
        problems.append(
            f"MODEL {folder.path}: was trained through low bits in a basis of its own, which is put back by itself. "
            "Use --rotation none"
        )
    for ask in (lambda: rotation.check(model), lambda: None if grids is None else check_grids(model, grids)):
        try:
            ask()
        except BadInput as error:
            problems += [f"MODEL {folder.path}: {problem}" for problem in error.problems]
    if problems:
        raise BadInput(problems)


def trained_through(folder: ModelFolder) -> LowBitPass:
    """What a folder says that it was trained through; nothing where it says nothing.

    Raises:
        BadInput: a marker that this version does not understand.
    """
    marker = folder.config.get(THROUGH)
    name = marker.get("pass") if isinstance(marker, Mapping) else None
    require(
        marker is None or isinstance(name, str),
        f"MODEL {folder.path}: {THROUGH} in config.json is damaged. Take the entry out, or train the model again",
    )
    return pass_named(name)


def other_than_trained(folder: ModelFolder, quantizer: Any, grids: ActivationGrids | None) -> list[str]:
    """What must be said where a model is not rounded to what it was trained through."""
    if THROUGH not in folder.config:
        return []
    trained, grid = trained_through(folder), getattr(quantizer, "grid", None)
    if trained.grids == grids and trained.weights == as_trained(grid) and name_of(quantizer) == "rtn":
        return []
    return [
        f"MODEL {folder.path} was trained through {trained.name}, and this is another rounding: what was measured "
        "while it was trained does not hold for it. Use --method rtn with the bits of that pass, a scale a row"
    ]


def as_trained(grid: Any) -> Any:
    """A grid as training has it: with float32 scales, which files may store narrower."""
    return replace(grid, scale_dtype="float32") if isinstance(grid, Grid) else grid


def forgotten_in(data: DataFile, model: Path) -> list[str]:
    """What must be said where the text holds what the model was made to forget: it can come back by it.

    Every run of forget that the model went through is looked at, whatever was done to it since.
    """
    told: list[str] = []
    made = made_by(model)
    while made is not None:
        run, entry = made
        if entry.verb == "forget":
            told += _shared_with(data, run, entry)
        source = run.input_path(entry, "model")
        made = None if source is None else made_by(source)
    return told


def _shared_with(data: DataFile, run: RunFolder, entry: StageRecord) -> list[str]:
    given, forgotten = entry.inputs.get("forget_data"), run.input_path(entry, "forget_data")
    if given is None or forgotten is None or not forgotten.is_file() or sha256_file(forgotten) != given["sha256"]:
        return [
            f"whether the calibration text holds what {run.path / entry.label} forgot cannot be checked: its forget "
            f"set {forgotten} is not there any more as it was. Use text that nobody asked to forget"
        ]
    records = read_records(forgotten, role="forget", columns=entry.settings.get("columns", {}))
    shared = overlap(data, records)
    return [f"{shared.sentence}. Calibrating on what was forgotten can bring it back: use other text"] if shared else []


def kept_parts(folder: ModelFolder, *, kv_bits: int) -> tuple[str, ...]:
    """What a model that was trained through low bits keeps in its low-bit forward pass: R3 only for rounded keys."""
    online = (folder.config.get(THROUGH) or {}).get("online") or {}
    found = [name for name, site in (("R3", "keys"), ("R4", "down")) if online.get(site)]
    return tuple(name for name in found if name != "R3" or kv_bits < 16)


def check_layers(
    folder: ModelFolder,
    matrices: Mapping[str, Matrix],
    quantizer: Any,
    writer: Any,
    *,
    rotation: Any,
    grids: ActivationGrids | None,
) -> None:
    """Refuse what does not divide or does not go into the file before a stage begins. No writer: None."""
    with gathering():  # what else is wrong with the grid is told already
        grid = getattr(quantizer, "grid", None)
    if grid is None:
        return
    shapes = {name: (matrix.weight.shape[0], matrix.weight.shape[1]) for name, matrix in matrices.items()}
    group = getattr(grid, "group", None)
    problems = _indivisible(shapes, group) if isinstance(group, int) and group >= 1 else []
    kv_bits = 16 if grids is None else grids.keys.bits
    experts = frozenset(name for name, matrix in matrices.items() if matrix.is_expert)
    if experts and hasattr(quantizer, "prepare_block"):
        problems.append(no_experts(quantizer))
    if hasattr(writer, "check"):  # a format of one's own need not have limits
        plan = Plan(
            original=folder,
            shapes=shapes,
            grid=grid,
            transposed=frozenset(name for name, matrix in matrices.items() if matrix.is_turned),
            experts=experts,
            grids=grids,
            online=kept_parts(folder, kv_bits=kv_bits) or online_parts(rotation, kv_bits=kv_bits),
            has_group_index=getattr(quantizer, "act_order", "") == "dynamic" and isinstance(group, int),
        )
        try:
            writer.check(plan)
        except BadInput as error:  # a group that does not divide is told once
            problems += [fault for fault in error.problems if not (problems and "a group of" in fault)]
    if problems:
        raise BadInput(problems)


def _indivisible(shapes: Mapping[str, tuple[int, int]], group: int) -> list[str]:
    layers: dict[int, list[str]] = {}
    for name, (_, inputs) in shapes.items():
        layers.setdefault(inputs, []).append(name)
    return [
        f"a group of {group} does not divide the {inputs} inputs of layer {names[0]}"
        + (f" and {len(names) - 1} others" if len(names) > 1 else "")
        + f". Use a divisor of {inputs}, or group row"
        for inputs, names in layers.items()
        if inputs % group
    ]
