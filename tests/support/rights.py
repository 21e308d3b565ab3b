"""The users that docs/how-to/secure.md tells to make, read out of that page."""

from __future__ import annotations

import re
import shlex

from sfroute.embedded import LocalCluster

from .documents import block

__all__ = ["RULES", "give_rights", "rule_of", "url_of"]

PASSWORD = "s3cret"


def _read() -> dict[str, tuple[str, ...]]:
    told = block("docs/how-to/secure.md", "sh", 0).text
    commands = [shlex.split(line) for line in told.replace("\\\n", " ").splitlines() if line]
    rules = {}
    for command in commands:
        start = command.index("SETUSER")
        assert command[start + 2 : start + 4] == ["reset", "on"]
        assert re.fullmatch(r">\$[A-Z]+_PASSWORD", command[start + 4])
        rules[command[start + 1]] = tuple(command[start + 5 :])
    return rules


RULES = _read()
"""User -> what it is given on the page: keys, commands, and selectors in brackets."""


def rule_of(user: str, namespace: str, *, selectors: bool = True) -> list[str]:
    """The rule of a user for another namespace than the page's; as the page says for servers without selectors."""
    rule = [right.replace("{production:", f"{{{namespace}:") for right in RULES[user]]
    if selectors or user != "gateway":
        return rule
    return [*rule_of("pod", namespace), f"~sf:{{{namespace}:workload:*", "+hexists"]


def give_rights(store: LocalCluster, user: str, rule: list[str]) -> None:
    """Make the user on every node."""
    for node in store.nodes:
        node.commands(("ACL", "SETUSER", user, "reset", "on", f">{PASSWORD}", *rule))


def url_of(url: str, user: str) -> str:
    """The URL of a store as this user."""
    scheme, rest = url.split("://")
    return f"{scheme}://{user}:{PASSWORD}@{rest.rpartition('@')[2]}"
