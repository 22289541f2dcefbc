"""Counts over many types: how many are proved, and why the others are not."""

from collections.abc import Iterable
from dataclasses import dataclass

from wisca_core.census.entry import NOT_REACHED, OPEN, PAIRS, PARTLY, PROVED, VERDICTS, Entry

N_SLOWEST = 10


@dataclass(frozen=True)
class Reason:
    """Why a pair was refused, or a type not reached, and the types it is true of."""

    text: str
    model_types: tuple[str, ...]


@dataclass(frozen=True)
class Coverage:
    """``counts``: (pair, verdict, number of types), every combination. ``reasons``: (pair, reason) of what was refused,
    the most frequent first. ``worst``: the largest difference of anything proved. ``seconds``: of all proofs together,
    as if one after the other. ``n_released``: tried when this version was made, not here.
    """

    n_types: int
    n_reached: int
    n_open: int
    n_released: int
    counts: tuple[tuple[str, str, int], ...]
    reasons: tuple[tuple[str, Reason], ...]
    not_reached: tuple[Reason, ...]
    slowest: tuple[tuple[str, float], ...]
    worst: tuple[str, float]
    seconds: float

    def n(self, pair: str, verdict: str = PROVED) -> int:
        return next(n for one, name, n in self.counts if (one, name) == (pair, verdict))

    @property
    def sentence(self) -> str:
        """How far the rules reach, in words with numbers."""
        proved = self.n_types - self.n_open
        if not any(self.n(pair, verdict) for pair in PAIRS for verdict in (PROVED, PARTLY)):
            return f"The census has tried none of {self.n_types} architectures here yet."
        waiting = (
            f" {self.n_open} more {'was' if self.n_open == 1 else 'were'} not tried here yet." if self.n_open else ""
        )
        if self.n_released:
            which = "All of it was" if self.n_released == proved else f"{self.n_released} of them were"
            waiting += (
                f" {which} tried when this version of wisca was made, with the same transformers and torch, "
                "not "
                "on this machine."
            )
        n = len_of(self.not_reached)
        missed = f", and {n} {'was' if n == 1 else 'were'} not reached" if n else ""
        return (
            f"Of {proved} architectures, in their default configs, QK is exact on {self.n('qk')}, VO on {self.n('vo')} "
            f"and the MLP pair on {self.n('mlp')}; "
            f"the others are refused by name{missed}.{waiting}"
        )


def len_of(reasons: Iterable[Reason]) -> int:
    """How many types they name."""
    return sum(len(reason.model_types) for reason in reasons)


def coverage(entries: Iterable[Entry]) -> Coverage:
    """The counts over ``entries``."""
    entries = tuple(entries)
    counts = tuple(
        (pair, verdict, sum(e[pair].verdict == verdict for e in entries)) for pair in PAIRS for verdict in VERDICTS
    )
    refused = tuple(
        (pair, reason)
        for pair in PAIRS
        for reason in _group_by_reason(
            (text, e.model_type) for e in entries if not e.not_reached for text in e[pair].reasons
        )
    )
    timed = sorted(((e.model_type, e.seconds) for e in entries if e.seconds), key=lambda one: -one[1])
    worst = max(((e.model_type, e.max_rel) for e in entries if e.n_trials), key=lambda one: one[1], default=("", 0.0))
    return Coverage(
        n_types=len(entries),
        n_reached=sum(e["qk"].verdict not in (NOT_REACHED, OPEN) for e in entries),
        n_open=sum(e["qk"].verdict == OPEN for e in entries),
        n_released=sum(e.is_released for e in entries),
        counts=counts,
        reasons=refused,
        not_reached=_group_by_reason((e.not_reached, e.model_type) for e in entries if e.not_reached),
        slowest=tuple(timed[:N_SLOWEST]),
        worst=worst,
        seconds=sum(e.seconds for e in entries),
    )


def _group_by_reason(found: Iterable[tuple[str, str]]) -> tuple[Reason, ...]:
    by_text: dict[str, list[str]] = {}
    for text, model_type in found:
        by_text.setdefault(text, []).append(model_type)
    return tuple(
        sorted(
            (Reason(text, tuple(names)) for text, names in by_text.items()), key=lambda r: (-len(r.model_types), r.text)
        )
    )
