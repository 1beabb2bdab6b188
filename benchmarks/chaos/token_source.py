"""The HTTP of an SGLang server -> tokens without a model: requests, pauses, and weights over a real rendezvous.

`python -m benchmarks.chaos.token_source SEED SECONDS_PER_TOKEN PARENT_PID '{"model_path": ...}'`. It starts in
seconds, so that an engine can be killed often; the weights it receives are the trainer's, proven as SGLang does it.
"""

import contextlib
import json
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from benchmarks.chaos.token_stream import Attempt, TokenStream
from services.rollout.engine_server import die_with_parent

Call = Callable[[dict[str, Any]], Any]


class TokenSource:
    """What the server does, by path."""

    def __init__(self, tokens: TokenStream, arguments: dict[str, Any]) -> None:
        self.tokens, self._arguments = tokens, arguments
        self.incremental = bool(arguments.get("incremental_streaming_output"))
        self.interval = int(arguments.get("stream_interval", 1))
        self._weights: Any = None
        self._importing = threading.Thread(target=self._import, daemon=True)
        self._importing.start()
        self.calls: dict[str, Call] = {
            "/pause_generation": lambda body: tokens.pause(str(body.get("mode"))),
            "/continue_generation": lambda body: tokens.resume(),
            "/abort_request": lambda body: tokens.abort(),
            "/init_weights_update_group": lambda body: self._loaded().join(body),
            "/destroy_weights_update_group": lambda body: self._loaded().leave(body),
            "/update_weights_from_distributed": self._update,
            "/weights_checker": lambda body: {"ranks": [{"checksums": self._loaded().checksums()}]},
            **dict.fromkeys(("/freeze_gc", "/begin_weight_update", "/end_weight_update", "/flush_cache"), _nothing),
        }

    @property
    def ready(self) -> bool:
        """True once it can take weights at once, as an engine can that says it is well."""
        return self._weights is not None

    def information(self) -> dict[str, Any]:
        """What the router wants to know of an engine."""
        path = self._arguments["model_path"]
        names = {"model_path": path, "tokenizer_path": path, "served_model_name": Path(path).name}
        return {**names, "is_generation": True, "tp_size": 1, "dp_size": 1, "weight_version": self.tokens.version}

    def _update(self, body: dict[str, Any]) -> None:
        self._loaded().receive(body)
        self.tokens.version = body.get("weight_version", self.tokens.version)

    def _loaded(self) -> Any:
        self._importing.join()
        return self._weights

    def _import(self) -> None:
        self._weights = import_module("benchmarks.received_weights").ReceivedWeights()


def _nothing(body: dict[str, Any]) -> None:
    """A call without effect here: there is no cache and no garbage."""


class Handler(BaseHTTPRequestHandler):
    """One connection of the sidecar or the router."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def _source(self) -> TokenSource:
        return cast(Server, self.server).source

    def do_GET(self) -> None:
        self._answer(200 if self._source.ready else 503, self._source.information())

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        body: dict[str, Any] = (json.loads(raw) if raw.strip() else None) or {}
        path = self.path.partition("?")[0]
        if path == "/generate":
            self._stream(body) if body.get("stream") else self._generate(body)
        elif path in self._source.calls:
            self._call(self._source.calls[path], body)
        else:
            self._answer(404, {"error": f"no such call: {path}"})

    def _call(self, call: Call, body: dict[str, Any]) -> None:
        try:
            self._answer(200, call(body) or {"success": True, "message": ""})
        except (RuntimeError, KeyError) as error:  # as SGLang: a group that broke is a refused call
            self._answer(400, {"success": False, "message": f"{type(error).__name__}: {error}"})

    def _generate(self, body: dict[str, Any]) -> None:
        answers = [attempt.as_answer() for attempt in self._source.tokens.answer(body, lambda attempt: None)]
        self._answer(200, answers if len(answers) > 1 else answers[0])

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        sent: dict[int, int] = {}

        def tell(attempt: Attempt) -> None:
            since = sent.get(attempt.index, 0)
            if attempt.finish or len(attempt.token_ids) - since >= self._source.interval:
                sent[attempt.index] = len(attempt.token_ids)
                self._event(json.dumps(attempt.as_answer(since if self._source.incremental else 0)))

        self._source.tokens.answer(body, tell)
        self._event("[DONE]")
        self.close_connection = True

    def _event(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())

    def _answer(self, code: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # who asked was killed
            super().handle()


class Server(ThreadingHTTPServer):
    """A thread for each connection."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], source: TokenSource) -> None:
        super().__init__(address, Handler)
        self.source = source


def main() -> None:
    """Serve until killed, or until the sidecar that started this ends."""
    seed, seconds_per_token, parent, given = sys.argv[1:]
    die_with_parent(int(parent))
    arguments: dict[str, Any] = json.loads(given)
    config = json.loads((Path(arguments["model_path"]) / "config.json").read_text())
    tokens = TokenStream(int(seed), int(config["eos_token_id"]), float(seconds_per_token))
    Server((arguments["host"], int(arguments["port"])), TokenSource(tokens, arguments)).serve_forever()


if __name__ == "__main__":
    main()
