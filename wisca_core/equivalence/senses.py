"""Random pixels and sound for the towers that take them, sized by their configs."""

from collections.abc import Mapping
from typing import Any

PIXELS, SOUND = "pixels", "sound"


def sense_inputs(config: Any, names: Mapping[str, Any], seed: int) -> list[tuple[str, str, dict[str, Any]]]:
    """(kind, name, inputs) for a function with parameters ``names``; nothing where it takes neither pixels nor sound."""
    return []


def features_of(config: Any, method: str) -> Any:
    return config
