"""The learning rates that a balance comes to, on weights that are never touched.

A matrix W kept as cW, its optimiser state with it, trains in W's own coordinates exactly as W does with the rate lr / c,
the decay wd * c and the epsilon eps * c under AdamW (SGD: lr / c^2; Muon: lr / c, wd * c), and counts as g / c in the norm
that clipping looks at.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from wisca_core.errors import BadOption
from wisca_core.training.live import Live

# optimiser -> power of 1 / c in its rate
_POWERS = {"AdamW": 1, "Muon": 1, "SGD": 2}


class StepRates:
    """Rates of single tensors, there only while an optimiser steps: its groups are split before and restored after, so
    that whoever looks at them or keeps them sees those it made.
    """

    def __init__(self, live: Live, optimisers: Sequence[torch.optim.Optimizer]):
        self._live = live
        self._scales: dict[torch.Tensor, float] = {}
        for name in {leg.tensor for site in live.sites.sites for leg in site.legs}:
            legs = [leg for site in live.sites.sites for leg in site.legs if leg.tensor == name]
            sides = {(leg.side, leg.role) for leg in legs}
            if len(sides) > 1 or any(leg.fixed or leg.offset for leg in legs):
                held = ", ".join(sorted(f"{role} ({side})" for side, role in sides))
                raise BadOption(
                    f"arms: kind rates was given; {name} holds {held} in one tensor, and a tensor has one learning rate. "
                    "Use kind balance for this model."
                )
        for optimiser in optimisers:
            optimiser.register_step_pre_hook(self._split)
            optimiser.register_step_post_hook(self._join)

    def set(self, factors: Mapping[str, np.ndarray]) -> None:
        """``factors``: site -> the factor of its left side in all; its right side has the inverse."""
        self._scales = {}
        for site in self._live.sites.sites:
            for leg in site.legs if site.name in factors else ():
                parameter = self._live.parameters[leg.tensor]
                if parameter.requires_grad:
                    c = float(factors[site.name][0]) ** leg.signed_exponent
                    self._scales[parameter] = self._scales.get(parameter, 1.0) * c

    def gradient_weights(self) -> dict[torch.Tensor, float]:
        """Parameter -> by what its gradient would be multiplied in the rescaled model."""
        return {parameter: 1 / c for parameter, c in self._scales.items()}

    def _split(self, optimiser: torch.optim.Optimizer, *_) -> None:
        power = _POWERS[type(optimiser).__name__]
        self._whole, split = optimiser.param_groups, []
        for group in optimiser.param_groups:
            plain = [p for p in group["params"] if p not in self._scales]
            split += [{**group, "params": plain}] if plain else []
            for parameter in group["params"]:
                if parameter in self._scales:
                    c = self._scales[parameter]
                    own = {"lr": group["lr"] / c**power, "weight_decay": group["weight_decay"] * c}
                    own |= {"eps": group["eps"] * c} if "betas" in group else {}
                    split.append({**group, **own, "params": [parameter]})
        optimiser.param_groups = split

    def _join(self, optimiser: torch.optim.Optimizer, *_) -> None:
        optimiser.param_groups = self._whole
