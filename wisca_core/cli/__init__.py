"""The command line: ``wisca dashboard | inspect | heads | report | rescale | verify | architectures | runs | trajectory | compare | evaluate | clean | jobs``.

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

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Model folder, .safetensors file, or hub:owner/name[@revision].", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Yes = Annotated[bool, typer.Option("--yes", help="Download a hub: model without asking.")]
Sites = Annotated[
    Path | None,
    typer.Option(
        "--sites", metavar="TOML", help="Declared pairs of a model of your own ([[attention]], [[feed_forward]])."
    ),
]
Build = Annotated[
    str | None,
    typer.Option(
        "--build", metavar="MODULE:FUNCTION", help="Your function that makes a small model to prove --sites on."
    ),
]
Forward = Annotated[
    str | None,
    typer.Option(
        "--forward", metavar="MODULE:FUNCTION", help="Your function (model, ids) that calls what --build makes."
    ),
]
Unproved = Annotated[bool, typer.Option("--unproved", help="Take --sites as they are; the report says so first.")]


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
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Model folder, .safetensors file, or hub:owner/name[@revision].",
            show_default="the bundled sample",
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", metavar="N", help="Port on this machine.")] = 8501,
) -> int:
    """Open the dashboard in the browser, on 127.0.0.1 only; Ctrl-C ends it."""
    from wisca_core.cli.dashboard import run

    return run(model, port)


@app.command("inspect")
@ending
def _inspect(
    model: Model,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the table of KV groups as CSV.")
    ] = None,
    norm: Annotated[str, typer.Option("--norm", metavar="l1|l2|max|rms|mean", help="Norm that is compared.")] = "l1",
    pairs: Annotated[
        str | None,
        typer.Option(
            "--pairs", metavar="qk,vo,mlp", help="Pairs to look at; mlp reads most of the model.", show_default="qk,vo"
        ),
    ] = None,
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
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the table with all its columns as CSV.")
    ] = None,
    matrices: Annotated[
        bool, typer.Option("--matrices", help="Every matrix of the model instead, each by itself; reads all of it.")
    ] = False,
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
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Model folder, .safetensors file, hub:owner/name[@revision], or the folder of a comparison.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The HTML file.", show_default="MODEL-wisca.html here")
    ] = None,
    pairs: Annotated[
        str | None, typer.Option("--pairs", metavar="qk,vo,mlp", help="Pairs to report.", show_default="qk,vo")
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            "--granularity", metavar="tensor|group|channel", help="What shares one factor.", show_default="tensor"
        ),
    ] = None,
    norm: Annotated[
        str | None, typer.Option("--norm", metavar="l1|l2|max|rms", help="Norm to balance.", show_default="l1")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Factors as powers of two.")] = False,
    heads: Annotated[
        bool, typer.Option("--heads/--no-heads", help="Measure what each head computes; one more pass.")
    ] = True,
    evaluation: Annotated[
        Path | None, typer.Option("--evaluation", metavar="DIR", help="What wisca evaluate --out left.")
    ] = None,
    comparison: Annotated[
        Path | None, typer.Option("--comparison", metavar="DIR", help="The folder of a comparison.")
    ] = None,
    json: Json = False,
    yes: Yes = False,
) -> int:
    """Write one HTML file that needs no network: balance, heads, plan, proof, rates and what was measured."""
    from wisca_core.cli.report import run
    from wisca_core.cli.rescale import TypedOptions

    asked = TypedOptions(pairs, granularity, norm, None, None, (), exact)
    return run(model, out, asked, heads, evaluation, comparison, json, yes)


@app.command("rescale")
@ending
def _rescale(
    model: Model,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="New folder for the rescaled model.", show_default=False)
    ] = None,
    pairs: Annotated[
        str | None, typer.Option("--pairs", metavar="qk,vo,mlp", help="Pairs to balance.", show_default="qk,vo")
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            "--granularity",
            metavar="tensor|group|channel",
            help="What shares one factor; one a pair: qk=channel,vo=tensor.",
            show_default="tensor",
        ),
    ] = None,
    norm: Annotated[
        str | None, typer.Option("--norm", metavar="l1|l2|max|rms", help="Norm to balance.", show_default="l1")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option("--strength", metavar="S", help="0 changes nothing, 1 balances fully.", show_default="1"),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            metavar="0-3,7",
            help="Layers, both ends included; encoder:0-3 picks a stack.",
            show_default="all",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="SITE", help="Leave a pair alone, like decoder.3.self.qk; may be repeated."),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Round factors to powers of two, which round no weight.")
    ] = False,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="ADAPTER",
            help="A LoRA adapter of MODEL that follows its new weights; may be repeated.",
        ),
    ] = None,
    adapter_out: Annotated[
        list[Path] | None,
        typer.Option("--adapter-out", metavar="DIR", help="New folder of each adapter.", show_default="OUT-NAME"),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="Where MODEL is a LoRA adapter: its base, to prove it on."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="Apply a saved plan instead of options.")
    ] = None,
    save_plan: Annotated[
        Path | None, typer.Option("--save-plan", metavar="FILE", help="Save the plan as JSON.")
    ] = None,
    undo: Annotated[
        Path | None,
        typer.Option("--undo", metavar="REPORT", help="Take back the rescale whose wisca_report.json this is."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 1 and write nothing where any pair is refused.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen and write no model.")] = False,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help="Run both models on the same tokens before the export is kept.",
            show_default="where the memory allows",
        ),
    ] = None,
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
    from wisca_core.cli.models import site_options
    from wisca_core.cli.rescale import AdapterOptions, TypedOptions, run

    options = TypedOptions(pairs, granularity, norm, strength, layers, tuple(exclude or ()), exact)
    company = AdapterOptions(tuple(adapter or ()), tuple(adapter_out or ()), base)
    own = site_options(sites, build, forward, unproved)
    return run(model, out, options, company, plan, undo, save_plan, strict, dry_run, check, json, yes, own)


@app.command("verify")
@ending
def _verify(
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="The original model.", show_default=False)],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="The model compared with it.", show_default=False)],
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Compare weights and prove the rule, run no full model.")
    ] = False,
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
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="One architecture: the model_type of config.json.", show_default="all"),
    ] = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="Prove on miniatures what has no kept result for the installed versions.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Prove what has a kept result too.")] = False,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="Encoders, encoder-decoders, vision and speech too, not only causal language models."
        ),
    ] = False,
    granularity: Annotated[
        str | None,
        typer.Option(
            "--granularity",
            metavar="tensor|group|channel",
            help="What is proved; several with commas.",
            show_default="all three",
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the table as CSV.")] = None,
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
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Log files, or folders with logs below them.", show_default=False),
    ],
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write every value as one long table.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME", help="Metric to sum up.", show_default="the loss")
    ] = None,
    step_column: Annotated[
        str | None,
        typer.Option(
            "--step-column", metavar="NAME", help="Step column of tables and JSON lines.", show_default="guessed"
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print a line whenever a run has new values, until Ctrl-C.")
    ] = False,
    json: Json = False,
) -> int:
    """Read training logs: TensorBoard, Trainer, CSV, JSONL, parquet, trackio, W&B, nanoGPT and Megatron text."""
    from wisca_core.cli.runs import run

    return run(paths, csv, metric or "", step_column or "", follow, json)


@app.command("trajectory")
@ending
def _trajectory(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder of checkpoints: checkpoint-500, step_1000, ...", show_default=False),
    ],
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the ratio of every KV group and step as CSV.")
    ] = None,
    norm: Annotated[str, typer.Option("--norm", metavar="l1|l2|max|rms|mean", help="Norm that is compared.")] = "l1",
    every: Annotated[
        int, typer.Option("--every", metavar="N", help="Steps between two rescalings the reading speaks of.")
    ] = 250,
    logs: Annotated[
        Path | None,
        typer.Option(
            "--logs", metavar="PATH", help="Log with the loss of this training.", show_default="beside the checkpoints"
        ),
    ] = None,
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
    spec: Annotated[
        Path | None, typer.Argument(metavar="SPEC", help="Comparison spec, TOML or JSON.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the comparison.", show_default=False)
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", metavar="default|dose|thorough|lora|tinyllama|qwen2|qwen15_moe", help="A spec that is built in."
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="DIR",
            help="Model folder, for --preset lora; its tokenizer, for a set-up of the paper.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the comparison in DIR.")] = False,
    add_seeds: Annotated[
        int | None,
        typer.Option("--add-seeds", metavar="N", help="Train N further seeds; the result is marked as extended."),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Show time, memory and the seeds needed, and start nothing.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", help="Processes side by side.", show_default="one a core or a GPU"),
    ] = None,
    executor: Annotated[
        str,
        typer.Option(
            "--executor",
            metavar="auto|processes|replicas|ray",
            help="How runs are trained: one by one in each process, several at once in each (the default on GPUs), or on a Ray cluster.",
        ),
    ] = "auto",
    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="auto|cpu|cuda|cuda:N", help="Instead of the spec's device.", show_default=False
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="float32|bfloat16|float64",
            help="Instead of the spec's precision.",
            show_default=False,
        ),
    ] = None,
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
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Causal model, folder of checkpoints, or folder of a comparison (its arms, by seed).",
            show_default=False,
        ),
    ],
    other: Annotated[
        str | None,
        typer.Argument(metavar="MODEL2", help="A second model on the same text and documents.", show_default=False),
    ] = None,
    text: Annotated[
        str, typer.Option("--text", metavar="FILE", help="Text in UTF-8.", show_default="held-out bundled text")
    ] = "",
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            metavar="NAMES",
            help="docs-continuation, docs-order, a .jsonl file, FOLDER:NAME, or a task of lm-evaluation-harness; several with commas.",
        ),
    ] = None,
    draft: Annotated[
        list[str] | None,
        typer.Option("--draft", metavar="MODEL", help="A draft for assisted generation with MODEL; may be repeated."),
    ] = None,
    inside: Annotated[
        bool, typer.Option("--inside", help="Attention logits, entropy, first token and activations, head by head.")
    ] = False,
    window: Annotated[
        int, typer.Option("--window", metavar="N", help="Tokens of a window.", show_default="context, at most 1024")
    ] = 0,
    stride: Annotated[
        int, typer.Option("--stride", metavar="N", help="Tokens from window to window.", show_default="window: packed")
    ] = 0,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", help="Windows, and documents a task, at most.", show_default="all")
    ] = 0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", help="Windows and answers at a time.", show_default="fastest; 8")
    ] = 0,
    device: Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda|cuda:N", help="Where it runs.")] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="float32|bfloat16|float16",
            help="In what it runs.",
            show_default="as stored; float32 on a CPU",
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="New folder that keeps every row.", show_default=False)
    ] = None,
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
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAMES", help="Folders to empty, or all.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    json: Json = False,
) -> int:
    """Show what is kept under WISCA_HOME, and empty the named folders."""
    from wisca_core.cli.kept import run_clean

    return run_clean(names or [], yes, json)


@app.command("jobs")
@ending
def _jobs(
    cancel: Annotated[
        str | None, typer.Option("--cancel", metavar="ID", help="Ask a job to stop; by force after 10 s.")
    ] = None,
    json: Json = False,
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
