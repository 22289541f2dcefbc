"""The search for a rule of a model type that no file has: rows made from names and shapes, each judged by the proof."""

from collections.abc import Iterable
from pathlib import Path

from wisca_core.architecture.candidates import FamilyGuess, find_attention, qk_guesses, vo_guesses
from wisca_core.architecture.discovery import NAME, Discovery, keep
from wisca_core.architecture.families import row
from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import Checkpoint, open_checkpoint
from wisca_core.equivalence.bench import Bench, judge, open_bench
from wisca_core.errors import Cancelled, ConfigMismatch, ProofFailed, UnknownArchitecture, WiscaError
from wisca_core.progress import Progress, silent
from wisca_core.storage import workplace


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
    keep(checkpoint, found)
    return found


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
        bench, settled, tried, nearest = _first_that_holds(small, vo_guesses(inside), ("vo",), place, None, progress)
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
    rows: Iterable[FamilyGuess],
    pairs: tuple[str, ...],
    place: Path,
    bench: Bench | None,
    progress: Progress,
) -> tuple[Bench | None, FamilyGuess | None, int, float]:
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
