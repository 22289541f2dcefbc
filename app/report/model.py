"""A model as a report: its balance, its heads, the plan and its proof, what that is for a training, and what was
measured.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wisca_app import rates_line
from wisca_app.figures import evaluation as scored
from wisca_app.figures import factors, words
from wisca_app.figures.chart import Chart
from wisca_app.figures.words import markdown_text
from wisca_app.heads.charts import map_of as heads_map
from wisca_app.inspecting.charts import balance_of, depth_of, map_of
from wisca_app.inspecting.controls import describe
from wisca_app.inspecting.drawn_pair import most_unbalanced_cells, pair_in_block
from wisca_app.inspecting.facts import facts
from wisca_app.method.identity import optimisers_table
from wisca_app.report.comparison import section_of
from wisca_app.report.document import Section, Table, document
from wisca_app.rescaling.proof import in_words as proof_in_words
from wisca_app.rescaling.verdict import sentence, what_applies
from wisca_core.architecture.refusals import lines
from wisca_core.circuits.columns import BY_NAME
from wisca_core.circuits.findings import findings, headline
from wisca_core.circuits.measure import Circuits
from wisca_core.equivalence.full_check import not_covered
from wisca_core.equivalence.proof import Proof
from wisca_core.model import Model
from wisca_core.pairs import MATRICES
from wisca_core.patterns.blocks import block_of, titles
from wisca_core.patterns.summary import sentence as pair_sentence
from wisca_core.patterns.summary import summaries
from wisca_core.patterns.verdict import verdict
from wisca_core.planning.decide import Decision, decide
from wisca_core.planning.options import Options
from wisca_core.planning.plan import make_plan
from wisca_core.planning.rates import equivalent_rates, layer_rates, median_rates, span
from wisca_core.planning.rows import plan_rows
from wisca_core.verdicts import versions

MOST_PLACES = 8  # (pair, block) with a map each
HEAD_COLUMNS = ("qk_stable_rank", "ov_stable_rank", "logit_bound")


@dataclass(frozen=True, eq=False)
class OtherResults:
    """What was measured of the model besides its weights. ``circuits``: of its heads. ``evaluation``: the result of
    one. ``comparison``: the folder of one.
    """

    circuits: Circuits | None = None
    evaluation: Mapping[str, Any] | None = None
    comparison: Path | None = None


def document_of(found: Model, options: Options, proof: Proof | None, results: OtherResults, command: str = "") -> bytes:
    """The report. ``found``: with the pairs of ``options``; ``proof``: of it, None where nobody made one; ``command``:
    that makes this report again. Raises WiscaError.
    """
    if not found.sites.sites:
        return _refusal_document(found)
    model = found.proved(proof)
    looked = decide(found.patterns, options)
    gains = {site.key.pair for site in found.sites.sites if site.live == "gains"}
    groups = looked.groups()
    means = list(summaries(groups, options.norm).values())
    full = median_rates(equivalent_rates(looked, full=True))
    sections = [_balance(found, options, looked)]
    if results.circuits is not None and len(results.circuits.table):
        sections.append(_heads(results.circuits))
    if not found.checkpoint.look_only and model.sites.sites:
        decision = decide(model.patterns, options)
        sections += [_plan(decision), _proof(proof), _rates(decision)]
    if results.evaluation:
        sections.append(_evaluation(results.evaluation))
    if results.comparison is not None:
        sections.append(section_of(results.comparison))
    sections += [_remarks(found, model), _provenance(found, options, command)]
    said = [f"**Look only:** {markdown_text(found.checkpoint.look_only)}"] if found.checkpoint.look_only else []
    if full and not found.checkpoint.look_only:
        said.append(f"{rates_line.line(full, 'balancing')} No output changes beyond rounding.")
    said += [markdown_text(pair_sentence(one)) for one in means[:MOST_PLACES]]
    return document(
        verdict(means, groups, gains),
        [one for one in sections if one is not None],
        facts=markdown_text(facts(found)),
        said=said,
    )


def _refusal_document(model: Model) -> bytes:
    return document(
        "No pair of this model is known.",
        [Section("Why", remarks=(model.refusal, *lines(model.sites.refusals)[:200])), _provenance(model, None, "")],
        facts=markdown_text(facts(model)),
    )


def _balance(model: Model, options: Options, decision: Decision) -> Section:
    """A map of each pair in each place, the largest imbalances, and every head over depth."""
    parts: list[Chart | Table] = []
    rows = plan_rows(decision)
    places = list(dict.fromkeys((site.key.pair, block_of(site.key)) for site in model.sites.sites))
    for number, (pair, block) in enumerate(places[:MOST_PLACES]):
        shown = pair_in_block(
            "", model, options, decision, pair, options.norm if options.norm != "rms" else "l2", block
        )
        where = f"{words.PAIR_LABELS[pair]}{', ' + words.title(shown.title) if shown.title else ''}"
        parts.append(_with_pair(map_of(shown, shown.own_view), markdown_text(where), block))
        if number < 2:
            parts.append(_with_pair(balance_of(shown), markdown_text(where), block))
        far = most_unbalanced_cells(shown.groups, rows)
        table = pd.DataFrame(
            {
                "Place": [words.title(shown.place(int(a), int(b))) for a, b in zip(far["layer"], far["group"])],
                "Heavier side": [words.side(pair, value) for value in far["log2_ratio"]],
                "After": [words.side(pair, value) for value in far["log2_after"]],
            }
        )
        parts.append(Table(f"{markdown_text(where)}: the most unbalanced", "", table))
        if not number and pair in ("qk", "vo"):
            parts.append(depth_of(shown, shown.heads()))
    more = len(places) - MOST_PLACES
    remarks = (f"{more} more places are not drawn here; `wisca inspect --csv` has them all.",) if more > 0 else ()
    return Section("Where the weight lies", parts=tuple(parts), remarks=remarks)


def _with_pair(chart: Chart, where: str, block: str) -> Chart:
    """With the pair in front of its finding: in a file there is no control above it."""
    said = f"{where}: {chart.finding[:1].lower()}{chart.finding[1:]}"
    return replace(chart, finding=said, name=f"{chart.name}-{block}")


def _heads(circuits: Circuits) -> Section:
    block = circuits.table["block"].iloc[0]
    table = circuits.table[circuits.table["block"] == block]
    names = titles(dict.fromkeys(circuits.table["block"]))
    patterns = pd.DataFrame(
        [(one.title, one.count, one.sentence) for one in findings(circuits)], columns=["Pattern", "Count", "Where"]
    )
    parts = [heads_map(table, BY_NAME[name]) for name in HEAD_COLUMNS if table[name].notna().any()]
    shown = [name for name in BY_NAME if name in table and table[name].notna().any()]
    renamed = {name: BY_NAME[name].title for name in shown}
    every = table[list(dict.fromkeys(("layer", "head", *shown)))].sort_values("qk_stable_rank").rename(columns=renamed)
    rest = [markdown_text(words.title(name)) for one, name in names.items() if one != block]
    return Section(
        "What the heads compute",
        (
            f"{markdown_text(headline(circuits))} That is what the heads compute: no rescale moves it.",
            *([f"Drawn: {markdown_text(names[block])}. Not drawn: {', '.join(rest)}."] if rest else []),
        ),
        (
            *parts,
            Table("Patterns", "None is a fault by itself.", patterns),
            Table("All heads", "Lowest QK stable rank first.", every),
        ),
        tuple(circuits.remarks),
    )


def _plan(decision: Decision) -> Section:
    rows = plan_rows(decision)
    rows = rows[rows["pair"].isin(decision.options.pairs)]
    table = pd.DataFrame(
        {
            "Pair": rows["name"].to_numpy(),
            "Group": ["all" if group < 0 else str(group) for group in rows["group"]],
            "Heavier side": [words.side(pair, value) for pair, value in zip(rows["pair"], rows["log2_ratio"])],
            "Factor on the left": [words.factors(*two) for two in zip(rows["factor_low"], rows["factor_high"])],
            "On the right": [words.factors(*two) for two in zip(rows["right_low"], rows["right_high"])],
            "After": [words.side(pair, value) for pair, value in zip(rows["pair"], rows["log2_after"])],
            "Status": rows["status"].to_numpy(),
        }
    )
    said = (sentence(decision), what_applies(decision), f":small[:gray[{describe(decision.options)}.]]")
    parts = (
        factors.chart(rows),
        Table("The plan", "Left is q, v, up and A; right is k, o, down and B, and takes the inverse.", table),
    )
    return Section("What balancing would do", tuple(filter(None, said)), parts if len(rows) else ())


def _proof(proof: Proof | None) -> Section:
    if proof is None:
        return Section("Proof", ("No proof was made yet, so nothing is claimed here. `wisca rescale` makes one.",))
    title, said = proof_in_words(proof)
    refused = [f"{name} is refused and left as it is: {reason}" for name, reason in proof.refused]
    not_checked = [f"Not checked: {text.rstrip('.')}." for text in not_covered(proof, None)]
    at = ", ".join(f"{name} {version}" for name, version in proof.versions.items())
    return Section("Proof", (f"**{title}**", said, f":small[:gray[{markdown_text(at)}]]"), (), (*refused, *not_checked))


def _rates(decision: Decision) -> Section | None:
    found = equivalent_rates(decision)
    medians = median_rates(found)
    if not medians:
        return None
    by_layer = layer_rates(found).dropna()
    several = by_layer["block"].nunique() > 1
    table = pd.DataFrame(
        [
            {
                **({"Where": row.block} if several else {}),
                "Layer": row.layer,
                "Pair": words.PAIR_LABELS[row.pair],
                "Left": f"{MATRICES[row.pair][0]} {span(row.left_rate_low, row.left_rate_high)}",
                "Right": f"{MATRICES[row.pair][1]} {span(row.right_rate_low, row.right_rate_high)}",
            }
            for row in by_layer.itertuples()
        ]
    )
    size = float(np.max([max(one.left, one.right) for one in medians])) ** 2
    return Section(
        "The same as learning rates",
        (
            rates_line.line(medians, "this plan"),
            ":small[:gray[Of now: the heavier side trains faster and grows heavier, so they are renewed as a training "
            "goes. "
            "Every tensor of a side follows, biases too.]]",
        ),
        (
            Table("Rates of each layer", "Factors on Adam's learning rate.", table),
            Table(
                "Which rates, for which optimiser",
                "m = √(\\|Wq\\| / \\|Wk\\|), and √(\\|Wo\\| / \\|Wv\\|).",
                optimisers_table(size, f"At m² = {size:.3g}"),
            ),
        ),
    )


def _evaluation(result: Mapping[str, Any]) -> Section:
    title, said = scored.headline(result)
    parts: list[Chart | Table] = []
    if result["tasks"]:
        parts.append(scored.scores_chart(pd.DataFrame(result["tasks"])))
    for name, heading, columns in (
        ("perplexity", "Text", scored.PERPLEXITY),
        ("tasks", "Tasks", scored.TASKS),
        ("paired", "The two models, document by document", scored.PAIRED),
        ("seeds", "Arms by training seed", scored.SEEDS),
        ("drafts", "Drafts", scored.DRAFTS),
    ):
        if result[name]:
            parts.append(Table(heading, "", scored.table(result[name], columns)))
    if result["heads"]:
        rows = pd.DataFrame(result["heads"])
        parts.append(scored.inside_chart(rows, rows["model"].iloc[-1], "largest_logit"))
    refused = tuple(f"{one['what']}: {one['reason']}" for one in result["refused"])
    return Section("What it scores", (markdown_text(title), markdown_text(said)), tuple(parts), refused)


def _remarks(found: Model, model: Model) -> Section | None:
    said = [*found.checkpoint.remarks, *found.sites.remarks, *lines(model.sites.refusals)]
    return Section("Left alone, and remarks", remarks=tuple(said[:200])) if said else None


def _provenance(model: Model, options: Options | None, command: str) -> Section:
    said = [
        f"{time.strftime('%Y-%m-%d')}, " + ", ".join(f"{name} {version}" for name, version in versions().items()),
        f"Model: {model.checkpoint.source}",
    ]
    if options is not None:
        said.append(f"Fingerprint of the weights looked at: {make_plan(decide(model.patterns, options)).fingerprint}")
    return Section("How this was made", remarks=(*said, *filter(None, [command])))
