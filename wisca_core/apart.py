"""What a stranger made, read in a process that may die: for readers whose time and memory nothing else bounds (parquet,
whose pages unpack to any size; tokenizers, which may abort or never end). A limit takes that process, and the caller
gets a named error; Ctrl-C is heard while it works.

A process costs half a second to start, so one is kept for the next file; it ends with the process that started it.
Other readers read with bounds of their own and need none. Not covered: systems other than Linux, where only time is
limited.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

from wisca_core.answering import OUT_OF_MEMORY, PIECE_BYTES, SILENT_SECONDS, Answerer
from wisca_core.errors import UnreadableInput, WiscaError
from wisca_core.processes import how_it_ended

CPU_SECONDS = 5.0  # of the processor, for one piece, where nothing else is asked for
MEMORY_BYTES = 500_000_000  # beyond what it has once everything is imported

_idle: list[tuple[int, Answerer]] = []  # (process that started it, the one that is kept)


def pieces(
    function: str, argument: object, what: str, cpu_seconds: float = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES
) -> Iterator[bytes]:
    """What ``function`` yields on ``argument`` in the other process (``Answerer.ask``), one by one.

    Raises its WiscaError, and UnreadableInput, which begins with ``what``, where a limit took the process.
    """
    one, is_sound = _take(), False
    try:
        one.ask(function, argument, cpu_seconds, memory_bytes)
        yield from one.answer()
        is_sound = True
    except WiscaError:
        is_sound = True
        raise
    except EOFError as ended:
        (code,) = ended.args
        if code == OUT_OF_MEMORY:
            how = f"takes over {memory_bytes // 10**6} MB of memory"
        elif code == -signal.SIGPROF:
            how = f"took over {cpu_seconds:g} s of the processor"
        else:
            how = f"ended the process it was read in ({how_it_ended(code)})"
        raise UnreadableInput(
            f"{what}: reading it {how}. It is damaged, or made to do so; nothing of it is used."
        ) from None
    except TimeoutError:
        raise UnreadableInput(f"{what}: reading it did not end within {SILENT_SECONDS:g} s and was stopped.") from None
    except OverflowError as large:
        n = f"{large.args[0]:,}"
        raise UnreadableInput(
            f"{what}: it unpacks to pieces of {n} bytes; at most {PIECE_BYTES:,} are taken."
        ) from None
    finally:
        if is_sound:
            _idle.append((os.getpid(), one))
        else:
            one.end()
        while len(_idle) > 1:
            _idle.pop()[1].end()


def _take() -> Answerer:
    with suppress(IndexError):
        while True:
            owner, one = _idle.pop()
            if owner == os.getpid() and one.process.poll() is None:
                return one
    try:
        return Answerer()
    except OSError as error:
        raise WiscaError(f"no process can be started to read in: {error.strerror}. Nothing was read.") from error
