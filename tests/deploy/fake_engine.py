"""An engine as the router sees it: health, model information, /generate; it serves, pauses or refuses as told."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAUSE_DEADLINE_S = 120
INFORMATION = {"model_path": "tiny", "served_model_name": "tiny", "is_generation": True, "tp_size": 1, "dp_size": 1}
serving = threading.Event()
status = {"code": 200}


class Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/health"):
            serving.wait(PAUSE_DEADLINE_S)
        self._answer(200, INFORMATION)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.startswith("/state/"):
            state = self.path.rpartition("/")[2]
            status["code"] = 400 if state == "refusing" else 200
            _ = serving.clear() if state == "paused" else serving.set()
            self._answer(200, {})
        else:
            serving.wait(PAUSE_DEADLINE_S)
            self._answer(status["code"], {"text": "b"})

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    serving.set()
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Engine)
    server.daemon_threads = True
    server.serve_forever()
