"""What an optimiser remembers, carried into the new coordinates.

Where W' = c W the gradient becomes g / c, so a running mean of gradients is divided by c and a running mean of their
squares by c^2. The same momentum then continues. Each rule is data: state name -> power of c. Optimisers without a rule
are refused by name, and so are those that keep copies of the weights themselves: a copy has to follow by c, and what
the optimiser mixes it with and when is its own affair.

Weight decay folded into the gradient (Adam and SGD with ``weight_decay``): the momentum is carried over rightly, its
share of the decay included, but from then on the decay of a matrix kept as cW acts as wd * c^2 on W. No treatment of
the state changes that; ``folds_decay`` tells where it is so.

=====================================================  =============  ==================================================
optimiser                                              its state      why; whether ``by="rates"`` serves instead
=====================================================  =============  ==================================================
Adam, AdamW (torch, apex, DeepSpeed), NAdam, Adamax,   transported    means of gradients and of their powers; rates too
Adagrad, RMSprop, SGD, Muon, Lion
bitsandbytes' Adam, AdamW, Lion, RMSprop, Adagrad and  transported    of 8-bit blocks the scale is moved, where a block
momentum, 32 and 8 bit, paged too                                     lies in one cell; rates too
Adafactor                                              transported    row and column means with one factor a tensor;
                                                                      rates only without scale_parameter
any subclass of these that keeps nothing else          transported    rates too
RAdam                                                  refused        its early steps go with the gradient's size: no
                                                                      change of coordinates; no rates either
GaLore                                                 refused        its momentum lies in a subspace of the gradients;
                                                                      rates serve, but not its layerwise form
Lookahead, Ranger                                      refused        keeps copies of the weights; rates serve
schedule-free, Prodigy, D-adaptation                   refused        keeps copies of the weights; no rates either
ASGD                                                   refused        keeps an average of the weights; no rates either
another                                                refused        ``optimizer_rules={MyAdam: {"exp_avg": -1,
                                                                      "exp_avg_sq": -2}}`` transports it,
                                                                      optimizer_state="leave" leaves it; rates serve
                                                                      where its step is its rate times a direction
=====================================================  =============  ==================================================
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from wisca_core.errors import BadOption
from wisca_core.training import distributed

# package and class of the optimiser -> power of c of each tensor it keeps a parameter
_ADAM = {"exp_avg": -1, "exp_avg_sq": -2, "max_exp_avg_sq": -2}
RULES: Mapping[str, Mapping[str, int]] = {
    "torch.Adam": _ADAM,
    "torch.AdamW": _ADAM,
    "torch.SGD": {"momentum_buffer": -1},
    # the update is orthogonalised, so only the direction of the momentum matters, and that of g / c is meant
    "torch.Muon": {"momentum_buffer": -1},
    "torch.NAdam": {"exp_avg": -1, "exp_avg_sq": -2},
    "torch.Adamax": {"exp_avg": -1, "exp_inf": -1},
    "torch.Adagrad": {"sum": -2},
    # the buffer holds past directions, gradients over their root mean square
    "torch.RMSprop": {"square_avg": -2, "grad_avg": -1, "momentum_buffer": 0},
    "pytorch_optimizer.Lion": {"exp_avg": -1},
    "lion_pytorch.Lion": {"exp_avg": -1},
    # row_var and col_var: means of squared gradients along the other axis
    "torch.Adafactor": {"row_var": -2, "col_var": -2, "variance": -2},
    "transformers.Adafactor": {"exp_avg_sq_row": -2, "exp_avg_sq_col": -2, "exp_avg_sq": -2},
    "deepspeed.DeepSpeedCPUAdam": _ADAM,
    "deepspeed.FusedAdam": _ADAM,
    "apex.FusedAdam": _ADAM,
}
# Decay that is added to the gradient, where the group has no decoupled_weight_decay
_FOLDED = frozenset(
    f"torch.{name}" for name in ("Adam", "SGD", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "Adadelta")
)
# by the names of optimisers and their wrappers: state that is a copy or an average of the weights
_COPYING = re.compile(r"schedule_?free|look_?ahead|ranger|prodigy|d_?adapt|^asgd$|^swa$", re.IGNORECASE)
# bitsandbytes: its own name for what an optimiser does -> powers of state1 and state2 (absmax1, absmax2 of 8-bit
# blocks)
_BLOCKWISE = {"adam": (-1, -2), "lion": (-1,), "momentum": (-1,), "rmsprop": (-2,), "adagrad": (-2,)}
_BLOCK = 256
# class -> why its state is no matter of coordinates
_NO_RULE = {
    "torch.RAdam": "its first steps follow the size of the gradient and its later ones do not, which no change of "
    "coordinates carries over",
    "pytorch_optimizer.GaLore": "its momentum lies in a subspace that it finds anew in the gradients",
    "galore_torch.GaLoreAdamW": "its momentum lies in a subspace that it finds anew in the gradients",
    "galore_torch.GaLoreAdamW8bit": "its momentum lies in a subspace that it finds anew in the gradients",
    "transformers.LayerWiseDummyOptimizer": "each layer is stepped on its own in the middle of a backward pass, so "
    "there is "
    "no time between steps",
}
_FACTORED = ("row_var", "col_var", "exp_avg_sq_row", "exp_avg_sq_col")
_MEANS = {key for rule in RULES.values() for key in rule}
# counts, tables of values, and what is computed anew before it is used
_IGNORED = ("step", "RMS", "mu_product", "qmap1", "qmap2")


_OTHER_WAYS = (
    " Or give optimizer_state='leave' to rescale the weights alone, or by='rates' to leave the weights and "
    "change the rates."
)


def chain(optimizer: object) -> list[object]:
    """The optimiser and what it wraps, outermost first: Accelerate's, Lightning's and DeepSpeed's wrappers,
    Lookahead.
    """
    out = [optimizer]
    while True:
        names = ("optimizer", "_optimizer", "base_optimizer", "_base_optimizer")
        inner = next((found for name in names if (found := getattr(out[-1], name, None)) is not None), None)
        if inner is None or any(inner is one for one in out):
            return out
        out.append(inner)


def inner_optimizer(optimizer: object) -> torch.optim.Optimizer:
    """The torch optimiser inside every wrapper."""
    return chain(optimizer)[-1]


def check_no_copies(optimizer: object) -> None:
    """Raises BadOption where the optimiser, or a wrapper of it, keeps copies of the weights."""
    for one in chain(optimizer):
        named = next((kind.__name__ for kind in type(one).__mro__ if _COPYING.search(kind.__name__)), None)
        if named:
            raise BadOption(
                f"optimizer: {type(one).__module__}.{type(one).__qualname__} keeps copies of the weights themselves, "
                "which "
                "would stay behind in other coordinates, whether its state is transported or left. Rescale once, "
                "before "
                "it is made (rescale_(model)), or use an optimiser without copies."
            )


def folds_decay(optimizer: torch.optim.Optimizer, group: Mapping) -> bool:
    """Whether this group's weight decay is a part of the gradient."""
    if not group.get("weight_decay") or group.get("decoupled_weight_decay"):
        return False
    if type(optimizer).__module__.startswith("bitsandbytes."):
        return getattr(optimizer, "optimizer_name", "") in ("momentum", "rmsprop", "adagrad", "lars")
    kinds = (f"{kind.__module__.split('.')[0]}.{kind.__qualname__}" for kind in type(optimizer).__mro__)
    return any(kind in _FOLDED for kind in kinds) or not getattr(optimizer, "adam_w_mode", True)


def rule_of(optimizer: torch.optim.Optimizer, own: Mapping[object, Mapping[str, int]] = {}) -> Mapping[str, int]:
    """``own``: rules of the user's, class (or its name) -> state name -> power. Raises BadOption for an optimiser
    without a rule.
    """
    name = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    for kind in type(optimizer).__mro__:
        for key in (kind, kind.__qualname__, f"{kind.__module__}.{kind.__qualname__}"):
            if key in own:
                return own[key]
        known = f"{kind.__module__.split('.')[0]}.{kind.__qualname__}"
        if known in _NO_RULE:
            raise BadOption(f"optimizer: the state of {name} cannot be carried over: {_NO_RULE[known]}.{_OTHER_WAYS}")
        if known in RULES:
            return RULES[known]
    powers = _BLOCKWISE.get(getattr(optimizer, "optimizer_name", "")) if name.startswith("bitsandbytes.") else None
    if powers:
        return {f"{key}{i}": power for i, power in enumerate(powers, 1) for key in ("state", "absmax")}
    known = sorted({rule.rsplit(".", 1)[1] for rule in RULES})
    raise BadOption(
        f"optimizer: there is no rule for the state of {name}, so it cannot be carried into the new coordinates; there "
        "is "
        f"one for {', '.join(known)} and bitsandbytes' own. Give its rule, "
        f"optimizer_rules={{{type(optimizer).__name__}: "
        '{"exp_avg": -1, ...}}, where W becomes c W and the gradient g / c.' + _OTHER_WAYS
    )


@dataclass(frozen=True, eq=False)
class States:
    """The optimisers of a run and where each parameter's state lies. ``mode``: "transport" or "leave"; ``own``: the
    user's rules.
    """

    optimizers: tuple[torch.optim.Optimizer, ...]
    mode: str
    own: Mapping[object, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, optimizer: object, mode: str, own: Mapping[object, Mapping[str, int]] = {}, weights: bool = True
    ) -> "States":
        """``optimizer``: one, several, or None. ``weights``: whether the weights will be rescaled. Raises BadOption for
        one without a rule where its state is to be transported, and for one that keeps copies of rescaled weights.
        """
        if optimizer is None:
            given: Sequence[object] = ()
        else:
            given = optimizer if isinstance(optimizer, (list, tuple)) else (optimizer,)
        found = tuple(inner_optimizer(one) for one in given)
        for one in given if weights else ():
            check_no_copies(one)
        for one in found:
            if not hasattr(one, "param_groups") or not hasattr(one, "state"):
                raise BadOption(
                    f"optimizer: {type(one).__name__} was given; a torch optimiser (or a list of them) is needed."
                )
            if mode == "transport":
                rule_of(one, own)
        return cls(found, mode, own)

    def rule_of(self, optimizer: torch.optim.Optimizer) -> Mapping[str, int]:
        return rule_of(optimizer, self.own)

    def check_holds(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Every trained parameter must be some optimiser's. Raises BadOption."""
        if not self.optimizers:
            return
        held = {id(p) for one in self.optimizers for group in one.param_groups for p in group["params"]}
        missing = [name for name, p in parameters.items() if p.requires_grad and id(p) not in held]
        if missing:
            raise BadOption(
                f"optimizer: {missing[0]} is trained but is in no parameter group ({len(missing)} of "
                f"{len(parameters)} such). Was the optimiser "
                "made for another copy of the model, or before it was sharded? Make it from the parameters of this one."
            )

    def plan(
        self, parameter: torch.Tensor, name: str, uniform: bool, axes: Sequence[int] = (0, 1)
    ) -> list[tuple[torch.Tensor, int]]:
        """(tensor, power of c) of everything kept for this parameter, its gradient among it. Changes nothing.

        ``uniform``: all of it has one factor; ``axes``: along which it has several otherwise. Raises BadOption where
        the state cannot be carried over.
        """
        out = [(parameter.grad, -1)] if parameter.grad is not None else []
        if self.mode == "leave":
            for one in self.optimizers:
                _check_not_a_copy(one, parameter, name)
            return out
        for one in self.optimizers:
            state = one.state.get(parameter)
            if not state:
                continue
            rule = dict(self.rule_of(one))
            group = next(g for g in one.param_groups if any(p is parameter for p in g["params"]))
            if type(one).__name__ == "Adafactor" and "exp_avg" in state:
                # exp_avg holds past *updates*; with scale_parameter they grow with the root mean square of the weights
                rule["exp_avg"] = 1 if group["scale_parameter"] else 0
            for key, value in state.items():
                if key in _IGNORED or not isinstance(value, torch.Tensor):
                    continue
                if key not in rule:
                    raise BadOption(
                        f"optimizer: {type(one).__name__} keeps {key!r} for {name}, which has no rule. Give "
                        "optimizer_state='leave'."
                    )
                power = rule[key]
                needs_one = key in _FACTORED or (type(one).__name__ == "Adafactor" and key == "exp_avg" and power)
                if needs_one and not uniform:
                    raise BadOption(
                        f"optimizer: Adafactor keeps {key!r} of {name}, a mean over channels that now get different "
                        "factors; it cannot be "
                        "recovered. Use granularity='tensor', or optimizer_state='leave'."
                    )
                if key.startswith("state") and value.dtype == torch.uint8:
                    continue  # the values of blocks whose scales are absmax1 and absmax2
                if key.startswith("absmax"):
                    out.append((_scales(value, parameter, name, uniform, axes), power))
                    continue
                if value.numel() != parameter.numel() and key not in _FACTORED:
                    raise BadOption(
                        f"optimizer: {key!r} of {name} has {value.numel():,} values for {parameter.numel():,} weights. "
                        "Give optimizer_state='leave'."
                    )
                if power:
                    out.append((value, power))
        return out


def _scales(
    absmax: torch.Tensor, parameter: torch.Tensor, name: str, uniform: bool, axes: Sequence[int]
) -> torch.Tensor:
    """The scales of 8-bit blocks, as a view that the factors of the parameter fit. Raises BadOption."""
    if uniform:
        return absmax
    if tuple(axes) == (0,) and parameter.dim() == 2 and parameter.shape[1] % _BLOCK == 0:
        return absmax.view(parameter.shape[0], -1)
    raise BadOption(
        f"optimizer: the 8-bit state of {name} has one scale for {_BLOCK} values in a row, and some of these would get "
        "different factors. Use granularity='tensor', 32-bit state, or optimizer_state='leave'."
    )


def _check_not_a_copy(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, name: str) -> None:
    """What an unknown optimiser keeps is a copy of the weights where it lies near them; gradients and their means do
    not.
    """
    for key, value in (optimizer.state.get(parameter) or {}).items():
        if key in _MEANS or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
            continue
        kept, weights = distributed.local(value), distributed.local(parameter)
        if kept.is_floating_point() and (kept - weights).norm() < 0.5 * weights.norm():
            raise BadOption(
                f"optimizer: what {type(optimizer).__name__} keeps as {key!r} of {name} is a copy of the weights, "
                "which "
                "would stay behind in other coordinates. Rescale once, before it is made (rescale_(model))."
            )
