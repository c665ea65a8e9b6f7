"""`python -m letheon` is the command `letheon`."""

from __future__ import annotations

from letheon.cli.main import main

if __name__ == "__main__":
    main()
