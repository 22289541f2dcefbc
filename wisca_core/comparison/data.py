"""The text of a comparison as a stream of tokens: bundled, one text file, a column of a JSONL file or of a hub data
set.

torch is imported inside functions: whoever starts a comparison only needs to know that its data is there.

What is held out for validation is decided by the documents' names alone, so every run on the same corpus has the same
split. The sha256 of the corpus is recorded and checked: results on different corpora are never pooled.
"""

import hashlib
import io
import json
import os
import platform
import shutil
import stat
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wisca_core.comparison.hub_text import hub_documents
from wisca_core.comparison.spec import MOST_BYTES, DataSpec, Spec
from wisca_core.comparison.tokens import byte_stream, token_stream, tokenizer_of
from wisca_core.errors import SpecError, UnreadableInput
from wisca_core.untrusted import named_path, open_named, read_regular

HELD_OUT_ONE_IN = 20

# Parts of the standard library whose text is not prose or code one would learn from, or that differs by packager.
LEFT_OUT = {"pydoc_data", "encodings", "idlelib", "lib2to3", "turtledemo", "test", "tests", "site-packages"}
# Enough for these models and read in half a second; the topics of the documentation come first, then sources by name.
BUNDLED_BYTES = 6_000_000
# A first row longer than this is judged when the text is read.
FIRST_ROW_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class Corpus:
    """``train``, ``validation``: (n_tokens,) integer arrays. ``facts``: plain values for the record: "sha256" of the
    documents and, where a tokenizer is used, of what it made of them; "bytes_per_token" of the held-out text.
    """

    train: np.ndarray
    validation: np.ndarray
    facts: dict


def check_text(spec: Spec) -> None:
    """What can be said of a file before a comparison is made for it, without reading it through: that it is there, a
    file, large enough for one batch, and that the first row of a JSONL file has the column. Raises UnreadableInput.
    """
    data = spec.data
    if data.source not in ("text", "jsonl"):
        return
    file, size = _file(data.path)
    if data.source == "jsonl":
        try:
            with io.BufferedReader(open_named(file)) as lines:
                read = iter(lambda: lines.readline(FIRST_ROW_BYTES), b"")
                i, first = next(((i, line) for i, line in enumerate(read) if line.strip()), (0, b""))
        except OSError as error:
            raise _cannot_be_read(file, error) from error
        if first and len(first) < FIRST_ROW_BYTES:
            _row_text(data, first, i)
    # One token a byte is the most there can be, and one stands before each document. Of one text a twentieth is held
    # out; which rows of a JSONL file are depends on their numbers, so only room for both parts is asked of it.
    window = data.context + 1
    batch_bytes = spec.batch_size * window - 1
    least = (
        max(20 * data.context, batch_bytes + (batch_bytes - 1) // 19) if data.source == "text" else batch_bytes + window
    )
    has = min(size, data.max_bytes or size)
    if has < least:
        raise UnreadableInput(
            f"data.path: {str(file)!r} has {has:,} bytes; one batch of {spec.batch_size} and a held-out window of "
            f"{window:,} tokens take at least "
            f"{least:,}. Give more text, or a smaller context or batch_size."
        )


def load_corpus(spec: Spec) -> Corpus:
    """Raises UnreadableInput (HubError), and SpecError where the text is too short for one batch."""
    documents = _DOCUMENTS[spec.data.source](spec.data)
    held = [_is_held_out(name) for name, _ in documents]
    if documents and (len(documents) < 2 * HELD_OUT_ONE_IN or not any(held) or all(held)):
        documents, held = _cut(documents)
    digest = hashlib.sha256()
    for name, text in documents:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + text + b"\0")
    learned = [text for (_, text), out in zip(documents, held) if not out]
    kept = [text for (_, text), out in zip(documents, held) if out]
    if spec.data.tokens == "bytes":
        train, validation = byte_stream(learned), byte_stream(kept)
    else:
        tokenizer = tokenizer_of(spec)
        train, validation = token_stream(learned, tokenizer), token_stream(kept, tokenizer)
        digest.update(train.tobytes() + validation.tobytes())  # another tokenizer makes another text of it
    facts = {
        "source": spec.data.source,
        "path": spec.data.path,
        "sha256": digest.hexdigest(),
        "n_documents": len(documents),
        "n_train_tokens": len(train),
        "n_validation_tokens": len(validation),
        "tokens": spec.data.tokens,
        "bytes_per_token": sum(map(len, kept)) / len(validation)
        if spec.data.tokens != "bytes" and len(validation)
        else 1.0,
        "largest_token": int(max(train.max(initial=0), validation.max(initial=0))),
        "python": platform.python_version(),
    }
    needed = spec.data.context + 1
    for what, stream, least in (("training", train, spec.batch_size * needed), ("validation", validation, needed)):
        if len(stream) < least:
            raise SpecError(
                "data",
                f"{len(stream):,} tokens of {what} text",
                f"at least {least:,}, one {'batch' if what == 'training' else 'window'} of {needed:,} tokens a "
                f"sequence; give more text, "
                "or a smaller context or batch_size",
            )
    return Corpus(train, validation, facts)


def keep_corpus(corpus: Corpus, spec: Spec, folder: Path) -> None:
    """Where reading the text takes long (a tokenizer, the hub), keep its tokens as ``folder/corpus``, by rename: the
    processes that train then map them into memory together.
    """
    if spec.data.tokens == "bytes" and spec.data.source != "hub":
        return
    final = folder / "corpus"
    if final.exists():
        return
    part = folder / f".corpus-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    np.save(part / "train.npy", corpus.train)
    np.save(part / "validation.npy", corpus.validation)
    (part / "facts.json").write_text(json.dumps(corpus.facts), encoding="utf-8")
    os.replace(part, final)


def kept_corpus(spec: Spec, folder: Path) -> Corpus:
    """What ``keep_corpus`` kept, mapped into memory; else the text read anew. Raises UnreadableInput, SpecError."""
    place = folder / "corpus"
    if not (place / "facts.json").is_file():
        return load_corpus(spec)
    try:
        facts = json.loads(read_regular(place / "facts.json", 1 << 20))
        train, validation = (
            np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("train", "validation")
        )
    except (OSError, ValueError) as error:
        raise UnreadableInput(f"{place} is damaged: {error}. Remove it; the text is then read anew.") from error
    return Corpus(train, validation, facts)


def batch(stream: np.ndarray, seed: int, step: int, batch_size: int, context: int):
    """(batch_size, context + 1) int64 tensor; seed and step alone decide it, so every arm sees the same and a resumed
    run goes on.
    """
    import torch

    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(stream) - context, (batch_size,), generator=generator)
    return _rows(stream, starts.tolist(), context)


def windows(stream: np.ndarray, n: int, context: int):
    """(n, context + 1) int64 tensor: windows spread evenly over the stream, the same for every cell."""
    last = len(stream) - context - 1
    return _rows(stream, [i * last // max(1, n - 1) for i in range(n)], context)


def _rows(stream: np.ndarray, starts: list[int], context: int):
    import torch

    return torch.from_numpy(np.stack([stream[s : s + context + 1] for s in starts]).astype(np.int64))


def _is_held_out(name: str) -> bool:
    return int(hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def _cut(documents: list[tuple[str, bytes]]) -> tuple[list[tuple[str, bytes]], list[bool]]:
    """Few documents: the last twentieth of the whole text is held out."""
    text = b"\n".join(text for _, text in documents)
    at = len(text) - len(text) // HELD_OUT_ONE_IN
    return [("train", text[:at]), ("validation", text[at:])], [False, True]


def bundled_held_out() -> list[tuple[str, bytes]]:
    """(name, text) of the bundled documents that no comparison on them, and not the bundled decoder, was trained on."""
    return [(name, text) for name, text in _bundled_documents(DataSpec()) if _is_held_out(name)]


def _bundled_documents(data: DataSpec) -> list[tuple[str, bytes]]:
    import sys
    from pydoc_data import topics

    most = min(data.max_bytes or BUNDLED_BYTES, BUNDLED_BYTES)
    found, size = [], 0
    for name in sorted(topics.topics):
        text = topics.topics[name].encode()
        if size + len(text) > most:
            return found
        size += len(text)
        found.append((f"topic:{name}", text))
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py"), key=lambda file: file.relative_to(root).as_posix()):
        path = file.relative_to(root)
        module = path.parts[0].removesuffix(".py")
        if module not in sys.stdlib_module_names or LEFT_OUT & set(path.parts) or "_sysconfigdata" in path.name:
            continue
        text = file.read_bytes().replace(b"\r\n", b"\n")
        if size + len(text) > most:
            break
        size += len(text)
        found.append((f"source:{path.as_posix()}", text))
    return found


def _text(data: DataSpec) -> list[tuple[str, bytes]]:
    text = _read(data.path)
    return [("text", text[: data.max_bytes] if data.max_bytes else text)]


def _jsonl(data: DataSpec) -> list[tuple[str, bytes]]:
    out, size = [], 0
    for i, line in enumerate(_read(data.path).split(b"\n")):
        if not line.strip():
            continue
        if data.max_bytes and size >= data.max_bytes:
            break
        out.append((f"row:{i}", _row_text(data, line, i)))
        size += len(out[-1][1])
    return out


def _row_text(data: DataSpec, line: bytes, i: int) -> bytes:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UnreadableInput(f"{data.path}, line {i + 1}: not JSON ({error}); expected one object a line.") from error
    value = row.get(data.column) if isinstance(row, dict) else None
    if not isinstance(value, str):
        has = ", ".join(map(str, list(row)[:8])) if isinstance(row, dict) else "no object"
        raise UnreadableInput(
            f"{data.path}, line {i + 1}: no text under {data.column!r}; the line has {has[:200]}. Set data.column."
        )
    return value.encode("utf-8", "surrogatepass")


def _read(path: str) -> bytes:
    return read_regular(_file(path)[0], MOST_BYTES)


def _file(path: str) -> tuple[Path, int]:
    """The regular file at ``path`` and its size in bytes. Raises UnreadableInput."""
    file = named_path(path)
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnreadableInput(
            f"data.path: {str(file)!r} does not exist. Give the path of a file on this machine."
        ) from error
    except OSError as error:
        raise _cannot_be_read(file, error) from error
    if not stat.S_ISREG(found.st_mode):
        what = "is a folder" if stat.S_ISDIR(found.st_mode) else "is not a regular file"
        raise UnreadableInput(f"data.path: {str(file)!r} {what}. Give the path of a file with text.")
    if not os.access(file, os.R_OK):
        raise UnreadableInput(f"data.path: {str(file)!r} cannot be read: permission denied.")
    if found.st_size > MOST_BYTES:
        raise UnreadableInput(
            f"data.path: {str(file)!r} has {found.st_size:,} bytes; at most {MOST_BYTES:,} are held in memory."
        )
    return file, found.st_size


def _cannot_be_read(file: Path, error: OSError) -> UnreadableInput:
    return UnreadableInput(f"data.path: {str(file)!r} cannot be read: {(error.strerror or str(error)).lower()}.")


_DOCUMENTS = {"bundled": _bundled_documents, "text": _text, "jsonl": _jsonl, "hub": hub_documents}
