"""What a file format can hold, asked before any layer is solved: a refusal after hours is no refusal.

A format says its `Limits` once; `problems` turns a `Plan` (which layers, which grid) into faults that name the layer
and the way out. Writers ask again with every layer they are given, and look at the scales themselves: a file that
cannot hold a scale exactly is not written, because what was audited would not be what ships.

Source: this project.  Checked against: one refused plan for each limit, and the plans next to it that pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.lowbit.activations import ActivationGrids
from letheon.models import DTYPES, ModelFolder
from letheon.numerics.grids import CodebookGrid, Grid, Quantized
from letheon.quantization.low_bit import LowBitModel

HELD = {"float32": ("float32", "float16", "bfloat16"), "float16": ("float16",), "bfloat16": ("bfloat16",)}
"""Stored dtype -> `scale_dtype` of the grids whose scales it holds exactly."""
SCHEMES = ("sym", "sym_clipped", "sym_centred", "asym")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is going to be rounded and written."""

    original: ModelFolder
    """The full-precision folder."""
    shapes: Mapping[str, tuple[int, int]]
    """Layer, without ".weight" -> (out, in)."""
    grid: Grid | CodebookGrid
    """The grid of these layers."""
    transposed: frozenset[str] = frozenset()
    """Layers whose weight is stored as (in, out): GPT-2's."""
    grids: ActivationGrids | None = None
    """Of linears' inputs, keys and values, where they are rounded as well."""
    experts: frozenset[str] = frozenset()
    """Layers of a mixture's experts."""
    online: tuple[str, ...] = ()
    """Transforms that stay in the forward pass, such as "R3" and "R4"."""
    has_group_index: bool = False
    """Whether groups are of inputs that do not lie side by side (act-order with groups made on the way)."""


def layer_plan(model: LowBitModel, name: str, layer: Quantized) -> Plan:
    """The plan of one layer, as a writer meets it."""
    rows, columns = layer.codes.shape
    return Plan(
        original=model.original,
        shapes={name: (rows, columns)},
        grid=layer.grid,
        transposed=model.transposed & {name},
        experts=model.experts & {name},
        has_group_index=layer.group_index is not None,
    )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the files of a format can say."""

    format: str
    """The format's name."""
    bits: tuple[int, ...] = ()
    """Bits of uniform grids."""
    schemes: tuple[str, ...] = SCHEMES
    """Schemes of uniform grids."""
    codebooks: tuple[str, ...] = ()
    """Grids that are tables."""
    scale_dtype: str = "float32"
    """What scales are stored as."""
    outputs: int = 1
    """The number of outputs is a multiple of it,"""
    inputs: int = 1
    """the number of inputs of this,"""
    group: int = 1
    """and a group's size of this, where it is not a row or the tensor."""
    has_group_index: bool = False
    """Whether a group may be of inputs that do not lie side by side."""
    has_grids: bool = False
    """Whether it can say how a linear's inputs, keys and values are rounded."""
    has_online: bool = False
    """Whether it can say what is rotated in the forward pass."""
    has_experts: bool = False
    """Whether software that opens the files was seen to put the experts of a mixture together again."""
    instead: str = "compressed_tensors"
    """The format to propose for what this one lacks."""

    def check(self, plan: Plan, *others: str) -> None:
        """Raise BadInput with every fault of the plan, and the others that a format has found itself."""
        if problems := [*self.problems(plan), *others]:
            raise BadInput(problems)

    def problems(self, plan: Plan) -> list[str]:
        """Every fault of the plan."""
        found = [] if self.has_online else _online(plan, self.format)
        found += [] if self.has_grids else _grids(plan, self.format)
        if plan.transposed:
            found.append(
                f"{_named(sorted(plan.transposed), 'is', 'are')} stored as (in, out), which no file of format "
                f"{self.format} can say. Use --format dense"
            )
        if plan.experts and not self.has_experts:
            found.append(
                f"{_named(sorted(plan.experts), 'belongs', 'belong')} to the experts of a mixture, and no file of "
                f"format {self.format} with experts was seen to be opened. Use --format dense, or compressed_tensors "
                "with a symmetric scheme"
            )
        if plan.has_group_index and not self.has_group_index:
            found.append(
                f"a file of format {self.format} has no place for groups of inputs that do not lie side by side. "
                "Use static groups or no act-order, or --format gptq"
            )
        return found + self._grid_problems(plan) + self._shape_problems(plan)

    def _grid_problems(self, plan: Plan) -> list[str]:
        grid = plan.grid
        if isinstance(grid, CodebookGrid):
            if grid.name in self.codebooks:
                return []
            return [f"a file of format {self.format} has no table {grid.name}. Use --format bitsandbytes or dense"]
        if grid.bits == 16:
            return [f"a grid of 16 bits has no codes that format {self.format} could pack. Use --format dense"]
        found = []
        if grid.bits not in self.bits:
            known = ", ".join(map(str, self.bits)) or "none of a uniform grid"
            found.append(
                f"a file of format {self.format} has no layout for {grid.bits} bits (it has: {known}). "
                f"Use other --method.bits, or --format {self.instead}"
            )
        elif grid.scheme not in self.schemes:
            found.append(
                f"a file of format {self.format} cannot say scheme {grid.scheme} exactly (it can: "
                f"{', '.join(self.schemes)}). Use --method.scheme {self.schemes[0]}, or --format {self.instead}"
            )
        if grid.scale_dtype not in HELD[self.scale_dtype]:
            found.append(
                f"a file of format {self.format} stores scales as {self.scale_dtype} here, and the grid has them in "
                f"{grid.scale_dtype}: they would be rounded after the weights. Use --method.scale-dtype "
                f"{self.scale_dtype}"
            )
        return found

    def _shape_problems(self, plan: Plan) -> list[str]:
        grid = plan.grid
        group = grid.group if isinstance(grid, Grid) else "tensor"  # blocks of a table run over the ends of rows
        found = []
        if isinstance(group, int):
            found += _indivisible(plan, 1, group, f"a group of {group}", "--method.group row or a divisor of both")
            if group % self.group:
                found.append(
                    f"a group of {group} does not go into format {self.format}, whose blocks are of {self.group} "
                    f"inputs. Use a multiple of {self.group}, or --method.group row"
                )
        what, remedy = f"format {self.format}", f"--format {self.instead}, or leave these layers out"
        return (
            found + _indivisible(plan, 0, self.outputs, what, remedy) + _indivisible(plan, 1, self.inputs, what, remedy)
        )


def stored_exactly(layer: str, values: Tensor, dtype: torch.dtype, *, what: str = "scale") -> Tensor:
    """Scales in the dtype of the file.

    Raises:
        BadInput: one of them overflows, underflows to 0 or would be rounded; names the layer.
    """
    stored = values.to(dtype)
    is_wrong = stored.float() != values
    if bool(is_wrong.any()):
        worst = float(values[is_wrong].abs().max())
        name = str(dtype).removeprefix("torch.")
        if worst > torch.finfo(dtype).max:
            fault = f"is beyond the largest {name}, {torch.finfo(dtype).max:g}"
        elif not bool(stored[is_wrong].any()):
            fault = f"is 0 as {name}"
        else:
            fault = f"would be rounded to {name}"
        raise BadInput(
            f"layer {layer}: a {what} of {worst:.4g} {fault}, so the file would hold other weights than were "
            f"evaluated. Use --method.scale-dtype {name} (scales are then rounded first), or leave this layer out"
        )
    return stored


def stored_dtype(folder: ModelFolder) -> str:
    """What a loader makes of a folder's weights: the dtype of its config.json, else that of most of them."""
    wanted = folder.config.get("dtype", folder.config.get("torch_dtype"))
    return wanted if wanted in DTYPES.values() else folder.dtype


def check_dense(plan: Plan, name: str) -> None:
    """The limits of a dense folder. Raises BadInput for anything that happens in the forward pass alone."""
    if problems := _online(plan, name) + _grids(plan, name):
        raise BadInput(problems)


def _online(plan: Plan, name: str) -> list[str]:
    if not plan.online:
        return []
    return [
        f"the rotation keeps {', '.join(plan.online)} in the forward pass, which no file of format {name} can say: "
        "other software would compute nonsense. Rotate with R1 and R2 alone, which go into the weights, or use "
        "--format compressed_tensors"
    ]


def _grids(plan: Plan, name: str) -> list[str]:
    if plan.grids is None:
        return []
    return [
        f"a file of format {name} cannot say how activations, keys and values are rounded: other software would not "
        "round them. Use --format compressed_tensors, or --act-bits 16 --kv-bits 16"
    ]


def _indivisible(plan: Plan, axis: int, divisor: int, what: str, remedy: str) -> list[str]:
    """One fault for each length that is not divisible, naming its layers."""
    layers: dict[int, list[str]] = {}
    for name, shape in plan.shapes.items():
        if shape[axis] % divisor:
            layers.setdefault(shape[axis], []).append(name)
    return [
        f"{_named(names, 'has', 'have')} {length} {('outputs', 'inputs')[axis]}, and {what} needs a multiple of "
        f"{divisor}. Use {remedy.replace('a divisor of both', f'a divisor of {length}')}"
        for length, names in layers.items()
    ]


def _named(names: Sequence[str], one: str, several: str) -> str:
    others = f" and {len(names) - 1} others" if len(names) > 1 else ""
    return f"layer {names[0]}{others} {several if others else one}"
