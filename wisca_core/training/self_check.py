"""A live rescale looked at from outside: the outputs on one batch before and after it, beside those of the same weights
rounded at random.

The proof says that the rule is right; this catches what no proof saw: an attention function or a forward of the user's,
a hook, a prompt encoder outside the model. It is three forwards in eval mode that leave no trace: modes, buffers and
random states are restored, and where the outputs move too far, weights and optimiser state too, to the bit.

Not covered: parameters that DeepSpeed keeps on NVMe or twice in a node; what the batch does not reach.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from wisca_core.equivalence.declared_proof import submodule
from wisca_core.equivalence.full_check import add_ulps, memory_free
from wisca_core.equivalence.outputs import everything
from wisca_core.equivalence.undisturbed import leave_as_found, seed_all
from wisca_core.errors import BadOption
from wisca_core.training import distributed, zero
from wisca_core.training.apply import forget_caches
from wisca_core.training.live import Live
from wisca_core.training.optimizer_state import States
from wisca_core.words import in_bytes

# times the control; right rescales stay below half of it in every dtype (tests/test_self_check.py)
LIMIT = 10.0
_DRAWN = (1 << 16) + 1  # random numbers for a control, used over and over; odd, so that rows do not repeat
ROWS, POSITIONS = 2, 16  # of ids that are made up
_PRECISION = {"highest": 0.0, "high": 2.0**-11, "medium": 2.0**-8}  # of float32 products, by torch's own word


@dataclass(frozen=True)
class Check:
    """``moved``, ``control``: largest difference of the outputs relative to the largest output, after the rescale and
    with the old weights rounded at random. ``inputs``: what the model was called with. ``copy_bytes``: of the copy to
    go back to, which lay on ``copied_to``. ``not_checked``: why there is no check, "" where there is one.
    """

    moved: float = 0.0
    control: float = 0.0
    inputs: str = ""
    copy_bytes: int = 0
    copied_to: str = ""
    seconds: float = 0.0
    not_checked: str = ""

    def to_json(self) -> dict:
        if self.not_checked:
            return {"not_checked": self.not_checked}
        numbers = {"moved": f"{self.moved:.3g}", "control": f"{self.control:.3g}", "seconds": round(self.seconds, 6)}
        return numbers | {"inputs": self.inputs, "copy_bytes": self.copy_bytes, "copied_to": self.copied_to}


@dataclass(frozen=True, eq=False)
class FromLoader:
    """A batch of a trainer's loader that reads nothing from it: the first samples of its map-style data set,
    collated.
    """

    loader: object

    def __call__(self) -> object:
        data, collate = getattr(self.loader, "dataset", None), getattr(self.loader, "collate_fn", None)
        if isinstance(data, torch.utils.data.IterableDataset) or not hasattr(data, "__getitem__") or collate is None:
            raise LookupError("the data set is no map-style one")
        if not isinstance(collate, FunctionType):
            collate = copy.deepcopy(collate)  # some draw from a generator of their own
        return collate([data[i] for i in range(min(ROWS, len(data)))])


@dataclass(frozen=True, eq=False)
class ModelCall:
    """How the model is called: ``module(given)``, in words ``inputs``."""

    module: nn.Module
    call: Callable[[nn.Module], object]
    inputs: str

    def outputs(self, live: Live) -> torch.Tensor:
        """Every floating value it gives, float64, on the host."""
        forget_caches(live)
        seed_all(3)
        out = everything(_each(self.call(self.module), lambda t: t.full_tensor() if distributed.is_dtensor(t) else t))
        distributed.reshard(live.model)
        return out.double().cpu()


def _each(value: object, act: Callable[[torch.Tensor], torch.Tensor]) -> object:
    """The same with ``act`` done to every tensor, wherever it lies in what a call takes or gives."""
    if isinstance(value, torch.Tensor):
        return act(value)
    if isinstance(value, Mapping):
        return {name: _each(inner, act) for name, inner in value.items()}
    return type(value)(_each(inner, act) for inner in value) if type(value) in (tuple, list) else value


def caller(
    live: Live, forward, batch: object, device: torch.device
) -> tuple[ModelCall | None, torch.Tensor | None, str]:
    """(how to call the model, its outputs, "") or (None, None, why it cannot be called). Run inside ``leave_as_found``.

    Raises BadOption where a batch that the person gave does not run.
    """
    tried: list[str] = []
    outer = submodule(live.model, "")
    modules = [outer] if outer is live.inner else [outer, live.inner]
    for make, inputs, is_asked in _ways(live, forward, batch, device):
        for module in modules:
            try:
                found = ModelCall(module, make(), inputs)
                return found, found.outputs(live), ""
            except (torch.cuda.OutOfMemoryError, KeyboardInterrupt):
                raise
            except Exception as error:  # anything may be wrong with inputs that are not its own
                distributed.reshard(live.model)
                tried.append(f"{inputs}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        if is_asked:
            raise BadOption(
                f"batch: {type(outer).__name__} cannot be called with what was given ({tried[-1]}). Give a mapping of "
                "its "
                "arguments, a tuple of them, or forward=lambda model, batch: ...; the model is unchanged."
            )
    return None, None, tried[-1] if tried else "nothing is known that it could be called with; give batch="


def _ways(live: Live, forward, batch: object, device: torch.device) -> Iterator[tuple[Callable, str, bool]]:
    """(what makes the call, in words, whether the person gave it), the likeliest first."""
    if batch is not None:
        is_own = not isinstance(batch, FromLoader)
        words = "the batch that was given" if is_own else "the trainer's data"
        yield (
            lambda: _with(
                _each(batch() if callable(batch) else batch, lambda t: t.to(device)), forward if is_own else None
            ),
            words,
            is_own,
        )
    tables = [m.num_embeddings for m in live.inner.modules() if isinstance(m, nn.Embedding)]
    ids = torch.randint(min(tables, default=ROWS), (ROWS, POSITIONS), generator=torch.Generator().manual_seed(3)).to(
        device
    )
    if forward is not None:
        yield lambda: _with(ids, forward), "made-up ids", False
    if live.checkpoint.config_json:
        yield lambda: _as_transformers(live.inner, device), "made-up inputs", False
    elif tables and forward is None:
        for n in (POSITIONS, 4):
            yield lambda n=n: _with(ids[:, :n], None), "made-up ids", False


def _with(given: object, forward) -> Callable[[nn.Module], object]:
    if forward is not None:
        return lambda module: forward(module, given)
    if isinstance(given, Mapping):
        return lambda module: module(**given)
    if isinstance(given, (tuple, list)):
        return lambda module: module(*given)
    return lambda module: module(given)


def _as_transformers(inner: nn.Module, device: torch.device) -> Callable[[nn.Module], object]:
    from wisca_core.equivalence.inputs import cases, has_cache

    calls = [one for one in cases(inner, 3) if one.method == "forward"]
    calls = [one for one in calls if one.mask is None] or calls  # at padding some kernels give no number
    case = max(
        calls,
        key=lambda one: max((t.numel() for t in one.inputs.values() if isinstance(t, torch.Tensor)), default=0),
        default=None,
    )
    if case is None:
        raise LookupError("no input of it is known")
    dtype = next(p.dtype for p in inner.parameters() if p.is_floating_point())
    given = _each(dict(case.inputs), lambda t: t.to(device, dtype) if t.is_floating_point() else t.to(device))
    given |= {"use_cache": False} if has_cache(inner) else {}
    return lambda module: module(**given)


@dataclass(frozen=True, eq=False)
class Copy:
    """Everything a rescale changes, as it was: parameters, their gradients, what optimisers keep for them, other
    copies; of what is sharded the part of this rank. ``partitioned``: DeepSpeed's parameters.
    """

    tensors: tuple[tuple["torch.Tensor | zero.Fragment", torch.Tensor], ...]
    parameters: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    partitioned: tuple[torch.Tensor, ...]
    device: torch.device

    @classmethod
    def of(cls, live: Live, states: States, copies: Sequence[Mapping[str, torch.Tensor]]) -> "Copy | str":
        """The copy, or why none can be made."""
        held: dict[int, torch.Tensor] = {}
        partitioned = tuple(p for p in live.parameters.values() if zero.is_partitioned(p))
        reason = zero.unreachable(partitioned)
        if reason:
            return reason
        parameters = {
            name: zero.module_copy(p) if zero.is_partitioned(p) else distributed.local(p)
            for name, p in live.parameters.items()
        }
        parts = [(part, part.read()) for p in partitioned for part, _ in zero.fragments(p, states)]
        for parameter in live.parameters.values():
            beside = [parameter.grad] if parameter.grad is not None else []
            for one in states.optimizers:
                beside += [
                    value for value in (one.state.get(parameter) or {}).values() if isinstance(value, torch.Tensor)
                ]
            for tensor in beside:
                held[id(tensor)] = distributed.local(tensor)
        for one in copies:
            held |= {id(tensor): distributed.local(tensor) for tensor in one.values()}
        every = [*parameters.values(), *held.values(), *(value for _, value in parts)]
        needed = sum(t.numel() * t.element_size() for t in every)
        device = every[0].device
        if device.type == "cuda" and needed > 0.8 * torch.cuda.mem_get_info(device)[0]:
            device = torch.device("cpu")
        free = memory_free() if device.type == "cpu" else None
        if free is not None and needed > 0.8 * free:
            return f"a copy to go back to needs {in_bytes(needed)}, and {in_bytes(free)} are free"

        def kept(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.detach().to(device, copy=True)

        own = {name: (tensor, kept(tensor)) for name, tensor in parameters.items()}
        beside = [*((tensor, tensor) for tensor in held.values()), *parts]
        return cls(tuple((place, kept(value)) for place, value in beside), own, partitioned, device)

    @property
    def n_bytes(self) -> int:
        return sum(kept.numel() * kept.element_size() for _, kept in (*self.tensors, *self.parameters.values()))

    def restore_(self) -> None:
        for place, kept in (*self.parameters.values(), *self.tensors):
            place.copy_(kept)
        zero.settle_(self.partitioned)

    def round_(self, eps: float) -> None:
        """The parameters, rounded at random: to their own precision, or to that of their products where it is
        coarser.
        """
        draw = torch.randint(24, (_DRAWN,), generator=torch.Generator().manual_seed(3))
        few, many = (draw == 0).to(torch.int8) - (draw == 1).to(torch.int8), (draw % 3 - 1).to(torch.int8)
        for number, (_, (tensor, kept)) in enumerate(sorted(self.parameters.items())):
            value = kept.to(tensor.device).contiguous()
            is_coarse = eps > torch.finfo(tensor.dtype).eps
            drawn = (many if is_coarse else few).roll(1009 * number).to(tensor.device)
            steps = drawn.repeat(-(-value.numel() // _DRAWN))[: value.numel()].view(value.shape)
            tensor.copy_(value * (1 + 0.5 * eps * steps) if is_coarse else add_ulps(value, steps))
        zero.settle_(self.partitioned)


@dataclass(eq=False)
class SelfCheck:
    """The checks of one model: when, on what, and what was found. ``batch``: ``Choices``' or a trainer's."""

    mode: str
    forward: object = None
    batch: object = None
    n_done: int = 0
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def is_due(self) -> bool:
        return self.mode == "always" or (self.mode == "once" and not self.n_done)

    def of(
        self,
        live: Live,
        states: States,
        copies: Sequence[Mapping[str, torch.Tensor]],
        change: Callable[[Callable[[str], bool]], None],
        labels: Sequence[str],
        is_one: bool = False,
    ) -> Check:
        """Do ``change(chosen)`` and look at what it did; ``chosen``: label of a pair -> whether it is to be changed.

        The labels whose pairs move the outputs beyond the control are in ``refused`` with the reason, and are not
        changed; nor are the others then where all of it ``is_one``. Raises BadOption for a batch that does not run.
        Collective: all ranks decide the same.
        """
        started = time.perf_counter()
        kept = Copy.of(live, states, copies)
        if self._anywhere(live, isinstance(kept, str)):
            return self._unchecked(
                change, kept if isinstance(kept, str) else "another rank can make no copy to go back to"
            )
        device = distributed.local(next(iter(live.parameters.values()))).device
        with leave_as_found(live.model):
            try:
                with _Coarsest() as work:
                    called, before, reason = caller(live, self.forward, self.batch, device)
            except torch.cuda.OutOfMemoryError:
                called, before, reason = None, None, "a forward pass does not fit into the device's memory"
            if called is not None and not bool(before.isfinite().all()):
                called, reason = None, f"the outputs on {called.inputs} are not finite"
            if self._anywhere(live, called is None):
                return self._unchecked(change, reason or "another rank cannot be called")
            try:
                kept.round_(work.eps)
                control = self._agreed(live, _relative_change(before, called.outputs(live)))
            finally:
                kept.restore_()
            limit = LIMIT * max(control, _finest(live, work.eps) / 16)

            def moved(chosen: Callable[[str], bool]) -> float:
                change(chosen)
                return self._agreed(live, _relative_change(before, called.outputs(live)))

            try:
                found = moved(lambda label: True)
                if not found <= limit:
                    found = self._without_the_wrong(kept, labels, moved, limit, control, called.inputs, is_one)
            except BaseException:
                kept.restore_()
                forget_caches(live)
                raise
        self.n_done += 1
        seconds = time.perf_counter() - started
        return Check(found, control, called.inputs, kept.n_bytes, str(kept.device), seconds)

    def _without_the_wrong(self, kept: Copy, labels, moved, limit: float, control: float, inputs: str, is_one) -> float:
        """Each pair by itself, then all that hold together; how far those move the outputs."""
        wrong: dict[str, str] = {}

        def refuse(names: Sequence[str], by: float) -> None:
            for name in names:
                wrong[name] = (
                    f"rescaling it moves the outputs on {inputs} by {by:.1e} relative; the same weights rounded at "
                    "random move "
                    f"them by {control:.1e}. Something stands there that the proof did not see (an attention function, "
                    "a "
                    "forward or a hook of your own, a prompt encoder outside the model)"
                )

        for label in labels:
            kept.restore_()
            by = moved(lambda one: one == label)
            if not by <= limit:
                refuse([label], by)
        kept.restore_()
        left = [label for label in labels if label not in wrong and not (is_one and wrong)]
        found = moved(lambda one: one in left) if left else 0.0
        if not found <= limit:
            kept.restore_()
            refuse(left, found)
            found = 0.0
        self.refused |= wrong
        return found

    def _unchecked(self, change: Callable, reason: str) -> Check:
        self.n_done += 1
        change(lambda label: True)
        return Check(not_checked=reason)

    @staticmethod
    def _agreed(live: Live, value: float) -> float:
        """The largest of all ranks."""
        value = value if value == value else float("inf")
        if not live.groups:
            return value
        device = distributed.local(next(iter(live.parameters.values()))).device
        return float(distributed.all_reduce(np.array([value]), live.groups, "max", device)[0])

    def _anywhere(self, live: Live, is_so: bool) -> bool:
        return bool(self._agreed(live, float(is_so)))


def _relative_change(before: torch.Tensor, after: torch.Tensor) -> float:
    if after.shape != before.shape or not bool(after.isfinite().all()):
        return float("inf")
    return ((after - before).abs().max() / (before.abs().max() or 1.0)).item()


def _finest(live: Live, eps: float) -> float:
    return max(eps, *(torch.finfo(p.dtype).eps for p in live.parameters.values()))


class _Coarsest(TorchDispatchMode):
    """The coarsest precision that anything inside is computed in: autocast's, or that of a cast in the model's own
    code.
    """

    def __init__(self):
        super().__init__()
        self.eps = _PRECISION.get(torch.get_float32_matmul_precision(), 0.0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        if isinstance(first, torch.Tensor) and first.is_floating_point() and first.dim() > 1:
            self.eps = max(self.eps, torch.finfo(first.dtype).eps)
        return out
