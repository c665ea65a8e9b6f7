"""What `import letheon` offers, and what it costs."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

import letheon

HEAVY = ("torch", "transformers", "numpy", "scipy", "matplotlib", "tokenizers", "safetensors")


def test_all_is_sorted_and_holds_every_public_name_and_no_other() -> None:
    assert letheon.__all__ == sorted(letheon.__all__)
    assert set(letheon.__all__) == {"__version__", *letheon._MODULES}


@pytest.mark.parametrize("name", sorted(letheon._MODULES))
def test_every_name_is_the_function_of_its_module(name: str) -> None:
    function = getattr(letheon, name)
    assert inspect.isfunction(function)
    assert function is getattr(importlib.import_module(letheon._MODULES[name]), name)
    assert inspect.getdoc(function), f"letheon.{name} has no docstring"


def test_type_checkers_are_told_the_same_modules() -> None:
    source = inspect.getsource(letheon)
    for name, module in letheon._MODULES.items():
        assert f"    from {module} import {name}\n" in source


def test_no_package_has_the_name_of_a_function() -> None:
    # `import letheon.audit` would otherwise put the package in the function's place.
    for name in letheon._MODULES:
        assert importlib.util.find_spec(f"letheon.{name}") is None


def test_dir_lists_the_names_before_they_are_used() -> None:
    assert set(letheon.__all__) <= set(dir(letheon))


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'forgte'\. Public names: .*\bforget\b"):
        letheon.forgte  # noqa: B018


@pytest.mark.parametrize("statement", ["import letheon", "import letheon.cli.main", "import letheon.methods"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    code = f"{statement}; import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_listing_the_methods_loads_no_torch() -> None:
    code = "import letheon.methods, sys; letheon.methods.cards(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
