"""The factors of a rescale of a live model as a value: kept, multiplied, undone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from wisca_core.architecture.site import Sites
from wisca_core.errors import PlanMismatch
from wisca_core.planning.plan import Plan


@dataclass(frozen=True)
class Factors:
    """``sites``: (site name, one factor a tie group at ``granularity``); the left side is multiplied by it, the
    right side divided.
    """

    granularity: str
    sites: tuple[tuple[str, tuple[float, ...]], ...] = ()

    @classmethod
    def of(cls, plan: Plan) -> "Factors":
        return cls(plan.options.granularity, tuple((part.site, part.factors) for part in plan.sites))

    @property
    def by_site(self) -> dict[str, tuple[float, ...]]:
        return dict(self.sites)

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

    def check(self, sites: Sites) -> None:
        """Raises PlanMismatch where these factors do not fit the model's pairs."""
        found = {site.name: site for site in sites.sites}
        for name, fs in self.sites:
            if name not in found:
                why = next((r.reason for r in sites.refusals if r.what in (name, "model")), "")
                raise PlanMismatch(
                    f"the plan has factors for {name}; this model has no such pair to rescale. {why}".strip()
                )
            needed = found[name].n_cells(self.granularity)
            if needed != len(fs):
                raise PlanMismatch(
                    f"the plan has {len(fs)} factors for {name}; this model has {needed} there. It belongs to "
                    "another model."
                )
            if not all(math.isfinite(f) and f > 0 for f in fs):
                raise PlanMismatch(f"{name} has a factor that is not a positive finite number.")

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
