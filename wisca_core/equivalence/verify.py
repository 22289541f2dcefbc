"""Two checkpoints compared: is the second the first one rescaled, and how exactly?

The weights decide, the outputs are shown beside: outputs alone cannot tell a rounded right rescale from a wrong one.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch

from wisca_core.architecture.discovery import sites_of
from wisca_core.architecture.find import pairs_to_find
from wisca_core.architecture.site import PAIRS, Leg, Site, Sites
from wisca_core.checkpoint import Checkpoint, Reader, TensorInfo
from wisca_core.equivalence.basis_proof import check_basis
from wisca_core.equivalence.checking import compare_folder
from wisca_core.equivalence.full_check import FullCheck, not_covered
from wisca_core.equivalence.proof import Proof, label
from wisca_core.equivalence.proving import prove
from wisca_core.equivalence.trial import discover
from wisca_core.errors import Cancelled, PlanMismatch, ProofFailed, UnreadableInput, WiscaError
from wisca_core.methods import method
from wisca_core.planning.bases import BASES, Bases
from wisca_core.planning.factors import Factors
from wisca_core.progress import Progress, silent
from wisca_core.rescale import along_axis
from wisca_core.rescale_basis import all_changes
from wisca_core.words import join_names, plural

BIT_IDENTICAL = "bit-identical"
ROUNDING = "equivalent up to rounding"
DIFFERENT = "not equivalent"
MIXING = method("gram")  # the method whose changes of basis an export may have been made by


@dataclass(frozen=True)
class Verification:
    """``reasons``: what decided. ``n_changed``: tensors whose bytes differ. ``n_factors``: tie groups with a factor
    other than 1. ``smallest``, ``largest``: of these factors. ``powers_of_two``: whether all are.
    """

    verdict: str
    reasons: tuple[str, ...]
    n_tensors: int
    n_changed: int
    n_factors: int
    smallest: float
    largest: float
    powers_of_two: bool
    proof: Proof | None
    check: FullCheck | None
    not_checked: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return int(self.verdict == DIFFERENT)

    def to_json(self) -> dict:
        return asdict(self) | {
            "proof": self.proof.to_json() if self.proof else None,
            "check": self.check.to_json() if self.check else None,
        }


def verify(before: Checkpoint, after: Checkpoint, progress: Progress = silent, run_models: bool = True) -> Verification:
    """One of *bit-identical*, *equivalent up to rounding*, *not equivalent* (method: weights explained by one factor a
    tie group within one unit in the last place, everything else bit-equal, the rule proved, and the outputs).

    *bit-identical* asks for more than equal outputs on the cases tried: the weights must also be explained by powers of
    two (or be equal), since a changed row that no case meets leaves every output as it was. ``run_models=False``
    compares weights alone.
    """
    before.check_rescalable()
    after.check_rescalable()
    sites = sites_of(before, pairs_to_find(PAIRS), progress, search=discover)
    layout = _compare_layout(before, after)
    if layout:
        return _different(layout, before, 0)
    bases, not_used = _bases_beside(after, sites)
    found = _compare_weights(before, after, sites, progress, bases)
    n = len(before.tensors)
    if found.unexplained:
        return _different([*not_used, *found.unexplained], before, found.n_changed)
    if not found.n_changed:
        same_config = _function_config(before) == _function_config(after)
        if not same_config:
            return _different(
                ["every tensor is bit-equal, but config.json differs in more than names and versions."], before, 0
            )
        return Verification(
            BIT_IDENTICAL,
            ("every tensor is bit-equal.",),
            n,
            0,
            0,
            1.0,
            1.0,
            True,
            None,
            None,
            ("outputs: equal weights need no run",),
        )
    if _function_config(before) != _function_config(after):
        return _different(["config.json differs in more than names and versions."], before, found.n_changed)
    # those of the pairs that changed: the others, refused or not, do not matter, and their proof is the one a rescale
    # kept
    changed = {sites[name].key.pair for name in found.changed_sites}
    pairs = changed | set(pairs_to_find(changed))
    proof = prove(before, sites.only(lambda site: site.key.pair in pairs), progress)
    mixed = [name for name in bases.sites if name in found.changed_sites]
    try:
        of_bases = check_basis(before, [sites[name] for name in mixed], MIXING, "")
    except ProofFailed as error:
        return _different([str(error)], before, found.n_changed)
    unproved = sorted({label(sites[name]) for name in found.changed_sites if not proof.covers(sites[name])})
    if unproved:
        reasons = dict(proof.refused)
        return _different(
            [
                f"the rule {proof.rule} is not proved for {one} of this model: {reasons.get(one, proof.reason)}"
                for one in unproved
            ],
            before,
            found.n_changed,
        )
    sites = sites.only(lambda site: site.name in found.changed_sites)
    check, not_run = (
        _run(before, after, sites, progress) if run_models else (None, "outputs of the models: not asked for")
    )
    not_checked = not_covered(proof, check) if check else (*proof.not_checked, not_run)
    how = "no value moved by more than one unit in the last place"  # as after a rescale and its undo
    if found.n_factors:
        how = (
            f"one factor a tie group ({found.n_factors:,} groups, factors {found.smallest:.4g} to {found.largest:.4g}) "
            "explains every value within one unit in the last place"
        )
    if mixed:
        proved = f" (exact on a miniature, {of_bases.max_rel:.1e})" if of_bases else ""
        n_bases = sum(len(bases.sites[name]) for name in mixed)
        how = f"{plural(n_bases, 'change')} of basis, which lie in {BASES} beside them{proved}, and then {how}"
    reasons = [f"{found.n_changed} of {n} tensors changed; {how}; all other tensors are bit-equal."]
    verdict = ROUNDING
    if check is not None and check.bit_identical and found.exact:
        verdict = BIT_IDENTICAL
        reasons.append(
            f"every factor is a power of two and no value lost a bit; all {check.n_values:,} compared outputs are "
            "bit-equal."
        )
    elif check is not None:
        reasons.append(check.words())
    return Verification(
        verdict,
        tuple(reasons),
        n,
        found.n_changed,
        found.n_factors,
        found.smallest,
        found.largest,
        found.powers_of_two,
        proof,
        check,
        not_checked,
    )


def _bases_beside(after: Checkpoint, sites: Sites) -> tuple[Bases, tuple[str, ...]]:
    """The changes of basis that an export says it was made by, none where it says nothing that could be so; and then
    why. They prove nothing: the weights have to be what they make of the others, to the last place.
    """
    if not os.path.lexists(after.path / BASES):
        return Bases(), ()
    try:
        mixed = [site.labels("group") for site in sites.sites if MIXING.changes_basis_of(site.key.pair)]
        n_values = sum(len(labels) ** 2 // (int(labels.max()) + 1) for labels in mixed)
        found = Bases.read(after.path / BASES, most_bytes=8 * n_values + 2**20)  # what these pairs can have, no more
        found.check(sites, MIXING)
    except (UnreadableInput, PlanMismatch) as error:
        return Bases(), (f"{BASES} says by which changes of basis it was made, and cannot be used: {error}",)
    return found, ()


def _run(before: Checkpoint, after: Checkpoint, sites: Sites, progress: Progress) -> tuple[FullCheck | None, str]:
    try:
        return compare_folder(before, sites, None, after, progress), ""
    except Cancelled:
        raise
    except WiscaError as error:
        return None, f"outputs of the models: {error}"


def _different(reasons: list[str], before: Checkpoint, n_changed: int) -> Verification:
    shown = reasons[:10] + ([f"and {len(reasons) - 10} more"] if len(reasons) > 10 else [])
    return Verification(
        DIFFERENT,
        tuple(shown),
        len(before.tensors),
        n_changed,
        0,
        1.0,
        1.0,
        False,
        None,
        None,
        ("outputs of the models: the weights decide",),
    )


# keys of config.json that say nothing about the function
_NAMES = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "auto_map")
_ADAPTER_NAMES = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "task_type", "auto_mapping")


def _function_config(checkpoint: Checkpoint) -> str:
    """As text: a NaN is equal to itself there."""
    left_out = _ADAPTER_NAMES if checkpoint.adapter_json else _NAMES
    config = checkpoint.adapter if checkpoint.adapter_json else checkpoint.config
    return json.dumps({key: value for key, value in config.items() if key not in left_out}, sort_keys=True)


def _compare_layout(before: Checkpoint, after: Checkpoint) -> list[str]:
    reasons = []
    first, second = _with_aliases(before), _with_aliases(after)
    # a torch file may say that two names share a storage where a safetensors file leaves one out, which transformers
    # ties again
    aliases = {alias for alias, _ in before.aliases + after.aliases}
    for name in sorted((first.keys() ^ second.keys()) - aliases):
        reasons.append(f"{name} is only in the {'first' if name in first else 'second'} checkpoint.")
    in_both = sorted(first.keys() & second.keys())
    converted: dict[tuple[str, str], list[str]] = {}
    for name in in_both:
        a, b = first[name], second[name]
        if a.shape != b.shape:
            reasons.append(f"{name} is {a.dtype} {a.shape} in the first and {b.dtype} {b.shape} in the second.")
        elif a.dtype != b.dtype:
            converted.setdefault((a.dtype, b.dtype), []).append(name)
    for (one, other), names in converted.items():
        reasons.append(
            f"{len(names)} of {len(in_both)} tensors are {one} in the first and {other} in the second ({names[0]}"
            f"{', ...' if len(names) > 1 else ''}). Values are compared in one dtype: store both in the same."
        )
    return reasons


def _with_aliases(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    return dict(checkpoint.by_name) | {alias: checkpoint.by_name[owner] for alias, owner in checkpoint.aliases}


@dataclass
class _WeightChanges:
    unexplained: list[str]
    n_changed: int = 0
    n_factors: int = 0
    smallest: float = 1.0
    largest: float = 1.0
    powers_of_two: bool = True
    exact: bool = True  # every value is the old one times its power of two, to the bit
    changed_sites: frozenset[str] = (
        frozenset()
    )  # names of the sites with a factor other than 1, or else of all whose bits differ


def _compare_weights(
    before: Checkpoint, after: Checkpoint, sites: Sites, progress: Progress, bases: Bases
) -> _WeightChanges:
    legs: dict[str, list[tuple[Site, Leg]]] = {}
    for site in sites.sites:
        for leg in site.legs:
            legs.setdefault(leg.tensor, []).append((site, leg))
    # per tie group, the factors that every value met so far allows: low <= log-free s <= high
    low = {s.name: np.zeros(s.n_cells("channel")) for s in sites.sites}
    high = {s.name: np.full(s.n_cells("channel"), np.inf) for s in sites.sites}
    found = _WeightChanges([])
    changed: list[str] = []
    total = sum(t.n_bytes for t in before.tensors)
    done = 0
    both = _with_aliases(before).keys() & _with_aliases(after).keys()
    mixing = all_changes(before, sites, Factors("channel"), bases)
    with Reader(before) as stored, Reader(before, mixing) as a, Reader(after) as b:
        for name in sorted(
            both - before.by_name.keys()
        ):  # an alias in the first, perhaps a tensor of its own in the second
            if not _bits_equal(a, b, name):
                found.n_changed += 1
                found.unexplained.append(f"{name} differs and is in no pair that may be rescaled.")
        for tensor in before.tensors:
            if tensor.name not in both:
                continue
            progress("comparing weights", done, total)
            done += tensor.n_bytes
            if tensor.name not in mixing and _bits_equal(a, b, tensor.name):
                continue
            found.n_changed += not _bits_equal(stored, b, tensor.name)
            if tensor.name not in legs:
                found.unexplained.append(f"{tensor.name} differs and is in no pair that may be rescaled.")
                continue
            changed.append(tensor.name)
        touched = {site.name for name in changed for site, _ in legs[name]}
        for name in changed:
            found.unexplained += _narrow(a, b, name, legs[name], low, high)
        for name in dict.fromkeys(leg.tensor for site in sites.sites if site.name in touched for leg in site.legs):
            if name not in changed and name in both:  # a factor of 1 on this side holds the other side to it
                _narrow(a, a, name, legs[name], low, high)
        if found.unexplained:
            return found
        factors = {}
        for site in sites.sites:
            lo, hi = low[site.name], high[site.name]
            bad = np.flatnonzero(lo > hi)
            if len(bad):
                names = join_names(list(dict.fromkeys(leg.tensor for leg in site.legs if leg.measured)))
                found.unexplained.append(
                    f"{site.name}: no single factor explains both sides of tie group {bad[0]} ({names}; the values "
                    f"allow {lo[bad[0]]:.6g} from below and {hi[bad[0]]:.6g} from above)."
                )
                continue
            factors[site.name] = _simplest(lo, hi)
        if found.unexplained:
            return found
        every = np.concatenate(list(factors.values())) if factors else np.ones(1)
        moved = every[every != 1]
        found.changed_sites = frozenset(
            {*bases.sites, *(name for name, f in factors.items() if (f != 1).any())} or touched
        )
        found.n_factors = len(moved)
        found.smallest, found.largest = (float(moved.min()), float(moved.max())) if len(moved) else (1.0, 1.0)
        found.powers_of_two = bool((np.frexp(every)[0] == 0.5).all())
        found.exact = (
            found.powers_of_two and not bases and all(_exactly(a, b, name, legs[name], factors) for name in changed)
        )
    return found


def _simplest(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """In each interval: 1 if allowed, else a power of two, else the geometric middle; 1 where nothing was learned."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        middle = np.where(np.isfinite(high) & (low > 0), np.sqrt(low) * np.sqrt(high), np.where(low > 0, low, 1.0))
        power = np.exp2(np.rint(np.log2(middle)))
    power = np.where((power >= low) & (power <= high), power, middle)
    return np.where((low <= 1) & (high >= 1), 1.0, power)


def _bits_equal(a: Reader, b: Reader, name: str) -> bool:
    return all(bytes(x) == bytes(y) for x, y in zip(a.raw(name), b.raw(name)))


def _narrow(a: Reader, b: Reader, name: str, legs: list[tuple[Site, Leg]], low: Mapping, high: Mapping) -> list[str]:
    """Narrow the factors that the values of one tensor allow: each new value within one unit in the last place of old x
    factor. Returns what no factor explains.
    """
    out: list[str] = []
    shape = a.checkpoint.by_name[name].shape
    axes = legs[0][1].axes
    if any(leg.axes != axes for _, leg in legs):
        return [f"{name} belongs to pairs on two of its axes; telling their factors apart is not known yet."]
    kept = [shape[axis] for axis in axes]
    n = math.prod(kept)
    lo, hi, bad, differs = np.zeros(kept), np.full(kept, np.inf), np.zeros(kept, bool), np.zeros(kept, bool)
    over = tuple(d for d in range(len(shape)) if d not in axes) or (len(shape),)
    offset = legs[0][1].offset
    for (start, x), (_, y) in zip(a.blocks(name), b.blocks(name)):
        x, y = (t.unsqueeze(-1) if over[0] == t.dim() else t for t in (x, y))
        at = slice(start, start + x.shape[0]) if axes[0] == 0 else slice(None)
        block_lo, block_hi, block_bad = _bounds(x, y, offset)
        lo[at] = np.maximum(lo[at], block_lo.amax(over).numpy())
        hi[at] = np.minimum(hi[at], block_hi.amin(over).numpy())
        bad[at] |= block_bad.sum(over).numpy() > 0
        differs[at] |= (~_bit_equal(x, y)).sum(over).numpy() > 0
    lo, hi, bad, differs = (values.reshape(-1) for values in (lo, hi, bad, differs))
    covered = np.zeros(n, bool)
    for site, leg in legs:
        index = leg.flat(shape)
        covered[index] = True
        cell = site.labels("channel")[leg.channel.indices()]
        e = leg.signed_exponent
        with np.errstate(divide="ignore"):
            bounds = (lo[index] ** (1 / e), hi[index] ** (1 / e))
        if e < 0:
            bounds = bounds[::-1]
        np.maximum.at(low[site.name], cell, bounds[0])
        np.minimum.at(high[site.name], cell, bounds[1])
        if bad[index].any():
            out.append(
                f"{name}: a value changed its sign, became or was zero, or is not finite where its neighbour channel "
                f"{int(index[bad[index]][0])} was rescaled; no positive factor does that."
            )
    if out:
        return out
    if (lo > hi)[covered].any():
        at = int(np.flatnonzero(covered & (lo > hi))[0])
        out.append(
            f"{name}: no single factor explains all values of its channel {at} (they allow {lo[at]:.6g} from below and "
            f"{hi[at]:.6g} from above)."
        )
    if (differs & ~covered).any():
        out.append(f"{name} differs at index {int(np.flatnonzero(differs & ~covered)[0])}, which is in no pair.")
    return out


def _bounds(x: torch.Tensor, y: torch.Tensor, offset: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float64 (low, high, bad) of each value: the factors f > 0 with |y - x f| <= ulp(y), stored values plus
    ``offset``.
    """
    finfo = torch.finfo(y.dtype)
    wide_y = y.double()
    # the unit in the last place of y: 2^(exponent) * eps, never below the smallest subnormal
    exponent = torch.frexp(wide_y)[1].double() - 1
    smallest = finfo.tiny * finfo.eps
    ulp = torch.clamp(torch.exp2(exponent) * finfo.eps, min=smallest)
    ulp = torch.where(wide_y == 0, torch.full_like(ulp, smallest), ulp)
    new, old = wide_y + offset, x.double() + offset
    same = (x == y) & (x == 0) & (offset == 0)  # zero stays zero under every factor
    sign = torch.sign(old)
    # beside it, what float64 itself loses on the way there and here; with an offset that can be many units of a small y
    allowed = ulp + 2.0**-51 * new.abs()
    low, high = (new * sign - allowed) / old.abs(), (new * sign + allowed) / old.abs()
    bad = ((old == 0) & ~same) | (high <= 0) | ~torch.isfinite(new) | ~torch.isfinite(old)
    bad &= ~_bit_equal(x, y)  # values left alone, NaN included, explain themselves
    free = same | bad | ((old == 0) & _bit_equal(x, y)) | ~torch.isfinite(old)
    return (
        torch.where(free, torch.zeros_like(low), low.clamp(min=0)),
        torch.where(free, torch.full_like(high, torch.inf), high),
        bad,
    )


def _bit_equal(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.view(kind) == y.view(kind)


def _exactly(a: Reader, b: Reader, name: str, legs: list[tuple[Site, Leg]], factors: Mapping[str, np.ndarray]) -> bool:
    """Whether every new value is the old one times its power of two in the stored dtype, and back, to the bit."""
    axes, stored = legs[0][1].axes, a.checkpoint.by_name[name].shape
    vector = np.ones([stored[axis] for axis in axes])
    for site, leg in legs:
        if leg.offset:
            return False  # a gain stored as gain - 1 rounds
        vector.reshape(-1)[leg.flat(stored)] *= (
            factors[site.name][site.labels("channel")[leg.channel.indices()]] ** leg.signed_exponent
        )
    for (start, x), (_, y) in zip(a.blocks(name), b.blocks(name)):
        part = torch.from_numpy(vector[start : start + x.shape[0]] if axes[0] == 0 else vector)
        if not torch.equal(x.double() * along_axis(part, axes, x.dim()), y.double()):
            return False
    return True
