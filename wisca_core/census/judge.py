"""One model type: its typical config made small, its rule tried at every granularity on one miniature."""

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch

from wisca_core.architecture.discovery import sites_of
from wisca_core.architecture.families import Family, families
from wisca_core.architecture.site import GRANULARITIES, Refusal, Site, SiteKey, Sites
from wisca_core.census.entry import NOT_REACHED, PAIRS, Entry, Pair, Place, pair_of
from wisca_core.checkpoint import open_checkpoint
from wisca_core.equivalence.bench import NOT_RUN, Verdict, judge, open_bench
from wisca_core.equivalence.example import example_config
from wisca_core.equivalence.proof import label
from wisca_core.equivalence.sizes import TABLE
from wisca_core.equivalence.trial import discover
from wisca_core.errors import WiscaError
from wisca_core.progress import Progress, silent
from wisca_core.storage import workplace

LONGEST_REASON = 400


def answers(asked: list) -> Iterator[bytes]:
    """[[type, granularities], ...] -> the entry of each as JSON: what a process of the census is asked."""
    torch.set_num_threads(1)
    for one in asked:
        yield json.dumps(judge_type(*one).to_json()).encode()


def judge_type(model_type: str, granularities: Iterable[str] = GRANULARITIES, progress: Progress = silent) -> Entry:
    """What the proof says of this type. Never raises for a type that cannot be built or whose rule fails: the entry
    says so. ``granularities``: from GRANULARITIES; the finest is tried with every control, the others by their outputs.
    """
    asked = tuple(name for name in GRANULARITIES if name in set(granularities))
    started = time.perf_counter()
    family = families().get(model_type)
    refused = row_refusal(family)
    if refused:
        places = {pair: (Place("model", 0, reason=refused),) for pair in PAIRS}
        entry = _entry(model_type, family, asked, places)
    else:
        try:
            entry = _proved_entry(model_type, family, asked, progress)
        except WiscaError as error:
            if error.exit_code == 130:
                raise
            entry = unreached_entry(model_type, str(error), asked)
        except Exception as error:  # whatever a model's code raises is the reason why it was not reached
            entry = unreached_entry(model_type, f"{type(error).__name__}: {error}", asked)
    return replace(entry, seconds=time.perf_counter() - started, when=time.time())


def unreached_entry(model_type: str, why: str, granularities: tuple[str, ...], seconds: float = 0.0) -> Entry:
    """The entry of a type of which nothing could be found out."""
    family = families().get(model_type)
    pairs = tuple(Pair(pair, NOT_REACHED) for pair in PAIRS)
    return Entry(
        model_type,
        family=family.name if family else "",
        pairs=pairs,
        granularities=granularities,
        not_reached=_one_line(why),
        seconds=seconds,
        when=time.time(),
    )


def row_refusal(family: Family | None) -> str:
    """Why the row refuses this architecture whatever its config says, "" where it does not."""
    reasons = (
        [next((reason for expression, reason in part.refuse if expression == "True"), "") for part in family.each]
        if family
        else []
    )
    return reasons[0] if reasons and all(reasons) and not family.towers else ""


def _proved_entry(model_type: str, family: Family | None, asked: tuple[str, ...], progress: Progress) -> Entry:
    from wisca_core.equivalence.miniature import model_class
    from wisca_core.equivalence.small_config import shrink

    progress("building a miniature", 0, 1)
    config = shrink(example_config(model_type))
    sites, verdicts, n_cases, not_run = _verdicts(config, asked, progress)
    entry = _entry(model_type, family, asked, _places(sites, verdicts, model_type))
    tried = [verdict for name, verdict in verdicts.items() if _is_own(sites, name, asked)]
    return replace(
        entry,
        model_class=model_class(config).__name__,
        family=sites.family or entry.family,
        remarks=(*sites.remarks, *not_run, *_variants(model_type, asked, progress)),
        n_cases=n_cases,
        n_trials=sum(verdict.n_trials for verdict in tried),
        max_rel=max((verdict.held for verdict in tried if np.isfinite(verdict.held)), default=0.0),
        liveness=next((v.alive for v in verdicts.values() if v.alive and np.isfinite(v.alive)), 0.0),
    )


def _verdicts(
    config: Mapping[str, object], asked: tuple[str, ...], progress: Progress
) -> tuple[Sites, dict[str, Verdict], int, tuple[str, ...]]:
    """(sites, verdict at each granularity, cases a trial, towers that no case reaches) of the miniature of a small
    config.
    """
    from wisca_core.equivalence.miniature import build_miniature

    with workplace("the miniature") as place:
        folder = place / "original"
        folder.mkdir()
        build_miniature(config, folder, seed=1)
        small = open_checkpoint(folder)
        sites = sites_of(small, PAIRS, progress, search=discover)
        if not sites.sites:
            return sites, {}, 0, ()
        bench = open_bench(small, sites, place)
        return sites, _at_each(bench, asked, progress), len(bench.cases), bench.not_run


def _variants(model_type: str, asked: tuple[str, ...], progress: Progress) -> list[str]:
    """What the proof says of other legal values than the default ones, each at the finest granularity, a sentence
    each.
    """
    from wisca_core.equivalence.small_config import shrink

    out = []
    for changes in TABLE.variants.get(model_type, ()):
        words = ", ".join(f"{key} = {json.dumps(value)}" for key, value in changes.items())
        try:
            sites, verdicts, *_ = _verdicts(shrink(example_config(model_type, **changes)), asked[-1:], progress)
        except WiscaError as error:
            if error.exit_code == 130:
                raise
            out.append(f"With {words}: not reached: {_one_line(str(error))}")
            continue
        refused = {name: reason for verdict in verdicts.values() for name, reason in verdict.refused}
        held = sorted({label(site) for site in sites.sites if label(site) not in refused})
        why = dict.fromkeys([*refused.values(), *(r.reason.removeprefix(f"{model_type}: ") for r in sites.refusals)])
        proved = f"proved for {', '.join(held)}" if held else "nothing is proved"
        out.append(f"With {words}: {proved}." + (f" Refused: {_one_line(' '.join(why))}" if why else ""))
    return out


def _at_each(bench, asked: tuple[str, ...], progress: Progress) -> dict[str, Verdict]:
    """The finest first. A granularity that ties the same channels as a finer one is that one."""
    out: dict[str, Verdict] = {}
    for name in reversed(asked):
        same = _same_as(bench.sites, name, tuple(out))
        out[name] = out[same] if same else judge(bench, name, progress, controls=not out)
    return out


def _same_as(sites: Sites, granularity: str, others: tuple[str, ...]) -> str:
    return next(
        (other for other in others if all(np.array_equal(s.labels(granularity), s.labels(other)) for s in sites.sites)),
        "",
    )


def _is_own(sites: Sites, granularity: str, asked: tuple[str, ...]) -> bool:
    return not _same_as(sites, granularity, asked[asked.index(granularity) + 1 :])


def _places(sites: Sites, verdicts: Mapping[str, Verdict], model_type: str) -> dict[str, tuple[Place, ...]]:
    """Pair -> its places, those of its sites first, then what was refused before any proof."""
    by_label: dict[str, list[Site]] = {}
    for site in sites.sites:
        by_label.setdefault(label(site), []).append(site)
    out: dict[str, list[Place]] = {pair: [] for pair in PAIRS}
    idle: set[str] = set()
    for name, own in by_label.items():
        # the finest granularity looks for life; a pair that is not run moves nothing at the others either
        reasons = {g: dict(v.refused).get(name, "") for g, v in verdicts.items()}
        if any(NOT_RUN in reason for reason in reasons.values()):
            idle.add(name)
        held = () if name in idle else tuple(g for g in GRANULARITIES if g in verdicts and name in verdicts[g].proved)
        reason = next(filter(None, reasons.values()), "")
        finest = tuple(dict.fromkeys(site.used_granularity("channel") for site in own))
        out[own[0].key.pair].append(Place(own[0].block, len(own), finest, held, _one_line(reason), name in idle))
    seen: set[tuple[str, str, str]] = set()
    for refusal in sites.refusals:
        reason = _one_line(refusal.reason.removeprefix(f"{model_type}: ")).removesuffix(".") + "."
        for pair, where in _refusal_places(refusal):
            alike = (pair, where, re.sub(r"\d+", "", reason))  # the same in another layer
            if alike not in seen:
                seen.add(alike)
                out[pair].append(Place(where, 0, reason=reason))
    return {pair: tuple(places) for pair, places in out.items()}


def _refusal_places(refusal: Refusal) -> list[tuple[str, str]]:
    """(pair, place) of a refusal; one without a pair is of every pair there."""
    try:
        key = SiteKey.parse(refusal.what)
    except ValueError:
        return [(pair, refusal.what) for pair in PAIRS]
    return (
        [(key.pair, f"{key.stack}.{key.attention}" + (f":{key.part}" if key.part else ""))] if key.pair in PAIRS else []
    )


def _entry(
    model_type: str, family: Family | None, asked: tuple[str, ...], places: Mapping[str, tuple[Place, ...]]
) -> Entry:
    pairs = tuple(pair_of(pair, places[pair], asked) for pair in PAIRS)
    return Entry(model_type, family=family.name if family else "", pairs=pairs, granularities=asked)


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + " ..."
