"""``wisca report``: what is known of a model, or of a comparison, as one HTML file to hand on."""

import importlib
import logging
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from wisca_core.circuits import store
from wisca_core.cli import models
from wisca_core.cli.dashboard import INSTALLED, main_file
from wisca_core.cli.terminal import bar, document, say
from wisca_core.comparison import folder
from wisca_core.equivalence.proof import Proof
from wisca_core.evaluation import landing
from wisca_core.evaluation.seeds import is_comparison
from wisca_core.model import open_model
from wisca_core.planning.options import Options, default_pairs
from wisca_core.spreadsheet import check_replaceable
from wisca_core.steps import prove
from wisca_core.storage import read_json, replace_file
from wisca_core.untrusted import named_path
from wisca_core.words import in_bytes


def run(
    model: str,
    out: Path | None,
    asked: Mapping[str, Any],
    heads: bool,
    evaluation: Path | None,
    comparison: Path | None,
    json: bool,
    yes: bool,
) -> int:
    """0 once it is written. Raises WiscaError."""
    main_file()  # the charts are the dashboard's: where that is not installed, there is nothing to draw with
    options = Options(**asked)
    place = named_path(out or f"{_name(model)}-wisca.html").absolute()
    begins = _reports("document").BEGINS
    check_replaceable(place, begins, "report of this project")
    if is_comparison(model):
        page = _reports("comparison").document_of(folder.read(model))
    else:
        page = _of_model(model, options, asked, heads, _result(evaluation), comparison, yes)
    replace_file(place, page)
    if json:
        document("wisca-report-file", {"file": str(place), "n_bytes": len(page)})
    else:
        say(f"{place}, {in_bytes(len(page))}: opens in a browser, without a network.")
    return 0


def _of_model(
    model: str,
    options: Options,
    asked: Mapping[str, Any],
    heads: bool,
    evaluation: Mapping[str, Any] | None,
    comparison: Path | None,
    yes: bool,
) -> bytes:
    checkpoint = models.open_after_asking(model, yes)  # asks before a download
    with bar() as progress:
        found = open_model(checkpoint, pairs=asked.get("pairs", ()), search=True, progress=progress)
        proof: Proof | None = None
        circuits = None
        if found.sites.sites:
            if "pairs" not in asked:
                options = replace(options, pairs=default_pairs(found.sites))
            options.check_against(found.sites)
            found.measured(progress)
            if not checkpoint.look_only:
                proof = prove(found, progress=progress)
            if heads and not checkpoint.adapter_json:
                circuits = store.measured_circuits(found.checkpoint, found.sites, progress)
    reports = _reports("model")
    results = reports.OtherResults(circuits, evaluation, comparison)
    return reports.document_of(found, options, proof, results, f"wisca report {shlex.quote(model)}")


def _result(evaluation: Path | None) -> Mapping[str, Any] | None:
    """The tables of an evaluation's folder."""
    if evaluation is None:
        return None
    return read_json(named_path(evaluation) / "result.json", landing.FORMAT, landing.VERSION)


def _name(model: str) -> str:
    """ "gqa-docs-checkpoint-3600"."""
    path = model.removeprefix("hub:").split("@")[0] if model.startswith("hub:") else str(Path(model).absolute())
    return re.sub(r"[^\w.-]+", "-", "-".join(path.rstrip("/").split("/")[-2:]), flags=re.ASCII).strip("-.") or "model"


def _reports(name: str):
    """A module of the app's reports: named, never imported, since the library stands without the app."""
    logging.disable(logging.WARNING)  # streamlit would tell that no page is being served
    try:
        return importlib.import_module(f"{INSTALLED}.report.{name}")
    finally:
        logging.disable(logging.NOTSET)
