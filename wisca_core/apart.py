"""What a stranger made, read in a process that may die: for readers whose time and memory nothing else bounds (parquet,
whose pages unpack to any size; tokenizers, which may abort or never end). A limit takes that process, and the caller gets
a named error; Ctrl-C is heard while it works.

A process costs half a second to start, so one is kept for the next file; it ends with the process that started it. Other
readers read with bounds of their own and need none. Not covered: systems other than Linux, where only time is limited.
"""

import json
import os
import resource
import selectors
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module

from wisca_core import errors
from wisca_core.errors import UnreadableInput, WiscaError
from wisca_core.processes import ONE_THREAD, end, how_it_ended, program

CPU_SECONDS = 5.0  # of the processor, for one piece, where nothing else is asked for
MEMORY_BYTES = 500_000_000  # beyond what it has once everything is imported
PIECE_BYTES = 256 << 20
# A process that neither works nor answers; the processor may be busy with other things, and imports take their time.
SILENT_SECONDS = 120.0

_HEAD = struct.Struct("<cQ")  # kind of message, bytes that follow
_PIECE, _DONE, _ERROR, _FULL = b"P", b"D", b"E", b"M"
_idle: list[tuple[int, subprocess.Popen]] = []  # (process that started it, the one that is kept)


def pieces(
    function: str, argument: object, what: str, cpu_seconds: float = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES
) -> Iterator[bytes]:
    """What ``function`` ("module:name", of ours, from a plain JSON value to an iterator of bytes) yields on ``argument`` in
    the other process, one by one. A function ``ready`` of its module is called before the limits hold.

    Raises its WiscaError, and UnreadableInput, which begins with ``what``, where a limit took the process.
    """
    process = _take_process()
    try:
        request = json.dumps([function, argument, cpu_seconds, memory_bytes]) + "\n"
        with suppress(BrokenPipeError):  # it ended meanwhile: the end of its output says so
            process.stdin.write(request.encode())
            process.stdin.flush()
        while True:
            kind, data = _message(process, what, cpu_seconds)
            if kind == _PIECE:
                yield data
                continue
            if kind == _FULL:
                raise UnreadableInput(
                    f"{what}: reading it takes over {memory_bytes // 10**6} MB of memory. It is damaged, or made to do so; "
                    f"nothing of it is used."
                )
            _idle.append((os.getpid(), process))
            process = None
            if kind == _DONE:
                return
            name, text = json.loads(data)
            raise getattr(errors, name, UnreadableInput)(text)
    finally:
        if process is not None:
            end(process)
        while len(_idle) > 1:
            end(_idle.pop()[1])


def _take_process() -> subprocess.Popen:
    with suppress(IndexError):
        while True:
            owner, process = _idle.pop()
            if owner == os.getpid() and process.poll() is None:
                return process
    quiet = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        return subprocess.Popen(
            program("wisca_core.apart"), **quiet, start_new_session=True, env={**os.environ, **ONE_THREAD}
        )
    except OSError as error:
        raise WiscaError(f"no process can be started to read in: {error.strerror}. Nothing was read.") from error


def _message(process: subprocess.Popen, what: str, cpu_seconds: float) -> tuple[bytes, bytes]:
    kind, n = _HEAD.unpack(_receive(process, _HEAD.size, what, cpu_seconds))
    if n > PIECE_BYTES:
        raise UnreadableInput(f"{what}: it unpacks to pieces of {n:,} bytes; at most {PIECE_BYTES:,} are taken.")
    return kind, _receive(process, n, what, cpu_seconds)


def _receive(process: subprocess.Popen, n: int, what: str, cpu_seconds: float) -> bytes:
    out = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(out) < n:
            if not selector.select(SILENT_SECONDS):
                raise UnreadableInput(f"{what}: reading it did not end within {SILENT_SECONDS:g} s and was stopped.")
            new = os.read(process.stdout.fileno(), min(n - len(out), 1 << 20))
            if not new:
                code = process.wait()
                if code == -signal.SIGPROF:
                    how = f"took over {cpu_seconds:g} s of the processor"
                else:
                    how = f"ended the process it was read in ({how_it_ended(code)})"
                raise UnreadableInput(
                    f"{what}: reading it {how}. It is damaged, or made to do so; nothing of it is used."
                )
            out += new
    return bytes(out)


# --- the other process ------------------------------------------------------------------------------------------------


def main() -> None:
    """Answer requests until there are no more."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
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
            _say(out, _FULL, b"")


def _within_limits(found: Iterator[bytes], cpu_seconds: float, memory_bytes: int) -> Iterator[bytes]:
    """Each piece within ``cpu_seconds``, all within ``memory_bytes`` more; the kernel ends the process at the first, whatever it does."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
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


def _say(out, kind: bytes, data: bytes) -> None:
    out.write(_HEAD.pack(kind, len(data)))
    out.write(data)
    out.flush()


if __name__ == "__main__":
    main()
