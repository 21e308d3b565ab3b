"""``python -m sfroute`` is the ``sfroute`` command."""

from .cli import main

if __name__ == "__main__":
    main()
