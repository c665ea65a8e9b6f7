"""The templates that stand beside this file; whatever is put into one is escaped.

Source: this project.  Checked against: an answer that is a script; a name that a template wants and is not given.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any


def template(name: str) -> Any:
    """A template by its file name."""
    return _environment().get_template(name)


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
