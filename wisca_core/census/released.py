"""The results of the census that came with this version: proved when it was made, not on this machine.

    wisca architectures --all --prove && python -m wisca_core.census.release

writes them anew from what is kept. Each is found again only while its row, the code that decides and the versions of
transformers and torch are still those it was proved with; anything else counts as not tried.
"""

from functools import lru_cache
from importlib import resources
from pathlib import Path

import xxhash

from wisca_core.architecture.families import FILES, families
from wisca_core.census.entry import Entry
from wisca_core.storage import read_json, write_json
from wisca_core.verdicts import deciding_code, digest, version

FORMAT, VERSION = "wisca-census-released", 1
_FILE = Path(__file__).with_name("released.json")


def released_entry(model_type: str) -> Entry | None:
    """What came with this version, marked as such; None where that is not about what is installed."""
    found = _all().get(model_type)
    if found is None or found["ground"] != ground_digest(model_type):
        return None
    return Entry.from_json(found | {"is_released": True})


def write(entries: tuple[Entry, ...], file: Path = _FILE) -> Path:
    """Keep ``entries`` that a proof was made of. Raises OutputRefused."""
    kept = {
        e.model_type: e.to_json() | {"ground": ground_digest(e.model_type)}
        for e in entries
        if e.when and not e.is_released
    }
    write_json(file, FORMAT, VERSION, kept)
    return file


def read(file: Path = _FILE) -> dict[str, dict]:
    """Model type -> its entry and what it rests on, as written; one type a line of the file. Raises UnreadableInput."""
    return {name: found for name, found in read_json(file, FORMAT, VERSION).items() if isinstance(found, dict)}


@lru_cache(maxsize=1)
def _all() -> dict[str, dict]:
    return read() if _FILE.exists() else {}


@lru_cache(maxsize=4096)
def ground_digest(model_type: str) -> str:
    """Changes with whatever the result rests on. A build of torch for another device proves the same."""
    family = families().get(model_type)
    # a tower is read by the row of another type, which only its config names
    rows = "" if family and not family.towers else _rows(tuple(FILES))
    versions = {name: version(name).partition("+")[0] for name in ("torch", "transformers")}
    return digest(model_type, repr(family), rows, versions, deciding_code(rows=False))


@lru_cache(maxsize=4)
def _rows(files: tuple[str, ...]) -> str:
    place = resources.files("wisca_core.architecture").joinpath("rows")
    return xxhash.xxh3_128(b"".join(place.joinpath(f"{file}.toml").read_bytes() for file in files)).hexdigest()
