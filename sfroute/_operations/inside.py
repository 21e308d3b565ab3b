"""What is behind a router: the one door for the other front, for the agents of pods and for tests."""

from __future__ import annotations

from .._net.targets import StoreTarget
from ..config import RouterConfig
from .engine import Engine
from .links import LinkReader, LinkWriter
from .listing import Listing
from .placing import Routes
from .reports import Reports
from .states import ServiceStates

__all__ = ["Inside"]


class Inside:
    """The engine of one router, and the operations that work on it.

    A router holds it as ``_inside``. Nothing outside of the package may rely on it.

    Attributes:
        engine: what is opened and closed together.
        writer: writes on links.
        reader: lookups past the hot path.
        routes: placement.
        reports: what callers report of pods.
        states: the states of services.
        listing: what goes through all links.
        telemetry: what the router records.
    """

    def __init__(self, target: StoreTarget, config: RouterConfig) -> None:
        self.engine = Engine(target, config)
        self.telemetry = self.engine.telemetry
        self.writer = LinkWriter(self.engine)
        self.reader = LinkReader(self.engine)
        self.routes = Routes(self.engine, self.reader, self.writer)
        self.reports = Reports(self.engine)
        self.states = ServiceStates(self.engine)
        self.listing = Listing(self.engine, self.writer)
