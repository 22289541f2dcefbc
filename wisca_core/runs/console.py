"""What training scripts print: nanoGPT, nanochat, Megatron-LM, torchtune, torchtitan and transformers' Trainer on the
console.

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
# "lm loss: 2.31", "loss:2.4 lr:2e-05": a name, a colon, a number; several of them behind each other
_KEY_VALUE = re.compile(
    rf"([^\s:=|,][^:=|,]*?)[:=] *({_NUMBER})(ms|s|m|%)?(?:/{_NUMBER}|(?:[KMG]i?B)?(?:\([\d.]+%\))?)?(?=[\s,|]|\Z)",
    re.IGNORECASE,
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# "'loss': 2.31" or, since transformers 5, "'loss': '2.31'"
_QUOTED_NUMBER = re.compile(rf"'([^']+)': '?({_NUMBER})'?(?=[,}}])", re.IGNORECASE)
# "'global_step/max_steps': '5/100'"
_STATED_STEP = re.compile(r"'(?:global_step|current_steps|step)(?:/max_steps)?': '?(\d+)(?:/\d+)?'?(?=[,}])")
_UNITS = {"ms": "ms", "s": "s", "m": "min", "%": "%"}


@dataclass(frozen=True)
class ConsoleLine:
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
    parse: Callable[[re.Match, str], ConsoleLine | None]


def _float(text: str) -> float:
    return float(text.replace(",", ""))


def _with_unit(name: str, unit: str | None) -> str:
    unit = _UNITS.get((unit or "").lower(), "")
    return f"{name.strip()} ({unit})" if unit else name.strip()


def _pairs(text: str) -> list[tuple[str, float]]:
    """Every "name: number" of a text, bars and commas between them or not."""
    return [(_with_unit(m[1], m[3]), _float(m[2])) for m in _KEY_VALUE.finditer(text)]


def _nanogpt(match: re.Match, line: str) -> ConsoleLine | None:
    found = [m for part in line[match.end() :].split(",") if (m := _WORDS_NUMBER.match(part.strip()))]
    values = [(_with_unit(m[1], m[3]), _float(m[2])) for m in found]
    return ConsoleLine(float(match["step"]), tuple(values)) if values else None


def _bars(match: re.Match, line: str) -> ConsoleLine | None:
    """Megatron, nanochat, torchtune, torchtitan: "key: value", between bars or not."""
    values = _pairs(line[match.end() :])
    when = math.nan
    if "when" in match.groupdict() and match["when"]:
        try:
            when = datetime.fromisoformat(match["when"]).timestamp()  # the machine's local time, as it was printed
        except ValueError:
            pass
    return ConsoleLine(float(match["step"]), tuple(values), when) if values else None


def _validation(match: re.Match, line: str) -> ConsoleLine | None:
    values = _pairs(line[match.end() :])
    return (
        ConsoleLine(float(match["step"]), tuple((f"validation {name}", value) for name, value in values))
        if values
        else None
    )


def _trainer(match: re.Match, line: str) -> ConsoleLine | None:
    """A dictionary that the Trainer prints; others that a program prints have none of its names."""
    body = line[match.start("body") :]
    if "}" not in body:
        return None
    body = body[: body.rindex("}") + 1]
    values = tuple((name, _float(value)) for name, value in _QUOTED_NUMBER.findall(body))
    step = _STATED_STEP.search(body)
    return ConsoleLine(float(step[1]) if step else None, values) if values else None


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
        "nanochat or torchtune",
        "karpathy/nanochat scripts/base_train.py; pytorch/torchtune torchtune/training/metric_logging.py DiskLogger",
        re.compile(r"\bstep (?P<step>\d+)(?:/\d+ \([\d.]+%\))? \|", re.IGNORECASE),
        _bars,
    ),
    Format(
        "torchtitan",
        "pytorch/torchtitan torchtitan/components/metrics.py",
        re.compile(r"\bstep: *(?P<step>\d+)\s+(?=[A-Za-z_]+: )"),
        _bars,
    ),
    Format(
        "transformers Trainer",
        "huggingface/transformers src/transformers/trainer_callback.py PrinterCallback",
        # any first name, if one of those that a Trainer logs stands in the dictionary
        re.compile(
            r"(?P<body>\{(?=.{0,4000}'(?:epoch|grad_norm|[\w/-]*loss|[\w/-]*runtime)': )'[^']{1,200}': (?='?[-+\d.ni]))"
        ),
        _trainer,
    ),
)


def parse_line(line: str) -> tuple[Format, ConsoleLine | None] | None:
    """(format, what it says) of one line; None for a line of no format, (format, None) for one of a format that is cut
    short.
    """
    if len(line) > MAX_LINE:
        return None
    if "\x1b" in line:
        line = _COLOUR.sub("", line)
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
        out = super().runs()
        self._out.notes[:] = notes
        return out

    def _take(self, lines: list[bytes]) -> None:
        for raw in lines:
            found = parse_line(raw.decode("utf-8", "replace"))
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
