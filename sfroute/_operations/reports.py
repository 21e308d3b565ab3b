"""What callers report of the pods: failures to reach one."""

from __future__ import annotations

from .._contract.keys import check_pod, check_service_names
from ..telemetry.logs import log_fields
from .engine import Engine

__all__ = ["Reports"]


class Reports:
    """Passes reports on to those who choose pods. On the event loop only."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def failure(self, namespace: str, service: str, pod: int) -> None:
        """A pod could not be reached. A router that is not open has nobody to tell.

        Raises ``InvalidArgument``.
        """
        check_service_names(namespace, service)
        check_pod(pod)
        self._engine.failures_reported += 1
        parts = self._engine.parts
        if parts is None:
            return
        if parts.views.failures(namespace, service).report(pod, self._engine.clock()):
            self._engine.config.logger_for("pods").info(
                "a pod could not be reached, so this gateway places nobody there for a while",
                extra=log_fields(namespace, service, pod),
            )
