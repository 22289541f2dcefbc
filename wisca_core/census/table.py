"""The census as a table: one row a model type."""

from collections.abc import Iterable

import pandas as pd

from wisca_core.architecture.families import families
from wisca_core.census.entry import OPEN, PAIRS, PARTLY, PROVED, Entry, Pair
from wisca_core.census.known import short_rule

COLUMNS = {
    "architecture": "model_type of config.json",
    "row": "name of the rule's row, empty where there is none",
    "rule": "the rule in a few words",
    "attention": "verdict over QK and VO",
    **{pair: "verdict; behind it the finest granularity at which it was proved" for pair in PAIRS},
    "reasons": "why pairs are refused, or the type was not reached",
    "max_rel": "largest difference of what was proved, relative to the largest output, float64; empty where nothing "
    "was",
    "liveness": "smallest move of the outputs by a factor on one side alone, relative",
    "n_trials": "rescaled miniatures that were run",
    "seconds": "of the whole proof; empty where none was made",
}


def table(entries: Iterable[Entry]) -> pd.DataFrame:
    """Columns COLUMNS, one row an entry, in their order."""
    rows = [
        {
            "architecture": e.model_type,
            "row": e.family,
            "rule": short_rule(families().get(e.model_type)),
            "attention": e.verdict,
            **{pair: in_words(e[pair]) for pair in PAIRS},
            "reasons": "; ".join(e.reasons),
            "max_rel": e.max_rel if e.n_trials else None,
            "liveness": e.liveness if e.n_trials else None,
            "n_trials": e.n_trials,
            "seconds": e.seconds if e.when else None,
        }
        for e in entries
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(
        {"max_rel": "float64", "liveness": "float64", "seconds": "float64"}
    )


def in_words(pair: Pair) -> str:
    """ "proved, channel", "partly, group", "refused"; "proved, channel; 2 not run" where no input reached two
    towers.
    """
    if pair.verdict not in (PROVED, PARTLY):
        return pair.verdict
    return f"{pair.verdict}, {pair.finest}" + (f"; {pair.n_idle} not run" if pair.n_idle else "")


def is_open(entry: Entry) -> bool:
    """Whether nothing of it was proved here yet."""
    return any(pair.verdict == OPEN for pair in entry.pairs)
