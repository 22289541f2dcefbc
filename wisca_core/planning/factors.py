"""Factors as one value, whether planned for a checkpoint or taken by a live model: kept, multiplied, undone,
checked.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from wisca_core.architecture.site import Sites
from wisca_core.errors import PlanMismatch


@dataclass(frozen=True)
class Factors:
    """``sites``: (site name, one factor a tie group of the site at ``granularity``, in order of first channel); the
    left side is multiplied by it, the right side divided.
    """

    granularity: str
    sites: tuple[tuple[str, tuple[float, ...]], ...] = ()

    @property
    def by_site(self) -> dict[str, tuple[float, ...]]:
        return dict(self.sites)

    @property
    def n_changed(self) -> int:
        """Factors other than 1."""
        return sum(f != 1 for _, fs in self.sites for f in fs)

    def used_granularities(self, sites: Sites) -> dict[str, str]:
        """Site name -> the partition really used, where exactness ties more than asked."""
        return {name: sites[name].used_granularity(self.granularity) for name, _ in self.sites}

    def undone(self) -> "Factors":
        """What takes a model back; exact where every factor is a power of two, else up to one rounding a weight."""
        return Factors(self.granularity, tuple((name, tuple(1 / f for f in fs)) for name, fs in self.sites))

    def then(self, later: "Factors") -> "Factors":
        """Both, one after the other. Raises PlanMismatch where the granularities differ."""
        if later.granularity != self.granularity:
            raise PlanMismatch(
                f"factors at granularity {self.granularity} and at {later.granularity} cannot be combined; apply one "
                "after the other."
            )
        out = self.by_site
        for name, fs in later.sites:
            before = out.get(name, (1.0,) * len(fs))
            if len(before) != len(fs):
                raise PlanMismatch(
                    f"{name} has {len(before)} factors in one and {len(fs)} in the other; they are of different models."
                )
            out[name] = tuple(a * b for a, b in zip(before, fs))
        return Factors(self.granularity, tuple(out.items()))

    def check(self, sites: Sites, of: str = "model") -> None:
        """Raises PlanMismatch where these factors do not fit the pairs of this ``of``."""
        found = {site.name: site for site in sites.sites}
        for name, fs in self.sites:
            if name not in found:
                why = next((r.reason for r in sites.refusals if r.what in (name, "model")), "")
                raise PlanMismatch(
                    f"the plan has factors for {name}; this {of} has no such pair to rescale. {why}".strip()
                )
            needed = found[name].n_cells(self.granularity)
            if needed != len(fs):
                raise PlanMismatch(
                    f"the plan has {len(fs)} factors for {name}; this {of} has {needed} there. It belongs to another "
                    "model."
                )
        self.check_values("the plan")

    def check_values(self, where: str) -> None:
        """Raises PlanMismatch naming ``where`` for a factor that cannot be multiplied by, or divided."""
        for name, fs in self.sites:
            if not all(f > 0 and math.isfinite(f) and math.isfinite(1 / f) for f in fs):
                raise PlanMismatch(f"{where}: {name} has a factor that is not a positive finite number.")

    def to_json(self) -> dict:
        return {"granularity": self.granularity, "sites": {name: list(fs) for name, fs in self.sites}}

    @classmethod
    def from_json(cls, data: Mapping, where: str) -> "Factors":
        """Raises PlanMismatch naming ``where``."""
        try:
            return cls(
                str(data["granularity"]),
                tuple((str(name), tuple(map(float, fs))) for name, fs in data["sites"].items()),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanMismatch(f"{where} holds no factors: {type(error).__name__} at {error}.") from error
