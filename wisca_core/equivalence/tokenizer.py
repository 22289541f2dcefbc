"""The tokenizer of a model folder: transformers' own, tried first in a process that may die, because a stranger's
tokenizer.json may abort, panic, take all memory or never end, in compiled code that hears no Ctrl-C.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path

from wisca_core import apart
from wisca_core.errors import UnreadableInput
from wisca_core.untrusted import printable

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
# The largest vocabularies (a quarter of a million words) take some seconds and several hundred MB.
CPU_SECONDS, MEMORY_BYTES = 20.0, 2_000_000_000
_TRIED_CHARACTERS = 16_000


def has_tokenizer(folder: Path) -> bool:
    """Whether one of ``FILES`` lies there."""
    return any((folder / name).is_file() for name in FILES)


def tokenizer_of(folder: Path):
    """transformers' tokenizer of a folder, which turned a text of some pages into ids in the process apart before.

    Raises UnreadableInput.
    """
    from wisca_core.equivalence.miniature import quiet

    _try(folder, _stamp(folder))
    try:
        with quiet():
            return _open(folder)
    except Exception as error:  # whatever a folder holds that is no tokenizer
        raise UnreadableInput(f"the tokenizer in {printable(folder)} cannot be loaded: {_words(error)}") from error


def text_ids(folder: Path, n: int) -> list[int]:
    """The first ``n`` token ids (or fewer) of Python's documentation, by the folder's tokenizer in the process apart.

    Raises UnreadableInput.
    """
    _stamp(folder)
    with closing(_apart(folder, n)) as found:
        return json.loads(b"".join(found))


@lru_cache(maxsize=16)
def _try(folder: Path, _: tuple) -> None:
    with closing(_apart(folder, 1)) as found:
        b"".join(found)


def _apart(folder: Path, n: int) -> Iterator[bytes]:
    what = f"the tokenizer in {printable(folder)}"
    limits = {"cpu_seconds": CPU_SECONDS, "memory_bytes": MEMORY_BYTES}
    return apart.pieces(f"{__name__}:ids", [str(Path(folder).resolve()), n], what, **limits)


def _stamp(folder: Path) -> tuple:
    """What changes with the folder's text files. UnreadableInput where one is a pipe or a device: opening it may
    wait.
    """
    out = []
    for path in sorted(Path(folder).glob("*.*")):
        if path.suffix in (".json", ".txt", ".model", ".jinja") and path.exists():
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):
                raise UnreadableInput(f"{printable(path)}: not a regular file; the tokenizer beside it was not opened.")
            out.append((path.name, found.st_size, found.st_mtime_ns))
    return tuple(out)


def _open(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {printable(' '.join(str(error).split()), 300)}"


# --- in the process apart ---------------------------------------------------------------------------------------------


def ready() -> None:
    """What may take its time: the imports."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401


def ids(argument: list) -> Iterator[bytes]:
    """[folder, n] -> the first ids as a JSON list."""
    from pydoc_data.topics import topics  # in every Python installation

    folder, n = argument
    text = "\n\n".join(topics[name] for name in sorted(topics))[: max(16 * n, _TRIED_CHARACTERS)]
    try:
        found = _open(Path(folder))(text, add_special_tokens=False)["input_ids"]
        answer = json.dumps([int(i) for i in found[:n]])
    except MemoryError:
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        raise UnreadableInput(f"the tokenizer in {printable(folder)} cannot be used: {_words(error)}") from None
    yield answer.encode()
