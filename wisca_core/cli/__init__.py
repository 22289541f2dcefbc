"""The command line: ``wisca dashboard | inspect | heads | report | rescale | verify | architectures | runs | trajectory
| compare | evaluate | clean | jobs``.

This file declares commands and options and nothing else, so that ``--help`` does not wait for torch; what a command
does is in the file of its name. Exit codes: 0; 1 not equivalent, or nothing of what was asked can be rescaled;
2 usage or unreadable input; 130 cancelled.
"""

from pathlib import Path
from typing import Annotated

import typer

from wisca_core.cli.terminal import ending
from wisca_core.processes import collect_seldom

app = typer.Typer(
    name="wisca",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # help is the same text in a terminal, a pipe and the README
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Are the attention weights of a transformer out of balance, and what would balancing them change?",
    epilog="""MODEL is a folder, one .safetensors file beside its config.json, or hub:owner/name[@revision].

\b
Examples:
  wisca inspect MODEL                          how far out of balance, and where
  wisca rescale MODEL OUT --exact              balanced and proved, bit for bit
  wisca compare --preset default --out DIR     would it help a training?
  wisca runs LOGS                              what the logs of a training say
  wisca dashboard MODEL                        all of it in the browser
""",
)


def option(kind, name: str, metavar: str, help: str, default: str | bool = True):
    """The type of a parameter that is an option. ``default``: what help says of it, where it is not the value
    itself.
    """
    return Annotated[kind, typer.Option(name, metavar=metavar, help=help, show_default=default)]


def flag(name: str, help: str, kind=bool, default: str | bool = True):
    """The same of one that is there or not."""
    return Annotated[kind, typer.Option(name, help=help, show_default=default)]


def argument(kind, metavar: str, help: str, default: str | bool = True):
    """The type of a parameter that is an argument."""
    return Annotated[kind, typer.Argument(metavar=metavar, help=help, show_default=default)]


Model = argument(str, "MODEL", "Model folder, .safetensors file, or hub:owner/name[@revision].", False)
Json = flag("--json", "Print one JSON document on stdout.")
Yes = flag("--yes", "Download a hub: model without asking.")
Sites = option(
    Path | None, "--sites", "TOML", "Declared pairs of a model of your own ([[attention]], [[feed_forward]])."
)
Build = option(str | None, "--build", "MODULE:FUNCTION", "Your function that makes a small model to prove --sites on.")
Forward = option(
    str | None, "--forward", "MODULE:FUNCTION", "Your function (model, ids) that calls what --build makes."
)
Unproved = flag("--unproved", "Take --sites as they are; the report says so first.")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"wisca {version('wisca')}")
        raise typer.Exit


@app.callback()
def _wisca(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command("dashboard")
@ending
def _dashboard(
    model: argument(
        str | None, "MODEL", "Model folder, .safetensors file, or hub:owner/name[@revision].", "the bundled sample"
    ) = None,
    port: option(int, "--port", "N", "Port on this machine.") = 8501,
) -> int:
    """Open the dashboard in the browser, on 127.0.0.1 only; Ctrl-C ends it."""
    from wisca_core.cli.dashboard import run

    return run(model, port)


@app.command("inspect")
@ending
def _inspect(
    model: Model,
    csv: option(Path | None, "--csv", "FILE", "Write the table of KV groups as CSV.") = None,
    norm: option(str, "--norm", "l1|l2|max|rms|mean", "Norm that is compared.") = "l1",
    pairs: option(str | None, "--pairs", "qk,vo,mlp", "Pairs to look at; mlp reads most of the model.", "qk,vo") = None,
    sites: Sites = None,
    json: Json = False,
    yes: Yes = False,
) -> int:
    """Show which side of each pair is heavier, and where: verdict, layers, worst heads, refusals.

    Exit 1 where the model has no pair that could be rescaled.
    """
    from wisca_core.cli.inspect import run
    from wisca_core.cli.models import site_options

    return run(model, csv, norm, pairs, json, yes, site_options(sites))


@app.command("heads")
@ending
def _heads(
    model: Model,
    csv: option(Path | None, "--csv", "FILE", "Write the table with all its columns as CSV.") = None,
    matrices: flag("--matrices", "Every matrix of the model instead, each by itself; reads all of it.") = False,
    json: Json = False,
    yes: Yes = False,
) -> int:
    """Show what each attention head computes, from its weights alone: the QK and OV circuits, and what stands out.

    Exit 1 where no head of the model is known.
    """
    from wisca_core.cli.heads import run

    return run(model, csv, matrices, json, yes)


@app.command("report")
@ending
def _report(
    model: argument(
        str,
        "MODEL",
        "Model folder, .safetensors file, hub:owner/name[@revision], or the folder of a comparison.",
        False,
    ),
    out: option(Path | None, "--out", "FILE", "The HTML file.", "MODEL-wisca.html here") = None,
    pairs: option(str | None, "--pairs", "qk,vo,mlp", "Pairs to report.", "qk,vo") = None,
    granularity: option(
        str | None, "--granularity", "tensor|group|channel", "What shares one factor.", "tensor"
    ) = None,
    norm: option(str | None, "--norm", "l1|l2|max|rms", "Norm to balance.", "l1") = None,
    exact: flag("--exact", "Factors as powers of two.") = False,
    heads: flag("--heads/--no-heads", "Measure what each head computes; one more pass.") = True,
    evaluation: option(Path | None, "--evaluation", "DIR", "What wisca evaluate --out left.") = None,
    comparison: option(Path | None, "--comparison", "DIR", "The folder of a comparison.") = None,
    json: Json = False,
    yes: Yes = False,
) -> int:
    """Write one HTML file that needs no network: balance, heads, plan, proof, rates and what was measured."""
    from wisca_core.cli.models import typed_options
    from wisca_core.cli.report import run

    asked = typed_options(pairs=pairs, granularity=granularity, norm=norm, exact=exact)
    return run(model, out, asked, heads, evaluation, comparison, json, yes)


@app.command("rescale")
@ending
def _rescale(
    model: Model,
    out: argument(Path | None, "OUT", "New folder for the rescaled model.", False) = None,
    pairs: option(str | None, "--pairs", "qk,vo,mlp", "Pairs to balance.", "qk,vo") = None,
    granularity: option(
        str | None,
        "--granularity",
        "tensor|group|channel",
        "What shares one factor; one a pair: qk=channel,vo=tensor.",
        "tensor",
    ) = None,
    norm: option(str | None, "--norm", "l1|l2|max|rms", "Norm to balance.", "l1") = None,
    strength: option(float | None, "--strength", "S", "0 changes nothing, 1 balances fully.", "1") = None,
    layers: option(
        str | None, "--layers", "0-3,7", "Layers, both ends included; encoder:0-3 picks a stack.", "all"
    ) = None,
    exclude: option(
        list[str] | None, "--exclude", "SITE", "Leave a pair alone, like decoder.3.self.qk; may be repeated."
    ) = None,
    exact: flag("--exact", "Round factors to powers of two, which round no weight.") = False,
    method: option(
        str | None,
        "--method",
        "wisca|gram",
        "gram: VO and LoRA pairs by full changes of basis, not by factors.",
        "wisca",
    ) = None,
    adapter: option(
        list[str] | None,
        "--adapter",
        "ADAPTER",
        "A LoRA adapter of MODEL that follows its new weights; may be repeated.",
    ) = None,
    adapter_out: option(list[Path] | None, "--adapter-out", "DIR", "New folder of each adapter.", "OUT-NAME") = None,
    base: option(str | None, "--base", "BASE", "Where MODEL is a LoRA adapter: its base, to prove it on.") = None,
    plan: option(Path | None, "--plan", "FILE", "Apply a saved plan instead of options.") = None,
    save_plan: option(Path | None, "--save-plan", "FILE", "Save the plan as JSON.") = None,
    undo: option(Path | None, "--undo", "REPORT", "Take back the rescale whose wisca_report.json this is.") = None,
    strict: flag("--strict", "Exit 1 and write nothing where any pair is refused.") = False,
    dry_run: flag("--dry-run", "Show what would happen and write no model.") = False,
    check: flag(
        "--check/--no-check",
        "Run both models on the same tokens before the export is kept.",
        bool | None,
        "where the memory allows",
    ) = None,
    sites: Sites = None,
    build: Build = None,
    forward: Forward = None,
    unproved: Unproved = False,
    json: Json = False,
    yes: Yes = False,
) -> int:
    """Write MODEL with its pairs balanced into the new folder OUT, proved to be the same function.

    What the factors will do is shown before anything is written. Exit 1 where nothing can be rescaled, or a proof or
    check fails.
    """
    from wisca_core.cli.models import site_options, typed_options
    from wisca_core.cli.rescale import AdapterOptions, run

    options = typed_options(
        pairs=pairs,
        granularity=granularity,
        norm=norm,
        strength=strength,
        layers=layers,
        exclude=tuple(exclude or ()),
        exact=exact,
        method=method,
    )
    company = AdapterOptions(tuple(adapter or ()), tuple(adapter_out or ()), base)
    own = site_options(sites, build, forward, unproved)
    return run(model, out, options, company, plan, undo, save_plan, strict, dry_run, check, json, yes, own)


@app.command("verify")
@ending
def _verify(
    before: argument(str, "BEFORE", "The original model.", False),
    after: argument(str, "AFTER", "The model compared with it.", False),
    weights_only: flag("--weights-only", "Compare weights and prove the rule, run no full model.") = False,
    sites: Sites = None,
    build: Build = None,
    forward: Forward = None,
    unproved: Unproved = False,
    json: Json = False,
    yes: Yes = False,
) -> int:
    """Say whether AFTER is the same function as BEFORE.

    One of: bit-identical, equivalent up to rounding, not equivalent (exit 1).
    """
    from wisca_core.cli.models import site_options
    from wisca_core.cli.verify import run

    return run(before, after, weights_only, json, yes, site_options(sites, build, forward, unproved))


@app.command("architectures")
@ending
def _architectures(
    name: argument(str | None, "NAME", "One architecture: the model_type of config.json.", "all") = None,
    prove: flag("--prove", "Prove on miniatures what has no kept result for the installed versions.") = False,
    again: flag("--again", "Prove what has a kept result too.") = False,
    everything: flag(
        "--all", "Encoders, encoder-decoders, vision and speech too, not only causal language models."
    ) = False,
    granularity: option(
        str | None, "--granularity", "tensor|group|channel", "What is proved; several with commas.", "all three"
    ) = None,
    csv: option(Path | None, "--csv", "FILE", "Write the table as CSV.") = None,
    json: Json = False,
) -> int:
    """Show which architectures are covered, by which rule, and what was proved of each.

    With NAME: everything about one. Exit 1 where nothing of it can be rescaled.
    """
    from wisca_core.cli.architectures import run

    return run(name, prove, again, everything, granularity, csv, json)


@app.command("runs")
@ending
def _runs(
    paths: argument(list[str], "PATH...", "Log files, or folders with logs below them.", False),
    csv: option(Path | None, "--csv", "FILE", "Write every value as one long table.") = None,
    metric: option(str | None, "--metric", "NAME", "Metric to sum up.", "the loss") = None,
    step_column: option(str | None, "--step-column", "NAME", "Step column of tables and JSON lines.", "guessed") = None,
    follow: flag("--follow", "Print a line whenever a run has new values, until Ctrl-C.") = False,
    json: Json = False,
) -> int:
    """Read training logs: TensorBoard, Trainer, CSV, JSONL, parquet, trackio, W&B, nanoGPT and Megatron text."""
    from wisca_core.cli.runs import run

    return run(paths, csv, metric or "", step_column or "", follow, json)


@app.command("trajectory")
@ending
def _trajectory(
    folder: argument(Path, "DIR", "Folder of checkpoints: checkpoint-500, step_1000, ...", False),
    csv: option(Path | None, "--csv", "FILE", "Write the ratio of every KV group and step as CSV.") = None,
    norm: option(str, "--norm", "l1|l2|max|rms|mean", "Norm that is compared.") = "l1",
    every: option(int, "--every", "N", "Steps between two rescalings the reading speaks of.") = 250,
    logs: option(Path | None, "--logs", "PATH", "Log with the loss of this training.", "beside the checkpoints") = None,
    sites: Sites = None,
    json: Json = False,
) -> int:
    """Show how the pairs of one training moved over its checkpoints, and what that says."""
    from wisca_core.cli.models import site_options
    from wisca_core.cli.trajectory import run

    return run(folder, csv, norm, every, logs, json, site_options(sites))


@app.command("compare")
@ending
def _compare(
    spec: argument(Path | None, "SPEC", "Comparison spec, TOML or JSON.", False) = None,
    out: option(Path | None, "--out", "DIR", "Folder of the comparison.", False) = None,
    preset: option(
        str | None, "--preset", "default|dose|thorough|lora|tinyllama|qwen2|qwen15_moe", "A spec that is built in."
    ) = None,
    model: option(
        Path | None,
        "--model",
        "DIR",
        "Model folder, for --preset lora; its tokenizer, for a set-up of the paper.",
        False,
    ) = None,
    resume: flag("--resume", "Go on with the comparison in DIR.") = False,
    add_seeds: option(
        int | None, "--add-seeds", "N", "Train N further seeds; the result is marked as extended."
    ) = None,
    estimate: flag("--estimate", "Show time, memory and the seeds needed, and start nothing.") = False,
    workers: option(int | None, "--workers", "N", "Processes side by side.", "one a core or a GPU") = None,
    executor: option(
        str,
        "--executor",
        "auto|processes|replicas|ray",
        "How runs are trained: one by one in each process, several at once in each (the default on GPUs), or on a Ray "
        "cluster.",
    ) = "auto",
    device: option(str | None, "--device", "auto|cpu|cuda|cuda:N", "Instead of the spec's device.", False) = None,
    precision: option(
        str | None, "--precision", "float32|bfloat16|float64", "Instead of the spec's precision.", False
    ) = None,
    json: Json = False,
) -> int:
    """Train arms with and without a rescale on the same seeds, and say what the differences allow one to say.

    Exit 1 where a run failed or the comparison was paused.
    """
    from wisca_core.cli.compare import run

    return run(spec, preset, out, resume, add_seeds, estimate, workers, json, model, executor, device, precision)


@app.command("evaluate")
@ending
def _evaluate(
    model: argument(
        str, "MODEL", "Causal model, folder of checkpoints, or folder of a comparison (its arms, by seed).", False
    ),
    other: argument(str | None, "MODEL2", "A second model on the same text and documents.", False) = None,
    text: option(str, "--text", "FILE", "Text in UTF-8.", "held-out bundled text") = "",
    tasks: option(
        list[str] | None,
        "--tasks",
        "NAMES",
        "docs-continuation, docs-order, a .jsonl file, FOLDER:NAME, or a task of lm-evaluation-harness; several with "
        "commas.",
    ) = None,
    draft: option(
        list[str] | None, "--draft", "MODEL", "A draft for assisted generation with MODEL; may be repeated."
    ) = None,
    inside: flag("--inside", "Attention logits, entropy, first token and activations, head by head.") = False,
    window: option(int, "--window", "N", "Tokens of a window.", "context, at most 1024") = 0,
    stride: option(int, "--stride", "N", "Tokens from window to window.", "window: packed") = 0,
    limit: option(int, "--limit", "N", "Windows, and documents a task, at most.", "all") = 0,
    batch_size: option(int, "--batch-size", "N", "Windows and answers at a time.", "fastest; 8") = 0,
    device: option(str, "--device", "auto|cpu|cuda|cuda:N", "Where it runs.") = "auto",
    dtype: option(str, "--dtype", "float32|bfloat16|float16", "In what it runs.", "as stored; float32 on a CPU") = "",
    out: option(Path | None, "--out", "DIR", "New folder that keeps every row.", False) = None,
    json: Json = False,
    yes: Yes = False,
) -> int:
    """Perplexity and bits a byte of a text, zero-shot tasks, drafts, and a look inside: of a model or two side by side.

    What cannot be evaluated is said and the rest goes on.
    """
    from wisca_core.cli.evaluate import run
    from wisca_core.evaluation.whole import EvaluationOptions

    asked = EvaluationOptions(text, tuple(tasks or ()), window, stride, limit, batch_size, inside, device, dtype)
    return run(model, other, asked, tuple(draft or ()), out, json, yes)


@app.command("clean")
@ending
def _clean(
    names: argument(list[str] | None, "NAMES", "Folders to empty, or all.", False) = None,
    yes: flag("--yes", "Remove without asking.") = False,
    json: Json = False,
) -> int:
    """Show what is kept under WISCA_HOME, and empty the named folders."""
    from wisca_core.cli.kept import run_clean

    return run_clean(names or [], yes, json)


@app.command("jobs")
@ending
def _jobs(
    cancel: option(str | None, "--cancel", "ID", "Ask a job to stop; by force after 10 s.") = None, json: Json = False
) -> int:
    """List the jobs of the dashboard, newest first."""
    from wisca_core.cli.kept import run_jobs

    return run_jobs(cancel, json)


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (without the program's name; None: that of this process) and return its exit code."""
    collect_seldom()
    try:
        app(args=arguments, prog_name="wisca")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
