"""A miniature with an adapter on it: the base model's own architecture made small, and a random LoRA of the same
settings, built, saved and loaded by peft, as the person's own will be.

Not covered: trainable tokens (rows of an embedding, which no factor touches), heads that the base does not have.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from wisca_core.equivalence.miniature import load, quiet
from wisca_core.errors import ConfigMismatch

RANK, ALPHA = 4, 6.0


def peft_is_here() -> bool:
    """Whether peft can be imported."""
    from importlib.util import find_spec

    return find_spec("peft") is not None


def inside(module: str) -> str:
    """Path of an adapted layer inside its layer, "self_attn.q_proj" of "model.layers.3.self_attn.q_proj"; the whole
    path where it is in no numbered layer.
    """
    return re.split(r"(?:^|\.)\d+\.", module, maxsplit=1)[-1]


def build_adapter(base: Path, folder: Path, adapter: Mapping[str, Any], targets: Collection[str], seed: int) -> None:
    """A LoRA of rank 4 on every layer of the miniature in ``base`` whose path ends in one of ``targets``, every value
    random in float64, saved to ``folder``. ``adapter``: adapter_config.json, of which rsLoRA, DoRA, biases,
    fan_in_fan_out, modules_to_save, and that alphas differ or layers are repeated, are kept.

    ConfigMismatch where peft finds none of the targets.
    """
    from peft import LoraConfig, get_peft_model

    model = load(base)
    with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        try:
            settings = _settings(model, adapter, sorted(targets))
            config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=sorted(targets), **settings)
            adapted = get_peft_model(model, config, autocast_adapter_dtype=False).double()
        except (ValueError, TypeError) as error:
            raise ConfigMismatch(
                f"the adapter does not fit this base model: {' '.join(str(error).split())[:300]}"
            ) from error
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in adapted.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if ".lora_magnitude_vector" in name:
                parameter.mul_(1 + 0.3 * noise)
            elif ".lora_" in name:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            elif parameter.requires_grad:  # what the adapter keeps of the base's own
                parameter.mul_(1 + 0.3 * noise)
        adapted.save_pretrained(folder, save_embedding_layers=False)


def _settings(model: torch.nn.Module, adapter: Mapping[str, Any], targets: list[str]) -> dict[str, Any]:
    settings = {name: bool(adapter.get(name)) for name in ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out")}
    if adapter.get("bias") in ("all", "lora_only"):
        settings["bias"] = adapter["bias"]
    saved = adapter.get("modules_to_save")
    modules = [name for name, _ in model.named_modules()]
    kept = [m for m in saved if any(name.endswith(str(m)) for name in modules)] if isinstance(saved, list) else []
    if kept:
        settings["modules_to_save"] = kept
    if adapter.get("alpha_pattern"):
        settings["alpha_pattern"] = {targets[-1].replace(".", r"\."): 2 * ALPHA}
    if adapter.get("layer_replication"):
        n_layers = model.config.num_hidden_layers
        settings["layer_replication"] = [(0, n_layers), (n_layers - 1, n_layers)]
    return settings


def load_adapted(base: Path, folder: Path) -> torch.nn.Module:
    """The miniature in ``base`` with the adapter in ``folder`` on it, float64, eval mode."""
    from peft import PeftModel

    with quiet(), torch.random.fork_rng(devices=[]):
        model = PeftModel.from_pretrained(load(base), str(folder), autocast_adapter_dtype=False, is_trainable=False)
    return model.get_base_model().double().eval()
