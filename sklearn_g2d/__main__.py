"""The command line: ``python -m sklearn_g2d inspect --help``."""

from __future__ import annotations

import sys

from sklearn_g2d._inspect import _command

_HELP = """usage: python -m sklearn_g2d inspect ...

commands:
  inspect  judge photographs of parts by photographs of good ones

`python -m sklearn_g2d inspect --help` lists its options.
"""


def main(arguments: list[str]) -> int:
    """Run a command, and return its exit status."""
    if arguments[:1] == ["inspect"]:
        return _command.main(arguments[1:])
    asked = arguments in (["-h"], ["--help"])
    print(_HELP, end="", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
