"""What a program reports to its user in one line: bad input, and that it was told to stop."""

from __future__ import annotations

BAD_INPUT = 2
"""The exit code of a program after an ``InputError``."""


class InputError(Exception):
    """Something the user gave cannot be used: a file, a folder, an option.

    The message is one sentence or two: what is wrong, with the file's name, and what to do about it. Programs
    print it on stderr and exit with code 2 (see ``avfast.cli.run``).
    """


class DamagedClip(InputError):
    """One clip of prepared data cannot be read; the others may be."""

    clip = ""
    """Its name."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the work.

    Like its parent it is no ``Exception``, so that nothing on the way takes it for a failure.
    """

    def __init__(self, number: int, kept: str = "", more: str = "") -> None:
        """Args:
        number: Of the signal.
        kept: What is left of the work.
        more: What to add to the command line to go on with it; empty where one must start again.
        """
        super().__init__(number, kept, more)
        self.number, self.kept, self.more = number, kept, more
