"""What the census knows of one model type."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from wisca_core import pairs
from wisca_core.architecture.site import GRANULARITIES
from wisca_core.pairs import MODEL_PAIRS as PAIRS
from wisca_core.words import join_names

FINEST = {"tensor": "whole tensors", "group": "KV groups", "channel": "single channels"}

# Verdicts. What the model holds and no input tried here runs (a tower that needs a picture) is passed over, and
# counted.
PROVED = "proved"  # every place of the pair, at every granularity that was tried
PARTLY = "partly"  # some places or granularities; the others are refused
REFUSED = "refused"
ABSENT = "none found"  # no such pair among the tensors
NOT_REACHED = "not reached"  # no miniature, or it took too long: nothing is known, so nothing is scaled
OPEN = "not proved yet"  # no result is kept for the installed versions
VERDICTS = (PROVED, PARTLY, REFUSED, ABSENT, NOT_REACHED, OPEN)


LABELS = {pair: pairs.LABELS[pair] for pair in PAIRS}


@dataclass(frozen=True)
class Place:
    """Where in the model a pair sits, "decoder.self". ``n_sites``: of the miniature. ``finest``: the names of the
    partitions that exactness allows, over its sites; ``held``: the granularities at which it was proved. ``reason``:
    why it was not at the others; ``is_idle``: no input tried here runs it, so nothing is known.
    """

    name: str
    n_sites: int
    finest: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    reason: str = ""
    is_idle: bool = False

    @property
    def where(self) -> str:
        """Its name for people: feed-forward layers belong to no attention."""
        return self.name.replace(".none", "")


@dataclass(frozen=True)
class Pair:
    """A pair of one model type over all its places."""

    pair: str
    verdict: str
    places: tuple[Place, ...] = ()

    @property
    def finest(self) -> str:
        """The finest granularity at which it was proved, "" where it was not."""
        found = [name for place in self.places if place.held for name in place.finest]
        return max(found, key=GRANULARITIES.index, default="")

    @property
    def n_idle(self) -> int:
        """Places that no input tried here runs."""
        return sum(place.is_idle for place in self.places)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it was refused, where it was; each once."""
        return tuple(
            dict.fromkeys(place.reason for place in self.places if place.reason and not place.is_idle)
        ) or tuple(dict.fromkeys(place.reason for place in self.places if place.reason and self.verdict == REFUSED))


def pair_of(pair: str, places: tuple[Place, ...], asked: tuple[str, ...]) -> Pair:
    """The verdict over ``places``, tried at the granularities ``asked``."""
    if not places:
        return Pair(pair, ABSENT)
    live = [place for place in places if not place.is_idle]
    if live and all(not place.reason and set(place.held) == set(asked) for place in live):
        return Pair(pair, PROVED, places)
    return Pair(pair, PARTLY if any(place.held for place in live) else REFUSED, places)


@dataclass(frozen=True)
class Entry:
    """One model type. ``family``: the row that covers it, "" for none. ``not_reached``: why nothing could be proved.
    ``max_rel``: the largest difference of what was proved, ``liveness``: the smallest change by a one-sided factor,
    both relative to the outputs of the miniature; ``n_trials`` rescaled miniatures of ``n_cases`` inputs each.
    ``when``: seconds since 1970, 0 where the census has not tried it yet; ``is_released``: it was tried when this
    version was made, not here.
    """

    model_type: str
    model_class: str = ""
    family: str = ""
    pairs: tuple[Pair, ...] = ()
    granularities: tuple[str, ...] = ()
    not_reached: str = ""
    remarks: tuple[str, ...] = ()
    n_cases: int = 0
    n_trials: int = 0
    max_rel: float = 0.0
    liveness: float = 0.0
    seconds: float = 0.0
    when: float = 0.0
    is_released: bool = False

    def __getitem__(self, pair: str) -> Pair:
        return next(one for one in self.pairs if one.pair == pair)

    @property
    def verdict(self) -> str:
        """Over its attention: proved where QK and VO both are."""
        verdicts = {self["qk"].verdict, self["vo"].verdict}
        if len(verdicts) == 1:
            return verdicts.pop()
        return PARTLY if verdicts & {PROVED, PARTLY} else next(v for v in (NOT_REACHED, OPEN, REFUSED) if v in verdicts)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Of all its pairs, each once; why it was not reached, where it was not."""
        if self.not_reached:
            return (self.not_reached,)
        return tuple(dict.fromkeys(reason for pair in self.pairs for reason in pair.reasons))

    @property
    def sentence(self) -> str:
        """Whether it is covered, in words."""
        exact = [LABELS[p.pair] for p in self.pairs if p.verdict == PROVED]
        partly = [LABELS[p.pair] for p in self.pairs if p.verdict == PARTLY]
        if self.not_reached:
            return f"{self.model_type} was not reached: no proof could be made, so nothing of it is scaled."
        if any(pair.verdict == OPEN for pair in self.pairs):
            return (
                f"{self.model_type} {'has a rule' if self.family else 'has no rule of its own'}; the census has "
                "not "
                "tried it here yet."
            )
        if not exact and not partly:
            return f"{self.model_type} is refused: nothing of it can be rescaled exactly."
        finest = max((self[pair].finest for pair in PAIRS if self[pair].finest), key=GRANULARITIES.index)
        parts = [f"{join_names(exact)} {'is' if len(exact) == 1 else 'are'} exact"] if exact else []
        parts += [f"{join_names(partly)} in {'part' if exact else 'part only'}"] if partly else []
        n = len({place.name for pair in self.pairs for place in pair.places if place.is_idle})
        idle = f"; {n} further {'place is' if n == 1 else 'places are'} run by no input tried here" if n else ""
        return f"{self.model_type} is covered: {', '.join(parts)}, down to {FINEST[finest]}{idle}."

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping) -> "Entry":
        """KeyError, TypeError or ValueError for anything but what ``to_json`` wrote."""
        fields = {name: data[name] for name in cls.__dataclass_fields__ if name != "is_released"}
        fields["pairs"] = tuple(_pair(pair) for pair in fields["pairs"])
        if tuple(pair.pair for pair in fields["pairs"]) != PAIRS:
            raise ValueError("pairs")
        for name in ("granularities", "remarks"):
            fields[name] = tuple(map(str, fields[name]))
        for name in ("max_rel", "liveness", "seconds", "when"):
            fields[name] = float(fields[name])
        return cls(**fields, is_released=bool(data.get("is_released", False)))


def _pair(data: Mapping) -> Pair:
    if data["verdict"] not in VERDICTS:
        raise ValueError(data["verdict"])
    places = tuple(
        Place(**{**place, "finest": tuple(place["finest"]), "held": tuple(place["held"])}) for place in data["places"]
    )
    if any(name not in GRANULARITIES for place in places for name in (*place.finest, *place.held)):
        raise ValueError("granularity")
    return Pair(data["pair"], data["verdict"], places)
