"""Muon's orthogonalisation, and norms, of many matrices at once: what torch does to one, on a GPU by batched kernels.

On the CPU each matrix has its turn: batched products in bfloat16 round a few sums in another order there, and the
iteration grows a last bit of a nearly singular direction into its first.
"""

import torch


def orthogonalise(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], n_steps: int, eps: float
) -> torch.Tensor:
    """(n, rows, columns) -> bfloat16 of the same shape, each near the orthogonal matrix of the same singular
    vectors.
    """
    if matrices.device.type == "cpu":
        return torch.stack([newton_schulz(one, coefficients, n_steps, eps) for one in matrices])
    return newton_schulz(matrices, coefficients, n_steps, eps)


def newton_schulz(x: torch.Tensor, coefficients: tuple[float, float, float], n_steps: int, eps: float) -> torch.Tensor:
    """Newton-Schulz in bfloat16 on the shorter side, like torch.optim.Muon's; one matrix, or (n, rows, columns)."""
    a, b, c = coefficients
    add_product = torch.addmm if x.dim() == 2 else torch.baddbmm
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.bfloat16()
    if is_tall:
        x = x.mT
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(n_steps):
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def norms(tensors: torch.Tensor) -> torch.Tensor:
    """(n, ...) -> (n,): the norm of each."""
    if (
        tensors.device.type == "cpu"
    ):  # one by one it sums in the very order in which it does for one model, to the last bit
        return torch.stack([torch.linalg.vector_norm(one) for one in tensors])
    return torch.linalg.vector_norm(tensors.flatten(1), dim=1)
