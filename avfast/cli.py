"""How every program of the package reads its options and reports what the user can put right."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import re
import shlex
import signal
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, Union, get_args

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    UnsupportedTypeAnnotationError,
)

from avfast.errors import BAD_INPUT, InputError, Interrupted

Options = TypeVar("Options")

SIGNALLED = 128

_REGISTRY = ConstructorRegistry()

_HELP_INDENT = 8  # tyro indents an option's help text at least this far, its message less


def run(main: Callable[[Options], None], options: type[Options]) -> None:
    """Parse the command line into ``options`` and call ``main`` with it.

    The help text is the docstring of the module that defines ``main``, followed by the documented fields of
    ``options``. Bad usage, an ``InputError`` or an ``OSError`` ends the program with exit code 2 and one line
    on stderr; a traceback is left for what is our fault.

    Args:
        main: The program.
        options: A dataclass whose fields have docstrings.

    Raises:
        SystemExit: With code 2 for bad usage or bad input, 130 after Ctrl-C, 143 after SIGTERM.
    """
    name = _program_name(main)
    parsed = _parse(name, main, options)
    try:
        main(parsed)
    except InputError as error:
        _fail(name, str(error))
    except OSError as error:
        _fail(name, _describe(error))
    except Interrupted as stop:
        _say(f"\n{name}: {_farewell(name, stop)}")
        sys.exit(SIGNALLED + stop.number)
    except KeyboardInterrupt:
        _say(f"\n{name}: interrupted")
        sys.exit(SIGNALLED + signal.SIGINT)


def _program_name(main: Callable[..., None]) -> str:
    """The dotted name after ``python -m``, also when the module runs as ``__main__``."""
    spec = getattr(sys.modules.get(main.__module__), "__spec__", None)
    return spec.name if spec is not None else main.__module__


def _parse(name: str, main: Callable[..., None], options: type[Options]) -> Options:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                options,
                prog=f"python -m {name}",
                description=inspect.getdoc(sys.modules[main.__module__]),
                config=(tyro.conf.PositionalMetavarFromFieldName,),
                registry=_REGISTRY,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        _fail(name, f"{_one_line(complaint.getvalue())}; see python -m {name} --help")


@_REGISTRY.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """``X | None`` is given as an X or left out; ``bool | None`` also as a bare switch, which means yes."""
    kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
    if info.type_origin not in (Union, types.UnionType) or len(kinds) != 1:
        return None
    if kinds[0] is bool:
        return PrimitiveConstructorSpec(
            nargs=(0, 1),
            metavar="[True|False]",
            choices=("True", "False"),
            instance_from_str=lambda words: words != ["False"],
            is_instance=lambda value: value is None or isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], set(info.markers)))
    if isinstance(spec, UnsupportedTypeAnnotationError):
        return None
    return dataclasses.replace(
        spec,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else spec.str_from_instance(value),
    )


def _one_line(box: str) -> str:
    """The message inside the box that tyro draws around a parsing error."""
    lines = [line.strip("│╭╮╰╯").rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    message: list[str] = []
    for line in lines[1:]:
        if line and set(line.strip()) == {"─"}:
            break
        if len(line) - len(line.lstrip()) < _HELP_INDENT:
            message.append(line.strip())
    return " ".join(part for part in message if part).rstrip(".") or "cannot read the options"


def _describe(error: OSError) -> str:
    """An operating system's error with its file first, where it names one."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


def _farewell(name: str, stop: Interrupted) -> str:
    """What was stopped by what, and the command that goes on with it."""
    words = [f"stopped by {signal.Signals(stop.number).name}", stop.kept]
    if stop.more and "TORCHELASTIC_RUN_ID" in os.environ:
        words.append(f"go on with the same torchrun command and {stop.more}")
    elif stop.more:
        given = sys.argv[1:] + [stop.more] * (stop.more not in sys.argv)
        words.append(f"go on with: python -m {name} {shlex.join(given)}")
    return "; ".join(word for word in words if word)


def _fail(name: str, message: str) -> NoReturn:
    _say(f"{name}: error: {' '.join(message.split())}")
    sys.exit(BAD_INPUT)


def _say(line: str) -> None:
    """Print on stderr, once where many ranks of one run fail together."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from avfast.distributed import first_to_fail  # brings torch, which other programs may do without

        if not first_to_fail():
            return
    print(line, file=sys.stderr)
