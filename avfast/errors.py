"""The error that a program reports to its user in one line."""

from __future__ import annotations

BAD_INPUT = 2
"""The exit code of a program after an ``InputError``."""


class InputError(Exception):
    """Something the user gave cannot be used: a file, a folder, an option.

    The message is one sentence or two: what is wrong, with the file's name, and what to do about it. Programs
    print it on stderr and exit with code 2 (see ``avfast.cli.run``).
    """
