"""The census: verdicts worked out from places, types proved end to end, a pool whose processes crash and hang, what is
kept, and the command that shows it.
"""

import csv
import json
import textwrap
from dataclasses import replace

import pytest

from wisca_core import verdicts
from wisca_core.architecture.families import families
from wisca_core.architecture.site import GRANULARITIES
from wisca_core.census import all_types, causal_types, census, coverage, entry, kept, known, pool, row_text, rule_lines
from wisca_core.census import judge as judging
from wisca_core.census import released as came
from wisca_core.census.entry import (
    ABSENT,
    NOT_REACHED,
    OPEN,
    PAIRS,
    PARTLY,
    PROVED,
    REFUSED,
    Entry,
    Pair,
    Place,
    pair_of,
)
from wisca_core.census.judge import judge_type, unreached_entry
from wisca_core.census.table import COLUMNS, in_words, table
from wisca_core.cli import main
from wisca_core.equivalence import proof
from wisca_core.errors import BadOption, Cancelled, UnknownArchitecture, WiscaError
from wisca_core.storage import folder

ALL = GRANULARITIES


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("WISCA_HOME", str(tmp_path / "home"))


@pytest.fixture(autouse=True)
def nothing_came_with_it(monkeypatch):
    """Results that came with this version are tested where they are wanted."""
    monkeypatch.setattr(came, "_all", dict)


@pytest.fixture(scope="module")
def made():
    """Entries as the real thing makes them, once for the file: proved, proved in part of its pairs, refused by its row,
    attention-free."""
    return {name: judge_type(name) for name in ("llama", "nanochat", "dbrx", "mamba")}


def held(name="decoder.self", at=ALL, reason="", is_idle=False):
    return Place(name, 2, ("channel",), at, reason, is_idle)


# --- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "verdict"),
    [
        ((), ABSENT),
        ((held(),), PROVED),
        ((held(), held("decoder.cross")), PROVED),
        ((held(at=("tensor",), reason="differs by 0.2"),), PARTLY),  # a granularity failed
        ((held(at=("tensor", "group")),), PARTLY),  # one was not proved, for whatever reason
        ((held(), Place("decoder.self", 0, reason="a clip")), PARTLY),  # other layers are refused
        ((held(at=(), reason="differs by 0.2"),), REFUSED),
        ((Place("model", 0, reason="no attention"),), REFUSED),
        ((held(), held("vision.self", (), "not run", True)), PROVED),  # a tower that no text reaches
        ((held("vision.self", (), "not run", True),), REFUSED),  # nothing that runs is left: never called proved
    ],
)
def test_the_verdict_over_places(places, verdict):
    assert pair_of("qk", places, ALL).verdict == verdict


def test_the_finest_granularity_is_that_of_what_was_proved():
    coarse = Place("decoder.self", 2, ("tensor",), ALL)
    fine = Place("decoder.self:rope", 2, ("group", "channel"), (), "differs")
    assert pair_of("qk", (coarse, fine), ALL).finest == "tensor"
    assert pair_of("qk", (coarse, replace(fine, held=("group",))), ALL).finest == "channel"
    assert pair_of("qk", (replace(coarse, held=()),), ALL).finest == ""


def test_what_no_input_runs_is_counted_and_never_called_proved_by_itself():
    with_tower = pair_of("qk", (held(), held("vision.self", (), "not run", True)), ALL)
    assert in_words(with_tower) == "proved, channel; 1 not run" and with_tower.reasons == ()
    plain = pair_of("vo", (held(),), ALL)
    found = Entry("mllama", pairs=(with_tower, plain, replace(plain, pair="mlp")), n_trials=1)
    assert (
        found.sentence
        == "mllama is covered: QK, VO and MLP are exact, down to single channels; 1 further place is run by no input "
        "tried here."
    )
    alone = pair_of("qk", (held("vision.self", (), "not run", True),), ALL)
    assert in_words(alone) == REFUSED and alone.reasons == ("not run",) and alone.finest == ""


def test_counts_and_reasons_over_types(made):
    missed = unreached_entry("bert", "it took longer than 1 s", ALL, 1.0)
    found = coverage([*made.values(), missed, kept.entry("gpt2")])
    assert (found.n_types, found.n_reached, found.n_open) == (6, 4, 1)
    assert {v: found.n("qk", v) for v in (PROVED, REFUSED, NOT_REACHED, OPEN)} == {
        PROVED: 1,
        REFUSED: 3,
        NOT_REACHED: 1,
        OPEN: 1,
    }
    assert (found.n("vo"), found.n("mlp")) == (2, 3)
    by_reason = {(pair, r.text): r.model_types for pair, r in found.reasons}
    assert next(
        names for (pair, text), names in by_reason.items() if pair == "qk" and "norm without weights" in text
    ) == ("nanochat",)
    assert not any("bert" in names for names in by_reason.values())
    assert [(r.text, r.model_types) for r in found.not_reached] == [("it took longer than 1 s", ("bert",))]
    assert found.sentence == (
        "Of 5 architectures, in their default configs, QK is exact on 1, VO on 2 and the MLP pair on 3; the others are "
        "refused by name, and 1 was not "
        "reached. 1 more was not tried here yet."
    )


# --- one type ---------------------------------------------------------------------------------------------------------


def test_a_plain_decoder_is_proved_at_every_granularity(made):
    found = made["llama"]
    assert [(p.pair, p.verdict, p.finest) for p in found.pairs] == [(pair, PROVED, "channel") for pair in PAIRS]
    assert all(place.held == ALL and place.n_sites == 2 for pair in found.pairs for place in pair.places)
    assert 0 < found.max_rel < proof.TOLERANCE and found.liveness > proof.ALIVE
    # three pairs by themselves and two together; its 4 KV heads of several channels make all three partitions different
    assert found.n_trials == 3 * 5 and found.n_cases >= 5
    assert found.sentence == "llama is covered: QK, VO and MLP are exact, down to single channels."
    variant = "With num_key_value_heads = 8, attention_bias = true, mlp_bias = true"
    assert f"{variant}: proved for decoder.none.mlp, decoder.self.qk, decoder.self.vo." in found.remarks


def test_what_a_row_refuses_is_refused_with_its_reason_and_the_rest_is_proved(made):
    found = made["nanochat"]
    assert {p.pair: p.verdict for p in found.pairs} == {"qk": REFUSED, "vo": PROVED, "mlp": PROVED}
    assert "norm without weights" in found["qk"].reasons[0] and found.verdict == PARTLY
    assert {made["dbrx"][pair].verdict for pair in ("qk", "vo")} == {REFUSED} and "clip_qkv" in made["dbrx"].reasons[0]


def test_a_model_without_attention_is_refused_without_being_built(monkeypatch):
    monkeypatch.setattr(judging, "_proved_entry", lambda *_: pytest.fail("it was built"))
    found = judge_type("mamba")
    assert found.verdict == REFUSED and "no attention" in found.reasons[0]
    assert found.sentence == "mamba is refused: nothing of it can be rescaled exactly."


def test_whatever_a_model_raises_is_why_it_was_not_reached(monkeypatch):
    def fails(*_):
        raise ZeroDivisionError("float\ndivision")

    monkeypatch.setattr(judging, "_proved_entry", fails)
    found = judge_type("llama")
    assert found.not_reached == "ZeroDivisionError: float division" and found.verdict == NOT_REACHED
    assert all(pair.verdict == NOT_REACHED for pair in found.pairs)


def test_a_cancel_is_no_verdict():
    def cancelled(*_):
        raise Cancelled("cancelled.")

    with pytest.raises(Cancelled):
        judge_type("llama", progress=cancelled)


def test_a_wrong_rule_is_refused_at_the_granularities_where_it_is_wrong(monkeypatch):
    """Llama's rotary pairs untied: one factor a KV group is still right, single channels are not."""
    right = judging.sites_of

    def wrong(*given, **named):
        found = right(*given, **named)
        return replace(found, sites=tuple(replace(s, exact_ties=()) if s.key.pair == "qk" else s for s in found.sites))

    monkeypatch.setattr(judging, "sites_of", wrong)
    found = judge_type("llama")
    assert found["qk"].verdict == PARTLY and found["qk"].places[0].held == ("tensor", "group")
    assert "differ by" in found["qk"].reasons[0]
    assert found["vo"].verdict == PROVED and found["mlp"].verdict == PROVED
    assert 0 < found.max_rel < proof.TOLERANCE  # of what was proved, not of what failed


# --- the pool ---------------------------------------------------------------------------------------------------------

ANSWERS = """
    import os, signal, sys, time
    {first}
    def answers(asked):
        for name, _ in asked:
            if name == "gpt2":
                os.kill(os.getpid(), signal.SIGSEGV)
            if name == "bert":
                time.sleep(60)
            if name == "bloom":
                sys.exit("out of luck")
            print("what a library prints")
            yield {{"opt": "no answer", "xlnet": "{{}}"}}.get(name, {answer!r}.replace("NAME", name)).encode()
"""


@pytest.fixture
def function(tmp_path, monkeypatch):
    """What crashes on gpt2, hangs on bert, babbles on opt and xlnet, leaves on bloom and proves everything else."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def function(first: str = "pass"):
        pairs = tuple(Pair(pair, PROVED) for pair in PAIRS)
        answer = json.dumps(Entry("NAME", pairs=pairs, granularities=("channel",), n_trials=1, when=1.0).to_json())
        (tmp_path / "stand_in.py").write_text(textwrap.dedent(ANSWERS.format(first=first, answer=answer)))
        return "stand_in:answers"

    return function


def test_a_type_that_crashes_hangs_or_babbles_is_not_reached_and_the_others_are(function):
    seen = []
    found = census(
        ("gpt2", "llama", "bert", "opt", "xlnet", "bloom", "qwen2"),
        ("channel",),
        lambda *step: seen.append(step),
        limit_seconds=2,
        function=function(),
    )
    assert [e.model_type for e in found] == ["gpt2", "llama", "bert", "opt", "xlnet", "bloom", "qwen2"]
    why = {e.model_type: e.not_reached for e in found}
    assert why == {
        "gpt2": "its process ended by signal SIGSEGV",
        "llama": "",
        "bert": "it took longer than 2 s",
        "qwen2": "",
        "opt": "its process gave an answer that is none",
        "xlnet": "its process gave an answer that is none",
        "bloom": "its process ended with exit code 1 (out of luck)",
    }
    assert {e.model_type for e in found if e.verdict == PROVED} == {"llama", "qwen2"}
    assert seen[-1] == ("proved", 7, 7) and all(total == 7 for _, _, total in seen)
    # nothing is proved twice, what was not reached is tried once more
    left = [name for name in why if kept.lacks(name, ("channel",))]
    assert left == ["gpt2", "bert", "opt", "xlnet", "bloom"] and kept.lacks("llama", ALL)


def test_a_cancel_ends_the_processes_and_keeps_what_was_proved(function):
    calls = []

    def cancel_after_one(step, done, total):
        calls.append(step)
        if done:
            raise Cancelled("cancelled.")

    with pytest.raises(Cancelled):
        census(("llama", "bert", "qwen2"), ("channel",), cancel_after_one, n_workers=1, function=function())
    assert [kept.lacks(name, ("channel",)) for name in ("llama", "bert", "qwen2")] == [False, True, True]


def test_a_worker_that_cannot_start_is_an_error_not_a_verdict(function):
    with pytest.raises(WiscaError, match=r"cannot start: its process ended with exit code 1 \(no torch\)"):
        census(("llama",), ("channel",), function=function("sys.exit('no torch')"))
    assert entry("llama").verdict == OPEN


def test_the_real_worker_proves_and_answers(made):
    (found,) = census(("nanochat",), ("tensor",), n_workers=1)
    assert found.granularities == ("tensor",) and found["vo"].places[0].held == ("tensor",)
    assert {p.pair: p.verdict for p in found.pairs} == {p.pair: p.verdict for p in made["nanochat"].pairs}


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_a_result_is_found_again_under_the_same_versions_and_rules_only(made, monkeypatch):
    kept.keep(made["llama"])
    assert entry("llama") == made["llama"] and entry("qwen2").verdict == OPEN
    assert not kept.lacks("llama", ALL)
    monkeypatch.setattr(verdicts, "versions", lambda: {"transformers": "6.0"})
    assert entry("llama").verdict == OPEN and kept.lacks("llama", ALL)


def test_a_damaged_or_foreign_result_counts_as_none(made):
    kept.keep(made["llama"])
    (path,) = folder("proofs").iterdir()
    whole = json.loads(path.read_text())
    assert (whole["format"], whole["version"]) == ("wisca-census", verdicts.VERSION)
    spoiled = [
        "{",
        json.dumps(whole | {"version": verdicts.VERSION + 1}),
        json.dumps(whole | {"model_type": "qwen2"}),
        json.dumps(whole | {"pairs": []}),
        json.dumps(whole | {"pairs": [{**p, "verdict": "surely"} for p in whole["pairs"]]}),
        json.dumps(whole | {"pairs": 3}),
    ]
    for text in spoiled:
        path.write_text(text)
        assert entry("llama").verdict == OPEN, text


def test_without_a_result_the_row_alone_speaks():
    assert entry("mamba").verdict == REFUSED and entry("llama").verdict == OPEN
    assert entry("llama").sentence == "llama has a rule; the census has not tried it here yet."


# --- rules in words ---------------------------------------------------------------------------------------------------


def test_every_rule_has_words_a_file_and_its_text():
    for name, family in families().items():
        assert rule_lines(family) and known.short_rule(family), name
        assert row_text(family.name).startswith(f"[families.{family.name}]") or row_text(family.name).startswith(
            f'[families."{family.name}"]'
        )
        assert known.row_file(family.name).endswith(".toml")


def test_the_words_say_layout_rotation_norm_and_refusals():
    words = "\n".join(rule_lines(families()["gemma3_text"]))
    assert (
        "one vector of gains shared by all heads, stored as gain - 1" in words
        and "channel i turns with i + half the width" in words
    )
    assert "[q; k; v] one below the other" in "\n".join(rule_lines(families()["gpt2"]))
    assert "QK refused: q and k pass a norm without weights" in "\n".join(rule_lines(families()["nanochat"]))
    latent = "\n".join(rule_lines(families()["deepseek_v3"]))
    assert (
        "where the config says `rope_interleave == False`: channel i turns with i + half the width" in latent
        and "Else: neighbouring channels" in latent
    )
    assert known.short_rule(families()["mamba"]) == "refused" and known.short_rule(None) == "no rule"


def test_types_of_the_mapping_and_those_with_a_row():
    assert {"llama", "gpt2", "mamba"} <= set(causal_types()) and "distilbert" not in causal_types()
    assert set(all_types()) == {*causal_types(), *families()}
    with pytest.raises(UnknownArchitecture, match="Close to it: llama"):
        known.check_type("Lama")
    with pytest.raises(UnknownArchitecture, match="wisca architectures"):
        census(("no-such-thing-at-all",))
    with pytest.raises(BadOption, match="row"):
        census(("llama",), ("row",))


# --- what came with this version --------------------------------------------------------------------------------------


def test_what_came_with_this_version_is_shown_as_such_and_does_not_count_as_tried_here(
    made, tmp_path, monkeypatch, capsys
):
    file = came.write((made["llama"], kept.entry("gpt2")), tmp_path / "released.json")
    with_it = came.read(file)
    assert list(with_it) == ["llama"]  # of gpt2 nothing was proved
    monkeypatch.setattr(came, "_all", lambda: with_it)
    found = kept.entry("llama")
    assert found.is_released and replace(found, is_released=False) == made["llama"]
    assert (
        kept.lacks("llama", ALL)
        and came.write((found,), tmp_path / "again.json")
        and came.read(tmp_path / "again.json") == {}
    )
    assert main(["architectures", "llama"]) == 0
    assert "when this version of wisca was made (--prove does it here)" in " ".join(capsys.readouterr().out.split())
    said = coverage(kept.entries(("llama", "gpt2"))).sentence
    assert "All of it was tried when this version of wisca was made" in said and "1 more was not tried here yet" in said
    # what is proved here comes first
    kept.keep(made["llama"])
    assert kept.entry("llama") == made["llama"] and coverage(kept.entries(("llama",))).n_released == 0


@pytest.mark.parametrize("change", ["row", "versions"])
def test_what_came_with_it_is_not_about_other_rows_or_versions(made, tmp_path, monkeypatch, change):
    with_it = came.read(came.write((made["llama"],), tmp_path / "released.json"))
    monkeypatch.setattr(came, "_all", lambda: with_it)
    assert kept.entry("llama").is_released
    if change == "row":
        family = families()["llama"]
        monkeypatch.setattr(came, "families", lambda: {"llama": replace(family, rope="interleaved")})
    else:
        monkeypatch.setattr(came, "version", lambda name: "1.2.3")
    came.ground_digest.cache_clear()
    try:
        assert not kept.entry("llama").is_released and kept.entry("llama")["qk"].verdict == OPEN
    finally:
        came.ground_digest.cache_clear()


def test_a_build_of_torch_for_another_device_proves_the_same(monkeypatch):
    here = came.ground_digest("llama")
    version = came.version
    monkeypatch.setattr(came, "version", lambda name: version(name).partition("+")[0] + "+cu130")
    came.ground_digest.cache_clear()
    assert came.ground_digest("llama") == here
    came.ground_digest.cache_clear()


def test_the_results_that_came_are_of_known_types_and_say_what_was_measured(monkeypatch):
    monkeypatch.undo()
    with_it = came.read()
    assert set(with_it) <= set(all_types()) and len(with_it) > 400
    found = [Entry.from_json(one) for one in with_it.values()]
    proved = [e for e in found if any(p.verdict in (PROVED, PARTLY) for p in e.pairs)]
    assert len(proved) > 350 and all(
        e.n_trials and 0 <= e.max_rel < 1e-11 and e.liveness > 0 and e.when for e in proved
    )


# --- the command ------------------------------------------------------------------------------------------------------


def the_document(capsys):
    return json.loads(capsys.readouterr().out)


def test_the_table_names_every_architecture_before_anything_was_proved(capsys):
    assert main(["architectures", "--json"]) == 0
    found = the_document(capsys)
    assert (found["format"], found["version"]) == ("wisca-architectures", 1)
    assert [a["architecture"] for a in found["architectures"]] == list(causal_types())
    by_name = {a["architecture"]: a for a in found["architectures"]}
    assert by_name["llama"]["pairs"]["qk"]["verdict"] == OPEN and by_name["llama"]["max_rel"] is None
    assert by_name["mamba"]["pairs"]["qk"]["places"][0]["reason"].startswith("the model has no attention")
    assert (
        found["coverage"]["counts"]["qk"][PROVED] == 0
        and "The census has tried none of" in found["coverage"]["sentence"]
    )


def test_the_table_shows_what_is_kept(made, capsys, tmp_path):
    for one in made.values():
        kept.keep(one)
    out = tmp_path / "table.csv"
    assert main(["architectures", "--all", "--csv", str(out)]) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("llama "))
    assert line.count("proved, channel") == 3
    assert "QK, nanochat: q and k pass a norm without weights" in text and "Slowest: " in text
    rows = list(csv.DictReader(out.open()))
    assert list(rows[0]) == list(COLUMNS) and [r["architecture"] for r in rows] == list(all_types())
    assert next(r for r in rows if r["architecture"] == "nanochat")["qk"] == "refused"
    out.write_text("mine")
    assert main(["architectures", "--csv", str(out)]) == 2 and out.read_text() == "mine"


def test_one_architecture_in_full(made, capsys):
    kept.keep(made["nanochat"])
    assert main(["architectures", "nanochat"]) == 0
    text = capsys.readouterr().out
    assert "nanochat, NanoChatForCausalLM" in text and "VO and MLP are exact" in text
    assert "[families.unscaled_norm]" in text and "rows/decoders.toml" in text
    assert main(["architectures", "nanochat", "--json"]) == 0
    found = the_document(capsys)
    assert found["format"] == "wisca-architecture" and found["row"] == "unscaled_norm" and found["exit_code"] == 0
    assert found["pairs"]["vo"] == {"verdict": PROVED, "finest": "channel", "places": found["pairs"]["vo"]["places"]}


def test_exit_codes_are_those_of_the_other_commands(capsys):
    assert main(["architectures", "mamba"]) == 1  # nothing of it can be rescaled
    assert main(["architectures", "lama"]) == 2
    assert "Close to it: llama" in capsys.readouterr().err
    assert main(["architectures", "--granularity", "row"]) == 2
    assert "tensor, group, channel" in capsys.readouterr().err


def test_prove_runs_the_pool_and_shows_its_result(function, monkeypatch, capsys):
    monkeypatch.setattr(pool, "FUNCTION", function())
    assert main(["architectures", "qwen2", "--prove", "--granularity", "channel", "--json"]) == 0
    assert the_document(capsys)["pairs"]["qk"]["verdict"] == PROVED
    assert main(["architectures", "gpt2", "--prove"]) == 1
    assert "its process ended by signal SIGSEGV" in capsys.readouterr().out


def test_the_table_of_entries(made):
    found = table(made.values()).set_index("architecture")
    assert found.loc["llama", "qk"] == "proved, channel" and found.loc["nanochat", "attention"] == PARTLY
    assert found.loc["mamba", "max_rel"] != found.loc["mamba", "max_rel"]  # nothing was proved: empty, not 0
    assert found.loc["llama", "max_rel"] == made["llama"].max_rel
