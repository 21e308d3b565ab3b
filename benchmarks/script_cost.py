"""What a server executes for a call of a script: instructions within EVALSHA, counted by Valgrind.

They come out the same on a busy machine. Compare a script with another version of it, or with the smallest script that
does the same on healthy keys::

    python benchmarks/script_cost.py lua_scripts/statefulSetLink.lua old.lua smallest

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


def instructions(source: bytes, *, recorded: bool) -> int:
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
            client.set(keys[0], (number + 1) % 10)
            client.hset(uid_hash, "chat", str((number + 1) % 10))
            arguments = ["chat", number % 10, -1, *([15_000] if recorded else [])]
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
        "scripts", nargs="+", help="files with the keys of statefulSetLink; or: smallest"
    )
    for name in parser.parse_args().scripts:
        source = SMALLEST if name == "smallest" else Path(name).read_bytes()
        recorded = instructions(source, recorded=True) if name != "smallest" else None
        plain = instructions(source, recorded=False)
        print(f"{Path(name).name}: {recorded or '-'} with a record, {plain} without", flush=True)


if __name__ == "__main__":
    main()
