"""The installed transformers beside the one that constraints.txt pins: the rows name model types of the pinned one, and
an older one lacks the newest of them."""

import re
from importlib.metadata import version
from pathlib import Path


def _number(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")[:2]))


TRANSFORMERS = _number(version("transformers"))
_CONSTRAINTS = (Path(__file__).parents[1] / "constraints.txt").read_text()
IS_OLDER = TRANSFORMERS < _number(re.search(r"^transformers==(\S+)", _CONSTRAINTS, re.M)[1])
