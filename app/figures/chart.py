"""A chart as one value: what a page draws, what a report holds and what is taken away are the same."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
from plotly.basedatatypes import BaseFigure

from wisca_app.figures.template import CONFIG, Theme


@dataclass(frozen=True, eq=False)
class Chart:
    """``finding``: its title, computed; ``how`` to read it; both the Markdown of the pages, foreign names escaped.
    ``table``: its numbers. ``name``: of the files that are saved of it. ``draw``: the figure in a theme, from values
    alone. ``alt``: what it shows, for those who do not see it. ``tip``: what stands behind its question mark. ``of``:
    what it is about, "" for the open model. ``config``: plotly's.
    """

    finding: str
    how: str
    table: pd.DataFrame
    name: str
    draw: Callable[[Theme], BaseFigure]
    alt: str = ""
    tip: str = ""
    of: str = ""
    config: dict = field(default_factory=lambda: CONFIG)
