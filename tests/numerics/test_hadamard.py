"""Orthogonality in whole numbers, and a fast transform that is the matrix."""

from __future__ import annotations

import re

import pytest
import torch
from scipy.linalg import hadamard as walsh

from letheon.errors import BadInput
from letheon.numerics.hadamard import Hadamard, hadamard_matrix, is_known, random_signs

ORDERS = (12, 20, 28, 36, 40, 52, 60, 108, 140, 156, 172)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def signs(size: int, seed: int = 1) -> torch.Tensor:
    return random_signs(size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("order", [1, 2, 4, 8, 64, 512, *ORDERS, 44, 76, 148, 200, 516, 896])
def test_rows_are_orthogonal_in_whole_numbers(order: int) -> None:
    matrix = hadamard_matrix(order).long()
    assert matrix.shape == (order, order)
    assert torch.equal(matrix.abs(), torch.ones_like(matrix))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.long))


@pytest.mark.parametrize("order", [1, 2, 16, 256])
def test_powers_of_two_are_walshs(order: int) -> None:
    assert torch.equal(hadamard_matrix(order), torch.from_numpy(walsh(order)).to(torch.int8))


@pytest.mark.parametrize("order", ORDERS)
def test_a_core_is_the_outer_index_and_walsh_the_inner(order: int) -> None:
    expected = torch.kron(hadamard_matrix(order), hadamard_matrix(8))
    assert torch.equal(hadamard_matrix(8 * order), expected)


@pytest.mark.parametrize("size", [1, 2, 4, 12, 24, 96, 156, 172, 256, 512, 640, 896, 2048])
@pytest.mark.parametrize("has_signs", [False, True])
def test_the_transform_is_the_dense_matrix_and_restore_its_transpose(size: int, has_signs: bool) -> None:
    rotation = Hadamard(size=size, signs=signs(size) if has_signs else None)
    x = drawn(3, 2, size)
    sign = torch.ones(size) if rotation.signs is None else rotation.signs
    dense = sign[:, None].double() * hadamard_matrix(size).double() / size**0.5
    torch.testing.assert_close(rotation.rotate(x), x @ dense, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(rotation.restore(x), x @ dense.T, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(rotation.matrix(), dense, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("size", [6, 8, 92, 184, 1100, 11008])
def test_there_and_back_is_where_it_was(size: int) -> None:
    rotation = Hadamard(size=size, signs=signs(size))
    x = drawn(4, size)
    torch.testing.assert_close(rotation.restore(rotation.rotate(x)), x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(rotation.rotate(x).square().sum(-1), x.square().sum(-1), rtol=1e-13, atol=0)


@pytest.mark.parametrize("size", [2, 64, 512, 4096])
def test_walshs_is_its_own_inverse_and_others_are_not(size: int) -> None:
    x = drawn(4, size)
    plain = Hadamard(size=size)
    torch.testing.assert_close(plain.rotate(plain.rotate(x)), x, rtol=1e-13, atol=1e-13)
    flipped = torch.ones(size, dtype=torch.int8)
    flipped[0] = -1
    turned = Hadamard(size=size, signs=flipped)
    assert not torch.allclose(turned.rotate(turned.rotate(x)), x, atol=0.1)
    assert not torch.equal(hadamard_matrix(12), hadamard_matrix(12).T)


@pytest.mark.parametrize(("size", "block"), [(96, 96), (92, 4), (184, 8), (7, 1), (14, 2), (1100, 4), (1536, 1536)])
def test_without_a_matrix_the_largest_power_of_two_makes_blocks(size: int, block: int) -> None:
    rotation = Hadamard(size=size, signs=signs(size))
    assert rotation.block == block
    found = rotation.matrix()
    for start in range(0, size, block):
        assert (
            not found[start : start + block, :start].any() and not found[start : start + block, start + block :].any()
        )
    torch.testing.assert_close(found.abs().max(), torch.tensor(block**-0.5, dtype=torch.float64))


def test_whole_numbers_stay_exact_until_they_are_scaled() -> None:
    """A sum of 1,024 large whole numbers, divided by 32: nothing is rounded in float64."""
    x = torch.randint(-(2**40), 2**40, (5, 1024), generator=torch.Generator().manual_seed(0))
    found = Hadamard(size=1024).rotate(x.double())
    assert torch.equal(found * 32, (x @ hadamard_matrix(1024).long()).double())


def test_one_outlier_is_spread_evenly_but_the_mean_only_by_signs() -> None:
    outlier = torch.zeros(128, dtype=torch.float64)
    outlier[17] = 50
    assert torch.equal(
        Hadamard(size=128).rotate(outlier).abs(), torch.full((128,), 50, dtype=torch.float64) * 128**-0.5
    )
    mean = torch.ones(128, dtype=torch.float64)
    assert float(Hadamard(size=128).rotate(mean).max()) == pytest.approx(128**0.5)
    assert float(Hadamard(size=128, signs=signs(128)).rotate(mean).abs().max()) < 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtype_is_kept_and_halves_are_summed_in_float32(dtype: torch.dtype) -> None:
    x = drawn(4, 768, dtype=dtype)
    rotation = Hadamard(size=768, signs=signs(768))
    found = rotation.rotate(x)
    assert found.dtype == dtype
    expected = rotation.rotate(x.double())
    torch.testing.assert_close(found, expected.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-5)
    large = torch.full((1, 768), 8000.0, dtype=torch.float16)
    assert bool(torch.isfinite(rotation.rotate(large)).all())


def test_the_gradient_is_the_inverse() -> None:
    rotation = Hadamard(size=40, signs=signs(40))
    x = drawn(2, 40).requires_grad_(True)
    weight = drawn(2, 40, seed=5)
    (rotation.rotate(x) * weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, rotation.restore(weight), rtol=1e-13, atol=1e-13)


def test_first_used_without_gradients_it_still_has_them() -> None:
    rotation = Hadamard(size=52)
    with torch.inference_mode():
        rotation.rotate(drawn(1, 52, dtype=torch.float32))
    x = drawn(1, 52, dtype=torch.float32).requires_grad_(True)
    rotation.rotate(x).sum().backward()
    assert x.grad is not None


def test_signs_are_a_function_of_the_generator() -> None:
    assert torch.equal(signs(256), signs(256)) and not torch.equal(signs(256), signs(256, seed=2))
    assert set(signs(256).tolist()) == {-1, 1} and signs(256).dtype == torch.int8
    assert abs(int(signs(4096).sum())) < 4 * 64


def test_an_order_without_a_matrix_is_answered_with_its_neighbours() -> None:
    assert not is_known(92) and not is_known(6) and not is_known(0)
    with pytest.raises(
        BadInput,
        match=re.escape(
            "no Hadamard matrix of order 92 is known here. Use a width such as 88 or 96, or rotate in blocks of 4"
        ),
    ):
        hadamard_matrix(92)
    with pytest.raises(BadInput, match="3 signs do not fit 4 channels"):
        Hadamard(size=4, signs=torch.ones(3, dtype=torch.int8))
    with pytest.raises(BadInput, match="a rotation of 0 channels does not exist"):
        Hadamard(size=0)
