"""Nothing happens."""

from __future__ import annotations

from letheon.lowbit.rotations.none import NoRotation
from tests.architectures.models import make_model
from tests.toys import bits


def test_no_rotation_changes_nothing() -> None:
    model = make_model("llama_tied")
    before, config = [bits(parameter) for parameter in model.parameters()], model.config.to_dict()
    NoRotation().check(model)
    rotated = NoRotation().rotate(model)
    assert [bits(parameter) for parameter in model.parameters()] == before and model.config.to_dict() == config
    assert not rotated.online.keys and not rotated.online.down and not rotated.is_untied and not rotated.choices
