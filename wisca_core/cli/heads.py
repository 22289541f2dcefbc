"""``wisca heads``: what each attention head computes, and which of its numbers a rescale moves."""

import math
from pathlib import Path

import pandas as pd

from wisca_core.architecture.discovery import sites_of
from wisca_core.circuits import store
from wisca_core.circuits.columns import BY_NAME, COLUMNS, MOVED, UNMOVED
from wisca_core.circuits.findings import findings, headline
from wisca_core.circuits.table import as_table, matrices
from wisca_core.cli import models
from wisca_core.cli.terminal import bar, document, note, say, say_lines, table
from wisca_core.spreadsheet import check_replaceable, write_csv

N_SHOWN = 10
# one line a head: the rest is in the CSV
_SHOWN = ("qk_norm", "qk_stable_rank", "logit_bound", "ov_norm", "ov_stable_rank", "ov_copying", "q_rate", "k_rate")


def run(model: str, csv: Path | None, every_matrix: bool, json: bool, yes: bool) -> int:
    """0, or 1 where no head of the model is known."""
    if csv:
        check_replaceable(csv, "name,part,layer" if every_matrix else "block,layer,head", "table of heads or matrices")
    checkpoint = models.open_after_asking(model, yes)
    if every_matrix:
        return _matrices(checkpoint, csv, json)
    with bar() as progress:
        sites = sites_of(checkpoint, progress=progress, search=models.search)
        circuits = store.measured_circuits(checkpoint, sites, progress)
    found = as_table(circuits, sites.refusals)
    if csv and len(found):
        write_csv(csv, found)
    elif csv:
        note(f"{csv} was not written: there is no head to put into it.")
    patterns = findings(circuits) if len(found) else ()
    if json:
        document(
            "wisca-heads",
            {
                "source": checkpoint.source,
                "path": str(checkpoint.path),
                "look_only": checkpoint.look_only,
                "columns": [{"name": c.name, "unit": c.unit, "moves": c.moves, "meaning": c.meaning} for c in COLUMNS],
                "heads": found.to_dict("records"),
                "patterns": [
                    {name: getattr(one, name) for name in ("name", "title", "count", "sentence", "known", "source")}
                    for one in patterns
                ],
                "channels": circuits.channels.to_dict("records"),
                **found.attrs,
            },
        )
        return 0 if len(found) else 1
    say(str(checkpoint.path))
    say(models.facts(checkpoint, sites))
    say()
    if not len(found):
        say("No head of this model is known.", style="bold")
    else:
        say(headline(circuits), style="bold")
        say(f"That is what {len(found):,} heads compute: no rescale moves it.\n")
        for one in patterns:
            say(f"{one.title}: {one.count}. {one.sentence}")
        say()
        _say_heads(found)
    say_lines(f"Without a circuit, {len(found.attrs['refused']):,}:", found.attrs["refused"])
    say_lines("Remarks:", found.attrs["remarks"])
    if csv and len(found):
        say(f"{len(found):,} heads written to {csv}")
    return 0 if len(found) else 1


def _say_heads(found: pd.DataFrame) -> None:
    """The heads of lowest QK stable rank."""
    chosen = found.sort_values("qk_stable_rank", na_position="last").head(N_SHOWN)
    several = found["block"].nunique() > 1
    headers = (*(("block",) if several else ()), "layer", "head", *(BY_NAME[name].title for name in _SHOWN))
    rows = [
        (*((row["block"],) if several else ()), str(row["layer"]), str(row["head"]), *(_number(row[n]) for n in _SHOWN))
        for _, row in chosen.iterrows()
    ]
    say(f"Lowest QK stable rank first, {len(rows)} of {len(found):,}:")
    table(headers, rows, numbers=tuple(range(int(several), len(headers))))
    empty = found[found[list(_SHOWN)].isna().any(axis=1) & (found["note"] != "")]
    for reason, those in list(empty.groupby("note", sort=False))[:N_SHOWN]:
        places = [f"layer {row['layer']}, head {row['head']}" for _, row in those.head(3).iterrows()]
        more = f" and {len(those) - 3:,} more" if len(those) > 3 else ""
        say(f"Without all numbers: {'; '.join(places)}{more}. {reason}")
    stays, moves = ([c.title for c in columns if c.name in _SHOWN] for columns in (UNMOVED, MOVED))
    say(f"Stay under a rescale: {', '.join(stays)}. Move: {', '.join(moves)}.")


def _matrices(checkpoint, csv: Path | None, json: bool) -> int:
    with bar() as progress:
        found = matrices(checkpoint, progress)
    if csv:
        write_csv(csv, found)
    if json:
        document("wisca-matrices", {"source": checkpoint.source, "matrices": found.to_dict("records"), **found.attrs})
        return 0
    names = ("norm", "spectral_norm", "stable_rank", "outliers", "kurtosis")
    say(f"Largest norm first, {min(len(found), 2 * N_SHOWN)} of {len(found):,} matrices:")
    table(
        ("matrix", "part", *(name.replace("_", " ") for name in names), "moves under a rescale"),
        [
            (row["name"], row["part"], *(_number(row[n]) for n in names), "yes" if row["moves"] else "no")
            for _, row in found.head(2 * N_SHOWN).iterrows()
        ],
        numbers=tuple(range(2, 2 + len(names))),
    )
    for remark in found.attrs["remarks"]:
        say(remark)
    return 0


def _number(value: float) -> str:
    return "" if not math.isfinite(value) else f"{value:.3g}"
