"""Servers for one test, as in tests/coherence."""

from coherence.conftest import mortal_server, own_server, single, some_server

__all__ = ["mortal_server", "own_server", "single", "some_server"]
