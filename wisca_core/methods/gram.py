"""Gram balance (arXiv 2605.31484): the full change of basis after which the Gram matrices of both sides are equal, of
one KV head Wv Wv^T = sum over the query heads that read it of Wo^T Wo, of an adapter A A^T = B^T B.

Attention only sums values over positions, so (Wv, Wo) -> (S^-1 Wv, Wo S) keeps the product for any invertible S; the
diagonal S is the ordinary VO pair. The S taken here is the geometric mean of the two Gram matrices, a point where no
direction of a head is heavier on one side than on the other.

Not covered: DoRA on the pair, adapters of expert tensors; QK, where rotary positions leave a scale and a turn per
rotary pair only.
"""

from typing import TYPE_CHECKING

from wisca_core.methods import Method

if TYPE_CHECKING:
    import torch


class Gram(Method):
    name, words, pairs, by_factors = "gram", "by full changes of basis", ("vo", "lora"), False

    def why_not(self, site):
        if site.live != "weights":
            return "a norm stands between its two sides, so only single factors pass"
        if site.exact_ties:
            return "its channels are tied, so they cannot be mixed"
        for leg in site.legs:
            if leg.fixed or leg.offset or abs(leg.exponent) != 1 or "lora_magnitude" in leg.tensor:
                return f"{leg.tensor} cannot be mixed over its channels"
        return ""

    def basis(self, left, right, names):
        """The symmetric positive S with S^-1 left S^-1 = S right S: X = S^2 solves X right X = left."""
        import torch

        for name, gram in zip(names, (left, right)):
            values = torch.linalg.eigvalsh(gram)
            if not values[0] > 1e-12 * values[-1]:
                return f"{name} has not full rank yet, so no finite change of basis balances it"
        root, inverse = _roots(right)
        middle, _ = _roots(root @ left @ root)
        return _roots(inverse @ middle @ inverse)


def _roots(matrix: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Square root of a symmetric positive matrix, and its inverse."""
    import torch

    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    values = values.sqrt()
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


METHOD = Gram()
