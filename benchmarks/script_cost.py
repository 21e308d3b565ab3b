"""What a server executes for a call of a script: instructions within EVALSHA, counted by Valgrind.

They come out the same on a busy machine. Compare a script with another version of it, or with the smallest script that
does the same on healthy keys::

    python benchmarks/script_cost.py lua_scripts/statefulSetLink.lua old/statefulSetLink.lua smallest
    python benchmarks/script_cost.py --services 20 lua_scripts/statefulTrySetLink.lua

Each server runs under callgrind, which takes some ten seconds. Network and replication are not counted.
"""

from __future__ import annotations

import argparse
import re
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import redis

from sfroute.embedded._binary import find_server

CALLS: Final = 400
SMALLEST: Final = b"""
local previous = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return {previous or '-1'}
"""


def _arguments(script: str, pod: int, linked: int, op_ms: int) -> list[str | int]:
    """Of a call that changes the persistent link of a uid to ``linked``."""
    match script:
        case "statefulTrySetLink":  # Its own pod renews it.
            return ["chat", linked, -1, op_ms]
        case "statefulRemoveLinkWithId":
            return ["chat", -1, linked, op_ms]
        case "statefulComputeLinkIfAbsent":  # Off a dead pod.
            return ["chat", -1, "move", op_ms, 1, linked, pod]
        case _:
            return ["chat", pod, -1, op_ms]


def instructions(source: bytes, script: str, *, recorded: bool, services: int) -> int:
    """Instructions of one call that changes a persistent link, with a record or without."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [
                *("valgrind", "--tool=callgrind", "--toggle-collect=evalShaCommand"),
                f"--callgrind-out-file={folder}/out",
                *(str(find_server(None)), "--port", str(port), "--save", "", "--dir", folder),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        client = redis.Redis(port=port)
        _wait_for(client)
        sha = client.script_load(source)
        calls: Any = client.pipeline(transaction=False)
        for number in range(CALLS):
            uid_hash = f"sf:{{game:lk:user-{number:012d}}}"
            keys = [f"{uid_hash}chat", uid_hash, f"sf:op:{uid_hash[3:]}:{number:018x}"]
            linked = (number + 1) % 10
            client.set(keys[0], linked)
            others: dict[Any, Any] = {f"service{other}": "1" for other in range(1, services)}
            client.hset(uid_hash, mapping={"chat": str(linked), **others})
            arguments = _arguments(script, number % 10, linked, 15_000 if recorded else 0)
            keys = keys if recorded else keys[:2]
            calls.execute_command("EVALSHA", sha, len(keys), *keys, *arguments)
        calls.execute()
        client.shutdown(nosave=True)
        told = server.communicate()[1]
    found = re.search(r"Collected : (\d+)", told)
    assert found is not None, told
    return int(found[1]) // CALLS


def _wait_for(client: redis.Redis) -> None:
    for _ in range(600):
        try:
            client.ping()
        except redis.exceptions.ConnectionError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("the server did not start; is valgrind installed?")


def main() -> None:
    """Print a row for each script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "scripts", nargs="+", help="files named after a script of that name; or: smallest"
    )
    parser.add_argument("--services", type=int, default=1, help="how many link the uid")
    given = parser.parse_args()
    for name in given.scripts:
        source = SMALLEST if name == "smallest" else Path(name).read_bytes()
        recorded, plain = (
            instructions(source, Path(name).stem, recorded=recorded, services=given.services)
            for recorded in (True, False)
        )
        told = "-" if name == "smallest" else recorded
        print(f"{name}: {told} with a record, {plain} without", flush=True)


if __name__ == "__main__":
    main()
