"""Results of the census under ``WISCA_HOME/proofs``: one file a model type, found again only under the same rules, the
same way of making miniatures and the same versions.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from importlib import resources
from pathlib import Path

import xxhash

from wisca_core.architecture.families import FILES, families
from wisca_core.census.entry import OPEN, PAIRS, REFUSED, Entry, Pair, Place
from wisca_core.census.judge import always_refused
from wisca_core.census.released import released
from wisca_core.equivalence.proof import versions
from wisca_core.errors import OutputRefused, UnreadableInput
from wisca_core.storage import folder, read_json, write_json

FORMAT, VERSION = "wisca-census", 1


def keep(entry: Entry) -> None:
    """Replace what is kept of this type. A full disk only costs the next census."""
    with suppress(OutputRefused):
        write_json(_path(entry.model_type), FORMAT, VERSION, entry.to_json() | {"versions": versions()})


def entry(model_type: str) -> Entry:
    """What is kept of this type for the installed versions; without any, what came with this version of wisca for them,
    then what its row alone says.
    """
    return _kept(model_type) or released(model_type) or _from_row(model_type)


def entries(model_types: Iterable[str]) -> tuple[Entry, ...]:
    """The same of many."""
    return tuple(map(entry, model_types))


def lacks(model_type: str, granularities: tuple[str, ...]) -> bool:
    """Whether a result at these granularities is still to be made; one that was not reached is."""
    kept = _kept(model_type)
    return kept is None or bool(kept.not_reached) or not set(granularities) <= set(kept.granularities)


def stamp() -> str:
    """Changes whenever a result is kept or removed."""
    place = folder("proofs")
    return f"{place} {place.stat().st_mtime_ns} {_ground()}"


def _kept(model_type: str) -> Entry | None:
    try:
        found = Entry.from_json(read_json(_path(model_type), FORMAT, VERSION))
    except (UnreadableInput, KeyError, TypeError, ValueError):
        return None
    return found if found.model_type == model_type else None


def _from_row(model_type: str) -> Entry:
    family = families().get(model_type)
    refused = always_refused(family)
    places = (Place("model", 0, reason=refused),) if refused else ()
    pairs = tuple(Pair(pair, REFUSED if refused else OPEN, places) for pair in PAIRS)
    return Entry(model_type, family=family.name if family else "", pairs=pairs)


def _path(model_type: str) -> Path:
    family = families().get(model_type)
    # a tower is read by the row of another type, which only its config names
    rows = "" if family and not family.towers else _all_rows()
    key = json.dumps([model_type, repr(family), rows, _ground()])
    return folder("proofs") / f"census-{xxhash.xxh3_128(key.encode()).hexdigest()}.json"


@lru_cache(maxsize=1)
def _ground() -> str:
    """Of everything that all types share."""
    sizes = resources.files("wisca_core.equivalence").joinpath("sizes.toml").read_bytes()
    rows = resources.files("wisca_core.architecture").joinpath("rows", "defaults.toml").read_bytes()
    return f"{json.dumps(versions())} {xxhash.xxh3_128(sizes + rows).hexdigest()}"


@lru_cache(maxsize=1)
def _all_rows() -> str:
    rows = resources.files("wisca_core.architecture").joinpath("rows")
    return xxhash.xxh3_128(b"".join(rows.joinpath(f"{file}.toml").read_bytes() for file in FILES)).hexdigest()
