"""Run real code on tensors without values: what it would hold in memory, and how much it would compute.

Inside a `Rehearsal` tensors have shapes, dtypes and a device, and no values (PyTorch's fake tensors, which unlike the
meta device choose the attention kernels of the real device). A model is made from its configuration alone, no weight is
read, and whatever then runs, the training loop itself among it, is counted operation by operation.

What depends on values has to be assumed: a number read from a tensor is 1, a truth is True, a mask keeps everything.
So a gate is open for all items, and a norm is never clipped.

Source: this project.  Checked against: peak bytes of the same code on real tensors; operations counted by hand.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from letheon.models import ModelFolder
from letheon.quiet import quiet_transformers
from letheon.training.memory import PeakBytes

_CALIBRATION_S = 0.15
"""Seconds of each of the two timings, at least."""
_CALLS = 7
"""Calls that are timed, at least."""


@dataclass(frozen=True)
class Work:
    """How much was computed."""

    operations: float = 0.0
    """Floating-point operations of matrix products and attention, as torch's flop counter has them."""
    moved: float = 0.0
    """Bytes of the inputs and outputs of everything else, views aside."""

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.moved + other.moved)

    def __mul__(self, times: float) -> Work:
        return Work(self.operations * times, self.moved * times)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up work, and stands in for the values that fake tensors do not have."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = Work()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One operation."""
        kwargs = dict(kwargs or {})
        if torch.Tag.data_dependent_output in func.tags:
            return _stand_in(func, args)
        if func is torch.ops.aten.bincount.default:
            return args[0].new_empty(kwargs.get("minlength", args[2] if len(args) > 2 else 0))
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [_all_rows(index) for index in args[1]])
        if func is torch.ops.aten._grouped_mm.default:  # of an expert mixture; without values it takes bfloat16 alone
            result, operations = _grouped(*args, **kwargs)
            self.work += Work(operations=operations)
            return result
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.work += Work(operations=flop_registry[packet](*args, **kwargs, out_val=result))
        elif not func.is_view:
            self.work += Work(moved=_bytes((args, kwargs, None if func._schema.is_mutable else result)))
        return result


def _stand_in(func: Any, args: tuple[Any, ...]) -> bool | int | float:
    """The value that is assumed."""
    if func is not torch.ops.aten._local_scalar_dense.default or args[0].dtype == torch.bool:
        return True
    return 1.0 if args[0].is_floating_point() else 1


def _grouped(left: Tensor, right: Tensor, ends: Tensor, *_: Any, **__: Any) -> tuple[Tensor, float]:
    """What a product of groups makes, and its operations.

    (rows, inner) of all groups with a matrix (inner, columns) each; or (rows, inner) (inner, columns), a sum a group.
    """
    shape = (left.shape[0], right.shape[-1])
    result = left.new_empty(shape if right.dim() == 3 else (len(ends), *shape))
    return result, 2.0 * left.numel() * right.shape[-1]


def _all_rows(index: Tensor | None) -> Tensor | None:
    """The index that a mask of one dimension is, if it keeps everything."""
    is_mask = index is not None and index.dtype == torch.bool and index.dim() == 1
    return torch.arange(len(index), device=index.device) if is_mask and index is not None else index


def _bytes(values: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


class Rehearsal:
    """A context: `bytes` counts what is alive, `work` what was done."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.bytes = PeakBytes()
        self.kept: list[Tensor] = []
        """Tensors that stand for something that stays."""
        self._counter = _Counter()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Rehearsal:
        self._stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        self._stack.enter_context(self._counter)
        self._stack.enter_context(self.bytes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start_counting(self) -> None:
        """Forget the work that was done."""
        self._counter.work = Work()

    @property
    def work(self) -> Work:
        """Done since the start, or since `start_counting`."""
        return self._counter.work

    def model(self, folder: ModelFolder, dtype: str = "float32") -> Any:
        """The model of a checked folder, without its weights. `dtype`: as `load_model` has it."""
        from transformers import AutoConfig, AutoModelForCausalLM

        with quiet_transformers():
            config = AutoConfig.from_pretrained(str(folder.path), local_files_only=True, trust_remote_code=False)
            with torch.device(self.device):
                made = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                    config, dtype=getattr(torch, folder.dtype if dtype == "stored" else dtype), trust_remote_code=False
                )
        model: Any = made.eval()
        self.bytes.label("weights", [*model.parameters(), *model.buffers()])
        return model

    @contextlib.contextmanager
    def adding_to(self, model: nn.Module) -> Iterator[None]:
        """What is added to a model in this context is made with values, and loses them at its end.

        A layer without values cannot be cast or moved after it was made, as some packages do to theirs.
        """
        with unset_fake_temporarily():
            yield
        for module in model.modules():
            for name, added in list(module.named_parameters(recurse=False)):
                if not isinstance(added, FakeTensor):
                    empty = torch.empty(added.shape, dtype=added.dtype, device=self.device)
                    setattr(module, name, nn.Parameter(empty, requires_grad=added.requires_grad))


def seconds(work: Work, *, rows: int, width: int, device: str, dtype: torch.dtype | None = None) -> float:
    """Time for some work on this machine, from two short timings; rough.

        operations / (operations a second of one matrix product) + moved bytes / (bytes a second of one addition)

    Args:
        rows: tokens of a forward pass, the rows of the timed product.
        width: the model's width; the product is (rows, width) x (width, 4 width).
        dtype: of the product; float32 when None.
    """
    rows, width = max(rows, 1), max(width, 1)
    left = torch.rand(rows, width, device=device, dtype=dtype)
    right = torch.rand(width, 4 * width, device=device, dtype=dtype)
    many = torch.rand(1024**2, device=device)  # 4 MB, a usual size; far larger ones measure the allocator
    a_product = _timed(lambda: left @ right, device) / (2 * rows * width * 4 * width)
    a_byte = _timed(lambda: many + many, device) / (2 * 4 * len(many))
    return work.operations * a_product + work.moved * a_byte


def _timed(call: Callable[[], Any], device: str) -> float:
    """Median seconds of a call."""

    def finish() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    for _ in range(2):
        call()
    finish()
    times: list[float] = []
    while sum(times) < _CALIBRATION_S or len(times) < _CALLS:
        began = time.perf_counter()
        call()
        finish()
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]
