"""What is done with an opened model, one function a step: prove, plan, export, verify, undo.

A model may be given as what ``open`` returns or as what it takes. Each function proves, measures and checks what it
needs; nothing has to be kept matching by hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint
from wisca_core.equivalence.basis_proof import bases_proved
from wisca_core.equivalence.full_check import FullCheck, why_not_checked
from wisca_core.equivalence.proof import Proof, check_covers
from wisca_core.equivalence.proving import prove as prove_sites
from wisca_core.errors import BadOption, CheckNotRun, ConfigMismatch, ProofFailed, UnknownArchitecture
from wisca_core.exporting.export import export as write_export
from wisca_core.exporting.pair import AdapterExport, export_pair
from wisca_core.exporting.place import refuse_place
from wisca_core.methods import method as of_name
from wisca_core.model import Model, open_model
from wisca_core.planning.decide import decide
from wisca_core.planning.options import LayerRange, Options, default_pairs, parse_layers, parse_pairs
from wisca_core.planning.plan import Plan, check_not_empty, decision_of, make_plan, undo_plan
from wisca_core.progress import Progress, silent
from wisca_core.rescale_basis import with_bases

if TYPE_CHECKING:
    from wisca_core.equivalence.verify import Verification

AnyModel = Model | Checkpoint | str | os.PathLike


def prove(model: AnyModel, *, base: AnyModel | None = None, progress: Progress = silent) -> Proof:
    """The proof that the rule of this model is right: on a miniature of its config, in true float64. Kept once made.

    ``base``: of a LoRA adapter, the model it belongs to, to prove it on. Never raises for a rule that is wrong or a
    model that cannot be built: the proof has then not ``passed``, and ``reason`` says why. Raises Cancelled.

    >>> import wisca_core as wisca
    >>> proof = wisca.prove("sample_runs/gqa-docs/checkpoint-3600")
    >>> proof.passed, proof.max_rel < 1e-11, proof.proved
    (True, True, ('decoder.self.qk', 'decoder.self.vo'))
    """
    opened = open_model(model, progress=progress)
    on = None if base is None else open_model(base, progress=progress).checkpoint

    def make() -> Proof:
        return prove_sites(opened.checkpoint, opened.sites, progress, on)

    return opened.keep(("proof", str(on.path) if on else ""), make)


def plan(
    model: AnyModel,
    *,
    pairs: Iterable[str] | str | None = None,
    granularity: str = "tensor",
    norm: str = "l1",
    strength: float = 1.0,
    layers: str | Sequence[LayerRange] = (),
    exact: bool = False,
    exclude: Iterable[str] = (),
    method: str = Options.method,
    progress: Progress = silent,
) -> Plan:
    """The factors that balance the model, as a value: ``factors``, one a tie group of each site, and ``refusals`` with
    reasons.

    ``pairs``: of qk, vo, mlp and lora, names or text such as "qk,vo"; None: the paper's QK and VO, or all that a model
    without those has. ``granularity``: "tensor", "group" (a KV group) or "channel". ``norm``: "l1" (the paper's), "l2",
    "max" or "rms". ``strength``: 1 balances fully, 0 changes nothing. ``layers``: "0-3,7", "encoder:0-3". ``exact``:
    factors are powers of two, which round no bf16 or fp32 weight. ``exclude``: names of sites. ``method``: "wisca", or
    "gram", the full change of basis of VO and LoRA pairs (``bases``, one a KV group) after which the Gram matrices of
    both sides are equal.

    What was not proved is among the refusals. Measures the weights where nobody has. Raises BadOption.

    >>> import wisca_core as wisca
    >>> plan = wisca.plan("sample_runs/gqa-docs/checkpoint-3600", pairs="qk", exact=True)
    >>> plan.factors.sites[0], len(plan.refusals)
    (('decoder.0.self.qk', (0.5,)), 0)
    """
    named = parse_pairs(pairs or ())
    opened = open_model(model, pairs=named, progress=progress)
    options = Options(
        named or default_pairs(opened.sites),
        granularity,
        norm,
        float(strength),
        parse_layers(layers) if isinstance(layers, str) else tuple(layers),
        exact,
        tuple(exclude),
        method,
    )
    options.check_against(opened.sites)
    opened.measured(progress)
    proved = opened.proved(prove(opened, progress=progress))
    sites = bases_proved(opened.checkpoint, proved.sites, of_name(method))
    return make_plan(with_bases(decide(proved.patterns.of(sites), options), opened.checkpoint, progress))


def undo(report: str | os.PathLike) -> Plan:
    """The plan that takes an export back, from its wisca_report.json: export it from the exported folder. Exact where
    every factor is a power of two, else up to one rounding a weight. Raises UnreadableInput, PlanMismatch.

    >>> import wisca_core as wisca
    >>> model = wisca.open("sample_runs/gqa-docs/checkpoint-3600")
    >>> there = wisca.export(model, wisca.plan(model, exact=True), "there", check=False)
    >>> back = wisca.export("there", wisca.undo(there.report), "back", check=False)
    >>> wisca.verify(model, "back").reasons
    ('every tensor is bit-equal.',)
    """
    return undo_plan(Path(report))


@dataclass(frozen=True)
class Exported:
    """What an export left behind. ``report``: its wisca_report.json, from which ``undo`` makes the way back.

    ``check``: the outputs of both models compared; None where ``not_run`` says why. ``adapters``: the folders of the
    adapters that went along.
    """

    folder: Path
    report: Path
    proof: Proof
    check: FullCheck | None
    not_run: str = ""
    adapters: tuple[Path, ...] = ()


def export(
    model: AnyModel,
    plan: Plan,
    out: str | os.PathLike,
    *,
    check: bool | None = None,
    base: AnyModel | None = None,
    adapters: Sequence[AnyModel] = (),
    adapter_outs: Sequence[str | os.PathLike] = (),
    progress: Progress = silent,
) -> Exported:
    """Write the model with ``plan`` applied into the new folder ``out``, proved to be the same function.

    ``check``: run both models on the same tokens before the folder is kept (None: where it can be done). ``base``: of
    a LoRA adapter, to prove it on. ``adapters``: LoRA adapters of this model, which then follow its new weights into
    ``adapter_outs`` (OUT-NAME), proved with it.

    Raises ProofFailed, PlanMismatch, NothingToRescale, CheckNotRun, UnsupportedCheckpoint, OutputRefused (``out``
    exists, is inside the model, disk full), CheckpointChanged, Cancelled; in every case nothing is left behind.

    >>> import wisca_core as wisca
    >>> model = wisca.open("sample_runs/gqa-docs/checkpoint-3600")
    >>> done = wisca.export(model, wisca.plan(model, exact=True), "exported", check=False)
    >>> done.folder.name, done.report.name, done.proof.passed, done.not_run
    ('exported', 'wisca_report.json', True, 'not asked for')
    """
    opened = open_model(model, pairs=plan.options.pairs, progress=progress)
    opened.checkpoint.check_rescalable()
    check_not_empty(plan)
    out = Path(out)
    refuse_place(opened.checkpoint, out)
    decision_of(plan, opened.measured(progress))  # raises PlanMismatch where the weights are not those it was made for
    proof = prove(opened, base=base, progress=progress)
    names = plan.sites
    check_covers(proof, opened.sites, names)
    sites = opened.proved(proof).sites
    beside = _beside(opened.checkpoint, sites, adapters, adapter_outs, out, progress)
    for one in beside:
        check_covers(one.proof, sites, names)
    not_run = why_not_checked(opened.checkpoint, check)
    checked: list[FullCheck | str] = []

    def compared(written: Path, progress: Progress) -> FullCheck | str:
        checked.append(_compare(opened.checkpoint, sites, plan, written, check is True, progress))
        return checked[-1]

    ran = None if not_run else compared
    if beside:
        report, *others = export_pair(opened.checkpoint, sites, plan, out, proof, beside, ran, progress)
    else:
        report, others = write_export(opened.checkpoint, sites, plan, out, proof, ran, progress), []
    found = checked[0] if checked else not_run
    done, not_run = (None, found) if isinstance(found, str) else (found, "")
    return Exported(report.parent, report, proof, done, not_run, tuple(other.parent for other in others))


def _compare(
    checkpoint: Checkpoint, sites: Sites, plan: Plan, written: Path, is_asked: bool, progress: Progress
) -> FullCheck | str:
    """The check, or why it could not be run where it was not asked for."""
    from wisca_core.equivalence.checking import compare_folder  # torch: an export itself needs none

    try:
        return compare_folder(checkpoint, sites, plan, written, progress)
    except CheckNotRun as error:
        if is_asked:
            raise CheckNotRun(
                f"the full check was asked for and cannot be run: {error} Nothing was written."
            ) from error
        return str(error)
    except (ConfigMismatch, UnknownArchitecture) as error:  # the original could be run, the copy cannot
        raise ProofFailed(f"{error} Nothing was written; an export without the full check runs no model.") from error


def _beside(
    base: Checkpoint,
    sites,
    adapters: Sequence[AnyModel],
    outs: Sequence[str | os.PathLike],
    out: Path,
    progress: Progress,
) -> list[AdapterExport]:
    opened = [open_model(adapter, progress=progress).checkpoint for adapter in adapters]
    for adapter in opened:
        if base.adapter_json or not adapter.adapter_json:
            raise BadOption(
                f"adapters: {adapter.path} cannot go along with {base.path}; LoRA adapters go along with a base model."
            )
    places = [Path(place) for place in outs] or [out.with_name(f"{out.name}-{a.path.name}") for a in opened]
    if len(places) != len(opened):
        raise BadOption(
            f"adapter_outs: {len(places)} were given for {len(opened)} adapters; give one for each, or none."
        )
    if not opened:
        return []
    from wisca_core.equivalence.pair_proof import prove_pair  # torch and peft

    return [AdapterExport(a, place, prove_pair(base, sites, a, progress)) for a, place in zip(opened, places)]


def verify(before: AnyModel, after: AnyModel, *, run_models: bool = True, progress: Progress = silent) -> Verification:
    """Whether ``after`` is ``before`` rescaled, and how exactly: "bit-identical", "equivalent up to rounding" or "not
    equivalent", with reasons, the proof and the outputs compared.

    ``run_models=False`` compares weights alone. Raises UnsupportedCheckpoint, UnreadableInput, Cancelled.

    >>> import wisca_core as wisca
    >>> sample = "sample_runs/gqa-docs/checkpoint-3600"
    >>> wisca.verify(sample, sample).verdict
    'bit-identical'
    """
    from wisca_core.equivalence.verify import verify as verify_checkpoints

    first, second = open_model(before, progress=progress), open_model(after, progress=progress)
    return verify_checkpoints(first.checkpoint, second.checkpoint, progress, run_models)
