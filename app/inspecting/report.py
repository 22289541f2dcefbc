"""The report of the open model as a download: made when it is asked for, of what is there by then."""

from pathlib import Path

from wisca_app import cached, state
from wisca_app.comparing.choosing import place
from wisca_app.heading import telling_name
from wisca_app.job_progress import latest
from wisca_app.open_model import normal
from wisca_app.parts import take_away
from wisca_app.report.model import OtherResults, document_of
from wisca_core.comparison import folder
from wisca_core.equivalence.proving import prove
from wisca_core.errors import WiscaError
from wisca_core.model import Model
from wisca_core.planning.options import Options


def button(model: Model, options: Options) -> None:
    name, comparison = normal(state.get("model")), state.get("comparison")
    take_away(
        "Report",
        lambda: _report(model, options, name, comparison),
        f"{telling_name('wisca')}.html",
        "report",
        "Balance, heads, plan, proof, learning rates, and the evaluation and comparison of this model, in one file "
        "that "
        "needs no network. Seconds, since the rule is proved first.",
    )


def _report(model: Model, options: Options, name: str, comparison: str) -> bytes:
    """Outside the page: nothing here asks the session."""
    proof = None if model.checkpoint.look_only or not model.sites.sites else prove(model.checkpoint, model.sites)
    adapter = bool(model.checkpoint.adapter_json)
    circuits = None if adapter or cached.heads_wait(model) else cached.circuits(model)
    job = latest("evaluate", model=name)
    result = job.result if job is not None and job.state == "done" else None
    results = OtherResults(circuits, result, _comparison(name, comparison))
    return document_of(model, options, proof, results, f"wisca report {name}")


def _comparison(model: str, chosen: str) -> Path | None:
    """The one looked at, where it is of this model; else the newest that is."""
    for path in ([place(chosen)] if chosen not in ("", "new") else []) + folder.every():
        try:
            spec = folder.read(path).spec
        except WiscaError:
            continue
        if spec.model.path and normal(spec.model.path) == model:
            return path
    return None
