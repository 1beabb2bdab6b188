"""A program that behaves as a service would: answers /healthz on a port, dies or hangs as it is told."""

import argparse
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Healthz(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--note", type=Path, help="append start and stop of this process to a file")
    parser.add_argument("--die-at-once", default="")
    parser.add_argument("--die-if", type=Path, help="die at once while this file is there")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--with-child", type=Path, help="start a child of another session, write its pid there")
    options = parser.parse_args()
    if options.die_at_once:
        sys.exit(options.die_at_once)
    if options.die_if and options.die_if.exists():
        sys.exit("the disk is full")
    if options.with_child:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        options.with_child.write_text(str(child.pid))
    note(options.note, f"start {options.port}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.ignore_term else lambda *_: leave(options))
    ThreadingHTTPServer(("127.0.0.1", options.port), Healthz).serve_forever()


def note(file: Path | None, line: str) -> None:
    if file:
        with file.open("a") as out:
            out.write(line + "\n")


def leave(options: argparse.Namespace) -> None:
    note(options.note, f"stop {options.port}")
    os._exit(0)


if __name__ == "__main__":
    main()
