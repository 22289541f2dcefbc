"""The factors of a plan over depth as a picture for a model card: an SVG that draws itself, in light and dark."""

import html
import math

from wisca_core.architecture.site import SiteKey
from wisca_core.pairs import LABELS, MATRICES
from wisca_core.planning.plan import Plan

WIDTH, PANEL, LEFT, TOP, END = 720, 140, 48, 44, 36
# ink and text, as the dashboard has them; a circle is ink, since the panels name their pair
_STYLE = (
    "text{font:13px 'Source Sans 3','Helvetica Neue',Arial,sans-serif;fill:#5C6069}circle{fill:#1D222B}"
    "line{stroke:#D9D5CC}.b{font-weight:600;fill:#1D222B}"
    "@media(prefers-color-scheme:dark){text{fill:#A7A9AE}circle{fill:#ECEAE5}line{stroke:#3A3F48}.b{fill:#ECEAE5}}"
)
MOST_DOTS = 4000  # a card is no place for megabytes: of more, every n-th is drawn


def factors_svg(plan: Plan) -> str:
    """One panel a pair: layers across, the factor on its left side up, in powers of two; a dot a factor."""
    points: dict[str, list[tuple[int, float]]] = {}
    for name, factors in plan.factors.sites:
        key = SiteKey.parse(name)
        points.setdefault(key.pair, []).extend((key.layer, math.log2(factor)) for factor in factors)
    layers = sorted({layer for found in points.values() for layer, _ in found}) or [0]
    span = max([1.0, *(abs(up) for found in points.values() for _, up in found)]) * 1.15
    height = TOP + len(points) * (PANEL + TOP)
    across = (WIDTH - LEFT - 8 - END) / max(1, layers[-1] - layers[0] or 1)
    out = []
    for number, (pair, found) in enumerate(points.items()):
        middle = TOP + number * (PANEL + TOP) + PANEL / 2
        left, right = MATRICES[pair]
        every = 1 + len(found) // MOST_DOTS
        drawn = f" (one factor in {every} is drawn)" if every > 1 else ""
        title = f"{LABELS[pair]}: factor on {left}, its inverse on {right}{drawn}"
        out.append(f'<text class="b" x="{LEFT}" y="{middle - PANEL / 2 - 8:.0f}">{html.escape(title)}</text>')
        for power in range(-math.floor(span), math.floor(span) + 1, max(1, round(span / 2))):
            y = middle - power / span * PANEL / 2
            out.append(f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
            out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{2.0**power:g}×</text>')
        for layer, up in found[::every]:
            x, y = LEFT + 8 + (layer - layers[0]) * across, middle - up / span * PANEL / 2
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    for layer in (layers[0], layers[-1]):
        x = LEFT + 8 + (layer - layers[0]) * across
        out.append(f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle">layer {layer}</text>')
    body = "".join(out)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img"><title>Factors of the rescale over the layers</title><style>{_STYLE}</style>{body}</svg>\n'
    )
