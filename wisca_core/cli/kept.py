"""``wisca clean`` and ``wisca jobs``: what is kept under WISCA_HOME."""

import time
from dataclasses import asdict

from wisca_core import jobs as work
from wisca_core import storage
from wisca_core.cli.terminal import confirm, document, note, say, table
from wisca_core.words import in_bytes

KILL_AFTER_SECONDS = 10.0


def run_clean(names: list[str], yes: bool, json: bool) -> int:
    """Without names: sizes. With names: empties these folders once that was agreed to."""
    chosen = list(storage.FOLDERS) if "all" in names else list(dict.fromkeys(names))
    for name in chosen:
        storage.folder(name)  # raises BadOption for a name that is none
    before = storage.sizes()
    if not json:
        say(str(storage.home()))
        rows = [(name, in_bytes(size), storage.FOLDERS[name]) for name, size in before.items()]
        table(("folder", "size", "holds"), rows, numbers=(1,))
    freed = None
    if chosen:
        n_bytes = sum(before[name] for name in chosen)
        what = f"{in_bytes(n_bytes)} in {', '.join(chosen)}"
        if yes or confirm(f"Remove {what}?", f"{what} would be removed, and nobody can be asked here. Add --yes."):
            freed = storage.clean(chosen)
        else:
            note("Nothing was removed.")
    if json:
        document(
            "wisca-clean",
            {
                "home": str(storage.home()),
                "n_bytes": before,
                "cleaned": chosen if freed is not None else [],
                "n_bytes_freed": freed or 0,
            },
        )
    elif freed is not None:
        say(f"{in_bytes(freed)} freed." + (" What a running job uses was kept." if freed < n_bytes else ""))
    return 0


def run_jobs(cancel: str | None, json: bool) -> int:
    """All jobs, newest first; ``cancel`` stops one of them first."""
    if cancel is not None:
        job = work.cancel(cancel, kill_after=KILL_AFTER_SECONDS)
        note(f"{job.id} is {job.state}.")
    found = work.every()
    if json:
        document("wisca-jobs", {"jobs": [asdict(job) for job in found]})
    elif not found:
        say("No job yet.")
    else:
        rows = [
            (
                job.id,
                job.state,
                f"{100 * job.done / job.total:.0f} %" if job.is_active and job.total else "",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(job.created)),
                job.title,
            )
            for job in found
        ]
        table(("job", "state", "done", "created", "title"), rows, numbers=(2,))
    return 0
