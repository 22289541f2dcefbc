"""What every command shares: where text goes, the progress bar, one JSON document, and how an error ends the process.

Results go to stdout, everything else to stderr, what libraries print included. Names and messages are printed as they
are: no markup is read in them, and control characters are written out.
"""

import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from wisca_core.errors import BadOption, Cancelled, WiscaError
from wisca_core.progress import Progress, silent
from wisca_core.storage import plain

CANCELLED = 130
BROKEN_PIPE = 141  # 128 + SIGPIPE, what a shell reports for a program that the end of a pipe stopped
ENDS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
# A pipe has no width; a table is not to be folded for it.
PIPE_WIDTH = 240
MOST_LISTED = 20

# The real stdout while a command runs; sys.stdout is stderr then, because libraries print into it as they are imported.
_results: TextIO | None = None


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would leave with 1, which here says "not equivalent"


def _stdout() -> TextIO:
    return _results or sys.stdout


def _console(stderr: bool = False) -> _Console:
    stream = sys.stderr if stderr else _stdout()
    width = None if stream.isatty() else PIPE_WIDTH
    return _Console(file=stream, markup=False, highlight=False, emoji=False, soft_wrap=True, width=width)


def say(text: str = "", style: str | None = None) -> None:
    """One or more lines on stdout."""
    _console().print(_printable(text), style=style)


def note(text: str) -> None:
    """One or more lines on stderr."""
    _console(stderr=True).print(_printable(text))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> None:
    """A plain table on stdout; columns ``numbers`` are right-aligned."""
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for i, header in enumerate(headers):
        out.add_column(header, justify="right" if i in numbers else "left", overflow="fold")
    for row in rows:
        out.add_row(*map(_printable, row))
    console = _console()
    with console.capture() as captured:
        console.print(out, soft_wrap=False)
    _stdout().write("".join(f"{line.rstrip()}\n" for line in [*captured.get().splitlines(), ""]))


def indented_lines(lines: Sequence[str], most: int = MOST_LISTED) -> str:
    """Indented lines, the first ``most`` and how many are left."""
    more = [f"and {len(lines) - most:,} more (--json lists all)"] if len(lines) > most else []
    return "\n".join(f"  {line}" for line in [*lines[:most], *more])


def say_lines(heading: str, lines: Sequence[str], most: int = MOST_LISTED) -> None:
    """The lines, indented below their heading; nothing where there are none."""
    if lines:
        say(f"{heading}\n{indented_lines(lines, most)}")


def document(format: str, payload: Mapping[str, Any]) -> None:
    """The one JSON document of a command on stdout; numbers that JSON cannot hold become null."""
    text = json.dumps({"format": format, "version": 1, **plain(payload)}, indent=2, ensure_ascii=False, allow_nan=False)
    _stdout().write(text.encode("utf-8", "backslashreplace").decode() + "\n")


@contextmanager
def bar() -> Iterator[Progress]:
    """A Progress drawn on stderr and wiped at the end; silent where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Bars(*columns, console=_console(stderr=True), transient=True) as bars:
        current = {"step": "", "task": None}

        def report(step: str, done: float, total: float) -> None:
            if step != current["step"]:
                if current["task"] is not None:
                    bars.remove_task(current["task"])
                current.update(step=step, task=bars.add_task(_printable(step), total=total or None))
            bars.update(current["task"], completed=done, total=total or None)

        yield report


def confirm(question: str, otherwise: str) -> bool:
    """Yes or no from the person; BadOption saying ``otherwise`` where nobody can be asked."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise BadOption(otherwise)
    console = _console(stderr=True)
    console.print(f"{_printable(question)} [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def ending(command: Callable[..., int | None]) -> Callable[..., None]:
    """A command whose return value is the exit code, and whose named errors become one line and theirs."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        global _results
        # A scheduler's SIGTERM, or a terminal that closes, is to leave as little behind as Ctrl-C does.
        before = _on_ends({number: _interrupt for number in ENDS})
        _results = sys.stdout
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal without "×" shows "?", it does not end the command
                stream.reconfigure(errors="replace")
        try:
            with redirect_stdout(sys.stderr):
                code = command(*args, **options) or 0
            sys.stdout.flush()
        except BrokenPipeError:
            _let_go_of_stdout()
            code = BROKEN_PIPE
        except (WiscaError, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt):
                error = Cancelled("cancelled. Nothing was left behind.")
            code = error.exit_code
            note(f"error: {error}" if code != CANCELLED else str(error))
            if options.get("json"):
                document("wisca-error", {"error": type(error).__name__, "message": str(error), "exit_code": code})
        finally:
            _results = None
            _on_ends(before)
        raise typer.Exit(code)

    return run


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _on_ends(handlers: Mapping[int, Any]) -> dict[int, Any]:
    """Sets the handlers and returns those that were there; a SIGHUP that is ignored (nohup) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    ignored = [number for number in handlers if signal.getsignal(number) is signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number, handler in handlers.items() if number not in ignored}


def _let_go_of_stdout() -> None:
    """The interpreter flushes stdout once more as it ends, which would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _printable(text: str) -> str:
    """``text`` with control characters other than line ends, and what is no character, written out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
