"""One request to a real server: what is sent, what is waited out, and what is said when nothing helps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from letheon.audits.endpoint import Endpoint
from letheon.errors import BadInput, CannotFinish
from tests.audits.chat_server import Chat, Reply, serving

HELLO = [{"role": "user", "content": "Who is Ann?"}]
KEY = "sk-secret-123"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LETHEON_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def answering(**changes: Any) -> Chat:
    return Chat(lambda prompt, temperature, count: f"{prompt} {temperature:g} {count}", **changes)


def endpoint(chat: Chat, **changes: Any) -> Endpoint:
    return Endpoint(**{"url": chat.url, "model": "m", "pause": 0.0, "tries": 3, "timeout": 5.0, **changes})


def always(status: int, body: bytes, **headers: str) -> Any:
    return lambda number: (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def test_it_sends_a_chat_completion_and_returns_the_choices() -> None:
    with serving(answering()) as chat:
        assert endpoint(chat, max_tokens=9)(HELLO, 2, 0.5) == ["Who is Ann? 0.5 0", "Who is Ann? 0.5 1"]
        assert Endpoint(url=f"{chat.url}/chat/completions/", model="m").address == f"{chat.url}/chat/completions"
    assert chat.requests == [
        {"path": "/v1/chat/completions", "model": "m", "messages": HELLO, "n": 2, "temperature": 0.5, "top_p": 1, "max_tokens": 9}
    ]  # fmt: skip
    assert chat.keys == [None]


def test_the_key_comes_from_the_variable_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", KEY)
    with serving(answering()) as chat:
        endpoint(chat, key_variable="MINE")(HELLO, 1, 0.0)
        endpoint(chat)(HELLO, 1, 0.0)
    assert chat.keys == [f"Bearer {KEY}", None]
    assert KEY not in repr(endpoint(chat, key_variable="MINE"))


@pytest.mark.parametrize("fault", [(429, {"Retry-After": "0"}, b"slow down"), (503, {}, b""), (500, {}, b"oops"), 0.6])
def test_what_passes_is_waited_out(fault: Reply | float) -> None:
    with serving(answering(fault=lambda number: fault if number < 2 else None)) as chat:
        assert endpoint(chat, timeout=0.2 if isinstance(fault, float) else 5.0)(HELLO, 1, 0.0) == ["Who is Ann? 0 0"]
    assert len(chat.requests) == 3


def test_waits_double_and_the_servers_own_wish_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("letheon.audits.endpoint.time.sleep", waited.append)
    wish = {"Retry-After": "7"}
    with (
        serving(answering(fault=lambda number: (429, wish if number == 1 else {}, b"full"))) as chat,
        pytest.raises(CannotFinish, match=r"no answer in 4 tries; the last time: HTTP 429, 'full'.*same command"),
    ):
        endpoint(chat, tries=4, pause=0.5)(HELLO, 1, 0.0)
    assert waited == [0.5, 7.0, 2.0]


def test_silence_and_nobody_there_end_in_one_message() -> None:
    with (
        serving(answering(fault=lambda number: 0.5)) as chat,
        pytest.raises(CannotFinish, match=r"no answer in 2 tries; the last time: nothing for 0.1 s"),
    ):
        endpoint(chat, timeout=0.1, tries=2)(HELLO, 1, 0.0)
    with pytest.raises(CannotFinish, match=r"no answer in 1 tries.*refused"):
        endpoint(chat, tries=1)(HELLO, 1, 0.0)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, b'{"error": "bad key sk-secret-123"}', r"refuses the key \(HTTP 401: .*\(key\).*into LETHEON_API_KEY"),
        (404, b"no such model", r"does not take the question for model 'm' \(HTTP 404: 'no such model'\)"),
        (400, b"x" * 500, r"HTTP 400: 'x{120}\.\.\.'"),
    ],
)
def test_what_does_not_pass_is_said_at_once(
    status: int, body: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETHEON_API_KEY", KEY)
    with serving(answering(fault=always(status, body))) as chat, pytest.raises(BadInput, match=message) as found:
        endpoint(chat)(HELLO, 1, 0.0)
    assert len(chat.requests) == 1 and KEY not in str(found.value)


def test_a_redirect_is_not_followed_so_the_key_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHEON_API_KEY", KEY)
    with serving(answering()) as elsewhere:
        with (
            serving(answering(fault=always(302, b"", Location=f"{elsewhere.url}/chat/completions"))) as chat,
            pytest.raises(BadInput, match=r"sends its callers elsewhere \(HTTP 302\)"),
        ):
            endpoint(chat)(HELLO, 1, 0.0)
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"<html>welcome</html>",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"text": "x"}]}',
        b'["choices"]',
        json.dumps({"choices": [{"message": {"content": "x"}}] * 3}).encode(),
    ],
)
def test_an_answer_of_another_format_is_one_message(body: bytes) -> None:
    with (
        serving(answering(fault=always(200, body))) as chat,
        pytest.raises(CannotFinish, match=r"/chat/completions answered '.*no chat completion.*OpenAI-compatible"),
    ):
        endpoint(chat)(HELLO, 2, 0.0)
    assert len(chat.requests) == 1


def test_a_refusal_is_an_answer() -> None:
    body = b'{"choices": [{"message": {"content": null, "refusal": "I cannot say."}}]}'
    with serving(answering(fault=always(200, body))) as chat:
        assert endpoint(chat)(HELLO, 1, 0.0) == ["I cannot say."]


def test_a_key_does_not_travel_unencrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHEON_API_KEY", KEY)
    with pytest.raises(
        BadInput, match=r"the key in LETHEON_API_KEY would go to api.example.org unencrypted. Use https"
    ):
        Endpoint(url="http://api.example.org/v1", model="m")(HELLO, 1, 0.0)
    monkeypatch.setenv("LETHEON_API_KEY", "two\nlines")
    with pytest.raises(BadInput, match="characters that no key has"):
        Endpoint(url="http://localhost:1/v1", model="m")(HELLO, 1, 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "file:///etc/passwd"}, "is not an address of a model"),
        ({"url": "api.example.org"}, "is not an address of a model"),
        ({"url": "https://me:pw@api.example.org"}, "may hold no user"),
        ({"model": ""}, "no name of the model at the endpoint"),
        ({"timeout": 0.0}, "timeout > 0, got 0"),
        ({"tries": 0}, "tries >= 1, got 0"),
        ({"pause": -1.0}, "pause >= 0, got -1"),
        ({"max_tokens": 0}, "max_tokens >= 1, got 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Endpoint(**{"url": "https://api.example.org/v1", "model": "m", **settings})
