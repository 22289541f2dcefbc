"""``hub:owner/name[@revision]`` against a stand-in for the hub on 127.0.0.1; nothing leaves this machine."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save, save_file

from wisca_core.checkpoint import Reader, hub, hub_size, open_checkpoint
from wisca_core.errors import Cancelled, HubError, UnreadableInput, UnsafeInput

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


class StandIn(ThreadingHTTPServer):
    """The three routes huggingface_hub asks for: model information, file tree, file (HEAD and GET)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.refusal: tuple[int, str] | None = None  # (status, X-Error-Code) for everything
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if self.server.refusal:
            self.answer(self.server.refusal[0], b"{}", {"X-Error-Code": self.server.refusal[1]})
        elif match := re.fullmatch(r"/api/models/owner/name(?:/revision/(.+))?", path):
            if match[1] in (None, "main", "v1", COMMIT):
                self.answer(200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": []}).encode())
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif re.fullmatch(f"/api/models/owner/name/tree/({COMMIT}|main|v1)", path):  # older versions ask by name
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.server.files.items()
            ]
            self.answer(200, json.dumps([*tree, {"type": "directory", "path": "onnx", "oid": "0" * 40}]).encode())
        elif match := re.fullmatch(rf"/owner/name/resolve/{COMMIT}/(.+)", path):
            content = self.server.files[match[1]]
            tag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self.answer(200, content, tag)
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(content)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The stand-in, with the library's cache in ``tmp_path``."""
    stand_in = StandIn()
    threading.Thread(target=stand_in.serve_forever, args=(0.02,), daemon=True).start()
    constants = huggingface_hub.constants
    endpoint = f"http://127.0.0.1:{stand_in.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield stand_in
    stand_in.shutdown()
    stand_in.server_close()


W = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}


def single() -> dict[str, bytes]:
    return {
        "model.safetensors": save(W),
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "README.md": b"# model",
        "pytorch_model.bin": b"not wanted",
        "modeling_custom.py": b"raise SystemExit",
        "tf_model.h5": b"not wanted",
        "onnx/config.json": b"not wanted",
        "../outside.json": b"not wanted",
    }


def files_below(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_downloaded_and_opened_through_the_links_of_the_cache(server, tmp_path):
    server.files = single()
    checkpoint = open_checkpoint("hub:owner/name")
    assert checkpoint.source == "hub:owner/name" and checkpoint.config["model_type"] == "llama"
    assert checkpoint.path == (tmp_path / "cache/models--owner--name/snapshots" / COMMIT).resolve()
    assert (checkpoint.path / "model.safetensors").is_symlink()
    assert files_below(checkpoint.path) == {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    with Reader(checkpoint) as read:
        assert torch.equal(read.tensor("a"), W["a"]) and torch.equal(read.tensor("b"), W["b"])


def test_the_size_is_known_before_anything_is_downloaded(server, tmp_path):
    server.files = single()
    size = hub_size("hub:owner/name@v1")
    wanted = ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert size.files == tuple((name, len(server.files[name])) for name in wanted)
    assert size.n_bytes == sum(len(server.files[name]) for name in wanted) and size.commit == COMMIT
    assert not any("/resolve/" in asked for asked in server.asked)
    assert not (tmp_path / "cache").exists()


def test_shards_of_the_index_are_downloaded_and_other_weights_are_not(server):
    index = json.dumps({"weight_map": {"a": ONE, "b": TWO}}).encode()
    shards = {ONE: save({"a": W["a"]}), TWO: save({"b": W["b"]}), "model.safetensors.index.json": index}
    server.files = shards | {
        "consolidated.safetensors": b"big",
        "pytorch_model.bin.index.json": b"{}",
        "config.json": b"{}",
    }
    checkpoint = open_checkpoint("hub:owner/name")
    assert files_below(checkpoint.path) == {*shards, "config.json"}
    assert checkpoint.weight_files == (ONE, TWO)


def test_torch_weights_are_taken_where_there_are_no_others(server, tmp_path):
    torch.save(W, tmp_path / "x.bin")
    server.files = {
        "pytorch_model.bin": (tmp_path / "x.bin").read_bytes(),
        "config.json": b"{}",
        "training_args.bin": b"x",
    }
    checkpoint = open_checkpoint("hub:owner/name@main")
    assert checkpoint.kind == "torch" and files_below(checkpoint.path) == {"pytorch_model.bin", "config.json"}


def test_progress_counts_bytes_up_to_the_size_and_can_cancel(server):
    server.files = {"model.safetensors": save({"w": torch.zeros(1_000_000)}), "config.json": b"{}"}
    steps = []
    open_checkpoint("hub:owner/name", progress=lambda *step: steps.append(step))
    total = sum(len(content) for content in server.files.values())
    downloads = [step for step in steps if step[0] == "downloading"]
    assert downloads[-1] == ("downloading", total, total)
    assert [done for _, done, _ in downloads] == sorted(done for _, done, _ in downloads)


def test_a_download_that_is_cancelled_stops(server, tmp_path):
    server.files = {"model.safetensors": save({"w": torch.zeros(1_000_000)}), "config.json": b"{}"}

    def cancel(step: str, done: float, total: float) -> None:
        raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        open_checkpoint("hub:owner/name", progress=cancel)


def test_without_a_connection_the_cache_is_used(server, monkeypatch):
    server.files = single()
    first = open_checkpoint("hub:owner/name")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert open_checkpoint("hub:owner/name").tensors == first.tensors
    server.asked.clear()
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set: .* only a model in the cache can be opened"):
        open_checkpoint("hub:owner/other")
    assert server.asked == []


def test_a_hub_that_does_not_answer_is_named(server, monkeypatch):
    server.shutdown()
    server.server_close()
    with pytest.raises(HubError, match="hub:owner/name: the hub could not be reached .* Check the connection"):
        open_checkpoint("hub:owner/name")


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((404, "RepoNotFound"), "no such model, or it is private.*hf auth login"),
        ((401, ""), "no such model, or it is private"),
        ((403, "GatedRepo"), "the model is gated.*Accept its terms"),
        ((404, "RevisionNotFound"), "no such revision"),
        ((418, ""), "the hub answered 418"),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_next_step(server, refusal, message):
    server.refusal = refusal
    with pytest.raises(HubError, match=f"^hub:owner/name: .*{message}"):
        open_checkpoint("hub:owner/name")
    with pytest.raises(HubError, match=message):
        hub_size("hub:owner/name")


def test_a_revision_that_is_not_there_is_named(server):
    server.files = single()
    with pytest.raises(HubError, match="hub:owner/name@v2: the repository has no such revision"):
        open_checkpoint("hub:owner/name@v2")


def test_a_repository_without_weights_is_refused_before_a_download(server):
    server.files = {"config.json": b"{}", "README.md": b""}
    with pytest.raises(
        UnreadableInput, match="hub:owner/name: no model weights: looked for .*; it has README.md, config.json"
    ):
        open_checkpoint("hub:owner/name")
    assert not any("/resolve/" in asked for asked in server.asked)


@pytest.mark.parametrize(
    "model_id",
    [
        "hub:../x",
        "hub:/etc/passwd",
        "hub:https://huggingface.co/a/b",
        "hub:a/b/c",
        "hub:",
        "hub:gpt2",
        "hub:a/..",
        "hub:./x",
        "hub:a/b@",
        "hub:a/b@../../x",
        "hub:a/b@/etc",
        "hub:a/b@-x",
        "hub:a/b@x y",
        "hub:a b/c",
        "hub:a/b\n",
        "hub:a--b/c",
    ],
)
def test_what_is_no_hub_id_is_refused_without_a_request(server, model_id):
    with pytest.raises(HubError, match="Expected hub:owner/name or hub:owner/name@revision"):
        open_checkpoint(model_id)
    assert server.asked == []


@pytest.mark.parametrize(
    ("model_id", "parts"),
    [("hub:o/n", ("o/n", None)), ("hub:o/n@main", ("o/n", "main")), ("hub:o/n.v1@refs/pr/1", ("o/n.v1", "refs/pr/1"))],
)
def test_a_hub_id_has_an_owner_a_name_and_perhaps_a_revision(model_id, parts):
    assert hub.parse(model_id) == parts


def test_a_link_of_the_snapshot_that_leaves_the_repository_is_refused(server, tmp_path):
    server.files = single()
    path = open_checkpoint("hub:owner/name").path / "model.safetensors"
    save_file(W, tmp_path / "elsewhere.safetensors")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(UnsafeInput, match="points outside the model folder"):
        open_checkpoint(path.parent)
