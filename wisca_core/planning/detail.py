"""What a close look at one KV group, or at one feed-forward pair, gives."""

from dataclasses import dataclass

import numpy as np

BINS_PER_OCTAVE = 4
TAIL = 0.0005  # share of the smallest values that is folded into the first bin


@dataclass(frozen=True, eq=False)
class RoleDetail:
    """One side of the pair in this KV group. Norms are (before, after)."""

    role: str
    tensor: str
    shape: tuple[int, int]  # (channels of the group times heads, values a channel)
    n_heads: int
    l1: tuple[float, float]
    l2: tuple[float, float]
    max: tuple[float, float]
    mean: tuple[float, float]
    factor: tuple[float, float]  # smallest, largest over the channels
    n_zero: int
    n_nonfinite: int
    log2_edges: np.ndarray  # (n_bins + 1,) quarter octaves
    percent: np.ndarray  # (n_bins,) of the nonzero finite values
    percent_after: np.ndarray  # (n_bins,) on the same edges
    channel_l1: np.ndarray  # (head_dim or rotary pairs,) summed over the group's heads
    channel_l1_after: np.ndarray
    looked_at: float = 1.0  # share of the values that the histograms are of


@dataclass(frozen=True, eq=False)
class HeadDetail:
    """``spectrum``: singular values of left, right and of their product, for the first query head of the group; the
    product does not change. ``turns``: tokens per turn of each rotary pair (base frequencies), None without rotation.
    ``spectrum_note`` says what the product leaves out.
    """

    site: str
    group: int
    roles: tuple[RoleDetail, ...]
    turns: np.ndarray | None
    head: int
    spectrum: dict[str, np.ndarray]  # left, right, left_after, right_after, product
    spectrum_note: str
