"""How ``sfroute serve`` reads a question: pure."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from sfroute import InvalidArgument
from sfroute._programs.questions import (
    BadAddress,
    BadQuestion,
    Question,
    Rules,
    Upstream,
    read_question,
)
from sfroute.asgi import CookieUid, ForwardedUid, HeaderUid, PathUid, QueryUid


def ask(rules: Rules, url: str, **headers: str) -> Question:
    path, _, query = url.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [
            (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
        ],
    }
    return read_question(scope, rules)


HEADER = Rules(HeaderUid("x-user-id"), "production", "chat")


def test_the_names_come_from_options_and_the_rest_from_the_path() -> None:
    uid = HeaderUid("x-user-id")
    for rules, path in (
        (HEADER, "/decide"),
        (Rules(uid, "production"), "/decide/chat"),
        (Rules(uid), "/decide/production/chat"),
        (Rules(uid, service="chat"), "/decide/production"),
    ):
        assert ask(rules, path, x_user_id="ada") == Question("production", "chat", "ada")
        # The user's own path follows.
        assert ask(rules, f"{path}/rooms/7", x_user_id="ada") == Question(
            "production", "chat", "ada"
        )
    assert ask(Rules(uid), "/decide/a%20b/c%2Fd", x_user_id="ada").service == "c/d"
    for path in (
        "/decide",
        "/decide/",
        "/decide/production",
        "/decide/a%3Ab/chat",
        "/decide/%ff/x",
    ):
        with pytest.raises(BadQuestion):
            ask(Rules(uid), path, x_user_id="ada")


def test_terms_are_the_proxys_and_never_the_users() -> None:
    asked = ask(HEADER, "/decide?exclude=3,0&exclude=7&wait=2.5&fresh=1", x_user_id="ada")
    assert (asked.exclude, asked.wait, asked.fresh) == (frozenset({0, 3, 7}), 2.5, True)
    assert not asked.refused
    assert ask(HEADER, "/decide?refused=1&exclude=3", x_user_id="ada").refused
    # A proxy that has nothing to exclude may leave it empty.
    asked = ask(HEADER, "/decide?exclude=&wait=&fresh=&refused=", x_user_id="ada")
    assert asked == Question("production", "chat", "ada")
    # The query of the user's own URL is the user's.
    for path in ("/decide/?exclude=3&wait=9&fresh=1", "/decide/rooms?exclude=3&refused=1"):
        assert ask(HEADER, path, x_user_id="ada") == Question("production", "chat", "ada")
    named = ask(Rules(HeaderUid("x-user-id")), "/decide/production/chat?wait=1", x_user_id="ada")
    assert named.wait == 1


@pytest.mark.parametrize(
    "query",
    [
        *("exclude=x", "exclude=-1", "exclude=1.0", "exclude=²", f"exclude={'9' * 19}"),
        *("wait=x", "wait=-1", "wait=nan", "wait=inf", "wait=61"),
        "exclude=" + ",".join(map(str, range(1001))),
    ],
)
def test_terms_that_cannot_be_are_the_proxys_mistake(query: str) -> None:
    with pytest.raises(BadQuestion, match=r"^(exclude|wait) must"):
        ask(HEADER, f"/decide?{query}", x_user_id="ada")


def test_a_uid_is_found_in_the_users_own_url() -> None:
    by_path = Rules(PathUid("/users/{uid}"), "n", "s", uri_header="X-Forwarded-Uri")
    assert ask(by_path, "/decide", x_forwarded_uri="/users/a%2Fb/cart?x=1").uid == "a/b"
    assert ask(by_path, "/decide", x_forwarded_uri="https://host/users/ada#top").uid == "ada"
    assert ask(by_path, "/decide", x_forwarded_uri="/orders/ada").uid is None
    # As Envoy asks, without the header.
    assert ask(by_path, "/decide/users/ada?x=1").uid == "ada"
    with pytest.raises(BadQuestion, match="x-forwarded-uri"):
        ask(by_path, "/decide")

    by_query = Rules(QueryUid("user"), "n", "s", uri_header="X-Forwarded-Uri")
    assert ask(by_query, "/decide?user=eve", x_forwarded_uri="/ws?user=ada").uid == "ada"
    assert ask(by_query, "/decide/ws?user=ada").uid == "ada"
    assert ask(Rules(QueryUid("user"), "n", "s"), "/decide?user=ada").uid == "ada"


def test_uids_of_headers_and_cookies() -> None:
    assert ask(HEADER, "/decide").uid is None
    assert ask(Rules(CookieUid("sid"), "n", "s"), "/decide", cookie='a=b; sid="ada"').uid == "ada"


def test_a_client_cannot_decide_by_a_header() -> None:
    for uid in (ForwardedUid(), HeaderUid("X-Sfroute-Uid"), HeaderUid("x_sfroute_uid")):
        with pytest.raises(InvalidArgument, match="X-Sfroute"):
            Rules(uid, "n", "s")
    with pytest.raises(InvalidArgument, match="X-Sfroute"):
        Rules(HeaderUid("x-user-id"), "n", "s", uri_header="X-Sfroute-Uri")
    seen: list[list[tuple[bytes, bytes]]] = []

    def look(scope: Any) -> str:
        seen.append(scope["headers"])
        return "ada"

    ask(Rules(look, "n", "s"), "/decide", x_sfroute_pod="3", X_SFROUTE_Uid="eve", accept="*/*")
    assert seen == [[(b"accept", b"*/*")]]


def test_an_upstream_is_made_of_names_that_are_escaped() -> None:
    assert Upstream("http://{service}-{pod}.{namespace}:80")("a/b", "c d", 0, None) == (
        b"http://c%20d-0.a%2Fb:80"
    )
    assert Upstream("http://{address}")("n", "s", 3, "10.0.0.1:80") == b"http://10.0.0.1:80"
    assert Upstream("{address}")("n", "s", 3, "x\r\nSet-Cookie: a") == (b"x%0D%0ASet-Cookie:%20a")
    assert Upstream("{address}")("n", "s", 3, "http://chat-3:80/a") == b"http://chat-3:80/a"
    for template in ("http://chat", "{pod", "{pod!r}", "{pod:>9}", "{pod.real}", "{0}", "{}"):
        with pytest.raises(InvalidArgument, match="the upstream template"):
            Upstream(template)
    for template in ("{pod}\r\n", "{pod} ", "ü{pod}"):
        with pytest.raises(InvalidArgument, match="printable"):
            Upstream(template)


@pytest.mark.parametrize(
    ("template", "address"),
    [
        ("http://{address}", "http://10.0.0.1:80"),
        ("http://{address}/{pod}", "//10.0.0.1"),
        ("{address}:80", "unix:/run/chat.sock"),
        ("http://{address}", "eve@10.0.0.1:80"),
        ("{address}", "http://10.0.0.1:80/?a=b"),
        ("{address}", "http://10.0.0.1:80#a"),
    ],
)
def test_an_address_that_makes_no_url_with_the_template_is_refused(
    template: str, address: str
) -> None:
    with pytest.raises(BadAddress):
        Upstream(template)("n", "s", 3, address)
    # Where the template does not use it, it may be anything.
    assert Upstream("http://chat-{pod}")("n", "s", 3, address) == b"http://chat-3"
