"""The trace demos in a web page: opens a request's trace in arize-phoenix, and can take a picture of it.

    python -m venv phoenix-venv && phoenix-venv/bin/pip install arize-phoenix   # about 850 MB
    python examples/trace_phoenix.py phoenix-venv/bin/phoenix [--load] [--picture trace.png]

Everything stays on this machine. A picture needs ``chromium`` on PATH; without ``--picture`` Phoenix runs until Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEMOS = Path(__file__).parent
START_SECONDS = 120.0
PLACED, TOGETHER = "EVALSHA statefulComputeLinkIfAbsent", "PIPELINE GET"
"""What is selected: the placement of a user, or lookups of many requests that left together."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str) -> Any:
    """What Phoenix answers, None while it does not."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.loads(answer.read() or b"null")
    except (urllib.error.URLError, ConnectionError, json.JSONDecodeError):
        return None


def wait_for(url: str, wanted: str) -> dict[str, Any]:
    """The first span of a name; Phoenix starts slowly, and stores what it gets a little later."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = ask(f"{url}/v1/projects/default/spans?limit=1000")
        spans = [span for span in (found or {}).get("data", ()) if span["name"] == wanted]
        if spans:
            first: dict[str, Any] = min(spans, key=lambda span: span["start_time"])
            return first
        time.sleep(0.5)
    raise SystemExit(f"Phoenix showed no span {wanted!r} within {START_SECONDS:g} s")


@contextlib.contextmanager
def phoenix(program: str, folder: str, port: int) -> Iterator[str]:
    """A Phoenix of our own: its address."""
    variables = {
        "PHOENIX_WORKING_DIR": folder,
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    }
    server = subprocess.Popen(
        [program, "serve"],
        env={**os.environ, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while ask(f"{url}/v1/projects") is None:
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("Phoenix did not start")
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait()


def take_picture(url: str, picture: Path, folder: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("a picture needs chromium on PATH (Debian: apt-get install chromium)")
    subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--window-size=1500,820",
            "--virtual-time-budget=20000",
            f"--user-data-dir={folder}/chromium",
            f"--screenshot={picture.resolve()}",
            url,
        ],
        check=True,
        stderr=subprocess.DEVNULL,
        timeout=120,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("phoenix", help="the program, such as phoenix-venv/bin/phoenix")
    parser.add_argument("--picture", type=Path, help="write a PNG of the trace and end")
    parser.add_argument("--load", action="store_true", help="trace_load.py, not trace_demo.py")
    parser.add_argument(
        "--through", help="a collector's endpoint, which sends on to Phoenix", metavar="URL"
    )
    parser.add_argument("--port", type=int, help="Phoenix's port, for a collector to send to")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="sfroute-phoenix-") as folder,
        phoenix(options.phoenix, folder, options.port or free_port()) as url,
    ):
        variables = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": options.through or url}
        demo = DEMOS / ("trace_load.py" if options.load else "trace_demo.py")
        subprocess.run([sys.executable, str(demo)], env=variables, check=True)
        span = wait_for(url, TOGETHER if options.load else PLACED)
        trace = span["context"]["trace_id"]
        project = ask(f"{url}/v1/projects/default")["data"]["id"]
        page = f"{url}/projects/{project}/traces/{trace}?selectedSpanNodeId={span['id']}"
        if options.picture:
            take_picture(page, options.picture, folder)
            print(f"wrote {options.picture}")
        else:
            print(f"open {page} and press Ctrl-C when you have seen enough")
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    time.sleep(1)


if __name__ == "__main__":
    main()
