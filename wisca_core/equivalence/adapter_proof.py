"""Proof for a LoRA adapter: every module's product B A with extreme factors in float64, and, where its base model is
given, the adapter on a miniature of that base through peft.

The products are taken at the shapes stored here, of random values: whether the rule maps A's rows onto B's columns does
not hang on the values, and B is zero in a fresh adapter.
"""

import time

import numpy as np
import torch

from wisca_core.architecture.adapter import adapted_layers
from wisca_core.architecture.find import find_sites
from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint, open_checkpoint
from wisca_core.equivalence.bench import write_folder
from wisca_core.equivalence.proof import ALIVE, OCTAVES, PRODUCT, TOLERANCE, Proof, kept_proof, label, proof_of
from wisca_core.errors import ProofFailed
from wisca_core.progress import Progress, silent
from wisca_core.rescale import Scaling, changes, rescaled_rows, scalings
from wisca_core.storage import workplace
from wisca_core.verdicts import digest

N_INPUTS = 33


def prove_adapter(
    checkpoint: Checkpoint, sites: Sites, base: Checkpoint | None = None, progress: Progress = silent
) -> Proof:
    """The kept proof or a fresh one, which is then kept. A rule that is wrong gives a proof that has not ``passed``."""
    key = _key(checkpoint, sites, base)
    return proof_of("adapter-proof", key, sites.family, lambda: _prove(checkpoint, sites, base, progress))


def kept_adapter_proof(checkpoint: Checkpoint, sites: Sites, base: Checkpoint | None = None) -> Proof | None:
    """The kept proof under the installed versions and this code, or None."""
    return kept_proof("adapter-proof", _key(checkpoint, sites, base))


def _key(checkpoint: Checkpoint, sites: Sites, base: Checkpoint | None) -> str:
    shapes = {t.name: t.shape for t in checkpoint.tensors}
    layout = [(repr(site), [shapes[leg.tensor] for leg in site.legs]) for site in sites.sites]
    return digest(checkpoint.adapter, layout, base.config if base else None, peft_version())


def peft_version() -> str:
    """Of the installed peft, "" where there is none."""
    from importlib import metadata

    try:
        return metadata.version("peft")
    except metadata.PackageNotFoundError:
        return ""


def _prove(checkpoint: Checkpoint, sites: Sites, base: Checkpoint | None, progress: Progress) -> Proof:
    started = time.perf_counter()
    if not sites.sites:
        raise ProofFailed("no pair was found in this adapter, so there is no rule to prove.")
    worst, where, alive = _products(checkpoint, sites, progress)
    n = len(sites.sites)
    what = (
        f"{PRODUCT} of {'the one module' if n == 1 else f'all {n} modules'} at its own shape, on {N_INPUTS} random "
        "inputs"
    )
    cases = tuple(f"product of {name}" for name in sorted({site.key.part for site in sites.sites}))
    not_checked: tuple[str, ...] = ("the adapter on its base model, which was not given",)
    if base is not None:
        moved, place, living, small, more = on_miniature(checkpoint, base, progress)
        worst, where, alive = (
            (moved, place, min(alive, living)) if moved > worst else (worst, where, min(alive, living))
        )
        what += f"; and the adapter through peft on a miniature of {base.config.get('model_type')}: {small}"
        cases += more
        not_checked = ("sequences longer than 33 tokens in the miniature",)
    passed = worst <= TOLERANCE
    reason = "" if passed else f"{where} differs by {worst:.1e} relative; {TOLERANCE:.0e} is the bound."
    labels = tuple(dict.fromkeys(map(label, sites.sites)))
    return Proof(
        passed=passed,
        rule=sites.family,
        what=what,
        n_cases=len(cases),
        cases=cases,
        max_rel=worst,
        liveness=alive,
        largest_factor=2.0**OCTAVES,
        seconds=time.perf_counter() - started,
        reason=reason,
        not_checked=not_checked,
        proved=labels if passed else (),
        refused=() if passed else tuple((name, reason) for name in labels),
    )


def extreme(sites: Sites, seed: int) -> dict[str, np.ndarray]:
    """Site name -> a factor of every channel, up to 2^10 both ways."""
    rng = np.random.default_rng(seed)
    return {s.name: np.exp2(rng.uniform(-OCTAVES, OCTAVES, s.n_cells("channel"))) for s in sites.sites}


def _products(checkpoint: Checkpoint, sites: Sites, progress: Progress) -> tuple[float, str, float]:
    """(largest relative difference, where, smallest movement when A alone is scaled)."""
    shapes = {t.name: t.shape for t in checkpoint.tensors}
    both, left = (scalings(sites, extreme(sites, 3), "channel", shapes, side) for side in (None, "left"))
    worst, where, alive = 0.0, "", float("inf")
    for number, site in enumerate(sites.sites):
        progress("proving the products", number, len(sites.sites))
        generator = torch.Generator().manual_seed(number)
        a, b = (leg.tensor for leg in site.legs)
        tensors = {name: torch.randn(shapes[name], generator=generator, dtype=torch.float64) for name in (a, b)}
        inputs = torch.randn(shapes[a][1], N_INPUTS, generator=generator, dtype=torch.float64)
        reference = tensors[b] @ (tensors[a] @ inputs)
        for scaling, is_both in ((both, True), (left, False)):
            new = {name: rescaled_rows(t, scaling.get(name, Scaling({}))) for name, t in tensors.items()}
            gap = (new[b] @ (new[a] @ inputs) - reference).abs().max().item() / reference.abs().max().item()
            if not is_both:
                alive = min(alive, gap)
                if not gap > ALIVE:
                    raise ProofFailed(f"{site.name}: scaling A alone does not move the product, so nothing is proved.")
            elif not gap <= worst:
                worst, where = gap, f"the product of {site.name}"
    return worst, where, alive


def on_miniature(
    checkpoint: Checkpoint, base: Checkpoint, progress: Progress
) -> tuple[float, str, float, str, tuple[str, ...]]:
    """(largest relative difference, where, liveness, the miniature in words, cases) of the adapter's rank channels on a
    miniature of ``base`` through peft.
    """
    from wisca_core.equivalence.adapter_miniature import RANK, build_adapter, inside, load_adapted, peft_is_here
    from wisca_core.equivalence.miniature import build_miniature
    from wisca_core.equivalence.outputs import difference, outputs
    from wisca_core.equivalence.small_config import shrink

    if not peft_is_here():
        raise ProofFailed(
            "peft is not installed, so the adapter cannot be run on its base model. Install peft, or prove it without "
            "its base."
        )
    progress("building a miniature with an adapter", 0, 1)
    targets = {inside(one.module) for one in adapted_layers(checkpoint) if not one.unknown}
    with workplace("the miniature") as place:
        original, adapter = place / "base", place / "adapter"
        original.mkdir()
        build_miniature(shrink(base.config), original, seed=1)
        build_adapter(original, adapter, checkpoint.adapter, targets, seed=4)
        small = open_checkpoint(adapter)
        sites = find_sites(small)
        lacking = targets - {inside(one.module) for one in adapted_layers(small) if not one.unknown}
        if lacking or sites.refusals:
            raise ProofFailed(
                f"on a miniature of {base.config.get('model_type')} peft adapts no "
                f"{sorted(lacking)[0] if lacking else sites.refusals[0].what}; "
                "the adapter does not fit this base model."
            )
        reference = outputs(load_adapted(original, adapter), seed=2)
        results, shapes = {}, {t.name: t.shape for t in small.tensors}
        for number, side in enumerate((None, "left")):
            progress("proving the adapter on a miniature", number, 2)
            out = place / f"changed-{number}"
            scaling = scalings(sites, extreme(sites, 5), "channel", shapes, side)
            changed = write_folder(small, changes(scaling), out)
            results[side] = difference(reference, outputs(load_adapted(original, changed), seed=2))
        if not results["left"].max_rel > ALIVE:
            raise ProofFailed(
                "scaling A alone does not move the outputs of the miniature, so the adapter is not run and nothing is "
                "proved."
            )
    words = f"rank {RANK} on {', '.join(sorted(targets))}"
    cases = tuple(f"miniature, {case}" for case in reference.cases)
    return results[None].max_rel, f"the miniature's {results[None].worst_case}", results["left"].max_rel, words, cases
