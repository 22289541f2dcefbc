"""Tasks that need no network: made here, by a fixed draw, from the held-out documents of the text that comparisons
bundle.

``docs-continuation``: which of four lines of one document comes next. ``docs-order``: the next line, or the same with
its words in another order. The text is that of the installed Python, so the items change with its version, which is
recorded.
"""

import random
from functools import lru_cache

from wisca_core.comparison.data import bundled_held_out

N_ITEMS = {"docs-continuation": 300, "docs-order": 200}
MOST_BEFORE, SHORTEST, LONGEST = 150, 20, 60  # bytes: prompt and answer fit the window of a small model


@lru_cache(maxsize=1)
def _lines() -> tuple[tuple[tuple[str, str], ...], ...]:
    """For every document: (what stands before, a line), of lines of ordinary length."""
    out = []
    for _, data in bundled_held_out():
        lines = data.decode("utf-8", "replace").splitlines()
        found, seen = [], set()
        for i, line in enumerate(lines):
            before = "\n".join(lines[max(0, i - 4) : i])[-MOST_BEFORE:]
            is_plain = SHORTEST <= len(line.encode()) <= LONGEST and len(line.split()) >= 4
            if is_plain and len(before.strip()) >= 40 and line.strip() not in seen:
                found.append((before, line))
            seen.add(line.strip())
        if len(found) >= 8:
            out.append(tuple(found))
    return tuple(out)


@lru_cache(maxsize=4)
def items(name: str) -> tuple[dict, ...]:
    """{question, choices, answer} of every item of the bundled task ``name``, always the same for one text."""
    draw = random.Random(name)
    documents = _lines()
    out: list[dict] = []
    asked: set[tuple[int, int]] = set()
    for _ in range(50 * N_ITEMS[name]):
        if len(out) == N_ITEMS[name]:
            break
        which = draw.randrange(len(documents))
        at = draw.randrange(len(documents[which]))
        before, line = documents[which][at]
        others = _others(name, draw, documents[which], at)
        if (which, at) in asked or others is None:
            continue
        asked.add((which, at))
        choices = [line, *others]
        draw.shuffle(choices)
        out.append({"question": f"{before}\n", "choices": choices, "answer": choices.index(line)})
    return tuple(out)


def _others(name: str, draw: random.Random, lines: tuple[tuple[str, str], ...], at: int) -> list[str] | None:
    line = lines[at][1]
    if name == "docs-order":
        indent, words = line[: len(line) - len(line.lstrip())], line.split()
        turned = words[:]
        draw.shuffle(turned)
        return [indent + " ".join(turned)] if turned != words and " ".join(words) == line.strip() else None
    size = len(line.encode())
    near = [
        other
        for i, (_, other) in enumerate(lines)
        if abs(i - at) > 2 and abs(len(other.encode()) - size) <= max(6, size // 4) and other != line
    ]
    return draw.sample(near, 3) if len(near) >= 3 else None
