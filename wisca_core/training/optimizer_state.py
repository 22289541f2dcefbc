"""What an optimiser remembers, carried into the new coordinates.

Where W' = c W the gradient becomes g / c, so a running mean of gradients is divided by c and a running mean of their
squares by c^2. The same momentum then continues. Each rule is data: state name -> power of c. Optimisers without a rule
are refused by name.

Not covered: weight decay folded into the gradient (Adam(weight_decay=...)), whose share of the momentum does not scale
so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from wisca_core.errors import BadOption

# package and class of the optimiser -> power of c of each tensor it keeps a parameter
_ADAM = {"exp_avg": -1, "exp_avg_sq": -2, "max_exp_avg_sq": -2}
RULES: Mapping[str, Mapping[str, int]] = {
    "torch.Adam": _ADAM,
    "torch.AdamW": _ADAM,
    "torch.SGD": {"momentum_buffer": -1},
    # the update is orthogonalised, so only the direction of the momentum matters, and that of g / c is meant
    "torch.Muon": {"momentum_buffer": -1},
    # row_var and col_var: means of squared gradients along the other axis
    "torch.Adafactor": {"row_var": -2, "col_var": -2, "variance": -2},
    "transformers.Adafactor": {"exp_avg_sq_row": -2, "exp_avg_sq_col": -2, "exp_avg_sq": -2},
    "deepspeed.DeepSpeedCPUAdam": _ADAM,
    "deepspeed.FusedAdam": _ADAM,
    "apex.FusedAdam": _ADAM,
}
_FACTORED = ("row_var", "col_var", "exp_avg_sq_row", "exp_avg_sq_col")
_IGNORED = ("step", "RMS")  # counts, and what is computed anew before it is used


def unwrapped(optimizer: object) -> torch.optim.Optimizer:
    """The torch optimiser inside Accelerate's, Lightning's or DeepSpeed's wrapper."""
    seen = set()
    while id(optimizer) not in seen:
        seen.add(id(optimizer))
        inner = getattr(optimizer, "optimizer", None) or getattr(optimizer, "_optimizer", None)
        if inner is None:
            break
        optimizer = inner
    return optimizer


def rule_of(optimizer: torch.optim.Optimizer) -> Mapping[str, int]:
    """Raises BadOption for an optimiser without a rule."""
    module, name = type(optimizer).__module__, type(optimizer).__qualname__
    kind = f"{module.split('.')[0]}.{name}"
    if kind not in RULES:
        known = sorted({rule.rsplit(".", 1)[1] for rule in RULES})
        raise BadOption(
            f"optimizer: there is no rule for the state of {module}.{name}, so it cannot be carried into the new "
            "coordinates; there is one for "
            f"{', '.join(known)}. Give optimizer_state='leave' to rescale the weights alone."
        )
    return RULES[kind]


@dataclass(frozen=True, eq=False)
class States:
    """The optimisers of a run and where each parameter's state lies. ``mode``: "transport" or "leave"."""

    optimizers: tuple[torch.optim.Optimizer, ...]
    mode: str

    @classmethod
    def of(cls, optimizer: object, mode: str) -> "States":
        """``optimizer``: one, several, or None. Raises BadOption for one without a rule where its state is to be
        transported.
        """
        if optimizer is None:
            given: Sequence[object] = ()
        else:
            given = optimizer if isinstance(optimizer, (list, tuple)) else (optimizer,)
        found = tuple(unwrapped(one) for one in given)
        for one in found:
            if not hasattr(one, "param_groups") or not hasattr(one, "state"):
                raise BadOption(
                    f"optimizer: {type(one).__name__} was given; a torch optimiser (or a list of them) is needed."
                )
            if mode == "transport":
                rule_of(one)
        return cls(found, mode)

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

    def plan(self, parameter: torch.Tensor, name: str, uniform: bool) -> list[tuple[torch.Tensor, int]]:
        """(tensor, power of c) of everything kept for this parameter, its gradient among it. Changes nothing.

        ``uniform``: all of it has one factor. Raises BadOption where the state cannot be carried over.
        """
        out = [(parameter.grad, -1)] if parameter.grad is not None else []
        if self.mode == "leave":
            return out
        for one in self.optimizers:
            state = one.state.get(parameter)
            if not state:
                continue
            rule = dict(rule_of(one))
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
                if value.numel() != parameter.numel() and key not in _FACTORED:
                    raise BadOption(
                        f"optimizer: {key!r} of {name} has {value.numel():,} values for {parameter.numel():,} weights. "
                        "Give optimizer_state='leave'."
                    )
                if power:
                    out.append((value, power))
        return out


def powers(plans: Iterable[list[tuple[torch.Tensor, int]]]) -> set[int]:
    return {power for plan in plans for _, power in plan}
