"""What a proof says, and how one is made once and kept: the shell around every kind of proof."""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace

from wisca_core.architecture.site import Refusal, Site, Sites
from wisca_core.errors import Cancelled, ProofFailed, WiscaError
from wisca_core.verdicts import keep, kept_verdict, versions

# relative to max |output|: right rules read up to 8e-14, the nearest wrong one 6e-7
TOLERANCE = 1e-11
# a one-sided change of a live pair must move the outputs by more than this, or the pair is not run at all
ALIVE = 1e-6
OCTAVES = 10.0  # factors reach 2^10 both ways: modest ones never meet a clip

OTHER_KERNELS = "attention kernels other than eager"

PRODUCT = "the product B A"  # how the words of a LoRA adapter's proof begin
OWN_CODE = "the model's own code: "  # and those of one of declared sites
UNPROVED = "nothing: "  # and those of what stands in the place of one where none was made


@dataclass(frozen=True, kw_only=True)
class Proof:
    """``max_rel``: largest difference relative to max |output| over all cases and factor sets. ``liveness``: the
    smallest relative change when only one side of one site is scaled. ``reason``: why it failed, "" where it passed.
    ``proved`` and ``refused``: labels (``label(site)``: where in the model and which pair), the latter with the reason;
    it has passed where none is refused.
    """

    passed: bool
    rule: str
    what: str = ""  # the miniature in words
    n_cases: int = 0
    cases: tuple[str, ...] = ()
    max_rel: float = float("inf")
    liveness: float = 0.0
    largest_factor: float = 1.0
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=versions)
    reason: str = ""
    not_checked: tuple[str, ...] = ()
    proved: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()

    def covers(self, site: Site) -> bool:
        """Whether the rule of this site was proved. A proof that failed as a whole names no label, and covers
        nothing.
        """
        return label(site) in self.proved and (self.passed or bool(self.refused))

    @property
    def is_made(self) -> bool:
        """False for what stands in the place of a proof where none was wanted, or where nothing was given to make one
        with.
        """
        return not self.what.startswith(UNPROVED)

    @property
    def kind(self) -> str:
        """What it is called: a LoRA adapter is proved by its products first, declared sites on the model's own code."""
        begins = {PRODUCT: "Proof by products", OWN_CODE: "Proof on the model", UNPROVED: "No proof"}
        return next((kind for words, kind in begins.items() if self.what.startswith(words)), "Proof by miniature")

    def to_json(self) -> dict:
        out = asdict(self)
        for name in ("max_rel", "liveness"):  # JSON has no infinity
            out[name] = repr(out[name])
        return out

    @classmethod
    def from_json(cls, data: dict) -> "Proof":
        fields = {name: data[name] for name in cls.__dataclass_fields__}
        for name in ("max_rel", "liveness"):
            fields[name] = float(fields[name])
        for name in ("cases", "not_checked", "proved"):
            fields[name] = tuple(fields[name])
        fields["refused"] = tuple((str(name), str(reason)) for name, reason in fields["refused"])
        return cls(**fields)


def proof_of(kind: str, key: object, rule: str, make: Callable[[], Proof]) -> Proof:
    """The kept proof of that kind and key, or the one that ``make`` gives, which is then kept.

    Never raises for a rule that is wrong or a model that cannot be built: the proof has then not ``passed`` and says
    why. Raises Cancelled.
    """
    found = kept_proof(kind, key)
    if found is not None:
        return found
    started = time.perf_counter()
    try:
        proof = make()
    except Cancelled:
        raise
    except WiscaError as error:
        proof = Proof(passed=False, rule=rule, seconds=time.perf_counter() - started, reason=str(error))
    keep(kind, key, proof.to_json())
    return proof


def kept_proof(kind: str, key: object) -> Proof | None:
    """The kept proof, None where there is none (any more)."""
    found = kept_verdict(kind, key)
    try:
        return None if found is None else Proof.from_json(found)
    except (KeyError, TypeError, ValueError):
        return None


def label(site: Site) -> str:
    """Where in the model the pair sits and which it is, without layer and expert: "decoder.self.qk"."""
    return f"{site.block}.{site.key.pair}"


def proved_only(sites: Sites, proof: Proof) -> Sites:
    """The sites whose rule was proved; the others become refusals with the reason."""
    reasons = dict(proof.refused)
    refused = tuple(
        Refusal(s.name, reasons.get(label(s), proof.reason or "its rule was not proved"))
        for s in sites.sites
        if not proof.covers(s)
    )
    return replace(sites.only(proof.covers), refusals=(*sites.refusals, *refused))


def check_covers(proof: Proof, sites: Sites, names: Iterable[str]) -> None:
    """Raises ProofFailed where the rule of one of these sites was not proved, or nothing was."""
    unproved = next((name for name in names if not proof.covers(sites[name])), "")
    is_lost = not proof.proved or not (proof.passed or proof.refused)
    if is_lost or unproved:
        reason = dict(proof.refused).get(label(sites[unproved]), "") if unproved else ""
        of = "" if is_lost else f" for {unproved}"
        failed = f"the {proof.kind[:1].lower()}{proof.kind[1:]} failed" if proof.is_made else "no proof was made"
        raise ProofFailed(f"{failed}{of}: {reason or proof.reason} Nothing was written.")


def structure(sites: Sites) -> set[str]:
    """What kinds of site there are: the miniature must show every one of them. No label counts heads, layers or widths;
    that there are several KV groups, or several query heads to one, is a kind that one of each does not show.
    """
    return {kind for site in sites.sites for kind in _kinds(site)}


def lacking(sites: Sites, small: Sites) -> str:
    """A kind of site that the miniature does not show, in words; "" where it shows them all."""
    shown = structure(small)
    for site in sites.sites:
        missing = [kind for kind in _kinds(site) if kind not in shown]
        if missing:
            like = next((one for one in small.sites if label(one) == label(site)), None)
            theirs = f"; there it is made of {_tensors(like)}" if like else ", and there it has none"
            heads = "" if _kinds(site)[0] in missing else missing[0].rpartition(", ")[2] + ", "
            return f"{label(site)} like {site.name}, which has {heads}the tensors {_tensors(site)}{theirs}"
    return ""


def _kinds(site: Site) -> list[str]:
    """Its own kind, and what is shown with it: several of what it has several of are more than one of it."""
    legs = {
        (leg.role, leg.side, leg.axis, leg.measured, leg.exponent, leg.offset, bool(leg.fixed)) for leg in site.legs
    }
    layout, width, _ = site.rotary
    dim = site.legs[0].index.sizes[-1]
    rotary = (layout, "none" if not width else "all" if width >= dim else "part", len(site.exact_ties))
    kind = f"{site.block} {site.key.pair} {site.live} {rotary} {sorted(legs)}"
    groups = [", several KV heads"] if any(leg.index.sizes[0] > 1 for leg in site.legs) else []
    repeats = [", several query heads a KV head"] if any(leg.index.sizes[-2] > 1 for leg in site.legs) else []
    return [kind + several + more for several in ("", *groups) for more in ("", *repeats)]


def _tensors(site: Site) -> str:
    """The tensors of a site by the last parts of their names, without the numbers of layers and heads."""
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+", "", leg.tensor).split(".", 2)[-1] for leg in site.legs))
