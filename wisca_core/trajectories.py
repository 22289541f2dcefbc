"""What happened in the weights over a training: the ratio of every pair over the checkpoints of one run.

A folder of checkpoints (``checkpoint-500``, ``step_1000``, ``iter_0002000``, ...) is measured one checkpoint after the
other; each is read once, and kept in WISCA_HOME/measurements like any other model. Labels are checked against what the
checkpoints say themselves.

Not covered: feed-forward pairs, optimiser state.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import xxhash

from wisca_core.architecture.declaration import Declaration, as_declarations
from wisca_core.architecture.discovery import sites_of
from wisca_core.architecture.site import Refusal
from wisca_core.checkpoint import Declared, open_checkpoint
from wisca_core.errors import UnreadableInput, WiscaError
from wisca_core.pairs import SIDES
from wisca_core.patterns.blocks import titles
from wisca_core.patterns.groups import group_table
from wisca_core.patterns.store import cached_patterns, measured_patterns, n_bytes_to_read
from wisca_core.patterns.summary import layer_ratios
from wisca_core.patterns.table import NORMS
from wisca_core.progress import Progress, silent
from wisca_core.untrusted import named_path, parse_json_object, printable, read_regular
from wisca_core.words import ranges, side, times

# What a name says of the step: the last number behind one of these words, or a name that is a number.
_LABEL = re.compile(r"(?i)(?:checkpoint|ckpt|global_?step|step|iteration|iter|it|update|epoch)[-_= ]?(\d{1,12})(?!\d)")
_NUMBER = re.compile(r"\d{1,12}\Z")
_MODEL_ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
MAX_CHECKPOINTS = 2000

# One row a (checkpoint, site, KV group); norms before anything is rescaled.
COLUMNS = {
    "step": "step of the checkpoint, by its label",
    "checkpoint": "name of its folder or file",
    "name": "site name",
    "layer": "layer",
    "pair": "qk, vo or lora",
    "group": "KV group",
    "left": "norm of the left side (q, v)",
    "right": "norm of the right side (k, o)",
    "log2_ratio": "log2(left / right), octaves",
    "log2_size": "part of it that is only the number of entries; NaN for max",
    "block": "where in the model, without the layer: decoder.self, decoder.cross ...",
}


@dataclass(frozen=True)
class LabelledCheckpoint:
    """A checkpoint and the step its name says."""

    path: Path
    step: int
    label: str


@dataclass(frozen=True, eq=False)
class Trajectory:
    """``tables``: norm -> frame of COLUMNS, by step. ``refusals``: checkpoints that could not be read, and pairs that
    are not covered. ``remarks``: labels that do not fit, in sentences. ``pairs``: those that are there.
    """

    folder: Path
    checkpoints: tuple[LabelledCheckpoint, ...]
    tables: Mapping[str, pd.DataFrame]
    refusals: tuple[Refusal, ...]
    remarks: tuple[str, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(checkpoint.step for checkpoint in self.checkpoints)

    @property
    def pairs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(next(iter(self.tables.values()))["pair"]))

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """Each (pair, block) that is there."""
        table = next(iter(self.tables.values()))
        return tuple(dict.fromkeys(zip(table["pair"], table["block"])))

    def titles(self, pair: str) -> dict[str, str]:
        """block -> its name among the blocks of the pair, "" where it is the only one."""
        return titles(block for of, block in self.places if of == pair)

    @cached_property
    def _layers(self) -> dict[str, pd.DataFrame]:
        return {}

    def layers(self, norm: str) -> pd.DataFrame:
        """One row a (step, pair, block, layer): log2_ratio and log2_size of all KV groups together, octaves. Made once;
        not to be changed.
        """
        if norm not in self._layers:
            self._layers[norm] = self._layers_of(norm)
        return self._layers[norm]

    def _layers_of(self, norm: str) -> pd.DataFrame:
        table = self.tables[norm]
        parts = [
            layer_ratios(part, norm)[["pair", "block", "layer", "log2_ratio", "log2_size"]].assign(step=step)
            for step, part in table.groupby("step", sort=True)
        ]
        return pd.concat(parts, ignore_index=True)[["step", "pair", "block", "layer", "log2_ratio", "log2_size"]]


def find_checkpoints(folder: str | Path) -> tuple[LabelledCheckpoint, ...]:
    """The checkpoints in ``folder`` by their labels, lowest step first, nothing opened. Raises UnreadableInput where
    there are none.
    """
    root = Path(os.path.abspath(named_path(folder)))
    try:
        with os.scandir(root) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UnreadableInput(
            f"{printable(folder)}: cannot be listed: {error.strerror}. Give the folder that holds the checkpoints."
        ) from None
    found = []
    for entry in listed:
        if entry.name.startswith("."):
            continue
        is_folder = entry.is_dir()
        stem = entry.name if is_folder else os.path.splitext(entry.name)[0]
        if not is_folder and (not entry.name.endswith((*_MODEL_ENDINGS, ".ckpt")) or re.search(r"-\d+-of-\d+$", stem)):
            continue
        labels = _LABEL.findall(stem)
        step = int(labels[-1]) if labels else int(stem) if _NUMBER.match(stem) else None
        if step is not None and (not is_folder or _holds_model(Path(entry.path))):
            found.append(LabelledCheckpoint(Path(entry.path), step, entry.name))
    if not found:
        raise UnreadableInput(
            f"{printable(root)}: no checkpoints in this folder. Expected folders such as checkpoint-500, step_1000 or "
            f"iter_0002000 with a model in "
            "each. For one model use inspect."
        )
    if len(found) > MAX_CHECKPOINTS:
        raise UnreadableInput(f"{printable(root)}: {len(found):,} checkpoints, at most {MAX_CHECKPOINTS:,} are read.")
    return tuple(sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.label)))


def _holds_model(folder: Path) -> bool:
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    return any(
        name.endswith((*_MODEL_ENDINGS, ".distcp", ".safetensors.index.json")) or name in (".metadata", "config.json")
        for name in names
    )


def bytes_to_read(checkpoints: Sequence[LabelledCheckpoint]) -> int:
    """Bytes that measuring them would read now: nothing of those already kept, nor of those that cannot be opened."""
    total = 0
    for labelled in checkpoints:
        try:
            checkpoint = open_checkpoint(labelled.path)
            sites = sites_of(checkpoint)
            total += 0 if cached_patterns(checkpoint, sites) is not None else n_bytes_to_read(checkpoint, sites)
        except WiscaError:
            continue
    return total


def trajectory(
    folder: str | Path, progress: Progress = silent, sites: Declared | Sequence[Declaration] | None = None
) -> Trajectory:
    """Measure every checkpoint in ``folder`` (kept ones are not read again). ``sites``: the pairs of files without a
    config.json, as ``wisca.attention`` and ``wisca.feed_forward`` declare them.

    A checkpoint that cannot be read, or is of another architecture than the first, is named in ``refusals``. Raises
    UnreadableInput where none is left, Cancelled.
    """
    declared = Declared(as_declarations(sites)) if isinstance(sites, (list, tuple)) else sites
    root = Path(os.path.abspath(named_path(folder)))
    labelled = find_checkpoints(root)
    refusals: list[Refusal] = []
    remarks: list[str] = []
    used: list[LabelledCheckpoint] = []
    tables: dict[str, list[pd.DataFrame]] = {norm: [] for norm in NORMS}
    first_layout = None
    contents: dict[str, LabelledCheckpoint] = {}
    reused: dict[int, str] = {}
    for k, one in enumerate(labelled):
        progress("measuring checkpoints", k, len(labelled))
        try:
            checkpoint = open_checkpoint(one.path, declared=declared)
            found = sites_of(checkpoint)
            whole = next((r.reason for r in found.refusals if r.what == "model"), "")
            if whole or not found.sites:
                refusals.append(Refusal(one.label, whole or "no pair in it can be measured"))
                continue
            layout = tuple((site.name, site.n_channels) for site in found.sites)
            if first_layout is not None and layout != first_layout:
                refusals.append(
                    Refusal(one.label, f"has other pairs than {used[0].label}, so it is not of the same training")
                )
                continue
            patterns = measured_patterns(checkpoint, found, progress)
        except WiscaError as error:
            if error.exit_code == 130:
                raise
            refusals.append(Refusal(one.label, str(error)))
            continue
        if first_layout is None:
            first_layout = layout
            refusals += [r for r in found.refusals if r.what != "model"]
        content = patterns.fingerprint(tuple(patterns.digests))
        if content in contents:
            other = contents[content]
            remarks.append(
                f"{printable(one.label, 80)} and {printable(other.label, 80)} hold byte-identical attention weights: a "
                "label "
                f"is wrong, one is a copy of the other, "
                "or these weights were frozen between the two."
            )
        contents.setdefault(content, one)
        if one.step in reused:
            remarks.append(
                f"{printable(one.label, 80)} and {printable(reused[one.step], 80)} both say step {one.step:,}; both "
                "are drawn "
                f"there."
            )
        reused[one.step] = one.label
        stated = _stated_step(one.path)
        if stated is not None and stated != one.step:
            remarks.append(
                f"{printable(one.label, 80)} says step {stated:,} in its trainer_state.json; it is drawn at "
                f"{one.step:,}, "
                f"as it is called."
            )
        used.append(one)
        for norm in NORMS:
            table = group_table(patterns, norm)
            tables[norm].append(table.assign(step=one.step, checkpoint=one.label)[list(COLUMNS)])
    progress("measuring checkpoints", len(labelled), len(labelled))
    if not used:
        reasons = " ".join(f"{r.what}: {r.reason}" for r in refusals[:3])
        raise UnreadableInput(f"{printable(root)}: none of {len(labelled)} checkpoints could be measured. {reasons}")
    joined = {norm: pd.concat(parts, ignore_index=True) for norm, parts in tables.items()}
    return Trajectory(root, tuple(used), MappingProxyType(joined), tuple(refusals), tuple(remarks))


def _stated_step(path: Path) -> int | None:
    """global_step of the trainer_state.json in a checkpoint folder, None where it has none."""
    state = path / "trainer_state.json"
    try:
        step = parse_json_object(read_regular(state, 128 << 20), str(state), unique_keys=False).get("global_step")
    except UnreadableInput:
        return None
    return step if isinstance(step, int) and not isinstance(step, bool) else None


# --- what it says -----------------------------------------------------------------------------------------------------

# Layers whose ratio moved less than this many octaves (7 %) over the whole training count as steady.
STEADY_OCTAVES = 0.1
# A layer has begun to move at the last checkpoint at which less than this part of its whole change has happened.
_BEGUN = 0.1


@dataclass(frozen=True)
class Drift:
    """Layers of one pair in one block that moved the same way from the same checkpoint on.

    ``title``: the block in words, "" where it is the only one of the pair. ``growing``, ``against``: sides in words, ""
    where the layers are steady. ``octaves``: median change of log2(left / right) over the whole training;
    ``per_1000_steps``: median, from ``from_step`` to the end. ``log2_first``, ``log2_last``: median ratio at both ends.
    """

    pair: str
    block: str
    title: str
    layers: tuple[int, ...]
    growing: str
    against: str
    from_step: int
    last_step: int
    octaves: float
    log2_first: float
    log2_last: float
    per_1000_steps: float


def drifts(trajectory: Trajectory, norm: str) -> tuple[Drift, ...]:
    """How each pair moved in each block, layers grouped by direction and beginning; steady layers last. Empty for a
    single step.
    """
    out = []
    table = trajectory.layers(norm)
    for pair, block in trajectory.places:
        part = (
            table[(table["pair"] == pair) & (table["block"] == block)]
            .pivot_table(index="step", columns="layer", values="log2_ratio", aggfunc="last")
            .sort_index()
        )
        part = part.loc[:, np.isfinite(part).all(axis=0)]
        if len(part) < 2 or not part.shape[1]:
            continue
        steps = part.index.to_numpy()
        grouped: dict[tuple[int, int], list[int]] = {}
        for layer in part.columns:
            moved = part[layer].to_numpy() - part[layer].iloc[0]
            whole = moved[-1]
            if abs(whole) < STEADY_OCTAVES:
                grouped.setdefault((0, 0), []).append(int(layer))
                continue
            outside = np.abs(moved) > _BEGUN * abs(whole)
            begun = (
                int(np.argmax(outside)) - 1
            )  # the first that is outside has one inside before it: the start itself is
            grouped.setdefault((1 if whole > 0 else -1, begun), []).append(int(layer))
        for (direction, begun), layers in sorted(grouped.items(), key=lambda item: (item[0][0] == 0, -len(item[1]))):
            chosen = part[layers].to_numpy()
            span = max(float(steps[-1] - steps[begun]), 1.0)
            left, right = SIDES[pair]
            growing, against = ((left, right) if direction > 0 else (right, left)) if direction else ("", "")
            out.append(
                Drift(
                    pair,
                    block,
                    trajectory.titles(pair)[block],
                    tuple(layers),
                    growing,
                    against,
                    int(steps[begun]),
                    int(steps[-1]),
                    float(np.median(chosen[-1] - chosen[0])),
                    float(np.median(chosen[0])),
                    float(np.median(chosen[-1])),
                    float(np.median(chosen[-1] - chosen[begun])) / span * 1000,
                )
            )
    return tuple(out)


@dataclass(frozen=True)
class Advice:
    """One reading in plain words, and the numbers it rests on."""

    text: str
    numbers: tuple[tuple[str, float], ...]


def advice(
    trajectory: Trajectory, norm: str = "l1", every: int = 250, curve: tuple[str, np.ndarray, np.ndarray] | None = None
) -> tuple[Advice, ...]:
    """What was measured and what balancing every ``every`` steps would have had to correct at that drift; nothing about
    whether it helps.

    ``curve``: (name, steps, values) of a loss logged in the same training.
    """
    out: list[Advice] = []
    found = drifts(trajectory, norm)
    if len(set(trajectory.steps)) < 2:
        return (Advice("One step only: a trajectory needs checkpoints of at least two steps.", ()),)
    gaps = np.diff(sorted(set(trajectory.steps)))
    for pair in trajectory.pairs:
        for d in (d for d in found if d.pair == pair):
            where = (
                f"{'layer' if len(d.layers) == 1 else 'layers'} {ranges(d.layers)}{f' ({d.title})' if d.title else ''}"
            )
            if not d.growing:
                left, right = SIDES[pair]
                out.append(
                    Advice(
                        f"{left.capitalize()} against {right} moves less than {STEADY_OCTAVES:g} octaves "
                        f"({times(2**STEADY_OCTAVES)}) over the training in {where}.",
                        (("octaves", d.octaves),),
                    )
                )
                continue
            text = (
                f"{d.growing.capitalize()} grows against {d.against} from step {d.from_step:,} on in {where}: the "
                f"ratio moves by "
                f"{times(2 ** abs(d.octaves))}, from {side(pair, d.log2_first)} to {side(pair, d.log2_last)} "
                f"(median of these layers)."
            )
            drift = abs(d.per_1000_steps) * every / 1000
            seen = d.last_step - d.from_step
            within = every <= seen
            if within:
                text += (
                    f" At this drift {every:,} steps move the ratio by {_small_times(2**drift)}, so WISCA every "
                    f"{every:,} steps would have rescaled each side by {_small_times(2 ** (drift / 2))} a time after "
                    f"the first."
                )
            else:
                text += f" That was seen over {seen:,} steps: what {every:,} steps would move is not known from them."
            if gaps.max() > every:
                text += f" Between checkpoints, up to {int(gaps.max()):,} steps apart, nothing was measured."
            out.append(
                Advice(
                    text,
                    (
                        ("octaves", d.octaves),
                        ("octaves_per_1000_steps", d.per_1000_steps),
                        ("from_step", d.from_step),
                        ("log2_first", d.log2_first),
                        ("log2_last", d.log2_last),
                        *(
                            (("ratio_per_interval", 2**drift), ("factor_per_interval", 2 ** (drift / 2)))
                            if within
                            else ()
                        ),
                    ),
                )
            )
    if any(d.growing for d in found):
        out.append(
            Advice(
                "A training that is rescaled may drift differently, and a drift alone does not say that balancing "
                "helps: a paired comparison does.",
                (),
            )
        )
    if curve is not None:
        out += _beside(trajectory, curve)
    return tuple(out)


def _beside(trajectory: Trajectory, curve: tuple[str, np.ndarray, np.ndarray]) -> list[Advice]:
    """The loss at the first and last checkpoint: the last value logged up to there."""
    name, steps, values = curve
    usable = np.isfinite(values) & np.isfinite(steps)
    order = np.argsort(steps[usable], kind="stable")
    steps, values = steps[usable][order], values[usable][order]
    at = []
    for step in (min(trajectory.steps), max(trajectory.steps)):
        k = int(np.searchsorted(steps, step, side="right")) - 1
        if k < 0:
            k = 0 if len(steps) and steps[0] <= max(trajectory.steps) else -1
        if k < 0:
            return []
        at.append((float(steps[k]), float(values[k])))
    if at[0][0] == at[1][0]:
        return []
    (first_step, first), (last_step, last) = at
    way = "falls" if last < first else "rises" if last > first else "stays"
    return [
        Advice(
            f"Meanwhile {printable(name, 60)} {way} from {first:.3f} at step {first_step:,g} to {last:.3f} at step "
            f"{last_step:,g}. That both change says "
            "nothing about one causing the other.",
            (("first", first), ("last", last)),
        )
    ]


def _small_times(ratio: float) -> str:
    """Three decimals near 1, where two would say 1.00×."""
    return f"{ratio:.3f}×" if ratio < 1.1 else times(ratio)


def trajectory_job(arguments: dict, progress: Progress, folder: Path) -> dict:
    """{folder} -> {checkpoints: count}: the tables are then in WISCA_HOME/measurements."""
    return {"checkpoints": len(trajectory(arguments["folder"], progress).checkpoints)}


def content_key(folder: str | Path) -> str:
    """A key that changes when a checkpoint appears, vanishes or is written again; for caches."""
    digest = xxhash.xxh3_128()
    for one in find_checkpoints(folder):
        files = sorted(one.path.iterdir()) if one.path.is_dir() else [one.path]
        for path in files:
            try:
                seen = path.stat()
            except OSError:
                continue
            digest.update(f"{path}\0{seen.st_size}\0{seen.st_mtime_ns}\n".encode("utf-8", "replace"))
    return digest.hexdigest()
