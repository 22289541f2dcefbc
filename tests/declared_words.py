"""Models that need the rarer words of a declaration, and those words."""

import torch
import torch.nn.functional as F
from declared_models import RMSNorm, turned_half
from torch import nn

import wisca_core as wisca

IDS = torch.randint(0, 19, (2, 9), generator=torch.Generator().manual_seed(3))
WIDTH, HEADS, KV, D = 24, 4, 2, 6


def attended(q, k, v):
    """(batch, positions, heads, channels) each; rotary, grouped, causal."""
    q, k, v = (z.transpose(1, 2) for z in (q, k, v))
    q, k = turned_half(q, D), turned_half(k, D)
    k, v = (z.repeat_interleave(q.shape[1] // k.shape[1], 1) for z in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


class Einsum(nn.Module):
    """Matrices [in, heads, width], the output's [out, heads, width]."""

    def __init__(self):
        super().__init__()
        for name, heads in (("q", HEADS), ("k", KV), ("v", KV), ("o", HEADS)):
            self.register_parameter(name, nn.Parameter(torch.randn(WIDTH, heads, D) / WIDTH**0.5))

    def forward(self, x):
        q, k, v = (torch.einsum("btx,xhd->bthd", x, w) for w in (self.q, self.k, self.v))
        return torch.einsum("bthd,xhd->btx", attended(q, k, v), self.o)


class Projected(nn.Module):
    """nn.Linear each; ``owns``: keys and values of its own; ``extra``: what else its output reads; ``norms``: one a
    head.
    """

    def __init__(self, owns=True, extra=0, norms=False):
        super().__init__()
        self.wq, self.wo = nn.Linear(WIDTH, HEADS * D), nn.Linear(HEADS * D + extra, WIDTH)
        if owns:
            self.wk, self.wv = nn.Linear(WIDTH, KV * D), nn.Linear(WIDTH, KV * D)
        if extra:
            self.up = nn.Linear(WIDTH, extra)
        if norms:
            self.q_norms = nn.ModuleList(RMSNorm(D) for _ in range(HEADS))
            self.k_norms = nn.ModuleList(RMSNorm(D) for _ in range(KV))

    def forward(self, x, kv=None):
        q = self.wq(x).unflatten(-1, (HEADS, D))
        k, v = kv or (w(x).unflatten(-1, (KV, D)) for w in (self.wk, self.wv))
        self.kv = (k, v)
        if hasattr(self, "q_norms"):
            q = torch.stack([norm(q[:, :, h]) for h, norm in enumerate(self.q_norms)], 2)
            k = torch.stack([norm(k[:, :, h]) for h, norm in enumerate(self.k_norms)], 2)
        y = attended(q, k, v).flatten(2)
        return self.wo(torch.cat([y, F.gelu(self.up(x))], -1) if hasattr(self, "up") else y)


class Experts(nn.Module):
    """Every expert's rows one below the other, of down too."""

    def __init__(self, n=2, inside=10):
        super().__init__()
        self.n = n
        for name in ("w1", "v1", "w2"):
            self.register_parameter(name, nn.Parameter(torch.randn(n * inside, WIDTH) / WIDTH**0.5))
        self.router = nn.Linear(WIDTH, n)

    def forward(self, x):
        gate, up, down = (w.view(self.n, -1, WIDTH) for w in (self.w1, self.v1, self.w2))
        inside = F.silu(torch.einsum("btx,efx->btef", x, gate)) * torch.einsum("btx,efx->btef", x, up)
        out = torch.einsum("btef,efx->btex", inside, down)
        return (self.router(x).softmax(-1)[..., None] * out).sum(2)


class Model(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.embed, self.layers = nn.Embedding(19, WIDTH), nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, 19)

    def forward(self, ids):
        x, kv = self.embed(ids), None
        for layer in self.layers:
            x = x + (layer(x, kv) if isinstance(layer, Projected) and not hasattr(layer, "wk") else layer(x))
            kv = getattr(layer, "kv", None)
            if kv is not None:
                del layer.kv
        return self.head(x)


HALF = dict(n_heads=HEADS, n_kv_heads=KV, rope="half")
APART = dict(q="wq", k="wk", v="wv", out="wo", **HALF)

EINSUM = (
    lambda: Model(Einsum(), Einsum()),
    [wisca.attention("layers.{i}", q="q", k="k", v="v", out="o", heads_axis=True, **HALF)],
)

CASES = {
    "heads as an axis": (*EINSUM, 4),
    "keys of another layer": (
        lambda: Model(Projected(), Projected(owns=False), Projected(owns=False)),
        [
            wisca.attention("layers.{i}", layers=[0], **APART),
            wisca.attention("layers.{i}", q="wq", out="wo", kv_layer=0, layers="1-2", **HALF),
        ],
        2,
    ),
    "an output that reads more": (
        lambda: Model(Projected(extra=14)),
        [wisca.attention("layers.{i}", out_extra=True, **APART)],
        2,
    ),
    "a norm a head": (
        lambda: Model(Projected(norms=True)),
        [wisca.attention("layers.{i}", qk_norm=("q_norms.{h}", "k_norms.{h}"), **APART)],
        2,
    ),
    "experts below each other": (
        lambda: Model(Experts()),
        [wisca.feed_forward("layers.{i}", gate="w1", up="v1", down="w2", by_rows=True)],
        1,
    ),
}
