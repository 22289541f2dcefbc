"""A rescaled checkpoint as a folder: written beside, checked, then renamed, so that it exists whole or not at all."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import xxhash

from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint, Reader
from wisca_core.checkpoint.writer import without_aliases, write_weights
from wisca_core.equivalence.basis_proof import check_basis
from wisca_core.equivalence.full_check import FullCheck
from wisca_core.equivalence.proof import Proof, check_covers
from wisca_core.errors import OutputRefused, ProofFailed
from wisca_core.exporting.card import with_section
from wisca_core.exporting.picture import factors_svg
from wisca_core.exporting.place import appear, claim_folder, refuse_place
from wisca_core.exporting.preview import PICTURE, REPORT, n_bytes_free, preview
from wisca_core.methods import method
from wisca_core.patterns.table import header_digest
from wisca_core.planning.plan import Plan, check_not_empty
from wisca_core.progress import Progress, silent
from wisca_core.rescale_basis import all_changes
from wisca_core.storage import hide_path, write_json
from wisca_core.untrusted import locate, read_regular
from wisca_core.verdicts import versions

SPARE_BYTES = 64 * 2**20  # beyond the weights: report, card, the file system's own


def export(
    checkpoint: Checkpoint,
    sites: Sites,
    plan: Plan,
    out: Path,
    proof: Proof,
    check: Callable[[Path, Progress], FullCheck | str] | None = None,
    progress: Progress = silent,
) -> Path:
    """Write the rescaled checkpoint into the new folder ``out`` and return the path of its wisca_report.json.

    ``check`` is run on the folder while it still has its temporary name; a check that contradicts the plan stops the
    export, as does whatever it raises; why one could not be run is said in the report. Raises ProofFailed,
    NothingToRescale, OutputRefused (exists, is inside the model, disk full, taken), CheckpointChanged, Cancelled; in
    every case nothing is left behind.
    """
    checkpoint.check_rescalable()
    check_covers(proof, sites, plan.sites)
    mixed = [sites[name] for name in plan.bases.sites]
    of_bases = check_basis(checkpoint, mixed, method(plan.options.method), "Nothing was written.")
    check_not_empty(plan)
    out = Path(os.path.abspath(out))
    refuse_place(checkpoint, out)
    with claim_folder(out) as beside:
        _refuse_full_disk(checkpoint, out)
        report = _write(checkpoint, sites, plan, proof, of_bases, check, beside, progress)
        appear(beside, out)
    return out / report


def _write(checkpoint, sites, plan, proof, of_bases, check, beside: Path, progress: Progress) -> str:
    files = preview(checkpoint)
    changes = all_changes(checkpoint, sites, plan.factors, plan.bases)
    digests = write_weights(checkpoint, changes, beside, progress)
    plan.bases.write(beside / REPORT)
    for name in files.copied:
        progress("copying the other files", 0, 0)
        target = beside / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(locate(checkpoint.path, name), target)  # a real file, never a link
    with Reader(checkpoint):
        pass  # raises CheckpointChanged where a weight file is no longer what it was
    with hide_path(beside, "the rescaled weights"):
        checked = check(beside, progress) if check else None
    not_run, checked = (checked, None) if isinstance(checked, str) else ("", checked)
    if checked is not None and not checked.agrees(plan):
        raise ProofFailed(f"the full check contradicts the plan: {checked.words()} Nothing was written.")
    card = beside / "README.md"
    before = (
        read_regular(card, 1 << 24).decode("utf-8", "surrogateescape") if card.is_file() else ""
    )  # bytes: line ends stay as they are
    picture = PICTURE if plan.factors.sites else ""
    if picture:
        (beside / picture).write_text(factors_svg(plan), encoding="utf-8")
    after = with_section(before, plan, proof, checked, not_run, checkpoint.source, picture)
    card.write_bytes(after.encode("utf-8", "surrogateescape"))
    write_json(
        beside / REPORT,
        "wisca-report",
        1,
        ({} if proof.is_made else {"unproved": "the declared sites were taken as they are (--unproved)"})
        | {
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": versions(),
            "source": checkpoint.source,
            "fingerprint_before": plan.fingerprint,
            "fingerprint_after": fingerprint_after(checkpoint, plan, digests),
            "plan": plan.to_json(),
            "proof": proof.to_json(),
            "basis_proof": of_bases.to_json() if of_bases else None,
            "full_check": checked.to_json() if checked else None,
            "full_check_not_run": not_run or None,
            "refused": [f"{r.what}: {r.reason}" for r in plan.refusals],
            "files": {
                "rewritten": [list(pair) for pair in files.rewritten],
                "copied": list(files.copied),
                "left_out": [list(pair) for pair in files.left_out],
            },
        },
    )
    return REPORT


def fingerprint_after(checkpoint: Checkpoint, plan: Plan, digests: dict[str, str]) -> str:
    """What ``Patterns.fingerprint`` will read off the exported folder for the plan's tensors."""
    out = xxhash.xxh3_128(header_digest(without_aliases(checkpoint)).encode())
    kept = {}
    with Reader(checkpoint) as reader:
        for name in plan.tensors:
            if name not in digests:  # a tensor of a changed pair all of whose factors are 1
                one = xxhash.xxh3_128()
                for piece in reader.raw(name):
                    one.update(piece)
                kept[name] = one.hexdigest()
    for name in sorted(plan.tensors):
        out.update(f"{name}\0{(digests | kept)[name]}\n".encode())
    return out.hexdigest()


def _refuse_full_disk(checkpoint: Checkpoint, out: Path) -> None:
    needed, free = preview(checkpoint).n_bytes + SPARE_BYTES, n_bytes_free(out.parent)
    if needed > free:
        raise OutputRefused(
            f"the disk of {out.parent} has {free / 1e9:.2f} GB free; the export needs {needed / 1e9:.2f} GB. Nothing "
            "was written."
        )
