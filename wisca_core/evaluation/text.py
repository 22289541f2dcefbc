"""The text that is evaluated on, as tokens and windows, read as it goes: memory does not grow with its length."""

import hashlib
import io
import platform
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wisca_core.comparison.data import bundled_held_out
from wisca_core.comparison.tokens import PIECE
from wisca_core.errors import BadOption, ConfigMismatch, UnreadableInput
from wisca_core.evaluation.subjects import Subject
from wisca_core.untrusted import named_path, open_named


@dataclass
class Text:
    """One file of text in UTF-8, or ("" as ``path``) the bundled documents that nothing was trained on.

    ``n_bytes``, ``n_tokens``, ``n_documents`` and ``sha256`` are of what was read so far.
    """

    path: str = ""
    n_bytes: int = 0
    n_tokens: int = 0
    n_documents: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.path or "held-out documents of Python's own documentation and library",
            "n_documents": self.n_documents,
            "n_bytes": self.n_bytes,
            "n_tokens": self.n_tokens,
            "sha256": self._digest.hexdigest(),
            "python": "" if self.path else platform.python_version(),
        }

    def size(self) -> int:
        """Bytes in all. Raises UnreadableInput where the file is missing, empty or no regular file."""
        if not self.path:
            return sum(len(text) for _, text in bundled_held_out())
        file = named_path(self.path)
        if not file.is_file():
            raise UnreadableInput(f"text: {str(file)!r} is no file. Give a text file in UTF-8.")
        size = file.stat().st_size
        if not size:
            raise UnreadableInput(f"text: {str(file)!r} is empty. Give a text file in UTF-8.")
        return size

    def tokens(self, subject: Subject) -> Iterator[np.ndarray]:
        """int64 ids, piece by piece, every document behind the mark the model's tokenizer has for it.

        Raises UnreadableInput (nothing to read, no UTF-8), ConfigMismatch (a token the model does not have).
        """
        tokenizer, most = subject.tokenizer, subject.vocabulary
        mark = next((i for i in (tokenizer.eos_token_id, tokenizer.bos_token_id) if i is not None), None)
        for piece, begins in self._pieces():
            if begins:
                self.n_documents += 1
                if mark is not None:
                    yield np.array([mark], np.int64)
            data = piece.encode("utf-8")
            self.n_bytes += len(data)
            self._digest.update(data)
            ids = np.array(
                tokenizer(piece, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"],
                np.int64,
            )
            if len(ids) and int(ids.max()) >= most:
                raise ConfigMismatch(
                    f"the tokenizer of {subject.path} gives token {int(ids.max()):,}, the model has {most:,}: it is "
                    "the "
                    "tokenizer of another model."
                )
            self.n_tokens += len(ids)
            yield ids

    def _pieces(self) -> Iterator[tuple[str, bool]]:
        """(text, whether a document begins with it), cut behind a line where there is one."""
        if not self.path:
            for _, document in bundled_held_out():
                text = document.decode("utf-8", "replace")
                for at in range(0, len(text), PIECE):
                    yield text[at : at + PIECE], at == 0
            return
        self.size()
        begins, kept = True, ""
        try:
            with io.TextIOWrapper(io.BufferedReader(open_named(named_path(self.path))), "utf-8", newline="") as file:
                while part := file.read(PIECE):
                    kept += part
                    at = kept.rfind("\n") + 1 or (len(kept) if len(kept) > 2 * PIECE else 0)
                    if at:
                        yield kept[:at], begins
                        begins, kept = False, kept[at:]
                if kept:
                    yield kept, begins
        except UnicodeDecodeError as error:
            raise UnreadableInput(
                f"text: {self.path!r} is no text in UTF-8 ({error.reason} at byte {error.start})."
            ) from error
        except OSError as error:
            raise UnreadableInput(
                f"text: {self.path!r} cannot be read: {(error.strerror or str(error)).lower()}."
            ) from error


class Tokens:
    """The tokens of a text, made once: what a first reader takes is kept on disk (4 bytes a token) for those after
    it.
    """

    def __init__(self, text: Text, subject: Subject) -> None:
        self._text, self._subject = text, subject
        self._kept = tempfile.TemporaryFile()
        self._is_made = False

    def __iter__(self) -> Iterator[np.ndarray]:
        if not self._is_made:
            self._is_made = True
            for ids in self._text.tokens(self._subject):
                self._kept.write(ids.astype(np.int32).tobytes())
                yield ids
            return
        self._kept.seek(0)
        while data := self._kept.read(4 << 20):
            yield np.frombuffer(data, np.int32).astype(np.int64)

    def close(self) -> None:
        self._kept.close()


@dataclass(frozen=True)
class Windows:
    """``length`` tokens are read to predict one more each; windows start ``stride`` tokens apart, so that every token
    but the first is scored once: by the whole window where it is the first, else by its last ``stride`` places.
    ``stride`` = ``length``: packed, the windows do not overlap (but in the one token that begins each).
    """

    length: int
    stride: int

    def __post_init__(self) -> None:
        if not 1 <= self.length or not 1 <= self.stride <= self.length:
            raise BadOption(
                f"window {self.length} and stride {self.stride} were given; a window has 1 token or more, a stride 1 "
                "to the window."
            )

    def words(self) -> str:
        if self.stride == self.length:
            return f"packed windows of {self.length:,} tokens"
        return f"windows of {self.length:,} tokens, {self.stride:,} apart"

    def cut(self, pieces: Iterable[np.ndarray], name: str) -> Iterator[tuple[np.ndarray, int]]:
        """(ids of ``length`` + 1 tokens, how many of the last are scored). UnreadableInput where one is not filled."""
        kept, is_first = np.zeros(0, np.int64), True
        for ids in pieces:
            kept = np.concatenate([kept, ids])
            while len(kept) > self.length:
                yield kept[: self.length + 1], self.length if is_first else self.stride
                kept, is_first, done = kept[self.stride :], False, kept[: self.stride]
        if is_first:
            found = "is empty" if not len(kept) else f"has {len(kept):,} tokens"
            raise UnreadableInput(
                f"{name} {found}; one window takes {self.length + 1:,}. Give more text, or a smaller window."
            )
        left = len(kept) - (self.length - self.stride) - 1
        if left > 0:  # what is behind the last whole window, read with as much as fits before it
            tail = np.concatenate([done, kept])[-(self.length + 1) :]
            yield tail, left
