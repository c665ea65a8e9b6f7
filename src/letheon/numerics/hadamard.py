"""Hadamard matrices and the rotations made of them: +-1 entries, orthogonal rows, any vector spread over all channels.

    R = diag(signs) (I_(n / b) (x) H_b) / sqrt(b)        rotated x = x R        back: y R^T
with b = n where a Hadamard matrix of order n is known here, else the largest power of two that divides n (a rotation
of blocks: an outlier stays within its block). H_n = H_K (x) H_2 (x) ... (x) H_2, so n = K 2^p; without signs and with
K = 1 it is Walsh's matrix, which is symmetric: R R = I. Its first row is constant and collects the mean of x, which
random signs prevent.

Every matrix is constructed when it is asked for; none is stored. chi(a) is +1 for squares mod a prime q, else -1:
    Paley I       q + 1,     q = 3 mod 4     12 20 60 108 140     skew: I + [[0, 1], [-1, chi(i - j)]]
    Paley II      2 (q + 1), q = 1 mod 4     28 36                C (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]]
    Kronecker     2 n                        40
    Williamson    4 m                        52 172               four symmetric circulants with A^2 + .. + D^2 = 4m I,
                                                                  constant on cosets of the residues, searched for
    Cooper-Wallis 12 m                       156                  the same four in three places each, m = 13
and other orders of these kinds up to 1024. Where there is no K below that, b is the power of two.

The transform costs n times the sum of a few factors of at most 128 each (a matrix product along every axis of x as a
box), which on a CPU took a quarter of the time of a butterfly at n = 8192 and a sixth at n = 512.

Source: Paley 1933; Williamson 1944; Cooper and Wallis 1972; QuaRot arXiv:2404.00456 (n = K 2^p, signs).
Checked against: H H^T = n I in whole numbers; scipy's Walsh matrix; the dense matrix; float64 to 1e-13.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from letheon.errors import BadInput, require

_LARGEST_ORDER = 1024
"""Of a matrix that is not Walsh's: it is applied as a whole."""
_LARGEST_FACTOR = 7
"""log2 of the largest Walsh matrix that is applied as a whole."""
_WILLIAMSON = {13: 4, 43: 6}
"""m -> order of the residues (they hold -1) on whose cosets the four circulants are constant."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Hadamard:
    """A rotation R of vectors of `size` channels; see the module's docstring."""

    size: int
    """n, at least 1."""
    signs: Int[Tensor, " size"] | None = None
    """+1 or -1 for every channel, int8; None: all +1."""

    def __post_init__(self) -> None:
        require(self.size >= 1, f"a rotation of {self.size} channels does not exist. Give a width of 1 or more")
        require(
            self.signs is None or self.signs.shape == (self.size,),
            f"{None if self.signs is None else len(self.signs)} signs do not fit {self.size} channels",
        )

    @property
    def block(self) -> int:
        """b, the channels that are mixed with one another: `size`, or the largest power of two that divides it."""
        return self.size if is_known(self.size) else self.size & -self.size

    def rotate(self, x: Float[Tensor, "*shape size"]) -> Float[Tensor, "*shape size"]:
        """X R, in the dtype of x; half precisions are computed in float32. Differentiable."""
        wide = _widened(x)
        if self.signs is not None:
            wide = wide * self.signs.to(wide)
        return _transform(wide, self.block, is_inverse=False).to(x.dtype)

    def restore(self, y: Float[Tensor, "*shape size"]) -> Float[Tensor, "*shape size"]:
        """Y R^T: the inverse of `rotate`."""
        wide = _transform(_widened(y), self.block, is_inverse=True)
        if self.signs is not None:
            wide = wide * self.signs.to(wide)
        return wide.to(y.dtype)

    def matrix(self) -> Float[Tensor, "size size"]:
        """R, float64."""
        return self.rotate(torch.eye(self.size, dtype=torch.float64))


def random_signs(size: int, generator: torch.Generator) -> Int[Tensor, " size"]:
    """+1 or -1, int8, each with probability one half."""
    drawn = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8)
    return drawn * 2 - 1


@cache
def is_known(size: int) -> bool:
    """Whether a Hadamard matrix of this order can be made here."""
    return _order(size) is not None


@cache
def hadamard_matrix(size: int) -> Int[Tensor, "size size"]:
    """A matrix of +1 and -1 with H H^T = size I, int8; always the same one. Not to be changed in place.

    Raises:
        BadInput: no construction for this order.

    >>> hadamard_matrix(2)
    tensor([[ 1,  1],
            [ 1, -1]], dtype=torch.int8)
    """
    order = _order(size)
    if order is None:
        raise BadInput(
            f"no Hadamard matrix of order {size} is known here. Use a width such as {_near(size)}, "
            f"or rotate in blocks of {size & -size}"
        )
    made = _core(order)
    while len(made) < size:
        made = torch.kron(made, _WALSH)
    return made


_WALSH = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)


def _near(size: int) -> str:
    """The nearest orders below and above."""
    below = next(other for other in range(size, 0, -1) if is_known(other))
    above = next(other for other in itertools.count(size) if is_known(other))
    return f"{below} or {above}"


@cache
def _order(size: int) -> int | None:
    """The smallest K with a matrix of its own and size = K 2^p; None where there is none."""
    if size < 1:
        return None
    order = size // (size & -size)
    while order <= min(size, _LARGEST_ORDER):
        if size % order == 0 and _construction(order) is not None:
            return order
        order *= 2
    return None


@cache
def _construction(order: int) -> str | None:
    if order == 1:
        return "one"
    if order % 4:
        return None
    if _is_prime(order - 1):
        return "paley_one"
    if order % 8 == 4 and _is_prime(order // 2 - 1):
        return "paley_two"
    if order // 4 in _WILLIAMSON:
        return "williamson"
    return "cooper_wallis" if order % 12 == 0 and order // 12 in _WILLIAMSON else None


@cache
def _core(order: int) -> Tensor:
    """The K x K matrix, int8."""
    made = {
        "one": lambda: torch.ones(1, 1, dtype=torch.int8),
        "paley_one": lambda: _paley_one(order - 1),
        "paley_two": lambda: _paley_two(order // 2 - 1),
        "williamson": lambda: _williamson(order // 4),
        "cooper_wallis": lambda: _cooper_wallis(order // 12),
    }
    return made[str(_construction(order))]()


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _conference(prime: int) -> Tensor:
    """C with zeros on its diagonal, +-1 elsewhere and C C^T = q I; skew for q = 3 mod 4, symmetric for q = 1 mod 4."""
    chi = torch.full((prime,), -1, dtype=torch.int8)
    chi[(torch.arange(1, prime) ** 2) % prime] = 1
    chi[0] = 0
    places = torch.arange(prime)
    made = torch.ones(prime + 1, prime + 1, dtype=torch.int8)
    made[0, 0] = 0
    made[1:, 0] = 1 if prime % 4 == 1 else -1
    made[1:, 1:] = chi[(places[:, None] - places) % prime]
    return made


def _paley_one(prime: int) -> Tensor:
    return _conference(prime) + torch.eye(prime + 1, dtype=torch.int8)


def _paley_two(prime: int) -> Tensor:
    turned = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
    return torch.kron(_conference(prime), _WALSH) + torch.kron(torch.eye(prime + 1, dtype=torch.int8), turned)


def _williamson(size: int) -> Tensor:
    a, b, c, d = (_circulant(row) for row in _williamson_rows(size))
    rows = ((a, b, c, d), (-b, a, -d, c), (-c, d, a, -b), (-d, -c, b, a))
    return torch.cat([torch.cat(row, 1) for row in rows])


def _cooper_wallis(size: int) -> Tensor:
    """Four circulants of 3 x 3 blocks, each with three of Williamson's four, in the array of Goethals and Seidel."""
    a, b, c, d = (_circulant(row) for row in _williamson_rows(size))
    letters = ((a, b, c), (-b, a, d), (-c, -d, a), (-d, c, -b))
    shifts = [torch.eye(3, dtype=torch.int8).roll(shift, 1) for shift in range(3)]
    a, b, c, d = (
        torch.stack([torch.kron(shift, part) for shift, part in zip(shifts, row, strict=True)]).sum(0, dtype=torch.int8)
        for row in letters
    )
    turn = torch.kron(torch.eye(3, dtype=torch.int8).flip(0), torch.eye(size, dtype=torch.int8))
    rows = (
        (a, b @ turn, c @ turn, d @ turn),
        (-b @ turn, a, d.T @ turn, -c.T @ turn),
        (-c @ turn, -d.T @ turn, a, b.T @ turn),
        (-d @ turn, c.T @ turn, -b.T @ turn, a),
    )
    return torch.cat([torch.cat(row, 1) for row in rows])


def _circulant(row: Tensor) -> Tensor:
    places = torch.arange(len(row))
    return row[(places[:, None] - places) % len(row)]


@cache
def _williamson_rows(size: int) -> Tensor:
    """First rows of four symmetric circulants whose autocorrelations cancel, (4, m); the first found."""
    residues = _WILLIAMSON[size]
    cosets, shifts = _cosets(size, residues)
    choices = torch.tensor(list(itertools.product((1, -1), repeat=len(shifts))), dtype=torch.int8)
    rows = choices[:, cosets]
    rows[:, 0] = 1
    correlation = torch.stack([(rows.int() * rows.int().roll(shift, 1)).sum(1) for shift in shifts], 1)
    pairs: dict[tuple[int, ...], tuple[int, int]] = {}
    for first, second in itertools.combinations_with_replacement(range(len(rows)), 2):
        pairs.setdefault(tuple((correlation[first] + correlation[second]).tolist()), (first, second))
    for total, pair in pairs.items():
        if (other := pairs.get(tuple(-value for value in total))) is not None:
            return rows[[*pair, *other]]
    raise AssertionError(f"no Williamson matrices of order {size} with {residues} residues")


def _cosets(prime: int, residues: int) -> tuple[Tensor, list[int]]:
    """The coset of every number but 0 under the subgroup of that order, and one member of each."""
    count = (prime - 1) // residues
    root = next(root for root in range(2, prime) if len({pow(root, k, prime) for k in range(prime - 1)}) == prime - 1)
    cosets = torch.zeros(prime, dtype=torch.long)
    for power in range(prime - 1):
        cosets[pow(root, power, prime)] = power % count
    return cosets, [pow(root, power, prime) for power in range(count)]


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _transform(x: Tensor, block: int, *, is_inverse: bool) -> Tensor:
    """Each stretch of `block` channels times H / sqrt(block), or its transpose, along every axis of it as a box."""
    shape, left = x.shape, block
    for factor in _factors(block):
        matrix = _factor(factor, x.dtype, x.device)
        matrix = matrix.T if is_inverse else matrix
        left //= factor
        x = x.reshape(-1, factor) @ matrix if left == 1 else matrix.T @ x.reshape(-1, factor, left)
    scaled: Tensor = x.reshape(shape) * block**-0.5
    return scaled


@cache
def _factors(block: int) -> tuple[int, ...]:
    """Orders whose product is the block: K, then powers of two of about one size."""
    order = _order(block)
    assert order is not None
    power = (block // order).bit_length() - 1
    count = -(-power // _LARGEST_FACTOR)
    walsh = [2 ** (power // count + (place < power % count)) for place in range(count)]
    return tuple(factor for factor in (order, *walsh) if factor > 1) or (1,)


@cache
def _factor(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # kept for a pass that needs gradients
        return hadamard_matrix(order).to(device, dtype)
