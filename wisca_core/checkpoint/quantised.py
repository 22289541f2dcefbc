"""Is a checkpoint quantised, and how: its stored values are then not the weights, and are not rescaled.

Where the format is simple and its scales are there, the weights can be looked at: ``viewed`` gives the checkpoint with
every quantised matrix under its own name, made from the stored parts as it is read. Formats that are named only:
bitsandbytes' 4 bits, compressed-tensors' packed integers, MXFP4, AWQ other than its "gemm" layout, GPTQ of 3 bits.
"""

from dataclasses import replace

from wisca_core.checkpoint.checkpoint import Checkpoint, Recipe, TensorInfo

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
    """What quantised the weights, in words with where it was seen; None where they are plain numbers, or read as such."""
    if checkpoint.look_only:
        return None
    config = checkpoint.config
    if stated := _stated(config):
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


def _stated(config: dict) -> dict:
    """quantization_config, of the model or of its language part; empty where there is none."""
    inner = config.get("text_config")
    for holder in (config, inner if isinstance(inner, dict) else {}):
        stated = holder.get("quantization_config") or holder.get("compression_config")
        if isinstance(stated, dict):
            return stated
    return {}


def viewed(checkpoint: Checkpoint) -> Checkpoint:
    """The same with its quantised matrices under their own names, to be looked at, never rescaled; unchanged where it is
    not quantised or not every matrix has a known recipe.
    """
    words = quantisation(checkpoint)
    if words is None or checkpoint.adapter_json:
        return checkpoint
    stated = _stated(checkpoint.config)
    made: dict[str, Recipe] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    used: set[str] = set()
    for tensor in checkpoint.tensors:
        found = _recipe(tensor, checkpoint, stated)
        if found is None:
            continue
        name, shape, recipe, names = found
        made[name], shapes[name] = recipe, shape
        used |= names
    left = [t for t in checkpoint.tensors if t.name not in used]
    if not made or any(_is_quantised(t) for t in left):
        return checkpoint
    view = [TensorInfo(name, "F32", shapes[name], recipe.parts[0].file, recipe.parts[0].offset, 4 * shapes[name][0] * shapes[name][1])
            for name, recipe in made.items()]  # fmt: skip
    return replace(
        checkpoint,
        tensors=tuple(sorted([*left, *view], key=lambda t: (t.file, t.offset, t.name))),
        recipes=tuple(made.items()),
        stored=checkpoint.tensors,
        look_only=f"the checkpoint is quantised, {words}: its {len(made):,} quantised matrices are measured as their scales unpack them, and are never "
        "rescaled. Rescale the unquantised model and quantise again.",
    )


def _is_quantised(tensor: TensorInfo) -> bool:
    """A matrix whose stored values are not its weights."""
    last = tensor.name.rsplit(".", 1)[-1]
    packed = last in ("qweight", "weight_packed") or tensor.name.endswith("_blocks")
    return packed or (len(tensor.shape) >= 2 and (tensor.dtype.startswith(("F8", "F4", "F6")) or (last == "weight" and tensor.dtype in ("I8", "U8", "I32"))))


def _recipe(tensor: TensorInfo, checkpoint: Checkpoint, stated: dict) -> tuple[str, tuple[int, int], Recipe, set[str]] | None:
    """(name, shape, recipe, names of the stored tensors it takes) of the matrix that ``tensor`` is the main part of."""
    stem, _, last = tensor.name.rpartition(".")
    known = checkpoint.by_name
    method = str(stated.get("quant_method", "")).lower()
    if last == "weight" and tensor.dtype in ("F8_E4M3", "F8_E5M2") and len(tensor.shape) == 2:
        return _scaled(tensor, stem, checkpoint, stated)
    if last == "weight" and tensor.dtype == "I8" and len(tensor.shape) == 2 and (scb := known.get(f"{stem}.SCB")) and scb.shape == tensor.shape[:1]:
        layout = known.get(f"{stem}.weight_format")
        parts = (tensor, scb, *((layout,) if layout else ()))
        return tensor.name, tensor.shape, Recipe("int8", parts), {p.name for p in parts}
    if last == "weight" and tensor.dtype == "I8" and len(tensor.shape) == 2 and f"{stem}.weight_zero_point" not in known:
        return _scaled(tensor, stem, checkpoint, stated)
    if last == "qweight" and tensor.dtype == "I32" and len(tensor.shape) == 2:
        others = [known.get(f"{stem}.{name}") for name in ("qzeros", "scales", "g_idx")]
        if method == "gptq":
            return _gptq(tensor, stem, others, stated)
        if method == "awq":
            return _awq(tensor, stem, others[:2], stated)
    return None


def _scaled(tensor: TensorInfo, stem: str, checkpoint: Checkpoint, stated: dict):
    """Both names of the scale hold what the stored values are multiplied by, whatever "inv" suggests."""
    rows, columns = tensor.shape
    for name in ("weight_scale_inv", "weight_scale"):
        scale = checkpoint.by_name.get(f"{stem}.{name}")
        if scale is None or scale.dtype not in ("F32", "BF16", "F16"):
            continue
        block = stated.get("weight_block_size")
        if scale.n_elements == 1:
            settings = (rows, columns)
        elif scale.shape in ((rows,), (rows, 1)):
            settings = (1, columns)
        elif isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block) and scale.shape == (-(-rows // block[0]), -(-columns // block[1])):
            settings = tuple(block)
        else:
            continue
        more = {f"{stem}.input_scale", f"{stem}.input_scale_ub"} & checkpoint.by_name.keys()  # of activations
        return tensor.name, tensor.shape, Recipe("scaled", (tensor, scale), settings), {tensor.name, scale.name} | more
    return None


def _gptq(tensor: TensorInfo, stem: str, others: list[TensorInfo | None], stated: dict):
    bits = stated.get("bits")
    if bits not in (2, 4, 8) or any(one is None for one in others):
        return None
    zeros, scales, group = others
    n_in, n_out = tensor.shape[0] * (32 // bits), tensor.shape[1]
    n_groups = scales.shape[0] if len(scales.shape) == 2 else 0
    if scales.shape != (n_groups, n_out) or zeros.shape != (n_groups, n_out * bits // 32) or group.shape != (n_in,):
        return None
    if zeros.dtype != "I32" or group.dtype != "I32" or scales.dtype not in ("F16", "BF16", "F32"):
        return None
    stored_less_one = str(stated.get("checkpoint_format", "gptq")).lower() != "gptq_v2"
    parts = (tensor, zeros, scales, group)
    return f"{stem}.weight", (n_out, n_in), Recipe("gptq", parts, (bits, int(stored_less_one))), {p.name for p in parts}


def _awq(tensor: TensorInfo, stem: str, others: list[TensorInfo | None], stated: dict):
    if stated.get("bits", 4) != 4 or str(stated.get("version", "gemm")).lower() != "gemm" or any(one is None for one in others):
        return None
    zeros, scales = others
    n_in, n_out = tensor.shape[0], tensor.shape[1] * 8
    n_groups = scales.shape[0] if len(scales.shape) == 2 else 0
    if not n_groups or n_in % n_groups or scales.shape != (n_groups, n_out) or zeros.shape != (n_groups, n_out // 8):
        return None
    if zeros.dtype != "I32" or scales.dtype not in ("F16", "BF16", "F32"):
        return None
    parts = (tensor, zeros, scales)
    return f"{stem}.weight", (n_out, n_in), Recipe("awq", parts, (n_in // n_groups,)), {p.name for p in parts}
