"""VO pairs balanced by their full change of basis: for one KV head, (Wv, Wo) -> (S^-1 Wv, Wo S) for any invertible S.

Attention only sums values over positions, so S drops out of the product; the diagonal S is the ordinary VO pair. The S
taken here makes the two Gram matrices equal, Wv Wv^T = sum over the query heads that read it of Wo^T Wo. It is the
geometric mean of the two, and a point where no direction of a head is heavier on one side than on the other.

That S drops out is proved for every structure before it is used (``prove_mixing``), like the rules of single factors are:
an output gate or a norm behind the attention lets single factors through and not this.

Not covered: sharded parameters, DoRA on the pair, adapters of expert tensors; QK, where rotary positions leave a scale
and a turn per rotary pair only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from wisca_core.architecture.find import find_sites
from wisca_core.architecture.site import Leg, Site
from wisca_core.checkpoint import Checkpoint, open_checkpoint, parse_config
from wisca_core.errors import ProofFailed
from wisca_core.storage import workplace
from wisca_core.training.lora import between

# as for single factors: relative to max |output| of a float64 miniature; a one-sided change must move them by more
TOLERANCE, ALIVE = 1e-11, 1e-6


@dataclass(frozen=True, eq=False)
class Rows:
    """Indices of one leg of one KV group: (heads that read it, head_dim), each row in the order of the channels."""

    leg: Leg
    indices: torch.Tensor


def groups_of(site: Site) -> list[list[Rows]]:
    """Per KV group, what each leg holds of it. Every row lists the same channels in the same order."""
    labels = site.labels("group")
    out = []
    for group in range(int(labels.max()) + 1):
        channels = np.flatnonzero(labels == group)
        found = []
        for leg in site.legs:
            of, where = leg.channel.indices(), leg.index.indices()
            each = [where[of == channel] for channel in channels]
            found.append(Rows(leg, torch.from_numpy(np.stack(each, axis=1))))
        out.append(found)
    return out


def unusable(site: Site) -> str:
    """Why a VO pair has no full change of basis here; "" where it may have one."""
    if site.live != "weights":
        return "a norm stands between its two sides, so only single factors pass"
    if site.exact_ties:
        return "its channels are tied, so they cannot be mixed"
    wrong = next(
        (
            leg
            for leg in site.legs
            if leg.fixed or leg.offset or abs(leg.exponent) != 1 or "lora_magnitude" in leg.tensor
        ),
        None,
    )
    return f"{wrong.tensor} cannot be mixed over its channels" if wrong else ""


def basis(tensors: Mapping[str, torch.Tensor], rows: list[Rows]) -> tuple[torch.Tensor, torch.Tensor] | str:
    """(S, S^-1), float64 (head_dim, head_dim), for one KV group; a reason in words where there is none."""
    grams = {"left": 0.0, "right": 0.0}
    for one in rows:
        if one.leg.measured:
            for index in one.indices:
                block = _rows(tensors[one.leg.tensor], one.leg.axis, index)
                if not block.isfinite().all():
                    return f"{one.leg.tensor} is not finite"
                grams[one.leg.side] = grams[one.leg.side] + block @ block.T
    return between(grams["left"], grams["right"], ("Wv", "Wo"))


@torch.no_grad()
def mix_(
    tensors: Mapping[str, torch.Tensor],
    rows: list[Rows],
    s: torch.Tensor,
    inverse: torch.Tensor,
    side: str | None = None,
) -> None:
    """Left rows by S^-1, right ones by S, in place; ``side``: only that one, for the proof."""
    for one in rows:
        if side in (None, one.leg.side):
            apply_(tensors[one.leg.tensor], one, inverse if one.leg.side == "left" else s.T)


def apply_(tensor: torch.Tensor, rows: Rows, matrix: torch.Tensor) -> None:
    """The channels of ``rows`` in ``tensor`` become ``matrix`` times them, computed in float64, in place."""
    for index in rows.indices:
        block = _rows(tensor, rows.leg.axis, index)
        index = index.to(tensor.device)
        new = (matrix.to(block) @ block).reshape(len(index), *_rest(tensor, rows.leg.axis)).to(tensor.dtype)
        tensor.index_copy_(rows.leg.axis, index, new.movedim(0, rows.leg.axis))


def _rest(tensor: torch.Tensor, axis: int) -> tuple[int, ...]:
    return tuple(n for d, n in enumerate(tensor.shape) if d != axis)


def _rows(tensor: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """(len(index), rest), float64, a copy."""
    return tensor.detach().index_select(axis, index.to(tensor.device)).movedim(axis, 0).reshape(len(index), -1).double()


def prove_mixing(checkpoint: Checkpoint) -> None:
    """Raises ProofFailed where a full change of basis of the VO pairs is not exact for this structure."""
    reason = _proved(checkpoint.config_json)
    if reason:
        raise ProofFailed(f"a full change of basis of VO is not exact for this model: {reason} The model is unchanged.")


@lru_cache(maxsize=16)
def _proved(config_json: str) -> str:
    """The same on a miniature with random weights, in float64, with S far from diagonal; "" where it holds."""
    from wisca_core.equivalence.miniature import build_miniature, load
    from wisca_core.equivalence.outputs import difference, outputs
    from wisca_core.equivalence.small_config import shrink

    with workplace("the miniature") as place:
        build_miniature(shrink(parse_config(config_json)), place, seed=1)
        sites = [s for s in find_sites(open_checkpoint(place)).sites if s.key.pair == "vo"]
        why = next((f"{s.name}: {unusable(s)}." for s in sites if unusable(s)), "" if sites else "it has no VO pair.")
        if why:
            return why
        reference = outputs(load(place), seed=2)
        for side in (None, "left"):
            model = load(place)
            tensors = _named(model, {leg.tensor for site in sites for leg in site.legs})
            generator = torch.Generator().manual_seed(3)
            for site in sites:
                for rows in groups_of(site):
                    d = rows[0].indices.shape[1]
                    s = (
                        torch.eye(d, dtype=torch.float64)
                        + 0.5 * torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
                    )
                    mix_(tensors, rows, s, torch.linalg.inv(s), side)
            moved = difference(reference, outputs(model, seed=2)).max_rel
            if side is None and not moved <= TOLERANCE:
                return f"on a miniature the outputs differ by {moved:.1e} relative; {TOLERANCE:.0e} is the bound."
            if side and not moved > ALIVE:
                return "on a miniature a change of one side alone does not move the outputs, so nothing is proved."
    return ""


def _named(model: torch.nn.Module, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Tensors under the names they have on disk: a bare model's lack the prefix of the whole one's."""
    held = dict(model.named_parameters(remove_duplicate=False))
    prefix = getattr(model, "base_model_prefix", "")
    out = {}
    for name in names:
        found = next((n for n in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")) if n in held), None)
        if found is None:
            raise ProofFailed(f"{name} is not among the parameters of {type(model).__name__}, so nothing is proved.")
        out[name] = held[found]
    return out
