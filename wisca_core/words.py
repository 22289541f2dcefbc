"""Numbers and lists in words, one spelling of each for the command line, the reports and the errors."""

import math
import re
from collections.abc import Iterable, Sequence

from wisca_core.pairs import SIDES

LEVEL = 0.00719  # octaves: log2 of 1.005


def times(ratio: float) -> str:
    """A ratio >= 1 in words: two decimals under 2, one up to 100, whole above.

    >>> times(1.5), times(7.84), times(256)
    ('1.50×', '7.8×', '256×')
    """
    return f"{ratio:.2f}×" if ratio < 1.995 else f"{ratio:.1f}×" if ratio < 99.95 else f"{ratio:,.0f}×"


def side(pair: str, log2_ratio: float, level: str = "level", unknown: str = "none") -> str:
    """The heavier side and by how much; ``level`` within 0.5 %, ``unknown`` where no ratio can be stated.

    >>> side("qk", 3.0), side("vo", -1.0), side("qk", 0.001)
    ('query 8.0×', 'output 2.0×', 'level')
    """
    if not math.isfinite(log2_ratio):
        return unknown
    heavier = heavier_side(pair, log2_ratio)
    return f"{heavier} {times(2 ** abs(log2_ratio))}" if heavier else level


def heavier_side(pair: str, log2_ratio: float) -> str:
    """ "query" where it is the query side; "" within 0.5 % of balance, or where nothing is known."""
    if not math.isfinite(log2_ratio) or abs(log2_ratio) < LEVEL:
        return ""
    return SIDES[pair][0 if log2_ratio > 0 else 1]


def ranges(numbers: Iterable[int]) -> str:
    """Numbers in ascending runs.

    >>> ranges([0, 1, 2, 5])
    '0-2, 5'
    """
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs_of(numbers))


def runs_of(numbers: Iterable[int]) -> list[list[int]]:
    """[0, 1, 2, 5] -> [[0, 1, 2], [5]]."""
    out: list[list[int]] = []
    for number in sorted({int(n) for n in numbers}):
        if out and number == out[-1][-1] + 1:
            out[-1].append(number)
        else:
            out.append([number])
    return out


_SITE = re.compile(r"\w+\.\d+\.\w+\.\w+(\.e\d+)?(:[\w.-]+)?: ")


def without_site_name(reason: str) -> str:
    """A reason without the name of a site that it begins with, for a line in which one stands already.

    >>> without_site_name("vision.0.cross.qk: scaling one side alone does not move the outputs.")
    'scaling one side alone does not move the outputs.'
    """
    return reason[found.end() :] if (found := _SITE.match(reason)) else reason


def join_names(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> join_names(["QK", "VO", "MLP"]), join_names(["QK"])
    ('QK, VO and MLP', 'QK')
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def plural(n: int, one: str, many: str = "") -> str:
    """A count with its noun.

    >>> plural(1, "layer"), plural(2300, "layer"), plural(2, "entry", "entries")
    ('1 layer', '2,300 layers', '2 entries')
    """
    return f"{int(n):,} {one if n == 1 else many or one + 's'}"


def signed_number(value: float, digits: int = 3) -> str:
    """Decimals with a sign and a true minus; zero unsigned.

    >>> signed_number(0.0456), signed_number(-0.0001), signed_number(-0.0001, 4)
    ('+0.046', '0', '−0.0001')
    """
    if math.isnan(value):
        return "unknown"
    text = f"{value:+.{digits}f}".replace("-", "−")
    return "0" if float(f"{value:.{digits}f}") == 0 else text


def in_bytes(n: int) -> str:
    """A size in decimal units.

    >>> in_bytes(38600), in_bytes(12)
    ('38.6 kB', '12 B')
    """
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} B"
