"""``python -m sfroute.cli`` is the ``sfroute`` command."""

from ..cli import main

main()
