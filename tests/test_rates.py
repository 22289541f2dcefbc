"""A rescale as learning rates: by hand, against what training with them does, and in what ``wisca inspect`` gives."""

import csv
import json

import numpy as np
import pytest
import torch

from wisca_core.cli import main
from wisca_core.patterns.table import Patterns
from wisca_core.planning.decide import decide
from wisca_core.planning.options import Options
from wisca_core.planning.rates import equivalent_rates, layer_rates, median_rates, rate, sentence, span


def patterns(look, folder) -> Patterns:
    return look(folder).patterns


def test_the_rates_of_a_layer_are_the_roots_of_its_ratio_and_its_inverse(look, tiny_llama, tmp_path):
    table = patterns(look, tiny_llama(tmp_path / "m", n_layers=2))
    decision = decide(table, Options())
    groups, rates = decision.groups(), equivalent_rates(decision).set_index("name")
    for name, part in groups.groupby("name"):
        m = (part["left"].sum() / part["right"].sum()) ** 0.5
        assert rates.loc[name, "left_rate_low"] == rates.loc[name, "left_rate_high"] == pytest.approx(m, rel=1e-12)
        assert rates.loc[name, "right_rate_low"] == pytest.approx(1 / m, rel=1e-12)
    # what is scaled by c trains as at 1/c: a factor of the plan and its rate are inverse
    assert (rates["left_rate_low"].to_numpy() * decision.factor).tolist() == pytest.approx([1] * 4)
    assert (decision.factor != 1).all()


def test_a_finer_granularity_gives_a_span_and_a_pair_left_out_the_rate_of_full_balance(look, tiny_llama, tmp_path):
    table = patterns(look, tiny_llama(tmp_path / "m", n_layers=2))
    decision = decide(table, Options(pairs=("qk",), granularity="group", strength=0.5))
    chosen = equivalent_rates(decision).set_index("name")
    assert (chosen.loc[["decoder.0.self.vo", "decoder.1.self.vo"]].filter(like="rate") == 1).all(axis=None)
    full = equivalent_rates(decision, full=True).set_index("name")
    groups = decision.groups()
    for name, part in groups.groupby("name"):
        m = np.sqrt(part["left"] / part["right"])
        assert full.loc[name].filter(like="rate").tolist() == pytest.approx(
            [m.min(), m.max(), (1 / m).min(), (1 / m).max()]
        )
        if name.endswith("qk"):  # half the strength is the root of the rate
            assert chosen.loc[name, "left_rate_high"] == pytest.approx(m.max() ** 0.5)
    assert (full["left_rate_high"] > full["left_rate_low"]).all()
    by_layer = layer_rates(equivalent_rates(decision, full=True))
    assert by_layer["left_rate_low"].tolist() == full["left_rate_low"].tolist()


def test_behind_relu_squared_the_two_sides_have_rates_of_their_own(look, small_model):
    """up carries s, down s^-2: s = (down/up)^(1/3), so up trains at (up/down)^(1/3) and down at its inverse squared."""
    from wisca_core.architecture.find import find_sites, pairs_to_find
    from wisca_core.checkpoint import open_checkpoint
    from wisca_core.patterns.measure import measure

    checkpoint = open_checkpoint(small_model("nemotron"))
    sites = find_sites(checkpoint, pairs=pairs_to_find(("mlp",))).only(lambda site: site.key.pair == "mlp")
    decision = decide(measure(checkpoint, sites), Options(pairs=("mlp",)))
    groups, rates = decision.groups(), equivalent_rates(decision)
    ratio = (groups["left"] / groups["right"]).to_numpy()
    assert len(rates) and rates["left_rate_low"].to_numpy() == pytest.approx(ratio ** (1 / 3))
    assert rates["right_rate_low"].to_numpy() == pytest.approx(ratio ** (-2 / 3))


def test_a_pair_without_a_finite_norm_has_no_rate(look, tiny_llama, tmp_path):
    def change(model):
        model.model.layers[0].self_attn.k_proj.weight.data.zero_()
        model.model.layers[1].self_attn.v_proj.weight.data[0, 0] = torch.inf

    rates = equivalent_rates(decide(patterns(look, tiny_llama(tmp_path / "m", 2, change)), Options()), full=True)
    lost = rates.set_index("name").filter(like="rate").isna().all(axis=1)
    assert lost.to_dict() == {
        "decoder.0.self.qk": True,
        "decoder.0.self.vo": False,
        "decoder.1.self.qk": False,
        "decoder.1.self.vo": True,
    }
    (qk, vo) = median_rates(rates)
    assert (qk.pair, vo.pair) == ("qk", "vo")
    assert qk.left_span[0] == qk.left_span[1] == pytest.approx(qk.left) and qk.left * qk.right == pytest.approx(1)


@pytest.mark.parametrize(
    ("value", "written"),
    [(2.083, "2.1×"), (0.4812, "0.48×"), (1, "1.0×"), (12.4, "12×"), (0.0997, "0.10×"), (0.99999, "1.0×"), (0, "none")],
)
def test_a_rate_has_two_significant_digits(value, written):
    assert rate(value) == written


def test_a_span_of_rates_is_written_once_where_its_ends_read_alike():
    assert span(0.31, 0.5234) == "0.31 to 0.52×" and span(2.08, 2.1) == "2.1×"


def test_wisca_inspect_gives_them_in_words_as_csv_and_as_json(look, tiny_llama, tmp_path, capsys):
    folder = tiny_llama(tmp_path / "m", n_layers=2)
    expected = equivalent_rates(decide(patterns(look, folder), Options()))
    path = tmp_path / "out.csv"
    assert main(["inspect", str(folder), "--csv", str(path)]) == 0
    said = capsys.readouterr().out
    assert sentence(median_rates(expected)) in " ".join(said.split())
    assert "Wq, Wk rates" in said and rate(expected["left_rate_low"][0]) in said
    assert "with SGD the squares" in said and "no effect" in said
    rows = list(csv.DictReader(path.open()))
    by_name = expected.set_index("name")
    assert all(float(r["left_rate_high"]) == pytest.approx(by_name.loc[r["name"], "left_rate_high"]) for r in rows)
    assert main(["inspect", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["pair"] for one in found["rates"]] == ["qk", "vo"] and found["rates_norm"] == "l1"
    assert found["layers"][0]["right_rate_low"] == pytest.approx(by_name.iloc[0]["right_rate_low"])
