"""The full check: the original and the rescaled checkpoint run on the same token ids, in the dtype they are stored in.

It shows what rounding does to this model. It cannot prove a rule: a rounded right rescale moves the outputs more than a
1 % error in one matrix does, which is why the control (the same weights rounded at random) and the miniature stand
beside it.
"""

import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import TORCH_DTYPES, Checkpoint, open_checkpoint
from wisca_core.checkpoint.untrusted import locate
from wisca_core.errors import OutputRefused, UnsupportedCheckpoint
from wisca_core.exporting.weights import write_weights, written_name
from wisca_core.planning.plan import Plan
from wisca_core.progress import Progress, silent
from wisca_core.rescale import changes, scalings
from wisca_core.storage import folder, workplace

N_TOKENS = 1024
SEQUENCE = 256
# a control that is this much smaller says the difference is more than rounding
SUSPICIOUS = 30.0
INPUTS = "random inputs"  # of a LoRA adapter's products, in place of tokens
WEIGHTS = "model.safetensors"  # what transformers looks for, and this + .index.json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True)
class FullCheck:
    """Differences of ``n_values`` outputs on ``n_tokens`` token ids. ``max_rel``: relative to max |output| of the
    original. ``control_max_rel``: the same for the original with the touched weights rounded at random (None where the
    outputs are bit-equal). Perplexities are per token, None where the model predicts no next token.
    """

    outputs: str
    tokens: str
    n_tokens: int
    dtype: str
    max_abs: float
    max_rel: float
    n_values: int
    n_equal: int
    top1_agreement: float | None
    perplexity_before: float | None
    perplexity_after: float | None
    bit_identical: bool
    comparable: bool  # False where the original's own outputs are not finite
    control_max_rel: float | None
    seconds: float
    not_checked: tuple[str, ...]

    @property
    def fed(self) -> str:
        """What ``n_tokens`` counts."""
        return INPUTS if self.tokens == INPUTS else "tokens"

    def words(self) -> str:
        """One line for reports."""
        if not self.comparable:
            return "the original's own outputs are not finite, so nothing could be compared."
        if self.bit_identical:
            return f"all {self.n_values:,} {self.outputs} of {self.n_tokens:,} {self.fed} are bit-identical in {self.dtype}."
        out = f"largest relative difference of the {self.outputs} {self.max_rel:.1e} on {self.n_tokens:,} {self.fed} in {self.dtype}"
        if self.control_max_rel is not None:
            out += f"; the same weights rounded at random move them by {self.control_max_rel:.1e}"
        if self.top1_agreement is not None:
            out += f"; top-1 agreement {100 * self.top1_agreement:.2f} %"
        return out + "."

    def agrees(self, plan: Plan) -> bool:
        """Whether the figures are what the plan promises: equal bits where it says so, else outputs that are finite and
        move no more than rounding explains.
        """
        if self.bit_identical or not self.comparable:
            return True
        if plan.bit_identical:
            return False
        if not self.max_rel < float("inf"):
            return False
        return self.max_rel <= SUSPICIOUS * max(self.control_max_rel or 0.0, _rounding(self.dtype))

    def to_json(self) -> dict:
        out = asdict(self)
        doubtful = [
            name for name in _MAYBE if out[name] is not None and not math.isfinite(out[name])
        ]  # JSON has no infinity
        return out | {name: repr(out[name]) for name in ("max_abs", "max_rel", *doubtful)}

    @classmethod
    def from_json(cls, data: Mapping) -> "FullCheck":
        fields = {name: data[name] for name in cls.__dataclass_fields__}
        numbers = {name: float(data[name]) for name in ("max_abs", "max_rel", *_MAYBE) if data[name] is not None}
        return cls(**(fields | numbers | {"not_checked": tuple(data["not_checked"])}))


_MAYBE = ("control_max_rel", "perplexity_before", "perplexity_after")


def _rounding(dtype: str) -> float:
    return torch.finfo(TORCH_DTYPES[dtype]).eps


def memory_needed(checkpoint: Checkpoint) -> int:
    """Bytes the check needs at its peak: one model in its stored dtype, while it is loaded, and its activations."""
    return int(1.3 * sum(t.n_bytes for t in checkpoint.tensors)) + 512 * 2**20


def memory_free() -> int | None:
    """Bytes this machine can give, None where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None
    except OSError:
        return None


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
        from wisca_core.equivalence.adapter_check import compare_adapters

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


def stored_dtype(checkpoint: Checkpoint, sites: Sites) -> str:
    """The dtype of most of the pairs' weights."""
    names = {leg.tensor for site in sites.sites for leg in site.legs} or checkpoint.by_name.keys()
    count: dict[str, int] = {}
    for name in names:
        tensor = checkpoint.by_name[name]
        count[tensor.dtype] = count.get(tensor.dtype, 0) + tensor.n_elements
    return max(count, key=count.get)


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


def rounded_at_random(generator: torch.Generator, block: torch.Tensor, first_row: int) -> torch.Tensor:
    """Each value one unit in the last place up or down with probability 1/12: the variance of one rounding (ulp^2 /
    12).
    """
    bits = block.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[block.element_size()])
    draw = torch.randint(24, block.shape, generator=generator)
    step = (draw == 0).to(bits.dtype) - (draw == 1).to(bits.dtype)
    ordinary = (
        block.isfinite() & (block.abs() > torch.finfo(block.dtype).tiny) & (block.abs() < torch.finfo(block.dtype).max)
    )
    return torch.where(ordinary, bits + step, bits).view(block.dtype)


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
