"""What a check says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Check", "Finding", "listed"]

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

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
    """

    name: str
    summary: str
    findings: tuple[Finding, ...] = ()
    skipped: bool = False

    @property
    def verdict(self) -> Literal["ok", "skipped", "warning", "error"]:
        """The worst of it."""
        severities = {finding.severity for finding in self.findings}
        if "error" in severities:
            return "error"
        if "warning" in severities:
            return "warning"
        return "skipped" if self.skipped else "ok"

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "check": self.name,
            "verdict": self.verdict,
            "summary": self.summary,
            "findings": [asdict(finding) for finding in self.findings],
        }


def listed(names: Sequence[object], most: int = 4) -> str:
    """A few of the names, and how many more there are."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
