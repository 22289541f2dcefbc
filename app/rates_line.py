"""A rescale as learning rates, in a line whose colours are the legend, and what stands behind its question mark."""

from wisca_app.figures import words
from wisca_core.patterns.blocks import site_unit
from wisca_core.planning.rates import MATRICES, PairRates, rate, span

SAME_RATE = 1.05  # under this factor a learning rate is called the same


def line(rates: list[PairRates], lead: str) -> str:
    """ "With Adam, balancing is training :blue[**Wq**] at 2.8× and :orange[**Wk**] at 0.36× the learning rate."; of a
    pair in several places the one furthest from balance speaks. ``lead``: what it is that is such a training.
    """
    moved = [one for one in rates if max(one.left, one.right) >= SAME_RATE]
    if not moved:
        return f"With Adam, {lead} moves {_hardly(rates)}."
    several = len({one.block for one in moved}) > 1
    if several:
        furthest = {one.pair: one for one in sorted(moved, key=lambda one: max(one.left, one.right))}
        moved = [one for one in moved if furthest[one.pair] is one]
    said = ", ".join(" and ".join(_coloured_sides(one)) for one in moved)
    return f"With Adam, {lead} is training {'up to ' if several else ''}{said} the learning rate."


def _hardly(rates: list[PairRates]) -> str:
    """What is said where the median keeps its rates; some layers may have others."""
    one = max(rates, key=_most)
    if _most(one) < SAME_RATE:
        return "each learning rate by less than 5 %: it is hardly another training"
    sides = (f"{name}'s by {said}" for name, said in zip(_words(one), (span(*one.left_span), span(*one.right_span))))
    return (
        f"no learning rate of the median {site_unit(one.pair, one.block)} by 5 %, but {' and '.join(sides)} over "
        "the layers"
    )


def _most(one: PairRates) -> float:
    """How far the rates of a pair go from 1 in any layer, either way."""
    return max(max(high, 1 / low) for low, high in (one.left_span, one.right_span))


def _words(one: PairRates) -> list[str]:
    return [
        words.coloured_word(role, f"**{name}**") for role, name in zip(words.PAIR_ROLES[one.pair], MATRICES[one.pair])
    ]


def _coloured_sides(one: PairRates) -> list[str]:
    """ ":blue[**Wq**] at 2.8×", the faster side first."""
    roles = dict(zip(MATRICES[one.pair], words.PAIR_ROLES[one.pair]))
    return [f"{words.coloured_word(roles[name], f'**{name}**')} at {rate(value)}" for name, value in one.sides]


def tip(rates: list[PairRates], granularity: str) -> str:
    """The formula, the span over the layers, and what other optimisers make of it."""
    spans = "; ".join(
        f"{MATRICES[one.pair][0]} {span(*one.left_span)}, {MATRICES[one.pair][1]} {span(*one.right_span)}"
        for one in rates[:4]
    )
    one = max(rates, key=lambda r: max(r.left, r.right))
    units = words.join_names(list(dict.fromkeys(site_unit(r.pair, r.block) for r in rates)))
    said = words.tip("rates").removesuffix(words.HOME).strip()
    return (
        f"{said}\n\nOf the median {units}, now; over {'rows and ' * (granularity != 'tensor')}"
        f"layers: {spans}. With SGD the squares ({MATRICES[one.pair][0]} {rate(one.left**2)}). Adafactor with "
        f"scale_parameter: no effect. AdamW and Muon: as Adam.\n\n{words.HOME}"
    )
