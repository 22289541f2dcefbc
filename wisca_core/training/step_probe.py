"""What an optimiser's step does with scale, found by letting it step: for classes that no table has.

A small matrix (and a vector) is trained twice by the same class with the same settings: kept as cW with gradients g /
c, and as W at the rate, decay and epsilon that should amount to it. Twelve steps, because some optimisers begin
otherwise than they go on. What agrees is what the class does.
"""

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping

import torch

_STEPS, _C, _RATE = 12, 8.0, 1e-2


def agreeing_rule(
    optimizer: torch.optim.Optimizer,
    group: Mapping,
    candidates: Iterable,
    adjust: Callable[[Mapping, float, object], dict],
) -> object:
    """The first of the candidates (rules for ``adjust(group, m, rule)``) by which the class steps, or in words why
    there is none. The optimiser itself is left alone.
    """
    parameters = [p for p in group["params"] if p.dim() > 0]
    dims = sorted({min(p.dim(), 2) for p in parameters}, reverse=True)
    device = parameters[0].device if parameters else torch.device("cpu")
    plain = {**group, "lr": _RATE}
    try:
        moved = [_train(optimizer, plain, n, _C, device) / _C for n in dims]
        for rule in candidates:
            # what does not depend on the rate at all would agree with anything
            own = [_train(optimizer, adjust(plain, 1 / _C, rule), n, 1.0, device) for n in dims]
            other = [_train(optimizer, plain, n, 1.0, device) for n in dims]
            if all(_near(a, b, _start(n, device)) for a, b, n in zip(own, moved, dims)) and not any(
                _near(a, b, _start(n, device)) for a, b, n in zip(other, moved, dims)
            ):
                return rule
    except Exception as error:  # somebody's class, called in a way it may not expect
        return f"it cannot be tried on a small matrix ({type(error).__name__}: {error})"
    return "on a small matrix its steps are not those of a rescaled one at any rate"


def _near(a: torch.Tensor, b: torch.Tensor, start: torch.Tensor) -> bool:
    return bool((a - b).norm() < 1e-3 * (a - start).norm())


def _start(n_dims: int, device: torch.device) -> torch.Tensor:
    shape = (16, 16)[:n_dims]
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _train(optimizer, group: Mapping, n_dims: int, c: float, device: torch.device) -> torch.Tensor:
    weight = torch.nn.Parameter(_start(n_dims, device) * c)
    twin = object.__new__(type(optimizer))
    for name, value in vars(optimizer).items():
        if name not in ("state", "param_groups"):
            try:
                vars(twin)[name] = copy.deepcopy(value)
            except Exception:
                vars(twin)[name] = value
    for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        vars(twin)[hooks] = OrderedDict()
    twin.state, twin.param_groups = (
        defaultdict(dict),
        [{**copy.deepcopy({k: v for k, v in group.items() if k != "params"}), "params": [weight]}],
    )
    draw = torch.Generator().manual_seed(1)
    for _ in range(_STEPS):
        weight.grad = (torch.randn(weight.shape, generator=draw).to(device) + 0.3) / c
        twin.step()
    return weight.detach()
