"""A model's map in little, as an SVG text: layers across, KV groups down, the heavier side's colour."""

import math
from collections.abc import Sequence

from wisca_app.figures import words
from wisca_app.figures.template import OCTAVES, Theme, blend

WIDTH, HEIGHT = 96, 20


def strip(cells: Sequence[Sequence[float | None]], pair: str, theme: Theme) -> str:
    """``cells``: octaves, one row a KV group; None where there is no ratio."""
    rows, columns = len(cells), max((len(row) for row in cells), default=0)
    if not rows or not columns:
        return f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"></svg>'
    left, right = words.PAIR_ROLES[pair]
    span = min(max((abs(v) for row in cells for v in row if v is not None), default=1.0), OCTAVES) or 1.0
    wide, high, gap = WIDTH / columns, HEIGHT / rows, 0.5 if rows <= 4 and columns <= 32 else 0.0
    parts = []
    for i, row in enumerate(cells):
        for j, value in enumerate(row):
            if value is None or not math.isfinite(value):
                continue
            colour = blend(theme.middle, theme.role[left if value > 0 else right], min(1.0, abs(value) / max(span, 1)))
            parts.append(
                f'<rect x="{j * wide:.2f}" y="{i * high:.2f}" width="{wide - gap:.2f}" height="{high - gap:.2f}" '
                f'fill="{colour}"/>'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        + "".join(parts)
        + "</svg>"
    )
