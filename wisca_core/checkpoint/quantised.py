"""Is a checkpoint quantised, and how: its stored values are then not the weights, and are not rescaled.

Where the format is simple and its scales are there, the weights can be looked at: ``quantised_view`` gives the
checkpoint with every quantised matrix under its own name, made from the stored parts as it is read. Named only: AWQ
other than its "gemm" layout, GPTQ of 3 bits, packed integers with zero points, NVFP4, and expert matrices of MXFP4
(beside which the attention of such a model is plain and is looked at).
"""

from dataclasses import replace

from wisca_core.checkpoint.checkpoint import Checkpoint, Recipe, TensorInfo
from wisca_core.checkpoint.reader import Reader
from wisca_core.errors import UnreadableInput
from wisca_core.untrusted import parse_json_object

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
_EXPERTS = ("_blocks", "_scales")  # last parts of MXFP4's names
_DTYPES = {"F4": "4-bit floats", "F6_E2M3": "6-bit floats", "F6_E3M2": "6-bit floats"}


def quantisation(checkpoint: Checkpoint) -> str | None:
    """What quantised the weights, in words with where it was seen; None where they are plain numbers, or read as
    such.
    """
    if checkpoint.look_only:
        return None
    config = checkpoint.config
    if stated := _quantization_config(config):
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


def _quantization_config(config: dict) -> dict:
    """quantization_config, of the model or of its language part; empty where there is none."""
    inner = config.get("text_config")
    for holder in (config, inner if isinstance(inner, dict) else {}):
        stated = holder.get("quantization_config") or holder.get("compression_config")
        if isinstance(stated, dict):
            return stated
    return {}


def quantised_view(checkpoint: Checkpoint) -> Checkpoint:
    """The same with its quantised matrices under their own names, to be looked at, never rescaled; unchanged where it
    is not quantised or not every matrix has a known recipe.
    """
    words = quantisation(checkpoint)
    if words is None or checkpoint.adapter_json:
        return checkpoint
    stated = _quantization_config(checkpoint.config)
    made: dict[str, Recipe] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    used: set[str] = set()
    small = _small_parts(checkpoint)
    for tensor in checkpoint.tensors:
        found = _recipe(tensor, checkpoint, stated, small)
        if found is None:
            continue
        name, shape, recipe, names = found
        made[name], shapes[name] = recipe, shape
        used |= names
    left = [t for t in checkpoint.tensors if t.name not in used]
    experts = [t for t in left if t.name.endswith(_EXPERTS)]
    if not (made or experts) or any(_is_quantised(t) for t in left if t not in experts):
        return checkpoint
    view = [
        TensorInfo(
            name,
            "F32",
            shapes[name],
            recipe.parts[0].file,
            recipe.parts[0].offset,
            4 * shapes[name][0] * shapes[name][1],
        )
        for name, recipe in made.items()
    ]
    return replace(
        checkpoint,
        tensors=tuple(sorted([*left, *view], key=lambda t: (t.file, t.offset, t.name))),
        recipes=tuple(made.items()),
        stored=checkpoint.tensors,
        look_only=f"the checkpoint is quantised, {words}: "
        + (
            f"its {len(made):,} quantised matrices are measured as their scales unpack them, and are never rescaled. "
            if made
            else ""
        )
        + (
            f"its {len(experts) // 2:,} quantised expert matrices are not unpacked; what is plain beside them is "
            "measured, and never rescaled. "
            if experts
            else ""
        )
        + "Rescale the unquantised model and quantise again.",
    )


def _small_parts(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Bytes of the tensors that describe others: bitsandbytes' states, the shapes of packed matrices."""
    wanted = [
        t.name
        for t in checkpoint.tensors
        if t.n_bytes <= 4096 and (".quant_state.bitsandbytes__" in t.name or t.name.endswith(".weight_shape"))
    ]
    if not wanted:
        return {}
    with Reader(checkpoint) as reader:
        return {name: b"".join(map(bytes, reader.raw(name))) for name in wanted}


def _is_quantised(tensor: TensorInfo) -> bool:
    """A matrix whose stored values are not its weights."""
    last = tensor.name.rsplit(".", 1)[-1]
    packed = last in ("qweight", "weight_packed") or tensor.name.endswith("_blocks")
    return packed or (
        len(tensor.shape) >= 2
        and (tensor.dtype.startswith(("F8", "F4", "F6")) or (last == "weight" and tensor.dtype in ("I8", "U8", "I32")))
    )


def _recipe(
    tensor: TensorInfo, checkpoint: Checkpoint, stated: dict, small: dict[str, bytes]
) -> tuple[str, tuple[int, int], Recipe, set[str]] | None:
    """(name, shape, recipe, names of the stored tensors it takes) of the matrix that ``tensor`` is the main part of."""
    stem, _, last = tensor.name.rpartition(".")
    known = checkpoint.by_name
    method = str(stated.get("quant_method", "")).lower()
    if last == "weight" and tensor.dtype in ("F8_E4M3", "F8_E5M2") and len(tensor.shape) == 2:
        return _with_scale(tensor, stem, checkpoint, stated)
    if (
        last == "weight"
        and tensor.dtype == "I8"
        and len(tensor.shape) == 2
        and (scb := known.get(f"{stem}.SCB"))
        and scb.shape == tensor.shape[:1]
    ):
        layout = known.get(f"{stem}.weight_format")
        parts = (tensor, scb, *((layout,) if layout else ()))
        return tensor.name, tensor.shape, Recipe("int8", parts), {p.name for p in parts}
    if (
        last == "weight"
        and tensor.dtype == "I8"
        and len(tensor.shape) == 2
        and f"{stem}.weight_zero_point" not in known
    ):
        return _with_scale(tensor, stem, checkpoint, stated)
    if last == "weight" and tensor.dtype == "U8":
        return _four_bits(tensor, checkpoint, small)
    if last == "weight_packed" and tensor.dtype == "I32" and len(tensor.shape) == 2:
        return _compressed_tensors(tensor, stem, checkpoint, stated, small)
    if last == "qweight" and tensor.dtype == "I32" and len(tensor.shape) == 2:
        others = [known.get(f"{stem}.{name}") for name in ("qzeros", "scales", "g_idx")]
        if method == "gptq":
            return _gptq(tensor, stem, others, stated)
        if method == "awq":
            return _awq(tensor, stem, others[:2], stated)
    return None


def _with_scale(tensor: TensorInfo, stem: str, checkpoint: Checkpoint, stated: dict):
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
        elif (
            isinstance(block, list)
            and len(block) == 2
            and all(type(n) is int and n > 0 for n in block)
            and scale.shape == (-(-rows // block[0]), -(-columns // block[1]))
        ):
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
    if (
        stated.get("bits", 4) != 4
        or str(stated.get("version", "gemm")).lower() != "gemm"
        or any(one is None for one in others)
    ):
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


def _four_bits(tensor: TensorInfo, checkpoint: Checkpoint, small: dict[str, bytes]):
    known = checkpoint.by_name
    state = next((name for name in small if name.startswith(f"{tensor.name}.quant_state.bitsandbytes__")), "")
    try:
        told = parse_json_object(small[state], state) if state else {}
    except UnreadableInput:
        return None
    shape, block, outer, mean = (told.get(name) for name in ("shape", "blocksize", "nested_blocksize", "nested_offset"))
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(type(n) is int and 0 < n < 2**31 for n in shape)
        or type(block) is not int
        or block < 1
    ):
        return None
    n = shape[0] * shape[1]
    names = ["absmax", "quant_map", *(("nested_absmax", "nested_quant_map") if outer else ())]
    parts = [known.get(f"{tensor.name}.{name}") for name in names]
    if (
        None in parts
        or shape[1] % 2
        or tensor.n_elements != n // 2
        or parts[0].n_elements != -(-n // block)
        or parts[1].shape != (16,)
    ):
        return None
    if not outer and parts[0].dtype != "F32" or parts[1].dtype != "F32":
        return None
    if outer:
        plain = (
            type(outer) is int
            and outer > 0
            and isinstance(mean, (int, float))
            and parts[0].dtype == "U8"
            and parts[2].dtype == parts[3].dtype == "F32"
        )
        if not plain or parts[2].n_elements != -(-parts[0].n_elements // outer) or parts[3].shape != (256,):
            return None
    stored = TensorInfo(tensor.name, "U8", (tensor.n_elements,), tensor.file, tensor.offset, tensor.n_bytes)
    recipe = Recipe("four bits", (stored, *parts), (block, outer or 0, float(mean or 0)))
    return tensor.name, tuple(shape), recipe, {tensor.name, state, *(p.name for p in parts)}


def _compressed_tensors(tensor: TensorInfo, stem: str, checkpoint: Checkpoint, stated: dict, small: dict[str, bytes]):
    known = checkpoint.by_name
    groups = stated.get("config_groups")
    weights = [g.get("weights") for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
    bits = weights[0].get("num_bits") if len(weights) == 1 and isinstance(weights[0], dict) else None
    scale, shape = known.get(f"{stem}.weight_scale"), known.get(f"{stem}.weight_shape")
    if (
        bits not in (4, 8)
        or scale is None
        or shape is None
        or {f"{stem}.weight_zero_point", f"{stem}.weight_g_idx"} & known.keys()
    ):
        return None
    raw = small.get(shape.name, b"")
    size = 8 if shape.dtype == "I64" else 4 if shape.dtype == "I32" else 0
    if shape.shape != (2,) or not size or len(raw) != 2 * size:
        return None
    rows, columns = (int.from_bytes(raw[at : at + size], "little", signed=True) for at in (0, size))
    n_groups = scale.shape[1] if len(scale.shape) == 2 else 0
    if (
        tensor.shape != (rows, -(-columns * bits // 32))
        or columns < 1
        or not n_groups
        or scale.shape[0] != rows
        or columns % n_groups
    ):
        return None
    if scale.dtype not in ("F16", "BF16", "F32"):
        return None
    return (
        f"{stem}.weight",
        (rows, columns),
        Recipe("packed", (tensor, scale), (bits, columns // n_groups)),
        {tensor.name, scale.name, shape.name},
    )
