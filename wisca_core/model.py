"""An opened model as one value: what is in it, what may be balanced, and why the rest is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd
import xxhash

from wisca_core.architecture.declaration import Declaration, as_declarations
from wisca_core.architecture.discovery import sites_of
from wisca_core.architecture.find import pairs_to_find
from wisca_core.architecture.site import PAIRS, Refusal, Sites
from wisca_core.checkpoint import Checkpoint, Declared, open_checkpoint
from wisca_core.equivalence.proof import Proof, proved_only
from wisca_core.errors import check_choice
from wisca_core.patterns.groups import group_table
from wisca_core.patterns.store import cached_patterns, measured_patterns, n_bytes_to_read
from wisca_core.patterns.summary import PairSummary, layer_ratios, sentence, summaries
from wisca_core.patterns.table import NORMS, Patterns
from wisca_core.planning.options import Options
from wisca_core.progress import Progress, silent

if TYPE_CHECKING:
    from wisca_core.planning.plan import Plan


@dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint with the pairs found in it. Opening reads headers only; ``patterns`` reads the weights, once.

    ``sites``: every pair that may be balanced, and every refusal with its reason. ``whole``: where these are only some
    of its sites, the model with all of them, whose table is used.
    """

    checkpoint: Checkpoint
    sites: Sites
    whole: Model | None = None
    _parts: dict = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        n = len(self.sites.sites)
        refused = f", {len(self.refusals)} refused" if self.refusals else ""
        return f"Model({self.checkpoint.source!r}: {self.sites.architecture or 'unknown'}, {n} pairs{refused})"

    @cached_property
    def key(self) -> str:
        """Names the model, its state on disk (path, sizes, times of change) and the sites looked at; for caches."""
        c, s = self.checkpoint, self.sites
        files = list(zip(c.weight_files, c.stamps))
        words = [str(c.path), files, c.config_json, c.adapter_json, [site.name for site in s.sites], repr(s.refusals)]
        if c.declared is not None:  # two declarations may name their pairs alike
            words += [repr(c.declared.sites), c.declared.is_unproved]
        return f"{c.path}\n{xxhash.xxh3_128(json.dumps(words).encode('utf-8', 'surrogateescape')).hexdigest()}"

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """What is left alone and why: ``what`` is a site's name, a block, or "model"."""
        return self.sites.refusals

    @property
    def refusal(self) -> str:
        """Why the whole model is refused, in words; "" where it is not."""
        return next((r.reason for r in self.sites.refusals if r.what == "model"), "")

    @property
    def pairs(self) -> tuple[str, ...]:
        """The kinds of pair it has, in the order of PAIRS; feed-forward pairs too, which are only looked for here."""
        sites = self.sites.sites
        if sites and not self.checkpoint.adapter_json:
            sites = (*sites, *self.with_pairs(PAIRS).sites.sites)
        has = {site.key.pair for site in sites}
        return tuple(pair for pair in PAIRS if pair in has)

    def with_pairs(self, pairs: Iterable[str]) -> Model:
        """The model with what ``pairs`` need looked for: feed-forward pairs are among its sites only once asked for."""
        has = any(site.key.pair == "mlp" for site in self.sites.sites)
        if "mlp" not in pairs or has or self.checkpoint.adapter_json or self.whole is not None:
            return self
        return self.keep("with mlp", lambda: Model(self.checkpoint, sites_of(self.checkpoint, pairs_to_find(PAIRS))))

    def proved(self, proof: Proof | None) -> Model:
        """What of it may be rescaled: the sites whose rule holds, the others refused with the reason. All of it where
        there is no proof, or where one failed as a whole (it then stops the export).
        """
        covered = [proof is None or proof.covers(site) for site in self.sites.sites]
        if all(covered) or not any(covered):
            return self
        part = proved_only(self.sites, proof)
        return self.keep(("proved", proof.proved), lambda: Model(self.checkpoint, part, self))

    def keep(self, name: object, make):
        """What ``make`` gave the first time it was asked for under ``name``."""
        if name not in self._parts:
            self._parts[name] = make()
        return self._parts[name]

    @cached_property
    def patterns(self) -> Patterns:
        """The table of channels: from WISCA_HOME/measurements, or by one pass over the weights of its sites."""
        return self.measured()

    def measured(self, progress: Progress = silent) -> Patterns:
        """``patterns``, telling how far the pass has come. Raises CheckpointChanged, UnreadableInput, Cancelled."""

        def make() -> Patterns:
            if self.whole is not None:
                return self.whole.measured(progress).of(self.sites)
            return measured_patterns(self.checkpoint, self.sites, progress)

        return self.keep("patterns", make)

    @property
    def is_measured(self) -> bool:
        """Whether the table is there already, in memory or under WISCA_HOME."""
        if self.whole is not None:
            return self.whole.is_measured
        return "patterns" in self._parts or cached_patterns(self.checkpoint, self.sites) is not None

    @property
    def n_bytes_to_read(self) -> int:
        """What the measuring pass reads."""
        return n_bytes_to_read(self.checkpoint, self.sites)

    def groups(self, norm: str = "l1", plan: Plan | None = None) -> pd.DataFrame:
        """One row a (pair, KV group or expert): columns of ``patterns.groups.GROUP_COLUMNS``; norms float64, ratios in
        octaves. With a ``plan`` also left_after, right_after and log2_after. Raises BadOption, PlanMismatch.

        >>> import wisca_core as wisca
        >>> model = wisca.open("sample_runs/gqa-docs/checkpoint-3600")
        >>> model.groups("l1")[["name", "group", "log2_ratio"]].round(2).head(2).values.tolist()
        [['decoder.0.self.qk', 0, 2.13], ['decoder.0.self.qk', 1, 2.15]]
        """
        check_choice("norm", norm, NORMS)
        if plan is None:
            return group_table(self.patterns, norm)
        from wisca_core.planning.plan import decision_of
        from wisca_core.rescale_basis import with_bases

        patterns = self.with_pairs(plan.options.pairs).patterns
        decision = decision_of(plan, patterns)
        if plan.bases:  # what they leave is measured, once a plan
            decision = self.keep(("after", plan), lambda: with_bases(decision, self.checkpoint))
        return decision.groups(norm)

    def layers(self, norm: str = "l1", plan: Plan | None = None) -> pd.DataFrame:
        """One row a (pair, block, layer): log2_ratio, log2_size and, with a ``plan``, log2_after, in octaves."""
        return layer_ratios(self.groups(norm, plan), norm)

    def summaries(self, norm: str = "l1") -> dict[str, PairSummary]:
        """The imbalance of each pair in a few numbers; "qk", or "qk decoder.cross" where it has several blocks."""
        return summaries(self.groups(norm), norm)

    def sentences(self, norm: str = "l1") -> list[str]:
        """The same in words, one sentence a pair: which side is heavier by how much, and how much of it is size."""
        return [sentence(one) for one in self.summaries(norm).values()]


def open_model(
    model: str | os.PathLike | Checkpoint | Model,
    *,
    pairs: Iterable[str] | str = (),
    search: bool = False,
    sites: Sequence[Declaration] = (),
    build: Callable | None = None,
    forward: Callable | None = None,
    unproved: bool = False,
    progress: Progress = silent,
) -> Model:
    """Open a model folder, one weight file beside its config.json, or ``hub:owner/name[@revision]``; nothing of it is
    run.

    ``pairs``: what will be looked at, where that is more than QK and VO: "mlp", "qk,mlp" or a tuple. ``search``: look
    for a rule by trial where no file has the model type (seconds to a minute). ``sites``: the pairs of a file of your
    own class, as ``wisca.attention`` and ``wisca.feed_forward`` declare them; ``build``: makes a small model of the
    class to prove them on, ``forward(model, ids)`` calls it; ``unproved``: take them as they are. A model without a
    rule opens too: its ``sites`` are empty and ``refusal`` says why. Raises UnreadableInput (UnsafeInput, HubError),
    UnsupportedCheckpoint.

    >>> import wisca_core as wisca
    >>> wisca.open("sample_runs/gqa-docs/checkpoint-3600")
    Model('sample_runs/gqa-docs/checkpoint-3600': llama, 16 pairs)
    """
    asked = Options(pairs).pairs if pairs else ()
    if isinstance(model, Model):
        return model.with_pairs(asked)
    declared = Declared(as_declarations(sites), build, forward, unproved) if sites else None
    opened = isinstance(model, Checkpoint)
    checkpoint = model if opened else open_checkpoint(model, progress=progress, declared=declared)
    trial = None
    if search:
        from wisca_core.equivalence.trial import discover as trial
    return Model(checkpoint, sites_of(checkpoint, pairs_to_find(asked), progress, trial))
