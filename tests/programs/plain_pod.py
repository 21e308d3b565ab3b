"""A pod without sfroute, as `sfroute agent` runs it: serves /healthz until a file `sick` is there, and the load.

    python plain_pod.py PORT FOLDER [stubborn]

Its end is told by a file `ended`. `stubborn`: it heeds no SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(sys.argv[2])


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        sick = (FOLDER / "sick").exists()
        self.send_response(503 if sick else 200)
        self.end_headers()
        self.wfile.write(b" 0.25\n")

    def log_message(self, *_: object) -> None: ...


def end(*_: object) -> None:
    (FOLDER / "ended").touch()
    os._exit(0)


signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv else end)
(FOLDER / "seen").write_text(f"{os.environ['SFROUTE_AGENT']} {os.environ['SFROUTE_POD']}")
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
