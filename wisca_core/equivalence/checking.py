"""The full check: the original and the rescaled checkpoint run on the same inputs, in the dtype they are stored in,
with eager attention and with torch's own (sdpa), which most models load with.

It shows what rounding does to this model. It cannot prove a rule: a rounded right rescale moves the outputs more than a
1 % error in one matrix does, which is why the control (the same weights rounded at random) and the miniature stand
beside it.
"""

import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import TORCH_DTYPES, Checkpoint, open_checkpoint
from wisca_core.checkpoint.writer import write_weights
from wisca_core.equivalence.adapter_check import compare_adapters
from wisca_core.equivalence.full_check import EAGER, SDPA, FullCheck, random_rounding, stored_dtype, why_too_large
from wisca_core.equivalence.loadable import loadable
from wisca_core.errors import Cancelled, CheckNotRun, OutputRefused, UnknownArchitecture, WiscaError
from wisca_core.planning.plan import Plan
from wisca_core.progress import Progress, silent
from wisca_core.rescale_basis import all_changes
from wisca_core.storage import folder, workplace
from wisca_core.untrusted import locate
from wisca_core.words import join_names

if TYPE_CHECKING:
    from wisca_core.equivalence.check_inputs import CheckInputs
    from wisca_core.equivalence.outputs import Difference, Outputs

GENERATED_ROWS, GENERATED_TOKENS = 2, 16


def full_check(checkpoint: Checkpoint, sites: Sites, plan: Plan, progress: Progress = silent) -> FullCheck:
    """Write the rescaled weights into a folder under WISCA_HOME, compare, and remove it again.

    Raises what ``compare_folder`` does.
    """
    with workplace("the rescaled weights", prefix=".check-", within=folder("exports")) as place:
        after = place / "after"
        after.mkdir()
        try:
            _write_plan(checkpoint, sites, plan, after, progress)
        except OSError as error:
            raise OutputRefused(
                f"the check writes the rescaled weights under {folder('exports')} first, which failed: "
                f"{error.strerror}. It is removed again."
            ) from error
        return compare_folder(checkpoint, sites, plan, after, progress)


def compare_folder(
    checkpoint: Checkpoint, sites: Sites, plan: Plan | None, after: Path | Checkpoint, progress: Progress = silent
) -> FullCheck:
    """The check of ``checkpoint`` against a folder (or opened checkpoint) that holds the rescaled weights under the
    same names.

    ``plan`` names the tensors that the control rounds at random; None (two given checkpoints) rounds those of all
    pairs.

    CheckNotRun where the memory does not suffice or the original itself cannot be run, ConfigMismatch or
    UnknownArchitecture where only the rescaled one cannot, Cancelled.
    """
    checkpoint.check_rescalable()
    if checkpoint.adapter_json:
        return compare_adapters(checkpoint, sites, after, progress)
    if checkpoint.declared is not None:
        raise CheckNotRun(
            "its pairs were declared: its class is no class of transformers, and the file does not bring it."
        )
    from wisca_core.equivalence.check_inputs import inputs_for
    from wisca_core.equivalence.outputs import FEATURES, difference

    started = time.perf_counter()
    if reason := why_too_large(checkpoint):
        raise CheckNotRun(f"the full check was not run: {reason}.")
    dtype = stored_dtype(checkpoint, sites)
    with workplace(str(checkpoint.path)) as place:
        before = loadable(checkpoint, place / "before", progress)
        progress("running the original", 0, 3)
        try:
            model = _load(before, dtype)
            given = inputs_for(model, checkpoint.path)
            reference = _run(model, given, (EAGER, SDPA))
            again = difference(reference[EAGER], _run(model, given, (EAGER,))[EAGER])
            written_by = [_generate(model, given)]
            rounded = [_in_int8(model, given)]
        except Cancelled:
            raise
        except WiscaError as error:
            raise CheckNotRun(str(error)) from error
        del model
        kernels, first = tuple(reference), reference[EAGER]
        progress("running the rescaled model", 1, 3)
        other_folder = loadable(
            after if isinstance(after, Checkpoint) else open_checkpoint(after), place / "after", progress
        )
        model = _load(other_folder, dtype)
        other = _run(model, given, kernels, all_of_them=True)
        written_by.append(_generate(model, given))
        rounded.append(_in_int8(model, given))
        del model
        moved = _worst(difference(reference[name], other[name]) for name in kernels)
        comparable = all(bool(v.isfinite().all()) for one in reference.values() for v in one.cases.values())
        identical = moved.n_different == 0 and moved.max_abs == 0
        control = None
        if not identical:
            progress("running the control: the same weights rounded at random", 2, 3)
            written = place / "written"
            written.mkdir()
            names = plan.tensors if plan else tuple({leg.tensor for site in sites.sites for leg in site.legs})
            write_weights(
                checkpoint,
                {n: partial(random_rounding, torch.Generator().manual_seed(i)) for i, n in enumerate(names)},
                written,
            )
            _finish_folder(checkpoint, written)
            model = _load(loadable(open_checkpoint(written), place / "rounded", progress), dtype)
            control = difference(first, _run(model, given, (EAGER,))[EAGER]).max_rel
    progress("running the control: the same weights rounded at random", 3, 3)
    not_checked = [
        f"attention kernels other than {join_names(kernels)}",
        *([f"contexts beyond {given.longest} tokens"] if given.longest else []),
        *first.not_run,
        "quantised copies made before: their scales were chosen for the old weights",
    ]
    if again.max_abs != 0:
        not_checked.append(f"the original does not repeat its own outputs (relative {again.max_rel:.1e})")
    ppl_before, ppl_after = (_perplexity(o[EAGER], given) for o in (reference, other))
    return FullCheck(
        outputs=first.kind + (" and features" if given.has_towers and first.kind != FEATURES else ""),
        tokens=given.source,
        n_tokens=given.n_tokens,
        dtype=dtype,
        max_abs=moved.max_abs,
        max_rel=moved.max_rel,
        n_values=moved.n_values,
        n_equal=moved.n_values - moved.n_different,
        top1_agreement=_top1(first, other[EAGER]),
        perplexity_before=ppl_before,
        perplexity_after=ppl_after,
        bit_identical=identical,
        comparable=comparable,
        control_max_rel=control,
        seconds=time.perf_counter() - started,
        not_checked=tuple(not_checked),
        counted=given.counted,
        kernels=kernels,
        n_generated=sum(map(len, written_by[0])),
        n_same_generated=sum(_same_from_the_start(a, b) for a, b in zip(*written_by, strict=True)),
        int8_max_rel=difference(*rounded).max_rel if all(rounded) else None,
        int8_error=difference(first, rounded[0]).max_rel if all(rounded) else None,
    )


def _load(folder: Path, dtype: str):
    from wisca_core.equivalence.miniature import load

    return load(folder, dtype=TORCH_DTYPES[dtype], allow_extra=True)


def _run(model, given: "CheckInputs", kernels: tuple[str, ...], all_of_them: bool = False) -> dict[str, "Outputs"]:
    """Attention implementation -> outputs; one that the class does not have, or that does not take these inputs, is
    left out unless it is eager, or all are asked for.
    """
    from wisca_core.equivalence.miniature import quiet
    from wisca_core.equivalence.outputs import case_outputs

    out = {}
    for name in kernels:
        try:
            if model.config._attn_implementation != name:
                with quiet():
                    model.set_attn_implementation(name)
            if name == EAGER or model.config._attn_implementation == name:
                out[name] = case_outputs(model, given.cases)
        except (ValueError, ImportError, UnknownArchitecture):
            if name == EAGER or all_of_them:
                raise
    return out


def _generate(model, given: "CheckInputs") -> list[list[int]]:
    """What each of the first rows of text is gone on with greedily, as token ids; [] where the model does not
    generate.
    """
    from wisca_core.equivalence.miniature import quiet
    from wisca_core.equivalence.outputs import is_causal

    rows = [case.inputs["input_ids"] for case in given.cases if case.is_row and case.shape[0] == 1][:GENERATED_ROWS]
    if not rows or not is_causal(model) or not callable(getattr(model, "generate", None)):
        return []
    length = max(1, rows[0].shape[1] - GENERATED_TOKENS)
    try:
        with torch.no_grad(), quiet():
            model.set_attn_implementation(EAGER)
            return [
                model.generate(
                    row[:, :length],
                    attention_mask=torch.ones_like(row[:, :length]),
                    do_sample=False,
                    num_beams=1,
                    max_new_tokens=GENERATED_TOKENS,
                    min_new_tokens=GENERATED_TOKENS,
                )[0, length:].tolist()
                for row in rows
            ]
    except (ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError, IndexError, KeyError):
        return []  # what a class wants beside ids to generate is not known here; its logits were compared


def _same_from_the_start(a: list[int], b: list[int]) -> int:
    return next((i for i, (one, other) in enumerate(zip(a, b)) if one != other), min(len(a), len(b)))


def _in_int8(model, given: "CheckInputs") -> "Outputs | None":
    """The outputs with every matrix but the embeddings rounded to 255 steps of its largest entry, in place: the
    coarsest thing that is commonly done to weights. None where the model has no causal language head.
    """
    from wisca_core.equivalence.outputs import is_causal

    if not is_causal(model):
        return None
    embeddings = model.get_input_embeddings()
    with torch.no_grad():
        for parameter in model.parameters():
            if (
                parameter.ndim >= 2
                and parameter.is_floating_point()
                and parameter is not getattr(embeddings, "weight", None)
            ):
                step = parameter.abs().max().float() / 127
                if step > 0:
                    parameter.copy_((parameter.float() / step).round() * step)
    return _run(model, given, (EAGER,))[EAGER]


def _worst(found: Iterable["Difference"]) -> "Difference":
    """The largest difference of several over the same values, and the most that are not equal."""
    found = list(found)
    worst = max(found, key=lambda one: one.max_rel)
    return replace(worst, max_abs=max(one.max_abs for one in found), n_different=max(one.n_different for one in found))


def _write_plan(checkpoint: Checkpoint, sites: Sites, plan: Plan, out: Path, progress: Progress) -> None:
    write_weights(checkpoint, all_changes(checkpoint, sites, plan.factors, plan.bases), out, progress)
    _finish_folder(checkpoint, out)


def _finish_folder(checkpoint: Checkpoint, out: Path) -> None:
    """What beside its weight files makes a folder a checkpoint."""
    if checkpoint.kind == "safetensors" and checkpoint.index_file:
        shutil.copyfile(locate(checkpoint.path, checkpoint.index_file), out / checkpoint.index_file)
    if checkpoint.adapter_json:
        (out / "adapter_config.json").write_text(checkpoint.adapter_json, encoding="utf-8")
        return
    (out / "config.json").write_text(checkpoint.config_json, encoding="utf-8")


def _top1(a: "Outputs", b: "Outputs") -> float | None:
    from wisca_core.equivalence.outputs import LOGITS

    if a.kind != LOGITS:
        return None
    same = [left.argmax(-1) == b.cases[name].argmax(-1) for name, left in a.cases.items() if left.shape[-1] > 1]
    return float(torch.cat(same).double().mean())


def _perplexity(outputs: "Outputs", given: "CheckInputs") -> float | None:
    """exp of the mean next-token cross entropy over the rows of text; None where the model predicts no next token."""
    rows = [case for case in given.cases if case.is_row and case.shape[0] == 1]
    if not outputs.causal or not rows:
        return None
    losses = [
        torch.nn.functional.cross_entropy(
            outputs.cases[row.name][:-1].double(), row.inputs["input_ids"].reshape(-1)[1:], reduction="sum"
        )
        for row in rows
    ]
    return float(torch.exp(torch.stack(losses).sum() / sum(row.shape.numel() - 1 for row in rows)))
