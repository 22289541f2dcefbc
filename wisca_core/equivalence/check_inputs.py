"""What the full check feeds a real model: text through the folder's tokenizer, pictures and sound drawn at random, by
the same rules that feed its miniature.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from wisca_core.equivalence.inputs import (
    TOWERS,
    Case,
    Draw,
    has_decoder,
    language_config,
    parameters,
    row_cases,
    sense_cases,
    tower_cases,
)
from wisca_core.equivalence.sizes import ROLES
from wisca_core.equivalence.tokenizer import has_tokenizer, text_ids
from wisca_core.errors import UnreadableInput
from wisca_core.words import join_names

N_TOKENS = 1024
SEQUENCE = 256
TEXT_SOURCE = "Python's documentation through the folder's tokenizer"
# Of an input with one entry a picture or sound along its first axis; a grid counts the pictures of patches in a row.
_COUNTED = {
    "picture": (
        "image_grid_thw",
        "grid_thw",
        "image_grid_hw",
        "pixel_values",
        "pixel_values_videos",
        "flattened_patches",
    ),
    "sound": ("input_features", "input_values"),
}


@dataclass(frozen=True, eq=False)  # holds tensors
class CheckInputs:
    """``source``: where the inputs come from; ``counted``: how many there are, "1,024 tokens and 3 pictures";
    ``n_tokens``: positions of text with an output.
    """

    cases: tuple[Case, ...]
    source: str
    counted: str
    n_tokens: int
    longest: int  # tokens of a row

    @property
    def has_towers(self) -> bool:
        """Whether towers beside the language part are run by themselves."""
        return any(case.method in TOWERS for case in self.cases)


def inputs_for(model, folder: Path) -> CheckInputs:
    """The cases of a loaded model whose tokenizer, if any, lies in ``folder``. UnknownArchitecture where its vocabulary
    is not known; no cases where it takes no input that is known here.
    """
    text: list[Case] = []
    source = ""
    senses = sense_cases(model, 0)
    if "input_ids" in parameters(model) or hasattr(model, "get_text_features"):
        ids, source = token_ids(model, folder)
        text = row_cases(model, ids)
    elif has_decoder(model):
        ids, source = token_ids(model, folder)
        senses = [_with_text(case, ids) for case in senses]
    cases = [*text, *senses, *tower_cases(model, 0)]
    n = {noun: _count(cases, keys) for noun, keys in _COUNTED.items()}
    n_tokens = sum(case.shape.numel() for case in cases if case.shape)
    counted = [f"{n_tokens:,} token{'' if n_tokens == 1 else 's'}"] if n_tokens else []
    counted += [f"{k:,} {noun}{'' if k == 1 else 's'}" for noun, k in n.items() if k]
    drawn = [f"{noun}s" for noun, k in n.items() if k]
    sources = [source] if source else []
    sources += [f"random {join_names(drawn)}"] if drawn else []
    longest = max((case.shape[1] for case in cases if case.shape), default=0)
    return CheckInputs(tuple(cases), "; ".join(sources), join_names(counted), n_tokens, longest)


def _with_text(case: Case, ids: torch.Tensor) -> Case:
    """Sound or pictures with the first of these rows for the decoder."""
    rows = ids[: len(case.inputs["decoder_input_ids"])]
    return replace(case, inputs={**case.inputs, "decoder_input_ids": rows}, shape=rows.shape, mask=None)


def token_ids(model, folder: Path) -> tuple[torch.Tensor, str]:
    """((rows, length) int64, where they come from): the Python documentation through the folder's tokenizer, else
    random ids without a meaning of their own.
    """
    draw = Draw(model, 0)
    positions = _positions(model)
    longest = min(positions, max(SEQUENCE, draw.shortest + 2))
    longest = max(2, longest - 2)  # RoBERTa-like models count positions from pad id + 1
    rows = max(1, N_TOKENS // longest) * draw.streams
    why = "no usable tokenizer in the folder"
    if draw.streams == 1 and has_tokenizer(folder):
        try:
            ids = torch.tensor(text_ids(folder, rows * longest), dtype=torch.int64)
            if len(ids) == rows * longest and int(ids.max()) <= int(draw.allowed.max()):
                return ids.reshape(rows, longest), TEXT_SOURCE
        except UnreadableInput as error:  # it is said, and does not stop the check
            why = str(error).rstrip(".")
    return draw.ids(rows, longest), f"random token ids ({why})"


def _positions(model) -> int:
    """The longest text by the smallest of its config's limits."""
    config = language_config(model).to_dict()
    limits = [v for key, v in config.items() if ROLES.get(key) == "positions" and isinstance(v, int) and v > 0]
    return min(limits, default=1 << 20)


def _count(cases: Iterable[Case], keys: tuple[str, ...]) -> int:
    found = (next((case.inputs[key] for key in keys if key in case.inputs), ()) for case in cases)
    return sum(map(len, found))
