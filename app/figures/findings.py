"""Titles of the charts: what the table shows, in words, with a neutral title where it shows nothing worth one."""

import numpy as np
import pandas as pd

from wisca_app.figures import words
from wisca_core.pairs import PLURALS, SIDES
from wisca_core.words import join_names

# Two parts of the depth count as different from this ratio of their medians on (a quarter of an octave).
STEEPER = 2**0.25


def map_title(groups: pd.DataFrame, pair: str, unit: str = "KV group", view: str = "stored") -> str:
    """What the map shows in one of its views: which side the cells lean to and where most, what stands out apart from
    size, or what is left after balancing.

    ``groups``: columns layer, log2_ratio, and log2_size or log2_after where the view needs it. ``unit``: what a cell
    is.
    """
    if view == "stored":
        return _leaning(groups, pair, unit)
    octaves = groups["log2_after"] if view == "after" else groups["log2_ratio"] - groups["log2_size"]
    known = octaves[np.isfinite(octaves)].abs()
    n, far = len(known), int((known > 1).sum())
    if not n:
        return _leaning(groups, pair, unit)
    lost = f"; {len(groups) - n:,} without a ratio" if n < len(groups) else ""
    what = f"the only {unit}" if n == 1 else f"all {n:,} {unit}s" if not far else f"{far:,} of {n:,} {unit}s"
    if not far:
        said = f"{what} {'is' if n == 1 else 'are'} within 2× of balance"
    elif view == "after":
        said = f"{what} {'stays' if far == 1 else 'stay'} more than 2× apart"
    else:
        said = f"{what} {'stands' if far == 1 else 'stand'} out"
    return f"{'After balancing' if view == 'after' else 'Apart from size'}, {said}{lost}"


def _leaning(groups: pd.DataFrame, pair: str, unit: str) -> str:
    left, right = SIDES[pair]
    known = groups[np.isfinite(groups["log2_ratio"])]
    octaves = known["log2_ratio"].to_numpy()
    n = len(known)
    if not n:
        return f"{left.capitalize()} against {right}: no ratio is known"
    n_lost = len(groups) - n
    if n_lost:
        return f"{_leaning(known, pair, unit)}; {n_lost:,} without a ratio"
    if (np.abs(octaves) <= 1).all():
        return f"The only {unit} is within 2× of balance" if n == 1 else f"All {n:,} {unit}s are within 2× of balance"
    if n == 1:
        return f"The only {unit} leans to {_the(left if octaves[0] > 0 else right)}, {words.ratio(octaves[0])}"
    where = _where(known)
    to_left, to_right = int((octaves > 0).sum()), int((octaves < 0).sum())
    most, few, n_few = (left, right, to_right) if to_left >= to_right else (right, left, to_left)
    if n_few == 0:
        return f"All {n:,} {unit}s lean to {_the(most)}{where}"
    if n_few <= 0.25 * n:
        lean = "leans" if n_few == 1 else "lean"
        return f"{n_few:,} of {n:,} {unit}s {lean} to {_the(few)}; the others lean to {_the(most)}{where}"
    lean = "leans" if to_left == 1 else "lean"
    return f"{to_left:,} of {n:,} {unit}s {lean} to {_the(left)}, {to_right:,} to {_the(right)}{where}"


def _the(side: str) -> str:
    """ "the query", but A and B have no article."""
    return side if side.isupper() else f"the {side}"


def beside_title(change: np.ndarray) -> str:
    """What two models differ in. ``change``: octaves of each cell that both have."""
    known = np.abs(change[np.isfinite(change)])
    if not len(known):
        return "No cell has a ratio in both"
    if known.max() <= 0.007:
        return "Both are alike in every cell"
    far = int((known > 1).sum())
    if far:
        return f"{far:,} of {len(known):,} cells differ by more than 2×"
    return f"No cell differs by more than {words.ratio(float(known.max()))}"


def _where(known: pd.DataFrame) -> str:
    """Where over the depth the imbalance is largest; "" where that is nowhere in particular."""
    by_layer = known["log2_ratio"].abs().groupby(known["layer"]).median()
    n = len(by_layer)
    if n < 4:
        return ""
    quarter = max(1, n // 4)
    values = by_layer.to_numpy()
    first, middle, last = np.median(values[:quarter]), np.median(values[quarter:-quarter]), np.median(values[-quarter:])
    step = np.log2(STEEPER)
    if min(first, last) > middle + step:
        return ", most of all at both ends of the depth"
    if first > max(middle, last) + step:
        return ", most of all in the first layers"
    if last > max(middle, first) + step:
        return ", most of all in the last layers"
    if middle > max(first, last) + step:
        return ", most of all in the middle layers"
    return ""


def balance_title(groups: pd.DataFrame) -> str:
    """What the options do to the distance from the diagonal. ``groups``: columns log2_ratio, log2_after."""
    known = groups[np.isfinite(groups["log2_ratio"]) & np.isfinite(groups["log2_after"])]
    before, after = known["log2_ratio"].abs().to_numpy(), known["log2_after"].abs().to_numpy()
    n = len(known)
    if not n or not (np.abs(known["log2_ratio"] - known["log2_after"]) > 1e-9).any():
        return "Norm against norm: nothing moves with these options"
    nearer = int((after < before - 1e-9).sum())
    if (after <= 0.007).all():
        return "Rescaling puts every pair on the diagonal"
    if nearer == n:
        return "Rescaling brings every pair nearer the diagonal"
    if nearer > n / 2:
        return f"Rescaling brings {nearer:,} of {n:,} pairs nearer the diagonal"
    if not nearer:
        return "Norm against norm: no pair comes nearer the diagonal"
    return f"Only {nearer:,} of {n:,} pairs {'comes' if nearer == 1 else 'come'} nearer the diagonal"


def depth_title(heads: pd.DataFrame, unit: str = "head") -> str:
    """Which way each role's heads move. ``heads``: columns role, before, after. ``unit``: what a row is."""
    moves: dict[str, list[str]] = {"come down": [], "go up": []}
    whole = f"Every {'adapted part' if unit == 'part' else 'feed-forward block' if unit == 'layer' else unit}"
    for role, part in heads.groupby("role", sort=False):
        usable = part[(part["before"] > 0) & np.isfinite(part["before"]) & np.isfinite(part["after"])]
        change = np.log2((usable["after"] / usable["before"]).to_numpy(dtype=float)) if len(usable) else np.zeros(0)
        if len(change) and abs(np.median(change)) > 0.007:
            moves["go up" if np.median(change) > 0 else "come down"].append(PLURALS[words.ROLES[role]])
    parts = [f"{join_names(roles)} {verb}" for verb, roles in moves.items() if roles]
    return f"{whole} over depth: " + (", ".join(parts) if parts else "nothing moves with these options")


def channel_title(before: np.ndarray, turns: np.ndarray | None, kind: str = "Channels of the head") -> str:
    """Where along the head the weight lies, by the left side's channel norms ``before``."""
    rotating = turns is not None and np.isfinite(turns).sum() >= 4
    values = before[np.isfinite(turns)] if rotating else before
    if len(values) < 4 or not np.isfinite(values).all() or not (values > 0).all():
        return "Rotary pairs along the head" if rotating else kind.replace("of the", "along the")
    if rotating:
        third = max(1, len(values) // 3)
        fast, slow = np.median(values[:third]), np.median(values[-third:])
        if slow > STEEPER * fast:
            return "Slow rotary pairs weigh most"
        return (
            "Fast rotary pairs weigh most"
            if fast > STEEPER * slow
            else "Fast and slow rotary pairs weigh about the same"
        )
    spread = np.log2(values.max() / np.median(values))
    return f"The heaviest channel is {words.ratio(spread)} the median" if spread > 1 else f"{kind} weigh about the same"


def spectrum_title(spectrum: dict) -> str:
    """``spectrum`` of a HeadDetail."""
    if not spectrum:
        return "No singular values"
    moved = any(
        np.abs(np.log2(spectrum[f"{side}_after"][:1] / spectrum[side][:1])).max(initial=0) > 0.007
        for side in ("left", "right")
        if spectrum[side][0] > 0
    )
    return "The product stays put" if moved else "Singular values of the head"
