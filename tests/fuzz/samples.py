"""What is mutated: for each reader a few sound files, written by the real library where there is one, and how it is
read.
"""

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Reader:
    """``files``: name in the folder -> contents; only those in ``mutated`` (default all) are changed.
    ``read(folder)``.
    """

    files: dict[str, bytes]
    read: Callable[[Path], object]
    mutated: tuple[str, ...] = ()


def readers(folder: Path) -> dict[str, Reader]:
    """Every reader of files from outside, by name; ``folder`` is an empty one to make the samples in."""
    made = {}
    for make in (_models, _adapters, _distributed, _gguf, _logs, _tables, _documents):
        place = folder / make.__name__
        place.mkdir()
        made |= make(place)
    return made


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _look(folder: Path) -> object:
    """Opens a model folder, finds its sites and measures them."""
    from wisca_core.architecture.find import find_sites
    from wisca_core.checkpoint import open_checkpoint
    from wisca_core.patterns.measure import measure

    checkpoint = open_checkpoint(folder)
    return measure(checkpoint, find_sites(checkpoint))


def _prove(folder: Path) -> object:
    """Opens a model folder and runs its miniature."""
    import wisca_core as wisca

    return wisca.prove(wisca.open(folder))


def _ids(folder: Path) -> object:
    from wisca_core.equivalence.tokenizer import text_ids

    return text_ids(folder, 100)


def _tokenizer() -> dict[str, bytes]:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.BPE(vocab={chr(33 + i): i for i in range(90)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    kind = b'{"tokenizer_class": "PreTrainedTokenizerFast"}'
    return {"tokenizer.json": made.to_str().encode(), "tokenizer_config.json": kind}


def _llama(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4)
    config = LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=32, max_position_embeddings=32)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _models(folder: Path) -> dict[str, Reader]:
    from safetensors.torch import load_file

    plain = _bytes_of(_llama(folder / "plain"))
    tensors = load_file(folder / "plain" / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    config = {"config.json": plain["config.json"]}
    shard = "model-00001-of-00001.safetensors"
    index = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}).encode()
    sharded = config | {shard: plain["model.safetensors"], "model.safetensors.index.json": index}
    return {
        "safetensors": Reader(plain, _look, ("model.safetensors",)),
        "config.json": Reader(plain, _look, ("config.json",)),
        "proof": Reader(plain, _prove, ("config.json",)),
        "tokenizer": Reader(_tokenizer(), _ids),
        "index": Reader(sharded, _look, ("model.safetensors.index.json",)),
        "torch": Reader(
            config | {"pytorch_model.bin": (folder / "pytorch_model.bin").read_bytes()}, _look, ("pytorch_model.bin",)
        ),
    }


def _adapters(folder: Path) -> dict[str, Reader]:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    _llama(folder / "base")
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(folder / "base"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    )
    model.save_pretrained(folder / "adapter")
    files = {n: b for n, b in _bytes_of(folder / "adapter").items() if n.startswith("adapter")}
    return {"adapter": Reader(files, _look)}


def _distributed(folder: Path) -> dict[str, Reader]:
    import torch.distributed.checkpoint as dcp

    dcp.save({"model": {"a": torch.ones(3, 4), "b": torch.ones(5)}}, checkpoint_id=folder)
    return {"distributed": Reader(_bytes_of(folder), _look, (".metadata",))}


def _gguf(folder: Path) -> dict[str, Reader]:
    import gguf

    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    for key, value in (("block_count", 1), ("head_count", 4), ("embedding_length", 16), ("context_length", 32)):
        getattr(writer, f"add_{key}")(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([b"a", b"b"])
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight", "blk.0.attn_output.weight"):
        writer.add_tensor(name, np.ones((16, 16), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"gguf": Reader(_bytes_of(folder), _look)}


def _read_logs(folder: Path) -> object:
    """Reads everything in the folder and groups it, as the page does."""
    from wisca_core.runs import read
    from wisca_core.runs.groups import by_configuration, differences

    runs = read([folder]).runs
    return by_configuration(runs), differences(runs)


def _logs(folder: Path) -> dict[str, Reader]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder / "tb") as writer:
        for step in range(20):
            writer.add_scalar("train/loss", 1 / (step + 1), step)
        writer.add_histogram("q_proj", torch.arange(10.0), 1)
    history = [{"step": step, "loss": 2.0 / (step + 1), "epoch": step / 10} for step in range(10)]
    state = {"log_history": history, "global_step": 10, "is_world_process_zero": True}
    rows = "".join(json.dumps({"step": s, "loss": 1.5, "lr": 1e-3}) + "\n" for s in range(10))
    text = "".join(f"iter {s}: loss {2 / (s + 1):.4f}, time 12.3ms, mfu 3.1%\n" for s in range(10))
    text += " ".join(f"iteration {s}/ 100 | lm loss: 2.3E+00 | grad norm: 1.0 |\n" for s in range(5))
    yaml = b"lr: 0.001\nlayers: [1, 2]\nnested:\n  a: 1\n"
    table = b"step,loss,val_loss\n" + b"".join(b"%d,%f,\n" % (s, 1 / (s + 1)) for s in range(10))
    return {
        "tensorboard": Reader(_bytes_of(folder / "tb"), _read_logs),
        "trainer_state": Reader({"trainer_state.json": json.dumps(state).encode()}, _read_logs),
        "json_lines": Reader({"metrics.jsonl": rows.encode()}, _read_logs),
        "console": Reader({"log.txt": text.encode()}, _read_logs),
        "csv": Reader({"metrics.csv": table, "hparams.yaml": yaml}, _read_logs),
    }


def _tables(folder: Path) -> dict[str, Reader]:
    import sqlite3

    import pandas as pd

    frame = pd.DataFrame({"step": range(20), "loss": np.linspace(2, 1, 20), "run": ["a", "b"] * 10})
    frame.to_parquet(folder / "history.parquet")
    with sqlite3.connect(folder / "project.db") as base:
        base.execute(
            "create table metrics (id integer primary key, timestamp text, run_name text, step int, metrics text)"
        )
        base.execute("create table configs (id integer primary key, run_name text, config text, created_at text)")
        rows = [("2026-01-01", "a", s, json.dumps({"loss": 1.0 / (s + 1)})) for s in range(10)]
        base.executemany("insert into metrics (timestamp, run_name, step, metrics) values (?, ?, ?, ?)", rows)
    base.close()
    files = _bytes_of(folder)
    return {
        "parquet": Reader({"history.parquet": files["history.parquet"]}, _read_logs),
        "sqlite": Reader({"project.db": files["project.db"]}, _read_logs),
        "wandb": Reader({"run-1.wandb": _wandb()}, _read_logs),
        "swanlab": Reader({"run-1.swanlab": _swanlab()}, _read_logs),
    }


def _wandb() -> bytes:
    """As W&B writes it, of five history rows."""
    from wandb.proto import wandb_internal_pb2 as proto

    records = []
    for number in range(5):
        record = proto.Record(num=number)
        for key, value in (("_step", number), ("loss", 1.5)):
            item = record.history.item.add()
            item.key, item.value_json = key, json.dumps(value)
        records.append(record.SerializeToString())
    return _record_log(b":W&B" + struct.pack("<HB", 0xBEE1, 0), records)


def _swanlab() -> bytes:
    """As SwanLab writes it, of five losses."""
    from wisca_core.runs.messages import message

    records = []
    for number in range(5):
        record = message("SwanLabRecord")()
        record.scalar.key, record.scalar.step, record.scalar.value.number = b"loss", number, 1.5
        records.append(record.SerializeToString())
    return _record_log(b":SWL" + struct.pack("<HB", 0xE1D6, 2), records)


def _record_log(header: bytes, records: list[bytes]) -> bytes:
    return header + b"".join(struct.pack("<IHB", zlib.crc32(b"\x01" + data), len(data), 1) + data for data in records)


def _documents(folder: Path) -> dict[str, Reader]:
    import wisca_core as wisca
    from wisca_core.comparison.presets import PRESETS
    from wisca_core.comparison.spec_reading import load_spec
    from wisca_core.methods import method
    from wisca_core.planning.bases import Bases
    from wisca_core.planning.plan import load_plan, save_plan, undo_plan

    model = wisca.open(_llama(folder / "model"))
    plan = wisca.plan(model)
    save_plan(plan, folder / "plan.json")
    wisca.plan(model, pairs="vo", method="gram").bases.write(folder / "plan.json")
    spec = {"format": "wisca-comparison", "version": 1} | PRESETS["default"].to_json()
    report = {"format": "wisca-report", "version": 1, "plan": plan.to_json(), "fingerprint_after": "0" * 32}

    def bases(at: Path) -> object:
        return Bases.read(at / "plan.json").check(model.sites, method("gram"))

    return {
        "bases": Reader({"plan.bases": (folder / "plan.bases").read_bytes()}, bases),
        "plan": Reader({"plan.json": (folder / "plan.json").read_bytes()}, lambda at: load_plan(at / "plan.json")),
        "report": Reader({"report.json": json.dumps(report).encode()}, lambda at: undo_plan(at / "report.json")),
        "spec": Reader({"spec.json": json.dumps(spec).encode()}, lambda at: load_spec(at / "spec.json")),
    }
