"""Codes in words: against a loop over single bits, another packer, and words written down by hand."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.numerics.grids import Grid, dequantize, quantize
from letheon.quantization.packing import (
    AWQ_ORDER,
    pack,
    pack_awq,
    packed_width,
    stands_ten_to_a_word,
    unpack,
    unpack_awq,
    unpack_tens,
    unsigned,
)

LENGTHS = [1, 7, 10, 31, 32, 33, 64, 97]


def drawn(bits: int, length: int, lines: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (lines, length), generator=generator, dtype=torch.int16)


def words_of(stream: list[int]) -> list[int]:
    """Bits, the first the lowest, as signed words of 32."""
    stream = stream + [0] * (-len(stream) % 32)
    words = [sum(bit << place for place, bit in enumerate(stream[at : at + 32])) for at in range(0, len(stream), 32)]
    return [word - 2**32 if word >= 2**31 else word for word in words]


def by_single_bits(line: list[int], bits: int) -> list[int]:
    return words_of([(code >> place) & 1 for code in line for place in range(bits)])


def ten_to_a_word(line: list[int]) -> list[int]:
    stream: list[int] = []
    for start in range(0, len(line), 10):
        part = [(code >> place) & 1 for code in line[start : start + 10] for place in range(3)]
        stream += part + [0] * (32 - len(part))
    return words_of(stream)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_bit_is_where_the_layout_says(bits: int, length: int) -> None:
    codes = drawn(bits, length)
    packed = pack(codes, bits)
    assert packed.dtype == torch.int32 and packed.shape == (3, packed_width(length, bits))
    assert packed.tolist() == [by_single_bits(line, bits) for line in codes.tolist()]
    assert torch.equal(unpack(packed, bits, length), codes)


@pytest.mark.parametrize("along", [1, 0])
@pytest.mark.parametrize("bits", range(1, 9))
def test_compressed_tensors_packs_the_same_words(bits: int, along: int) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = drawn(bits, 45, lines=70)
    signed = (codes - 2 ** (bits - 1)).to(torch.int8)
    theirs = helpers.pack_to_int32(signed, bits, packed_dim=along)
    ours = pack(codes, bits) if along == 1 else pack(codes.T.contiguous(), bits).T
    assert torch.equal(ours, theirs)


def test_three_bit_codes_ten_and_twenty_one_lie_in_two_words() -> None:
    codes = torch.zeros(1, 32, dtype=torch.int16)
    codes[0, 10], codes[0, 21] = 0b101, 0b110
    assert pack(codes, 3).tolist() == [[1 << 30, 0b1, 0b11]]  # of 101 two bits and one, of 110 one (a 0) and two
    codes[0, 10], codes[0, 21] = 0b010, 0b001
    assert pack(codes, 3).tolist() == [[-(2**31), -(2**31), 0]]


def test_the_first_code_is_the_lowest_and_a_high_last_one_makes_the_word_negative() -> None:
    assert pack(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]]), 4).tolist() == [[0x87654321 - 2**32]]
    assert pack(torch.tensor([[255, 0, 0, 128]]), 8).tolist() == [[255 - 2**31]]
    assert unpack(torch.tensor([[-1]], dtype=torch.int32), 4, 8).tolist() == [[15] * 8]


def test_a_long_matrix_is_packed_piece_by_piece_into_the_same_words() -> None:
    codes = drawn(3, 70, lines=2500)
    packed = pack(codes, 3)
    assert torch.equal(torch.cat([pack(line[None], 3) for line in codes[::499]]), packed[::499])
    assert torch.equal(unpack(packed, 3, 70), codes)


def test_codes_that_do_not_fit_are_our_own_mistake() -> None:
    for codes in ([[16, 0]], [[-1, 0]]):
        with pytest.raises(AssertionError, match="do not fit into 4 bits"):
            pack(torch.tensor(codes), 4)


@pytest.mark.parametrize("length", [30, 43])
def test_words_that_are_too_few_or_too_many_are_refused(length: int) -> None:
    with pytest.raises(BadInput, match=rf"{length} codes of 3 bits take \d words, and 4 are there"):
        unpack(pack(drawn(3, 42), 3), 3, length)


def test_awq_order_is_a_permutation_and_reading_inverts_it() -> None:
    assert sorted(AWQ_ORDER) == list(range(8))
    assert [AWQ_ORDER.index(code) for code in range(8)] == [0, 4, 1, 5, 2, 6, 3, 7]
    codes = drawn(4, 48, lines=5)
    assert torch.equal(unpack_awq(pack_awq(codes)), codes)


def test_awq_words_by_hand_and_by_single_nibbles() -> None:
    assert pack_awq(torch.arange(8)[None]).tolist() == [[0x75316420]]
    codes = drawn(4, 24)
    expected = [
        by_single_bits([line[start + place] for start in range(0, 24, 8) for place in AWQ_ORDER], 4)
        for line in codes.tolist()
    ]
    assert pack_awq(codes).tolist() == expected


@pytest.mark.parametrize("length", [*LENGTHS, 20, 30, 40, 128])
def test_the_old_layout_of_three_bits_is_told_from_the_dense_one(length: int) -> None:
    codes = drawn(3, length, lines=40)
    old = torch.tensor([ten_to_a_word(line) for line in codes.tolist()], dtype=torch.int32)
    assert torch.equal(unpack_tens(old, length), codes)
    assert stands_ten_to_a_word(old, length)
    assert stands_ten_to_a_word(pack(codes, 3), length) == (length <= 10)  # there the two are one


def test_old_words_of_another_length_are_refused() -> None:
    with pytest.raises(BadInput, match="42 codes of 3 bits, ten to a word, take 5 words, and 4 are there"):
        unpack_tens(torch.zeros(2, 4, dtype=torch.int32), 42)


@pytest.mark.parametrize("group", ["row", "tensor", 8])
@pytest.mark.parametrize("scheme", ["sym", "sym_clipped", "sym_centred", "asym"])
def test_codes_that_count_from_zero_stand_for_the_same_weights(scheme: str, group: str | int) -> None:
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    layer = quantize(weight, Grid(bits=3, scheme=scheme, group=group))  # type: ignore[arg-type]
    found = unsigned(layer)
    assert int(found.codes.min()) >= 0 and int(found.codes.max()) <= 7 and found.scale.shape == found.zero.shape
    assert scheme == "asym" or found.zero.unique().tolist() == [4]
    size = 16 // found.scale.shape[1]
    zero, scale = (part.repeat_interleave(size, dim=1) for part in (found.zero, found.scale))
    assert torch.equal((found.codes - zero) * scale, dequantize(layer))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [3, 4])
def test_a_hundred_million_codes_take_less_than_three_seconds(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (10_000, 10_000), dtype=torch.int16)
    started = time.perf_counter()
    packed = pack(codes, bits)
    assert time.perf_counter() - started < 3.0
    assert packed.shape == (10_000, packed_width(10_000, bits))
