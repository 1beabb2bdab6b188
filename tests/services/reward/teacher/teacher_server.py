"""An SGLang server from outside: what /health, /tokenize and /generate answer, over HTTP or behind a fake transport."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from shared.messages import Rollout, expand

Body = dict[str, Any]


def logprob(token_id: int, position: int) -> float:
    """What this teacher says of a token; no two places of a text are alike."""
    return -float(token_id % 7) - position / 16


def expected(rollout: Rollout) -> NDArray[np.float32]:
    """The same of a whole attempt, 0 where nothing is trained."""
    first = len(rollout.prompt_ids)
    said = [logprob(int(token_id), first + at) for at, token_id in enumerate(rollout.token_ids)]
    return np.asarray(said, np.float32) * expand(rollout.loss_mask)


def answer_of(body: Body) -> list[Any]:
    """The answer to a batch, in the server's form: the first of the positions that are told has no number."""
    start = body["logprob_start_len"]
    return [
        {
            "output_ids": [],
            "meta_info": {
                "finish_reason": {"type": "length", "length": 0},
                "input_token_logprobs": [
                    [None if at == start else logprob(ids[at], at), ids[at], None] for at in range(start, len(ids))
                ],
            },
        }
        for ids in body["input_ids"]
    ]


class TeacherServer:
    """Counts what it is asked; how it answers can be changed."""

    def __init__(self) -> None:
        self.batches: list[Body] = []
        self.status: Callable[[Body], int] = lambda body: 200
        self.answer: Callable[[Body], Any] = answer_of
        self.tokens: Any = None

    def handle(self, request: httpx.Request) -> httpx.Response:
        """For a fake transport."""
        status, answer = self._respond(request.url.path, request.content)
        return httpx.Response(status, json=answer)

    @contextlib.contextmanager
    def serving(self, port: int) -> Iterator[str]:
        """Over HTTP, during the block."""
        server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self._respond))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _respond(self, path: str, content: bytes) -> tuple[int, Any]:
        if path == "/health":
            return 200, {}
        body = json.loads(content)
        if path == "/tokenize":
            return (404, {}) if self.tokens is None else (200, {"tokens": self.tokens})
        assert path == "/generate"
        self.batches.append(body)
        status = self.status(body)
        return status, self.answer(body) if status == 200 else {"error": {"message": "no"}}


def _handler(respond: Callable[[str, bytes], tuple[int, Any]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"{}")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers["content-length"])))

        def _answer(self, content: bytes) -> None:
            status, answer = respond(self.path, content)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    return Handler
