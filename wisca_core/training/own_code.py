"""Code that stands where a rule's proof was made of transformers' own: seen, named, refused.

Looked at are the modules a pair lies in (an attention and all inside it): their classes, their forwards (of the class
and of the instance), their hooks and parametrizations, the functions their forwards call by name, and the attention
function the config names. What trainers put there themselves is known by the package it comes from and by what it calls
in the end. Not seen: a method changed in the body of a library's file, or code that looks like the library's own.
"""

import functools
from collections.abc import Callable, Iterable
from types import FunctionType

import torch
from torch import nn

# whose modules, forwards and hooks leave an attention what it is
_LIBRARIES = ("torch", "transformers", "peft")
_TRAINERS = (*_LIBRARIES, "accelerate", "deepspeed", "lightning", "lightning_fabric", "pytorch_lightning", "wandb")
# torch's own that change a weight between its parameter and its use
_CHANGING = ("torch.nn.utils.", "torch.ao.", "torch.quantization.")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# peft's prompts that are embeddings of tokens and so pass through the projections like any other
_EMBEDDED = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")


def own_code_in(modules: Iterable[tuple[str, nn.Module]], family: str) -> str:
    """What of somebody's own is in these modules (path, module), the first of them the one a pair lies in; "" where
    nothing is.
    """
    for path, module in modules:
        reason = _of_class(module, family) or _of_forward(module) or _of_hooks(module)
        if reason:
            return f"{path} {reason}; the proof says nothing of it"
    return ""


def attention_function(module: nn.Module) -> str:
    """Why the attention function that the module's config names is not one transformers ships; "" where it is."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = getattr(getattr(module, "config", None), "_attn_implementation", None)
    function = ALL_ATTENTION_FUNCTIONS.get(name) if isinstance(name, str) else None
    if function is None or _package(_home(function)) == "transformers":
        return ""
    return (
        f"attn_implementation={name!r} is {_name(function)}, an attention function that transformers does not ship; "
        "the proof says nothing of it"
    )


def prompt_encoder(model: nn.Module) -> str:
    """Why what peft puts in front of the model forbids its attention pairs; "" where nothing does."""
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        if not isinstance(configs, dict) or "prompt_encoder" not in module._modules:
            continue
        for config in configs.values():
            kind = getattr(getattr(config, "peft_type", None), "value", None)
            if getattr(config, "is_prompt_learning", False) and kind not in _EMBEDDED:
                return (
                    f"peft's prompt encoder ({kind}) feeds keys and values from outside the projections, so they do "
                    "not "
                    "follow a rescale"
                )
    return ""


def _of_class(module: nn.Module, family: str) -> str:
    if "parametrizations" in module._modules:
        return "has parametrizations on its weights"
    kind = next((c for c in type(module).__mro__ if not _home(c).startswith(("torch.", "accelerate."))), object)
    home = _home(kind)
    if home.startswith("peft.tuners.") and home.split(".")[2] not in ("lora", "tuners_utils"):
        return f"is a {home}.{kind.__qualname__}, an adapter without a rule"
    if _package(home) in (*_LIBRARIES, "builtins"):
        return ""
    return f"is a {home}.{kind.__qualname__}, not transformers' own module of {family}"


def _of_forward(module: nn.Module) -> str:
    own = type(module).forward
    forward, hook = vars(module).get("forward"), vars(module).get("_hf_hook")
    if hook is not None and _package(_home(forward)) == "accelerate":
        strange = next((h for h in getattr(hook, "hooks", (hook,)) if _package(_home(type(h))) != "accelerate"), None)
        if strange is not None:
            return f"has the hook {_name(type(strange))}"
        forward = vars(module).get("_old_forward")
    if forward is not None and _inner(forward) is not own:
        return f"has the forward {_name(forward)} instead of {type(module).__name__}'s"
    if _package(_home(own)) not in _LIBRARIES:
        return f"has the forward {_name(own)} instead of {type(module).__name__}'s"
    if _package(_home(own)) == "transformers":
        for name in own.__code__.co_names:
            called = own.__globals__.get(name)
            if isinstance(called, FunctionType) and _package(_home(called)) not in _LIBRARIES:
                return f"calls {_name(called)} where transformers has {name}"
    return ""


def _of_hooks(module: nn.Module) -> str:
    for kind in _HOOKS:
        everywhere = getattr(torch.nn.modules.module, f"_global{kind}")
        for hook in (*getattr(module, kind).values(), *everywhere.values()):
            home = _home(hook)
            if _package(home) not in _TRAINERS or home.startswith(_CHANGING):
                return f"has the {kind.strip('_').replace('_', ' ').removesuffix('s')} {_name(hook)}"
    return ""


def _inner(function: object) -> object:
    """The function inside partials, bound methods and what torch.compile puts around."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "_torchdynamo_orig_callable"):
            function = function._torchdynamo_orig_callable
        elif hasattr(function, "__func__"):
            function = function.__func__
        else:
            return function


def _home(thing: Callable | type) -> str:
    inner = _inner(thing)
    return getattr(inner, "__module__", None) or type(inner).__module__


def _package(home: str) -> str:
    return home.split(".")[0]


def _name(thing: object) -> str:
    inner = _inner(thing)
    return f"{_home(inner)}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
