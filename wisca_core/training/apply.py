"""Factors onto live tensors and onto what the optimiser keeps for them. Everything is checked before the first value
changes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from wisca_core.planning.factors import Factors
from wisca_core.rescale import Scaling, along_axis, scalings, times_, work_dtype
from wisca_core.training import distributed, zero
from wisca_core.training.live import Live
from wisca_core.training.optimizer_state import States


@dataclass(frozen=True, eq=False)
class Edit:
    """One tensor to be multiplied. ``vectors``: axis (or several) -> factors of the local indices, of length 1 where
    all are equal; ``states``: (tensor, power) multiplied by the factors to that power.
    """

    tensor: torch.Tensor
    vectors: Mapping[int | tuple[int, ...], np.ndarray]
    offset: float
    work: torch.dtype
    states: tuple[tuple[torch.Tensor, int], ...]


def apply_(live: Live, factors: Factors, states: States, copies: Iterable[Mapping[str, torch.Tensor]] = ()) -> None:
    """Multiply the parameters, their optimiser state and gradients, and the same tensors of the copies. No value is
    asked of the device.
    """
    scaling = scalings(live.sites, factors.by_site, factors.granularity, live.shapes)
    columns = [c for c in live.columns if c.weight in scaling]
    whole = [live.parameters] + list(copies)
    growing = [(c, tensors, i == 0) for i, tensors in enumerate(whole) for c in columns]
    edits, partitioned = [], []
    for name, one in scaling.items():
        parameter = live.parameters[name]
        if zero.is_partitioned(parameter):
            partitioned.append((name, parameter, one))
        else:
            axes = [axis for axis, vector in one.along.items() if not _is_one(vector)]
            edits.append(_edit(parameter, one, states.plan(parameter, name, not axes, axes)))
        edits += [_edit(copy[name], one, []) for copy in whole[1:]]
    followers = {c.magnitude: states.plan(live.parameters[c.magnitude], c.magnitude, uniform=False) for c in columns}
    with torch.no_grad():
        before = [c.norms(tensors) for c, tensors, _ in growing]
        _perform(edits)
        for name, parameter, one in partitioned:
            zero.times_(name, parameter, one, states)
        after = [c.norms(tensors) for c, tensors, _ in growing]
        _perform(
            [
                _edit(
                    tensors[c.magnitude],
                    Scaling({0: (new / old).cpu().numpy()}),
                    followers[c.magnitude] if is_model else [],
                )
                for (c, tensors, is_model), old, new in zip(growing, before, after)
            ]
        )
    forget_caches(live)


def forget_caches(live: Live) -> None:
    """DoRA keeps weight norms between calls in eval mode."""
    for module in live.model.modules():
        if hasattr(module, "_cache_clear") and hasattr(module, "_dora_cache"):
            module._cache_clear()


def _edit(tensor: torch.Tensor, scaling: Scaling, states: list[tuple[torch.Tensor, int]]) -> Edit:
    vectors = {}
    for axis, vector in scaling.along.items():
        if _is_one(vector):
            vector = vector.reshape(-1)[:1].reshape((1,) * vector.ndim)
        elif isinstance(axis, int):
            here = distributed.local_indices(tensor, axis)
            vector = vector if here is None else vector[here]
        vectors[axis] = vector
    held = tuple((distributed.local(state), power) for state, power in states)
    return Edit(distributed.local(tensor), vectors, scaling.offset, work_dtype(tensor.dtype, scaling), held)


def _perform(edits: Iterable[Edit]) -> None:
    by_device: dict[torch.device, list[Edit]] = {}
    for edit in edits:
        by_device.setdefault(edit.tensor.device, []).append(edit)
    for device, here in by_device.items():
        # one transfer for all factors, and for their powers of elements with one each
        parts: list[np.ndarray] = []
        places: list[tuple[Edit, int, dict[int | tuple[int, ...], int]]] = []
        at = 0
        for edit in here:
            needed = {1} | ({power for _, power in edit.states} if _n_factors(edit) > 1 else set())
            for power in needed:
                where = {}
                for axis, vector in edit.vectors.items():
                    where[axis] = at
                    parts.append((vector if power == 1 else vector ** float(power)).reshape(-1))
                    at += vector.size
                places.append((edit, power, where))
        flat = torch.from_numpy(np.concatenate(parts)).to(device, non_blocking=True)
        single: dict[float, list[torch.Tensor]] = {}
        for edit, power, where in places:
            factors = [
                along_axis(flat[start : start + vector.size].reshape(vector.shape), axis, edit.tensor.dim())
                for axis, start in where.items()
                for vector in (edit.vectors[axis],)
            ]
            if power == 1:
                times_(edit.tensor, factors, edit.offset, edit.work)
            for state, wanted in edit.states:
                if wanted == power and _n_factors(edit) > 1:
                    for factor in factors:
                        # the state's own precision: its last bit is no part of the function
                        state.mul_(factor if state.dtype == torch.float64 else factor.float())
        for edit in here:
            if _n_factors(edit) == 1:
                factor = float(np.prod([vector.reshape(-1)[0] for vector in edit.vectors.values()]))
                for state, power in edit.states:
                    single.setdefault((factor**power, state.dtype), []).append(state)
        for (factor, _), group in single.items():
            torch._foreach_mul_(group, factor)


def _n_factors(edit: Edit) -> int:
    return max(vector.size for vector in edit.vectors.values())


def _is_one(vector: np.ndarray) -> bool:
    return bool((vector == vector.reshape(-1)[0]).all())
