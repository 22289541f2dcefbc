"""The full check: the original and the rescaled checkpoint run on the same token ids, in the dtype they are stored in.

It shows what rounding does to this model. It cannot prove a rule: a rounded right rescale moves the outputs more than a
1 % error in one matrix does, which is why the control (the same weights rounded at random) and the miniature stand
beside it.
"""

import os
import shutil
import time
from functools import partial
from pathlib import Path

import torch

from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import TORCH_DTYPES, Checkpoint, open_checkpoint
from wisca_core.checkpoint.writer import write_weights, written_name
from wisca_core.equivalence.adapter_check import compare_adapters
from wisca_core.equivalence.full_check import FullCheck, memory_free, memory_needed, rounded_at_random, stored_dtype
from wisca_core.errors import OutputRefused, UnsupportedCheckpoint
from wisca_core.planning.plan import Plan
from wisca_core.progress import Progress, silent
from wisca_core.rescale import changes, scalings
from wisca_core.storage import folder, workplace
from wisca_core.untrusted import locate

N_TOKENS = 1024
SEQUENCE = 256
WEIGHTS = "model.safetensors"  # what transformers looks for, and this + .index.json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def full_check(checkpoint: Checkpoint, sites: Sites, plan: Plan, progress: Progress = silent) -> FullCheck:
    """Write the rescaled weights into a folder under WISCA_HOME, compare, and remove it again.

    Raises UnsupportedCheckpoint where the memory does not suffice, ConfigMismatch where transformers cannot load it,
    Cancelled.
    """
    with workplace("the rescaled weights", prefix=".check-", within=folder("exports")) as place:
        after = place / "after"
        after.mkdir()
        try:
            _write_plan(checkpoint, sites, plan, after, progress)
        except OSError as error:
            raise OutputRefused(
                f"the check writes the rescaled weights under {folder('exports')} first, which failed: {error.strerror}. It is removed again."
            ) from error
        return compare_folder(checkpoint, sites, plan, after, progress)


def compare_folder(
    checkpoint: Checkpoint, sites: Sites, plan: Plan | None, after: Path | Checkpoint, progress: Progress = silent
) -> FullCheck:
    """The check of ``checkpoint`` against a folder (or opened checkpoint) that holds the rescaled weights under the
    same names.

    ``plan`` names the tensors that the control rounds at random; None (two given checkpoints) rounds those of all
    pairs.
    """
    checkpoint.check_rescalable()
    if checkpoint.adapter_json:
        return compare_adapters(checkpoint, sites, after, progress)
    from wisca_core.equivalence.miniature import load
    from wisca_core.equivalence.outputs import difference, text_outputs

    started = time.perf_counter()
    needed, free = memory_needed(checkpoint), memory_free()
    if free is not None and needed > free:
        raise UnsupportedCheckpoint(
            f"the full check needs about {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free. Not run."
        )
    dtype = stored_dtype(checkpoint, sites)
    with workplace(str(checkpoint.path)) as place:
        before = _as_folder(checkpoint, place / "before", progress)
        progress("running the original", 0, 3)
        model = load(before, dtype=TORCH_DTYPES[dtype], allow_extra=True)
        ids, tokens = token_ids(checkpoint.path, model.config)
        reference = text_outputs(model, ids)
        again = difference(reference, text_outputs(model, ids))
        del model
        progress("running the rescaled model", 1, 3)
        other_folder = _as_folder(
            after if isinstance(after, Checkpoint) else open_checkpoint(after), place / "after", progress
        )
        model = load(other_folder, dtype=TORCH_DTYPES[dtype], allow_extra=True)
        other = text_outputs(model, ids)
        del model
        moved = difference(reference, other)
        comparable = all(bool(values.isfinite().all()) for values in reference.cases.values())
        identical = moved.n_different == 0 and moved.max_abs == 0
        control = None
        if not identical:
            progress("running the control: the same weights rounded at random", 2, 3)
            written = place / "written"
            written.mkdir()
            names = plan.tensors if plan else tuple({leg.tensor for site in sites.sites for leg in site.legs})
            write_weights(
                checkpoint,
                {n: partial(rounded_at_random, torch.Generator().manual_seed(i)) for i, n in enumerate(names)},
                written,
            )
            _finish_folder(checkpoint, written)
            rounded = _as_folder(open_checkpoint(written), place / "rounded", progress)
            control = difference(
                reference, text_outputs(load(rounded, dtype=TORCH_DTYPES[dtype], allow_extra=True), ids)
            ).max_rel
    progress("running the control: the same weights rounded at random", 3, 3)
    not_checked = [
        "attention kernels other than eager",
        f"contexts beyond {ids.shape[1]} tokens",
        "quantised copies: their scales were chosen for the old weights",
    ]
    if again.max_abs != 0:
        not_checked.append(f"the original does not repeat its own outputs (relative {again.max_rel:.1e})")
    ppl_before, ppl_after = (_perplexity(o, ids) if o.causal else None for o in (reference, other))
    return FullCheck(
        outputs=reference.kind,
        tokens=tokens,
        n_tokens=ids.numel(),
        dtype=dtype,
        max_abs=moved.max_abs,
        max_rel=moved.max_rel,
        n_values=moved.n_values,
        n_equal=moved.n_values - moved.n_different,
        top1_agreement=_top1(reference, other),
        perplexity_before=ppl_before,
        perplexity_after=ppl_after,
        bit_identical=identical,
        comparable=comparable,
        control_max_rel=control,
        seconds=time.perf_counter() - started,
        not_checked=tuple(not_checked),
    )


def token_ids(path: Path, config) -> tuple[torch.Tensor, str]:
    """((rows, length) int64, where they come from): the Python documentation through the folder's tokenizer, else
    random ids.
    """
    longest = min(
        [
            SEQUENCE,
            *(v for v in (getattr(config, "max_position_embeddings", None), getattr(config, "n_positions", None)) if v),
        ]
    )
    longest = max(2, longest - 2)  # RoBERTa-like models count positions from pad id + 1
    rows = max(1, N_TOKENS // longest)
    ids = _text_ids(path, rows * longest)
    if ids is not None and len(ids) == rows * longest and int(ids.max()) < config.vocab_size:
        return ids.reshape(rows, longest), "Python's documentation through the folder's tokenizer"
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        config.vocab_size, (rows, longest), generator=generator
    ), "random token ids (no usable tokenizer in the folder)"


def _text_ids(path: Path, n: int) -> torch.Tensor | None:
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        return None
    from pydoc_data.topics import topics  # in every Python installation

    from transformers import AutoTokenizer

    from wisca_core.equivalence.miniature import quiet

    text = "\n\n".join(topics[name] for name in sorted(topics))[: 16 * n]
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    except Exception:  # a tokenizer that cannot be used is said ("random token ids"), it does not stop the check
        return None
    return torch.tensor(ids[:n], dtype=torch.int64)


def _as_folder(checkpoint: Checkpoint, place: Path, progress: Progress) -> Path:
    """A folder that transformers loads this very checkpoint from, under the names it looks for: links to its weight
    files, which were looked through.
    """
    place.mkdir()
    if checkpoint.kind != "safetensors":  # converted, so that nothing is unpickled
        write_weights(checkpoint, {}, place, progress)
        if not checkpoint.index_file:
            (place / written_name(checkpoint, checkpoint.weight_files[0])).replace(place / WEIGHTS)
    else:
        for name in checkpoint.weight_files:
            os.symlink(locate(checkpoint.path, name), place / (name if checkpoint.index_file else WEIGHTS))
        if checkpoint.index_file:
            os.symlink(locate(checkpoint.path, checkpoint.index_file), place / f"{WEIGHTS}.index.json")
    (place / "config.json").write_text(checkpoint.config_json, encoding="utf-8")
    return place


def _write_plan(checkpoint: Checkpoint, sites: Sites, plan: Plan, out: Path, progress: Progress) -> None:
    shapes = {t.name: t.shape for t in checkpoint.tensors}
    factors = {part.site: part.factors for part in plan.sites}
    write_weights(checkpoint, changes(scalings(sites, factors, plan.options.granularity, shapes)), out, progress)
    _finish_folder(checkpoint, out)


def _finish_folder(checkpoint: Checkpoint, out: Path) -> None:
    """What beside its weight files makes a folder a checkpoint."""
    if checkpoint.kind == "safetensors" and checkpoint.index_file:
        shutil.copyfile(locate(checkpoint.path, checkpoint.index_file), out / checkpoint.index_file)
    if checkpoint.adapter_json:
        (out / "adapter_config.json").write_text(checkpoint.adapter_json, encoding="utf-8")
        return
    (out / "config.json").write_text(checkpoint.config_json, encoding="utf-8")


def _top1(a, b) -> float | None:
    if a.kind != "logits":
        return None
    same = [left.argmax(-1) == right.argmax(-1) for left, right in zip(a.cases.values(), b.cases.values())]
    return float(torch.cat(same).double().mean())


def _perplexity(outputs, ids: torch.Tensor) -> float:
    """exp of the mean next-token cross entropy."""
    losses = [
        torch.nn.functional.cross_entropy(values[:-1].double(), row[1:], reduction="sum")
        for values, row in zip(outputs.cases.values(), ids)
    ]
    return float(torch.exp(torch.stack(losses).sum() / (ids.numel() - len(ids))))
