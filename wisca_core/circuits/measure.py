"""One pass over the attention weights: the circuits of every head."""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch

from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint, Reader
from wisca_core.circuits import numbers
from wisca_core.circuits.columns import COLUMNS, NUMBERS
from wisca_core.circuits.inputs import InputNorm, Inputs
from wisca_core.circuits.layout import Head, HeadRows, attentions, heads_of
from wisca_core.circuits.weights import AttentionWeights
from wisca_core.progress import Progress, silent
from wisca_core.threads import one_thread

# A stream channel is kept where what the circuits of one layer read from it or write to it is so many times the median
# channel's; far below the mark at which it is named, so that the mark can be argued with.
_LOUD = 3.0
_MOST_LOUD = 16
# With larger matrices than this a second worker would double a memory that is large already.
_SHARED_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Circuits:
    """What one pass over the heads of a checkpoint found.

    ``table``: one row a query head, the columns of ``COLUMNS``; float64, NaN where there is no number and ``note`` says
    why. ``spectra``: "qk" and "ov" -> singular values (n_heads, widest head), float32, descending, NaN behind a head's
    own. ``channels``: stream channels that stand out, one row each: block, layer, circuit (query, key, value, output),
    channel, times (the median channel's). ``remarks``: sentences on what is not covered.
    """

    table: pd.DataFrame
    spectra: MappingProxyType
    channels: pd.DataFrame
    remarks: tuple[str, ...] = ()


CHANNEL_COLUMNS = ("block", "layer", "circuit", "channel", "times")


def measure(checkpoint: Checkpoint, sites: Sites, progress: Progress = silent) -> Circuits:
    """The circuits of every head of ``sites``; reads each attention's matrices once.

    Adds the memory of one attention's output matrix in its stored dtype and a few float64 matrices of one head for each
    of at most two workers. Raises CheckpointChanged, UnreadableInput, Cancelled.
    """
    every = attentions(heads_of(sites, checkpoint))
    inputs = Inputs(sites, checkpoint)
    touched = {rows.tensor for heads in every for head in heads for rows in _rows_of(head)}
    largest = max((t.n_bytes for t in checkpoint.tensors if t.name in touched), default=0)
    n_workers = 1 if largest > _SHARED_BYTES else min(2, os.cpu_count() or 1, len(every) or 1)
    found: list[_AttentionHeads] = []
    with one_thread(), ExitStack() as open_:
        spare = [AttentionWeights(checkpoint, open_.enter_context(Reader(checkpoint))) for _ in range(n_workers)]

        def work(heads: list[Head]) -> _AttentionHeads:
            weights = spare.pop()
            try:
                return attention_heads(heads, weights, inputs)
            finally:
                weights.forget()
                spare.append(weights)

        # torch's operations let go of the interpreter, so a thread a core is two attentions at once
        pool = open_.enter_context(ThreadPoolExecutor(n_workers, initializer=partial(torch.set_num_threads, 1)))
        waiting = [pool.submit(work, heads) for heads in every]
        open_.callback(lambda: [one.cancel() for one in waiting])
        for done, one in enumerate(waiting):
            progress("measuring heads", done, len(every))
            found.append(one.result())
        progress("measuring heads", len(every), len(every))
    return _gather(found, sites, checkpoint, inputs)


@dataclass(eq=False)
class _AttentionHeads:
    """Of one attention: a dict of columns a head, its two spectra, and the loud channels."""

    rows: list[dict]
    qk: list[np.ndarray]
    ov: list[np.ndarray]
    channels: list[tuple]


@dataclass(frozen=True, eq=False)
class _Factor:
    """One side of a circuit with the norm before it folded in. ``matrix`` (n, width); ``bias`` (width,); ``size``:
    length of the longest input; ``l1`` of what is stored; ``stream``: whether its inputs are the residual stream's
    channels.
    """

    matrix: torch.Tensor
    triangle: torch.Tensor
    bias: torch.Tensor
    size: float
    l1: float
    stream: bool
    folded: str
    n_bad: int


def attention_heads(heads: list[Head], weights: AttentionWeights, inputs: Inputs) -> _AttentionHeads:
    """The circuits of the heads of one attention in one layer."""
    kept: dict[tuple, _Factor] = {}

    def factor(rows: HeadRows, live: str, rule: str, role: str) -> _Factor:
        """What several heads share (keys and values, mostly) is read once; a query or a part of Wo has one reader."""
        if role in "qo" and live != "gains":
            return _factor(rows, weights, inputs.norm(rows, role, rule, live), live)
        if (rows.key, role) not in kept:
            kept[rows.key, role] = _factor(rows, weights, inputs.norm(rows, role, rule, live), live)
        return kept[rows.key, role]

    out = _AttentionHeads([], [], [], [])
    loud: dict[str, torch.Tensor] = {}
    for head in heads:
        row = dict.fromkeys(NUMBERS, math.nan) | {
            "block": head.block,
            "layer": head.layer,
            "head": head.head,
            "kv_head": head.kv_head,
            "expert": head.expert,
            "qk_of": "",
            "ov_of": "",
            "width": sum(meeting.q.width for meeting in head.qk),
            "value_width": head.v.width if head.v else 0,
        }
        notes, folded = list(head.notes), []
        qk = _qk(head, factor, inputs, row, notes, folded, loud) if head.qk else None
        ov = _ov(head, factor, row, notes, folded, loud) if head.v is not None and head.o is not None else None
        out.qk.append(np.zeros(0) if qk is None else qk)
        out.ov.append(np.zeros(0) if ov is None else ov)
        out.rows.append(row | {"folded": ", ".join(dict.fromkeys(filter(None, folded))), "note": " ".join(notes)})
    _ratios(heads, out.rows)
    out.channels = list(_loudest(heads, loud))
    return out


def _factor(rows: HeadRows, weights: AttentionWeights, norm: InputNorm | None, live: str) -> _Factor:
    matrix, bias = weights.matrix(rows), weights.bias(rows)
    l1 = matrix.abs().sum().item()
    n_bad = int((~matrix.isfinite()).sum() + (~bias.isfinite()).sum())
    n = matrix.shape[1]
    if live == "gains":  # the norm's input has unit RMS over its whole width, of which one head may hold all
        shape = weights.shapes[rows.tensor]
        n = shape[-1] if len(shape) == 1 else n
    if norm is not None and norm.gain and weights.shapes[norm.gain] != (n,):
        norm = None  # embeddings of another width than the stream's: a projection stands between
    stream = norm is not None and norm.stream
    if norm is not None and norm.gain:
        gain = weights.vector(norm.gain) + norm.offset
        if norm.bias:
            bias = bias + matrix @ weights.vector(norm.bias)
        matrix = matrix * gain
    if norm is not None and norm.centred:
        matrix = matrix - matrix.mean(1, keepdim=True)
    tall = matrix.T
    bad = n_bad or not bool(matrix.isfinite().all())
    triangle = tall if bad else numbers.triangle(tall)
    return _Factor(tall, triangle, bias, math.sqrt(n), l1, stream, norm.name if norm else "", n_bad or int(bad))


def _qk(head: Head, factor, inputs: Inputs, row: dict, notes: list, folded: list, loud: dict) -> np.ndarray | None:
    """Fills in the QK columns of ``row``; the singular values."""
    site = head.qk[0].site
    row["qk_of"] = site.live
    sides = [(factor(m.q, m.site.live, m.site.rule, "q"), factor(m.k, m.site.live, m.site.rule, "k")) for m in head.qk]
    row["q_l1"], row["k_l1"] = sides[0][0].l1, sides[0][1].l1
    folded += [one.folded for side in sides for one in side]
    bad = sum(one.n_bad for side in sides for one in side)
    if bad:
        notes.append(f"QK: {bad:,} values are not finite.")
        return None
    if len(sides) == 1:
        left, right = sides[0][0].triangle, sides[0][1].triangle
    else:  # content and rotary part read the same query and two keys: one matrix beside the other, one below the other
        left = numbers.triangle(torch.cat([q.matrix for q, _ in sides], 1))
        right = torch.block_diag(*(k.triangle for _, k in sides))
    values = numbers.spectrum(left, right)
    if not float(values[0]):
        notes.append("QK: one side is all zero.")
    _fill(row, "qk", values)
    settings = inputs.settings(head)
    exact, at_any = 0.0, 0.0
    for meeting, (q, k) in zip(head.qk, sides):
        parts = (q.triangle, k.triangle, q.bias, k.bias, q.size, k.size)
        own = float(numbers.logit_bound(*parts, values[0] if len(sides) == 1 else None))
        pairs = torch.from_numpy(meeting.rotary_pairs())
        # a rotation that also stretches does so at every distance; one that shrinks leaves what does not turn as it is
        stretch = max(settings.turn, 1.0) if len(pairs) else 1.0
        exact += stretch * own
        at_any += stretch * float(numbers.logit_bound_any(*parts, pairs)) if len(pairs) else own
    row["logit_bound"] = _soft_cap(exact * settings.scale, settings.cap)
    row["logit_bound_any"] = max(row["logit_bound"], _soft_cap(at_any * settings.scale, settings.cap))
    if settings.note:
        notes.append(settings.note)
    q, k = sides[0]
    if q.stream:
        _add(loud, "query", (q.matrix @ k.triangle.T).square().sum(1))
    if k.stream:
        _add(loud, "key", (k.matrix @ q.triangle.T).square().sum(1))
    return values.numpy()


def _soft_cap(bound: float, cap: float | None) -> float:
    return cap * math.tanh(bound / cap) if cap else bound


def _ov(head: Head, factor, row: dict, notes: list, folded: list, loud: dict) -> np.ndarray | None:
    """Fills in the OV columns of ``row``; the singular values."""
    site = head.vo_site
    row["ov_of"] = site.live
    v, o = factor(head.v, site.live, site.rule, "v"), factor(head.o, "weights", site.rule, "o")
    row["v_l1"], row["o_l1"] = v.l1, o.l1
    folded.append(v.folded)
    if v.n_bad or o.n_bad:
        notes.append(f"OV: {v.n_bad + o.n_bad:,} values are not finite.")
        return None
    values = numbers.spectrum(v.triangle, o.triangle)
    if not float(values[0]):
        notes.append("OV: one side is all zero.")
    _fill(row, "ov", values)
    if site.live == "gains":
        notes.append("OV copying: a norm lies between Wv and Wo, so their product is not what is written.")
    elif head.is_latent or v.matrix.shape[0] != o.matrix.shape[0] or site.key.attention == "cross":
        notes.append("OV copying: the channels it reads are not those it writes to.")
    elif float(values[0]):
        row["ov_copying"] = float(numbers.copying(v.matrix, o.matrix))
    if v.stream and not head.is_latent:
        _add(loud, "value", (v.matrix @ o.triangle.T).square().sum(1))
    _add(loud, "output", (o.matrix @ v.triangle.T).square().sum(1))
    return values.numpy()


def _fill(row: dict, pair: str, values: torch.Tensor) -> None:
    row[f"{pair}_norm"] = float(numbers.frobenius(values))
    row[f"{pair}_spectral_norm"] = float(values[0])
    row[f"{pair}_stable_rank"] = float(numbers.stable_rank(values))
    row[f"{pair}_effective_rank"] = float(numbers.effective_rank(values)) if float(values[0]) else math.nan


def _add(loud: dict[str, torch.Tensor], name: str, squares: torch.Tensor) -> None:
    loud[name] = (
        squares if name not in loud else loud[name] + squares if len(loud[name]) == len(squares) else loud[name]
    )


def _loudest(heads: list[Head], loud: dict[str, torch.Tensor]) -> Iterator[tuple]:
    for name, squares in loud.items():
        size = squares.sqrt()
        middle = float(size.median())
        if not middle > 0:
            continue
        times = size / middle
        top = torch.topk(times, min(_MOST_LOUD, len(times)))
        for value, channel in zip(top.values.tolist(), top.indices.tolist()):
            if value >= _LOUD:
                yield heads[0].block, heads[0].layer, name, channel, value


def _ratios(heads: list[Head], rows: list[dict]) -> None:
    """Ratio and rates of each KV group; what a shared gain or key weighs counts once."""
    for pair, many, one in (("qk", "q", "k"), ("vo", "o", "v")):
        groups: dict[int, list[tuple[HeadRows, dict]]] = {}
        for head, row in zip(heads, rows):
            rows_of = head.qk[0].q if pair == "qk" and head.qk else head.o if pair == "vo" else None
            if rows_of is not None:
                groups.setdefault((head.kv_head, head.expert), []).append((rows_of, row))
        for members in groups.values():
            several = sum({rows_of.key: row[f"{many}_l1"] for rows_of, row in members}.values())
            single = members[0][1][f"{one}_l1"]
            if not (several > 0 and single > 0 and math.isfinite(several) and math.isfinite(single)):
                continue
            ratio = several / single
            for _, row in members:
                row[f"{pair}_ratio"] = ratio if pair == "qk" else 1 / ratio
                row[f"{many}_rate"], row[f"{one}_rate"] = math.sqrt(ratio), 1 / math.sqrt(ratio)


def _rows_of(head: Head) -> Iterator[HeadRows]:
    for meeting in head.qk:
        yield from (meeting.q, meeting.k)
    yield from (one for one in (head.v, head.o) if one is not None)


def _gather(found: list[_AttentionHeads], sites: Sites, checkpoint: Checkpoint, inputs: Inputs) -> Circuits:
    rows = [row for one in found for row in one.rows]
    table = pd.DataFrame(rows, columns=[column.name for column in COLUMNS])
    # a number that no head has is missing as a number is, not as a word
    table = table.astype({column.name: float for column in COLUMNS if column.moves is not None})
    spectra = {name: _pad([values for one in found for values in getattr(one, name)]) for name in ("qk", "ov")}
    channels = pd.DataFrame([line for one in found for line in one.channels], columns=CHANNEL_COLUMNS)
    remarks = [*checkpoint.remarks, *sites.remarks, *inputs.remarks(table)]
    if checkpoint.look_only:
        remarks.append(f"Of the values as they are looked at: {checkpoint.look_only}")
    return Circuits(table, MappingProxyType(spectra), channels, tuple(dict.fromkeys(remarks)))


def _pad(spectra: list[np.ndarray]) -> np.ndarray:
    widest = max((len(values) for values in spectra), default=0)
    out = np.full((len(spectra), widest), np.nan, np.float32)
    for i, values in enumerate(spectra):
        out[i, : len(values)] = values
    return out
