"""What training scripts print: nanoGPT, nanochat, Megatron-LM and transformers' Trainer on the console.

A line belongs to a format by its first words, and its numbers are taken under the names that are printed. Lines of none
are counted, not lost: a console log is mostly something else.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from wisca_core.runs.file_reader import LineReader
from wisca_core.runs.table import Run

MAX_LINE = 20_000
_NUMBER = r"[-+]?(?:\d[\d,]*(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)"
# "loss 2.31", "time 12.50ms", "mfu 1.23%": words, a number, a unit that becomes part of the name
_WORDS_NUMBER = re.compile(rf"([A-Za-z][\w /()-]*?) ({_NUMBER})(ms|s|%)?\Z", re.IGNORECASE)
_KEY_VALUE = re.compile(rf"(.+?): *({_NUMBER})(ms|s|m|%)?(?:/{_NUMBER})?\Z", re.IGNORECASE)
# "'loss': 2.31" or, since transformers 5, "'loss': '2.31'"
_QUOTED_NUMBER = re.compile(rf"'([^']+)': '?({_NUMBER})'?(?=[,}}])", re.IGNORECASE)
_UNITS = {"ms": "ms", "s": "s", "m": "min", "%": "%"}


@dataclass(frozen=True)
class Line:
    """What one line says. ``step`` None: the line does not say it."""

    step: float | None
    values: tuple[tuple[str, float], ...]
    wall: float = math.nan


@dataclass(frozen=True)
class Format:
    """``starts``: matches lines of this format, wherever the launcher's prefix ends; ``parse`` returns None for a line
    cut short.
    """

    name: str
    source: str
    starts: re.Pattern
    parse: Callable[[re.Match, str], Line | None]


def _float(text: str) -> float:
    return float(text.replace(",", ""))


def _named(parts: list[str], pattern: re.Pattern) -> list[tuple[str, float]]:
    out = []
    for part in parts:
        match = pattern.match(part.strip())
        if match:
            unit = _UNITS.get((match[3] or "").lower(), "")
            out.append((f"{match[1].strip()} ({unit})" if unit else match[1].strip(), _float(match[2])))
    return out


def _nanogpt(match: re.Match, line: str) -> Line | None:
    values = _named(line[match.end() :].split(","), _WORDS_NUMBER)
    return Line(float(match["step"]), tuple(values)) if values else None


def _bars(match: re.Match, line: str) -> Line | None:
    """Megatron and nanochat: "key: value" between bars."""
    values = _named(line[match.end() :].split("|"), _KEY_VALUE)
    when = math.nan
    if "when" in match.groupdict() and match["when"]:
        try:
            when = datetime.fromisoformat(match["when"]).timestamp()  # the machine's local time, as it was printed
        except ValueError:
            pass
    return Line(float(match["step"]), tuple(values), when) if values else None


def _validation(match: re.Match, line: str) -> Line | None:
    values = _named(line[match.end() :].split("|"), _KEY_VALUE)
    return (
        Line(float(match["step"]), tuple((f"validation {name}", value) for name, value in values)) if values else None
    )


def _trainer(match: re.Match, line: str) -> Line | None:
    body = line[match.start("body") :]
    values = tuple((name, _float(value)) for name, value in _QUOTED_NUMBER.findall(body))
    return Line(None, values) if values and "}" in body else None


# Source of each: the format string in the repository named, read in the state of 2026-11.
FORMATS: tuple[Format, ...] = (
    Format(
        "nanoGPT",
        "karpathy/nanoGPT train.py",
        re.compile(r"\b(?:iter|step) (?P<step>\d+): (?=(?:train )?loss )"),
        _nanogpt,
    ),
    Format(
        "Megatron-LM",
        "NVIDIA/Megatron-LM megatron/training/training.py training_log",
        re.compile(
            r"(?:\[(?P<when>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?)\] )?"
            r"iteration +(?P<step>\d+)/ *(?:\d+|infinity) \|"
        ),
        _bars,
    ),
    Format(
        "Megatron-LM",
        "NVIDIA/Megatron-LM megatron/training/training.py evaluate_and_print_results",
        re.compile(r"validation loss at iteration (?P<step>\d+)(?: on [^|]*)? \|"),
        _validation,
    ),
    Format(
        "nanochat",
        "karpathy/nanochat scripts/base_train.py",
        re.compile(r"\bstep (?P<step>\d+)(?:/\d+ \([\d.]+%\))? \|", re.IGNORECASE),
        _bars,
    ),
    Format(
        "transformers Trainer",
        "huggingface/transformers src/transformers/trainer_callback.py PrinterCallback",
        re.compile(r"(?P<body>\{'(?:loss|eval_loss|eval_runtime|train_runtime|grad_norm)': )"),
        _trainer,
    ),
)


def recognised(line: str) -> tuple[Format, Line | None] | None:
    """(format, what it says) of one line; None for a line of no format, (format, None) for one of a format that is cut
    short.
    """
    if len(line) > MAX_LINE:
        return None
    for format in FORMATS:
        match = format.starts.search(line)
        if match:
            return format, format.parse(match, line)
    return None


class Console(LineReader):
    """A text file; several formats may be mixed in it."""

    def _begin(self) -> None:
        super()._begin()
        self._found: dict[str, None] = {}
        self._n_without_step = 0

    def runs(self) -> tuple[Run, ...]:
        notes = list(self._out.notes)
        if self._found:
            self._out.notes.append(f"read as {' and '.join(self._found)} console output.")
        if self._n_without_step:
            self._out.notes.append(
                "the Trainer prints no step, so its lines are counted from 0; trainer_state.json has the steps."
            )
        out = self._out.runs("console", str(self.source.path))
        self._out.notes[:] = notes
        return out

    def _take(self, lines: list[bytes]) -> None:
        for raw in lines:
            found = recognised(raw.decode("utf-8", "replace"))
            if found is None:
                self._out.counts["other_lines"] += 1
                continue
            format, line = found
            if line is None:
                self._out.damaged(len(raw))
                continue
            self._found[format.name] = None
            step = line.step
            if step is None:
                step = float(self._n_without_step)
                self._n_without_step += 1
            for name, value in line.values:
                self._out.point(self.source.run, name, step, value, line.wall)
