"""A rule for a model type that no file has, found by trial: rows made from names and shapes, each judged by the proof.

What holds is kept for this structure under WISCA_HOME and used from then on, under the name "discovered".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wisca_core.architecture.candidates import Guess, find_attention, guesses, qk_guesses
from wisca_core.architecture.families import Family, families, row
from wisca_core.architecture.find import find_sites
from wisca_core.architecture.site import DEFAULT_PAIRS, Sites
from wisca_core.checkpoint import Checkpoint, open_checkpoint, quantisation
from wisca_core.equivalence.bench import Bench, judge, open_bench
from wisca_core.errors import Cancelled, ConfigMismatch, ProofFailed, UnknownArchitecture, WiscaError
from wisca_core.progress import Progress, silent
from wisca_core.storage import workplace
from wisca_core.verdicts import digest, keep, recalled

NAME = "discovered"


@dataclass(frozen=True)
class Discovery:
    """``fields``: of the row that held, empty where none did; ``words``: what was found, or why nothing was."""

    fields: Mapping[str, object]
    words: str

    @property
    def family(self) -> Family | None:
        return row(NAME, **self.fields) if self.fields else None


def sites_of(
    checkpoint: Checkpoint, pairs: Iterable[str] = DEFAULT_PAIRS, progress: Progress = silent, search: bool = False
) -> Sites:
    """``find_sites``, and for a model type that no file has the rule found by trial: the kept one, or with ``search`` a
    fresh one. The result's remarks then say "discovered", or the refusal why nothing held.
    """
    found = find_sites(checkpoint, pairs=pairs)
    if not is_unknown(checkpoint):
        return found
    discovery = kept(checkpoint) or (discover(checkpoint, progress) if search else None)
    if discovery is None:
        return found
    if discovery.family is None:
        only = found.refusals[0]
        return type(found)(
            found.family, found.model_type, None, refusals=(type(only)(only.what, f"{only.reason} {discovery.words}"),)
        )
    sites = find_sites(checkpoint, discovery.family, pairs)
    said = f'Discovered: no file has a rule for model_type "{sites.model_type}"; this one was found by trial and holds on a miniature ({discovery.words}).'
    return Sites(
        sites.family,
        sites.model_type,
        sites.attention,
        sites.sites,
        sites.refusals,
        (said, *sites.remarks),
        sites.discovered,
    )


def is_unknown(checkpoint: Checkpoint) -> bool:
    """Whether no file has the model type, so that a rule may be looked for."""
    if checkpoint.adapter_json or not checkpoint.config_json or quantisation(checkpoint):
        return False
    model_type = checkpoint.config.get("model_type")
    return isinstance(model_type, str) and bool(model_type) and model_type not in families()


def discover(checkpoint: Checkpoint, progress: Progress = silent) -> Discovery:
    """Try every row that names and shapes allow on a miniature of the checkpoint's own config, and keep the outcome.

    Never raises for a model that cannot be built or has no rule (only Cancelled): the words say why.
    """
    try:
        found = _discover(checkpoint, progress)
    except Cancelled:
        raise
    except WiscaError as error:
        found = Discovery({}, f"No rule could be tried: {error}")
    keep("discovery", _key(checkpoint), {"fields": dict(found.fields), "words": found.words})
    return found


def kept(checkpoint: Checkpoint) -> Discovery | None:
    """What was found for this structure before, under the installed versions; None where nothing was tried."""
    found = recalled("discovery", _key(checkpoint))
    try:
        return None if found is None else Discovery(dict(found["fields"]), str(found["words"]))
    except (KeyError, TypeError, ValueError):
        return None


def _key(checkpoint: Checkpoint) -> str:
    return digest(checkpoint.config, sorted((tensor.name, tensor.shape) for tensor in checkpoint.tensors))


def _discover(checkpoint: Checkpoint, progress: Progress) -> Discovery:
    from wisca_core.equivalence.miniature import build_miniature
    from wisca_core.equivalence.small_config import shrink

    progress("looking for a rule by trial", 0, 0)
    attention = find_attention(checkpoint)
    if attention is None:
        raise UnknownArchitecture("no layer has tensors named like query, key, value and output projections.")
    with workplace("the miniature") as place:
        original = place / "original"
        original.mkdir()
        build_miniature(shrink(checkpoint.config), original, seed=1)
        small = open_checkpoint(original)
        inside = find_attention(small)
        if inside is None or inside.modules != attention.modules:
            raise ConfigMismatch(
                "transformers' own class of this model type names its projections in another way than the weights do."
            )
        bench = None
        settled: Guess | None = None
        tried, nearest = 0, float("inf")
        for _, rows in guesses(small, inside):
            bench, settled, n, best = _first_that_holds(small, rows, ("vo",), place, bench, progress)
            tried, nearest = tried + n, min(nearest, best)
        if settled is None:
            raise ProofFailed(_nothing("value and output", tried, nearest))
        bench, found, n, best = _first_that_holds(
            small, qk_guesses(small, inside, settled.fields), ("qk",), place, bench, progress
        )
        if found is None:
            reason = _nothing("query and key", n, best).rstrip(".")
            return Discovery({**settled.fields, "refuse_qk": [["True", reason]]}, f"{settled.words}; {reason}")
        return Discovery(found.fields, f"{settled.words}, {found.words}; {tried + n} rows tried")


def _first_that_holds(
    small: Checkpoint,
    rows: Iterable[Guess],
    pairs: tuple[str, ...],
    place: Path,
    bench: Bench | None,
    progress: Progress,
) -> tuple[Bench | None, Guess | None, int, float]:
    """(bench, row, rows tried, smallest difference that was too large)."""
    tried, nearest = 0, float("inf")
    for guess in rows:
        sites = find_sites(small, row(NAME, **guess.fields), pairs)
        if not sites.sites or sites.refusals:
            continue
        bench = bench.on(sites) if bench else open_bench(small, sites, place)
        tried += 1
        progress(f"looking for a rule by trial: {guess.words}", tried, 0)
        verdict = judge(bench, "channel", silent)
        if not verdict.refused:
            return bench, guess, tried, nearest
        nearest = min(nearest, verdict.worst)
    return bench, None, tried, nearest


def _nothing(what: str, tried: int, nearest: float) -> str:
    how = f"the nearest moves the outputs by {nearest:.1e} relative" if tried else "none fits the shapes"
    return f"{tried} rows were tried for {what}, and none keeps the function; {how}."
