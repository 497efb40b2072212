"""`python -m tq4` and the `tq4` script: the program that lies in the wheel, in place of this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def program() -> str | None:
    """The tq4 program of this installation (or of the build tree the package lies in)."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "bin" / "tq4", here.parent.parent / "bin" / "tq4"):
        if os.access(candidate, os.X_OK) and candidate.is_file():
            return str(candidate)
    return None


def main() -> None:
    found = program()
    if found is None:
        print("tq4: this installation was built without the program (TQ4_APPS=OFF)", file=sys.stderr)
        sys.exit(6)
    sys.stdout.flush()
    os.execv(found, ["tq4", *sys.argv[1:]])


if __name__ == "__main__":
    main()
