"""The GGUF container, version 3: metadata, a table of tensors, their bytes.

    "GGUF", u32 version, u64 tensors, u64 keys
    keys:     string name, u32 type, value        string: u64 length, UTF-8; list: u32 type, u64 length, values
    tensors:  string name, u32 axes, u64 length of each (the fastest-moving FIRST), u32 type, u64 offset
    padding to a multiple of the alignment (32), then every tensor's bytes, each padded so
All little-endian; offsets count from the first byte behind the padding. A table's length depends on names and axes
alone, so a place is kept for it and it is filled in at the end: tensors are written as they come.

Source: the GGUF description in the ggml repository.
Checked against: the gguf package reads what is written, this file reads what the package writes; a header by hand.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from letheon.errors import BadInput

ALIGNMENT = 32
BLOCKS = {0: (1, 4), 1: (1, 2), 30: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34)}
"""Type of a tensor -> (weights in a block, bytes of a block): F32, F16, BF16, Q4_0, Q4_1, Q8_0."""
F32, F16, BF16, Q4_0, Q4_1, Q8_0 = 0, 1, 30, 2, 3, 8
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_U32, _I32, _FLOAT, _BOOL, _STRING, _LIST = 4, 5, 6, 7, 8, 9
_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Entry:
    """A row of the table of tensors."""

    name: str
    shape: tuple[int, ...]
    """As in torch: the fastest-moving axis last."""
    type: int
    offset: int


@dataclass(frozen=True)
class GGUFFile:
    """What a file says before its data."""

    path: Path
    metadata: Mapping[str, Any]
    entries: Mapping[str, Entry]
    start: int
    """Of the data, in bytes."""

    def bytes_of(self, entry: Entry) -> NDArray[np.uint8]:
        """A tensor's bytes, read when they are looked at."""
        size = _size(entry)
        return (
            np.memmap(self.path, np.uint8, "r", self.start + entry.offset, (size,)) if size else np.empty(0, np.uint8)
        )


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    axes: Mapping[str, int],
    tensors: Iterable[tuple[str, int, tuple[int, ...], bytes]],
) -> None:
    """Write a file, tensors as they come.

    Args:
        path: where.
        metadata: name -> bool, int (u32), float (f32), text, or a list of whole numbers (i32) or texts.
        axes: name of every tensor -> how many axes it has, in the order of the table.
        tensors: name, type, shape as in torch, and the bytes.
    """
    entries: dict[str, Entry] = {}
    with path.open("wb") as file:
        head = _header(metadata, [Entry(name, (0,) * count, F32, 0) for name, count in axes.items()])
        file.write(bytes(_aligned(len(head))))
        start = file.tell()
        for name, kind, shape, data in tensors:
            entry = Entry(name, shape, kind, file.tell() - start)
            assert len(data) == _size(entry) and len(shape) == axes[name], name
            entries[name] = entry
            file.write(data)
            file.write(bytes(_aligned(len(data)) - len(data)))
        assert entries.keys() == axes.keys(), axes.keys() ^ entries.keys()
        file.seek(0)
        file.write(_header(metadata, [entries[name] for name in axes]))


def read_gguf(path: Path, *, role: str = "MODEL") -> GGUFFile:
    """Metadata and table of a file; versions 2 and 3.

    Raises:
        BadInput: not GGUF, cut off, damaged, or with tensors of a type that is not read.
    """
    broken = f"{role} {path}: is cut off or damaged (half a download?). Download it again"
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise BadInput(f"{role} {path}: is not a GGUF file (its first bytes are not GGUF)")
        try:
            version, count, keys = (_scalar(file, "<I"), _scalar(file, "<Q"), _scalar(file, "<Q"))
            if version not in (2, 3):
                raise BadInput(f"{role} {path}: GGUF version {version} is not read. Readable: 2 and 3")
            metadata = {_text(file, size): _value(file, _scalar(file, "<I"), size) for _ in range(keys)}
            entries = [_entry(file, size) for _ in range(count)]
        except (struct.error, UnicodeDecodeError, ValueError, OverflowError, MemoryError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(broken) from error
        start = _aligned(file.tell(), int(metadata.get("general.alignment", ALIGNMENT)))
    unknown = {entry.name: entry.type for entry in entries if entry.type not in BLOCKS}
    if unknown:
        name, kind = next(iter(unknown.items()))
        raise BadInput(
            f"{role} {path}: tensor {name} and {len(unknown) - 1} others are of a ggml type that is not read ({kind}). "
            "Readable: F32, F16, BF16, Q4_0, Q4_1, Q8_0"
        )
    if any(start + entry.offset + _size(entry) > size for entry in entries):
        raise BadInput(broken)
    return GGUFFile(path, metadata, {entry.name: entry for entry in entries}, start)


def _aligned(size: int, alignment: int = ALIGNMENT) -> int:
    return -(-size // alignment) * alignment


def _size(entry: Entry) -> int:
    weights, size = BLOCKS[entry.type]
    return math.prod(entry.shape) // weights * size


def _header(metadata: Mapping[str, Any], entries: Sequence[Entry]) -> bytes:
    parts = [_MAGIC, struct.pack("<IQQ", 3, len(entries), len(metadata))]
    for name, value in metadata.items():
        parts += [_string(name), _typed(value)]
    for entry in entries:
        parts += [_string(entry.name), struct.pack("<I", len(entry.shape))]
        parts += [struct.pack("<Q", length) for length in reversed(entry.shape)]
        parts += [struct.pack("<IQ", entry.type, entry.offset)]
    return b"".join(parts)


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> bytes:
    if isinstance(value, list):
        kind = _STRING if value and isinstance(value[0], str) else _I32
        items = [_string(item) if kind == _STRING else struct.pack("<i", item) for item in value]
        return struct.pack("<IIQ", _LIST, kind, len(value)) + b"".join(items)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    return struct.pack("<If", _FLOAT, value) if isinstance(value, float) else struct.pack("<II", _U32, value)


def _scalar(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _text(file: BinaryIO, size: int) -> str:
    length = _scalar(file, "<Q")
    if length > size:
        raise ValueError("a text is longer than the file")
    data = file.read(length)
    if len(data) < length:
        raise ValueError("the file ends inside a text")
    return data.decode("utf-8")


def _value(file: BinaryIO, kind: int, size: int) -> Any:
    if kind in _SCALARS:
        return _scalar(file, _SCALARS[kind])
    if kind == _STRING:
        return _text(file, size)
    if kind != _LIST:
        raise ValueError(f"a value of type {kind}")
    inner, length = _scalar(file, "<I"), _scalar(file, "<Q")
    if length > size:
        raise ValueError("a list is longer than the file")
    return [_value(file, inner, size) for _ in range(length)]


def _entry(file: BinaryIO, size: int) -> Entry:
    name, count = _text(file, size), _scalar(file, "<I")
    if count > 4:
        raise ValueError("a tensor of more than four axes")
    shape = tuple(reversed([_scalar(file, "<Q") for _ in range(count)]))
    return Entry(name, shape, _scalar(file, "<I"), _scalar(file, "<Q"))
