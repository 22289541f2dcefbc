"""Names in memory: what transformers calls a stored tensor once it is loaded, by its own conversion table.

A checkpoint keeps the names of its first release; transformers renames some when it loads them (Qwen2.5-VL's
``model.layers`` becomes ``model.language_model.layers``), and puts others together (Mixtral's experts). peft writes an
adapter under the names in memory, so an adapter and its base meet there and nowhere else.

Not covered: code of the person's own and types that the installed transformers does not know: their names in memory are
taken to be the stored ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from wisca_core.checkpoint import Checkpoint
from wisca_core.errors import WiscaError


@dataclass(frozen=True)
class MemoryNames:
    """``stored``: name in memory -> stored name, of the tensors that are only renamed. ``made_of``: name in memory ->
    stored names, of those that are computed from stored ones (experts put together, a fused tensor split).
    """

    stored: Mapping[str, str]
    made_of: Mapping[str, tuple[str, ...]]
    _rename: Callable[[str], str]

    def find(self, name: str) -> tuple[str, ...]:
        """The stored tensors that ``name`` may be: in memory, in an older release's memory, as stored, or with other
        first parts (model., transformer.). One where all is well, () where there is none; more where it is computed
        from them or the name does not say which it is.
        """
        for spelled in (name, self._rename(name)):
            if spelled in self.stored:
                return (self.stored[spelled],)
            if spelled in self.made_of:
                return self.made_of[spelled]
        known = set(self.stored.values())
        if name in known:
            return (name,)
        ends = {
            stored
            for memory, stored in self.stored.items()
            for other in (memory, stored)
            if other.endswith(f".{name}") or name.endswith(f".{other}")
        }
        return tuple(sorted(ends))

    def below(self, module: str) -> tuple[str, ...]:
        """Every stored tensor of that module or of one inside it, whatever first parts either lacks."""
        spelled = (module, self._rename(f"{module}.weight").removesuffix(".weight"))
        pairs = [(memory, (stored,)) for memory, stored in self.stored.items()] + list(self.made_of.items())
        return tuple(
            stored
            for memory, parts in pairs
            for stored in parts
            if any(_lies_in(tensor, one) for tensor in (memory, stored) for one in spelled)
        )


def memory_names(checkpoint: Checkpoint) -> MemoryNames:
    """The names of a model's tensors in memory. Builds its class without weights; kept for the last few models."""
    return _names(checkpoint.config_json, tuple(checkpoint.by_name))


@lru_cache(maxsize=8)
def _names(config_json: str, stored: tuple[str, ...]) -> MemoryNames:
    import json

    try:
        table = _table(json.loads(config_json)) if config_json else None
    except WiscaError:
        table = None
    if table is None:
        return MemoryNames({name: name for name in stored}, {}, lambda name: name)
    plain: dict[str, str] = {}
    computed: dict[str, tuple[str, ...]] = {}
    for name in sorted(stored, key=_order):
        memory, targets = table(name)
        if targets:
            for target in targets:
                computed[target] = (*computed.get(target, ()), name)
        else:
            plain[memory] = name
    return MemoryNames(plain, computed, lambda name: table(name)[0])


def _table(config: Mapping) -> Callable[[str], tuple[str, tuple[str, ...]]]:
    """stored name -> (name in memory, the names in memory that are computed with it; () where it is only renamed)."""
    import torch

    from wisca_core.equivalence.miniature import model_class, quiet
    from wisca_core.equivalence.model_config import config_object

    cls = model_class(config)
    with quiet(), torch.device("meta"):
        try:
            from transformers.conversion_mapping import get_model_conversion_mapping
            from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

            model = cls._from_config(config_object(config), attn_implementation="eager")
            conversions = get_model_conversion_mapping(model)
        except WiscaError:
            raise
        except Exception as error:  # whatever a class of any release raises for values it does not take
            raise WiscaError(f"{cls.__name__} cannot be built: {error}") from error
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    by_source = {pattern: one for one in converters for pattern in one.source_patterns}
    known = model.state_dict()

    def table(name: str) -> tuple[str, tuple[str, ...]]:
        memory, source = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if source is None:
            return memory, ()
        first, *others = by_source[source].target_patterns
        return memory, (memory, *(memory.replace(first, other, 1) for other in others if first in memory))

    return table


def _order(name: str) -> list[tuple[bool, int, str]]:
    """The order in which transformers meets the names; a renaming in groups hangs on it."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def _lies_in(tensor: str, module: str) -> bool:
    parts = tensor.split(".")[:-1]
    paths = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return any(f".{path}".endswith(f".{module}") or f".{module}".endswith(f".{path}") for path in paths)
