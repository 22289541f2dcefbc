"""That a full change of basis of the VO pairs drops out, proved for every structure before it is used, like the rules
of single factors are: an output gate or a norm behind the attention lets single factors through and not this.

Nothing stands between the two sides of a LoRA adapter, so its rank channels need no such proof.
"""

import shutil
import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from wisca_core.architecture.find import find_sites
from wisca_core.architecture.site import Refusal, Site, Sites
from wisca_core.checkpoint import Checkpoint, open_checkpoint, parse_config
from wisca_core.equivalence.proof import ALIVE, OTHER_KERNELS, TOLERANCE, Proof, label, proof_of
from wisca_core.errors import ProofFailed
from wisca_core.methods import Method
from wisca_core.planning.bases import Bases
from wisca_core.planning.factors import Factors
from wisca_core.rescale_basis import all_changes
from wisca_core.storage import workplace
from wisca_core.verdicts import digest

BASIS = "a full change of basis on "  # how the words of such a proof begin


def prove_basis(checkpoint: Checkpoint, chosen: Method) -> Proof:
    """The kept proof for this config, or a fresh one, which is then kept. Never raises for what does not hold: the
    proof has then not ``passed``, and ``reason`` says why.
    """
    if checkpoint.declared is not None:
        reason = "it is proved on classes of transformers alone, and its pairs were declared."
        return Proof(passed=False, rule=chosen.name, what=f"{BASIS}nothing", reason=reason)
    key = digest(parse_config(checkpoint.config_json), chosen.name)
    return proof_of("basis", key, chosen.name, lambda: _prove(checkpoint.config_json, chosen))


def check_basis(
    checkpoint: Checkpoint, sites: Iterable[Site], chosen: Method, nothing: str = "The model is unchanged."
) -> Proof | None:
    """The proof that these may be changed, None where none of them needs one. Raises ProofFailed, which ends in
    ``nothing``.
    """
    sites = [site for site in sites if site.key.pair != "lora"]
    if not sites:
        return None
    proof = prove_basis(checkpoint, chosen)
    for site in sites:
        if reason := _why_not(proof, site):
            raise ProofFailed(f"{site.name}: {reason} {nothing}")
    return proof


def bases_proved(checkpoint: Checkpoint, sites: Sites, chosen: Method) -> Sites:
    """The sites without those whose basis the method would change and for which that is not proved; these become
    refusals.
    """
    asked = [s for s in sites.sites if s.key.pair != "lora" and chosen.changes_basis_of(s.key.pair)]
    if not asked:
        return sites
    proof = prove_basis(checkpoint, chosen)
    refused = {site.name: why for site in asked if (why := _why_not(proof, site))}
    return replace(
        sites.only(lambda site: site.name not in refused),
        refusals=(*sites.refusals, *(Refusal(name, why) for name, why in refused.items())),
    )


def _why_not(proof: Proof, site: Site) -> str:
    if proof.covers(site):
        return ""
    return f"a full change of basis is not exact here: {dict(proof.refused).get(label(site), proof.reason)}"


def _far_from_diagonal(site: Site, rng: np.random.Generator) -> np.ndarray:
    labels = site.labels("group")
    n_groups = int(labels.max()) + 1
    n = len(labels) // n_groups
    return np.eye(n) + 0.5 / n**0.5 * rng.standard_normal((n_groups, n, n))


def _prove(config_json: str, chosen: Method) -> Proof:
    """On a miniature with random weights, written and read again as an export is, in float64, with S far from diagonal.
    Raises ProofFailed where none can be made.
    """
    from wisca_core.equivalence.bench import write_folder
    from wisca_core.equivalence.miniature import build_miniature, load, quiet
    from wisca_core.equivalence.outputs import difference, outputs
    from wisca_core.equivalence.small_config import shrink

    started = time.perf_counter()
    rng = np.random.default_rng(3)
    with workplace("the miniature") as place, quiet():
        original = place / "original"
        original.mkdir()
        build_miniature(shrink(parse_config(config_json)), original, seed=1)
        small = open_checkpoint(original)
        found = find_sites(small)
        by_label: dict[str, list[Site]] = {}
        for site in found.sites:
            if site.key.pair == "vo":
                by_label.setdefault(label(site), []).append(site)
        if not by_label:
            raise ProofFailed("it has no VO pair.")
        reference = outputs(load(original), seed=2)

        def moved(sites: list[Site], side: str | None) -> float:
            bases = Bases({site.name: _far_from_diagonal(site, rng) for site in sites})
            write_folder(small, all_changes(small, found, Factors("tensor"), bases, side), place / "changed")
            try:
                return difference(reference, outputs(load(place / "changed"), seed=2)).max_rel
            finally:
                shutil.rmtree(place / "changed")

        proved, refused = {}, {}
        for name, sites in by_label.items():
            reason = next((f"{why}." for site in sites if (why := chosen.why_not(site))), "")
            if not reason:
                off, alive = moved(sites, None), moved(sites, "left")
                if not off <= TOLERANCE:
                    reason = f"on a miniature the outputs differ by {off:.1e} relative; {TOLERANCE:.0e} is the bound."
                elif not alive > ALIVE:
                    reason = "on a miniature a change of one side alone does not move the outputs."
            if reason:
                refused[name] = reason
            else:
                proved[name] = off, alive
    a = found.attention
    return Proof(
        passed=not refused,
        rule=chosen.name,
        what=f"{BASIS}{a.n_layers} layers, width {a.hidden_size}, {a.n_heads} query heads on {a.n_kv_heads} KV heads",
        n_cases=2 * len(by_label) * len(reference.cases),
        cases=tuple(reference.cases),
        max_rel=max((off for off, _ in proved.values()), default=float("inf")),
        liveness=min((alive for _, alive in proved.values()), default=0.0),
        seconds=time.perf_counter() - started,
        reason="; ".join(dict.fromkeys(refused.values())),
        not_checked=(OTHER_KERNELS,),
        proved=tuple(proved),
        refused=tuple(refused.items()),
    )
