"""A child process for calls that may crash, hang or want too much memory: the caller outlives them all."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

IDLE_SECONDS = 30.0
"""A child without work ends itself after this; the next call starts another."""

_ITEM, _DONE, _ERROR = b"i", b"d", b"e"  # first byte of a reply

_ENVIRONMENT = {
    # Calls are the unit of parallel work.
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # The C library maps large pictures anew each time and hands them back, which took a tenth of the time.
    # These are glibc's highest, and unknown elsewhere.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}


@dataclass(frozen=True)
class Limits:
    """What one call may take."""

    seconds: float = 600.0
    """From one item that it yields to the next."""
    memory: int = 2 << 30
    """Bytes, beyond what the child holds when the call begins; not enforced where there is no /proc."""


@dataclass(frozen=True)
class Result:
    """What a call gave. Items stay pickled, so that only the final reader imports what they need."""

    items: list[bytes]
    """Pickled, in order: what the call yielded, up to the end or to its death."""
    death: str = ""
    """How the child died, if it did."""
    error: bytes | None = None
    """The pickled exception that ended the call, if one did."""

    def read(self) -> list[Any]:
        """The items.

        Raises:
            Exception: What the call raised.
        """
        if self.error is not None:
            raise pickle.loads(self.error)
        return [pickle.loads(item) for item in self.items]


def pack(function: Callable[..., Iterator[Any]], *arguments: Any) -> bytes:
    """A call of a generator function of some module, as ``run`` takes it."""
    return pickle.dumps((function, arguments))


def run(call: bytes, limits: Limits) -> Result:
    """Make a call in this thread's child process.

    The child is kept for the next call. It is a fresh interpreter, not a fork, so this works beneath
    threads, in a daemon and in the workers of any pool; and it takes this process's import path.

    Args:
        call: From ``pack``.
        limits: The child is killed by an alarm of its kernel timer after ``limits.seconds``, whatever code
            it is in; allocations beyond ``limits.memory`` fail in it.

    Returns:
        What came, and how the call ended.

    Raises:
        RuntimeError: When no child can be started.
    """
    message = pickle.dumps((limits, call))
    result = _attempt(message, limits)
    if result is None:  # it had just gone idle
        result = _attempt(message, limits)
    if result is None:
        raise RuntimeError("a child process ended before it did anything")
    return result


class _Child:
    """A running child and our end of the pipe to it."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        path = os.pathsep.join([entry or str(Path.cwd()) for entry in sys.path])
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from avfast.sandbox import serve; serve({theirs.fileno()})"],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | _ENVIRONMENT | {"PYTHONPATH": path},
        )
        theirs.close()
        weakref.finalize(self, _end, self.connection, self.process)


def _end(connection: Connection, process: subprocess.Popen[bytes]) -> None:
    connection.close()  # what an idle child waits for
    process.kill()
    process.wait()


_mine = threading.local()


def _attempt(message: bytes, limits: Limits) -> Result | None:
    """The result of one call; None where the child had ended of its own accord."""
    child = getattr(_mine, "child", None)
    if child is None:
        child = _mine.child = _Child()
    items: list[bytes] = []
    try:
        child.connection.send_bytes(message)
        while True:
            reply = child.connection.recv_bytes()
            kind, content = reply[:1], reply[1:]
            if kind == _ITEM:
                items.append(content)
            else:
                return Result(items, error=content if kind == _ERROR else None)
    except (EOFError, OSError):
        _mine.child = None
        code = child.process.wait()
        return None if code == 0 and not items else Result(items, _cause_of_death(code, limits))
    except BaseException:  # a reply is outstanding: the next call must not read it
        _mine.child = None
        raise


def _cause_of_death(code: int, limits: Limits) -> str:
    if code == -signal.SIGALRM:
        return f"took longer than {limits.seconds:g} s"
    if code == -signal.SIGKILL:
        return "was killed, perhaps because the machine's memory was full"
    if code < 0:
        return f"crashed the decoder ({signal.Signals(-code).name})"
    raise RuntimeError(f"a child process ended with status {code}; its own message is above")


def serve(descriptor: int) -> None:
    """What the child does: answer calls until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    connection = Connection(descriptor)
    try:
        while connection.poll(IDLE_SECONDS):
            _answer(connection, *pickle.loads(connection.recv_bytes()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the caller is gone


def _answer(connection: Connection, limits: Limits, call: bytes) -> None:
    try:
        function, arguments = pickle.loads(call)
        _limit_memory(limits.memory)
        signal.setitimer(signal.ITIMER_REAL, limits.seconds)
        for item in function(*arguments):
            signal.setitimer(signal.ITIMER_REAL, limits.seconds)
            connection.send_bytes(_ITEM + pickle.dumps(item))
        reply = _DONE
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        reply = _ERROR + _pickled(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _limit_memory(None)
    connection.send_bytes(reply)


def _pickled(error: Exception) -> bytes:
    """An exception, or its text where it does not survive pickling."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return data


def _limit_memory(growth: int | None) -> None:
    """Let the process's writable memory grow by this many bytes; None for any number."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = hard
    if growth is not None:
        soft = int(statm.read_text().split()[5]) * resource.getpagesize() + growth
        soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
