"""A model behind an OpenAI-compatible address: POST URL/chat/completions, by the standard library alone.

    messages, n, temperature -> 1 to n answers    a server that gives one choice at a time is asked again by the caller
Waited out are timeouts, refused connections, 408, 409, 429 and 5xx: `tries` times, 1, 2, 4, ... s apart, or as long as
the server asks for. The key is read from an environment variable for each request and stands in no file and no message;
it goes to the address that was given and nowhere else: redirects are not followed, and not without encryption.

Source: the OpenAI chat completions format.  Checked against: a real server that answers, stalls, fails, is full, talks
HTML, sends the caller elsewhere, and gives fewer choices.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from letheon.errors import BadInput, CannotFinish, require

Message = Mapping[str, str]
Asked = Callable[[Sequence[Message], int, float], Sequence[str]]
"""(messages, n, temperature) -> 1 to n answers."""
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""What a server says when it might answer later."""
_HERE = ("localhost", "127.0.0.1", "::1")
_SHOWN = 120
_LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a model is asked, and how patiently."""

    url: str
    """Up to the version, as in https://api.example.org/v1."""
    model: str
    """Its name there."""
    key_variable: str = "LETHEON_API_KEY"
    """Environment variable that holds the key; not set: none is sent."""
    timeout: float = 60.0
    """Seconds without a word from the server, > 0."""
    tries: int = 5
    """Times that a request is sent before giving up, >= 1."""
    pause: float = 1.0
    """Seconds before the second try, doubled for each further one, >= 0."""
    max_tokens: int = 64
    """Longest answer in tokens, >= 1."""

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        require(usable, f"{self.url!r} is not an address of a model. Give one such as https://api.example.org/v1")
        require(
            not parts.username and not parts.query,
            "an address may hold no user and no ?query. Put the key into an environment variable (--key-variable NAME)",
        )
        require(bool(self.model), "no name of the model at the endpoint. Give --model NAME")
        require(self.timeout > 0, f"an endpoint needs timeout > 0, got {self.timeout}")
        require(self.tries >= 1, f"an endpoint needs tries >= 1, got {self.tries}")
        require(self.pause >= 0, f"an endpoint needs pause >= 0, got {self.pause}")
        require(self.max_tokens >= 1, f"an endpoint needs max_tokens >= 1, got {self.max_tokens}")

    @property
    def address(self) -> str:
        """What is posted to."""
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"

    def __call__(self, messages: Sequence[Message], n: int, temperature: float) -> list[str]:
        """Ask once.

        Args:
            messages: of a conversation, {"role", "content"}.
            n: answers wanted, >= 1.
            temperature: 0: the likeliest.
        Returns:
            1 to n answers: not every server gives several choices.
        Raises:
            BadInput: an address, a name or a key that the server does not take.
            CannotFinish: no answer after all tries, or one that is not of the format.
        """
        body = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "n": n,
            "temperature": temperature,
            "top_p": 1,
            "max_tokens": self.max_tokens,
        }
        return self._choices(self._patiently(json.dumps(body).encode()), n)

    # --- inside

    def _patiently(self, body: bytes) -> bytes:
        """The server's answer, after as many tries as it takes."""
        reason = ""
        for tried in range(self.tries):
            try:
                return self._post(body)
            except _Later as later:
                reason = str(later)
                if tried + 1 < self.tries:
                    asked = later.wait if later.wait is not None else self.pause * 2**tried
                    time.sleep(min(asked, _LONGEST_WAIT_S))
        raise CannotFinish(
            f"{self.address} gave no answer in {self.tries} tries; the last time: {reason}. Answers so far are kept: "
            "the same command goes on with the rest. Or give more --tries or a longer --timeout"
        )

    def _post(self, body: bytes) -> bytes:
        request = urllib.request.Request(self.address, body, self._headers(), method="POST")
        try:
            with urllib.request.build_opener(_Stay).open(request, timeout=self.timeout) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error.code, error.headers.get("Retry-After"), error.read(4096)) from None
        except TimeoutError:
            raise _Later(f"nothing for {self.timeout:g} s") from None
        except urllib.error.URLError as error:
            reason = f"nothing for {self.timeout:g} s" if isinstance(error.reason, TimeoutError) else str(error.reason)
            raise _Later(reason) from None
        except (http.client.HTTPException, ConnectionError) as error:
            raise _Later(f"the connection broke ({type(error).__name__})") from None

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "letheon"}
        key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        if not key:
            return headers
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme != "https" and parts.hostname not in _HERE:
            raise BadInput(
                f"the key in {self.key_variable} would go to {parts.hostname} unencrypted. Use https, or unset it"
            )
        if not (key.isascii() and key.isprintable()):
            raise BadInput(f"the key in {self.key_variable} holds characters that no key has. Set it again")
        return {**headers, "Authorization": f"Bearer {key}"}

    def _refused(self, code: int, retry_after: str | None, body: bytes) -> Exception:
        key = os.environ.get(self.key_variable, "").strip()
        said = _excerpt(body.replace(key.encode(), b"(key)") if key else body)  # some servers say which key is wrong
        if code in PASSING:
            wait = float(retry_after) if retry_after and retry_after.isdigit() else None
            return _Later(f"HTTP {code}, {said}", wait)
        if code in (401, 403):
            return BadInput(
                f"{self.address} refuses the key (HTTP {code}: {said}). Put a valid one into {self.key_variable}"
            )
        if 300 <= code < 400:
            return BadInput(f"{self.address} sends its callers elsewhere (HTTP {code}). Give that address itself")
        return BadInput(
            f"{self.address} does not take the question for model {self.model!r} (HTTP {code}: {said}). Give the "
            "address up to its version (.../v1), and a name that it lists under /models"
        )

    def _choices(self, body: bytes, n: int) -> list[str]:
        """The texts of the answer. Raises CannotFinish where it is not of the format."""
        try:
            choices = json.loads(body)["choices"]
            texts = [_text(choice["message"]) for choice in choices]
        except (ValueError, KeyError, TypeError) as error:
            raise self._malformed(body, f"{type(error).__name__}: {error}") from None
        if not 1 <= len(texts) <= n:
            raise self._malformed(body, f"{len(texts)} choices, where 1 to {n} were asked for")
        return texts

    def _malformed(self, body: bytes, why: str) -> CannotFinish:
        return CannotFinish(
            f"{self.address} answered {_excerpt(body)}, which is no chat completion ({why}). Give the address of an "
            "OpenAI-compatible API (.../v1); answers so far are kept"
        )


class _Later(Exception):
    """The server may answer later; `wait`: after so many seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key along."""

    def redirect_request(self, *given: Any, **named: Any) -> None:
        """Follow none."""


def _text(message: Mapping[str, Any]) -> str:
    """What was said; a refusal is an answer."""
    said = message.get("content")
    said = message.get("refusal") if said is None else said
    if not isinstance(said, str):
        raise TypeError(f"content is {type(said).__name__}, not text")
    return said


def _excerpt(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())
    return repr(text[:_SHOWN] + ("..." if len(text) > _SHOWN else ""))
