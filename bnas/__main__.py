"""`python -m bnas ARGUMENTS` is `bnas ARGUMENTS`, also where the folder of commands is not on the path."""

from __future__ import annotations

from bnas.cli import main

if __name__ == "__main__":
    main()
