"""Train the bundled sample: a small GQA decoder on the text of Python's own standard library.

    python sample_runs/train_gqa_docs.py [--out DIR] [--steps N]

One thread on a CPU, nothing downloaded. DIR (default: gqa-docs beside this file) becomes a run folder:
spec.json (everything that decides the result), metrics.jsonl, status.json and checkpoint-0, -<a sixth>, -<last>,
ordinary Hugging Face folders in bfloat16. The same Python build, library versions, seed and steps give the same data
and the same first checkpoint; another processor may round differently, so losses then agree closely, not bitwise.
An interrupted run continues when the same command is given again.

Not covered: more than one process, GPUs, other text. The model is for looking at its weights, not for use.
"""

import argparse
import copy
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
DOCUMENT, PAD = 256, 257  # ids above the 256 bytes: the mark before every document, and padding
MODEL = dict(
    vocab_size=258, hidden_size=192, intermediate_size=320, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=2, head_dim=24, max_position_embeddings=256, initializer_range=0.02,
    tie_word_embeddings=True, bos_token_id=DOCUMENT, eos_token_id=DOCUMENT, pad_token_id=PAD,
)
OPTIMISER = dict(name="AdamW", lr=2e-3, last_lr=2e-4, warmup_steps=200, schedule="cosine", betas=[0.9, 0.95],
                 eps=1e-8, weight_decay=0.1, weight_decay_on="matrices", clip_grad_norm=1.0)
DATA = dict(context=256, batch_size=4, val_windows=64, val_every=100, log_every=10)
SEED = 1

RULE = (
    "Documents: every topic of pydoc_data.topics, then every .py source of the standard library (modules named in "
    "sys.stdlib_module_names; without pydoc_data, encodings, idlelib, lib2to3, turtledemo, test folders and generated "
    "_sysconfigdata), each part sorted by name, UTF-8, lines ended by \\n. Held out for validation: documents whose "
    "name's sha256, read as a number, is 0 modulo 20. sha256 is over name, NUL, text, NUL of every document in order."
)
LEFT_OUT = {"pydoc_data", "encodings", "idlelib", "lib2to3", "turtledemo", "test", "tests", "site-packages"}


def documents() -> list[tuple[str, bytes]]:
    """(name, UTF-8 text) of every document RULE names, in its order."""
    from pydoc_data import topics

    found = [(f"topic:{name}", topics.topics[name].encode()) for name in sorted(topics.topics)]
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py"), key=lambda file: file.relative_to(root).as_posix()):
        path = file.relative_to(root)
        module = path.parts[0].removesuffix(".py")
        if module in sys.stdlib_module_names and not LEFT_OUT & set(path.parts) and "_sysconfigdata" not in path.name:
            found.append((f"source:{path.as_posix()}", file.read_bytes().replace(b"\r\n", b"\n")))
    return found


def held_out(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 20 == 0


def corpus_sha256(docs: list[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, text in docs:
        digest.update(name.encode() + b"\0" + text + b"\0")
    return digest.hexdigest()


def token_stream(docs: list[tuple[str, bytes]]) -> torch.Tensor:
    """All documents end to end, each after DOCUMENT. Returns (n_tokens,), int64."""
    parts = [np.concatenate(([DOCUMENT], np.frombuffer(text, np.uint8))) for _, text in docs]
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def byte_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """id = byte value; the two marks above are added tokens. Any text without the marks round-trips."""
    # The ByteLevel alphabet of GPT-2: printable bytes stand for themselves, the others are shown from U+0100 on.
    shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b]
    hidden = [b for b in range(256) if b not in shown]
    vocabulary = {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|document|>", special=True), AddedToken("<|pad|>", special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|document|>", eos_token="<|document|>", pad_token="<|pad|>",
        model_max_length=context, clean_up_tokenization_spaces=False)


def learning_rate(step: int, steps: int) -> float:
    """Rate of the update that ends at `step` (1..steps): linear warm-up, then a cosine down to last_lr."""
    warmup = min(OPTIMISER["warmup_steps"], max(1, steps // 10))
    if step <= warmup:
        return OPTIMISER["lr"] * step / warmup
    part = (step - warmup) / (steps - warmup)
    return OPTIMISER["last_lr"] + (OPTIMISER["lr"] - OPTIMISER["last_lr"]) * 0.5 * (1 + math.cos(math.pi * part))


def batch(stream: torch.Tensor, step: int) -> torch.Tensor:
    """(batch_size, context + 1) int64; decided by seed and step alone, so a resumed run is the same run."""
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
    starts = torch.randint(len(stream) - DATA["context"], (DATA["batch_size"],), generator=generator)
    return torch.stack([stream[s:s + DATA["context"] + 1] for s in starts])


def loss_nats(model: LlamaForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy per token of the windows (n, context + 1), a 0-d float32 tensor. A token is a byte."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, stream: torch.Tensor) -> float:
    """Nats per byte over val_windows windows spread evenly over the held-out stream."""
    starts = torch.linspace(0, len(stream) - DATA["context"] - 1, DATA["val_windows"]).long()
    windows = torch.stack([stream[s:s + DATA["context"] + 1] for s in starts])
    return sum(loss_nats(model, part).item() * len(part) for part in windows.split(16)) / len(windows)


def write_json(path: Path, content: dict) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(part, path)


CARD = """---
license: apache-2.0
library_name: transformers
tags: [sample, gqa, byte-level]
---
# gqa-docs, step {step} of {steps}

A sample to look at, not a model to use: a byte-level Llama decoder (8 layers, width 192, 8 query heads on 2 key/value
heads of 24, {n_parameters:,} parameters, bfloat16) whose attention weights are the first ones the dashboard shows.

Trained by `{command}`
on one CPU thread, from scratch, on the text of Python {python}'s standard library ({n_bytes:,} bytes,
sha256 `{sha256}`). Seen by this step: {tokens:,} bytes, {context} at a time.
Validation loss on held-out documents, before rounding to bfloat16: {val_loss:.3f} nats per byte.

`spec.json` and `metrics.jsonl` in the folder above hold every setting and the course of the loss. The training text is
copyright of the Python Software Foundation and its contributors, under the PSF licence.
"""


def save_checkpoint(model: LlamaForCausalLM, out: Path, step: int, spec: dict, val_loss: float) -> None:
    """Write out/checkpoint-<step> in bfloat16, beside and renamed; readable by everyone."""
    folder, part = out / f"checkpoint-{step}", out / f".checkpoint-{step}.part"
    for old in (folder, part):
        shutil.rmtree(old, ignore_errors=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(part)
    byte_tokenizer(MODEL["max_position_embeddings"]).save_pretrained(part)
    (part / "README.md").write_text(CARD.format(
        step=step, steps=spec["steps"], n_parameters=spec["n_parameters"], command=spec["command"], val_loss=val_loss,
        python=spec["versions"]["python"], n_bytes=spec["data"]["n_bytes"], sha256=spec["data"]["sha256"],
        context=DATA["context"], tokens=step * DATA["batch_size"] * DATA["context"]))
    for file in part.iterdir():
        file.chmod(0o644)
    os.replace(part, folder)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path, default=HERE / "gqa-docs", help="run folder (default: %(default)s)")
    arguments.add_argument("--steps", type=int, default=3600, help="optimiser steps (default: %(default)s)")
    options = arguments.parse_args()
    out, steps = options.out, options.steps
    if steps < 1:
        raise SystemExit(f"--steps is {steps}; at least 1 is needed.")
    metrics, resume = out / "metrics.jsonl", out / "resume.pt"
    if (out / "spec.json").exists() and not resume.exists():
        raise SystemExit(f"{out} holds a finished run, which is left as it is; name a new folder with --out.")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()

    docs = documents()
    train = token_stream([doc for doc in docs if not held_out(doc[0])])
    val_docs = [doc for doc in docs if held_out(doc[0])]
    val = token_stream(val_docs)
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(LlamaConfig(**MODEL))
    spec = dict(
        format="wisca-run", version=1, command=f"python sample_runs/train_gqa_docs.py --steps {steps}",
        seed=SEED, steps=steps, checkpoints=sorted({0, steps // 6, steps}),
        dtype="float32, saved as bfloat16", threads=1,
        model=dict(architecture="LlamaForCausalLM", **MODEL), n_parameters=sum(p.numel() for p in model.parameters()),
        optimiser=OPTIMISER,
        data=dict(DATA, rule=RULE, sha256=corpus_sha256(docs), n_documents=len(docs),
                  n_bytes=sum(len(text) for _, text in docs), n_held_out_documents=len(val_docs),
                  n_held_out_bytes=sum(len(text) for _, text in val_docs)),
        versions=dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__),
    )
    print(f"corpus: {len(docs)} documents, {spec['data']['n_bytes']:,} bytes, sha256 {spec['data']['sha256']}")

    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimiser = torch.optim.AdamW(
        [dict(params=decayed, weight_decay=OPTIMISER["weight_decay"]), dict(params=others, weight_decay=0.0)],
        lr=OPTIMISER["lr"], betas=OPTIMISER["betas"], eps=OPTIMISER["eps"])

    out.mkdir(parents=True, exist_ok=True)
    first, seconds_before = 0, 0.0
    if (out / "spec.json").exists():
        if json.loads((out / "spec.json").read_text()) != spec:
            raise SystemExit(f"{out} holds an unfinished run with other settings (compare spec.json); give --out.")
        state = torch.load(resume, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first, seconds_before = state["step"], state["seconds"]
        header, *rows = metrics.read_text().splitlines()
        kept = [row for row in rows if first and json.loads(row)["step"] <= first]
        metrics.write_text("\n".join([header, *kept]) + "\n")
    else:
        metrics.write_text(json.dumps(dict(
            format="wisca-metrics", version=1, losses="nats per byte; train_loss is the mean since the row before",
            seconds="wall clock")) + "\n")
        torch.save(dict(model=model.state_dict(), optimiser=optimiser.state_dict(), step=0, seconds=0.0), resume)
        write_json(out / "spec.json", spec)

    began, recent = time.monotonic() - seconds_before, []
    with metrics.open("a", buffering=1) as log:
        for step in range(first, steps + 1):
            if step > first:
                rate = learning_rate(step, steps)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                loss = loss_nats(model, batch(train, step))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMISER["clip_grad_norm"])
                optimiser.step()
                optimiser.zero_grad()
                recent.append(loss.item())
            elif first > 0:
                continue  # a resumed run logged this step before it was interrupted
            if step % DATA["log_every"] and step != steps:
                continue
            saves = step in spec["checkpoints"]
            val_loss = validation_loss(model, val) if saves or step % DATA["val_every"] == 0 else None
            row = dict(step=step, train_loss=round(sum(recent) / len(recent), 5) if recent else None,
                       val_loss=None if val_loss is None else round(val_loss, 5), lr=rate if step else 0.0,
                       tokens=step * DATA["batch_size"] * DATA["context"], seconds=round(time.monotonic() - began, 1))
            log.write(json.dumps(row) + "\n")
            recent = []
            if saves:
                save_checkpoint(model, out, step, spec, val_loss)
            if val_loss is not None:
                print(json.dumps(row), flush=True)
                state = "done" if step == steps else "running"
                write_json(out / "status.json", dict(format="wisca-status", version=1, state=state, **row))
            if step % (2 * DATA["val_every"]) == 0 and step:
                torch.save(dict(model=model.state_dict(), optimiser=optimiser.state_dict(), step=step,
                                seconds=row["seconds"]), out / "resume.pt.part")
                os.replace(out / "resume.pt.part", resume)
    resume.unlink()


if __name__ == "__main__":
    main()
