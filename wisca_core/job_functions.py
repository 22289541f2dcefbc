"""The long work as job functions: plain JSON values in, plain JSON values out. The command line calls the same library
underneath.
"""

from pathlib import Path

from wisca_core.architecture.declaration_files import open_declared
from wisca_core.architecture.discovery import sites_of
from wisca_core.architecture.find import pairs_to_find
from wisca_core.checkpoint import open_checkpoint
from wisca_core.equivalence.checking import full_check
from wisca_core.equivalence.proving import prove
from wisca_core.equivalence.trial import discover
from wisca_core.model import Model
from wisca_core.patterns.store import measured_patterns
from wisca_core.planning.plan import decision_of, load_plan
from wisca_core.progress import Progress
from wisca_core.steps import export


def measure_job(arguments: dict, progress: Progress, folder: Path) -> dict:
    """{model, pairs: list} -> {}: the table is then in WISCA_HOME/measurements."""
    checkpoint = open_declared(arguments, progress)
    measured_patterns(checkpoint, sites_of(checkpoint, pairs=pairs_to_find(arguments.get("pairs", ()))), progress)
    return {}


def prove_job(arguments: dict, progress: Progress, folder: Path) -> dict:
    """{model, pairs: list, base: of a LoRA adapter, to prove it on} -> the proof."""
    checkpoint = open_checkpoint(arguments["model"], progress=progress)
    if arguments.get("base"):
        base = open_checkpoint(arguments["base"], progress=progress)
        return prove(checkpoint, sites_of(checkpoint), progress, base).to_json()
    return prove(checkpoint, sites_of(checkpoint, pairs=pairs_to_find(arguments.get("pairs", ()))), progress).to_json()


def discover_job(arguments: dict, progress: Progress, folder: Path) -> dict:
    """{model} -> {found: bool, words}: a rule for a model type that no file has, looked for by trial and kept."""
    found = discover(open_checkpoint(arguments["model"], progress=progress), progress)
    return {"found": bool(found.fields), "words": found.words}


def check_job(arguments: dict, progress: Progress, folder: Path) -> dict:
    """{model, plan: path of a saved plan} -> the full check."""
    checkpoint, sites, plan = _open_plan(arguments, progress)
    return full_check(checkpoint, sites, plan, progress).to_json()


def export_job(arguments: dict, progress: Progress, folder: Path) -> dict:
    """{model, plan: path, out: path, check: bool, adapters: paths} -> {out, report, check, check_not_run: why,
    adapters: their new folders}.
    """
    checkpoint, sites, plan = _open_plan(arguments, progress)
    check = None if arguments.get("check") else False
    adapters = arguments.get("adapters", ())
    done = export(Model(checkpoint, sites), plan, arguments["out"], check=check, adapters=adapters, progress=progress)
    return {
        "out": str(done.folder),
        "report": str(done.report),
        "check": done.check.to_json() if done.check else None,
        "check_not_run": None if done.check or check is False else done.not_run,
        "adapters": [str(folder) for folder in done.adapters],
    }


def _open_plan(arguments: dict, progress: Progress):
    checkpoint = open_declared(arguments, progress)
    checkpoint.check_rescalable()
    plan = load_plan(Path(arguments["plan"]))
    sites = sites_of(checkpoint, pairs=pairs_to_find(plan.options.pairs))
    decision_of(
        plan, measured_patterns(checkpoint, sites, progress)
    )  # raises PlanMismatch where the weights are not those it was made for
    return checkpoint, sites, plan
