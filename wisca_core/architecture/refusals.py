"""Refusals as lines for people: sites of one block that are refused for one reason are one line."""

import re
from collections.abc import Iterable

from wisca_core.architecture.site import Refusal, SiteKey


def lines(refusals: Iterable[Refusal]) -> list[str]:
    """ "decoder.0.none.mlp and 27 more like it: gelu stands between up and down ...". Reasons that differ in numbers
    only count as one; the first is written out.
    """
    found: dict[tuple, list[Refusal]] = {}
    for refusal in refusals:
        found.setdefault((_place(refusal.what), re.sub(r"\d+", "#", refusal.reason)), []).append(refusal)
    return [
        f"{same[0].what}{f' and {len(same) - 1:,} more like it' if len(same) > 1 else ''}: {same[0].reason}"
        for same in found.values()
    ]


def _place(what: str) -> str:
    """The same for all layers and experts of a block."""
    try:
        key = SiteKey.parse(what)
    except ValueError:
        return re.sub(r"\d+", "#", what)
    return f"{key.stack}.{key.attention}.{key.pair}:{key.part}"
