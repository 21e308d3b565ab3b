"""The page on proxies says what the program does."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("kubernetes_validate", reason="the group `examples` is not installed")

import yaml  # type: ignore[import-untyped]
from support.documents import ROOT, block

from sfroute._programs.openapi import DECIDE_REASONS, decide_document
from sfroute._programs.questions import PATH, Rules, read_question
from sfroute.asgi import HeaderUid

PAGE = "docs/how-to/proxies.md"


def test_the_page_has_every_reason_header_and_term() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)`: .* \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert {reason: int(status) for reason, status, _ in rows} == {
        reason: status for reason, (status, _) in DECIDE_REASONS.items()
    }
    assert {reason for reason, _, status in rows if status == "401"} == {"no-user"}
    answers = decide_document()["paths"]["/decide"]["get"]
    for header in answers["responses"]["200"]["headers"]:
        assert f"| `{header}` |" in text
    for term in answers["parameters"]:
        assert f"/decide?{term['name']}=" in text


def test_envoy_asks_a_question_that_is_understood() -> None:
    listeners = yaml.safe_load(block(PAGE, "yaml", 0).text)["static_resources"]["listeners"]
    (public,) = (each for each in listeners if each["name"] == "public")
    manager = public["filter_chains"][0]["filters"][0]["typed_config"]
    ext_authz = manager["http_filters"][0]["typed_config"]
    # Envoy passes on no other headers of the user's, but for a few of its own choice.
    assert ext_authz["allowed_headers"]["patterns"] == [{"exact": "x-user-id"}]
    service = ext_authz["http_service"]
    prefix = service["path_prefix"]
    assert prefix.encode() == PATH
    # What Envoy sends: the user's method and headers, and the prefix before path and query.
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": f"{prefix}/rooms/7",
        "raw_path": f"{prefix}/rooms/7".encode(),
        "query_string": b"exclude=1",
        "headers": [
            (b"host", b"chat.example"),
            (b"x-user-id", b"ada"),
            (b"content-length", b"0"),
            (b"x-envoy-internal", b"true"),
        ],
    }
    asked = read_question(scope, Rules(HeaderUid("X-User-Id"), "production", "chat"))
    assert (asked.uid, asked.exclude) == ("ada", frozenset())
    (allowed,) = service["authorization_response"]["allowed_upstream_headers"]["patterns"]
    for header in decide_document()["paths"]["/decide"]["get"]["responses"]["200"]["headers"]:
        assert header.lower().startswith(allowed["prefix"])
