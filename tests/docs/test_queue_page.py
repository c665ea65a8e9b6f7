"""The queue on the page about recipes runs as it stands there, from YAML and from Python."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import letheon
from letheon.recipes.recipe import load_recipe
from letheon.runs.progress import Progress
from letheon.tiny.world import WorldSize, write_world
from tests.toys import llama, tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "recipe.md").read_text(encoding="utf-8")
SIZE = WorldSize(forget=6, retain=5, holdout=8, attributes=1, countries=4, texts=1)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def queue() -> str:
    (found,) = (block for block in blocks("yaml") if block.startswith("# queue.yaml"))
    return str(found)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything that the page names."""
    files = write_world(tmp_path / "world", 0, SIZE)
    lines = files["forget"].read_text(encoding="utf-8").splitlines(keepends=True)
    people = list(dict.fromkeys(json.loads(line)["unit"] for line in lines))
    for name, some in (("first", people[:3]), ("second", people[3:])):
        chosen = [line for line in lines if json.loads(line)["unit"] in some]
        (tmp_path / f"{name}.jsonl").write_text("".join(chosen), encoding="utf-8")
    for name in ("retain", "holdout", "general"):
        (tmp_path / f"{name}.jsonl").write_bytes(files[name].read_bytes())
    llama().save_pretrained(tmp_path / "MODEL")
    tokenizer().save_pretrained(tmp_path / "MODEL")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_recipe_on_the_page_is_one(here: Path) -> None:
    """What is shown of a queue alone is one in the place of the queue's own requests."""
    whole = queue()
    requests = whole[whole.index("requests:") : whole.index("\nsteps:") + 1]
    for text in blocks("yaml"):
        (here / "recipe.yaml").write_text(
            text if "\nsteps:" in text else whole.replace(requests, text), encoding="utf-8"
        )
        assert load_recipe("recipe.yaml").steps


@pytest.mark.slow
def test_the_queue_runs_as_it_stands_on_the_page(here: Path) -> None:
    (here / "queue.yaml").write_text(queue(), encoding="utf-8")
    done = letheon.run("queue.yaml", progress=Progress(quiet=True))
    assert [one.folder for one in done.requests] == [Path("runs/queue/request-1"), Path("runs/queue/request-2")]
    found = json.loads((here / "runs/queue/request-2/audit.json").read_text(encoding="utf-8"))
    assert [one["data"]["units"] for one in found["requests"]] == [3, 3]
    assert done.verdict.word == "INCONCLUSIVE", "this model never knew anybody"


def test_the_queue_in_python_is_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (block for block in blocks("python") if "Recipe(" in block)
    given: list[Any] = []

    def look(recipe: Any) -> Any:
        given.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr(letheon, "run", look)
    with pytest.raises(KeyboardInterrupt):
        exec(code, {})
    assert [step.verb for step in given[0].steps] == ["forget", "audit"] and len(given[0].requests) == 2
    monkeypatch.undo()
    from letheon.recipes.recipe import faults

    assert faults(given[0], allow_code=False) == []
