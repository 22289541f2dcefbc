"""Proof that a base model and its adapter are one function before and after the base is rescaled: the very arithmetic
that will be used, on a miniature of the base with an adapter of the same settings on it, through peft, in true float64.
"""

import time
from collections.abc import Mapping

import numpy as np

from wisca_core.architecture.adapter import adapted_layers
from wisca_core.architecture.find import find_sites
from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint, open_checkpoint
from wisca_core.equivalence.adapter_miniature import inside
from wisca_core.equivalence.adapter_proof import extreme, peft_version
from wisca_core.equivalence.bench import repeated_outputs, write_folder
from wisca_core.equivalence.proof import ALIVE, OCTAVES, TOLERANCE, Proof, label, lacking, proof_of
from wisca_core.errors import ProofFailed
from wisca_core.progress import Progress, silent
from wisca_core.rescale import changes, scalings
from wisca_core.rescale_adapter import copies, follow
from wisca_core.storage import workplace
from wisca_core.verdicts import digest


def prove_pair(base: Checkpoint, sites: Sites, adapter: Checkpoint, progress: Progress = silent) -> Proof:
    """The kept proof for this pair of structures or a fresh one, which is then kept; see ``proving.prove``. ``sites``:
    those of the base; every kind of pair among them is moved.
    """
    modules = sorted((one.module, bool(one.bias), bool(one.magnitude), one.unknown) for one in adapted_layers(adapter))
    modules.append(sorted(t.name for t in adapter.tensors if ".lora_" not in t.name))
    key = digest(base.config, [repr(site) for site in sites.sites], adapter.adapter, modules, peft_version())
    return proof_of("pair-proof", key, sites.family, lambda: _prove(base, sites, adapter, progress))


def _prove(base: Checkpoint, sites: Sites, adapter: Checkpoint, progress: Progress) -> Proof:
    from wisca_core.equivalence.adapter_miniature import RANK, build_adapter, load_adapted, peft_is_here
    from wisca_core.equivalence.miniature import build_miniature
    from wisca_core.equivalence.outputs import difference, outputs
    from wisca_core.equivalence.small_config import shrink

    started = time.perf_counter()

    if not peft_is_here():
        raise ProofFailed("peft is not installed, so a base model with its adapter cannot be run. Install peft.")
    targets = {inside(one.module) for one in adapted_layers(adapter) if not one.unknown}
    if not sites.sites or not targets:
        raise ProofFailed(
            "the base has no pair or the adapter no layer that a rule covers, so there is nothing to prove."
        )
    kept = _copied_tensors(base, sites, adapter)
    labels, pairs = {label(site) for site in sites.sites}, tuple(dict.fromkeys(site.key.pair for site in sites.sites))
    progress("building a miniature with an adapter", 0, 1)
    with workplace("the miniature") as place:
        original, beside = place / "base", place / "adapter"
        original.mkdir()
        build_miniature(shrink(base.config), original, seed=1)
        build_adapter(original, beside, adapter.adapter, targets, seed=4)
        small, small_adapter = open_checkpoint(original), open_checkpoint(beside)
        small_sites = find_sites(small, pairs=pairs).only(lambda site: label(site) in labels)
        absent = lacking(sites, small_sites)
        if absent:
            raise ProofFailed(
                f"transformers' own {sites.model_type} with this config.json has no {absent}. The weights and "
                "config.json disagree."
            )
        missing = kept - _copied_tensors(small, small_sites, small_adapter)
        if missing:
            raise ProofFailed(
                f"the adapter has its own {sorted(missing)[0]} of a pair; on a miniature of {sites.model_type} peft "
                "keeps no "
                "such copy, so it is not proved that it follows."
            )
        reference = repeated_outputs(lambda: outputs(load_adapted(original, beside), seed=2))
        shapes = {t.name: t.shape for t in small.tensors}
        worst, where = 0.0, ""
        for number, (name, factors) in enumerate(_trials(small_sites)):
            progress("proving base and adapter together", number, 4)
            scaling = scalings(small_sites, factors, "channel", shapes)
            new_base = write_folder(small, changes(scaling), place / f"base-{number}")
            followed = follow(small, small_sites, scaling, small_adapter)
            new_adapter = write_folder(small_adapter, changes(followed), place / f"adapter-{number}")
            moved = difference(reference, outputs(load_adapted(new_base, new_adapter), seed=2))
            if not moved.max_rel <= worst:
                worst, where = moved.max_rel, f"{name}, {moved.worst_case}"
        progress("proving base and adapter together", 3, 4)
        alone = difference(reference, outputs(load_adapted(place / "base-0", beside), seed=2)).max_rel
    if followed and not alone > ALIVE:
        raise ProofFailed(
            "leaving the adapter as it is does not move the outputs, so it is not run and nothing is proved."
        )
    passed = worst <= TOLERANCE
    reason = "" if passed else f"the outputs differ by {worst:.1e} relative ({where}); {TOLERANCE:.0e} is the bound."
    return Proof(
        passed=passed,
        rule=f"{sites.family} with its adapter",
        what=f"a miniature of {sites.model_type} with a LoRA of rank {RANK} on {', '.join(sorted(targets))}"
        + (f" and its own {', '.join(sorted(kept))}" if kept else "")
        + ", through peft",
        n_cases=3 * len(reference.cases),
        cases=tuple(reference.cases),
        max_rel=worst,
        liveness=alone,
        largest_factor=2.0**OCTAVES,
        seconds=time.perf_counter() - started,
        reason=reason,
        proved=tuple(sorted(labels)) if passed else (),
        refused=() if passed else tuple((name, reason) for name in sorted(labels)),
        not_checked=(
            "base and adapter together at their full size",
            "attention kernels other than eager",
            "sequences longer than 33 tokens in the miniature",
        ),
    )


def _copied_tensors(base: Checkpoint, sites: Sites, adapter: Checkpoint) -> set[str]:
    """Tensors of pairs that the adapter brings copies of, by their place inside a layer."""
    of_pairs = {leg.tensor for site in sites.sites for leg in site.legs}
    found = copies(base, adapter)
    return {inside(name) for names in found.values() for name in names if name in of_pairs}


def _trials(sites: Sites) -> list[tuple[str, Mapping[str, np.ndarray]]]:
    rng = np.random.default_rng(7)
    up = {s.name: np.exp2(rng.uniform(OCTAVES - 1, OCTAVES, s.n_cells("channel"))) for s in sites.sites}
    return [
        ("factors both ways", extreme(sites, 3)),
        ("left side up", up),
        ("right side up", {name: 1 / f for name, f in up.items()}),
    ]
