"""Setting up a comparison on the Compare page: what is asked, what is said before the start, what cannot be started."""

import pytest
from compare_page import started
from dashboard_page import metrics, page, texts
from streamlit.testing.v1 import AppTest

from wisca_app.comparing import fields
from wisca_core.comparison import folder

pytestmark = pytest.mark.usefixtures("known_speed", "proved_before")


def test_before_the_start_time_memory_and_seeds_are_said():
    at = page("compare", comparison="new")
    # 2 arms x 3 rates x 3 pilot seeds, and 3 arms x 8 seeds. Spread 0.063: (1.960 + 0.842)^2 (0.063 / 0.044)^2 = 16.1
    # for a known spread, and three more for the t distribution
    assert metrics(at)["Runs"] == "42" and metrics(at)["Seeds needed"] == "19"
    # 42 runs of 500 steps at 0.05 s, and what evaluating adds, on the cores there are: minutes, not seconds
    assert "min" in metrics(at)["Time, about"] and metrics(at)["Parameters"] == "201 k"
    assert "8 seeds planned: fewer" in texts(at)
    assert "0.044 nats per byte four times out of five takes 19 seeds" in texts(at)
    at.number_input(key="compare seeds default").set_value(24).run()
    assert metrics(at)["Runs"] == "90" and "24 seeds planned: enough" in texts(at)
    assert "nothing was measured at this length" not in texts(at)
    at.number_input(key="compare steps default").set_value(60).run()
    assert "nothing was measured at this length, size or unit, so it may be far off" in texts(at)


def test_start_creates_the_folder_and_asks_for_the_very_job(monkeypatch):
    asked = started(monkeypatch)
    at = page("compare", comparison="new")
    at.number_input(key="compare steps default").set_value(300).run()
    at.text_input(key="compare rates default").set_value("0.001, 0.003").run()
    at.multiselect(key="compare arms default").set_value(["wisca", "placebo"]).run()
    at.button(key="compare start").click().run()
    assert not at.exception
    place = folder.every()[0]
    assert asked == [("compare", {"comparison": str(place), "workers": None, "executor": "auto"})]
    spec = folder.read(place).spec
    assert [arm.name for arm in spec.arms] == ["baseline", "wisca", "placebo"]
    assert (spec.steps, spec.seeds, spec.optimiser.learning_rates, spec.optimiser.warmup_steps) == (
        300,
        tuple(range(1, 9)),
        (0.001, 0.003),
        30,
    )
    assert (spec.pilot.seeds, spec.pilot.arms) == ((101, 102, 103), ("baseline", "wisca"))
    assert {c.seed for c in folder.read(place).cells} == {101, 102, 103}  # the rest once the rates are chosen
    assert at.query_params["comparison"] in (place.name, [place.name])


def test_the_way_of_training_is_chosen_and_said(monkeypatch):
    asked = started(monkeypatch)
    monkeypatch.setattr("wisca_core.comparison.execution_plan.cores", lambda: 2)
    at = page("compare", comparison="new")
    assert "Time is for 2 processes of one thread," in texts(at)
    at.multiselect(key="compare arms default").set_value(["wisca"]).run()  # replicas know no rates of single matrices
    at.selectbox(key="compare executor").set_value("replicas").run()
    at.number_input(key="compare workers").set_value(3).run()
    assert "Time is for 3 processes of one thread, up to 2 runs at once in each," in texts(at)
    at.button(key="compare start").click().run()
    assert asked == [("compare", {"comparison": str(folder.every()[0]), "workers": 3, "executor": "replicas"})]


def test_a_way_that_cannot_train_the_model_is_refused_before_the_start():
    at = page("compare", comparison="new")
    at.selectbox(key="compare model, at first decoder").set_value("lora").run()
    at.selectbox(key="compare executor").set_value("replicas").run()
    assert "they are adapters on a frozen model" in texts(at) and not [b for b in at.button if b.key == "compare start"]


def test_a_cluster_is_asked_by_the_job_not_by_the_page(monkeypatch):
    asked = started(monkeypatch)
    monkeypatch.setattr(
        "wisca_core.comparison.cluster.connect", lambda: pytest.fail("a page must not wait for a cluster")
    )
    monkeypatch.setattr("wisca_app.comparing.asking.find_spec", lambda name: object())
    at = page("compare", comparison="new")
    at.selectbox(key="compare executor").set_value("ray").run()
    assert at.number_input(key="compare workers").disabled and "here, not for the cluster" in texts(at)
    at.button(key="compare start").click().run()
    assert asked[0][1]["executor"] == "ray"
    monkeypatch.setattr("wisca_app.comparing.asking.find_spec", lambda name: None)
    assert "On a Ray cluster" not in page("compare", comparison="new").selectbox(key="compare executor").options


def test_wrong_rates_are_named_as_they_were_written_and_nothing_starts():
    at = page("compare", comparison="new")
    for value, said in (
        ("fast", "fast cannot be used. Allowed is a number above 0 and at most 100."),
        ("", "nothing is given. Allowed is one rate or more, each once."),
        ("0.001, 1e9", "1e9 cannot be used. Allowed is a number above 0 and at most 100."),
        ("0,002, 0,004", "0,002 cannot be used. Allowed is 0.002, with a point, or two rates with a comma and a space"),
        ("1,5e-3", "1,5e-3 cannot be used. Allowed is 1.5e-3, with a point"),
        ("1e-3 2e-3", "1e-3 2e-3 cannot be used. Allowed is a comma between two rates: 1e-3, 2e-3."),
        ("1e-3; 2e-3", "1e-3; 2e-3 cannot be used. Allowed is a comma between two rates: 1e-3, 2e-3."),
    ):
        at.text_input(key="compare rates default").set_value(value).run()
        assert not at.exception and f"Learning rates: {said}" in texts(at), texts(at)
        assert "cannot be started: see Learning rates" in texts(at)
        assert not [b for b in at.button if b.key == "compare start"] and not folder.every()
    at.text_input(key="compare rates default").set_value("0.001,0.003,1e-2,2").run()
    assert at.button(key="compare start")


def test_a_number_out_of_bounds_is_said_and_nothing_starts():
    at = page("compare", comparison="new")
    at.checkbox(key="compare own").check().run()
    for key, numbers, said in (
        (
            "compare seeds default",
            (0, -3, 10**15),
            "Seeds: {} cannot be used. Allowed is a whole number from 1 to 1,000.",
        ),
        ("compare pilot default", (-1, 10**15), "Pilot seeds: {} cannot be used. Allowed is a whole number from 0 to"),
        ("compare steps default", (0, -100), "Steps: {} cannot be used. Allowed is a whole number from 1"),
        (
            "compare every default",
            (0,),
            "Rescale every, steps: {} cannot be used. Allowed is a whole number of steps from 1.",
        ),
        (
            "compare effect default",
            (-1.0, 0.0),
            "Effect to see, nats: {:g} cannot be used. Allowed is a number above 0",
        ),
        ("compare context decoder", (0, 10**6), "Context: {} cannot be used. Allowed is a whole number from 2 to"),
        ("compare batch decoder", (0,), "Batch: {} cannot be used."),
        ("compare width", (0, -8), "Width: {} cannot be used."),
        ("compare layers", (0,), "Layers: {} cannot be used."),
        ("compare heads", (0,), "Query heads: {} cannot be used."),
        ("compare kv", (0,), "KV heads: {} cannot be used."),
        ("compare workers", (0, 10**6), "Processes: {} cannot be used. Allowed is a whole number from 1 to 1,024."),
        ("compare own From step", (-1,), "From step: {} cannot be used. Allowed is a whole number of steps from 0."),
        (
            "compare own Up to step",
            (-1,),
            "Up to step: {} cannot be used. Allowed is a whole number of steps from 0, or nothing",
        ),
    ):
        good = at.number_input(key=key).value
        for number in numbers:
            at.number_input(key=key).set_value(number).run()
            assert not at.exception and said.format(number) in texts(at), texts(at)
            assert f"cannot be started: see {said.partition(':')[0]}" in texts(at)
            assert not [b for b in at.button if b.key == "compare start"]
        at.number_input(key=key).set_value(good).run()
    assert not at.button(key="compare start").disabled


def test_what_is_wrong_stands_below_its_row_and_above_the_header_of_a_fold():
    at = page("compare", comparison="new")

    def order(said: str) -> list[str]:
        """The fields around the sentence, as they stand on the page."""
        walked, todo = [], [at.main]
        while todo:
            element = todo.pop(0)
            todo[:0] = list(getattr(element, "children", {}).values())
            walked.append(str(getattr(element, "label", "") or getattr(element, "value", "")))
        i = next(i for i, one in enumerate(walked) if one.startswith(said))
        return [next(filter(None, reversed(walked[:i]))), next(filter(None, walked[i + 1 :]))]

    at.number_input(key="compare seeds default").set_value(0).run()
    assert order("Seeds: 0") == ["Effect to see, nats", fields.OWN]
    at.number_input(key="compare seeds default").set_value(8).run()
    at.number_input(key="compare kv").set_value(3).run()
    assert order("KV heads: 3")[1] == fields.MODEL
    at.number_input(key="compare kv").set_value(1).run()
    at.multiselect(key="compare arms default").set_value([]).run()
    assert order("Arms beside the baseline: choose at least one arm beside the baseline.") == [
        "Arms beside the baseline",
        "Rescale every, steps",
    ]


def test_a_rescale_that_never_happens_after_the_start_is_said():
    at = page("compare", comparison="new")
    at.multiselect(key="compare arms default").set_value(["wisca"]).run()
    assert "never happens" not in texts(at)
    at.number_input(key="compare every default").set_value(500).run()
    assert "Rescale every 500 steps in a run of 500: after the start it never happens." in texts(at)
    assert not at.button(key="compare start").disabled


def test_an_error_of_the_spec_leads_to_the_field_of_the_form():
    at = page("compare", comparison="new")
    at.number_input(key="compare kv").set_value(3).run()
    assert "see KV heads, under Model and text" in texts(at)
    assert "KV heads: 3 cannot be used. Allowed is a divisor of query heads = 8." in texts(at)
    at.number_input(key="compare kv").set_value(1).run()
    at.checkbox(key="compare own").check().run()
    at.text_input(key="compare own name").set_value("Baseline").run()
    assert "see Name, under An arm of your own" in texts(at) and "Name: Baseline cannot be used." in texts(at)
    at.text_input(key="compare own name").set_value("wisca").run()
    assert "see Name, under An arm of your own" in texts(
        at
    ) and "Name: wisca cannot be used. It is the name of another arm, QK + VO" in texts(at)
    at.text_input(key="compare own name").set_value("baseline").run()
    assert "Name: baseline cannot be used. It is the name of another arm, Baseline." in texts(at)
    at.text_input(key="compare own name").set_value("mine").run()
    at.segmented_control(key="compare own pairs decoder").set_value([]).run()
    assert "see Pairs, under An arm of your own" in texts(at) and "Pairs: choose at least one pair." in texts(at)
    at.multiselect(key="compare arms default").set_value([]).run()
    at.checkbox(key="compare own").uncheck().run()
    assert "see Arms beside the baseline" in texts(at)
    at.selectbox(key="compare source decoder").set_value("text").run()
    at.multiselect(key="compare arms default").set_value(["wisca"]).run()
    assert "see Path on this machine, under Model and text" in texts(at)
    at.selectbox(key="compare source decoder").set_value("hub").run()
    at.text_input(key="compare hub decoder").set_value("owner/name").run()
    assert "see hub:owner/name, under Model and text" in texts(at)


def test_every_label_that_an_error_leads_to_is_on_the_page(monkeypatch):
    """Labels are written in one place and shown from another."""
    monkeypatch.setattr("wisca_app.cached.has_gpu", lambda: True)
    labels = set()
    at = page("compare", comparison="new")
    at.checkbox(key="compare own").check().run()
    for kind in ("decoder", "shrunk", "whole", "lora", "paper"):
        choose_model(at, kind)
        for text in ("text", "hub"):
            next(s for s in at.selectbox if s.label == "Text").set_value(text).run()
            labels |= {
                e.label
                for name in (
                    "number_input",
                    "text_input",
                    "selectbox",
                    "multiselect",
                    "checkbox",
                    "button_group",
                    "slider",
                    "expander",
                    "toggle",
                )
                for e in at.get(name)
            }
    named = {label for label, _ in fields._LABELS.values()} | set(fields._OWN_LABELS.values())
    labels |= {button.label for button in at.sidebar.button}
    assert not (named | {"hub:owner/name"}) - labels


def test_a_text_that_cannot_be_trained_on_is_refused_before_the_start(tmp_path):
    at = page("compare", comparison="new")
    at.selectbox(key="compare source decoder").set_value("text").run()
    (tmp_path / "short.txt").write_text("twelve bytes")
    for path, said in (
        ("/nope/x.txt", "Path on this machine: '/nope/x.txt' does not exist"),
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "short.txt"), "has 12 bytes"),
    ):
        at.text_input(key="compare path").set_value(path).run()
        assert not at.exception and said in texts(at) and not at.metric
        assert not [b for b in at.button if b.key == "compare start"]
    (tmp_path / "enough.txt").write_text("enough" * 1000)
    at.text_input(key="compare path").set_value(str(tmp_path / "enough.txt")).run()
    assert not at.button(key="compare start").disabled and metrics(at)["Runs"] == "42"


def test_a_model_that_does_not_fit_cannot_be_started(monkeypatch):
    monkeypatch.setattr("wisca_core.comparison.estimate.memory_free", lambda: 100)
    at = page("compare", comparison="new")
    assert at.button(key="compare start").disabled and "100 B are free" in texts(at)


def test_arms_that_coincide_with_this_model_are_not_offered():
    at = page("compare", comparison="new")
    assert "QK + VO by KV group" not in at.multiselect(key="compare arms default").options
    at.number_input(key="compare kv").set_value(2).run()
    assert "QK + VO by KV group" in at.multiselect(key="compare arms default").options


def choose_model(at: AppTest, kind: str) -> AppTest:
    at.selectbox(key="compare model, at first decoder").set_value(kind).run()
    assert not at.exception
    return at


@pytest.mark.parametrize(
    ("kind", "said", "runs", "arms"),
    [
        (
            "shrunk",
            "The open model's config made smaller: width 64, 4 layers, 8 query heads on 2 KV heads",
            "42",
            "QK + VO by KV group",
        ),
        ("whole", "The open model, from scratch: width 192, 8 layers", "42", "QK + VO, Gram-balanced"),
        ("lora", "LoRA of rank 8 on the open model", "48", "A/B Gram balance"),
    ],
)
def test_the_open_model_smaller_whole_or_with_adapters_is_one_choice_away(monkeypatch, kind, said, runs, arms):
    asked = started(monkeypatch)
    at = choose_model(page("compare", comparison="new"), kind)
    assert said in texts(at) and metrics(at)["Runs"] == runs
    offered = next(m for m in at.multiselect if m.label == "Arms beside the baseline")
    assert arms in offered.options
    at.button(key="compare start").click().run()
    assert not at.exception and len(asked) == 1
    spec = folder.read(folder.every()[0]).spec
    assert spec.model.source == kind and spec.model.path.endswith("gqa-docs/checkpoint-3600")
    assert spec.data.tokens == ("tokenizer" if kind == "lora" else "bytes")


def test_a_new_comparison_begins_with_the_open_model_where_it_is_ones_own(
    monkeypatch, tiny_llama, small_model, tmp_path
):
    started(monkeypatch)
    mine = tiny_llama(tmp_path / "mine", n_layers=2)
    at = page("compare", comparison="new", model=mine)
    assert "The open model's config made smaller: width 64" in texts(at)
    at = page("compare", comparison="new", model=small_model("gpt2"))  # q, k and v in one matrix
    assert (
        "No arm of learning rates alone here" in texts(at) and metrics(at)["Runs"] == "34"
    )  # 2 arms, 3 rates, 3 pilot seeds; 8 seeds
    assert not any("rates" in one for one in next(m for m in at.multiselect if "Arms" in m.label).value)
    encoder = small_model("bert", architectures=["BertModel"])  # predicts no next token
    at = page("compare", comparison="new", model=encoder)
    assert "Decoder, width 64, 4 layers" in texts(at)
    assert "was not made to predict the next token; a small decoder stands in for it." in texts(at)


def test_training_on_from_the_weights_takes_the_models_own_tokens(monkeypatch):
    started(monkeypatch)
    at = choose_model(page("compare", comparison="new"), "whole")
    next(b for b in at.get("button_group") if b.label == "Weights").set_value("continued").run()
    assert not at.exception and "its training continued" in texts(at)
    at.button(key="compare start").click().run()
    spec = folder.read(folder.every()[0]).spec
    assert (spec.model.weights, spec.data.tokens) == ("continued", "tokenizer")


def test_a_set_up_of_the_paper_says_what_it_needs_and_that_nothing_was_measured(monkeypatch):
    monkeypatch.setattr("wisca_core.comparison.estimate.thread_flops", lambda: 2e11)
    monkeypatch.setattr(
        "wisca_core.comparison.estimate.measure_step",
        lambda spec, device: pytest.fail("a billion parameters were built"),
    )
    at = choose_model(page("compare", comparison="new"), "paper")
    assert (
        metrics(at)["Parameters"] == "1.1 B"
        and "years" in metrics(at)["Time here, reckoned"]
        or "days" in metrics(at)["Time here, reckoned"]
    )
    said = texts(at)
    assert (
        "reckoned, not measured: 100 GFLOP/s a thread" in said and "That rate is an assumption: nothing was run" in said
    )
    assert "data.tokenizer: '' was given" in said and at.button(key="compare start").disabled


def test_an_arm_of_ones_own_may_act_in_a_part_of_the_run_and_by_pair(monkeypatch):
    started(monkeypatch)
    at = page("compare", comparison="new")
    at.checkbox(key="compare own").check().run()
    ratio, first, last = "compare own From a ratio of", "compare own From step", "compare own Up to step"
    assert at.number_input(key=ratio).disabled and not at.number_input(key=first).disabled  # at strength 0.5
    assert "From a ratio of: only of Balance at strength 1." in texts(at)
    at.slider(key="compare own strength").set_value(1.0).run()
    assert "From a ratio of: only" not in texts(at)
    at.segmented_control(key="compare own granularity").set_value("by pair").run()
    at.selectbox(key="compare own granularity qk").set_value("channel").run()
    at.number_input(key=ratio).set_value(1.5).run()
    at.number_input(key=first).set_value(200).run()
    at.number_input(key=last).set_value(100).run()
    assert "see Up to step, under An arm of your own" in texts(at)
    assert (
        "Up to step: 100 cannot be used. Allowed is a step not before From step = 200: an arm stops after it starts."
        in texts(at)
    )
    at.number_input(key=last).set_value(400).run()
    at.button(key="compare start").click().run()
    own = folder.read(folder.every()[0]).spec.arms[-1]
    assert (own.granularity, own.when, own.start, own.stop) == ("qk=channel,vo=tensor", 1.5, 200, 400)


def test_what_does_not_apply_to_an_arm_of_ones_own_is_not_sent_along(monkeypatch):
    started(monkeypatch)
    at = page("compare", comparison="new")
    at.checkbox(key="compare own").check().run()
    at.segmented_control(key="compare own granularity").set_value("channel").run()
    at.number_input(key="compare own From step").set_value(200).run()
    at.segmented_control(key="compare own when").set_value("start").run()
    at.segmented_control(key="compare own kind").set_value("rates").run()
    assert at.number_input(key="compare own From step").disabled
    at.button(key="compare start").click().run()
    own = folder.read(folder.every()[0]).spec.arms[-1]
    assert (own.kind, own.granularity, own.when, own.start, own.stop) == ("rates", "tensor", None, 0, None)


def test_an_arm_of_ones_own_goes_along_and_one_that_does_what_another_does_is_named(monkeypatch):
    started(monkeypatch)
    at = page("compare", comparison="new")
    at.checkbox(key="compare own").check().run()
    at.text_input(key="compare own name").set_value("half").run()
    at.button(key="compare start").click().run()
    own = folder.read(folder.every()[0]).spec.arms[-1]
    assert (own.name, own.strength, own.every) == ("half", 0.5, 25)
    at = page("compare", comparison="new")
    at.checkbox(key="compare own").check().run()
    at.slider(key="compare own strength").set_value(1.0).run()
    assert "an arm that differs from wisca" in texts(at) and not [b for b in at.button if b.key == "compare start"]


def test_the_effect_one_wants_to_see_decides_the_seeds(monkeypatch):
    at = page("compare", comparison="new")
    at.number_input(key="compare effect default").set_value(0.02).run()
    # spread 0.063 nats: (1.960 + 0.842)^2 (0.063 / 0.020)^2 = 77.9 for a known spread, and two more for t
    assert metrics(at)["Seeds needed"] == "80"
