"""A real server, in a thread of the test, that answers in OpenAI's format or misbehaves as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]


@dataclass
class Chat:
    """What it was asked, and what it says."""

    answer: Callable[[str, float, int], str]
    """(prompt, temperature, how many answers this prompt was given before) -> text."""
    fault: Callable[[int], Reply | float | None] = lambda number: None
    """For the request of a number, from 0: what is sent in place of an answer, or seconds of silence."""
    most_choices: int = 100
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    given: dict[tuple[str, float], int] = field(default_factory=dict)
    url: str = ""

    def reply(self, body: dict[str, Any]) -> Reply:
        prompt, temperature = body["messages"][-1]["content"], body["temperature"]
        choices = []
        for _ in range(min(body["n"], self.most_choices)):
            count = self.given.get((prompt, temperature), 0)
            self.given[prompt, temperature] = count + 1
            choices.append({"message": {"role": "assistant", "content": self.answer(prompt, temperature, count)}})
        return 200, {}, json.dumps({"object": "chat.completion", "choices": choices}).encode()


@contextmanager
def serving(chat: Chat) -> Iterator[Chat]:
    """Inside, the server runs at `chat.url`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            number = len(chat.requests)
            chat.requests.append({"path": self.path, **body})
            chat.keys.append(self.headers.get("Authorization"))
            fault = chat.fault(number)
            if isinstance(fault, float):
                time.sleep(fault)
                return
            status, headers, text = chat.reply(body) if fault is None else fault
            self.send_response(status)
            for name, value in {"Content-Length": str(len(text)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *given: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield chat
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
