"""What wrappers put into the names of parameters, in live models and in the files that were saved of them: one table.

DataParallel and DDP put ``module.`` before every name; compiling, checkpointing and FSDP1 put a module of their own in,
before every name or, where single blocks are wrapped, in the middle of some.
"""

import re
from collections.abc import Iterable

BEFORE = ("module",)  # only before the whole name: inside it, "module" may be a model's own
INSIDE = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")

_INSIDE = re.compile(rf"(?:(?<=\.)|^)(?:{'|'.join(INSIDE)})\.")
_BEFORE = re.compile(rf"^(?:(?:{'|'.join(BEFORE)})\.)+")


def unwrapped_name(name: str) -> str:
    """A parameter's name without what wrappers put into it, one in the other too.

    >>> unwrapped_name("module._orig_mod.model.layers.0._orig_mod.self_attn.q_proj.weight")
    'model.layers.0.self_attn.q_proj.weight'
    """
    return _BEFORE.sub("", _INSIDE.sub("", name))


def unwrapped_names(names: Iterable[str]) -> dict[str, str]:
    """Name -> its unwrapped name, of those that change; empty where two names would become one.

    ``module.`` goes only where every name begins with it: a model may have a part of that name.

    >>> unwrapped_names(["module.a.weight", "module._orig_mod.b.weight"])
    {'module.a.weight': 'a.weight', 'module._orig_mod.b.weight': 'b.weight'}
    >>> unwrapped_names(["module.a.weight", "head.weight"])
    {}
    """
    names = list(names)
    inner = {name: _INSIDE.sub("", name) for name in names}
    if names and all(_BEFORE.match(name) for name in inner.values()):
        inner = {name: _BEFORE.sub("", new) for name, new in inner.items()}
    if len(set(inner.values())) < len(inner):
        return {}
    return {name: new for name, new in inner.items() if new != name}
