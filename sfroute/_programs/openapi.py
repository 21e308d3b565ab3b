"""The OpenAPI documents of the programs: what each answers, once, for readers and for generators of clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .._version import __version__
from .questions import MAX_WAIT

__all__ = ["DECIDE_REASONS", "agent_document", "decide_document"]

Document = dict[str, Any]

DECIDE_REASONS: Final[Mapping[str, tuple[int, str]]] = {
    "bad-question": (400, "the proxy asks what cannot be answered; its configuration is wrong"),
    "no-user": (400, "the request does not say which user it is for"),
    "no-such-user": (400, "the request names a user who cannot exist"),
    "no-pod": (503, "no pod can take the user; `wait` waits for one"),
    "no-address": (503, "the template needs the pod's address, and the pod has published none"),
    "bad-address": (
        503,
        "the pod's address has a scheme or a path, and the template puts text around it: `http://http://...` is no URL",
    ),
    "store": (503, "the store cannot be asked, and no answer is known"),
}
"""Reason -> status, and what it means. With `--mode nginx` the status of `no-user` is 401, of all others 403."""


def _text(words: str) -> Document:
    return {"description": words, "schema": {"type": "string"}}


def _ref(kind: str, name: str) -> Document:
    return {"$ref": f"#/components/{kind}/{name}"}


def _json(words: str, schema: Document, headers: Document | None = None) -> Document:
    found: Document = {
        "description": words,
        "content": {"application/json": {"schema": schema}},
    }
    return found | ({"headers": headers} if headers else {})


def _plain(words: str) -> Document:
    return {"description": words, "content": {"text/plain": {"schema": {"type": "string"}}}}


def _object(required: Mapping[str, Document], optional: Mapping[str, Document] = {}) -> Document:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **optional},
    }


_PROBLEM: Final = _object(
    {
        "reason": {"type": "string", "description": "One word, for programs."},
        "detail": {"type": "string", "description": "For people. It names no user."},
    }
)


def _problem(words: str) -> Document:
    return _json(
        words,
        _ref("schemas", "Problem"),
        {"X-Sfroute-Reason": _text("The reason, as in the body.")},
    )


def _head(title: str, words: str) -> Document:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": __version__,
            "description": words,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        # Where it listens is an option of each program.
        "servers": [{"url": "/"}],
        "security": [],
    }


def decide_document() -> Document:
    """Of ``sfroute serve``."""
    reasons = {
        status: "; ".join(
            f"`{reason}`: {words}" for reason, (of, words) in DECIDE_REASONS.items() if of == status
        )
        for status in (400, 503)
    }
    question = {
        "summary": "The pod of the user whom a request comes from",
        "description": (
            "Any method is answered alike. The uid is where the options say: in a header, a cookie, or the path or "
            "query of the user's own URL. `--mode nginx` answers 401 instead of 400 `no-user`, and 403 instead of "
            "every other refusal."
        ),
        "responses": {
            "200": _json(
                "The pod. The headers say the same to proxies.",
                _ref("schemas", "Decision"),
                {
                    "X-Sfroute-Pod": _text("The pod id."),
                    "X-Sfroute-Upstream": _text("Where the pod is, by `--upstream`."),
                    "X-Sfroute-Source": _text("`cache`, `store`, `placed` or `moved`."),
                    "X-Sfroute-Uid": _text("The uid, percent-encoded, for the pod."),
                    "X-Sfroute-Stale": _text(
                        "`true` if the store cannot be reached and the answer is older than the contract allows; "
                        "else absent."
                    ),
                },
            ),
            "400": _problem(reasons[400]),
            "503": _problem(reasons[503]),
        },
    }
    terms = [
        {
            "name": "exclude",
            "in": "query",
            "description": "Pods not to use, such as one that refused the connection.",
            "style": "form",
            "explode": False,
            "schema": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        },
        {
            "name": "refused",
            "in": "query",
            "description": "`1`: the pods in `exclude` did not take the connection, so new users avoid them, too, for "
            "a while. Not for a pod that took a request and did not answer it well: one user's requests could do that.",
            "schema": {"type": "integer", "enum": [0, 1], "default": 0},
        },
        {
            "name": "wait",
            "in": "query",
            "description": "Seconds to wait for a pod that can take the user.",
            "schema": {"type": "number", "minimum": 0, "maximum": MAX_WAIT, "default": 0},
        },
        {
            "name": "fresh",
            "in": "query",
            "description": "`1`: ask the store, whatever is cached: a pod said that the user is not there (421).",
            "schema": {"type": "integer", "enum": [0, 1], "default": 0},
        },
    ]
    names = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": f"The {name}, where no option names it.",
            "schema": {"type": "string"},
        }
        for name in ("namespace", "service")
    ]
    return {
        **_head(
            "sfroute serve",
            "Says which pod of a stateful service owns a user, to proxies that can ask over HTTP.",
        ),
        "paths": {
            "/decide": {"get": {"operationId": "decide", **question, "parameters": terms}},
            "/decide/{namespace}/{service}": {
                "get": {
                    "operationId": "decideFor",
                    **question,
                    "parameters": [*names, *terms],
                }
            },
            "/healthz": {
                "get": {
                    "operationId": "healthz",
                    "summary": "Is this process alive?",
                    "responses": {"200": _plain("Yes.")},
                }
            },
            "/readyz": {
                "get": {
                    "operationId": "readyz",
                    "summary": "May it be asked?",
                    "description": "Stays 200 while the store is away: known users are still routed.",
                    "responses": {
                        "200": _plain("Yes."),
                        "503": _problem(
                            "`store`: it has never been reached; `leaving`: this process ends soon"
                        ),
                    },
                }
            },
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "The metrics of all workers, in Prometheus's text format",
                    "responses": {"200": _plain("The metrics.")},
                }
            },
            "/openapi.json": {
                "get": {
                    "operationId": "openapi",
                    "summary": "This document",
                    "responses": {"200": _json("This document.", {"type": "object"})},
                }
            },
        },
        "components": {
            "schemas": {
                "Problem": _PROBLEM,
                "Decision": _object(
                    {
                        "pod": {"type": "integer", "minimum": 0},
                        "source": {
                            "type": "string",
                            "enum": ["cache", "store", "placed", "moved"],
                        },
                        "persistent": {
                            "type": "boolean",
                            "description": "True if the link has no expiry.",
                        },
                        "stale": {
                            "type": "boolean",
                            "description": "True if the store could not be reached and the answer is older than the "
                            "coherence contract allows.",
                        },
                        "age": {
                            "type": "number",
                            "description": "Seconds since the lookup behind the answer was sent.",
                        },
                        "pod_view": {
                            "type": "string",
                            "enum": ["current", "old", "silent"],
                            "description": "What was known of the pods.",
                        },
                    },
                    {
                        "upstream": {
                            "type": "string",
                            "description": "Where the pod is, by `--upstream`.",
                        }
                    },
                ),
            }
        },
    }


_CLAIM: Final[Mapping[str, Document]] = {
    "pod": {"type": "integer", "minimum": 0},
    "fence": {
        "type": "integer",
        "description": "Grows whenever the user passes to another pod or another life of a pod. Store it with what you "
        "write for the user, and refuse a write whose fence is less than the stored one.",
    },
    "how": {
        "type": "string",
        "enum": ["placed", "kept", "inherited"],
        "description": "`placed`: new here. `kept`: this life had the user. `inherited`: an earlier life of this pod "
        "had the user, and its memory is gone.",
    },
    "turn": {
        "type": "integer",
        "description": "Of this claim. A release with an older turn leaves a newer claim alone.",
    },
}


def _of_uid(summary: str, name: str, parameters: list[Document], answers: Document) -> Document:
    uid = {
        "name": "uid",
        "in": "path",
        "required": True,
        "description": "The user; percent-encoded, slashes included.",
        "schema": {"type": "string"},
    }
    return {
        "summary": summary,
        "operationId": name,
        "parameters": [uid, *parameters],
        "responses": {
            **answers,
            "400": _problem("`invalid`: an argument breaks a rule"),
            "503": _problem(
                "`not-running`: the pod has not begun, has failed or has stopped; `store`: it is away"
            ),
        },
    }


def agent_document() -> Document:
    """Of ``sfroute agent``."""
    grace = {
        "name": "grace",
        "in": "query",
        "description": "Seconds for which the link stays for a reconnect; 0 removes it now. Without it: `--grace`.",
        "schema": {"type": "integer", "minimum": 0},
    }
    waiting = {
        **grace,
        "description": f"{grace['description']} With `to`: for which it waits at that pod, from 1; without it: 60.",
    }
    turn = {
        "name": "turn",
        "in": "query",
        "description": "Release only if this is the newest claim of the user.",
        "schema": {"type": "integer", "minimum": 1},
    }
    to = {
        "name": "to",
        "in": "query",
        "description": "With `turn`: the pod that is to have the user, as the event `handover` says.",
        "schema": {"type": "integer", "minimum": 0},
    }
    service = {"X-Sfroute-Service": _text("The service, percent-encoded.")}
    has_user = (
        "This pod has the user. If a database refuses the fence, the pod should answer 421 with the header "
        "`X-Sfroute-Service` of this answer."
    )
    refused = _json(
        "Not this pod. `refused`: another pod has the user. `full`, `paused`: this pod takes nobody new. The headers "
        "`X-Sfroute-*` are those of the 421 that the pod should answer.",
        _object(
            {
                "reason": {"type": "string", "enum": ["refused", "full", "paused"]},
                "detail": {"type": "string"},
            },
            {"owner": {"type": "integer", "minimum": 0}},
        ),
        {
            **service,
            "X-Sfroute-Owner": _text("The pod that has the user, with `refused`."),
            "X-Sfroute-Full": _text("`1` with `full` and `paused`."),
        },
    )
    pausing = {
        f"/{name}": {
            "post": {
                "summary": words,
                "operationId": name,
                "responses": {
                    "200": _json("Done.", _object({"paused": {"type": "boolean"}})),
                    "503": _problem("`not-running`, or `store`: it will be said later"),
                },
            }
        }
        for name, words in (
            ("pause", "Take nobody new, and keep all users"),
            ("resume", "Take new users again"),
        )
    }
    claims = {
        "put": _of_uid(
            "Claim a user: act for them only if it says 200",
            "accept",
            [],
            {"200": _json(has_user, _object(_CLAIM), service), "409": refused},
        ),
        "get": _of_uid(
            "May this pod act for the user now? Asks nobody",
            "owns",
            [],
            {
                "200": _json(
                    "`owned`; false in a grace period, and always once the lease has run out.",
                    _object({"owned": {"type": "boolean"}}, _CLAIM),
                )
            },
        ),
        "delete": _of_uid(
            "Let a user go, if this pod has them",
            "release",
            [waiting, turn, to],
            {"200": _json("Done.", _object({"released": {"type": "boolean"}}))},
        ),
    }
    sessions = {
        "post": _of_uid(
            "Begin a connection of a user; the first one claims, the last one to end lets go",
            "enter",
            [grace],
            {
                "201": _json(has_user, _object({**_CLAIM, "session": {"type": "string"}}), service),
                "409": refused,
            },
        ),
    }
    ending = {
        "summary": "End a connection",
        "operationId": "leave",
        "parameters": [
            {"name": "session", "in": "path", "required": True, "schema": {"type": "string"}}
        ],
        "responses": {
            "200": _json("Ended.", _object({"ended": {"type": "boolean"}})),
            "404": _problem("`not-found`: there is no such session"),
        },
    }
    return {
        **_head(
            "sfroute agent",
            "Speaks for one pod, to the processes of that pod only: heartbeats, claims, sessions and events.",
        ),
        "paths": {
            "/claims/{uid}": claims,
            "/claims/{uid}/sessions": sessions,
            "/sessions/{session}": {"delete": ending},
            "/drain": {
                "post": {
                    "summary": "Take no new users, and wait until those of now have gone",
                    "operationId": "drain",
                    "parameters": [
                        {
                            "name": "deadline",
                            "in": "query",
                            "description": "Seconds to wait at most.",
                            "schema": {"type": "number", "minimum": 0},
                        }
                    ],
                    "responses": {
                        "200": _json("How many are left.", _object({"left": {"type": "integer"}})),
                        "503": _problem("`not-running` or `store`"),
                    },
                }
            },
            **pausing,
            "/events": {
                "get": {
                    "summary": "What the pod must be told, as server-sent events",
                    "operationId": "events",
                    "description": (
                        "From the first event that is kept, or after `Last-Event-ID`. `running`: the pod may claim "
                        "users. `lost`: stop acting for `uid`; with `reason`, `owner`, and the `fence` of the claim. "
                        "`handover`: you are asked to hand `uid` over to pod `to`; save the user, then release "
                        "with this `turn` and `to`, or ignore it. "
                        "`isolated`: the lease has run out; act for nobody. `rejoined`. `draining`. `failed`: the "
                        "health check failed; all claims are lost. `superseded`: another process has this pod's id. "
                        "`stopped`. `missed`: this reader was too far behind; ask for each user again."
                    ),
                    "parameters": [
                        {
                            "name": "Last-Event-ID",
                            "in": "header",
                            "schema": {"type": "integer", "minimum": 0},
                        },
                        {
                            "name": "after",
                            "in": "query",
                            "description": "The same, for readers that can set no header.",
                            "schema": {"type": "integer", "minimum": 0},
                        },
                    ],
                    "responses": {
                        "200": {
                            "description": "The events, until the agent ends.",
                            "content": {"text/event-stream": {"schema": {"type": "string"}}},
                        }
                    },
                }
            },
            "/status": {
                "get": {
                    "summary": "How the pod is doing",
                    "operationId": "status",
                    "responses": {
                        "200": _json(
                            "`Pending`: it is paused. `NotRunning`: it has not begun, or has failed.",
                            _object(
                                {
                                    "pod": {"type": "integer", "minimum": 0},
                                    "status": {
                                        "type": "string",
                                        "enum": [
                                            "Running",
                                            "Pending",
                                            "Draining",
                                            "Stopped",
                                            "NotRunning",
                                        ],
                                    },
                                    "lease": {
                                        "type": "boolean",
                                        "description": "True while the pod may act for its users.",
                                    },
                                    "sessions": {"type": "integer"},
                                    "conflicts": {
                                        "type": "integer",
                                        "description": "Other processes that claimed this pod's id.",
                                    },
                                }
                            ),
                        )
                    },
                }
            },
            "/openapi.json": {
                "get": {
                    "operationId": "openapi",
                    "summary": "This document",
                    "responses": {"200": _json("This document.", {"type": "object"})},
                }
            },
        },
        "components": {"schemas": {"Problem": _PROBLEM}},
    }
