"""What the operations on links, states and workloads mean: the executable specification.

No store, no cache and no concurrency, only the rules. Methods have the names, argument orders and results of the
router's own, so that a test can make the same call on both and compare. Time is an injected clock in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

PERSIST_FOREVER = -1


class StoredLink(NamedTuple):
    """A link as the store holds it; ``expires_at`` is in milliseconds of the clock, None if it is persistent."""

    pod: int
    expires_at: int | None

    @property
    def persistent(self) -> bool:
        return self.expires_at is None


class Model:
    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._links: dict[tuple[str, str, str], StoredLink] = {}
        self._states: dict[tuple[str, str], dict[int, str]] = {}
        self._workloads: dict[tuple[str, str], str] = {}

    # --- links: reading

    def link(self, namespace: str, uid: str, service: str) -> StoredLink | None:
        """The link as stored; no operation of the router, but what all of them start from."""
        link = self._links.get((namespace, uid, service))
        if link is None or (link.expires_at is not None and link.expires_at <= self._clock()):
            return None
        return link

    def get_linked_pod(self, namespace: str, uid: str, service: str) -> int | None:
        link = self.link(namespace, uid, service)
        return None if link is None else link.pod

    def get_linked_pod_if_persist(self, namespace: str, uid: str, service: str) -> int | None:
        link = self.link(namespace, uid, service)
        return link.pod if link is not None and link.persistent else None

    def batch_get_linked_pod(
        self, namespace: str, uids: Iterable[str], service: str
    ) -> dict[int, list[str]]:
        pods: dict[int, list[str]] = {}
        for uid in uids:
            pod = self.get_linked_pod(namespace, uid, service)
            if pod is not None:
                pods.setdefault(pod, []).append(uid)
        return pods

    def get_link_service(self, namespace: str, uid: str) -> dict[str, int]:
        services = [key[2] for key in self._links if key[:2] == (namespace, uid)]
        links = {service: self.link(namespace, uid, service) for service in services}
        return {service: link.pod for service, link in links.items() if link and link.persistent}

    # --- links: writing

    def set_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int = PERSIST_FOREVER,
    ) -> int | None:
        """The last writer wins."""
        previous = self.get_linked_pod(namespace, uid, service)
        self._write(namespace, uid, service, pod, persist_seconds)
        return previous

    def try_set_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int = PERSIST_FOREVER,
    ) -> tuple[bool, int]:
        """Refused only by a different pod's persistent link."""
        link = self.link(namespace, uid, service)
        if link is not None and link.persistent and link.pod != pod:
            return False, link.pod
        self._write(namespace, uid, service, pod, persist_seconds)
        return True, pod

    def set_linked_pod_if_absent(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod: int,
        persist_seconds: int = PERSIST_FOREVER,
        *,
        refresh: bool = False,
    ) -> int:
        """An existing link keeps its pod; a refresh makes a temporary one last longer, never shorter."""
        link = self.link(namespace, uid, service)
        if link is None:
            self._write(namespace, uid, service, pod, persist_seconds)
            return pod
        if refresh and link.expires_at is not None:
            wanted = self._expiry(persist_seconds)
            if wanted is None or wanted > link.expires_at:
                self._write(namespace, uid, service, link.pod, persist_seconds)
        return link.pod

    def move_linked_pod(
        self, namespace: str, uid: str, service: str, expected: int, pod: int
    ) -> int | None:
        """Only if the link is that pod's; its kind and remaining time stay."""
        link = self.link(namespace, uid, service)
        if link is None or link.pod != expected:
            return None if link is None else link.pod
        self._links[namespace, uid, service] = link._replace(pod=pod)
        return pod

    def remove_linked_pod(
        self, namespace: str, uid: str, service: str, persist_seconds: int = PERSIST_FOREVER
    ) -> bool:
        """Now, or after a grace period in which the link is temporary and keeps its pod."""
        link = self.link(namespace, uid, service)
        if link is None:
            return False
        if persist_seconds == PERSIST_FOREVER:
            del self._links[namespace, uid, service]
        else:
            self._write(namespace, uid, service, link.pod, persist_seconds)
        return True

    def remove_linked_pod_with_id(
        self,
        namespace: str,
        uid: str,
        service: str,
        *,
        pod: int,
        persist_seconds: int = PERSIST_FOREVER,
    ) -> bool:
        """Only if the link is that pod's."""
        if self.get_linked_pod(namespace, uid, service) != pod:
            return False
        return self.remove_linked_pod(namespace, uid, service, persist_seconds)

    def compute_link(
        self,
        namespace: str,
        uid: str,
        service: str,
        persist_seconds: int | None,
        mode: str,
        gone: Collection[int],
        candidates: Iterable[int],
    ) -> tuple[int | None, str, int | None]:
        """The decision behind ``route()``: owner, outcome and previous pod. ``None`` keeps the link's kind."""
        link = self.link(namespace, uid, service)
        previous = None if link is None else link.pod
        pod = next((pod for pod in candidates if pod not in gone), None)
        if link is not None and link.pod not in gone:
            if mode == "claim" and link.pod == pod and persist_seconds == PERSIST_FOREVER:
                self._write(namespace, uid, service, pod, PERSIST_FOREVER)
            self._extend_if_half_gone(namespace, uid, service, persist_seconds)
            return link.pod, "kept", previous
        if pod is None or (link is None and mode == "move"):
            return None, "none", previous
        if persist_seconds is not None:
            self._write(namespace, uid, service, pod, persist_seconds)
        elif link is not None:
            self._links[namespace, uid, service] = link._replace(pod=pod)
        else:
            raise ValueError("there is no link whose kind could be kept")
        return pod, "placed" if link is None else "moved", previous

    def _extend_if_half_gone(
        self, namespace: str, uid: str, service: str, persist_seconds: int | None
    ) -> None:
        link = self._links[namespace, uid, service]
        if link.expires_at is None or persist_seconds is None or persist_seconds < 0:
            return
        if link.expires_at - self._clock() < persist_seconds * 1000 / 2:
            self._write(namespace, uid, service, link.pod, persist_seconds)

    def expire(self, namespace: str, uid: str, service: str) -> bool:
        """A temporary link's time is over now; True if there was one. Time does this, not the router."""
        link = self.link(namespace, uid, service)
        if link is None or link.persistent:
            return False
        self._links[namespace, uid, service] = link._replace(expires_at=self._clock())
        return True

    def _write(
        self, namespace: str, uid: str, service: str, pod: int, persist_seconds: int
    ) -> None:
        self._links[namespace, uid, service] = StoredLink(pod, self._expiry(persist_seconds))

    def _expiry(self, persist_seconds: int) -> int | None:
        if persist_seconds == PERSIST_FOREVER:
            return None
        return self._clock() + persist_seconds * 1000

    # --- states and workloads

    def set_service_state(self, namespace: str, service: str, pod: int, state: str) -> None:
        self._states.setdefault((namespace, service), {})[pod] = state

    def get_service_state(self, namespace: str, service: str) -> dict[int, str]:
        return dict(self._states.get((namespace, service), {}))

    def set_workload_state(self, namespace: str, service: str, state: str) -> None:
        self._workloads[namespace, service] = state

    def get_workload_state(self, namespace: str, service: str) -> str | None:
        return self._workloads.get((namespace, service))

    def get_workload_state_batch(self, namespace: str, services: Iterable[str]) -> dict[str, str]:
        states = {service: self.get_workload_state(namespace, service) for service in services}
        return {service: state for service, state in states.items() if state is not None}

    # --- what the store holds

    def keys(self) -> dict[str, str | dict[str, str]]:
        """Every key the store must hold now, with its content as stored (the key table of the contract)."""
        keys: dict[str, str | dict[str, str]] = {}
        for namespace, uid, service in self._links:
            link = self.link(namespace, uid, service)
            if link is not None:
                keys[f"sf:{{{namespace}:lk:{uid}}}{service}"] = str(link.pod)
            listed = self.get_link_service(namespace, uid)
            if listed:
                keys[f"sf:{{{namespace}:lk:{uid}}}"] = {k: str(v) for k, v in listed.items()}
        for (namespace, service), pods in self._states.items():
            keys[f"sf:{{{namespace}:state:{service}}}"] = {str(k): v for k, v in pods.items()}
        for (namespace, service), state in self._workloads.items():
            keys[f"sf:{{{namespace}:workload:{service}}}"] = state
        return keys

    def remaining_ms(self) -> dict[str, int]:
        """The time that the key of each temporary link has left."""
        now = self._clock()
        return {
            f"sf:{{{namespace}:lk:{uid}}}{service}": link.expires_at - now
            for (namespace, uid, service), link in self._links.items()
            if link.expires_at is not None and link.expires_at > now
        }
