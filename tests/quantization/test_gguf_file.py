"""The container: bytes by hand, the gguf package in both directions, and files that are damaged."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from letheon.errors import BadInput
from letheon.quantization.gguf_file import BF16, F16, F32, Q4_0, Q8_0, Entry, read_gguf, write_gguf

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "n": 7,
    "x": 0.5,
    "yes": True,
    "texts": ["a", "ü b"],
    "numbers": [3, -1],
}
TENSORS: list[tuple[str, int, tuple[int, ...], bytes]] = [
    ("one", F32, (3,), np.arange(3, dtype="<f4").tobytes()),
    ("four", Q4_0, (2, 64), bytes(range(72))),
    ("eight", Q8_0, (3, 32), bytes(range(102))),
    ("half", F16, (2, 3), np.arange(6, dtype="<f2").tobytes()),
    ("brain", BF16, (1, 5), bytes(range(10))),
]
AXES = {name: len(shape) for name, _, shape, _ in TENSORS}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "a.gguf", METADATA, AXES, TENSORS)
    return tmp_path / "a.gguf"


def test_a_small_file_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, {"k": 7}, {"t": 2}, [("t", F32, (1, 2), struct.pack("<ff", 1.0, 2.0))])
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += struct.pack("<Q", 1) + b"k" + struct.pack("<II", 4, 7)
    head += struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2) + struct.pack("<QQ", 2, 1) + struct.pack("<IQ", 0, 0)
    assert len(head) == 82
    assert path.read_bytes() == head + bytes(96 - 82) + struct.pack("<ff", 1.0, 2.0) + bytes(24)


def test_it_reads_what_it_wrote(file: Path) -> None:
    found = read_gguf(file)
    assert found.metadata == METADATA and list(found.entries) == [name for name, *_ in TENSORS]
    for name, kind, shape, data in TENSORS:
        entry = found.entries[name]
        assert (entry.type, entry.shape, entry.offset % 32) == (kind, shape, 0)
        assert found.bytes_of(entry).tobytes() == data
    assert found.start % 32 == 0 and file.stat().st_size % 32 == 0


def test_the_gguf_package_reads_it(file: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(file)
    assert {name: reader.get_field(name).contents() for name in METADATA} == METADATA
    for found, (name, kind, shape, data) in zip(reader.tensors, TENSORS, strict=True):
        assert (found.name, int(found.tensor_type)) == (name, kind)
        assert tuple(reversed(found.shape.tolist())) == shape and found.data.tobytes() == data


def test_it_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint32("n", 7)
    writer.add_array("texts", ["a", "ü b"])
    values = np.arange(64, dtype=np.float32).reshape(2, 32) - 20
    writer.add_tensor("plain", values)
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("four", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(tmp_path / "a.gguf")
    assert found.metadata["general.architecture"] == "llama" and found.metadata["texts"] == ["a", "ü b"]
    assert found.entries["four"] == Entry("four", (2, 32), Q4_0, found.entries["four"].offset)
    assert found.bytes_of(found.entries["four"]).tobytes() == packed.tobytes()
    assert found.bytes_of(found.entries["plain"]).tobytes() == values.tobytes()


def test_every_cut_is_noticed(file: Path) -> None:
    whole = file.read_bytes()
    last = read_gguf(file).entries["brain"]
    needed = read_gguf(file).start + last.offset + 10
    for length in [*range(4, needed, 7), needed - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(BadInput, match=r"a\.gguf: is cut off or damaged \(half a download\?\)\. Download it again"):
            read_gguf(file)
    file.write_bytes(whole[:needed])  # the padding of the last tensor may be missing
    read_gguf(file)


@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (0, b"GGUX", "is not a GGUF file"),
        (4, struct.pack("<I", 1), "GGUF version 1 is not read. Readable: 2 and 3"),
        (8, struct.pack("<Q", 2**60), "is cut off or damaged"),
        (24, struct.pack("<Q", 2**62), "is cut off or damaged"),
    ],
)
def test_what_is_damaged_is_refused(file: Path, at: int, data: bytes, words: str) -> None:
    raw = bytearray(file.read_bytes())
    raw[at : at + len(data)] = data
    file.write_bytes(raw)
    with pytest.raises(BadInput, match=words):
        read_gguf(file, role="ORIGINAL")


def test_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("k", np.zeros((1, 210), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        BadInput, match=r"tensor k .* of a ggml type that is not read \(14\)\. Readable: F32, F16, BF16, Q4_0"
    ):
        read_gguf(tmp_path / "a.gguf")
