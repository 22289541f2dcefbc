"""Specs of comparisons: what is left out has its default, and every wrong value is named with its field and what is
allowed.
"""

import json
from dataclasses import replace

import pytest

from wisca_core.comparison.arm_words import in_words
from wisca_core.comparison.arms import choices_of, schedule_of
from wisca_core.comparison.presets import ARMS, PRESETS, twin_of
from wisca_core.comparison.spec import FORMAT, VERSION, ModelSpec, Spec
from wisca_core.comparison.spec_checks import check_spec
from wisca_core.comparison.spec_reading import load_spec, spec_from
from wisca_core.errors import SpecError, UnreadableInput

TWO_RATES = {"optimiser": {"learning_rates": [1e-3, 2e-3]}}


def test_the_default_preset_is_the_one_that_was_promised():
    spec = PRESETS["default"]
    assert (spec.model.width, spec.model.n_layers, spec.model.n_heads, spec.model.n_kv_heads) == (64, 4, 8, 1)
    assert [arm.name for arm in spec.arms] == ["baseline", "wisca", "rates"]
    # 2 arms x 3 rates x 3 pilot seeds, and 3 arms x 8 seeds
    assert (spec.steps, len(spec.seeds), spec.n_cells) == (500, 8, 18 + 24)
    assert [arm.strength for arm in PRESETS["dose"].arms[1:]] == [-1, -0.5, 0.5, 1, 1.5]
    for one in PRESETS.values():
        whole = one if one.model.source != "lora" else replace(one, model=replace(one.model, path="/models/mine"))
        assert check_spec(whole) is whole


def test_specs_from_before_methods_had_names_are_read():
    def arm(**more):
        return spec_from({"arms": ["baseline", {"name": "mine", "optimizer_state": "leave", **more}]}).arms[1]

    assert arm(gram=True) == arm(method="gram") != arm(gram=False) == arm(method="wisca")
    assert "by full changes of basis" in in_words(arm(gram=True))
    with pytest.raises(SpecError, match="no such field"):
        arm(gram="yes")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": [1, -2]}, "seeds[1]"),
        ({"seeds": list(range(1001))}, "seeds"),
        ({"pilot": {"seeds": list(range(101, 1102))}, **TWO_RATES}, "pilot.seeds"),
        ({"seeds": 4}, "seeds"),
        ({"batch": 4}, "batch"),
        ({"model": []}, "model"),
        ({"model": {"n_heads": 7}}, "model.n_heads"),
        ({"model": {"n_heads": 64}}, "model.n_heads"),
        ({"model": {"n_kv_heads": 3}}, "model.n_kv_heads"),
        ({"model": {"depth": 3}}, "model.depth"),
        ({"data": {"source": "web"}}, "data.source"),
        ({"data": {"source": "text"}}, "data.path"),
        ({"optimiser": {"name": "lion"}}, "optimiser.name"),
        ({"optimiser": {"learning_rates": []}}, "optimiser.learning_rates"),
        ({"optimiser": {"learning_rates": [1e-3, 0]}}, "optimiser.learning_rates[1]"),
        ({"optimiser": {"learning_rates": [float("nan")]}}, "optimiser.learning_rates[0]"),
        ({"optimiser": {"warmup_steps": 2000}}, "optimiser.warmup_steps"),
        ({"evaluate_every": 5000}, "evaluate_every"),
        ({"arms": ["baseline", "wiska"]}, "arms[1]"),
        ({"arms": ["baseline"]}, "arms"),
        ({"arms": ["wisca", "qk_only"]}, "arms"),
        ({"arms": ["baseline", {"name": "mine", "every": 0}]}, "arms[1].every"),
        ({"arms": ["baseline", {"name": "mine", "pairs": ["kv"]}]}, "arms[1].pairs"),
        ({"arms": ["baseline", {"name": "my arm"}]}, "arms[1].name"),
        ({"arms": ["baseline", {"every": 3}]}, "arms[1].name"),
        ({"arms": ["baseline", {"name": "mine", "kind": "inverse", "at_start": False}]}, "arms[1].at_start"),
        ({"optimiser": {"clip": -1}}, "optimiser.clip"),
        ({"optimiser": {"epsilon": float("inf")}}, "optimiser.epsilon"),
        ({"pilot": {"seeds": [101]}}, "optimiser.learning_rates"),  # own best rate among one
        ({"pilot": {"seeds": [101, 3]}, **TWO_RATES}, "pilot.seeds"),  # 3 is tested
        ({"pilot": {"seeds": [101, 101]}, **TWO_RATES}, "pilot.seeds"),
        ({"pilot": {"seeds": [101], "arms": ["wisca"]}, **TWO_RATES}, "pilot.arms"),
        ({"pilot": {"seeds": [101], "source": "../other"}, **TWO_RATES}, "pilot.source"),
        ({"pilot": {"arms": ["baseline"]}}, "pilot.arms"),
        ({"arms": ["baseline", {"name": "mine", "strength": float("nan")}]}, "arms[1].strength"),
        ({"arms": ["baseline", {"name": "mine", "strength": 1e9}]}, "arms[1].strength"),
        ({"arms": ["baseline", {"name": "mine", "kind": "rates", "granularity": "channel"}]}, "arms[1].granularity"),
        (
            {"arms": ["baseline", {"name": "mine", "kind": "rates", "optimizer_state": "leave"}]},
            "arms[1].optimizer_state",
        ),
        ({"arms": ["baseline", {"name": "mine", "clip_norm": "plain"}]}, "arms[1].clip_norm"),
        *(
            ({"arms": ["baseline", {"name": "mine"} | words]}, f"arms[1].{field}")
            for words, field in (
                ({"start": 1.5}, "start"),
                ({"start": 0.5, "stop": 0.2}, "stop"),
                ({"start": 900, "stop": 0.5}, "stop"),  # of 1,200 steps
                ({"start": 5, "every": None}, "start"),
                ({"start": 5, "kind": "inverse"}, "start"),
                ({"when": 0.5}, "when"),
                ({"when": "far"}, "when"),
                ({"when": 2, "kind": "placebo"}, "when"),
                ({"when": 2, "strength": 0.5}, "when"),
                ({"granularity": "qk=fine"}, "granularity"),
                ({"granularity": {"ov": "tensor"}}, "granularity"),
                ({"granularity": {"qk": "channel"}, "kind": "rates"}, "granularity"),
            )
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_field_and_what_is_allowed(given, field):
    with pytest.raises(SpecError) as found:
        spec_from(given)
    assert found.value.field == field
    assert str(found.value).startswith(f"{field}: ") and found.value.allowed in str(found.value)


def test_a_warm_up_that_nobody_asked_for_is_no_longer_than_a_tenth_of_the_run():
    assert [spec_from({"steps": n}).optimiser.warmup_steps for n in (5, 30, 499, 500, 5000)] == [0, 3, 49, 50, 50]
    assert (
        spec_from({"steps": 30, "evaluate_every": 10, "optimiser": {"learning_rates": [0.01]}}).optimiser.warmup_steps
        == 3
    )
    assert spec_from({"steps": 300, "optimiser": {"warmup_steps": 200}}).optimiser.warmup_steps == 200


def test_an_arm_takes_the_options_of_a_live_rescale():
    own = {"name": "own", "granularity": {"vo": "tensor", "qk": "channel"}, "when": 1.5, "start": 0.25, "stop": 0.5}
    spec = spec_from({"steps": 40, "arms": ["baseline", own | {"every": 5}]})
    arm = spec.arm("own")
    assert arm.granularity == "qk=channel,vo=tensor" and spec_from(spec.to_json()) == spec
    assert in_words(arm) == (
        "QK and VO balanced by qk=channel,vo=tensor every 5 steps from 25% of the run up to 50% of the run where one "
        "side "
        "is 1.5 times heavier"
    )
    chosen = choices_of(arm)
    assert (chosen.granularity, chosen.when) == ("qk=channel,vo=tensor", 1.5)
    assert [step for step in range(41) if schedule_of(arm, 40).due(step)] == [10, 15, 20]
    for words in (
        {"granularity": {"qk": "tensor"}},
        {"granularity": {"vo": "group"}},  # one KV head
        {"when": 1},
        {"stop": 1190},
    ):
        with pytest.raises(SpecError, match="differs from"):
            spec_from({"arms": ["baseline", "wisca", {"name": "own"} | words]})


def test_the_longest_run_is_not_written_out_step_by_step():
    spec = spec_from({"arms": ["baseline", "wisca", {"name": "own", "start": 10**9 - 30}], "steps": 10**9})
    assert spec.arms[2].start == 10**9 - 30  # acts once, and is another arm


def test_arms_that_coincide_are_refused():
    with pytest.raises(SpecError, match="group.*differs from wisca"):
        spec_from({"arms": ["baseline", "wisca", "group"]})
    assert spec_from({"arms": ["baseline", "wisca", "group"], "model": {"n_kv_heads": 2}}).n_cells == 12
    assert spec_from({"arms": ["baseline", "rates", "rates_weighted"]}).n_cells == 12
    with pytest.raises(SpecError, match="rates_weighted.*differs from rates"):  # without clipping there is one norm
        spec_from({"arms": ["baseline", "rates", "rates_weighted"], "optimiser": {"clip": 0}})
    assert twin_of("group", Spec()) == "wisca"
    assert twin_of("group", Spec(model=ModelSpec(n_kv_heads=2))) == ""
    assert twin_of("channel", Spec()) == ""


def test_toml_and_json_give_the_same_spec_and_a_written_one_reads_back(tmp_path):
    (tmp_path / "a.toml").write_text(
        f'format = "{FORMAT}"\nversion = {VERSION}\nsteps = 50\nseeds = [3, 4]\narms = ["baseline", {{name = "mine", '
        f'every = 7, norm = "l2"}}]\n'
        "[optimiser]\nlearning_rates = [0.001, 0.002]\nwarmup_steps = 5\n"
        '[data]\nsource = "text"\npath = "book.txt"\n'
    )
    spec = load_spec(tmp_path / "a.toml")
    assert (spec.steps, spec.seeds, spec.n_cells) == (50, (3, 4), 8)
    assert (spec.arms[1].name, spec.arms[1].every, spec.arms[1].norm) == ("mine", 7, "l2")
    assert spec.data.path == str(tmp_path / "book.txt")  # beside the spec
    (tmp_path / "b.json").write_text(json.dumps({"format": FORMAT, "version": VERSION, **spec.to_json()}))
    assert load_spec(tmp_path / "b.json") == spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "begins with format"),
        ("steps = 5", "begins with format"),
        (f'format = "{FORMAT}"\nversion = 2', "version 2; version 1 is read here"),
        ("{", "not valid JSON"),
        ("[" * 9, "not valid TOML"),
    ],
)
def test_a_file_that_is_no_spec_is_refused_by_what_it_is(tmp_path, text, said):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(UnreadableInput, match=said):
        load_spec(tmp_path / "x.toml")


def test_a_missing_spec_is_named(tmp_path):
    with pytest.raises(UnreadableInput, match="nowhere.toml: cannot be opened: there is no such file"):
        load_spec(tmp_path / "nowhere.toml")


def test_every_known_arm_differs_from_the_others():
    assert len({arm.does for arm in ARMS.values()}) == len(ARMS)
