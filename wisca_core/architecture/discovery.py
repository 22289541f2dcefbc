"""A rule for a model type that no file has, found by trial and kept: rows made from names and shapes, used from then on
under the name "discovered". Whoever looks hands the trial in.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from wisca_core import verdicts
from wisca_core.architecture.families import Family, families, row
from wisca_core.architecture.find import find_sites
from wisca_core.architecture.site import DEFAULT_PAIRS, Refusal, Sites
from wisca_core.checkpoint import Checkpoint, quantisation
from wisca_core.progress import Progress, silent

NAME = "discovered"


@dataclass(frozen=True)
class Discovery:
    """``fields``: of the row that held, empty where none did; ``words``: what was found, or why nothing was."""

    fields: Mapping[str, object]
    words: str

    @property
    def family(self) -> Family | None:
        return row(NAME, **self.fields) if self.fields else None


Search = Callable[[Checkpoint, Progress], Discovery]


def sites_of(
    checkpoint: Checkpoint,
    pairs: Iterable[str] = DEFAULT_PAIRS,
    progress: Progress = silent,
    search: Search | None = None,
) -> Sites:
    """``find_sites``, and for a model type that no file has the rule found by trial: the kept one, or the one that
    ``search`` finds (``equivalence.trial.discover``: rows are tried under the proof). The result's remarks then say
    "discovered", or the refusal why nothing held.
    """
    found = find_sites(checkpoint, pairs=pairs)
    if not is_unknown(checkpoint):
        return found
    discovery = kept_discovery(checkpoint) or (search(checkpoint, progress) if search else None)
    if discovery is None:
        return found
    if discovery.family is None:
        only = found.refusals[0]
        return replace(found, refusals=(Refusal(only.what, f"{only.reason} {discovery.words}"),))
    sites = find_sites(checkpoint, discovery.family, pairs)
    said = (
        f'Discovered: no file has a rule for model_type "{sites.model_type}"; this one was found by trial and '
        "holds "
        f"on a miniature ({discovery.words})."
    )
    return replace(sites, remarks=(said, *sites.remarks))


def is_unknown(checkpoint: Checkpoint) -> bool:
    """Whether no file has the model type, so that a rule may be looked for."""
    if checkpoint.adapter_json or checkpoint.declared or not checkpoint.config_json or quantisation(checkpoint):
        return False
    model_type = checkpoint.config.get("model_type")
    return isinstance(model_type, str) and bool(model_type) and model_type not in families()


def kept_discovery(checkpoint: Checkpoint) -> Discovery | None:
    """What was found for this structure before, under the installed versions; None where nothing was tried."""
    found = verdicts.kept_verdict("discovery", _key(checkpoint))
    try:
        return None if found is None else Discovery(dict(found["fields"]), str(found["words"]))
    except (KeyError, TypeError, ValueError):
        return None


def keep(checkpoint: Checkpoint, found: Discovery) -> None:
    """Keep what a search ended with."""
    verdicts.keep("discovery", _key(checkpoint), {"fields": dict(found.fields), "words": found.words})


def _key(checkpoint: Checkpoint) -> str:
    return verdicts.digest(checkpoint.config, sorted((tensor.name, tensor.shape) for tensor in checkpoint.tensors))
