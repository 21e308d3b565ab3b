"""The results of checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ...errors import StoreUnavailable
from ..nodes import REFUSALS

__all__ = ["Check", "Finding", "remedy_of", "remedy_of_code"]

Severity = Literal["error", "warning"]

_SEE_SERVERS = "see what is said of the servers and the slots above"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Attributes:
        severity: ``"error"``: calls fail, or users are sent astray; ``"warning"``: it works, with less than it could.
        text: what it is.
        remedy: what to do about it.
    """

    severity: Severity
    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        name: a word.
        summary: what was looked at, and what was seen.
        findings: what is not as it should be.
        skipped: it could not be done; ``summary`` says why.
        numbers: what JSON has in addition; None: nothing.
    """

    name: str
    summary: str
    findings: tuple[Finding, ...] = ()
    skipped: bool = False
    numbers: Mapping[str, Any] | None = None

    @property
    def verdict(self) -> Literal["ok", "skipped", "warning", "error"]:
        """The worst level among the findings."""
        severities = {finding.severity for finding in self.findings}
        if "error" in severities:
            return "error"
        if "warning" in severities:
            return "warning"
        return "skipped" if self.skipped else "ok"

    def of_some(self) -> Check:
        """The same where a server does not answer: what nobody has seen is not ok."""
        if self.skipped:
            return self
        return replace(self, summary=f"not all could be seen: {self.summary}", skipped=True)

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "check": self.name,
            "verdict": self.verdict,
            "summary": self.summary,
            "findings": [asdict(finding) for finding in self.findings],
        } | ({} if self.numbers is None else {"numbers": dict(self.numbers)})


def remedy_of(error: Exception) -> str:
    """What to do about a call that failed."""
    if isinstance(error, StoreUnavailable):
        return _SEE_SERVERS
    return "see what is said of the rights and the keys"


def remedy_of_code(code: str, right: str) -> str:
    """What to do about a command that a server refused, or did not answer: only for a lack of rights it is a right."""
    if code in REFUSALS:
        return f"give the right to {right}; docs/how-to/secure.md has the whole rule"
    return f"{_SEE_SERVERS}, and run it again"
