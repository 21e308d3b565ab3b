"""Writes ``docs/reference/configuration.md`` from docstrings, and ``docs/reference/openapi/`` from the programs. From
the headers of the Lua files it writes ``docs/reference/scripts.md`` and the table in ``lua_scripts/README.md``.

python tools/reference_pages.py            # write them
python tools/reference_pages.py --check    # fail if one is out of date
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from sfroute import (
    AsyncPodAgent,
    CacheConfig,
    PlacementConfig,
    RetryConfig,
    RouterConfig,
    TelemetryConfig,
    pytest_plugin,
)
from sfroute._contract.scripts import SCRIPTS
from sfroute._programs.openapi import agent_document, decide_document
from sfroute.asgi import PodMiddleware, SfrouteMiddleware

ROOT: Final = Path(__file__).parents[1]
REFERENCE: Final = ROOT / "docs" / "reference"
FOLDER: Final = ROOT / "lua_scripts"

README: Final = FOLDER / "README.md"

# --- configuration

UNITS: Final = {
    "max_age": "s",
    "max_age_untracked": "s",
    "max_entries": "entries",
    "stale_if_error": "s",
    "heartbeat": "s",
    "heartbeat_timeout": "s",
    "deadline": "s",
    "base": "s",
    "cap": "s",
    "jitter": "share, 0 to 1",
    "connect_timeout": "s",
    "persist_seconds": "s, or -1",
    "pod_view_max_age": "s",
    "pod_timeout": "s",
    "lease_margin": "s",
    "settle": "s",
    "reassert_grace": "s",
    "load_per_uid": "that of the loads",
    "max_pods": "fields",
    "queue_size": "records",
    "min_replica_acks": "replicas",
    "ack_timeout": "s",
    "max_in_flight": "commands",
    "capacity": "share",
    "forget_after": "s",
}
"""Of every setting that is a number."""

CONFIGURATION: Final = """\
# Configuration

<!-- written by make docs-reference from the docstrings: do not edit -->

A router is configured once, when it is made. Every field has a default. A value that cannot work raises a
`ConfigError` that names the field, before anything is sent.

```python
from sfroute import AsyncRouter, CacheConfig, RetryConfig, RouterConfig

config = RouterConfig(
    cache=CacheConfig(max_age=2.0, max_entries=500_000),
    retry=RetryConfig(deadline=3.0),
    min_replica_acks=1,
)
router = AsyncRouter.from_url("redis+cluster://10.0.0.1:6379,10.0.0.2:6379", config=config)
```

[Choose TTLs and timeouts](../how-to/timeouts.md) says which values suit you. The [API](api/configuration.md) has the
classes.
"""


def described(documented: type, section: str) -> dict[str, str]:
    """Name -> meaning of each entry in a section of a Google-style docstring."""
    text = inspect.getdoc(documented) or ""
    body = re.search(rf"^{section}:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
    assert body is not None, f"{documented.__name__} has no section {section}"
    entries = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", body[1], re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}


def cell(text: str) -> str:
    """Text of a docstring as it can stand in a table."""
    return text.replace("``", "`").replace("|", "\\|")


def sentence(text: str) -> str:
    """With a capital: a meaning begins a cell here."""
    return text if text.startswith("`") else text[:1].upper() + text[1:]


def row(name: str, kind: str, default: str, unit: str, meaning: str) -> str:
    """A line of a table of settings."""
    shown = default if default == "required" or not default else f"`{default}`"
    return f"| `{name}` | `{cell(kind)}` | {shown} | {unit} | {sentence(cell(meaning))} |"


HEAD: Final = "| field | type | default | unit | meaning |\n|---|---|---|---|---|"


def unit_of(name: str, kind: str) -> str:
    """The unit of a number; empty for anything else, such as a callable that takes numbers."""
    return UNITS[name] if re.search(r"^[^[]*\b(int|float)\b", kind) else ""


def field_rows(config: type) -> Iterator[str]:
    """The fields of a dataclass."""
    meanings = described(config, "Attributes")
    for entry in fields(config):
        assert isinstance(entry.type, str)
        default = entry.default
        shown = f"{default:,}".replace(",", "_") if type(default) is int else f"{default!r}"
        if default is MISSING:
            factory = entry.default_factory
            shown = f"{factory.__name__}()" if isinstance(factory, type) else "required"
        yield row(
            entry.name, entry.type, shown, unit_of(entry.name, entry.type), meanings[entry.name]
        )


def parameter_rows(documented: type, without: Iterable[str] = ()) -> Iterator[str]:
    """The parameters of a class."""
    meanings = described(documented, "Args")
    for name, parameter in inspect.signature(documented).parameters.items():
        if name not in without:
            empty = parameter.default is parameter.empty
            kind = parameter.annotation
            default = "required" if empty else f"{parameter.default!r}"
            unit = unit_of(name, kind) if name in UNITS else ""
            yield row(name, kind, default, unit, meanings[name])


class Recorded:
    """Stands for pytest's parser."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def addini(self, name: str, text: str, default: str) -> None:
        """Note an option."""
        self.rows.append(f"| `{name}` | {f'`{default}`' if default else ''} | {sentence(text)} |")


def configuration() -> str:
    """The whole page."""
    recorded: Any = Recorded()
    pytest_plugin.pytest_addoption(recorded)
    parts = [CONFIGURATION]
    for config in (RouterConfig, CacheConfig, RetryConfig, PlacementConfig, TelemetryConfig):
        first, _, _ = (inspect.getdoc(config) or "").partition("\n\n")
        title = config.__name__
        parts.append(f"## {title}\n\n{first.replace('``', '`')}\n")
        parts.append("\n".join([HEAD, *field_rows(config)]) + "\n")
    parts.append(
        "## Pod agents\n\nParameters of `AsyncPodAgent` and `PodAgent`, see [pods](api/pods.md).\n"
    )
    parts.append("\n".join([HEAD, *parameter_rows(AsyncPodAgent)]) + "\n")
    parts.append("## Middleware\n\nParameters of `SfrouteMiddleware`, see [ASGI](api/asgi.md).\n")
    parts.append("\n".join([HEAD, *parameter_rows(SfrouteMiddleware)]) + "\n")
    parts.append("Parameters of `PodMiddleware`, for pods.\n")
    parts.append("\n".join([HEAD, *parameter_rows(PodMiddleware)]) + "\n")
    parts.append(
        "## pytest\n\nOptions of the project's pytest configuration, for the fixtures that the extra "
        "`embedded` brings; see [test your gateway](../how-to/test-your-gateway.md).\n"
    )
    parts.append(
        "\n".join(["| option | default | meaning |", "|---|---|---|", *recorded.rows]) + "\n"
    )
    parts.append(
        "## Environment\n\nThe library reads one variable: `SFROUTE_PURE=1` leaves "
        "[the native part](../explanation/performance.md#the-native-part) of lookups out. The `sfroute` command reads "
        "[`SFROUTE_URL`, `SFROUTE_NAMESPACE` and `SFROUTE_SERVICE`](cli.md); "
        "`sfroute.telemetry.setup` leaves the SDK to OpenTelemetry's [`OTEL_*`](../how-to/trace.md).\n"
    )
    return "\n".join(parts)


# --- scripts

LUA: Final = """\
# Lua scripts

<!-- written by make docs-reference from the headers of the files: do not edit -->

This page has the contract of each script, from the header of its file. [`lua_scripts/`](../../lua_scripts/README.md)
says how to call them from other languages, and [keys](keys.md) what the keys hold. All keys of one call are in one
slot. An optional argument may be left out, together with all that follow it.
"""


@dataclass
class Head:
    """The header of a Lua file."""

    name: str
    text: list[str]
    access: str = ""
    lines: list[tuple[str, str, str]] = field(default_factory=list)
    """Kind (`KEYS[1]`, `Reply`, ...), name, meaning."""


def head_of(name: str) -> Head:
    """Read the head of a script's file."""
    source = (FOLDER / f"{name}.lua").read_text(encoding="utf-8")
    lines = [
        line.removeprefix("--").removeprefix(" ")
        for line in source.partition("\n\n")[0].split("\n")
    ]
    assert lines[:2] == [name, ""]
    start = next(number for number, line in enumerate(lines) if line.startswith("Access: "))
    head = Head(name, lines[2:start], lines[start].removeprefix("Access: "))
    for line in lines[start + 1 :]:
        if line.startswith("  "):
            kind, called, meaning = head.lines[-1]
            head.lines[-1] = (kind, called, f"{meaning} {line.strip()}")
        else:
            match = re.fullmatch(
                r"(KEYS\[.+?\]|ARGV\[.+?\]|Reply|Error) (\{.+?\}|[^:]+): (.+)", line
            )
            assert match is not None, line
            head.lines.append((match[1], match[2], match[3]))
    return head


def prose(lines: list[str]) -> str:
    """The text of a head; a drawing in it stays one."""
    parts = []
    for paragraph in "\n".join(lines).strip().split("\n\n"):
        drawn = all(line.startswith("  ") for line in paragraph.split("\n"))
        plain = inspect.cleandoc(paragraph)
        parts.append(f"```text\n{plain}\n```" if drawn else coded(plain))
    return "\n\n".join(parts)


def coded(text: str) -> str:
    """Keys, and words in quotes, as code."""
    text = re.sub(r"(?<!`)sf:\S*[\w>}]", lambda match: f"`{match[0]}`", text)
    return cell(re.sub(r"'(-?\w+)'", r"`'\1'`", text))


def script_parts(head: Head) -> Iterator[str]:
    """A script's section."""
    yield f"## {head.name}\n"
    yield prose(head.text) + "\n"
    yield "It only reads.\n" if head.access == "read" else "It writes.\n"
    given = [line for line in head.lines if line[0].startswith(("KEYS", "ARGV"))]
    yield "| | name | meaning |\n|---|---|---|"
    for kind, name, meaning in given:
        word, _, note = name.partition(" ")
        yield f"| `{kind}` | `{word}`{f' {note}' if note else ''} | {coded(meaning)} |"
    yield ""
    yield "| reply or error | meaning |\n|---|---|"
    for kind, name, meaning in head.lines:
        if kind in {"Reply", "Error"}:
            yield f"| {'' if kind == 'Reply' else 'error '}`{name}` | {coded(meaning)} |"
    yield ""


def scripts() -> str:
    """The whole page."""
    parts = [LUA]
    for name in SCRIPTS:
        parts.extend(script_parts(head_of(name)))
    return "\n".join(parts)


MARK: Final = (
    "<!-- the table is written by make docs-reference from the heads of the files: do not edit -->"
)


def readme() -> str:
    """The page beside the scripts, with a table of them: of each head, how it begins."""
    rows = ["| script | what it does |", "|---|---|"]
    for name in SCRIPTS:
        first, _, _ = re.sub(r"([.:])\s", r"\1\n", " ".join(head_of(name).text)).partition("\n")
        rows.append(f"| `{name}` | {first.strip()[:-1]} |")
    before, _, rest = README.read_text(encoding="utf-8").partition(f"{MARK}\n")
    _, _, after = rest.lstrip("\n").partition("\n\n")
    return "\n".join([before + MARK, "", *rows, "", after])


def main() -> int:
    """Write the pages, or check them."""
    made = {
        REFERENCE / "configuration.md": configuration(),
        REFERENCE / "scripts.md": scripts(),
        README: readme(),
        REFERENCE / "openapi" / "agent.json": json.dumps(agent_document(), indent=2) + "\n",
        REFERENCE / "openapi" / "serve.json": json.dumps(decide_document(), indent=2) + "\n",
    }
    if sys.argv[1:] == ["--check"]:
        old = [page for page, text in made.items() if page.read_text(encoding="utf-8") != text]
        for page in old:
            sys.stderr.write(f"{page} is out of date; run: make docs-reference\n")
        return 1 if old else 0
    for page, text in made.items():
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
