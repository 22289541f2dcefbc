"""Models that were opened before: a small file under WISCA_HOME with each one's map as a strip."""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from wisca_core import storage
from wisca_core.errors import WiscaError

FORMAT, VERSION, MOST = "wisca-recent", 1, 8
MOST_LAYERS, MOST_GROUPS = 48, 8  # of a strip


@dataclass(frozen=True)
class Recent:
    """``model``: as it is opened. ``pairs``: (pair, log2 ratio of the median layer, expert or adapted layer).
    ``strip``: octaves of the first pair, one list a row, None where there is none. ``sites``: the name of the
    declaration it is opened with.
    """

    model: str
    facts: str
    pairs: list[list]
    n_bytes: int
    opened: float
    strip: list[list]
    pair: str
    sites: str = ""


def every() -> list[Recent]:
    """The newest first; none where the file is missing or damaged, which costs nobody anything."""
    with suppress(WiscaError, TypeError, KeyError):
        return [Recent(**one) for one in storage.read_json(_path(), FORMAT, VERSION)["models"]]
    return []


def keep(one: Recent) -> None:
    """Put it first."""
    others = [other for other in every() if other.model != one.model]
    with suppress(WiscaError):  # a full disk forgets, it does not stop the page
        storage.write_json(_path(), FORMAT, VERSION, {"models": [asdict(r) for r in [one, *others][:MOST]]})


def _path():
    return storage.home() / "recent.json"


def strip_of(groups: pd.DataFrame) -> list[list]:
    """Octaves of the first pair in ``groups`` by group and layer, thinned to what a strip can show."""
    first = groups[(groups["pair"] == groups["pair"].iloc[0]) & (groups["block"] == groups["block"].iloc[0])]
    octaves = np.where(np.isfinite(first["log2_ratio"]), first["log2_ratio"], np.nan)
    table = first.assign(log2_ratio=octaves).pivot_table(
        index="group", columns="layer", values="log2_ratio", aggfunc="mean"
    )
    rows, columns = (
        np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)) if n else []
        for n, most in zip(table.shape, (MOST_GROUPS, MOST_LAYERS))
    )
    thin = table.to_numpy()[np.ix_(rows, columns)] if table.size else np.zeros((0, 0))
    return [[None if np.isnan(v) else round(float(v), 2) for v in row] for row in thin]


def ago(seconds: float) -> str:
    """ "just now", "5 min ago", "3 h ago", "yesterday", "12 days ago"."""
    for size, one in ((86400, "day"), (3600, "h"), (60, "min")):
        if seconds >= size:
            n = int(seconds // size)
            return ("yesterday" if n == 1 else f"{n} days ago") if one == "day" else f"{n} {one} ago"
    return "just now"


def now() -> float:
    return time.time()
