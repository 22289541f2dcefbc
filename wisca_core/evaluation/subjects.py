"""A model opened to be run: transformers' own class in its stored dtype, and what turns text into its tokens.

Not covered: encoders and encoder-decoders (no perplexity of a text is defined for them here), adapters without their
base, code of the person's own.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wisca_core.checkpoint import TORCH_DTYPES, Checkpoint, open_checkpoint
from wisca_core.comparison.tokens import N_TOKENS
from wisca_core.equivalence.loadable import loadable
from wisca_core.equivalence.miniature import model_class, quiet
from wisca_core.equivalence.model_config import config_object
from wisca_core.equivalence.tokenizer import FILES, has_tokenizer, tokenizer_of
from wisca_core.errors import BadOption, ConfigMismatch, DeviceMissing, UnreadableInput, UnsupportedCheckpoint
from wisca_core.exporting.preview import REPORT
from wisca_core.storage import read_json, workplace
from wisca_core.untrusted import locate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
GENERATION_CONFIG = "generation_config.json"
LONGEST = 1024  # tokens of a window where nothing else was asked; published figures use 1024 or 2048


@dataclass(frozen=True, eq=False)
class Subject:
    """``tokens``: "tokenizer" or "bytes". ``context``: the most positions the config names, None where it names none.
    ``path``: what was opened, a folder or the one file of it that was named. ``attention``: the implementation it runs
    with; ``stored``: the dtype of its largest tensor in the file; ``source``: what the person wrote. ``report``: its
    wisca_report.json where it is an export, else None.
    """

    name: str
    path: Path
    model: Any
    tokenizer: Any
    tokens: str
    context: int | None
    attention: str
    stored: str
    source: str
    report: dict | None

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def vocabulary(self) -> int:
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def device(self) -> torch.device:
        return self.model.device

    def facts(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "path": str(self.path),
            "class": type(self.model).__name__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "tokens": self.tokens,
            "vocabulary": self.vocabulary,
            "context": self.context,
            "stored": self.stored,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.device),
            "attention": self.attention,
        }


def checkpoint_of(model: Any) -> Checkpoint:
    """``model``: what ``open_checkpoint`` takes, a Checkpoint, or anything with one as ``checkpoint``. Raises
    WiscaError.
    """
    found = getattr(model, "checkpoint", model)
    found = found if isinstance(found, Checkpoint) else open_checkpoint(found)
    if found.adapter_json:
        raise UnsupportedCheckpoint(
            f"{found.path} is a LoRA adapter, not a model. Merge it into its base (merge_and_unload) and evaluate that "
            "folder."
        )
    found.check_rescalable()
    return found


def open_subject(model: Any, device: str = "auto", dtype: str = "", name: str = "") -> Subject:
    """Load a causal language model. ``dtype``: "" for the stored one, on a CPU float32 where that has 16 bits (the
    weights are the same, and CPUs are slow at 16 bits).

    Raises UnsupportedCheckpoint for another kind of model, ConfigMismatch where its weights do not load,
    UnreadableInput where nothing turns text into its tokens, DeviceMissing.
    """
    checkpoint = checkpoint_of(model)
    cls = model_class(checkpoint.config)
    config = config_object(checkpoint.config)
    if not cls.can_generate() or getattr(config, "is_encoder_decoder", False):
        kind = "an encoder-decoder" if getattr(config, "is_encoder_decoder", False) else "no causal language model"
        raise UnsupportedCheckpoint(
            f"{checkpoint.path} is a {cls.__name__}, {kind}: it does not give the next token of a text, so there is no "
            "perplexity and no choice among answers. Give a decoder (a ...ForCausalLM)."
        )
    place = device_of(device)
    loaded, attention = _load(checkpoint, cls, config, _dtype(checkpoint, dtype, place))
    loaded = loaded.to(place).eval()
    tokenizer, tokens = _tokenizer(checkpoint, loaded)
    return Subject(
        name or _short(checkpoint),
        checkpoint.place,
        loaded,
        tokenizer,
        tokens,
        _context(config),
        attention,
        str(_stored_dtype(checkpoint)).removeprefix("torch."),
        checkpoint.source,
        _report(checkpoint),
    )


def device_of(asked: str) -> torch.device:
    """Raises DeviceMissing, BadOption."""
    if asked in ("", "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise BadOption(f"device: {asked[:40]!r} was given; allowed are auto, cpu, cuda and cuda:N.") from error
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise DeviceMissing(f"device {asked} is not on this machine. Choose cpu or auto.")
    return device


def _short(checkpoint: Checkpoint) -> str:
    """The folder's name, with that of the folder above where it alone says little ("checkpoint-600", "model"), and with
    that of the file where one was named.
    """
    path = checkpoint.path
    if checkpoint.place != path:
        return f"{path.name}/{checkpoint.place.name}"
    return (
        f"{path.parent.name}/{path.name}" if path.name.startswith("checkpoint") or path.name == "model" else path.name
    )


def _dtype(checkpoint: Checkpoint, asked: str, device: torch.device) -> torch.dtype:
    if asked:
        if asked not in DTYPES:
            raise BadOption(f"dtype: {asked[:40]!r} was given; allowed are {', '.join(DTYPES)}.")
        return DTYPES[asked]
    stored = _stored_dtype(checkpoint)
    return torch.float32 if device.type == "cpu" and stored.itemsize < 4 else stored


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    return TORCH_DTYPES.get(max(checkpoint.tensors, key=lambda tensor: tensor.n_bytes).dtype, torch.float32)


def _load(checkpoint: Checkpoint, cls, config, dtype: torch.dtype):
    with workplace(str(checkpoint.path)) as place:  # one file of several, or one under another name, is what was opened
        folder = loadable(checkpoint, place / "model")
        if os.path.lexists(checkpoint.path / GENERATION_CONFIG):
            os.symlink(locate(checkpoint.path, GENERATION_CONFIG), folder / GENERATION_CONFIG)
        return _load_from(folder, checkpoint, cls, config, dtype)


def _load_from(folder: Path, checkpoint: Checkpoint, cls, config, dtype: torch.dtype):
    for one in ("sdpa", "eager"):
        try:
            with quiet(), torch.random.fork_rng(devices=[]):
                model, info = cls.from_pretrained(
                    folder,
                    config=config,
                    dtype=dtype,
                    attn_implementation=one,
                    local_files_only=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                )
            break
        except Exception as error:  # whatever a class of any release raises
            # another attention rounds otherwise, so it is taken only where the class says that it lacks this one
            if one == "eager" or not isinstance(error, (ValueError, ImportError)) or "attention" not in str(error):
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                raise ConfigMismatch(f"{checkpoint.path} does not load as {cls.__name__}; {why}") from error
    wrong = sorted(info.get("missing_keys", ())) + [str(key[0]) for key in info.get("mismatched_keys", ())]
    if wrong:
        raise ConfigMismatch(
            f"{checkpoint.path} lacks {len(wrong)} tensors of a {cls.__name__} or has them in another shape: "
            f"{', '.join(wrong[:4])}. Evaluated as it is, random numbers would stand in their place."
        )
    return model, one


def _context(config) -> int | None:
    config = config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length"):
        found = getattr(config, key, None)
        if isinstance(found, int) and found > 0:
            return found
    return None


def _tokenizer(checkpoint: Checkpoint, model) -> tuple[Any, str]:
    size = model.get_input_embeddings().weight.shape[0]
    if not has_tokenizer(checkpoint.path):
        if size in (N_TOKENS, N_TOKENS + 1):  # what comparisons train on bytes: 256 bytes, a mark, perhaps padding
            return byte_tokenizer(), "bytes"
        raise UnreadableInput(
            f"{checkpoint.path} has no tokenizer ({', '.join(FILES)}), and its vocabulary of {size:,} is not that of "
            "bytes. Copy the tokenizer's files into the folder."
        )
    return tokenizer_of(checkpoint.path), "tokenizer"


def byte_tokenizer():
    """id = byte value, 256 the mark before a document: the tokens comparisons train on, as a tokenizer of
    transformers.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # ByteLevel shows printable bytes as themselves and the others from U+0100 on
    shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b]
    hidden = [b for b in range(256) if b not in shown]
    vocabulary = {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|document|>", special=True)])
    mark = {name: "<|document|>" for name in ("bos_token", "eos_token", "pad_token")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **mark)


def same_tokens(one: Subject, other: Subject) -> bool:
    """Whether both turn every text into the same ids: the same vocabulary and the same way, as their files say."""
    if one.tokens != other.tokens:
        return False
    if one.tokens == "bytes":
        return True
    return _as_text(one.tokenizer) == _as_text(other.tokenizer)


def _as_text(tokenizer) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return backend.to_str()
    return json.dumps(tokenizer.get_vocab(), sort_keys=True)


def _report(checkpoint: Checkpoint) -> dict | None:
    """That of the export these weights are; None for a file that only lies beside one."""
    if not os.path.lexists(checkpoint.path / REPORT):
        return None
    try:
        report = read_json(checkpoint.path / REPORT, "wisca-report", 1)
        written = {target for _, target in report["files"]["rewritten"]}
    except (UnreadableInput, KeyError, TypeError, ValueError):
        return None
    return report if written.issuperset(checkpoint.weight_files) else None
