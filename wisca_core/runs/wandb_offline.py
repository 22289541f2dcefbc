"""W&B's local run files (run-*.wandb, offline or synced): history and configuration; no wandb needed.

The step is what ``define_metric`` says, else a step that the rows name (``train/global_step``), else W&B's own counter.
"""

from wisca_core.runs.json_rows import json_value
from wisca_core.runs.record_log import RecordLog, text
from wisca_core.runs.tabular import RowBuffer


class Wandb(RecordLog):
    """One .wandb file (":W&B", 0xBEE1, version 0), one run."""

    header, expected, record = b":W&B\xe1\xbe\x00", "a run-*.wandb file of version 0", "Record"

    def _begin(self) -> None:
        super()._begin()
        self._table = self._tabular(key=False, own="_step")
        self._rows = RowBuffer(self._table)

    def _take(self, found) -> None:
        if found.HasField("history"):
            self._history(found.history)
        elif found.HasField("metric"):
            metric = found.metric
            pattern, column = text(metric.name or metric.glob_name), text(metric.step_metric)
            if pattern and column:
                self._table.define(pattern, column)
        elif found.HasField("config"):
            self._config(found.config)
        elif found.HasField("run"):
            if found.run.display_name and self._table.run == self.source.run:
                self._table.run = text(found.run.display_name)
            self._config(found.run.config)

    def _config(self, config) -> None:
        settings = {}
        for item in config.update:
            path = _path(item)
            if path and not path[0].startswith("_wandb"):
                settings[".".join(path)] = _value(item)
        self._out.config(self._table.run, settings)

    def _history(self, history) -> None:
        row: dict[str, object] = {}
        for item in history.item:
            path = _path(item)
            if path:
                inner = row
                for part in path[:-1]:
                    below = inner.get(part)
                    if not isinstance(below, dict):
                        below = inner[part] = {}
                    inner = below
                inner[path[-1]] = _value(item)
        if not isinstance(row.get("_step"), (int, float)):
            if not history.HasField("step"):
                self._out.counts["no_step"] += 1
                return
            row["_step"] = history.step.num
        self._rows.add(row)


def _path(item) -> list[str]:
    return [text(item.key)] if item.key else [text(part) for part in item.nested_key]


def _value(item) -> object:
    """The value of an item; what is no JSON stays text."""
    raw = item.value_json or item.json
    if raw:
        return json_value(text(raw))
    for field in ("boolean", "integer", "number"):
        if item.HasField(field):
            return getattr(item, field)
    return text(item.text) if item.HasField("text") else None
