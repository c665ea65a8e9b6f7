"""`letheon ask`: what a person sees of a model that can only be asked, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.audits.chat_server import Chat, serving

Letheon = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LETHEON_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def potters(prompt: str, temperature: float, count: int) -> str:
    return "A potter." if "Ada" in prompt else "Nobody I know."


def test_numbers_a_control_and_no_verdict(letheon: Letheon, here: Path) -> None:
    with serving(Chat(potters)) as chat:
        ended = letheon("ask", chat.url, "--model", "m", "--forget", "f.jsonl", "--retain", "r.jsonl", "--samples", "2")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert any(
        line.startswith("accuracy") and "forget (4 questions, 4 units)" in line and "0.250" in line for line in lines
    )
    assert any(line.startswith("leak@2") for line in lines)
    assert "control: 4 of the same questions about invented names" in ended.out
    assert "Numbers and no verdict" in ended.out and "need weights" in ended.out
    assert (here / "runs/ask/ask.json").exists()


def test_json_says_that_there_is_no_verdict(letheon: Letheon, here: Path) -> None:
    with serving(Chat(potters)) as chat:
        given = ("ask", chat.url, "--model", "m", "--forget", "f.jsonl", "--samples", "0", "--json", "--quiet")
        said = json.loads(letheon(*given).out)
    assert said["command"] == "ask" and said["verdict"] is None and said["exit_code"] == 0
    assert said["not_measured"]["condition quantized"] == "not measured: needs weights"


@pytest.mark.parametrize(
    ("reply", "code", "message"),
    [
        ((200, {}, b"{no"), 4, "no chat completion"),
        ((401, {}, b"no"), 2, "Put a valid one into LETHEON_API_KEY"),
        ((500, {}, b"no"), 4, "the same command goes on"),
    ],
)
def test_what_goes_wrong_is_one_message(reply: Any, code: int, message: str, letheon: Letheon, here: Path) -> None:
    with serving(Chat(potters, fault=lambda number: reply)) as chat:
        ended = letheon("ask", chat.url, "--model", "m", "--forget", "f.jsonl", "--tries", "1", "--quiet")
    assert ended.code == code and message in ended.err
    assert len(ended.err.strip().splitlines()) == 1 and ended.err.startswith("letheon ask: ")


def test_an_interruption_can_be_continued(letheon: Letheon, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("letheon.audits.endpoint.Endpoint.__call__", interrupted)
    ended = letheon("ask", "http://localhost:1/v1", "--model", "m", "--forget", "f.jsonl")
    assert ended.code == 130 and "The same command continues where it stopped" in ended.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("localhost:8000", "--model", "m", "--forget", "f.jsonl"), "is not an address of a model"),
        (("http://localhost:1/v1", "--model", "m", "--forget", "f.jsonl", "--temperatures", "a"), "are no numbers"),
        (("http://localhost:1/v1", "--model", "m", "--forget", "f.jsonl", "--columns", "a"), "has no '='"),
        (("http://localhost:1/v1", "--forget", "f.jsonl"), "--model"),
    ],
)
def test_what_was_asked_wrongly(args: Any, message: str, letheon: Letheon, here: Path) -> None:
    ended = letheon("ask", *args)
    assert ended.code == 2 and message in ended.err
