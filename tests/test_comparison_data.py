"""The text of a comparison: recorded, split by name, and refused where it is too short."""

import json
from dataclasses import replace

import numpy as np
import pytest

from wisca_core.comparison.data import batch, check_text, load_corpus, windows
from wisca_core.comparison.spec import DataSpec, Spec
from wisca_core.comparison.tokens import DOCUMENT
from wisca_core.errors import SpecError, UnreadableInput


def of(**data) -> Spec:
    return replace(Spec(), data=DataSpec(**({"context": 8} | data)), batch_size=2)


def test_the_last_twentieth_of_one_text_is_held_out(tmp_path):
    text = bytes(range(97, 117)) * 20  # 400 bytes
    (tmp_path / "a.txt").write_bytes(text)
    corpus = load_corpus(of(source="text", path=str(tmp_path / "a.txt")))
    assert corpus.train.tolist() == [DOCUMENT, *text[:380]]
    assert corpus.validation.tolist() == [DOCUMENT, *text[380:]]
    assert (corpus.facts["n_train_tokens"], corpus.facts["n_validation_tokens"]) == (381, 21)


def test_one_changed_byte_changes_the_sha256(tmp_path):
    found = set()
    for text in (b"a" * 400, b"a" * 399 + b"b"):
        (tmp_path / "a.txt").write_bytes(text)
        found.add(load_corpus(of(source="text", path=str(tmp_path / "a.txt"))).facts["sha256"])
    assert len(found) == 2


def test_a_column_of_a_jsonl_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"body": f"row {i} of the file"}) for i in range(200)))
    corpus = load_corpus(of(source="jsonl", path=str(path), column="body"))
    assert corpus.facts["n_documents"] == 200
    both = [bytes(int(t) for t in stream if t != DOCUMENT).decode() for stream in (corpus.train, corpus.validation)]
    assert "row 7 of" in both[0] + both[1] and len(both[1]) > 0
    with pytest.raises(UnreadableInput, match=r"line 1: no text under 'text'; the line has body"):
        load_corpus(of(source="jsonl", path=str(path)))
    path.write_text('{"text": "x"}\n{"text"')
    with pytest.raises(UnreadableInput, match="line 2: not JSON"):
        load_corpus(of(source="jsonl", path=str(path)))


def test_text_shorter_than_one_batch_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"too short")
    with pytest.raises(SpecError, match="data: .* tokens of training text.*at least 18, one batch of 9"):
        load_corpus(of(source="text", path=str(tmp_path / "a.txt")))
    (tmp_path / "a.txt").write_bytes(b"x" * 100)
    with pytest.raises(SpecError, match="validation text.*at least 9, one window"):
        load_corpus(of(source="text", path=str(tmp_path / "a.txt")))


@pytest.mark.parametrize("look", [check_text, load_corpus])
def test_a_missing_text_and_a_folder_are_named(tmp_path, look):
    with pytest.raises(UnreadableInput, match=r"^data.path: '.*none.txt' does not exist"):
        look(of(source="text", path=str(tmp_path / "none.txt")))
    with pytest.raises(UnreadableInput, match=r"^data.path: '.*' is a folder"):
        look(of(source="jsonl", path=str(tmp_path)))


def test_the_least_text_that_passes_the_first_look_is_the_least_that_can_be_read(tmp_path):
    path = tmp_path / "a.txt"
    spec = of(source="text", path=str(path))
    path.write_bytes(b"x" * 160)  # of 160 bytes 8 are held out, with their DOCUMENT one window of 9
    check_text(spec)
    load_corpus(spec)
    path.write_bytes(b"x" * 159)
    for look in (check_text, load_corpus):
        with pytest.raises((SpecError, UnreadableInput)):
            look(spec)
    many = replace(spec, batch_size=40)  # 40 * 9 = 360 tokens: 359 bytes and DOCUMENT are what 377 bytes leave
    path.write_bytes(b"x" * 377)
    check_text(many)
    load_corpus(many)
    path.write_bytes(b"x" * 376)
    with pytest.raises(UnreadableInput, match="has 376 bytes; one batch of 40 .* take at least 377"):
        check_text(many)


def test_the_first_row_of_a_jsonl_file_is_looked_at_before_the_start(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps({"body": "x" * 200}) + '\n{"broken further down')
    check_text(of(source="jsonl", path=str(path), column="body"))  # only the first row: the rest is read at the start
    with pytest.raises(UnreadableInput, match="line 2: no text under 'text'; the line has body"):
        check_text(of(source="jsonl", path=str(path)))
    path.write_text("not JSON at all")
    with pytest.raises(UnreadableInput, match="line 1: not JSON"):
        check_text(of(source="jsonl", path=str(path)))
    path.write_text("")
    with pytest.raises(UnreadableInput, match="has 0 bytes"):
        check_text(of(source="jsonl", path=str(path)))


def test_a_batch_depends_on_seed_and_step_alone():
    stream = np.arange(1000, dtype=np.int16)
    one = batch(stream, seed=3, step=5, batch_size=4, context=8)
    assert one.shape == (4, 9) and (one[:, 1:] - one[:, :-1] == 1).all()
    assert (one == batch(stream, 3, 5, 4, 8)).all()
    assert not (one == batch(stream, 3, 6, 4, 8)).all() and not (one == batch(stream, 4, 5, 4, 8)).all()


def test_windows_reach_from_the_first_to_the_last_token():
    stream = np.arange(100, dtype=np.int16)
    assert windows(stream, 3, 9)[:, 0].tolist() == [0, 45, 90]
    assert windows(stream, 1, 9)[:, 0].tolist() == [0]


def test_the_bundled_text_is_there_and_large_enough():
    corpus = load_corpus(Spec())
    assert 5_000_000 < len(corpus.train) < 6_100_000 and len(corpus.validation) > 50_000
    assert len(corpus.facts["sha256"]) == 64
