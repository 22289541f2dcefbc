"""From documents to a stream of tokens: bytes, or a model's own tokenizer.

The tokenizer is read from a folder, never with code of the folder's own. Between documents stands its end-of-text token
where it has one.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wisca_core.comparison.paper import SETUPS
from wisca_core.comparison.spec import Spec
from wisca_core.equivalence import tokenizer
from wisca_core.errors import SpecError
from wisca_core.untrusted import named_path

DOCUMENT = 256  # the byte stream's token before every document; bytes are 0..255
N_TOKENS = 257
# A document is encoded in pieces: a tokenizer's own memory grows with the text it is given at once.
PIECE = 200_000


def byte_stream(texts: Sequence[bytes]) -> np.ndarray:
    """(n,) int16: every document behind DOCUMENT."""
    parts = [part for text in texts for part in (np.array([DOCUMENT], np.int16), np.frombuffer(text, np.uint8))]
    return np.concatenate(parts).astype(np.int16) if parts else np.zeros(0, np.int16)


def token_stream(texts: Sequence[bytes], tokenizer) -> np.ndarray:
    """(n,) int32: every document behind the end-of-text token, where there is one. Bytes that are no UTF-8 become
    U+FFFD.
    """
    end = next((i for i in (tokenizer.eos_token_id, tokenizer.bos_token_id) if i is not None), None)
    parts: list[np.ndarray] = []
    for text in texts:
        if end is not None:
            parts.append(np.array([end], np.int32))
        pieces = list(_pieces(text.decode("utf-8", "replace")))
        if pieces:
            encoded = tokenizer(pieces, add_special_tokens=False, return_attention_mask=False, verbose=False)[
                "input_ids"
            ]
            parts += [np.array(ids, np.int32) for ids in encoded]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def _pieces(text: str):
    """Cut behind a line where there is one."""
    while len(text) > PIECE:
        at = text.rfind("\n", PIECE // 2, PIECE) + 1 or PIECE
        yield text[:at]
        text = text[at:]
    if text:
        yield text


def tokenizer_folder(spec: Spec) -> Path:
    """Where the tokenizer lies. Raises SpecError."""
    folder = spec.data.tokenizer or (spec.model.path if spec.model.source != "decoder" else "")
    if not folder:
        paper = SETUPS[spec.model.setup] if spec.model.source == "paper" else None
        raise SpecError(
            "data.tokenizer",
            "",
            "a folder with a tokenizer (tokenizer.json), because data.tokens is tokenizer"
            + (f"; that of {paper.hub_id} is published with the model" if paper else ""),
        )
    path = named_path(folder)
    return path if path.is_dir() else path.parent


def tokenizer_of(spec: Spec):
    """transformers' tokenizer of the folder. Raises SpecError, UnreadableInput."""
    folder = tokenizer_folder(spec)
    if not tokenizer.has_tokenizer(folder):
        field = "data.tokenizer" if spec.data.tokenizer else "data.tokens"
        raise SpecError(
            field,
            spec.data.tokenizer or "tokenizer",
            f"a folder with one of {', '.join(tokenizer.FILES)}; {folder} has none. "
            'Name one under data.tokenizer, or use tokens = "bytes"',
        )
    return tokenizer.tokenizer_of(folder)
