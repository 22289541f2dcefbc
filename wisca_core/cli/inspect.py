"""``wisca inspect``: what the pairs of a model weigh, in words and tables."""

import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd

from wisca_core.architecture import refusals
from wisca_core.architecture.discovery import sites_of
from wisca_core.architecture.find import pairs_to_find
from wisca_core.architecture.guessing import guess
from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint, Declared
from wisca_core.cli import models
from wisca_core.cli.terminal import bar, document, note, say, say_lines, table
from wisca_core.errors import DeclarationError, check_choice
from wisca_core.pairs import MATRICES, SIDES
from wisca_core.patterns.blocks import site_unit, unit_of
from wisca_core.patterns.groups import group_table
from wisca_core.patterns.store import measured_patterns
from wisca_core.patterns.summary import PairSummary, furthest, layer_ratios, sentence, summaries
from wisca_core.patterns.table import NORMS
from wisca_core.planning.decide import decide
from wisca_core.planning.options import PLAN_NORMS, Options, default_pairs
from wisca_core.planning.rates import PairRates, equivalent_rates, layer_rates, median_rates, span
from wisca_core.planning.rates import sentence as rates_in_words
from wisca_core.spreadsheet import check_replaceable, write_csv
from wisca_core.words import join_names, side, times

N_WORST = 10
MOST_TENSORS = 100
CSV_COLUMNS = (
    "name",
    "layer",
    "pair",
    "group",
    "n_left",
    "n_right",
    "left",
    "right",
    "log2_ratio",
    "log2_size",
    "block",
)
# of full balance, one factor a matrix; behind the columns that earlier versions wrote
RATE_CSV_COLUMNS = ("left_rate_low", "left_rate_high", "right_rate_low", "right_rate_high")
LAYER_COLUMNS = ["pair", "block", "layer", "log2_ratio", "log2_size", *RATE_CSV_COLUMNS]  # in JSON


def run(
    model: str, csv: Path | None, norm: str, pairs: str | None, json: bool, yes: bool, declared: Declared | None = None
) -> int:
    """0, or 1 where the model has no pair that could be rescaled."""
    asked = Options(pairs) if pairs is not None else None
    check_choice("norm", norm, NORMS)
    if csv:
        check_replaceable(csv, ",".join(CSV_COLUMNS[:-1]), "table of KV groups")  # tables of earlier versions end there
    checkpoint = models.open_after_asking(model, yes, declared)
    with bar() as progress:
        found = sites_of(checkpoint, pairs_to_find(asked.pairs if asked else ()), progress, search=models.search)
    sites = _only(found, asked) if asked else found
    remarks = [*checkpoint.remarks, *sites.remarks]
    common = {
        "source": checkpoint.source,
        "path": str(checkpoint.path),
        "facts": _facts(checkpoint, sites),
        "norm": norm,
        "look_only": checkpoint.look_only,
        "refused": [asdict(r) for r in sites.refusals],
        "remarks": remarks,
    }
    if not sites.sites:
        if csv:
            note(f"{csv} was not written: there is no pair to put into it.")
        if json:
            document(
                "wisca-inspect",
                common | {"pairs": {}, "layers": [], "worst": [], "groups": [], "tensors": _tensors(checkpoint)},
            )
        else:
            _say_not_rescalable(checkpoint, sites, remarks)
        return 1
    with bar() as progress:
        patterns = measured_patterns(checkpoint, found, progress).of(sites)
    # balance in the norm that is looked at, the paper's where no plan is made in it
    decision = decide(patterns, Options(default_pairs(sites), norm=norm if norm in PLAN_NORMS else "l1"))
    rates = equivalent_rates(decision, full=True)
    groups = group_table(patterns, norm).merge(rates[["name", *RATE_CSV_COLUMNS]], on="name", how="left")
    if csv:
        write_csv(csv, groups[[*CSV_COLUMNS, *RATE_CSV_COLUMNS]])
    verdicts, worst = summaries(groups, norm), furthest(groups, N_WORST)
    layers = layer_ratios(groups, norm).merge(layer_rates(rates), on=["pair", "block", "layer"], how="left")
    if json:
        document(
            "wisca-inspect",
            common
            | {
                "pairs": {name: _pair(s) for name, s in verdicts.items()},
                "rates": [asdict(one) for one in median_rates(rates)],
                "rates_norm": decision.options.norm,
                "layers": layers[LAYER_COLUMNS].to_dict("records"),
                "worst": worst.to_dict("records"),
                "groups": groups[list(CSV_COLUMNS)].to_dict("records"),
            },
        )
        return 0
    say(str(checkpoint.path))
    say(models.facts(checkpoint, sites))
    if checkpoint.look_only:
        say(f"Look only: {checkpoint.look_only}")
    say()
    for summary in verdicts.values():
        say(sentence(summary), style="bold")
    say(f"Norm: {norm}, the {NORMS[norm]}. Size is the part that only says how many entries each side has.")
    _say_rates(median_rates(rates))
    _say_layers(layers)
    _say_worst(worst)
    _say_left(sites, remarks)
    if csv:
        say(f"{len(groups):,} {_row_noun(groups)} written to {csv}")
    return 0


def _say_rates(rates: list[PairRates]) -> None:
    """What balancing does to a training, of the median site; a line a block where there are several."""
    blocks = dict.fromkeys(one.block for one in rates)
    for block in blocks:
        said = rates_in_words([one for one in rates if one.block == block])
        say(f"{block}: {said}" if len(blocks) > 1 else said)
    if rates:
        units = join_names(list(dict.fromkeys(site_unit(one.pair, one.block) for one in rates)))
        say(f"Median {units}; with SGD the squares of these, with Adafactor's scale_parameter no effect.\n")


def _only(sites: Sites, asked: Options) -> Sites:
    """What was asked to be looked at, refusals included."""
    return replace(
        sites.only(lambda site: asked.chooses(site.key)),
        refusals=tuple(r for r in sites.refusals if asked.asks(r.what)),
    )


def _row_noun(groups: pd.DataFrame) -> str:
    """What the rows are: "KV groups", or "places" where they are of several kinds."""
    units = {unit_of(pair, block) for pair, block in zip(groups["pair"], groups["block"])}
    return f"{units.pop()}s" if len(units) == 1 else "places"


def _say_layers(layers: pd.DataFrame) -> None:
    """A table a block, under its name where there are several."""
    for block, part in layers.groupby("block", sort=False):
        if layers["block"].nunique() > 1:
            say(f"{block}:")
        _say_block(part)


def _say_block(layers: pd.DataFrame) -> None:
    """One row a layer; the columns of a pair are empty where it was refused."""
    chosen = list(dict.fromkeys(layers["pair"]))
    headers = ["layer"]
    for pair in chosen:
        headers += [" / ".join(SIDES[pair]), "size", "the rest", f"{', '.join(MATRICES[pair])} rates"]
    cells = {(row.pair, row.layer): row for row in layers.itertuples()}
    rows = []
    for layer in sorted(set(layers["layer"])):
        row = [str(layer)]
        for pair in chosen:
            found = cells.get((pair, layer))
            if found is None:
                row += ["refused", "", "", ""]
            else:
                known = np.isfinite(found.log2_size)
                row += [
                    side(pair, found.log2_ratio),
                    side(pair, found.log2_size) if known else "",
                    side(pair, found.log2_ratio - found.log2_size) if known else "",
                    f"{span(found.left_rate_low, found.left_rate_high)}, "
                    f"{span(found.right_rate_low, found.right_rate_high)}",
                ]
        rows.append(row)
    table(headers, rows, numbers=(0,))


def _say_worst(worst: pd.DataFrame) -> None:
    if not len(worst):
        say("Every group is at the median of its pair.\n")
        return
    counted = _row_noun(worst)
    grouped = [unit_of(w.pair, w.block) == "KV group" for w in worst.itertuples()]  # elsewhere the name says it all
    say(f"{counted[:1].upper()}{counted[1:]} furthest from the median of their pair:")
    rows = []
    for w, is_group in zip(worst.itertuples(index=False), grouped):
        away = f"{times(2 ** abs(w.log2_away))} to the {SIDES[w.pair][0 if w.log2_away > 0 else 1]} side"
        rows.append(
            (w.name, *((str(w.group) if is_group else "",) if any(grouped) else ()), side(w.pair, w.log2_ratio), away)
        )
    if not any(grouped):
        table(("pair", "ratio", "away from the median"), rows)
    else:
        table(("pair", "KV group", "ratio", "away from the median"), rows, numbers=(1,))


def _say_left(sites: Sites, remarks: list[str]) -> None:
    say_lines(f"Refused, {len(sites.refusals):,}:", refusals.lines(sites.refusals))
    say_lines("Remarks:", remarks)


def _say_not_rescalable(checkpoint: Checkpoint, sites: Sites, remarks: list[str]) -> None:
    say(str(checkpoint.path))
    say(models.facts(checkpoint, sites))
    say()
    say("Nothing in this model can be rescaled.", style="bold")
    if checkpoint.look_only:
        say(f"Look only: {checkpoint.look_only}")
    _say_left(sites, remarks)
    if not checkpoint.config_json and not checkpoint.adapter_json:
        _say_guess(checkpoint)
    say()
    kinds = Counter((re.sub(r"\d+", "*", t.name), t.dtype, t.shape) for t in checkpoint.stored or checkpoint.tensors)
    rows = [(name, f"{n:,}", dtype, " x ".join(map(str, shape)) or "1") for (name, dtype, shape), n in kinds.items()]
    table(("tensor", "how many", "dtype", "shape"), rows[:MOST_TENSORS], numbers=(1,))
    if len(rows) > MOST_TENSORS:
        say(f"and {len(rows) - MOST_TENSORS:,} more kinds of tensor (--json lists all)")


def _say_guess(checkpoint: Checkpoint) -> None:
    """Of a file without a config.json: what could be declared."""
    try:
        found = guess(checkpoint)
    except DeclarationError:
        return
    say("\nBy its names it may be declared like this; correct it, save it, and give it with --sites:\n", style="bold")
    say(found.toml())


def _facts(checkpoint: Checkpoint, sites: Sites) -> dict:
    attention = asdict(sites.attention) if sites.attention else {}
    return {
        "architecture": sites.model_type or sites.family,
        "rule": sites.family,
        "n_parameters": checkpoint.n_parameters,
        "n_tensors": len(checkpoint.tensors),
        "dtypes": models.dtypes(checkpoint),
        "n_pairs": len(sites.sites),
        "n_refused": len(sites.refusals),
    } | attention


def _pair(s: PairSummary) -> dict:
    """Without the fields that say what a plan would make of it."""
    return {"sentence": sentence(s)} | {name: value for name, value in asdict(s).items() if not name.endswith("_after")}


def _tensors(checkpoint: Checkpoint) -> list[dict]:
    return [
        {"name": t.name, "dtype": t.dtype, "shape": t.shape, "file": t.file, "n_bytes": t.n_bytes}
        for t in checkpoint.stored or checkpoint.tensors
    ]
