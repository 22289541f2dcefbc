"""``wisca rescale``: decide, show, prove, write, check, in that order; what stops it leaves nothing behind."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wisca_core.architecture import refusals
from wisca_core.architecture.discovery import sites_of
from wisca_core.architecture.find import pairs_to_find
from wisca_core.architecture.site import Refusal, SiteKey, Sites, granularity_of
from wisca_core.checkpoint import Checkpoint, Declared
from wisca_core.cli import models
from wisca_core.cli.terminal import bar, document, indented_lines, say, say_lines, table
from wisca_core.cli.verify import say_check, say_not_checked, say_proof
from wisca_core.equivalence.basis_proof import bases_proved, check_basis
from wisca_core.equivalence.full_check import FullCheck, not_covered
from wisca_core.equivalence.proof import Proof, check_covers, proved_only
from wisca_core.errors import BadOption, OutputRefused, StrictRefusal, UnreadableInput
from wisca_core.exporting.pair import check_followable
from wisca_core.exporting.place import refuse_place
from wisca_core.exporting.preview import ExportPreview, n_bytes_free, preview
from wisca_core.methods import method
from wisca_core.model import Model
from wisca_core.pairs import SIDES
from wisca_core.patterns.blocks import unit_of
from wisca_core.patterns.summary import PairSummary, sentence, summaries
from wisca_core.patterns.table import Patterns
from wisca_core.planning import plan as plans
from wisca_core.planning.decide import Decision, decide
from wisca_core.planning.options import Options, default_pairs
from wisca_core.planning.plan import Plan
from wisca_core.progress import Progress
from wisca_core.rescale import scalings
from wisca_core.rescale_adapter import adapters_near, fitted_layers, follow
from wisca_core.rescale_basis import with_bases
from wisca_core.steps import export, prove
from wisca_core.storage import read_json
from wisca_core.words import in_bytes, join_names, plural, side, without_site_name


@dataclass(frozen=True)
class AdapterOptions:
    """Who comes along: the adapters of a base model with their new folders ("" beside OUT), or the base of an
    adapter.
    """

    adapters: tuple[str, ...] = ()
    outs: tuple[Path, ...] = ()
    base: str | None = None

    def check(self) -> None:
        """Raises BadOption."""
        if self.outs and len(self.outs) != len(self.adapters):
            raise BadOption(
                f"--adapter-out was given {len(self.outs)} times, --adapter {len(self.adapters)} times; give one for "
                "each, or none."
            )

    def places(self, out: Path | None, adapters: list[Checkpoint]) -> list[Path]:
        """The new folder of each adapter; OUT-NAME where none was given."""
        out = out or Path("OUT")
        return list(self.outs) or [out.with_name(f"{out.name}-{adapter.path.name}") for adapter in adapters]


def run(
    model: str,
    out: Path | None,
    asked: Mapping[str, Any],
    company: AdapterOptions,
    plan_file: Path | None,
    undo: Path | None,
    save_plan: Path | None,
    strict: bool,
    dry_run: bool,
    check: bool | None,
    json: bool,
    yes: bool,
    declared: Declared | None = None,
) -> int:
    """0 once it is done. Raises WiscaError, whose exit code is the command's; nothing is then left behind. ``asked``:
    the options that were typed.
    """
    _check_usage(out, asked, plan_file, undo, dry_run)
    company.check()
    options = Options(**asked)
    saved = plans.load_plan(plan_file) if plan_file else plans.undo_plan(undo) if undo else None
    if save_plan:
        _check_replaceable(save_plan, out)
    checkpoint = models.open_after_asking(model, yes, declared)
    checkpoint.check_rescalable()
    if out:
        refuse_place(checkpoint, out)
    adapters, base = _open_company(checkpoint, company, yes)
    places = company.places(out, adapters)
    for adapter, place in zip(adapters, places):
        refuse_place(adapter, place)
    with bar() as progress:
        sites = sites_of(
            checkpoint, pairs_to_find(saved.options.pairs if saved else options.pairs), progress, search=models.search
        )
    if "pairs" not in asked:
        options = replace(options, pairs=default_pairs(sites))
    if saved is None:
        options.check_against(sites)
    opened = Model(checkpoint, sites)
    with bar() as progress:
        patterns = opened.measured(progress)
        proof = prove(opened, base=base, progress=progress)
    if sites.sites:
        check_covers(proof, sites, [name for name in saved.sites if name in sites] if saved else ())
    sites = proved_only(sites, proof)  # what was not proved is refused by name, the rest goes on
    with bar() as progress:
        decision, plan = _decide(checkpoint, patterns, sites, options, saved, progress)
        mixed = [sites[name] for name in plan.bases.sites]
        of_bases = check_basis(checkpoint, mixed, method(plan.options.method), "Nothing was written.")
    if strict and plan.refusals:
        lines = indented_lines(_lines(plan.refusals))
        n = plural(len(plan.refusals), "refusal")
        raise StrictRefusal(f"{n}, and --strict asks for none:\n{lines}\nNothing was written.")
    plans.check_not_empty(plan)
    following = [_what_follows(checkpoint, sites, plan, adapter) for adapter in adapters]
    left_behind = _left_behind(checkpoint, adapters)

    files = preview(checkpoint)
    pairs = summaries(decision.groups(), plan.options.norm)
    if not json:
        if not proof.is_made:
            say("NOT PROVED: the declared sites are taken as they are (--unproved)", style="bold")
        title = f"Undo of {undo}" if undo else f"Plan {plan_file}" if plan_file else "Plan"
        _say_plan(checkpoint, sites, decision, plan, pairs, title)
        _say_files(files, out)
        for adapter, place, line in zip(adapters, places, following):
            say(f"Adapter {adapter.path}, to be written to {place}: {line}")
        for line in left_behind:
            say(line, style="bold")
    with bar() as progress:
        together = [_prove_with(checkpoint, sites, adapter, progress) for adapter in adapters]
    if not json:
        for one in (proof, of_bases, *together):
            if one is not None:
                say_proof(one)
    for one in together:
        check_covers(one, sites, plan.sites)

    report, checked, not_run = None, None, "a dry run writes nothing that could be run"
    if not dry_run:
        with bar() as progress:
            done = export(
                opened, plan, out, check=check, base=base, adapters=adapters, adapter_outs=places, progress=progress
            )
        report, checked, not_run = done.report, done.check, done.not_run
    if save_plan:
        plans.save_plan(plan, save_plan)
    if json:
        document(
            "wisca-rescale",
            {
                "source": checkpoint.source,
                "path": str(checkpoint.path),
                "dry_run": dry_run,
                "out": str(report.parent) if report else None,
                "report": str(report) if report else None,
                "saved_plan": str(save_plan) if save_plan else None,
                "options": plan.to_json()["options"],
                "granularities": dict(Counter(plan.factors.used_granularities(sites).values())),
                "n_factors_changed": plan.factors.n_changed,
                "n_bases_changed": plan.n_changed - plan.factors.n_changed,
                "n_pairs_changed": len(plan.sites),
                "pairs": {pair: {"sentence": sentence(s)} | asdict(s) for pair, s in pairs.items()},
                "effects": decision.effects,
                "bit_identical_expected": decision.bit_identical,
                "refused": [asdict(r) for r in plan.refusals],
                "remarks": [*checkpoint.remarks, *sites.remarks],
                "files": asdict(files),
                "proof": proof.to_json(),
                "basis_proof": of_bases.to_json() if of_bases else None,
                "adapters": [
                    {"path": str(a.path), "out": str(place), "follows": line, "proof": one.to_json()}
                    for a, place, line, one in zip(adapters, places, following, together)
                ],
                "left_behind": left_behind,
                "full_check": checked.to_json() if checked else None,
                "full_check_not_run": None if checked else not_run,
            },
        )
        return 0
    _say_done(report, save_plan, proof, checked, not_run)
    for place in places if report else ():
        say(
            f"Adapter written to {place}; it fits {report.parent} only, and its adapter_config.json names that folder",
            style="bold",
        )
    return 0


def _prove_with(checkpoint: Checkpoint, sites: Sites, adapter: Checkpoint, progress: Progress) -> Proof:
    from wisca_core.equivalence.pair_proof import prove_pair  # torch and peft: only where an adapter goes along

    return prove_pair(checkpoint, sites, adapter, progress)


def _lines(refused: Sequence[Refusal]) -> list[str]:
    return refusals.lines(replace(one, reason=without_site_name(one.reason)) for one in refused)


def _open_company(
    checkpoint: Checkpoint, company: AdapterOptions, yes: bool
) -> tuple[list[Checkpoint], Checkpoint | None]:
    """The adapters and the base that were given. Raises BadOption where MODEL is not what they belong to."""
    if company.adapters and checkpoint.adapter_json:
        raise BadOption(
            f"{checkpoint.path} is an adapter itself; --adapter goes with a base model. Give its base with --base."
        )
    if company.base and not checkpoint.adapter_json:
        raise BadOption(
            f"{checkpoint.path} is no adapter; --base goes with a LoRA adapter. Give its adapters with --adapter."
        )
    adapters = [models.open_after_asking(name, yes) for name in company.adapters]
    for name, adapter in zip(company.adapters, adapters):
        if not adapter.adapter_json:
            raise BadOption(
                f"--adapter {name} is a model, not a LoRA adapter. Give the folder that holds adapter_config.json."
            )
    return adapters, models.open_after_asking(company.base, yes) if company.base else None


def _what_follows(base: Checkpoint, sites: Sites, plan: Plan, adapter: Checkpoint) -> str:
    """What follows, in words; raises early what the export would raise late."""
    check_followable(plan)
    shapes = {t.name: t.shape for t in base.tensors}
    scaling = scalings(sites, plan.factors.by_site, plan.factors.granularity, shapes)
    n = len(fitted_layers(base, sites, scaling, adapter))
    n_tensors = len(follow(base, sites, scaling, adapter))
    return f"{plural(n, 'adapted layer')} of rescaled weights, {plural(n_tensors, 'tensor')} follow"


def _left_behind(checkpoint: Checkpoint, adapters: list[Checkpoint]) -> list[str]:
    given = {adapter.path for adapter in adapters}
    near = [] if checkpoint.adapter_json else [place for place in adapters_near(checkpoint) if place not in given]
    words = "belongs to these weights and breaks on the rescaled ones; give it with --adapter."
    return [f"Left behind: the LoRA adapter in {place} {words}" for place in near]


def _check_usage(
    out: Path | None, asked: Mapping[str, Any], plan_file: Path | None, undo: Path | None, dry_run: bool
) -> None:
    if plan_file and undo:
        raise BadOption("--plan and --undo were both given; a rescale applies one of them.")
    source = "--plan" if plan_file else "--undo" if undo else ""
    if source and asked:
        names = ", ".join(f"--{name}" for name in asked)
        raise BadOption(f"{source} holds its own options; {names} cannot be given with it.")
    if out is None and not dry_run:
        raise BadOption(
            "OUT is missing: name a new folder for the rescaled model, or add --dry-run to see what would happen."
        )


def _check_replaceable(path: Path, out: Path | None) -> None:
    """An earlier plan may be replaced; any other file may not. Asked before the long work."""
    if path.exists():
        try:
            read_json(path, plans.FORMAT, plans.VERSION)
        except UnreadableInput as error:
            raise OutputRefused(
                f"{path} exists and is no plan; it is left alone. Choose another name for --save-plan."
            ) from error
    elif not path.absolute().parent.is_dir() and path.absolute().parent != (out and out.absolute()):
        raise OutputRefused(f"{path} cannot be written: its folder does not exist.")


def _decide(
    checkpoint: Checkpoint, patterns: Patterns, sites: Sites, options: Options, saved: Plan | None, progress: Progress
) -> tuple[Decision, Plan]:
    if saved is not None:
        decision = plans.decision_of(saved, patterns.of(sites))
        return with_bases(decision, checkpoint, progress), saved
    proved = patterns.of(bases_proved(checkpoint, sites, method(options.method)))
    decision = with_bases(decide(proved, options), checkpoint, progress)
    return decision, plans.make_plan(decision)


def _say_plan(
    checkpoint: Checkpoint, sites: Sites, decision: Decision, plan: Plan, pairs: dict[str, PairSummary], title: str
) -> None:
    say(str(checkpoint.path))
    say(models.facts(checkpoint, sites))
    say()
    o = plan.options
    layers = f", layers {', '.join(map(str, o.layers))}" if o.layers else ""
    exact = ", powers of two" if o.exact else ""
    exact += f", method {o.method}" if plan.bases else ""
    say(
        f"{title}: pairs {', '.join(o.pairs)}, granularity {o.granularity}, norm {o.norm}, "
        f"strength {o.strength:g}{layers}{exact}",
        style="bold",
    )
    used = plan.factors.used_granularities(sites)
    tied = Counter(g for name, g in used.items() if g != granularity_of(o.granularity, SiteKey.parse(name).pair))
    for name, n in tied.items():
        use = f"{plural(n, 'pair')} use{'s' if n == 1 else ''} granularity {name}"
        say(f"  {use}: there its channels are tied like that anyway")
    rows = []
    for s in pairs.values():
        medians = _median(s.heavier, s.ratio, s.pair), _median(s.heavier_after, s.ratio_after, s.pair)
        within = f"{s.within_2x:,} of {s.n_cells:,}", f"{s.within_2x_after:,} of {s.n_cells:,}"
        rows.append((" / ".join(SIDES[s.pair]) + (f", {s.title}" if s.title else ""), *medians, *within))
    units = {unit_of(s.pair, s.block) for s in pairs.values()}
    counted = f"{units.pop()}s" if len(units) == 1 else "places"
    medians = {s.unit for s in pairs.values()}
    median = f"median {medians.pop()} before" if len(medians) == 1 else "median before"
    table(("pair", median, "after", f"{counted} within 2× before", "after"), rows)
    factors = [
        f for fs in plan.factors.by_site.values() for f in fs if f != 1
    ]  # of the left side: every rule has exponent 1 there
    n_pairs, n_factors = plural(len(sites.sites), "pair"), plural(len(factors), "factor")
    if factors:
        say(
            f"{len(plan.factors.sites):,} of {n_pairs} change, by {n_factors}: {_span(factors)} on the "
            f"{_left_sides(plan, sites)}"
        )
    if plan.bases:
        shapes = Counter(matrices.shape[1] for matrices in plan.bases.sites.values() for _ in matrices)
        matrices = join_names([f"{plural(n, 'matrix', 'matrices')} S of {d} x {d}" for d, n in shapes.items()])
        say(
            f"{len(plan.bases.sites):,} of {n_pairs} change their basis, by {matrices}: the left side becomes S^-1 "
            "left, the "
            "right one right S"
        )
    for line in _effects(decision):
        say(f"  {line}")
    say_lines(f"Refused and left as they are, {len(plan.refusals):,}:", _lines(plan.refusals))
    say_lines("Remarks:", [*checkpoint.remarks, *sites.remarks])


def _median(heavier: str, ratio: float, pair: str) -> str:
    return side(pair, math.log2(ratio) * (1 if heavier == SIDES[pair][0] else -1)) if heavier else "level"


def _span(factors: list[float]) -> str:
    low, high = f"{min(factors):.4g}", f"{max(factors):.4g}"
    return low if low == high else f"{low} to {high}"


def _left_sides(plan: Plan, sites: Sites) -> str:
    names = list(plan.factors.by_site)
    pairs = {SiteKey.parse(name).pair for name in names}
    sides = [left for pair, (left, _) in SIDES.items() if pair in pairs]
    others = f"other{'' if len(sides) == 1 else 's'}"
    said = f"{join_names(sides)} side{'' if len(sides) == 1 else 's'}, the inverse on the {others}"
    squared = [name for name in names if sites[name].exponent("right") == 2]
    if len(squared) == len(names):
        return said.replace("the inverse", "the inverse square")
    return f"{said} (the inverse square on down, behind ReLU squared)" if squared else said


def _effects(decision: Decision) -> list[str]:
    """What the factors do to the stored values, one line an effect; none is left out because it is zero."""
    e = decision.effects
    lines = [f"stored values multiplied: {e['values']:,}"]
    if decision.bit_identical:
        lines.append("no value is rounded, loses bits or overflows: every output stays bit-identical")
        return lines
    if e["rounded"]:
        lines.append(
            f"of these, 16-bit values rounded once, by at most half a unit in the last place: {e['rounded']:,}"
        )
    elif not all(math.frexp(f)[0] == 0.5 for f in decision.factor):
        lines.append("each product is rounded once in its stored dtype, F32 or F64")
    if e["mixed"]:
        lines.append(f"stored values mixed over the channels of their group, each rounded once: {e['mixed']:,}")
    lines.append(f"values that lose bits below the smallest normal number: {e['lost']:,}")
    if e["gains"]:
        lines.append(f"gains stored as gain - 1, rounded in any case: {e['gains']:,}")
    lines.append(f"values whose cell would overflow and is left as it is: {e['overflow']:,}")
    return lines


def _say_files(files: ExportPreview, out: Path | None) -> None:
    n_bytes = in_bytes(files.n_bytes)
    free = f", {in_bytes(n_bytes_free(out.absolute().parent))} free there" if out else ""
    say(
        f"Files: {plural(len(files.rewritten), 'weight file')} written again, {len(files.copied):,} copied, "
        f"{n_bytes}{free}"
    )
    for file, name in files.rewritten:
        if file != name:
            say(f"  {file} becomes {name}")
    say_lines(f"Left out, {len(files.left_out):,}:", [f"{name}: {reason}" for name, reason in files.left_out])


def _say_done(
    report: Path | None, save_plan: Path | None, proof: Proof, checked: FullCheck | None, not_run: str
) -> None:
    if checked:
        say(f"Full check: {checked.words()}")
        say_check(checked)
        say_not_checked(not_covered(proof, checked))
    else:
        say(f"Full check: not run ({not_run.rstrip('.')})")
        say_not_checked((*proof.not_checked, "outputs of the whole model"))
    if save_plan:
        say(f"Plan saved in {save_plan}")
    say(f"Written to {report.parent}" if report else "Dry run: nothing was written", style="bold")
