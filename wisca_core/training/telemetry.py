"""wisca.jsonl: one line a rescale, readable in an editor, continued by a resumed run.

The first line is ``{"format": "wisca-telemetry", "version": 1, ...}`` with the choices, the proof's figures and what is
refused. Each further line: step; ratios (site -> norm of the left side over the right one, before); factors (site ->
list); rates (site -> {"left", "right"}: what the learning rates of the start's weights are multiplied by from here on,
which is what the rescales so far amount to under Adam, or, with by="rates", what was done; [smallest, largest] where a
side has several; SGD's is the square); skipped (site -> reason); seconds; check, where the outputs were looked at
(moved and control, relative; what they were of; the bytes of the copy to go back to) or why not (not_checked).

With by="rates" a trainer's own clipping looks at the plain norm of the gradients, by weights at that of rescaled ones;
``Scaler.clip_grad_norm_`` is the same for both.
"""

import json
import math
import os
import statistics
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from wisca_core.errors import OutputRefused
from wisca_core.storage import read_rows
from wisca_core.training.choices import Choices
from wisca_core.training.rescaling import Rescale

FORMAT, VERSION = "wisca-telemetry", 1


class Telemetry:
    """Lines appended to ``path``. ``step``: a run resumed there keeps the lines up to it and drops later ones."""

    def __init__(self, path: Path, choices: Choices, step: int):
        self.path = Path(path)
        rules = {getattr(kind, "__qualname__", kind): dict(rule) for kind, rule in choices.optimizer_rules.items()}
        plain = asdict(replace(choices, sites=(), build=None, forward=None, batch=None))
        own = {"layers": [str(span) for span in choices.layers], "optimizer_rules": rules}
        self._header = plain | own | {"sites": [one.to_json() for one in choices.sites]}
        for name in ("build", "forward", "batch"):
            del self._header[name]
        kept = [row for row in read(self.path) if row["step"] <= step] if step > 0 and self.path.exists() else []
        self._started = False
        self._kept = kept

    def write(self, step: int, done: Rescale, seconds: float, rates: Mapping = {}) -> None:
        row = {
            "step": step,
            "ratios": {n: _number(r) for n, r in done.ratios.items()},
            "factors": {n: list(f) for n, f in done.factors.sites},
            "rates": {
                name: {side: low if low == high else [low, high] for side, (low, high) in zip(("left", "right"), sides)}
                for name, sides in rates.items()
            },
            "skipped": dict(done.skipped),
            "seconds": round(seconds, 6),
        } | ({"check": done.check.to_json()} if done.check else {})
        try:
            if not self._started:
                self._begin(done)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise OutputRefused(f"{self.path} cannot be written: {(error.strerror or str(error)).lower()}.") from error

    def _begin(self, done: Rescale) -> None:
        proof = (
            {}
            if done.proof is None
            else {"rule": done.proof.rule, "max_rel": repr(done.proof.max_rel), "what": done.proof.what}
        )
        header = {
            "format": FORMAT,
            "version": VERSION,
            "choices": self._header,
            "proof": proof,
            "refusals": {r.what: r.reason for r in done.refusals},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".part")
        beside.write_text("".join(json.dumps(line) + "\n" for line in [header, *self._kept]), encoding="utf-8")
        os.replace(beside, self.path)
        self._started = True


def read(path: Path) -> list[dict]:
    """The rows behind the header. Raises UnreadableInput naming the file, also for a newer version."""
    return read_rows(path, FORMAT, VERSION)


def scalars(done: Rescale) -> dict[str, float]:
    """What loggers get: log2 of the ratio of every site, and of each pair's median over the layers; 0 is balance. With
    by="rates" also log2 of what the rate of each site's left side is multiplied by; the right side's is its negative.
    """
    ratios = done.ratios
    out, by_pair = {}, {}
    for name, ratio in ratios.items():
        if ratio > 0 and math.isfinite(ratio):
            out[f"wisca/log2_ratio/{name}"] = math.log2(ratio)
            by_pair.setdefault(name.split(".")[-1], []).append(math.log2(ratio))
    for name, ((left, _), _) in done.rates.items():
        out[f"wisca/log2_rate/{name}"] = math.log2(left)
    return {f"wisca/median_log2_ratio/{pair}": statistics.median(values) for pair, values in by_pair.items()} | out


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)
