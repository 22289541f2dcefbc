"""A rule judged on a miniature: every pair by itself and for life, then all together, in true float64."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wisca_core.architecture.site import Site, Sites
from wisca_core.checkpoint import Checkpoint, Reader, open_checkpoint
from wisca_core.checkpoint.writer import Change, write_weights
from wisca_core.equivalence.proof import ALIVE, OCTAVES, TOLERANCE, label
from wisca_core.errors import ProofFailed
from wisca_core.progress import Progress
from wisca_core.rescale import changes, rescaled_rows, scalings

NOT_RUN = (
    "scaling one side alone does not move the outputs"  # in the reason of a pair that the model holds and never runs
)


@dataclass(frozen=True, eq=False)
class Trial:
    """``factors``: site -> factor of each cell; ``side``: the one side that is scaled, None for both. ``from_disk``:
    the rescaled miniature is written, as an export is, and read again."""

    name: str
    factors: dict[str, np.ndarray]
    side: str | None = None
    from_disk: bool = False


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
    """A miniature with its own outputs. ``moved(trial, granularity)`` rescales it and gives the Difference of the
    outputs; ``lives(trial, granularity)`` how far they move at least. ``not_run``: towers that no case reaches."""

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
    from wisca_core.equivalence.outputs import outputs

    model = load(small.path)
    reference = repeated_outputs(lambda: outputs(model, seed=2))
    return _bench(small, sites, place, reference, takes(model), model)


def repeated_outputs(run: Callable):
    """The Outputs that ``run`` gives. ProofFailed where it gives others when it is called again."""
    from wisca_core.equivalence.outputs import difference

    reference = run()
    repeat = difference(reference, run())
    if repeat.max_rel > TOLERANCE:
        raise ProofFailed(
            f"the miniature does not repeat its own outputs ({repeat.max_rel:.1e} relative in {repeat.worst_case})."
        )
    return reference


def _bench(small: Checkpoint, sites: Sites, place: Path, reference, inputs: tuple[str, ...], model) -> Bench:
    """``model``: the miniature as it was loaded; it is edited and put back where its parameters are the stored
    tensors.
    """
    from wisca_core.equivalence.miniature import load
    from wisca_core.equivalence.outputs import difference, first_move, outputs

    shapes = {t.name: t.shape for t in small.tensors}
    parameters = _as_stored(small, model)
    paired = {leg.tensor for site in sites.sites for leg in site.legs}

    def written(trial: Trial, granularity: str) -> Path:
        scaling = scalings(sites, trial.factors, granularity, shapes, trial.side)
        return write_folder(small, changes(scaling), place / "changed")

    @contextmanager
    def changed_model(trial: Trial, granularity: str):
        scaling = scalings(sites, trial.factors, granularity, shapes, trial.side)
        if not (paired if trial.from_disk else scaling.keys()) <= parameters.keys():
            changed = written(trial, granularity)
            try:
                other = load(changed)
            finally:
                shutil.rmtree(changed)
            yield other
            return
        if trial.from_disk:  # every tensor that was written, into the parameter that was loaded from the one before it
            changed = written(trial, granularity)
            try:
                with Reader(open_checkpoint(changed)) as reader:
                    after = {name: reader.tensor(name) for name in parameters}
            finally:
                shutil.rmtree(changed)
        else:
            after = {name: rescaled_rows(parameters[name].detach(), one) for name, one in scaling.items()}
        before = {name: parameters[name].detach().clone() for name in after}
        try:
            with torch.no_grad():
                for name, tensor in after.items():
                    parameters[name].copy_(tensor)
            yield model
        finally:
            with torch.no_grad():
                for name, tensor in before.items():
                    parameters[name].copy_(tensor)

    def moved(trial: Trial, granularity: str):
        with changed_model(trial, granularity) as other:
            return difference(reference, outputs(other, seed=2))

    def lives(trial: Trial, granularity: str) -> float:
        with changed_model(trial, granularity) as other:
            return first_move(reference, other, 2, ALIVE)

    return Bench(
        sites,
        tuple(reference.cases),
        moved,
        lives,
        reference.not_run,
        inputs,
        lambda others: _bench(small, others, place, reference, inputs, model),
    )


def _as_stored(small: Checkpoint, model) -> dict[str, torch.Tensor]:
    """Tensor name -> the loaded model's parameter, of every tensor that is one, bit for bit: some are put together or
    turned as they are loaded, and what changes those is loaded again.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    plain = {}
    with Reader(small) as reader:
        for name in small.by_name:
            held = parameters.get(name)
            if held is not None and held.dtype == torch.float64 and torch.equal(held, reader.tensor(name)):
                plain[name] = held
    return plain


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
                f"the outputs differ by {found.max_rel:.1e} relative (factors both ways, {found.worst_case}); "
                f"{TOLERANCE:.0e} is the bound."
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
        found = bench.moved(Trial(name, octaves(left, low, high), from_disk=True), granularity)
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


def write_folder(checkpoint: Checkpoint, by_tensor: Mapping[str, Change], out: Path) -> Path:
    """The model or adapter with some tensors changed, as the new folder ``out``."""
    out.mkdir()
    write_weights(checkpoint, by_tensor, out)
    name, config = (
        ("adapter_config", checkpoint.adapter_json) if checkpoint.adapter_json else ("config", checkpoint.config_json)
    )
    (out / f"{name}.json").write_text(config, encoding="utf-8")
    return out
