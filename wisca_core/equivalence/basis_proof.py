"""That a full change of basis of the VO pairs drops out, proved for every structure before it is used, like the rules of
single factors are: an output gate or a norm behind the attention lets single factors through and not this.

Nothing stands between the two sides of a LoRA adapter, so its rank channels need no such proof.
"""

import time
from collections.abc import Iterable
from dataclasses import replace

from wisca_core.architecture.find import find_sites
from wisca_core.architecture.site import Refusal, Sites
from wisca_core.checkpoint import Checkpoint, open_checkpoint, parse_config
from wisca_core.equivalence.proof import ALIVE, OTHER_KERNELS, TOLERANCE, Proof, label, proof_of
from wisca_core.errors import ProofFailed
from wisca_core.methods import Method, method
from wisca_core.planning.plan import Plan
from wisca_core.storage import workplace
from wisca_core.verdicts import digest, versions

BASIS = "a full change of basis on "  # how the words of such a proof begin


def prove_basis(checkpoint: Checkpoint, chosen: Method) -> Proof:
    """The kept proof for this config, or a fresh one, which is then kept. Never raises for what does not hold: the proof has
    then not ``passed``, and ``reason`` says why.
    """
    if checkpoint.declared is not None:
        reason = "it is proved on classes of transformers alone, and its pairs were declared."
        return replace(_proof(), reason=reason)
    key = digest(parse_config(checkpoint.config_json), chosen.name)
    return proof_of("basis", key, chosen.name, lambda: _prove(checkpoint.config_json, chosen))


def check_basis(checkpoint: Checkpoint, chosen: Method, nothing: str = "The model is unchanged.") -> Proof:
    """The proof. Raises ProofFailed, ending in ``nothing``, where a full change of basis of the VO pairs is not exact for this
    structure.
    """
    proof = prove_basis(checkpoint, chosen)
    if not proof.passed:
        raise ProofFailed(f"a full change of basis of VO is not exact for this model: {proof.reason} {nothing}")
    return proof


def check_bases(checkpoint: Checkpoint, sites: Sites, plan: Plan) -> Proof | None:
    """``check_basis`` of what the plan changes, None where it is nothing that needs a proof."""
    if all(sites[name].key.pair == "lora" for name in plan.bases.sites):
        return None
    return check_basis(checkpoint, method(plan.options.method), "Nothing was written.")


def bases_proved(checkpoint: Checkpoint, sites: Sites, chosen: Method) -> Sites:
    """The sites without those whose basis the method would change and for which that is not proved; these become refusals."""

    def is_asked(site) -> bool:
        return site.key.pair != "lora" and chosen.changes_basis_of(site.key.pair)

    asked = [site for site in sites.sites if is_asked(site)]
    if not asked or (proof := prove_basis(checkpoint, chosen)).passed:
        return sites
    reason = f"a full change of basis is not exact for this model: {proof.reason}"
    refused = tuple(Refusal(site.name, reason) for site in asked)
    return replace(sites.only(lambda site: not is_asked(site)), refusals=(*sites.refusals, *refused))


def _proof(**said) -> Proof:
    nothing = dict(
        passed=False, rule="", what=f"{BASIS}nothing", n_cases=0, cases=(), max_rel=float("inf"), liveness=0.0
    )
    return Proof(**(nothing | dict(largest_factor=1.0, seconds=0.0, versions=versions()) | said))


def _prove(config_json: str, chosen: Method) -> Proof:
    """On a miniature with random weights, in float64, with S far from diagonal. Raises ProofFailed where none can be made."""
    import torch

    from wisca_core.equivalence.miniature import build_miniature, load, quiet
    from wisca_core.equivalence.outputs import difference, outputs
    from wisca_core.equivalence.small_config import shrink
    from wisca_core.rescale_basis import change_, groups_of

    started = time.perf_counter()
    with workplace("the miniature") as place, torch.no_grad(), quiet():
        build_miniature(shrink(parse_config(config_json)), place, seed=1)
        found = find_sites(open_checkpoint(place))
        sites = [s for s in found.sites if s.key.pair == "vo"]
        why = next(
            (f"{s.name}: {w}." for s in sites if (w := chosen.why_not(s))), "" if sites else "it has no VO pair."
        )
        if why:
            raise ProofFailed(why)
        reference = outputs(load(place), seed=2)
        moved = {}
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
            moved[side] = difference(reference, outputs(model, seed=2)).max_rel
    reason = ""
    if not moved[None] <= TOLERANCE:
        reason = f"on a miniature the outputs differ by {moved[None]:.1e} relative; {TOLERANCE:.0e} is the bound."
    elif not moved["left"] > ALIVE:
        reason = "on a miniature a change of one side alone does not move the outputs, so nothing is proved."
    labels = tuple(dict.fromkeys(label(site) for site in sites))
    a = found.attention
    return _proof(
        passed=not reason,
        rule=chosen.name,
        what=f"{BASIS}{a.n_layers} layers, width {a.hidden_size}, {a.n_heads} query heads on {a.n_kv_heads} KV heads",
        n_cases=2 * len(reference.cases),
        cases=tuple(reference.cases),
        max_rel=moved[None],
        liveness=moved["left"],
        seconds=time.perf_counter() - started,
        reason=reason,
        not_checked=(OTHER_KERNELS,),
        proved=() if reason else labels,
        refused=tuple((one, reason) for one in labels) if reason else (),
    )


def _by_disk_name(model, names: Iterable[str]) -> dict:
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
