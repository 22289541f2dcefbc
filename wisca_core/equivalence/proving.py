"""Proof by miniature: the very rule that will be used, applied to the model's own architecture made small, judged in
true float64.

Seconds, and no big model in memory. It says that the *rule* is right for this structure; what the rounding of 16-bit
weights does to the real model is the full check's business.
torch is loaded where there is no kept proof.
"""

import time
from dataclasses import replace

from wisca_core.architecture.declaration import NAME
from wisca_core.architecture.declared_paths import root_of
from wisca_core.architecture.families import families
from wisca_core.architecture.find import find_sites
from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint, open_checkpoint
from wisca_core.equivalence.proof import (
    OCTAVES,
    OTHER_KERNELS,
    OWN_CODE,
    UNPROVED,
    Proof,
    kept_proof,
    label,
    lacking,
    proof_of,
)
from wisca_core.errors import ProofFailed
from wisca_core.progress import Progress, silent
from wisca_core.storage import workplace
from wisca_core.verdicts import digest


def prove(checkpoint: Checkpoint, sites: Sites, progress: Progress = silent, base: Checkpoint | None = None) -> Proof:
    """The proof for this checkpoint's structure: the kept one, or a fresh one, which is then kept.

    ``base``: of a LoRA adapter, the model to prove it on; without one its products alone are proved. Never raises for a
    rule that is wrong or a model that cannot be built: the proof has then not ``passed`` and says why.
    """
    if checkpoint.adapter_json:
        from wisca_core.equivalence.adapter_proof import prove_adapter

        return prove_adapter(checkpoint, sites, base, progress)
    if checkpoint.declared is not None:
        return _prove_declared(checkpoint, sites, progress)

    def make() -> Proof:
        from wisca_core.equivalence.miniature import quiet

        with quiet():  # true float64 is a change of the whole process as well
            return _prove(checkpoint, sites, progress)

    return proof_of("proof", _key(checkpoint, sites), sites.family, make)


def cached_proof(checkpoint: Checkpoint, sites: Sites, base: Checkpoint | None = None) -> Proof | None:
    """The kept proof of this structure under the installed versions and this code, or None."""
    if checkpoint.adapter_json:
        from wisca_core.equivalence.adapter_proof import kept_adapter_proof

        return kept_adapter_proof(checkpoint, sites, base)
    return None if checkpoint.declared else kept_proof("proof", _key(checkpoint, sites))


def _prove_declared(checkpoint: Checkpoint, sites: Sites, progress: Progress) -> Proof:
    """On what the person's own code makes; never kept, because that code may change."""
    declared, started = checkpoint.declared, time.perf_counter()
    labels = tuple(sorted({label(site) for site in sites.sites}))
    words = Proof(
        passed=False,
        rule=NAME,
        what=f"{UNPROVED}the sites were declared and taken as they are",
        not_checked=("whether the declared sites are right",),
    )
    if declared.build is None and declared.is_unproved:
        return replace(words, passed=True, proved=labels)
    if declared.build is None:
        reason = (
            "declared sites of a file are proved on the model's own code. Give --build module:function, which makes a "
            "small "
            "model of the class, or say --unproved to take them as they are."
        )
        return replace(words, reason=reason)
    from wisca_core.equivalence.declared_proof import prove_declared

    root = root_of((t.name for t in checkpoint.tensors), declared.sites)
    own = {t.name: t for t in checkpoint.tensors}
    own |= {alias: own[owner] for alias, owner in checkpoint.aliases if owner in own}
    structure = [replace(t, name=name.removeprefix(root)) for name, t in own.items() if name.startswith(root)]
    try:
        return prove_declared(
            declared.sites,
            sites,
            structure=structure,
            build=declared.build,
            forward=declared.forward,
            progress=progress,
        )
    except ProofFailed as error:
        what = f"{OWN_CODE}nothing of it could be compared"
        return replace(words, what=what, reason=str(error), seconds=time.perf_counter() - started)


def _key(checkpoint: Checkpoint, sites: Sites) -> str:
    """The config, the row, and the whole structure: every leg of every site with its indices."""
    return digest(
        checkpoint.config, repr(sites.discovered or families().get(sites.model_type)), [repr(s) for s in sites.sites]
    )


def _prove(checkpoint: Checkpoint, sites: Sites, progress: Progress, granularity: str = "channel") -> Proof:
    from wisca_core.equivalence.bench import judge, open_bench
    from wisca_core.equivalence.miniature import build_miniature
    from wisca_core.equivalence.small_config import shrink

    started = time.perf_counter()
    if not sites.sites:
        raise ProofFailed("no pair was found in this checkpoint, so there is no rule to prove.")
    progress("building a miniature", 0, 1)
    config = shrink(checkpoint.config)
    pairs = tuple(dict.fromkeys(site.key.pair for site in sites.sites))
    with workplace("the miniature") as place:
        for name in ("stored", "in memory"):  # a live model's experts may be tensors that no file of its class has
            original = place / name
            original.mkdir()
            build_miniature(config, original, seed=1, as_in_memory=name == "in memory")
            small = open_checkpoint(original)
            small_sites = find_sites(small, sites.discovered, pairs=pairs)
            missing = lacking(sites, small_sites)
            if not missing or checkpoint.kind != "live":
                break
        if missing:
            why = "; ".join(f"{r.what}: {r.reason}" for r in small_sites.refusals[:3])
            raise ProofFailed(
                f"transformers' own {sites.model_type} with this config.json has no {missing}. The weights and "
                "config.json "
                f"disagree about the structure (a bias or norm that one has and the other lacks). {why}".strip()
            )
        bench = open_bench(small, small_sites, place)
        verdict = judge(bench, granularity, progress)
    a = small_sites.attention
    return Proof(
        passed=not verdict.refused,
        rule=sites.family,
        what=f"{a.n_layers} layers, width {a.hidden_size}, {a.n_heads} query heads on {a.n_kv_heads} KV heads, random "
        "biases and gains" + (f", run on {', '.join(bench.inputs)}" if bench.inputs != ("text",) else ""),
        n_cases=len(bench.cases) * verdict.n_trials,
        cases=bench.cases,
        max_rel=verdict.worst,
        liveness=verdict.alive,
        largest_factor=2.0**OCTAVES,
        seconds=time.perf_counter() - started,
        reason="; ".join(dict.fromkeys(reason for _, reason in verdict.refused)),
        not_checked=(OTHER_KERNELS, "sequences longer than 33 tokens in the miniature", *bench.not_run),
        proved=verdict.proved,
        refused=verdict.refused,
    )
