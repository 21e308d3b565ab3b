"""One call of every operation with its result's type, for type checkers: derived from the catalogue.

``make api`` writes it to tests/typing_of_operations.py; ``make types`` reads that, and a test compares.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from catalogue import AGENT_OPERATIONS, OPERATIONS

import sfroute
from sfroute import AsyncPodAgent, AsyncRouter, PodAgent, Router
from support.rows import Operation

__all__ = ["TYPED_CALLS", "typed_calls"]

TYPED_CALLS: Final = Path(__file__).parent.parent / "typing_of_operations.py"
HEADING: Final = '''"""What type checkers tell of every operation: checked by ``make types``, never run.

Written by ``make api`` from the catalogue; do not edit.
"""

from __future__ import annotations

'''
FRONTS: Final[tuple[tuple[type, tuple[Operation, ...]], ...]] = (
    (AsyncRouter, OPERATIONS),
    (Router, OPERATIONS),
    (AsyncPodAgent, AGENT_OPERATIONS),
    (PodAgent, AGENT_OPERATIONS),
)


def typed_calls() -> str:
    """The whole text, not formatted yet."""
    functions = "".join(f"\n\n{_function(front, rows)}" for front, rows in FRONTS)
    words = set(re.findall(r"[A-Za-z]\w+", functions))
    abc = sorted(words & {"AsyncGenerator", "Generator"})
    own = sorted(words & set(sfroute.__all__), key=lambda name: (not name.isupper(), name))
    return (
        f"{HEADING}from collections.abc import {', '.join(abc)}\n"
        "from typing import assert_type\n\n"
        f"from sfroute import {', '.join(own)}\n"
        f"{functions}"
    )


def _function(front: type, rows: tuple[Operation, ...]) -> str:
    kind = "async def" if front.__name__.startswith("Async") else "def"
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", front.__name__).lower()
    lines = "".join(f"    {_call(front, row)}\n" for row in rows)
    return f"{kind} of_{name}(front: {front.__name__}) -> None:\n{lines}"


def _call(front: type, row: Operation) -> str:
    name = "close" if front is Router and row.name == "aclose" else row.name
    found = inspect.getattr_static(front, name)
    function: Any = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
    signature = inspect.signature(function)
    result = str(signature.return_annotation).replace("Self", front.__name__)
    call = f"front.{name}"
    if not isinstance(found, property):
        values = [f"{key}={value!r}" for key, value in row.args.items()]
        needed = {
            key: parameter.annotation
            for key, parameter in signature.parameters.items()
            if parameter.default is parameter.empty and key not in {"self", "cls", "options"}
        }
        # What has no value in the catalogue is a URL.
        values += [f'{key}="redis://"' for key in needed if key not in row.args]
        call += f"({', '.join(values)})"
    if inspect.iscoroutinefunction(function):
        call = f"await {call}"
    return f"assert_type({call}, {result})"


if __name__ == "__main__":
    ruff = Path(sys.executable).with_name("ruff")
    formatted = subprocess.run(
        [ruff, "format", "-"], input=typed_calls(), capture_output=True, text=True, check=True
    )
    TYPED_CALLS.write_text(formatted.stdout, encoding="utf-8")
    sys.stdout.write(f"wrote {TYPED_CALLS.relative_to(Path.cwd())}\n")
