"""Small whole numbers side by side in 32-bit words, as files of low-bit models hold them, and out of them again.

The dense stream: of a line of codes of b bits each, code k takes bits k*b .. k*b+b-1; word j holds bits 32j .. 32j+31,
the lowest first, and is a signed int32. Where 32 is no multiple of b a code may lie in two words. For b = 3:
    code    0   1  ...  9   10           11 ...  20   21           22 ...  31
    bits    0   3  ... 27   30 31 | 0     1 ...  28   31 | 0 1      2 ...  29        32 codes, exactly 3 words
A line takes ceil(length * b / 32) words; bits beyond its last code are 0. With codes (out, in), compressed-tensors
runs a line along the inputs of a row; GPTQ stores the same lines as columns.

AWQ has words of eight 4-bit codes in another order: nibble i, from the lowest, holds code (0, 2, 4, 6, 1, 3, 5, 7)[i].

Before its version 0.20 compressed-tensors put ten 3-bit codes into a word and left its two highest bits idle. That is
read and never written. For a length that is a multiple of 32 its width, ceil(length / 10), is never that of the dense
stream; for another one that happens to have equal widths the idle bits tell, which dense weights do not leave at 0.

Source: compressed-tensors 0.20 (pack-quantized), AutoGPTQ and AutoAWQ: their layouts, not their code.
Checked against: a loop over single bits, compressed-tensors' own packer, a word written down by hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, Integer
from torch import Tensor

from letheon.errors import BadInput
from letheon.numerics.grids import CodebookGrid, Quantized

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Nibble of a word, from the lowest -> which of its eight codes it holds."""

_CHUNK = 2**17
"""Codes packed at once: what is worked on stays in the cache."""


def packed_width(length: int, bits: int) -> int:
    """Words that a line of codes takes in the dense stream.

    >>> packed_width(32, 3), packed_width(33, 3)
    (3, 4)
    """
    return -(-length * bits // 32)


def pack(codes: Integer[Tensor, "lines length"], bits: int) -> Int32[Tensor, "lines words"]:
    """Lines of codes as dense streams.

    Args:
        codes: 0 .. 2^bits - 1, any integer dtype.
        bits: 1 to 8.

    >>> pack(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]]), 4)[0, 0].item() == 0x87654321 - 2**32
    True
    """
    assert 1 <= bits <= 8, bits
    low, high = codes.aminmax()
    assert low >= 0 and high < 2**bits, f"codes {int(low)} to {int(high)} do not fit into {bits} bits"
    lines, length = codes.shape
    width = packed_width(length, bits)
    packed = torch.empty(lines, width, dtype=torch.int32, device=codes.device)
    at_once = max(1, _CHUNK // length)
    for start in range(0, lines, at_once):
        packed[start : start + at_once] = _packed(codes[start : start + at_once], bits)[:, :width]
    return packed


def unpack(words: Int32[Tensor, "lines words"], bits: int, length: int) -> Integer[Tensor, "lines length"]:
    """The first `length` codes of dense streams, int16. Raises BadInput where the words are too few or too many."""
    assert 1 <= bits <= 8, bits
    lines, width = words.shape
    if width != packed_width(length, bits):
        raise BadInput(f"{length} codes of {bits} bits take {packed_width(length, bits)} words, and {width} are there")
    codes = torch.empty(lines, length, dtype=torch.int16, device=words.device)
    at_once = max(1, _CHUNK // length)
    for start in range(0, lines, at_once):
        codes[start : start + at_once] = _unpacked(words[start : start + at_once], bits)[:, :length]
    return codes


def stands_ten_to_a_word(words: Int32[Tensor, "lines words"], length: int) -> bool:
    """Whether 3-bit codes are in the old layout of compressed-tensors. Ask the weights: their zero points are alike.

    Up to ten codes to a line the two layouts are one.
    """
    if words.shape[1] != -(-length // 10):
        return False
    return words.shape[1] != packed_width(length, 3) or not bool((words >> 30).any())


def unpack_tens(words: Int32[Tensor, "lines words"], length: int) -> Integer[Tensor, "lines length"]:
    """The first `length` 3-bit codes of the old layout, int16. Raises BadInput where words are too few or too many."""
    width = -(-length // 10)
    if words.shape[1] != width:
        raise BadInput(f"{length} codes of 3 bits, ten to a word, take {width} words, and {words.shape[1]} are there")
    places = torch.stack([(words >> (3 * place)) & 7 for place in range(10)], dim=-1)
    return places.flatten(1)[:, :length].to(torch.int16)


def pack_awq(codes: Integer[Tensor, "lines length"]) -> Int32[Tensor, "lines words"]:
    """Lines of 4-bit codes in AWQ's order; the length is a multiple of 8."""
    lines, length = codes.shape
    assert length % 8 == 0, length
    return pack(codes.view(lines, length // 8, 8)[:, :, list(AWQ_ORDER)].view(lines, length), 4)


def unpack_awq(words: Int32[Tensor, "lines words"]) -> Integer[Tensor, "lines length"]:
    """All codes of lines in AWQ's order, int16."""
    lines, width = words.shape
    places = [AWQ_ORDER.index(code) for code in range(8)]
    return unpack(words, 4, 8 * width).view(lines, width, 8)[:, :, places].view(lines, 8 * width)


@dataclass(frozen=True, kw_only=True, eq=False)
class Unsigned:
    """A rounded matrix with codes that count from 0, as all packed files have them: w = scale * (code - zero)."""

    codes: Integer[Tensor, "rows columns"]
    """0 .. 2^bits - 1."""
    scale: Float[Tensor, "rows groups"]
    """float32, a row's groups beside each other; one column where a row is a group."""
    zero: Integer[Tensor, "rows groups"]
    """0 .. 2^bits - 1, shaped like `scale`."""


def unsigned(layer: Quantized) -> Unsigned:
    """Codes and zero points of a uniform grid, moved up by 2^(bits - 1) where they lie around 0, on the CPU.

    A scale for the whole tensor is repeated for every row. Nothing is rounded.
    """
    grid = layer.grid
    assert not isinstance(grid, CodebookGrid) and grid.bits != 16, grid
    offset = 0 if grid.scheme in ("asym", "sym_centred") else 2 ** (grid.bits - 1)
    scale, zero = layer.scale.cpu(), layer.zero.cpu() + offset
    if grid.group == "tensor":
        rows = layer.codes.shape[0]
        scale, zero = scale.expand(rows, 1).contiguous(), zero.expand(rows, 1).contiguous()
    return Unsigned(codes=layer.codes.cpu() + offset, scale=scale, zero=zero)


def _period(bits: int) -> tuple[int, int]:
    """After how many codes, and how many words, a code begins at the beginning of a word again."""
    shared = math.gcd(bits, 32)
    return 32 // shared, bits // shared


def _packed(codes: Tensor, bits: int) -> Tensor:
    count, words = _period(bits)
    lines, length = codes.shape
    codes = torch.nn.functional.pad(codes.to(torch.int32), (0, -length % count)).view(lines, -1, count)
    packed = torch.zeros(lines, codes.shape[1], words, dtype=torch.int32, device=codes.device)
    for place in range(count):
        word, shift = divmod(place * bits, 32)
        packed[:, :, word] |= codes[:, :, place] << shift
        if shift + bits > 32:
            packed[:, :, word + 1] |= codes[:, :, place] >> (32 - shift)
    return packed.view(lines, -1)


def _unpacked(words: Tensor, bits: int) -> Tensor:
    count, width = _period(bits)
    lines = len(words)
    words = torch.nn.functional.pad(words, (0, -words.shape[1] % width)).view(lines, -1, width)
    codes = torch.empty(lines, words.shape[1], count, dtype=torch.int16, device=words.device)
    for place in range(count):
        word, shift = divmod(place * bits, 32)
        code = words[:, :, word] >> shift
        if shift + bits > 32:
            # The shift has copied the sign into the bits that the next word has to fill.
            code = (code & (2 ** (32 - shift) - 1)) | (words[:, :, word + 1] << (32 - shift))
        codes[:, :, place] = code & (2**bits - 1)
    return codes.view(lines, -1)
