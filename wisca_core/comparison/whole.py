"""A comparison from its spec to its report, in one call."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wisca_core.comparison import folder
from wisca_core.comparison.presets import PRESETS
from wisca_core.comparison.spec import Spec
from wisca_core.comparison.spec_reading import load_spec, spec_from
from wisca_core.errors import BadOption
from wisca_core.progress import Progress, silent

if TYPE_CHECKING:
    from wisca_core.comparison.report import Report


def compare(
    spec: Spec | Mapping | str | os.PathLike | None,
    out: str | os.PathLike,
    *,
    workers: int | None = None,
    executor: str = "auto",
    progress: Progress = silent,
) -> "Report":
    """Train the arms of ``spec`` on the same seeds in the new folder ``out``, and what their differences allow one to
    say.

    ``spec``: the name of a preset ("default", "dose", "lora", ...), the path of a spec (TOML or JSON), its fields, or
    None to go on with the comparison in ``out``. ``workers``: processes side by side, one a core or a GPU. Losses of
    the report are nats a token or byte, as it says; ``report.sentence`` reads it in words. Raises SpecError, BadOption,
    UnreadableInput, OutputRefused, UnequalStart, Cancelled (everything is then kept, and None goes on).

    >>> import wisca_core as wisca
    >>> wisca.compare("deafult", "here")
    Traceback (most recent call last):
    wisca_core.errors.BadOption: spec: 'deafult' is neither a file nor a preset; the presets are default, dose, thorough, lora, tinyllama, qwen2, qwen15_moe.
    """  # noqa: E501
    from wisca_core.comparison.data import check_text
    from wisca_core.comparison.executor import run
    from wisca_core.comparison.reporting import write_report

    place = Path(out)
    if spec is not None:
        chosen = _spec(spec)
        check_text(chosen)
        place = folder.create(place, chosen)
    return write_report(run(place, workers, progress, executor))


def _spec(given: Spec | Mapping | str | os.PathLike) -> Spec:
    if isinstance(given, Spec):
        return given
    if isinstance(given, Mapping):
        return spec_from(dict(given))
    if str(given) in PRESETS:
        return PRESETS[str(given)]
    if not Path(given).exists():
        raise BadOption(f"spec: {str(given)!r} is neither a file nor a preset; the presets are {', '.join(PRESETS)}.")
    return load_spec(Path(given))
