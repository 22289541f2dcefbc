"""Proof by miniature: the very rule that will be used, applied to the model's own architecture made small, judged in
true float64.

Seconds, and no big model in memory. It says that the *rule* is right for this structure; what the rounding of 16-bit
weights does to the real model is the full check's business.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import xxhash

from wisca_core.architecture.families import families
from wisca_core.architecture.find import find_sites
from wisca_core.architecture.site import Refusal, Site, Sites
from wisca_core.checkpoint import Checkpoint, open_checkpoint
from wisca_core.errors import OutputRefused, ProofFailed, UnreadableInput, WiscaError
from wisca_core.exporting.weights import write_weights
from wisca_core.progress import Progress, silent
from wisca_core.rescale import changes, scalings
from wisca_core.storage import folder, read_json, workplace, write_json

# relative to max |output|: right rules read up to 8e-14, the nearest wrong one 6e-7
TOLERANCE = 1e-11
# a one-sided change of a live pair must move the outputs by more than this, or the pair is not run at all
ALIVE = 1e-6
OCTAVES = 10.0  # factors reach 2^10 both ways: modest ones never meet a clip

NOT_RUN = (
    "scaling one side alone does not move the outputs"  # in the reason of a pair that the model holds and never runs
)

PRODUCT = "the product B A"  # how the words of a LoRA adapter's proof begin

FORMAT, VERSION = "wisca-proof", 2


@dataclass(frozen=True)
class Proof:
    """``max_rel``: largest difference relative to max |output| over all cases and factor sets. ``liveness``: the
    smallest relative change when only one side of one site is scaled. ``reason``: why it failed, "" where it passed.
    ``proved`` and ``refused``: labels (``label(site)``: where in the model and which pair), the latter with the reason; it
    has passed where none is refused.
    """

    passed: bool
    rule: str
    what: str  # the miniature in words
    n_cases: int
    cases: tuple[str, ...]
    max_rel: float
    liveness: float
    largest_factor: float
    seconds: float
    versions: Mapping[str, str]
    reason: str = ""
    not_checked: tuple[str, ...] = ()
    proved: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()

    def covers(self, site: Site) -> bool:
        """Whether the rule of this site was proved. A proof that failed as a whole names no label, and covers nothing."""
        return label(site) in self.proved and (self.passed or bool(self.refused))

    @property
    def kind(self) -> str:
        """What it is called: a LoRA adapter is proved by its products first."""
        return "Proof by products" if self.what.startswith(PRODUCT) else "Proof by miniature"

    def to_json(self) -> dict:
        out = asdict(self)
        for name in ("max_rel", "liveness"):  # JSON has no infinity
            out[name] = repr(out[name])
        return out

    @classmethod
    def from_json(cls, data: dict) -> "Proof":
        fields = {name: data[name] for name in cls.__dataclass_fields__}
        for name in ("max_rel", "liveness"):
            fields[name] = float(fields[name])
        for name in ("cases", "not_checked", "proved"):
            fields[name] = tuple(fields[name])
        fields["refused"] = tuple((str(name), str(reason)) for name, reason in fields["refused"])
        return cls(**fields)


def prove(checkpoint: Checkpoint, sites: Sites, progress: Progress = silent) -> Proof:
    """The proof for this checkpoint's structure: the kept one, or a fresh one, which is then kept.

    Never raises for a rule that is wrong or a model that cannot be built: the proof has then not ``passed`` and says
    why. A LoRA adapter is proved without its base model; ``adapter_proof.prove_adapter`` takes one.
    """
    if checkpoint.adapter_json:
        from wisca_core.equivalence.adapter_proof import prove_adapter

        return prove_adapter(checkpoint, sites, progress=progress)
    kept = cached_proof(checkpoint, sites)
    if kept is not None:
        return kept
    from wisca_core.equivalence.miniature import quiet

    started = time.perf_counter()
    try:
        with quiet():  # true float64 is a change of the whole process as well
            proof = _prove(checkpoint, sites, progress)
    except WiscaError as error:
        if error.exit_code == 130:
            raise
        proof = _failed(sites, str(error), time.perf_counter() - started)
    with suppress(OutputRefused):  # a full disk only costs the next proof
        write_json(_path(checkpoint, sites), FORMAT, VERSION, proof.to_json())
    return proof


def cached_proof(checkpoint: Checkpoint, sites: Sites) -> Proof | None:
    """The kept proof of this structure under the installed versions, or None."""
    if checkpoint.adapter_json:
        from wisca_core.equivalence.adapter_proof import cached_adapter_proof

        return cached_adapter_proof(checkpoint, sites)
    try:
        return Proof.from_json(read_json(_path(checkpoint, sites), FORMAT, VERSION))
    except (UnreadableInput, KeyError, TypeError, ValueError):
        return None


def versions() -> dict[str, str]:
    """Of everything a proof depends on."""
    return {name: metadata.version(name) for name in ("wisca", "torch", "transformers")}


def _path(checkpoint: Checkpoint, sites: Sites) -> Path:
    key = json.dumps(
        [
            checkpoint.config,
            sorted(structure(sites)),
            versions(),
            repr(sites.discovered or families().get(sites.model_type)),
        ],
        sort_keys=True,
    )
    return folder("proofs") / f"{xxhash.xxh3_128(key.encode()).hexdigest()}.json"


def label(site: Site) -> str:
    """Where in the model the pair sits and which it is, without layer and expert: "decoder.self.qk"."""
    return f"{site.block}.{site.key.pair}"


def proved_only(sites: Sites, proof: Proof) -> Sites:
    """The sites whose rule was proved; the others become refusals with the reason."""
    reasons = dict(proof.refused)
    refused = tuple(
        Refusal(s.name, reasons.get(label(s), proof.reason or "its rule was not proved"))
        for s in sites.sites
        if not proof.covers(s)
    )
    return replace(sites.only(proof.covers), refusals=(*sites.refusals, *refused))


def check_covers(proof: Proof, sites: Sites, names: Iterable[str]) -> None:
    """Raises ProofFailed where the rule of one of these sites was not proved, or nothing was."""
    unproved = next((name for name in names if not proof.covers(sites[name])), "")
    is_lost = not proof.proved or not (proof.passed or proof.refused)
    if is_lost or unproved:
        reason = dict(proof.refused).get(label(sites[unproved]), "") if unproved else ""
        of = "" if is_lost else f" for {unproved}"
        raise ProofFailed(
            f"the {proof.kind[:1].lower()}{proof.kind[1:]} failed{of}: {reason or proof.reason} Nothing was written."
        )


def structure(sites: Sites) -> set[str]:
    """What kinds of site there are, sizes left out: the miniature must show every one of them."""
    return {_kind(site) for site in sites.sites}


def _kind(site: Site) -> str:
    legs = [
        (
            leg.role,
            leg.side,
            leg.axis,
            leg.measured,
            leg.exponent,
            leg.offset,
            leg.index.sizes[0] > 1,
            leg.index.sizes[-2] > 1,
            bool(leg.fixed),
        )
        for leg in site.legs
    ]
    layout, width, _ = site.rotary
    dim = site.legs[0].index.sizes[-1]
    rotary = (layout, "none" if not width else "all" if width >= dim else "part", len(site.exact_ties))
    return f"{site.block} {site.key.pair} {site.live} {rotary} {legs}"


def _failed(sites: Sites, reason: str, seconds: float) -> Proof:
    return Proof(False, sites.family, "", 0, (), float("inf"), 0.0, 0.0, seconds, versions(), reason)


def _prove(checkpoint: Checkpoint, sites: Sites, progress: Progress, granularity: str = "channel") -> Proof:
    from wisca_core.equivalence.miniature import build_miniature
    from wisca_core.equivalence.small_config import shrink

    started = time.perf_counter()
    if not sites.sites:
        raise ProofFailed("no pair was found in this checkpoint, so there is no rule to prove.")
    progress("building a miniature", 0, 1)
    config = shrink(checkpoint.config)
    pairs = tuple(dict.fromkeys(site.key.pair for site in sites.sites))
    with workplace("the miniature") as place:
        original = place / "original"
        original.mkdir()
        build_miniature(config, original, seed=1)
        small = open_checkpoint(original)
        small_sites = find_sites(small, sites.discovered, pairs=pairs)
        lacking = structure(sites) - structure(small_sites)
        if lacking:
            why = "; ".join(f"{r.what}: {r.reason}" for r in small_sites.refusals[:3])
            raise ProofFailed(
                f"transformers' own {sites.model_type} with this config.json has no pair of the kind "
                f"{sorted(lacking)[0]}; "
                f"the weights and config.json disagree about the structure (a bias or norm that one has and the other "
                f"lacks). {why}"
            )
        bench = open_bench(small, small_sites, place)
        verdict = judge(bench, granularity, progress)
    a = small_sites.attention
    return Proof(
        passed=not verdict.refused,
        rule=sites.family,
        what=f"{a.n_layers} layers, width {a.hidden_size}, {a.n_heads} query heads on {a.n_kv_heads} KV heads, random biases and gains"
        + (f", run on {', '.join(bench.inputs)}" if bench.inputs != ("text",) else ""),
        n_cases=len(bench.cases) * verdict.n_trials,
        cases=bench.cases,
        max_rel=verdict.worst,
        liveness=verdict.alive,
        largest_factor=2.0**OCTAVES,
        seconds=time.perf_counter() - started,
        versions=versions(),
        reason="; ".join(dict.fromkeys(reason for _, reason in verdict.refused)),
        not_checked=(
            "attention kernels other than eager",
            "sequences longer than 33 tokens in the miniature",
            *bench.not_run,
        ),
        proved=verdict.proved,
        refused=verdict.refused,
    )


@dataclass(frozen=True, eq=False)
class Trial:
    """``factors``: site -> factor of each cell; ``side``: the one side that is scaled, None for both."""

    name: str
    factors: dict[str, np.ndarray]
    side: str | None = None


@dataclass(frozen=True)
class Verdict:
    """``worst``: the largest relative difference of a trial, ``held``: that of what was proved; ``alive``: the smallest
    change of a one-sided one, 0 where none was asked for. ``proved`` and ``refused`` as in a Proof."""

    worst: float
    held: float
    alive: float
    n_trials: int
    proved: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class Bench:
    """A miniature with its own outputs. ``moved(trial, granularity)`` rescales it on disk, loads it again and gives the
    Difference of the outputs; ``lives(trial, granularity)`` how far they move at least. ``not_run``: towers that no case
    reaches."""

    sites: Sites
    cases: tuple[str, ...]
    moved: Callable
    lives: Callable
    not_run: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ("text",)  # what the miniature was run on
    on: Callable[[Sites], "Bench"] | None = None  # the same miniature and outputs with other sites


def open_bench(small: Checkpoint, sites: Sites, place: Path) -> Bench:
    """``small``: the miniature's checkpoint, ``place``: a folder for its rescaled copies. ProofFailed where it does not
    repeat its own outputs."""
    from wisca_core.equivalence.inputs import takes
    from wisca_core.equivalence.miniature import load
    from wisca_core.equivalence.outputs import difference, outputs

    model = load(small.path)
    reference = outputs(model, seed=2)
    repeat = difference(reference, outputs(model, seed=2))
    if repeat.max_rel > TOLERANCE:
        raise ProofFailed(
            f"the miniature does not repeat its own outputs ({repeat.max_rel:.1e} relative in {repeat.worst_case})."
        )

    return _bench(small, sites, place, reference, takes(model))


def _bench(small: Checkpoint, sites: Sites, place: Path, reference, inputs: tuple[str, ...]) -> Bench:
    from wisca_core.equivalence.miniature import load
    from wisca_core.equivalence.outputs import difference, first_move, outputs

    def changed_model(trial: Trial, granularity: str):
        changed = place / "changed"
        _apply(small, sites, trial.factors, granularity, trial.side, changed)
        try:
            return load(changed)
        finally:
            shutil.rmtree(changed)

    def moved(trial: Trial, granularity: str):
        return difference(reference, outputs(changed_model(trial, granularity), seed=2))

    def lives(trial: Trial, granularity: str) -> float:
        return first_move(reference, changed_model(trial, granularity), 2, ALIVE)

    return Bench(
        sites,
        tuple(reference.cases),
        moved,
        lives,
        reference.not_run,
        inputs,
        lambda others: _bench(small, others, place, reference, inputs),
    )


def judge(bench: Bench, granularity: str, progress: Progress, controls: bool = True) -> Verdict:
    """Every label by itself, both ways and for life; then all that passed together, each side pushed to the extreme.

    ``controls``: whether to look for life; what is alive at one granularity is so at every other.
    """
    sites = bench.sites
    rng = np.random.default_rng(3)

    def octaves(chosen: list[Site], low: float, high: float) -> dict[str, np.ndarray]:
        return {s.name: np.exp2(rng.uniform(low, high, s.n_cells(granularity))) for s in chosen}

    by_label: dict[str, list[Site]] = {}
    for site in sites.sites:
        by_label.setdefault(label(site), []).append(site)
    total, done, n_trials = len(sites.sites) + len(by_label) + 2, 0, 0
    worst, where, alive = 0.0, "", float("inf")
    by_itself: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name, own in by_label.items():
        progress("proving the rule on a miniature", done, total)
        found = bench.moved(Trial("factors both ways", octaves(own, -OCTAVES, OCTAVES)), granularity)
        n_trials += 1
        by_itself[name] = found.max_rel
        if not found.max_rel <= worst:
            worst, where = found.max_rel, f"factors both ways, {found.worst_case}"
        if not found.max_rel <= TOLERANCE:
            refused[name] = (
                f"the outputs differ by {found.max_rel:.1e} relative (factors both ways, {found.worst_case}); {TOLERANCE:.0e} is the bound."
            )
        living: set[tuple] = set()
        dead: dict[tuple, str] = {}
        for site in own if controls and name not in refused else ():
            progress("proving the rule on a miniature", done, total)
            done += 1
            # a router may never choose one of a layer's experts: one that is chosen stands for all, they are alike
            place = (site.key.layer, site.key.expert >= 0, 0 if site.key.expert >= 0 else site.name)
            if place in living:
                continue
            # a norm swallows a uniform factor, so the control is not uniform
            n_cells = site.n_cells(granularity)
            factors = np.exp2(rng.uniform(-1, 1, n_cells) if n_cells > 1 else np.array([1.0]))
            one_sided = bench.lives(Trial(site.name, {site.name: factors}, "left"), granularity)
            if one_sided > ALIVE:
                living.add(place)
                alive = min(alive, one_sided)
            else:
                dead[place] = site.name
                if site.key.expert < 0:  # refused already, and a dead site costs every case
                    break
        for place in dead.keys() - living:
            refused.setdefault(name, f"{dead[place]}: {NOT_RUN}, so this pair is not run and nothing is proved.")
        done += 1
    left = [site for site in sites.sites if label(site) not in refused]
    together = 0.0
    for name, low, high in (
        (("left side up", OCTAVES - 1, OCTAVES), ("right side up", -OCTAVES, 1 - OCTAVES)) if left else ()
    ):
        progress("proving the rule on a miniature", total - 1, total)
        found = bench.moved(Trial(name, octaves(left, low, high)), granularity)
        n_trials += 1
        together = max(together, found.max_rel)
        if not found.max_rel <= worst:
            worst, where = found.max_rel, f"{name}, {found.worst_case}"
        if not found.max_rel <= TOLERANCE:
            reason = f"the outputs differ by {found.max_rel:.1e} relative ({where}); {TOLERANCE:.0e} is the bound."
            refused = dict.fromkeys(by_label, reason) | refused  # what failed by itself keeps its own reason
            break
    progress("proving the rule on a miniature", total, total)
    proved = tuple(name for name in by_label if name not in refused)
    held = max((by_itself[name] for name in proved), default=0.0)
    return Verdict(
        worst,
        max(held, together) if proved else 0.0,
        alive if left and controls else 0.0,
        n_trials,
        proved,
        tuple(refused.items()),
    )


def _apply(
    checkpoint: Checkpoint, sites: Sites, factors: dict[str, np.ndarray], granularity: str, side: str | None, out: Path
) -> None:
    out.mkdir()
    shapes = {t.name: t.shape for t in checkpoint.tensors}
    write_weights(checkpoint, changes(scalings(sites, factors, granularity, shapes, side)), out)
    (out / "config.json").write_text(checkpoint.config_json, encoding="utf-8")
