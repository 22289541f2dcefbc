"""``wisca evaluate``: perplexity, tasks, drafts and a look inside, of one model or of two side by side."""

from dataclasses import replace
from pathlib import Path

from wisca_core.cli import models
from wisca_core.cli.terminal import bar, document, indented_lines, say, say_lines, table
from wisca_core.evaluation.seeds import is_comparison
from wisca_core.evaluation.whole import Evaluation, EvaluationOptions, evaluate
from wisca_core.words import in_bytes


def run(
    model: str,
    other: str | None,
    asked: EvaluationOptions,
    drafts: tuple[str, ...],
    out: Path | None,
    json: bool,
    yes: bool,
) -> int:
    """0; raises where nothing of it can be evaluated."""
    asked = replace(asked, tasks=tuple(name for given in asked.tasks for name in given.split(",") if name))
    for name in (model, other, *drafts):
        if name and name.startswith("hub:"):
            models.open_after_asking(name, yes)  # asks before a download
    with bar() as progress:
        found = evaluate(model, other, drafts=drafts, out=out, progress=progress, **vars(asked))
    if json:
        document("wisca-evaluate", {**found.result, "folder": str(found.folder) if found.folder else None})
        return 0
    _say(found, is_comparison(model))
    return 0


def _say(found: Evaluation, by_seed: bool) -> None:
    result = found.result
    for one in result["models"] if not by_seed else ():
        say(
            f"{one['model']}: {one['class']}, {models.parameters(one['parameters'])}, {one['tokens']}, "
            f"stored as {one['stored']}, run in {one['dtype']} on {one['device']} ({one['attention']})"
        )
    if result["text"]:
        text = result["text"]
        say(f"Text: {text['name']}, {in_bytes(text['n_bytes'])} read, sha256 {text['sha256'][:12]}")
    if result["perplexity"] and not by_seed:
        rows = [
            [
                r["model"],
                f"{r['perplexity']:.4g}",
                f"{r['perplexity_error']:.2g}" if r["perplexity_error"] is not None else "",
                f"{r['bits_a_byte']:.4f}",
                f"{r['n_windows']:,}",
                r["windows"],
            ]
            for r in result["perplexity"]
        ]
        table(["Model", "perplexity", "± error", "bits a byte", "windows", "cut as"], rows, numbers=(1, 2, 3, 4))
    if result["tasks"]:
        rows = [
            [
                r["model"],
                r["task"],
                f"{r['n']:,}",
                _share(r["chance"]),
                _share(r["majority"]),
                _share(r["score"]),
                _share(r["standard_error"]),
                "between the two constant answers" if r["between_constants"] else "",
            ]
            for r in result["tasks"]
        ]
        rows += [
            [r["model"], f"mean of {r['n_tasks']} tasks", "", "", "", _share(r["score"]), "", ""]
            for r in result["means"]
        ]
        head = ["Model", "task", "n", "chance", "majority", "score", "± error", ""]
        table(head, rows, numbers=(2, 3, 4, 5, 6))
    if result["heads"]:
        say(f"Inside: {len(result['heads']):,} heads; --json has them all")
        for one in dict.fromkeys(r["model"] for r in result["heads"]):
            rows = [r for r in result["heads"] if r["model"] == one]
            most = max(rows, key=lambda r: r["largest_logit"])
            sink = max(rows, key=lambda r: r["first_token"])
            say(
                f"  {one}: largest attention logit {most['largest_logit']:.1f} (layer {most['layer']}, head "
                f"{most['head']}), "
                f"most attention on the first token {sink['first_token']:.0%} (layer {sink['layer']}, head "
                f"{sink['head']})"
            )
        change = result["inside_change"]
        if change:
            say("  largest relative difference of the two: " + ", ".join(f"{k} {v:.1e}" for k, v in change.items()))
    say()
    for sentence in found.sentences:
        say(sentence)
    if result["same"] and result["same"]["flipped"]:
        flipped = result["same"]["flipped"]
        say(indented_lines([f"flipped: {d['task']}, document {d['number']}" for d in flipped], 10))
    say_lines("Not evaluated:", [f"{one.what}: {one.reason}" for one in found.refused])
    if result["report"]:
        say(f"Kept in {result['report']}")
    if found.folder:
        say(f"Every row is in {found.folder}", style="bold")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
