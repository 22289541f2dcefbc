"""The arithmetic of one batch of heads: small matrices in, numbers out; float64 throughout.

A circuit is a product of two tall factors, ``left (n, d) @ right (m, d).T``. It is never formed: with the QR factors R
of both, its singular values are those of the small ``R_left @ R_right.T``. Householder QR keeps an error of each column
in proportion to that column, so a factor on a column of one side and its inverse on the other's leaves the digits
alone; from Gram matrices the small singular values, and with them the effective rank, would lose half of theirs.
"""

import torch


def triangle(factor: torch.Tensor) -> torch.Tensor:
    """R of the QR decomposition of ``factor`` (..., n, d), float64: (..., min(n, d), d)."""
    return torch.linalg.qr(factor, mode="r")[1]


def spectrum(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Singular values, descending, of ``left @ right.T`` from the two triangles (batch, n, d), (batch, m, d)."""
    return torch.linalg.svdvals(left @ right.mT)


def frobenius(values: torch.Tensor) -> torch.Tensor:
    """Root of the sum of squares of singular values (..., d)."""
    top = values.amax(-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    return top[..., 0] * (values / top).square().sum(-1).sqrt()


def stable_rank(values: torch.Tensor) -> torch.Tensor:
    """Squared Frobenius over squared spectral norm; NaN where all are zero."""
    return (values / values.amax(-1, keepdim=True)).square().sum(-1)


def effective_rank(values: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of the singular values as shares of their sum (Roy and Vetterli 2007, eq. 2); NaN where all
    are zero.
    """
    share = values / values.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


def logit_bound(
    left: torch.Tensor,
    right: torch.Tensor,
    left_bias: torch.Tensor,
    right_bias: torch.Tensor,
    left_size: float,
    right_size: float,
    top: torch.Tensor | None = None,
) -> torch.Tensor:
    """The largest ``(left.T x + left_bias) . (right.T y + right_bias)`` that is possible, at most, for
    ``|x| <= left_size`` and ``|y| <= right_size``, before the model's scale. Reached without biases; with them the
    terms are added as if all could be reached at once. Biases (batch, d); ``top``: the largest singular value, where it
    is known already.
    """
    top = spectrum(left, right).amax(-1) if top is None else top
    return (
        left_size * right_size * top
        + left_size * _times(left, right_bias).norm(dim=-1)
        + right_size * _times(right, left_bias).norm(dim=-1)
        + (left_bias * right_bias).sum(-1).abs()
    )


def logit_bound_any(
    left: torch.Tensor,
    right: torch.Tensor,
    left_bias: torch.Tensor,
    right_bias: torch.Tensor,
    left_size: float,
    right_size: float,
    pairs: torch.Tensor,
) -> torch.Tensor:
    """The same where each rotary pair may turn by any angle. ``pairs`` (n_pairs, 2): its channels; the others stand
    still.

    A pair adds at most |q_p| |k_p|, so the sum is at most |q| |k| over the turning channels, whatever common factor a
    pair's q is multiplied and its k divided by. The factor that makes both matrices of a pair equally strong is taken:
    the bound is then one of the circuit, not of the coordinates, and never above the sum of the pairs' own bounds.
    """
    d = left.shape[-1]
    turning = pairs.reshape(-1)
    still = torch.tensor([i for i in range(d) if i not in set(turning.tolist())], dtype=torch.long)
    sides = ((left, left_bias, left_size), (right, right_bias, right_size))
    strength = [
        torch.hypot(size * _pair_norm(factor[..., pairs]), bias[..., pairs].norm(dim=-1))
        for factor, bias, size in sides
    ]
    # a pair that one side leaves at zero adds nothing
    alive = (strength[0] > 0) & (strength[1] > 0)
    ratio = torch.where(alive, strength[1] / torch.where(alive, strength[0], 1.0), 0.0).sqrt()
    lengths = []
    for (factor, bias, size), scale in zip(sides, (ratio, torch.where(alive, 1 / ratio, 0.0))):
        per_channel = scale.repeat_interleave(2, dim=-1)
        top = _top(factor[..., turning] * per_channel.unsqueeze(-2))
        lengths.append(size * top + (bias[..., turning] * per_channel).norm(dim=-1))
    out = lengths[0] * lengths[1]
    if len(still):
        out = out + logit_bound(
            left[..., still], right[..., still], left_bias[..., still], right_bias[..., still], left_size, right_size
        )
    return out


def copying(reads: torch.Tensor, writes: torch.Tensor) -> torch.Tensor:
    """Sum of the eigenvalues of ``writes @ reads.T`` over the sum of their moduli; (batch, n, d) each, n the same
    stream.

    The nonzero eigenvalues are those of the small ``reads.T @ writes``; their sum is its trace.
    """
    small = reads.mT @ writes
    moduli = torch.linalg.eigvals(small).abs().sum(-1)
    return small.diagonal(dim1=-2, dim2=-1).sum(-1) / moduli


def _times(triangle_: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """``triangle_ @ vector``; its length is that of the whole factor times the vector."""
    return (triangle_ @ vector.unsqueeze(-1))[..., 0]


def _pair_norm(columns: torch.Tensor) -> torch.Tensor:
    """Spectral norm of two columns: (..., n, n_pairs, 2) -> (..., n_pairs), in closed form."""
    first, second = columns[..., 0], columns[..., 1]
    a, b, c = first.square().sum(-2), second.square().sum(-2), (first * second).sum(-2)
    return ((a + b) / 2 + torch.hypot((a - b) / 2, c)).sqrt()


def _top(factor: torch.Tensor) -> torch.Tensor:
    """Spectral norm of (batch, n, d): the largest eigenvalue of its Gram matrix is exact enough for the largest one."""
    return torch.linalg.eigvalsh(factor.mT @ factor)[..., -1].clamp_min(0).sqrt()
