"""The Rescale page: every control changes the plan that is shown, and what is taken away is that plan."""

import ast
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from dashboard_page import decoded, metrics, page, proved, texts
from streamlit.testing.v1 import AppTest

from wisca_app import cached, downloads
from wisca_app.figures.factors import factor_chart, finding
from wisca_app.figures.template import LIGHT
from wisca_app.rescaling.training import command, snippet
from wisca_core import jobs, storage, verdicts
from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import Reader, open_checkpoint
from wisca_core.equivalence.proof import Proof
from wisca_core.equivalence.proving import prove
from wisca_core.patterns.measure import measure
from wisca_core.planning.decide import decide
from wisca_core.planning.options import LayerRange, Options, parse_layers
from wisca_core.planning.rates import equivalent_rates, median_rates, rate
from wisca_core.planning.rows import ROW_COLUMNS, plan_rows


@pytest.fixture(scope="session")
def llama(tiny_llama, tmp_path_factory):
    """Three layers, four query heads on two KV heads, bf16; queries four times too heavy in layer 1."""

    def heavy_query(model):
        model.model.layers[1].self_attn.q_proj.weight.data *= 4

    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", n_layers=3, change=heavy_query)


@pytest.fixture(scope="session")
def proofs(tmp_path_factory, llama):
    """The miniature's proof, made once: the page would otherwise start a job for it in every test."""
    patch = pytest.MonkeyPatch()
    place = tmp_path_factory.mktemp("proved")
    patch.setenv("WISCA_HOME", str(place))
    try:
        checkpoint = open_checkpoint(llama)
        assert prove(checkpoint, find_sites(checkpoint)).passed
        return list(storage.folder("proofs").iterdir())
    finally:
        patch.undo()


@pytest.fixture(autouse=True)
def proved_already(own_home, proofs):
    for path in proofs:
        shutil.copy(path, storage.folder("proofs"))


def shown_rows(at: AppTest):
    return at.dataframe[0].value


def left(rows):
    """What Wq or Wv is multiplied by."""
    return rows[next(name for name in rows.columns if name in ("On Wq or Wv", "On Wq", "On Wv"))]


def right(rows):
    return rows[next(name for name in rows.columns if name in ("On Wk or Wo", "On Wk", "On Wo"))]


def predicted(model: Path, options: Options):
    checkpoint = open_checkpoint(model)
    return decide(measure(checkpoint, find_sites(checkpoint)), options)


# --- every control ----------------------------------------------------------------------------------------------------


def test_defaults_are_qk_and_vo_one_factor_a_matrix_l1_full_strength_not_exact(llama):
    at = page("rescale", model=llama)
    assert not at.exception
    assert at.title[0].value == "6 of 6 pairs would change; the outputs stay the same up to rounding."
    rows = shown_rows(at)
    assert rows["Pair"].tolist() == ["QK", "VO"] * 3
    expected = predicted(llama, Options()).factor
    np.testing.assert_allclose(left(rows), expected, rtol=1e-12)
    np.testing.assert_allclose(right(rows), 1 / expected, rtol=1e-12)
    assert len(at.get("plotly_chart")) == 1


def test_granularity(llama):
    at = page("rescale", model=llama)
    at.segmented_control(key="granularity").set_value("group").run()
    np.testing.assert_allclose(left(shown_rows(at)), predicted(llama, Options(granularity="group")).factor)
    at.segmented_control(key="granularity").set_value("channel").run()
    rows = shown_rows(at)
    assert len(rows) == 12 and all(" to " in text for text in left(rows))
    assert "channel" in str(at.query_params["granularity"])


def test_exact_promises_bit_identity_only_with_powers_of_two(llama):
    at = page("rescale", model=llama)
    assert "bit-identical" not in texts(at)
    at.toggle(key="exact").set_value(True).run()
    assert at.title[0].value.endswith("by powers of two; every output stays bit-identical.")
    assert (np.frexp(left(shown_rows(at)))[0] == 0.5).all()
    assert metrics(at)["16-bit rounded"] == "0"


def test_pairs(llama):
    at = page("rescale", model=llama)
    at.segmented_control(key="pairs").set_value(["vo"]).run()
    assert set(shown_rows(at)["Pair"]) == {"VO"}
    assert at.title[0].value.startswith("3 of 6 pairs")
    assert at.query_params["pairs"] in ("vo", ["vo"])
    at.segmented_control(key="pairs").set_value([]).run()
    assert not at.exception
    assert at.segmented_control(key="pairs").value == ["qk", "vo"]


def test_norm(llama):
    at = page("rescale", model=llama)
    at.segmented_control(key="norm").set_value("rms").run()
    np.testing.assert_allclose(left(shown_rows(at)), predicted(llama, Options(norm="rms")).factor)


def test_strength_none_changes_nothing_and_offers_no_export(llama):
    at = page("rescale", model=llama)
    at.slider(key="strength").set_value(0.0).run()
    assert at.title[0].value == "None of 6 pairs would change with these options."
    assert at.button(key="export").disabled and at.button(key="check").disabled
    at.slider(key="strength").set_value(0.5).run()
    np.testing.assert_allclose(left(shown_rows(at)), predicted(llama, Options(strength=0.5)).factor)
    assert not at.button(key="export").disabled


def test_layers(llama):
    at = page("rescale", model=llama)
    at.slider(key="layers").set_value((1, 2)).run()
    assert sorted(set(shown_rows(at)["Layer"])) == [1, 2]
    assert at.title[0].value.startswith("4 of 6 pairs")
    assert "1-2" in str(at.query_params["layers"])
    at.slider(key="layers").set_value((0, 2)).run()
    assert "layers" not in at.query_params


def test_pairs_left_out_stay_in_the_table_with_factor_one(llama):
    at = page("rescale", model=llama)
    at.multiselect(key="exclude").set_value(["decoder.1.self.qk"]).run()
    rows = shown_rows(at)
    left_out = rows[rows["What it changes"] == "nothing: left out"]
    assert left_out[["Layer", "Pair", "On Wq or Wv"]].values.tolist() == [[1, "QK", 1.0]]
    assert at.title[0].value.startswith("5 of 6 pairs")
    assert "decoder.1.self.qk" in str(at.query_params["exclude"])


def test_the_address_brings_all_options_back_and_they_outlive_a_change_of_page(llama):
    address = {
        "granularity": "group",
        "norm": "max",
        "strength": "0.5",
        "layers": "0-1",
        "exact": "yes",
        "pairs": "qk",
        "exclude": "decoder.0.self.qk",
    }
    at = page("rescale", model=llama, **address)
    options = Options(("qk",), "group", "max", 0.5, (LayerRange(0, 1),), True, ("decoder.0.self.qk",))
    expected = predicted(llama, options)
    chosen = (expected.cells.site == 0) | (expected.cells.site == 2)
    np.testing.assert_array_equal(left(shown_rows(at)), expected.factor[chosen])
    at.switch_page("views/inspect.py").run()
    assert not at.exception
    at.switch_page("views/rescale.py").run()
    np.testing.assert_array_equal(left(shown_rows(at)), expected.factor[chosen])
    for name, value in address.items():
        assert at.query_params[name] in (value, [value])


def test_medians_before_and_after_are_shown_for_each_pair(llama):
    at = page("rescale", model=llama)
    assert metrics(at)["Median query/key"].endswith("→ 1.00×")
    assert metrics(at)["Within 2× after"] == "12 of 12"


def test_a_plan_says_which_training_it_is(llama):
    rates = median_rates(equivalent_rates(predicted(llama, Options(strength=0.5))))
    at = page("rescale", model=llama, strength="0.5")
    line = next(m for m in at.markdown if m.value.startswith("With Adam, this plan is training"))
    assert f":blue[**Wq**] at {rate(rates[0].left)} and :orange[**Wk**] at {rate(rates[0].right)}" in line.value


def test_a_model_in_balance_is_told_so_in_one_sentence_with_the_charts_folded(llama, edited):
    def balance(tensors):
        for name in tensors:
            for one, other in (("k_proj", "q_proj"), ("o_proj", "v_proj")):
                if one in name:
                    tensors[name] *= tensors[name.replace(one, other)].abs().sum() / tensors[name].abs().sum() * 1.01

    at = page("rescale", model=edited(llama, balance))
    assert re.match(r"Not worth it: every pair lies within 1\.0\d× of balance already\.", at.title[0].value)
    assert "Factors and plan all the same" in [e.label for e in at.expander]

    def uneven(tensors):  # inside a layer, which one factor a matrix does not reach
        for name in tensors:
            if "k_proj" in name:
                tensors[name][:8] *= 1.5
        balance(tensors)

    model = edited(llama, uneven, name="uneven")
    assert page("rescale", model=model).title[0].value.startswith("Not worth it")
    assert "would change" in page("rescale", model=model, granularity="group").title[0].value


# --- refused and lossy models -----------------------------------------------------------------------------------------


def test_a_refused_model_says_why_and_offers_nothing_to_press(llama, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "foo3", "architectures": ["<b>Foo3</b>"]}))
    at = page("rescale", model=folder)
    assert not at.exception
    assert at.title[0].value == "This model cannot be rescaled."
    assert any("foo3" in element.value.lower() for element in at.text)
    main_keys = {b.key for b in at.main.button}
    assert not main_keys & {"export", "check"} and not at.segmented_control and not at.get("download_button")


def test_a_head_that_is_not_finite_is_left_alone_with_its_reason(llama, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "nan"
    shutil.copytree(llama, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    at = page("rescale", model=folder)
    assert not at.exception
    assert "1 non-finite" in texts(at) and "decoder.1.self.qk" in texts(at)
    assert at.title[0].value.startswith("5 of 6 pairs")


def test_fp16_is_never_promised_bit_identity_on_powers_of_two_alone(llama, tmp_path):
    from transformers import LlamaForCausalLM

    LlamaForCausalLM.from_pretrained(llama).half().save_pretrained(tmp_path / "half")
    at = page("rescale", model=proved(tmp_path / "half"), exact="yes")
    assert "bit-identical" not in at.title[0].value
    assert "the full check decides" in texts(at)


# --- proof, check, export ---------------------------------------------------------------------------------------------


def test_without_a_proof_the_miniature_starts_by_itself_and_export_waits(llama):
    storage.clean(["proofs"])
    at = page("rescale", model=llama)
    assert not at.exception
    (job,) = jobs.every()
    assert job.kind == "prove" and job.arguments == {"model": str(llama)}
    assert at.button(key="export").disabled


def test_a_failed_proof_says_why_and_stops_the_export(llama, proofs):
    (kept,) = storage.folder("proofs").iterdir()
    proof = Proof.from_json(storage.read_json(kept, "wisca-proof", verdicts.VERSION))
    failed = proof.to_json() | {"passed": False, "reason": "the outputs differ by 3.0e-02 relative"}
    storage.write_json(kept, "wisca-proof", verdicts.VERSION, failed)
    at = page("rescale", model=llama)
    assert "the outputs differ by 3.0e-02 relative" in texts(at)
    assert at.button(key="export").disabled


def test_the_proof_is_shown_with_its_numbers_and_what_was_not_checked(llama):
    at = page("rescale", model=llama)
    assert "44 cases" in texts(at) and re.search(r"Largest difference in float64: \*\*[\d.]+ × 10⁻", texts(at))
    assert "The real weights: no full check was run with these options." in texts(at)


def test_full_check_and_export_run_as_jobs_and_write_the_plan_that_is_shown(llama, tmp_path, own_home):
    at = page("rescale", model=llama, exact="yes", granularity="group")
    at.button(key="check").click().run()
    (check,) = [job for job in jobs.every() if job.kind == "check"]
    assert jobs.wait(check.id, 300).state == "done"
    at.run()
    assert re.search(r"with the very same bits: ([\d,]+) of \1", texts(at)) and "passed" in texts(at)
    out = tmp_path / "taken away"
    next(field for field in at.text_input if field.label == "Folder").set_value(str(out)).run()
    at.button(key="export").click().run()
    assert not at.exception
    (job,) = [job for job in jobs.every() if job.kind == "export"]
    done = jobs.wait(job.id, 300)
    assert done.state == "done", done.error
    at.run()
    assert not at.exception
    assert str(out) in texts(at)
    link = at.get("link_button")[0].proto.url
    assert link == downloads.address(downloads.link(out))
    before, after = open_checkpoint(llama), open_checkpoint(out)
    decision = predicted(llama, Options(granularity="group", exact=True))
    name = "model.layers.1.self_attn.q_proj.weight"
    with Reader(before) as old, Reader(after) as new:
        factor = torch.tensor(decision.factor[decision.cells.site == 2], dtype=torch.bfloat16)  # QK of layer 1
        wanted = old.tensor(name).reshape(2, -1, 32) * factor[:, None, None]
        assert torch.equal(new.tensor(name), wanted.reshape(32, 32))


def test_an_export_into_a_folder_that_exists_is_refused_with_words(llama, jobs_here, tmp_path):
    (tmp_path / "there").mkdir()
    at = page("rescale", model=llama)
    at.toggle(key="export_check").set_value(False).run()
    next(field for field in at.text_input if field.label == "Folder").set_value(str(tmp_path / "there")).run()
    at.button(key="export").click().run()
    (job,) = jobs.every()
    assert jobs.wait(job.id, 300).state == "failed"
    at.run()
    assert not at.exception
    assert "The last export did not finish" in texts(at) and str(tmp_path / "there") in texts(at)
    assert not list((tmp_path / "there").iterdir())


# --- outside the dashboard --------------------------------------------------------------------------------------------


def test_the_command_line_says_what_differs_from_the_defaults_and_quotes_what_needs_it():
    options = Options(
        ("vo",), "channel", "l2", 0.5, (LayerRange(0, 3),), True, ("decoder.1.self.vo", "decoder.2.self.vo")
    )
    assert command("/m/a b", Options()) == "wisca rescale '/m/a b' OUT"
    assert shlex.split(command("/m/a b", options)) == [
        "wisca",
        "rescale",
        "/m/a b",
        "OUT",
        "--pairs",
        "vo",
        "--granularity",
        "channel",
        "--norm",
        "l2",
        "--strength",
        "0.5",
        "--layers",
        "0-3",
        "--exclude",
        "decoder.1.self.vo",
        "--exclude",
        "decoder.2.self.vo",
        "--exact",
    ]


def test_the_snippet_runs_and_exports(llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet(str(llama), Options(granularity="group", layers=(LayerRange(1, 1),))), "snippet", "exec"), {})
    report = json.loads((tmp_path / "OUT" / downloads.REPORT).read_text())
    assert {site["site"] for site in report["plan"]["sites"]} == {"decoder.1.self.qk", "decoder.1.self.vo"}


# --- the table of the plan, and its figure ----------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["tensor", "group", "channel"])
@pytest.mark.parametrize("norm", ["l1", "l2", "max", "rms"])
def test_rows_agree_with_the_group_table_and_the_factors(llama, granularity, norm):
    decision = predicted(llama, Options(granularity=granularity, norm=norm))
    rows = plan_rows(decision)
    assert tuple(rows.columns) == tuple(ROW_COLUMNS)
    assert rows["n_cells"].sum() == len(decision.factor)
    if granularity == "tensor":
        np.testing.assert_allclose(rows["factor_low"], decision.factor)
        np.testing.assert_allclose(rows["log2_after"], 0, atol=1e-9)
        assert (
            rows["changes"][0] == "4 query heads, 2 key heads"
            and rows["changes"][1] == "2 value heads, 32 inputs of Wo"
        )
        return
    groups = decision.groups()
    for name in ("layer", "group", "left", "right", "log2_ratio", "log2_after"):
        np.testing.assert_allclose(rows[name].to_numpy(float), groups[name].to_numpy(float), atol=1e-12)
    assert rows["changes"][0] == "2 query heads, 1 key head" and rows["changes"][2] == "1 value head, 16 inputs of Wo"
    assert (rows["factor_low"] <= rows["factor_high"]).all()


def test_the_finding_counts_by_hand(llama):
    rows = plan_rows(predicted(llama, Options()))
    assert finding(rows[rows["layer"] == 1]).startswith("Queries come down by 2.8×")  # ratio 2 x 4, square root
    untouched = plan_rows(predicted(llama, Options(strength=0.0)))
    assert finding(untouched) == "Queries stay as they are, values stay as they are"


def test_the_chart_draws_one_mark_a_row_and_leaves_left_out_pairs_open(llama):
    rows = plan_rows(predicted(llama, Options(exclude=("decoder.0.self.qk",))))
    figure = go.Figure(decoded(factor_chart(rows, LIGHT).to_dict()))
    squares = [
        trace for trace in figure.data if trace.mode == "markers" and trace.marker.symbol in ("square", "square-open")
    ]
    assert sum(len(trace.x) for trace in squares) == len(rows)
    (left_out,) = [trace for trace in squares if trace.marker.symbol == "square-open"]
    assert list(left_out.x) == [0] and list(left_out.y) == [0]


def test_cached_tables_follow_a_file_that_changed(llama, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "moving"
    shutil.copytree(llama, folder)
    first = cached.rows(cached.model(str(folder)), Options())["left"][0]
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"] *= 2
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert cached.rows(cached.model(str(folder)), Options())["left"][0] == pytest.approx(2 * first)


def test_opening_another_model_here_starts_with_all_its_layers(llama, tmp_path):
    at = page("rescale", model=llama, layers="1-2", exclude="decoder.1.self.qk")
    shutil.copytree(llama, tmp_path / "other")
    at.switch_page("views/open.py").run()
    at.text_input(key="written").set_value(str(tmp_path / "other"))
    next(b for b in at.button if b.label == "Open").click().run()
    at.switch_page("views/rescale.py").run()
    assert at.slider(key="layers").value == (0, 2) and at.multiselect(key="exclude").value == []
    assert "layers" not in at.query_params and "exclude" not in at.query_params
    assert at.title[0].value.startswith("6 of 6 pairs")


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(pairs=("qk",), granularity="group", exact=True, layers=parse_layers("0-1")),
        Options(norm="l2", strength=0.5, exclude=("decoder.0.self.vo",)),
    ],
)
def test_the_lines_for_a_training_run_give_the_options_of_the_page(options):
    from wisca_app.rescaling.training import in_training
    from wisca_core.training.choices import Choices

    line = next(line for line in in_training(options).splitlines() if line.startswith("WiscaCallback("))
    call = ast.parse(line.split(".attach")[0], mode="eval").body
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert given.pop("every") == 250
    assert Choices(**given).options == options
