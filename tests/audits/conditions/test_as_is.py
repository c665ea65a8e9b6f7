"""Nothing is done, and nothing has to be undone."""

from __future__ import annotations

import torch

from letheon.audits.conditions.as_is import AsIs
from letheon.models import inspect_model, load_model
from tests.architectures.models import saved
from tests.toys import bits


def test_the_model_is_asked_as_its_file_has_it() -> None:
    folder = inspect_model(saved("llama"))
    model = load_model(folder.path)
    before = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    with AsIs().applied(model, folder):
        assert {name: bits(tensor) for name, tensor in model.state_dict().items()} == before
        ids = torch.arange(5).unsqueeze(0)
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, load_model(folder.path)(input_ids=ids).logits)
    assert "as they are" in AsIs().provenance
