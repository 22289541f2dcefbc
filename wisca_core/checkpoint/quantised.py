"""Is a checkpoint quantised, and how: its stored values are then not the weights, and are not rescaled."""

from wisca_core.checkpoint.checkpoint import Checkpoint

# quantization_config.quant_method (config.json) -> the name people know it by.
_METHODS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "fp8": "fp8",
    "fbgemm_fp8": "fp8 (FBGEMM)",
    "compressed-tensors": "compressed-tensors",
    "mxfp4": "MXFP4",
}

# (last part of a tensor name, what writes it). AWQ and GPTQ share names and differ in config.json only.
_NAMES = (
    ("qweight", "GPTQ or AWQ"),
    ("qzeros", "GPTQ or AWQ"),
    ("absmax", "bitsandbytes"),
    ("quant_map", "bitsandbytes"),
    ("SCB", "bitsandbytes"),
    ("weight_scale_inv", "fp8"),
    ("weight_packed", "compressed-tensors"),
    ("weight_scale", "fp8 or compressed-tensors"),
)
_DTYPES = {"F4": "4-bit floats", "F6_E2M3": "6-bit floats", "F6_E3M2": "6-bit floats"}


def quantisation(checkpoint: Checkpoint) -> str | None:
    """What quantised the weights, in words with where it was seen; None where they are plain numbers."""
    config = checkpoint.config
    inner = config.get("text_config")
    for holder in (config, inner if isinstance(inner, dict) else {}):
        stated = holder.get("quantization_config") or holder.get("compression_config")
        if isinstance(stated, dict):
            method = str(stated.get("quant_method") or _bitsandbytes(stated) or "an unnamed method")
            return f"{_METHODS.get(method.lower(), method[:40])} (quantization_config in config.json)"
    for tensor in checkpoint.tensors:
        last = tensor.name.rsplit(".", 1)[-1]
        for suffix, words in _NAMES:
            if last == suffix:
                return f"{words} (tensor {tensor.name})"
        if tensor.name.endswith(("_blocks", "_scales")) and tensor.dtype == "U8":
            return f"MXFP4 (tensor {tensor.name})"
        if tensor.dtype.startswith("F8"):
            return f"fp8 (tensor {tensor.name} is {tensor.dtype})"
        if tensor.dtype in _DTYPES:
            return f"{_DTYPES[tensor.dtype]} (tensor {tensor.name} is {tensor.dtype})"
        if last == "weight" and len(tensor.shape) == 2 and tensor.dtype in ("I8", "U8", "I32"):
            return f"integer weights (tensor {tensor.name} is {tensor.dtype})"
    return None


def _bitsandbytes(stated: dict) -> str | None:
    """Older transformers wrote load_in_4bit / load_in_8bit and no quant_method."""
    return "bitsandbytes" if "load_in_4bit" in stated or "load_in_8bit" in stated else None
