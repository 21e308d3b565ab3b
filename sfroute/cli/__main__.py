"""``python -m sfroute.cli`` is the ``sfroute`` command."""

from . import main

main()
