"""A text column of a data set of the Hugging Face hub, through its own library, if that is installed.

Rows are read as a stream up to ``max_bytes``; nothing of a data set is ever executed.
"""

import re
from pathlib import Path

from wisca_core.comparison.spec import MOST_BYTES, DataSpec
from wisca_core.errors import HubError, SpecError

_PATH = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def hub_documents(data: DataSpec) -> list[tuple[str, bytes]]:
    """(row name, text) of every row. Raises SpecError, HubError."""
    match = _PATH.fullmatch(data.path)
    if not match or ".." in data.path:
        raise SpecError("data.path", data.path, "hub:owner/name or hub:owner/name@revision")
    try:
        import datasets
    except ImportError:
        raise SpecError(
            "data.source",
            "hub",
            "bundled, text or jsonl on this machine: reading data sets of the hub needs the library "
            "datasets, which is not installed (pip install datasets)",
        ) from None
    name, revision = match.groups()
    if Path(name).exists():  # the library would take it for the data set
        raise SpecError(
            "data.path",
            data.path,
            f"a data set of the hub; there is a {name} in the current folder, which would be read instead. "
            "Start from another folder, or name the file itself with source = text or jsonl",
        )
    most = data.max_bytes or MOST_BYTES
    # from version 4 on the library has no code of data sets to run and refuses the argument
    never = {} if int(datasets.__version__.split(".")[0]) >= 4 else {"trust_remote_code": False}
    out: list[tuple[str, bytes]] = []
    size = 0
    try:
        rows = datasets.load_dataset(
            name, data.subset or None, split=data.split, revision=revision, streaming=True, **never
        )
        for i, row in enumerate(rows):
            text = row.get(data.column)
            if not isinstance(text, str):
                raise SpecError(
                    "data.column",
                    data.column,
                    f"a column of text; row {i} of {data.path} has {', '.join(map(str, row))[:200]}",
                )
            out.append((f"row:{i}", text.encode("utf-8", "surrogatepass")))
            size += len(out[-1][1])
            if size >= most:
                break
    except SpecError:
        raise
    except Exception as error:  # the library raises whatever the network, the hub or a file makes of it
        raise HubError(
            f"data.path: {data.path} ({data.split}) cannot be read: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    if size >= MOST_BYTES and not data.max_bytes:
        raise SpecError(
            "data.max_bytes", 0, f"a number: {data.path} has more than the {MOST_BYTES:,} bytes that are held in memory"
        )
    return out
