"""What the readers of JSON have in common: an object out of a line, and all bytes of a file of bounded size."""

import json

from wisca_core.errors import UnreadableInput
from wisca_core.runs.growing import Growing
from wisca_core.untrusted import printable

MAX_JSON_BYTES = 512 << 20


def json_row(line: bytes | str) -> dict | None:
    """The JSON object in a line, None for anything else."""
    try:
        row = json.loads(line.decode("utf-8", "replace") if isinstance(line, bytes) else line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def json_value(text: str) -> object:
    """What the JSON says; text that is none stays text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def whole_file(file: Growing) -> bytes:
    """All bytes of a file of at most MAX_JSON_BYTES."""
    parts: list[bytes] = []
    size = 0

    def consume(data: bytes, at_end: bool) -> int:
        nonlocal size
        parts.append(bytes(data))
        size += len(data)
        if size > MAX_JSON_BYTES:
            raise UnreadableInput(
                f"{printable(file.path)}: larger than {MAX_JSON_BYTES >> 20} MB, which is the most that is read of a JSON "
                f"file."
            )
        return len(data)

    for _ in file.pieces(consume):
        pass
    return b"".join(parts)
