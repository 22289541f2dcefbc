"""A plan: the factors as a value one can read, keep, compare and undo; applying it decides nothing."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from wisca_core.architecture.site import Refusal
from wisca_core.errors import NothingToRescale, PlanMismatch, UnreadableInput
from wisca_core.methods import method
from wisca_core.patterns.table import Patterns
from wisca_core.planning.bases import Bases
from wisca_core.planning.decide import Decision, replay
from wisca_core.planning.factors import Factors
from wisca_core.planning.options import Options, parse_layers
from wisca_core.storage import read_json, write_json
from wisca_core.untrusted import printable

FORMAT, VERSION = "wisca-plan", 1


@dataclass(frozen=True)
class Plan:
    """``fingerprint``: of the checkpoint it was made for, over ``tensors`` (the stored tensors it changes).
    ``bit_identical``: what it promises of the outputs; a full check that finds otherwise contradicts it. ``bases``: of
    the pairs that are changed by more than factors.
    """

    options: Options
    factors: Factors
    tensors: tuple[str, ...]
    fingerprint: str
    refusals: tuple[Refusal, ...] = ()
    bit_identical: bool = False
    bases: Bases = field(default_factory=Bases)

    @property
    def n_changed(self) -> int:
        """Factors other than 1, and matrices of changes of basis."""
        return self.factors.n_changed + sum(map(len, self.bases.sites.values()))

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites it changes."""
        return (*self.factors.by_site, *self.bases.sites)

    def undone(self, fingerprint: str) -> "Plan":
        """The plan that takes the result of this one back; ``fingerprint`` is that of the result."""
        factors, bases = self.factors.undone(), self.bases.undone()
        return replace(self, factors=factors, bases=bases, fingerprint=fingerprint, refusals=())

    def to_json(self) -> dict:
        """Plain JSON values (floats are written exactly), but for ``bases``: of these their digest, and how many a
        site.
        """
        options = asdict(self.options) | {"layers": [str(span) for span in self.options.layers]}
        return {
            "options": options,
            "bit_identical": self.bit_identical,
            "fingerprint": self.fingerprint,
            "tensors": list(self.tensors),
            "sites": [{"site": name, "factors": list(factors)} for name, factors in self.factors.sites],
            "bases": {"digest": self.bases.digest, "sites": {name: len(s) for name, s in self.bases.sites.items()}}
            if self.bases
            else None,
            "refusals": [asdict(r) for r in self.refusals],
        }

    @classmethod
    def from_json(cls, data: dict, where: Path) -> "Plan":
        """What was written to the file ``where``, beside which its bases lie. Raises PlanMismatch naming it for
        anything that is not a plan, UnreadableInput.
        """
        try:
            o = data["options"]
            options = Options(
                tuple(o["pairs"]),
                o["granularity"],
                o["norm"],
                float(o["strength"]),
                parse_layers(",".join(o["layers"])),
                bool(o["exact"]),
                tuple(o["exclude"]),
                o.get("method", "wisca"),
            )
            sites = tuple((_text(s["site"]), tuple(map(float, s["factors"]))) for s in data["sites"])
            refusals = tuple(Refusal(_text(r["what"]), _text(r["reason"])) for r in data["refusals"])
            plan = cls(
                options,
                Factors(options.granularity, sites),
                tuple(map(_text, data["tensors"])),
                _text(data["fingerprint"]),
                refusals,
                data["bit_identical"] is True,
                Bases.read(where, _text(bases["digest"])) if (bases := data.get("bases")) else Bases(),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise PlanMismatch(
                f"{where} is no plan: {type(error).__name__} at {error}. Make it again with --save-plan."
            ) from error
        plan.factors.check_values(where)
        return plan


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{printable(value)}, where a name is expected")
    return value


def make_plan(decision: Decision) -> Plan:
    """The decision as a value. Sites all of whose factors are 1 are left out."""
    patterns, factors = decision.patterns, decision.factors_by_site
    changed = (*factors, *decision.bases.sites)
    names = tuple(sorted({leg.tensor for name in changed for leg in patterns.sites[name].legs}))
    refused = tuple(r for r in patterns.sites.refusals if decision.options.asks(r.what))
    return Plan(
        decision.options,
        Factors(decision.cells.granularity, tuple(factors.items())),
        names,
        patterns.fingerprint(names),
        refused + decision.refusals,
        decision.bit_identical,
        decision.bases,
    )


def decision_of(plan: Plan, patterns: Patterns) -> Decision:
    """A saved plan against a measured checkpoint. Raises PlanMismatch where it belongs to another one."""
    missing = [name for name in plan.tensors if name not in patterns.digests]
    if missing:
        raise PlanMismatch(
            f"the plan changes {missing[0]}, which is in no pair of this checkpoint. It belongs to another model."
        )
    found = patterns.fingerprint(plan.tensors)
    if found != plan.fingerprint:
        raise PlanMismatch(
            f"the plan was made for a checkpoint with fingerprint {plan.fingerprint}; this one has {found}. "
            "Its weights differ, so the factors would not balance it. Make a new plan."
        )
    cells = patterns.cells(plan.options.granularity)
    factor = np.ones(int(cells.first[-1]))
    numbers = {site.name: i for i, site in enumerate(patterns.sites.sites)}
    plan.factors.check(patterns.sites, "checkpoint")
    plan.bases.check(patterns.sites, method(plan.options.method), "checkpoint")
    for name, factors in plan.factors.sites:
        i = numbers[name]
        factor[cells.first[i] : cells.first[i + 1]] = factors
    decision = replay(patterns, plan.options, factor)
    stopped = np.flatnonzero(decision.factor != factor)
    if len(stopped):
        name = patterns.sites.sites[cells.site[stopped[0]]].name
        raise PlanMismatch(
            f"the plan's factor {factor[stopped[0]]:.6g} for {name} cannot be applied: a norm is zero or not finite, "
            "or a "
            "value would leave the range of its dtype. Make a new plan."
        )
    return replace(decision, bases=plan.bases)


def save_plan(plan: Plan, path: Path) -> None:
    """Write it as JSON, beside and renamed, its bases first."""
    plan.bases.write(path)
    write_json(path, FORMAT, VERSION, plan.to_json())


def load_plan(path: Path) -> Plan:
    """Raises UnreadableInput or PlanMismatch."""
    return Plan.from_json(read_json(path, FORMAT, VERSION), path)


def undo_plan(report: Path) -> Plan:
    """The plan that undoes an export, from its wisca_report.json."""
    data = read_json(report, "wisca-report", 1)
    try:
        return Plan.from_json(data["plan"], report).undone(str(data["fingerprint_after"]))
    except (KeyError, TypeError) as error:
        raise UnreadableInput(f"{report} has no {error}; it is not a complete wisca_report.json.") from error


def check_not_empty(plan: Plan) -> None:
    """Raises NothingToRescale where nothing that was asked for can be done, with every reason."""
    if plan.n_changed:
        return
    if plan.refusals:
        shown = "\n".join(f"  {r.what}: {r.reason}" for r in plan.refusals[:20])
        more = f"\n  and {len(plan.refusals) - 20} more" if len(plan.refusals) > 20 else ""
        raise NothingToRescale(f"nothing of what was asked can be rescaled:\n{shown}{more}")
    raise NothingToRescale("every factor is 1: with these options nothing would change. Nothing was written.")
