"""A rescaled base model and the adapters that belong to it, as folders that appear together or not at all."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint, Reader
from wisca_core.checkpoint.folder import ADAPTER_CONFIG
from wisca_core.checkpoint.writer import write_weights
from wisca_core.equivalence.full_check import FullCheck
from wisca_core.equivalence.proof import TOLERANCE, Proof
from wisca_core.errors import BadOption, OutputRefused, ProofFailed
from wisca_core.exporting.export import export
from wisca_core.exporting.place import appear, claim_folder, refuse_place
from wisca_core.exporting.preview import REPORT, preview
from wisca_core.planning.plan import Plan
from wisca_core.progress import Progress, silent
from wisca_core.rescale import Scaling, along_axis, changes, rescaled_rows, scalings
from wisca_core.rescale_adapter import config_on, fitted_layers, follow
from wisca_core.storage import write_json
from wisca_core.untrusted import locate
from wisca_core.verdicts import versions

N_INPUTS = 16


@dataclass(frozen=True)
class AdapterExport:
    """One adapter that goes with the base, the new folder it is written to, and the proof of the two together."""

    adapter: Checkpoint
    out: Path
    proof: Proof


def export_pair(
    base: Checkpoint,
    sites: Sites,
    plan: Plan,
    out: Path,
    proof: Proof,
    beside: Sequence[AdapterExport],
    check: Callable[[Path, Progress], FullCheck | str] | None = None,
    progress: Progress = silent,
) -> tuple[Path, ...]:
    """``export`` of the base, and every adapter followed into a folder of its own. The paths of the reports, base
    first.

    The adapters are written first, under temporary names; they are renamed once the base stands. Raises what ``export``
    and ``follow`` raise; in every case nothing is left behind.
    """
    check_followable(plan)
    out = Path(os.path.abspath(out))
    scaling = scalings(sites, plan.factors.by_site, plan.factors.granularity, {t.name: t.shape for t in base.tensors})
    places = [Path(os.path.abspath(one.out)) for one in beside]
    for one, place in zip(beside, places):
        if not one.proof.passed:
            raise ProofFailed(f"base and adapter together are not proved: {one.proof.reason} Nothing was written.")
        refuse_place(one.adapter, place)
        if place == out or places.count(place) > 1 or base.path in (place, *place.parents) or out in place.parents:
            raise OutputRefused(
                f"{place} is the base's folder, inside it, or named twice. Give every adapter a folder of its own."
            )
    with ExitStack() as held:
        hidden = [held.enter_context(claim_folder(place)) for place in places]
        for one, folder in zip(beside, hidden):
            _write(base, sites, scaling, plan, one, out, folder, progress)
        report = export(base, sites, plan, out, proof, check, progress)
        done = []
        try:
            for folder, place in zip(hidden, places):
                appear(folder, place)
                done.append(place)
        except (OSError, OutputRefused):
            for place in (out, *done):
                shutil.rmtree(place, ignore_errors=True)
            raise
    return (report, *(place / REPORT for place in places))


def check_followable(plan: Plan) -> None:
    """Raises BadOption where adapters cannot follow this plan of their base."""
    if plan.bases:
        raise BadOption(
            f"method: adapters follow factors alone, and {plan.options.method!r} changes the basis of what they are "
            "added to. "
            "Merge them into the base first, or use method 'wisca'."
        )


def _write(
    base: Checkpoint,
    sites: Sites,
    scaling: dict,
    plan: Plan,
    one: AdapterExport,
    base_out: Path,
    out: Path,
    progress: Progress,
) -> None:
    adapter = one.adapter
    followed = follow(base, sites, scaling, adapter)
    write_weights(adapter, changes(followed), out, progress)
    files = preview(adapter)
    for name in files.copied:
        if name != ADAPTER_CONFIG:
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(locate(adapter.path, name), target)
    (out / ADAPTER_CONFIG).write_text(config_on(adapter, base_out), encoding="utf-8")
    worst = largest_product_change(base, sites, scaling, adapter, followed)
    write_json(
        out / REPORT,
        "wisca-adapter-report",
        1,
        {
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": versions(),
            "source": adapter.source,
            "base_source": base.source,
            "base": str(base_out),
            "base_fingerprint_before": plan.fingerprint,
            "tensors_followed": sorted(followed),
            "proof": one.proof.to_json(),
            "products_max_rel": worst,
            "not_checked": ["base and adapter run together at their full size"],
            "changed_in_adapter_config": ["base_model_name_or_path", "revision"],
        },
    )


def largest_product_change(
    base: Checkpoint, sites: Sites, scaling: dict, adapter: Checkpoint, followed: dict[str, Scaling]
) -> float:
    """Largest relative difference, in float64 on random inputs, between each followed product B A as it will be stored
    and the old product with the base's factors on its rows and columns; relative to the product of the absolute values,
    because B A itself may cancel (it does at peft's orthogonal start). Raises ProofFailed where it is more than
    rounding.
    """
    import torch

    worst = 0.0
    with Reader(adapter) as reader:
        for number, one in enumerate(fitted_layers(base, sites, scaling, adapter)):
            a, b = reader.tensor(one.adapted.a), reader.tensor(one.adapted.b)
            new_a, new_b = (
                rescaled_rows(t, followed[n]) if n in followed else t
                for t, n in ((a, one.adapted.a), (b, one.adapted.b))
            )
            along = scaling[one.weight].along
            rows, columns = (
                torch.from_numpy(along[axis]) if axis in along else torch.ones(n, dtype=torch.float64)
                for axis, n in ((one.out_axis, b.shape[0]), (1 - one.out_axis, a.shape[1]))
            )
            x = torch.randn(a.shape[1], N_INPUTS, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            row, inputs = along_axis(rows, 0, 2), along_axis(columns, 0, 2) * x
            expected = row * (b.double() @ (a.double() @ inputs))
            size = (row.abs() * (b.double().abs() @ (a.double().abs() @ inputs.abs()))).max().item()
            gap = (new_b.double() @ (new_a.double() @ x) - expected).abs().max().item()
            moved = gap / size if size else gap
            bound = max(TOLERANCE, 4 * torch.finfo(a.dtype).eps, 4 * torch.finfo(b.dtype).eps)
            if size == size and not moved <= bound:
                raise ProofFailed(
                    f"{one.adapted.module}: the followed product is off by {moved:.1e} relative, more than rounding or "
                    "a value that "
                    "left its dtype. Nothing was written."
                )
            worst = max(worst, moved) if moved == moved else worst
    return worst
