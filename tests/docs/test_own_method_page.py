"""The example on the page about own methods is a method: it is found by path, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from letheon.errors import BadInput
from letheon.methods import build, card

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-method.md"


@pytest.fixture
def path(tmp_path: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "hinge.py"
    file.write_text(code, encoding="utf-8")
    return str(file)


def hinge(path: str, **settings: Any) -> Any:
    return build("forget_term", {"name": path, **settings})


def test_its_card_is_read(path: str) -> None:
    found = card("forget_term", path)
    assert (found.name, [setting.name for setting in found.settings]) == ("hinge", ["floor"])
    assert found.source == "an example"


def test_it_pushes_above_the_floor_and_lets_go_below(path: str) -> None:
    current = torch.tensor([-1.0, -5.0], requires_grad=True)
    total, count = hinge(path, floor=-2.5).loss(current)
    total.backward()
    assert (total.item(), count) == (1.5, 2)
    assert current.grad is not None
    assert current.grad.tolist() == [1.0, 0.0]


def test_it_refuses_a_floor_above_zero(path: str) -> None:
    with pytest.raises(BadInput, match=r"hinge needs floor < 0 nats a token, got 1\.0"):
        hinge(path, floor=1.0)
