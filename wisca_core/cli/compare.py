"""``wisca compare``: paired training runs with and without a rescale, and what their differences allow one to say."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wisca_core.cli.terminal import CANCELLED, bar, document, note, say, table
from wisca_core.comparison import folder
from wisca_core.comparison.folder import Comparison
from wisca_core.comparison.paper import for_scale
from wisca_core.comparison.presets import PRESETS, with_model
from wisca_core.comparison.spec import Spec
from wisca_core.comparison.spec_reading import load_spec, spec_from
from wisca_core.errors import BadOption, OutputRefused, SpecError, UnreadableInput, check_choice
from wisca_core.words import signed_number

if TYPE_CHECKING:
    from wisca_core.comparison.execution_plan import ExecutionPlan


def run(
    spec: Path | None,
    preset: str | None,
    out: Path | None,
    resume: bool,
    add_seeds: int | None,
    estimate: bool,
    workers: int | None,
    json: bool,
    model: Path | None = None,
    executor: str = "auto",
    device: str | None = None,
    precision: str | None = None,
) -> int:
    """0 once the comparison is finished, 1 where some of its runs failed or it was paused from elsewhere, 130 after
    Ctrl-C.
    """
    from wisca_core.comparison.data import check_text
    from wisca_core.comparison.execution_plan import choose, plan_for

    if workers is not None and workers < 1:
        raise BadOption(f"--workers: {workers} was given; a whole number from 1 is needed.")
    goes_on = resume or add_seeds is not None
    if (spec is not None) + (preset is not None) + goes_on != 1:
        raise BadOption(
            "give one of SPEC, --preset NAME, or --resume / --add-seeds N with the --out of a comparison that exists."
        )
    if goes_on and (device or precision):
        raise BadOption("--device, --precision: a comparison goes on as its spec says; give them when it is started.")
    if goes_on:
        place = _required_folder(out)
        comparison = folder.read(place)
        way = plan_for(comparison, executor, workers)
        if estimate:
            return _estimate(comparison.spec, way, json)
        if add_seeds is not None:
            folder.add_seeds(place, add_seeds)
    else:
        chosen = _spec(spec, preset, model)
        changed = {name: value for name, value in (("device", device), ("precision", precision)) if value}
        if changed:
            chosen = spec_from({**chosen.to_json(), **changed})
        way = choose(chosen, executor, workers)
        if estimate:
            return _estimate(chosen, way, json)
        place = _required_folder(out)
        check_text(chosen)
        _refuse_too_large(chosen, way)
        place = folder.create(place, chosen)
    return train_and_report(place, workers, json, executor)


def train_and_report(place: Path, workers: int | None, json: bool, executor: str = "auto") -> int:
    from wisca_core.comparison.execution_plan import plan_for
    from wisca_core.comparison.executor import run
    from wisca_core.comparison.reporting import write_report

    note(f"{place}: {plan_for(folder.read(place), executor, workers).in_words}; Ctrl-C pauses, --resume continues")
    try:
        with bar() as progress:
            comparison = run(place, workers, progress, executor)
    except KeyboardInterrupt:
        note(f"paused; everything is kept. Go on with: wisca compare --out {place} --resume")
        return CANCELLED
    report = write_report(comparison)
    if json:
        document(
            "wisca-comparison-report", {"state": comparison.state, "folder": str(place), **dataclasses.asdict(report)}
        )
    else:
        _say(comparison, report)
    return 0 if comparison.state == "done" and not any(c.state == "failed" for c in comparison.cells) else 1


def _required_folder(out: Path | None) -> Path:
    if out is None:
        raise BadOption("--out: nothing was given; name the comparison's folder.")
    return out


def _spec(spec: Path | None, preset: str | None, model: Path | None) -> Spec:
    if spec is not None:
        if model is not None:
            raise BadOption("--model: it belongs to --preset; a spec names its model under model.path.")
        return load_spec(spec)
    check_choice("--preset", preset, PRESETS)
    return with_model(PRESETS[preset], model)


def _refuse_too_large(spec: Spec, way: "ExecutionPlan") -> None:
    from wisca_core.comparison.estimate import estimate

    e = estimate(spec, way.workers, lambda *_: 0.0, way=way)
    if e.device_free_bytes is not None and e.device_memory_bytes >= e.device_free_bytes:
        raise OutputRefused(
            f"one run of a model of {e.n_parameters:,} parameters needs about {e.device_memory_bytes / 1e9:.1f} GB on "
            f"its GPU; {e.device_free_bytes / 1e9:.1f} GB "
            "are free there. Use a smaller model, batch_size or context, or more GPUs a run (processes_per_cell). "
            "Nothing was started."
        )
    if not e.fits and e.free_bytes is not None:
        raise OutputRefused(
            f"{e.workers} processes with a model of {e.n_parameters:,} parameters need about "
            f"{e.memory_bytes / 1e9:.1f} GB of memory; "
            f"{e.free_bytes / 1e9:.1f} GB are free. Use a smaller model, batch_size or context, or fewer --workers. "
            f"Nothing was started."
        )


def _estimate(spec: Spec, way: "ExecutionPlan", json: bool) -> int:
    from wisca_core.comparison.data import load_corpus
    from wisca_core.comparison.estimate import GPU_FLOPS, duration, estimate
    from wisca_core.comparison.report import unit

    found = estimate(spec, way.workers, way=way)
    text: dict | None = None
    lacking = ""
    try:
        text = load_corpus(spec).facts
    except (UnreadableInput, SpecError) as error:  # what it would take can be said before its text is at hand
        if spec.model.source != "paper":
            raise
        lacking = str(error)
    if json:
        document(
            "wisca-comparison-estimate",
            {**dataclasses.asdict(found), "fits": found.fits, "corpus": text, "text_missing": lacking},
        )
        return 0
    say(f"{spec.name}: {counts(spec)}", style="bold")
    trained = f", {found.n_trained:,} of them trained" if found.n_trained < found.n_parameters else ""
    say(f"model   {found.title}; {found.n_parameters:,} parameters{trained}")
    say(
        f"text    {text['n_train_tokens']:,} tokens for training (sha256 {text['sha256'][:16]}...)"
        if text
        else f"text    not at hand: {lacking}"
    )
    basis = (
        f"{found.seconds_per_step * 1000:.0f} ms a step, measured just now"
        if found.is_measured
        else f"reckoned, not measured: {found.flops_per_second / 1e9:.0f} GFLOP/s a thread, half of what a matrix "
        "product reaches here"
    )
    say(
        f"time    about {duration(found.seconds)} on {way.in_words} "
        f"({basis}{', one run at a time' if way.gpus else ''})"
    )
    if not found.is_measured:
        say(
            f"gpu     about {duration(found.gpu_seconds)} for all runs one after the other, and "
            f"{found.gpu_bytes / 1e9:.0f} GB a run, on a GPU that trains at "
            f"{GPU_FLOPS / 1e12:.0f} TFLOP/s: an assumption, nothing was run"
        )
    free = f", {found.free_bytes / 1e9:.1f} GB free" if found.free_bytes is not None else ""
    say(
        f"memory  about {found.memory_bytes / 1e9:.1f} GB{free}{'' if found.fits else ': too much'}; disk "
        f"{found.disk_bytes / 1e6:.0f} MB"
    )
    if found.device_free_bytes is not None:
        say(
            f"gpu     about {found.device_memory_bytes / 1e9:.1f} GB for a run, {found.device_free_bytes / 1e9:.1f} GB "
            "free"
        )
    say(
        f"seeds   {found.seeds_needed} to see a difference of {found.effect_nats:g} {unit(spec)} four times out of "
        f"five at {spec.steps:,} steps"
        f"; planned: {len(spec.seeds)}"
    )
    say(f"        if paired differences spread as before, {found.spread_words}")
    return 0


def counts(spec: Spec) -> str:
    rates = spec.optimiser.learning_rates
    n_rates = f"{len(rates)} learning rate{'' if len(rates) == 1 else 's'}"
    pilot = f"{n_rates} on {len(spec.pilot.seeds)} pilot seeds" if spec.pilot.seeds else n_rates
    parts = [
        f"{len(spec.arms)} arms",
        "the rates of an earlier pilot" if spec.pilot.source else pilot,
        f"{len(spec.seeds)} seeds",
        f"{spec.steps:,} steps",
        f"{spec.n_cells} runs",
    ]
    return ", ".join(parts)


def _say(comparison: Comparison, report) -> None:
    from wisca_core.comparison.arm_words import titles
    from wisca_core.comparison.report import interval, remarks, verdict

    readings, names, digits = (
        {(e.arm, e.rate): verdict(e) for e in report.main},
        titles(comparison.spec.arms),
        report.digits,
    )
    say(report.sentence, style="bold")
    say(" ".join([f"It is about: {report.subject}. {report.reading}", *report.beside]))
    for line in filter(None, (report.decides_more, report.identical)):
        say(line)
    say(for_scale(comparison.spec) + "\n")
    if comparison.spec.note:
        say(f"Note: {comparison.spec.note}\n")
    per_byte = f" (divide by {report.bytes_per_token:.2f} for nats per byte)" if report.unit != "nats per byte" else ""
    rows: list[Sequence[str]] = []
    for e in (*report.best, *report.effects):
        rate = "own best" if e.rate is None else f"{e.rate:g}"
        boot = (
            f"{signed_number(e.bootstrap[0], digits)} to {signed_number(e.bootstrap[1], digits)}" if e.bootstrap else ""
        )
        saved = f"{e.steps_saved:,.0f}" if e.steps_saved is not None else f"{e.n_reached} of {e.loss.n}"
        loss = f"{e.mean_final:.{digits}f}" if e.loss.n else ""
        rows.append(
            [
                names[e.arm],
                rate,
                loss,
                signed_number(e.loss.mean, digits) if e.loss.n else "",
                interval(e, digits) if e.loss.n > 1 else "",
                boot,
                signed_number(e.perplexity.mean) if e.loss.n else "",
                f"{e.n_better} of {e.loss.n}",
                saved,
                readings.get((e.arm, e.rate), "beside the correction"),
            ]
        )
    table(
        ["Arm", "Rate", "Loss", "Difference", "95 % t", "Bootstrap", "Perplexity", "Better", "Steps saved", "Reading"],
        rows,
        numbers=range(2, 7),
    )
    say(
        f"Losses in {report.unit}{per_byte}, perplexity the same as exp. Steps saved: median, or how many seeds reach "
        "the baseline's final loss at all."
    )
    for line in remarks(report):
        say(line)
    say(f"text sha256 {report.corpus_sha256[:16]}...; all of it in {comparison.path}")
