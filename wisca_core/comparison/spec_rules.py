"""What a field of a spec may be, as values: they stand beside the fields in ``spec``."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wisca_core.architecture.site import GRANULARITIES
from wisca_core.errors import BadOption, SpecError
from wisca_core.pairs import PAIRS
from wisca_core.planning.options import parse_granularity


@dataclass(frozen=True)
class Rule:
    """``fits(value) -> bool``; ``allowed`` says the same in words; ``make``: the value as it is kept."""

    fits: Callable[[Any], bool]
    allowed: str
    make: Callable[[Any], Any] = lambda value: value

    def read(self, value: Any, name: str) -> Any:
        """The value as it is kept. Raises SpecError naming the field."""
        if not self.fits(value):
            raise SpecError(name, value, self.allowed)
        return self.make(value)


@dataclass(frozen=True)
class ListOf:
    """A list, each of its values by a rule."""

    rule: Rule

    def read(self, value: Any, name: str) -> tuple:
        if not isinstance(value, (list, tuple)):
            raise SpecError(name, value, f"a list, each {self.rule.allowed}")
        return tuple(self.rule.read(one, f"{name}[{i}]") for i, one in enumerate(value))


def of(default: Any, rule: Rule | ListOf) -> Any:
    """A field with that default and rule."""
    return field(default=default, metadata={"rule": rule})


def whole(low: int, high: int) -> Rule:
    return Rule(
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
        f"a whole number from {low:,} to {high:,}",
    )


def number(low: float, high: float, above: bool = False) -> Rule:
    def fits(v: Any) -> bool:
        is_number = isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
        return is_number and (low < v if above else low <= v) and v <= high

    words = f"a number {'above' if above else 'from'} {low:,.15g} {'and at most' if above else 'to'} {high:,.15g}"
    return Rule(fits, words, float)


def one_of(*values: str) -> Rule:
    return Rule(lambda v: isinstance(v, str) and v in values, "one of " + ", ".join(values))


def text(pattern: str, allowed: str) -> Rule:
    return Rule(lambda v: isinstance(v, str) and re.fullmatch(pattern, v) is not None, allowed)


TEXT = text(r"[^\0]{0,4096}", "text of at most 4,096 characters")
YES_NO = Rule(lambda v: isinstance(v, bool), "true or false")
NAME = text(r"[a-z][a-z0-9_]{0,31}", "a lower-case word of letters, digits and _ (at most 32)")
OTHER = Rule(lambda v: v == "" or NAME.fits(v), "the name of another arm, or nothing")
NOTE = text(r"[^\0]{0,2000}", "text of at most 2,000 characters")
DEVICE = text(r"auto|cpu|cuda(:\d{1,3})?", "auto, cpu, cuda or cuda:N")
EVERY = Rule(
    lambda v: v is None or whole(1, 10**9).fits(v), "a whole number of steps from 1, or nothing for once at the start"
)

START = Rule(
    lambda v: whole(0, 10**9).fits(v) or (isinstance(v, float) and 0 < v < 1),
    "a whole number of steps from 0, or a fraction of the run below 1",
)
STOP = Rule(lambda v: v is None or START.fits(v), f"{START.allowed}, or nothing")
WHEN = Rule(lambda v: v is None or number(1, 1e9).fits(v), "a ratio from 1, such as 1.5, or nothing")


def _is_granularity(value: Any) -> bool:
    try:
        return bool(parse_granularity(value))
    except BadOption:
        return False


GRANULARITY = Rule(
    _is_granularity,
    f"one of {', '.join(GRANULARITIES)}, or one a pair, such as qk=channel,vo=tensor",
    parse_granularity,
)
RATE = number(0, 100, above=True)
SEED = whole(0, 10**9)
N_SEEDS, N_PILOT_SEEDS = whole(1, 1000), whole(0, 1000)  # how many: each is a training of every arm
MODULE = text(r"[A-Za-z0-9_.]{1,120}", "the name of a linear layer")
PAIR_LIST = Rule(
    lambda v: isinstance(v, (list, tuple)) and bool(v) and all(p in PAIRS for p in v),
    f"a list of {', '.join(PAIRS)}",
    lambda v: tuple(dict.fromkeys(v)),
)
TITLE = Rule(
    lambda v: isinstance(v, str) and 0 < len(v) <= 120 and v.isprintable(), "printable text of 1 to 120 characters"
)
