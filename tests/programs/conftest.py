"""What the tests of programs share."""

from __future__ import annotations

import pytest
from conftest import ONE_SERVER


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run on one server: these tests start processes, and what those call is tested on every server without them."""
    if "server" in metafunc.fixturenames:
        metafunc.definition.add_marker(ONE_SERVER)
