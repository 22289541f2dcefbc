"""Results of the census under ``WISCA_HOME/proofs``: one file a model type, found again only under the same row, the
same code that decides and the same versions.
"""

from collections.abc import Iterable

from wisca_core import verdicts
from wisca_core.architecture.families import families
from wisca_core.census.entry import OPEN, PAIRS, REFUSED, Entry, Pair, Place
from wisca_core.census.judge import row_refusal
from wisca_core.census.released import ground_digest, released_entry
from wisca_core.storage import folder
from wisca_core.verdicts import deciding_code, versions


def keep(entry: Entry) -> None:
    """Replace what is kept of this type. A full disk only costs the next census."""
    verdicts.keep("census", ground_digest(entry.model_type), entry.to_json() | {"versions": versions()})


def entry(model_type: str) -> Entry:
    """What is kept of this type for the installed versions; without any, what came with this version of wisca for them,
    then what its row alone says.
    """
    return _kept_entry(model_type) or released_entry(model_type) or _from_row(model_type)


def entries(model_types: Iterable[str]) -> tuple[Entry, ...]:
    """The same of many."""
    return tuple(map(entry, model_types))


def lacks(model_type: str, granularities: tuple[str, ...]) -> bool:
    """Whether a result at these granularities is still to be made; one that was not reached is."""
    kept = _kept_entry(model_type)
    return kept is None or bool(kept.not_reached) or not set(granularities) <= set(kept.granularities)


def stamp() -> str:
    """Changes whenever a result is kept or removed."""
    place = folder("proofs")
    return f"{place} {place.stat().st_mtime_ns} {deciding_code()}"


def _kept_entry(model_type: str) -> Entry | None:
    try:
        found = verdicts.kept_verdict("census", ground_digest(model_type))
        found = None if found is None else Entry.from_json(found)
    except (KeyError, TypeError, ValueError):
        return None
    return found if found is not None and found.model_type == model_type else None


def _from_row(model_type: str) -> Entry:
    family = families().get(model_type)
    refused = row_refusal(family)
    places = (Place("model", 0, reason=refused),) if refused else ()
    pairs = tuple(Pair(pair, REFUSED if refused else OPEN, places) for pair in PAIRS)
    return Entry(model_type, family=family.name if family else "", pairs=pairs)
