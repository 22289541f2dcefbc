"""WISCA (arXiv 2508.16676): left times s, right over s, after which both sides have the same norm."""

import numpy as np

from wisca_core.methods import Method


class Wisca(Method):
    name = "wisca"

    def log2_factors(self, left, right, exponents):
        """``s = (right / left) ** (1 / (a + b))``."""
        return (np.log2(right) - np.log2(left)) / exponents


METHOD = Wisca()
