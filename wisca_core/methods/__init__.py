"""Methods: how the two sides of a pair are brought together. A method is one file here, which ends with its ``METHOD``,
and a name in ``NAMES``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from wisca_core.architecture.site import PAIRS, Site

if TYPE_CHECKING:
    import numpy as np
    import torch

NAMES = ("wisca", "gram")


class Method:
    """Which sites, what they are changed by, and what may follow.

    ``pairs``: those it takes; others that are asked for are balanced by ``wisca``. ``by_factors``: it gives one factor
    a tie group (``log2_factors``), which learning rates and adapters of the model can follow; else one change of basis
    a KV group (``basis``), without strength, trigger or powers of two, which momentum can follow and squares of single
    gradients, learning rates and adapters cannot. ``words``: how an arm does it, "" for the paper's way.
    """

    name: str
    words = ""
    pairs: tuple[str, ...] = PAIRS
    by_factors = True

    def changes_basis_of(self, pair: str) -> bool:
        return not self.by_factors and pair in self.pairs

    def misfit(self, options) -> str:
        """Why these options of a plan, a live rescale or an arm do not go with it; "" where they do."""
        if self.by_factors:
            return ""
        for name, is_plain in (
            ("exact", not options.exact),
            ("strength", options.strength == 1),
            ("when", getattr(options, "when", None) is None),
        ):
            if not is_plain:
                return f"a full change of basis knows no {name}"
        return (
            "" if set(self.pairs) & set(options.pairs) else f"none of its pairs, {', '.join(self.pairs)}, is asked for"
        )

    def why_not(self, site: Site) -> str:
        """Why this site is not its to change; "" where it is."""
        return ""

    def log2_factors(self, left: "np.ndarray", right: "np.ndarray", exponents: "np.ndarray") -> "np.ndarray":
        """log2 of what fully balances cells with these norms; ``exponents``: a + b of each (left times s^a, right over
        s^b). A cell without a finite one is left alone.
        """
        raise NotImplementedError(f"{self.name} gives no factors")

    def basis(
        self, left: "torch.Tensor", right: "torch.Tensor", names: tuple[str, str]
    ) -> tuple["torch.Tensor", "torch.Tensor"] | str:
        """(S, S^-1), float64 (n, n), for (left, right) -> (S^-1 left, right S), from the Gram matrices of both sides
        over the n channels of a group; a reason in words, with the ``names`` of the sides, where there is none.
        """
        raise NotImplementedError(f"{self.name} gives no change of basis")


def method(name: str) -> Method:
    """The method of that name, one of ``NAMES``."""
    return import_module(f"{__name__}.{name}").METHOD
