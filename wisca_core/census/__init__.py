"""The census: every architecture that transformers can build, with the rule it is rescaled by, and what the proof by
miniature says of it on the installed versions.

    known     which model types there are, and the row of each in words
    entry     what is known of one type: a verdict a pair, with its reason, and the figures
    judge     one type proved at several granularities
    pool      many types in a few processes
    kept      results under WISCA_HOME/proofs
    coverage  counts by verdict and reason

Nothing here takes part in a rescale: that proves the very checkpoint it is about to change.
"""

from wisca_core.census.coverage import Coverage, coverage
from wisca_core.census.entry import Entry, Pair, Place
from wisca_core.census.kept import entries, entry
from wisca_core.census.known import all_types, causal_types, close_to, row_file, row_text, rule_lines, short_rule
from wisca_core.census.run import census

__all__ = [
    "Coverage",
    "Entry",
    "Pair",
    "Place",
    "all_types",
    "causal_types",
    "census",
    "close_to",
    "coverage",
    "entries",
    "entry",
    "row_file",
    "row_text",
    "rule_lines",
    "short_rule",
]
