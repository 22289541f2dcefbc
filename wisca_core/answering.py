"""A process of ours that answers requests, one after the other, until it is asked no more: both its sides. What is
asked, and what is made of an end without an answer, stand where it is started: ``apart`` and the census.
"""

import json
import os
import resource
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from importlib import import_module
from typing import IO

from wisca_core import errors
from wisca_core.errors import UnreadableInput, WiscaError
from wisca_core.processes import ONE_THREAD, collect_seldom, end, program

OUT_OF_MEMORY = 77  # exit code: the answer took more than it was given
PIECE_BYTES = 256 << 20
# A process that neither works nor answers; the processor may be busy with other things, and imports take their time.
SILENT_SECONDS = 120.0

_HEAD = struct.Struct("<cQ")  # kind of message, bytes that follow
_PIECE, _DONE, _ERROR = b"P", b"D", b"E"


class Answerer:
    """One such process, with one thread. It stays in our process group, which may be ended as a whole, and ends with
    its input, so that it outlives whoever started it by one answer at most. ``log``: where it prints.
    """

    def __init__(self, log: int | IO[bytes] = subprocess.DEVNULL) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        self.process = subprocess.Popen(program("wisca_core.answering"), **pipes, env=os.environ | ONE_THREAD)
        self.asked = time.monotonic()

    def ask(self, function: str, argument: object, cpu_seconds: float = 0.0, memory_bytes: int = 0) -> None:
        """What ``function`` ("module:name", of ours, from a plain JSON value to an iterator of bytes) yields on
        ``argument``.

        A function ``ready`` of its module is called first. Then the kernel ends the process where one piece takes over
        ``cpu_seconds`` of the processor, and gives it ``memory_bytes`` beyond what it has by then; 0: no limit.
        """
        self.asked = time.monotonic()
        request = json.dumps([function, argument, cpu_seconds, memory_bytes]) + "\n"
        with suppress(BrokenPipeError):  # it ended meanwhile: the end of its output says so
            self.process.stdin.write(request.encode())
            self.process.stdin.flush()

    def answer(self) -> Iterator[bytes]:
        """The pieces of the answer to what it was asked last.

        Raises the WiscaError that the function raised, after which it can be asked again; EOFError, with the exit code,
        where it ended; TimeoutError where nothing came for SILENT_SECONDS; OverflowError, with its bytes, for a piece
        over PIECE_BYTES.
        """
        while True:
            kind, n = _HEAD.unpack(self._receive(_HEAD.size))
            if n > PIECE_BYTES:
                raise OverflowError(n)
            data = self._receive(n)
            if kind == _PIECE:
                yield data
            elif kind == _DONE:
                return
            else:
                name, text = json.loads(data)
                raise getattr(errors, name, UnreadableInput)(text)

    def _receive(self, n: int) -> bytes:
        out = bytearray()
        while len(out) < n:
            if not heard([self], SILENT_SECONDS):
                raise TimeoutError
            new = os.read(self.process.stdout.fileno(), min(n - len(out), 1 << 20))
            if not new:
                raise EOFError(self.process.wait())
            out += new
        return bytes(out)

    def end(self) -> None:
        """By force."""
        end(self.process)


def heard(answerers: Collection[Answerer], seconds: float) -> list[Answerer]:
    """Those whose answer begins, or who have ended, within ``seconds``; none where that is nobody."""
    with selectors.DefaultSelector() as selector:
        for one in answerers:
            selector.register(one.process.stdout, selectors.EVENT_READ, one)
        return [key.data for key, _ in selector.select(seconds)]


# --- the other process ------------------------------------------------------------------------------------------------


def main() -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; who started this one ends it
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    collect_seldom()
    for line in sys.stdin.buffer:
        function, argument, *limits = json.loads(line)
        module, _, name = function.partition(":")
        place = import_module(module)
        getattr(place, "ready", lambda: None)()
        try:
            for piece in _within_limits(getattr(place, name)(argument), *limits):
                _say(out, _PIECE, piece)
            _say(out, _DONE, b"")
        except WiscaError as error:
            _say(out, _ERROR, json.dumps([type(error).__name__, str(error)]).encode())
        except MemoryError:
            os._exit(OUT_OF_MEMORY)


def _within_limits(found: Iterator[bytes], cpu_seconds: float, memory_bytes: int) -> Iterator[bytes]:
    """Each piece within ``cpu_seconds``, all within ``memory_bytes`` more; the kernel ends the process at the first,
    whatever it does.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    if memory_bytes and sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory_bytes, before[1]))
    try:
        while True:
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            piece = next(found, None)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if piece is None:
                return
            yield piece
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _say(out: IO[bytes], kind: bytes, data: bytes) -> None:
    out.write(_HEAD.pack(kind, len(data)))
    out.write(data)
    out.flush()


if __name__ == "__main__":
    main()
