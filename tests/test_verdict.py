"""The one sentence over all pairs, from hand-made tables."""

import numpy as np
import pandas as pd
import pytest

from wisca_core.patterns.summary import summaries
from wisca_core.patterns.verdict import by_imbalance, mostly_size, n_outlying, verdict, worst


def groups(pair, octaves, size=0.0, block="decoder.self"):
    """One group a layer with these log2 ratios, ``size`` octaves of it by the number of entries."""
    octaves = np.array(octaves, float)
    return pd.DataFrame(
        {
            "name": [f"decoder.{i}.self.{pair}" for i in range(len(octaves))],
            "layer": range(len(octaves)),
            "pair": pair,
            "block": block,
            "group": 0,
            "n_left": 2**size,
            "n_right": 1,
            "left": 2**octaves,
            "right": 1.0,
            "left_after": 1.0,
            "right_after": 1.0,
            "log2_ratio": octaves,
            "log2_size": size,
            "log2_after": 0.0,
        }
    )


def said(*tables, **more):
    table = pd.concat(tables, ignore_index=True)
    return verdict(summaries(table, "l1").values(), table, **more)


def test_both_sides_by_size_and_the_worst_place():
    assert (
        said(groups("qk", [3, 3, 4], size=2), groups("vo", [-3, -3, -3], size=-3))
        == "Queries weigh 8.0× their keys, outputs 8.0× their values, mostly by size; worst pair: QK in layer 2, 16.0×."
    )


def test_size_is_said_of_the_pair_it_explains():
    assert (
        said(groups("qk", [3, 3, 3], size=2), groups("vo", [-2, -2, -2]))
        == "Queries weigh 8.0× their keys (mostly size), outputs 4.0× their values; worst pair: QK in layer 0, 8.0×."
    )


def test_level_pairs():
    assert (
        said(groups("qk", [-2, -2, -2]), groups("vo", [0, 0, 0.05]))
        == "Keys weigh 4.0× their queries, values and outputs are level; worst pair: QK in layer 0, 4.0×."
    )
    assert said(groups("qk", [0, 0]), groups("vo", [0, 0])) == "Queries and keys, values and outputs are each level."
    # one bad layer under a level median is the worst place all the same
    assert said(groups("qk", [0, 0, 3])) == (
        "Queries and keys are level in the median layer; worst pair: QK in layer 2, 8.0×."
    )
    assert said(groups("qk", [0, 0, 0.5])) == "Queries and keys are level; worst pair: QK in layer 2, 1.41×."


def test_of_several_places_the_one_furthest_from_balance_speaks():
    text = said(groups("qk", [1, 1]), groups("qk", [-3, -3], block="decoder.cross"))
    assert text == "Keys weigh up to 8.0× their queries; worst pair: QK in layer 0, cross-attention, 8.0×."


def test_gains_adapters_and_feed_forward_pairs_in_their_own_words():
    assert said(groups("qk", [2, 2]), gains={"qk"}).startswith("Query gains weigh 4.0× the key gains; worst")
    assert said(groups("lora", [-1, -1])).startswith("B weighs 2.0× A; worst pair: LoRA in layer 0")
    assert said(groups("mlp", [1, 1])).startswith("Up projections weigh 2.0× their down projections")


def test_a_ratio_that_is_not_known_is_not_invented():
    table = groups("qk", [np.nan, np.inf])
    assert said(table) == "No ratio of queries to keys is known." and worst(table) is None
    assert len(by_imbalance(table, 5)) == 0


def test_the_most_unbalanced_first_and_what_lies_out():
    table = groups("qk", [1, -4, 1.5, np.nan, 1.2])
    assert by_imbalance(table, 2)["layer"].tolist() == [1, 2]
    assert n_outlying(table) == 1  # only the one at -4 is more than an octave from the median of 1.1
    assert (worst(table).layer, worst(table).log2_ratio) == (1, -4)


@pytest.mark.parametrize(
    ("octaves", "size", "mostly"),
    [(2.0, 2.0, True), (1.9, 2.0, True), (4.1, 2.0, False), (-2.0, 2.0, False), (2, 0, False)],
)
def test_mostly_size_is_more_than_half_of_the_octaves_on_the_same_side(octaves, size, mostly):
    (one,) = summaries(groups("qk", [octaves] * 3, size=size), "l1").values()
    assert mostly_size(one) is mostly
