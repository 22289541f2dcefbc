"""A comparison as a report: the answer, its charts, its arms, and how it was trained."""

import dataclasses
from pathlib import Path

import pandas as pd

from wisca_app.comparing import values
from wisca_app.comparing.facts import facts
from wisca_app.figures.words import markdown_text
from wisca_app.report.document import Section, Table, document
from wisca_core.comparison import folder
from wisca_core.comparison.folder import Comparison
from wisca_core.comparison.paper import for_scale
from wisca_core.comparison.report import Report, remarks, report


def document_of(comparison: Comparison) -> bytes:
    """The report of the finished runs of a comparison. Raises UnequalStart."""
    frame = folder.curves(comparison)
    found = report(comparison, frame) if any(c.state == "done" for c in comparison.tested) else None
    title = found.sentence if found else "No run finished, so nothing can be said."
    return document(
        markdown_text(title),
        [section for section in (*_answer(comparison, frame, found), _how(comparison)) if section],
        facts=markdown_text(f"{comparison.path.name}: {comparison.spec.name}. {facts(comparison)}"),
        said=[markdown_text(one) for one in answer_sentences(found)] if found else [],
    )


def section_of(path: Path) -> Section:
    """A comparison as one section of a model's report. Raises UnreadableInput, UnequalStart."""
    comparison = folder.read(path)
    frame = folder.curves(comparison)
    found = report(comparison, frame) if any(c.state == "done" for c in comparison.tested) else None
    parts = tuple(part for one in _answer(comparison, frame, found) for part in one.parts)
    lines = [found.sentence, *answer_sentences(found)] if found else ["No run finished, so nothing can be said."]
    return Section(
        "What it does to a training",
        (*map(markdown_text, lines), f":small[:gray[{markdown_text(facts(comparison))}]]"),
        parts,
    )


def answer_sentences(found: Report) -> list[str]:
    """What stands under the answer; names in it are foreign."""
    subject = found.subject[0].upper() + found.subject[1:]
    return [*filter(None, [found.decides_more, found.identical, f"{subject}. {found.reading}", *found.beside])]


def _answer(comparison: Comparison, frame: pd.DataFrame, found: Report | None) -> list[Section]:
    spec = comparison.spec
    pilot = folder.curves(comparison, of_pilot=True) if spec.pilot.seeds else frame
    rate = values.shown_rate(comparison, found)
    charts = [
        values.differences(comparison, found) if found else None,
        values.sweep(comparison, pilot, found) if len(spec.optimiser.learning_rates) > 1 or spec.has_pilot else None,
        values.curves(comparison, frame, found, rate),
        *(values.ratios(comparison, frame, rate, pair) for pair in values.pairs(comparison)),
        values.gradients(comparison, frame, rate),
    ]
    out = [Section("Differences", parts=tuple(one for one in charts if one is not None))]
    if found:
        table = Table("All arms", values.how_to_read(found), values.shown_table(found, comparison))
        notes = (spec.note, for_scale(spec), *remarks(found))
        out.append(Section("Arms", parts=(table,), remarks=tuple(filter(None, notes))))
    return out


def _how(comparison: Comparison) -> Section:
    """The spec as a table, so that it can be run again."""
    rows = []
    for name, value in dataclasses.asdict(comparison.spec).items():
        if name not in ("arms", "note", "name"):
            inner = value if isinstance(value, dict) else {"": value}
            rows += [(f"{name}.{key}".rstrip("."), str(one)) for key, one in inner.items() if one not in ("", None, ())]
    return Section("How it was trained", parts=(Table("Settings", "", pd.DataFrame(rows, columns=["what", "value"])),))
