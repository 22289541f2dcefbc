"""The kinds of pair: everything that is said of each anywhere, in one table. Left is the side that writes the channels.

A further kind is a row here, a builder of its sites in ``architecture`` and, where the dashboard draws it in colours of
its own, a row of its theme.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PairKind:
    """``roles``: of its legs, left and right. ``sides``, ``matrices``: what people call these. ``is_default``: the
    paper's, balanced where nothing else is asked for. ``of_model``: part of a model by itself (a LoRA adapter's is
    not).
    """

    name: str
    label: str
    roles: tuple[str, str]
    sides: tuple[str, str]
    matrices: tuple[str, str]
    is_default: bool = False
    of_model: bool = True


KINDS = {
    kind.name: kind
    for kind in (
        PairKind("qk", "QK", ("q", "k"), ("query", "key"), ("Wq", "Wk"), is_default=True),
        PairKind("vo", "VO", ("v", "o"), ("value", "output"), ("Wv", "Wo"), is_default=True),
        PairKind("mlp", "MLP", ("up", "down"), ("up", "down"), ("W up", "W down")),
        PairKind("lora", "LoRA", ("a", "b"), ("A", "B"), ("A", "B"), of_model=False),
    )
}

PAIRS = tuple(KINDS)
DEFAULT_PAIRS = tuple(name for name, kind in KINDS.items() if kind.is_default)
MODEL_PAIRS = tuple(name for name, kind in KINDS.items() if kind.of_model)
SIDES = {name: kind.sides for name, kind in KINDS.items()}
MATRICES = {name: kind.matrices for name, kind in KINDS.items()}
LABELS = {name: kind.label for name, kind in KINDS.items()}
# of a side: several of its matrices in a sentence
PLURALS = {
    "query": "queries",
    "key": "keys",
    "value": "values",
    "output": "outputs",
    "up": "up projections",
    "down": "down projections",
    "A": "A",
    "B": "B",
}
