"""A language model of one's own class, trained with WISCA by declared sites: python sample_runs/nanogpt_like.py [steps]
[every]

No class of transformers anywhere: a GPT of 60 lines, bytes of Python's own documentation, AdamW. The two lines that
matter are the declaration and ``scaler.step()``; the sites are proved on the model itself before the first step.
"""

import pydoc_data.topics
import sys

import torch
import torch.nn.functional as F
from torch import nn

import wisca_core as wisca

WIDTH, HEADS, KV_HEADS, LAYERS, CONTEXT, BATCH = 64, 8, 2, 3, 64, 8
SITES = [
    wisca.attention(
        "blocks.{i}.attn", q="q", kv="kv", out="proj", n_heads=HEADS, n_kv_heads=KV_HEADS, rope="half"
    ),
    wisca.feed_forward("blocks.{i}.mlp", up="up", down="down", activation="relu2"),
]


def turned(x: torch.Tensor) -> torch.Tensor:
    """Channel i turns with channel i + r/2; (batch, heads, positions, channels)."""
    half, n = x.shape[-1] // 2, x.shape[-2]
    angle = torch.outer(torch.arange(n, device=x.device), 100.0 ** (-torch.arange(half, device=x.device) / half)).to(x)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.proj = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.kv = nn.Linear(WIDTH, 2 * KV_HEADS * WIDTH // HEADS, bias=False)

    def forward(self, x):
        b, t, _ = x.shape
        k, v = self.kv(x).chunk(2, -1)
        q, k, v = (z.view(b, t, -1, WIDTH // HEADS).transpose(1, 2) for z in (self.q(x), k, v))
        y = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True, enable_gqa=True)
        return self.proj(y.transpose(1, 2).reshape(b, t, WIDTH))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return self.down(F.relu(self.up(x)).square())


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(256, WIDTH), nn.Linear(WIDTH, 256, bias=False)
        blocks = [nn.ModuleDict({"attn": Attention(), "mlp": MLP()}) for _ in range(LAYERS)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, ids, targets=None):
        x = F.rms_norm(self.embed(ids), (WIDTH,))
        for block in self.blocks:
            x = x + block["attn"](F.rms_norm(x, (WIDTH,)))
            x = x + block["mlp"](F.rms_norm(x, (WIDTH,)))
        logits = self.head(F.rms_norm(x, (WIDTH,)))
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main(steps: int = 300, every: int = 50) -> float:
    torch.manual_seed(0)
    text = torch.tensor(list("".join(pydoc_data.topics.topics.values()).encode()))
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scaler = wisca.Scaler(model, optimizer, every=every, sites=SITES, pairs=("qk", "vo", "mlp"))
    for step in range(steps):
        starts = torch.randint(len(text) - CONTEXT - 1, (BATCH,))
        rows = torch.stack([text[i : i + CONTEXT + 1] for i in starts])
        loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        done = scaler.step()
        if done is not None:
            print(f"step {step + 1:5}  loss {loss.item():.3f}  " + "  ".join(f"{n.removeprefix('decoder.')} "
            f"{r:.2f}" for n, r in done.ratios.items()))
    return loss.item()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
