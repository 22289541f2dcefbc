"""Verdicts kept between runs: a proof, a rule found by trial, an entry of the census, each until what decided it
changes.

A verdict is found again only under the same versions and the same code. The key of its maker says what it is about (a
config, the whole structure of its sites); here the installed versions and a digest of every file that has a part in
deciding are added, so that a rule that was changed is proved anew.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

from wisca_core.errors import OutputRefused, UnreadableInput
from wisca_core.storage import folder, read_json, write_json

VERSION = 3

# Rooms and files whose code has a part in a verdict: what a site is, how weights are read, multiplied and written, how
# a miniature is made, run and judged.
DECIDING = (
    "architecture",
    "census",
    "checkpoint",
    "equivalence",
    "methods",
    "rescale.py",
    "rescale_adapter.py",
    "rescale_basis.py",
)
_WITH_ROW = ("census",)  # kinds whose key holds the row of the family: another row does not touch them
_PACKAGE = Path(__file__).parent


def kept_verdict(kind: str, key: object) -> dict[str, Any] | None:
    """The kept verdict, None where there is none (any more). ``kind``: a word, the beginning of the file's name.
    ``key``: plain JSON values that say what the verdict is about.
    """
    try:
        return read_json(_path(kind, key), f"wisca-{kind}", VERSION)
    except UnreadableInput:
        return None


def keep(kind: str, key: object, verdict: Mapping[str, Any]) -> None:
    """Keep this one from now on."""
    with suppress(OutputRefused):
        write_json(_path(kind, key), f"wisca-{kind}", VERSION, verdict)


def versions() -> dict[str, str]:
    """Of everything a verdict depends on."""
    return {name: version(name) for name in ("wisca", "torch", "transformers")}


@lru_cache(maxsize=8)  # to look it up anew for each of the census' 541 types took a second
def version(package: str) -> str:
    """What is installed of a package; PackageNotFoundError where nothing is."""
    return metadata.version(package)


def digest(*values: object) -> str:
    """Of plain JSON values."""
    return xxhash.xxh3_128(json.dumps(values, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()


@lru_cache(maxsize=4)
def deciding_code(rows: bool = True, package: Path = _PACKAGE) -> str:
    """Digest of the code and tables that decide, lines of comment and empty lines left out.

    ``rows=False`` leaves out the rows of the families, for verdicts whose key holds the very row.
    """
    out = xxhash.xxh3_128()
    for name in DECIDING:
        place = package / name
        files = [place] if place.suffix else sorted(p for p in place.rglob("*") if p.suffix in (".py", ".toml"))
        for path in files:
            if rows or path.parent.name != "rows" or path.stem == "defaults":
                out.update(path.relative_to(package).as_posix().encode())
                out.update(re.sub(rb"(?m)^\s*(#.*)?\n", b"", path.read_bytes()))
    return out.hexdigest()


def _path(kind: str, key: object) -> Path:
    return folder("proofs") / f"{kind}-{digest(key, versions(), deciding_code(rows=kind not in _WITH_ROW))}.json"
