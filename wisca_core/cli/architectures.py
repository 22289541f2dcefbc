"""``wisca architectures``: which architectures are covered, by which rule, and what the proof says of each here."""

import time
from dataclasses import asdict
from pathlib import Path

from wisca_core.architecture.families import families
from wisca_core.architecture.site import GRANULARITIES
from wisca_core.census import all_types, causal_types, census, coverage, entries, row_file, row_text, rule_lines
from wisca_core.census.coverage import Coverage
from wisca_core.census.entry import OPEN, PAIRS, PARTLY, PROVED, VERDICTS, Entry
from wisca_core.census.known import check_type, short_rule
from wisca_core.census.table import COLUMNS, in_words, is_open
from wisca_core.census.table import table as frame_of
from wisca_core.cli.terminal import bar, document, indented_lines, say, say_lines, table
from wisca_core.errors import BadOption, Cancelled
from wisca_core.spreadsheet import check_replaceable, write_csv
from wisca_core.verdicts import versions
from wisca_core.words import plural

MOST_NAMES = 12
HEAD = ",".join(COLUMNS)


def run(
    name: str | None, prove: bool, again: bool, everything: bool, granularity: str | None, csv: Path | None, json: bool
) -> int:
    """0; 1 where the one architecture that was asked for cannot be rescaled at all."""
    asked = _granularities(granularity)
    if csv:
        check_replaceable(csv, HEAD)
    names = (check_type(name),) if name else all_types() if everything else causal_types()
    if prove or again:
        try:
            with bar() as progress:
                # one bar over the whole census; the names that are being proved would begin a new one each
                found = census(names, asked, lambda _, *so_far: progress("proving architectures", *so_far), again=again)
        except KeyboardInterrupt:
            raise Cancelled("cancelled. What was proved before stays.") from None
    else:
        found = entries(names)
    if csv:
        write_csv(csv, frame_of(found))
    if name:
        return _one(found[0], json)
    counts = coverage(found)
    if json:
        document(
            "wisca-architectures",
            {"versions": versions(), "coverage": _counts(counts), "architectures": [_record(e) for e in found]},
        )
        return 0
    _say_all(found, counts)
    if csv:
        say(f"{plural(len(found), 'row')} written to {csv}")
    if not everything:
        say(
            f"{plural(len(all_types()) - len(names), 'further architecture')} (encoders, encoder-decoders, vision, "
            "speech) have a rule: --all"
        )
    return 0


def _granularities(written: str | None) -> tuple[str, ...]:
    names = tuple(filter(None, (written or ",".join(GRANULARITIES)).replace(" ", "").split(",")))
    wrong = [name for name in names if name not in GRANULARITIES]
    if wrong or not names:
        raise BadOption(
            f"granularity: {written!r} was given; choose from {', '.join(GRANULARITIES)}, with commas between several."
        )
    return names


# --- all of them ------------------------------------------------------------------------------------------------------


def _say_all(found: tuple[Entry, ...], counts: Coverage) -> None:
    say(f"{plural(len(found), 'architecture')} of transformers {versions()['transformers']}")
    say(counts.sentence, style="bold")
    say()
    rows = [
        (
            e.model_type,
            short_rule(families().get(e.model_type)),
            *(in_words(e[pair]) for pair in PAIRS),
            f"{e.max_rel:.0e}" if e.n_trials else "",
            f"{e.seconds:.1f}" if e.n_trials else "",
        )
        for e in found
    ]
    table(("architecture", "rule", "QK", "VO", "MLP", "difference", "seconds"), rows, numbers=(5, 6))
    if counts.n_open < counts.n_types:
        say_counts(counts)
    if counts.n_open:
        say(f"{plural(counts.n_open, 'architecture')} not proved here with these versions yet: --prove")
    if counts.n_released:
        say("--prove proves on this machine what was tried when this version was made.")


def say_counts(counts: Coverage) -> None:
    """Counts by verdict, reasons of refusals, what was not reached, what took longest."""
    shown = [v for v in VERDICTS if any(counts.n(pair, v) for pair in PAIRS)]
    table(
        ("", *shown),
        [(pair.upper(), *(f"{counts.n(pair, v):,}" for v in shown)) for pair in PAIRS],
        numbers=range(1, len(shown) + 1),
    )
    refused = [f"{pair.upper()}, {_names(r.model_types)}: {r.text}" for pair, r in counts.reasons]
    say_lines("Refused, with the reason:", refused, most=1000)
    say_lines("Not reached:", [f"{_names(r.model_types)}: {r.text}" for r in counts.not_reached], most=1000)
    if counts.worst[0]:
        say(f"Largest difference of anything proved: {counts.worst[1]:.1e} of the largest output, {counts.worst[0]}.")
    if counts.slowest:
        say(
            f"Slowest: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in counts.slowest)}; all together "
            f"{counts.seconds:.0f} s."
        )


def _names(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


# --- one --------------------------------------------------------------------------------------------------------------


def _one(found: Entry, json: bool) -> int:
    code = int(not any(pair.verdict in (PROVED, PARTLY, OPEN) for pair in found.pairs))
    if json:
        document("wisca-architecture", {"versions": versions(), "exit_code": code} | _record(found))
        return code
    family = families().get(found.model_type)
    say(found.model_type + (f", {found.model_class}" if found.model_class else ""))
    say(found.sentence, style="bold")
    if found.not_reached:
        say(found.not_reached)
    if is_open(found):
        say("Add --prove to prove it.")
    say()
    say("Rule:")
    say(
        indented_lines(rule_lines(family), most=1000)
        if family
        else "  no row covers this architecture" + (", a rule was found by trial" if found.family else "")
    )
    say_lines("Remarks:", found.remarks)
    if any(pair.places for pair in found.pairs):
        say()
        rows = [
            (
                pair.pair.upper(),
                place.where,
                f"{place.n_sites:,}" if place.n_sites else "",
                ", ".join(place.held),
                ", ".join(place.finest) if place.held else "",
                "no input tried here runs it" if place.is_idle else place.reason,
            )
            for pair in found.pairs
            for place in pair.places
        ]
        table(("pair", "where", "sites", "proved at", "finest", "why not"), rows, numbers=(2,))
    if found.n_trials:
        here = ", when this version of wisca was made (--prove does it here)" if found.is_released else ""
        say(
            f"Proved on {time.strftime('%Y-%m-%d', time.localtime(found.when))}{here} with {_versions()}, on a "
            "miniature of its default config: "
            f"{found.n_trials:,} rescaled {'copy' if found.n_trials == 1 else 'copies'} on "
            f"{plural(found.n_cases, 'input')} each in float64, {found.seconds:.1f} s."
        )
        say(
            f"Largest difference {found.max_rel:.1e} of the largest output; a factor on one side alone moves it by at "
            f"least {found.liveness:.1e}."
        )
    if family:
        say()
        say(f"The row, wisca_core/architecture/rows/{row_file(family.name)}:")
        say("\n".join(f"  {line}" for line in row_text(family.name).splitlines()))
    return code


def _versions() -> str:
    return ", ".join(f"{name} {version}" for name, version in versions().items())


# --- documents --------------------------------------------------------------------------------------------------------


def _record(e: Entry) -> dict:
    family = families().get(e.model_type)
    return {
        "architecture": e.model_type,
        "class": e.model_class,
        "row": e.family,
        "file": row_file(e.family) if e.family else "",
        "rule": list(rule_lines(family)) if family else [],
        "attention": e.verdict,
        "pairs": {
            p.pair: {"verdict": p.verdict, "finest": p.finest, "places": [asdict(place) for place in p.places]}
            for p in e.pairs
        },
        "granularities": e.granularities,
        "not_reached": e.not_reached,
        "remarks": e.remarks,
        "max_rel": e.max_rel if e.n_trials else None,
        "liveness": e.liveness if e.n_trials else None,
        "n_cases": e.n_cases,
        "n_trials": e.n_trials,
        "seconds": e.seconds,
        "when": e.when or None,
        "is_released": e.is_released,
    }


def _counts(c: Coverage) -> dict:
    return {
        "sentence": c.sentence,
        "n_types": c.n_types,
        "n_reached": c.n_reached,
        "n_released": c.n_released,
        "counts": {pair: {verdict: c.n(pair, verdict) for verdict in VERDICTS} for pair in PAIRS},
        "reasons": [{"pair": pair, "reason": r.text, "architectures": r.model_types} for pair, r in c.reasons],
        "not_reached": [{"reason": r.text, "architectures": r.model_types} for r in c.not_reached],
        "slowest": [{"architecture": name, "seconds": seconds} for name, seconds in c.slowest],
        "seconds": c.seconds,
    }
