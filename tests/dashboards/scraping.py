"""A real Prometheus that scrapes every second, and what it answers."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from support.processes import Child

LIMIT_SECONDS: Final = 20.0
POLL_SECONDS: Final = 0.05

_T = TypeVar("_T")


def wait_for(look: Callable[[], _T | None], what: str) -> _T:
    """What ``look`` finds, as soon as it finds something."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while (found := look()) is None:
        assert time.monotonic() < deadline, f"after {LIMIT_SECONDS:g} s still not: {what}"
        time.sleep(POLL_SECONDS)
    return found


class Prometheus:
    """The HTTP API of a Prometheus that is running."""

    def __init__(self, port: int, process: Child[bytes], log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._process = process
        self._log = log
        # Past any proxy that the environment names.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _open(self, path: str) -> bytes:
        assert self._process.poll() is None, f"Prometheus has ended:\n{self._log.read_text()}"
        with self._opener.open(self.url + path, timeout=LIMIT_SECONDS) as response:
            text: bytes = response.read()
        return text

    def ready(self) -> bool:
        try:
            self._open("/-/ready")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def get(self, path: str, **parameters: str) -> Any:
        """The ``data`` of an answer of the API; ``match`` becomes ``match[]``."""
        named = {"match[]" if name == "match" else name: v for name, v in parameters.items()}
        answer = json.loads(self._open(f"/api/v1/{path}?{urllib.parse.urlencode(named)}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """Labels and value of every series, now."""
        result = self.get("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def query_range(
        self, expression: str, start: float, end: float
    ) -> list[tuple[Mapping[str, str], list[float]]]:
        """Labels and values of every series, each second."""
        data = self.get("query_range", query=expression, start=str(start), end=str(end), step="1")
        return [
            (series["metric"], [float(value) for _, value in series["values"]])
            for series in data["result"]
        ]

    def values(self, metric: str, label: str) -> dict[str, float]:
        """Value of a label -> sum of its series, now."""
        return {
            labels[label]: value for labels, value in self.query(f"sum by ({label}) ({metric})")
        }

    def wait_for_scrape(self, metric: str) -> None:
        """Wait until what is true now has been scraped everywhere."""
        now = time.time()
        wait_for(
            lambda: all(at > now for _, at in self.query(f"timestamp({metric})")) or None,
            f"a scrape of {metric}",
        )

    def exemplars(self, expression: str, start: float, end: float) -> list[Mapping[str, str]]:
        """Labels of the exemplars of all series of an expression."""
        data = self.get("query_exemplars", query=expression, start=str(start), end=str(end))
        return [one["labels"] for series in data for one in series["exemplars"]]


@contextmanager
def running_prometheus(
    program: Path, jobs: Mapping[str, Sequence[str]], rules: Sequence[Path], directory: Path
) -> Iterator[Prometheus]:
    """A Prometheus that scrapes ``jobs`` (name -> targets, host:port), keeps exemplars, and evaluates rules."""
    config = directory / "prometheus.yml"
    # JSON is YAML.
    settings = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rule) for rule in rules],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": list(targets)}]}
            for job, targets in jobs.items()
        ],
    }
    config.write_text(json.dumps(settings))
    with socket.socket() as probe:
        # If anyone takes it in between, Prometheus ends at once and the test tells.
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = directory / "prometheus.log"
    with log.open("wb") as output:
        process = Child[bytes](
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=exemplar-storage",
            ],
            cwd=directory,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    prometheus = Prometheus(port, process, log)
    try:
        wait_for(lambda: prometheus.ready() or None, "Prometheus is ready")
        yield prometheus
    finally:
        process.terminate()
        try:
            process.wait(LIMIT_SECONDS)
        finally:
            process.end()
