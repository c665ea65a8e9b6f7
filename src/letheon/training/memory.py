"""How many bytes of tensors are alive, and what they are at the highest moment.

    live = sum of the bytes of every storage that an operation has shown and that is not freed yet
    peak = the largest live
A storage counts once, however many views share it, from the first operation that shows it to the moment it is freed.
The same definition holds for real tensors and for tensors without values (meta, fake), so an estimate and a measurement
can be compared. What a kernel allocates for itself and frees before it returns is in neither, nor is what an allocator
keeps in reserve.

Source: this project.  Checked against: a hand count of scripted allocations, views and backward passes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OTHER = "other"
"""Label of what was given no name."""


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that counts; `peak` may be read at any time.

    >>> with PeakBytes() as bytes_:
    ...     kept = torch.ones(1000)
    ...     other = kept + kept
    ...     del other
    >>> bytes_.peak, bytes_.live
    (8000, 4000)
    """

    def __init__(self, *, counts_meta: bool = True) -> None:
        """`counts_meta`: whether tensors of the meta device count as if they had values; no, beside real ones."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts_meta = counts_meta
        self.live = 0
        """Bytes now."""
        self.peak = 0
        """Most bytes so far."""
        self._alive: dict[int, int] = {}  # number of the storage -> bytes
        self._number: dict[int, tuple[int, weakref.ref[Any]]] = {}  # address of the storage -> its number
        self._label: dict[int, str] = {}
        self._at_peak: dict[int, int] = {}
        self._is_peak_now = False  # nothing was freed since the peak: what was alive there is what is alive now
        self._next = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count what goes in and what comes out."""
        self.hold(tree_leaves((args, kwargs)))
        result = func(*args, **(kwargs or {}))
        self.hold(tree_leaves(result))
        return result

    def hold(self, values: Iterable[Any]) -> None:
        """Count these tensors too: what was there before the context began, or was made outside of torch."""
        for value in values:
            is_there = isinstance(value, Tensor) and value.layout == torch.strided
            if is_there and (self._counts_meta or not value.is_meta):
                storage = value.untyped_storage()
                address, size = storage._cdata, storage.nbytes()
                if address not in self._number:
                    number, self._next = self._next, self._next + 1
                    self._number[address] = (
                        number,
                        weakref.ref(storage, partial(_forget, weakref.ref(self), address, number)),
                    )
                number = self._number[address][0]
                if size != self._alive.get(number, 0):  # new, or resized in place
                    self._change(number, size)

    def label(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Say what tensors are; `at_peak` adds up by these names. May be said after the peak, while they live."""
        for tensor in tensors:
            self.hold([tensor])
            self._label[self._number[tensor.untyped_storage()._cdata][0]] = name

    def at_peak(self) -> dict[str, int]:
        """Label -> bytes at the highest moment; they add up to `peak`."""
        found: dict[str, int] = {}
        for number, size in (self._alive if self._is_peak_now else self._at_peak).items():
            name = self._label.get(number, OTHER)
            found[name] = found.get(name, 0) + size
        return found

    def _change(self, number: int, size: int) -> None:
        growth = size - self._alive.get(number, 0)
        if growth < 0 and self._is_peak_now:
            self._at_peak, self._is_peak_now = dict(self._alive), False
        if size:
            self._alive[number] = size
        else:
            self._alive.pop(number, None)
        self.live += growth
        if self.live > self.peak:
            self.peak, self._is_peak_now = self.live, True


def _forget(counter_of: weakref.ref[PeakBytes], address: int, number: int, _: Any) -> None:
    """A storage is gone; so may be the counter, since a model may outlive the count of its bytes."""
    counter = counter_of()
    if counter is not None:
        counter._change(number, 0)
        del counter._number[address]
