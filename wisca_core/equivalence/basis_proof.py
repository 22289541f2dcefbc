"""That a full change of basis of the VO pairs drops out, proved for every structure before it is used, like the rules of
single factors are: an output gate or a norm behind the attention lets single factors through and not this.
"""

from collections.abc import Iterable
from functools import lru_cache

import torch

from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import Checkpoint, open_checkpoint, parse_config
from wisca_core.equivalence.miniature import build_miniature, load
from wisca_core.equivalence.outputs import difference, outputs
from wisca_core.equivalence.small_config import shrink
from wisca_core.errors import ProofFailed
from wisca_core.methods import Method
from wisca_core.rescale_basis import change_, groups_of
from wisca_core.storage import workplace

# as for single factors: relative to max |output| of a float64 miniature; a one-sided change must move them by more
TOLERANCE, ALIVE = 1e-11, 1e-6


def prove_basis(checkpoint: Checkpoint, method: Method) -> None:
    """Raises ProofFailed where a full change of basis of the VO pairs is not exact for this structure."""
    reason = _failure(checkpoint.config_json, method)
    if reason:
        raise ProofFailed(f"a full change of basis of VO is not exact for this model: {reason} The model is unchanged.")


@lru_cache(maxsize=16)
def _failure(config_json: str, method: Method) -> str:
    """On a miniature with random weights, in float64, with S far from diagonal; "" where it holds."""
    with workplace("the miniature") as place, torch.no_grad():
        build_miniature(shrink(parse_config(config_json)), place, seed=1)
        sites = [s for s in find_sites(open_checkpoint(place)).sites if s.key.pair == "vo"]
        why = next(
            (f"{s.name}: {w}." for s in sites if (w := method.why_not(s))), "" if sites else "it has no VO pair."
        )
        if why:
            return why
        reference = outputs(load(place), seed=2)
        for side in (None, "left"):
            model = load(place)
            tensors = _by_disk_name(model, {leg.tensor for site in sites for leg in site.legs})
            generator = torch.Generator().manual_seed(3)
            for rows in (rows for site in sites for rows in groups_of(site)):
                d = rows[0].indices.shape[1]
                noise = torch.randn(d, d, generator=generator, dtype=torch.float64)
                s = torch.eye(d, dtype=torch.float64) + 0.5 * noise / d**0.5
                for one in rows:
                    if side in (None, one.leg.side):
                        change_(tensors[one.leg.tensor], one, (s, torch.linalg.inv(s)))
            moved = difference(reference, outputs(model, seed=2)).max_rel
            if side is None and not moved <= TOLERANCE:
                return f"on a miniature the outputs differ by {moved:.1e} relative; {TOLERANCE:.0e} is the bound."
            if side and not moved > ALIVE:
                return "on a miniature a change of one side alone does not move the outputs, so nothing is proved."
    return ""


def _by_disk_name(model: torch.nn.Module, names: Iterable[str]) -> dict[str, torch.Tensor]:
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
