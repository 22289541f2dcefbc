"""Small models as people write them themselves, for declared sites: every one in the style of a code base, none
copied.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

import wisca_core as wisca

VOCABULARY, POSITIONS = 29, 40


class GPTAttention(nn.Module):
    """One fused matrix [q; k; v], learned positions, a buffer for the mask (nanoGPT)."""

    def __init__(self, width, n_head):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.n_head = n_head
        self.register_buffer("bias", torch.tril(torch.ones(POSITIONS, POSITIONS)).view(1, 1, POSITIONS, POSITIONS))

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (z.view(b, t, self.n_head, -1).transpose(1, 2) for z in self.c_attn(x).split(c, dim=2))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))
        y = F.dropout(scores.softmax(-1), 0.1, self.training) @ v
        return self.c_proj(y.transpose(1, 2).reshape(b, t, c))


class GPTBlock(nn.Module):
    def __init__(self, width, n_head):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), GPTAttention(width, n_head), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """As nanoGPT: tied head, (logits, loss), the last position alone where there are no targets."""

    def __init__(self, width=24, n_head=3, n_layer=2):
        super().__init__()
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(VOCABULARY, width),
                wpe=nn.Embedding(POSITIONS, width),
                h=nn.ModuleList([GPTBlock(width, n_head) for _ in range(n_layer)]),
                ln_f=nn.LayerNorm(width),
            )
        )
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx, targets=None):
        x = self.transformer.wte(idx) + self.transformer.wpe(torch.arange(idx.shape[1], device=idx.device))
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.view(-1, VOCABULARY), targets.reshape(-1))


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6).to(x.dtype) * self.weight


def turned_interleaved(x):
    """Neighbours (2i, 2i + 1) turn together; x: (batch, heads, positions, channels)."""
    t, d = x.shape[-2:]
    angle = torch.outer(torch.arange(t), 100.0 ** (-torch.arange(0, d, 2) / d)).to(x)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)


def turned_half(x, r):
    """Channels i and i + r/2 of the first r turn together, the others do not."""
    t = x.shape[-2]
    angle = torch.outer(torch.arange(t), 100.0 ** (-torch.arange(0, r, 2) / r)).to(x)
    a, b, rest = x[..., : r // 2], x[..., r // 2 : r], x[..., r:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos(), rest], -1)


class LlamaAttention(nn.Module):
    """wq, wk, wv, wo with grouped heads and neighbours that turn (Llama's own code, torchtitan)."""

    def __init__(self, width, n_heads, n_kv_heads, qk_norm=False):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, width // n_heads
        self.wq, self.wo = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.wk = nn.Linear(width, n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(width, n_kv_heads * self.head_dim, bias=False)
        if qk_norm:
            self.q_norm, self.k_norm = RMSNorm(self.head_dim), RMSNorm(self.head_dim)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (w(x).view(b, t, -1, self.head_dim) for w in (self.wq, self.wk, self.wv))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (turned_interleaved(z.transpose(1, 2)) for z in (q, k))
        k, v = (z.repeat_interleave(self.n_heads // self.n_kv_heads, 1) for z in (k, v.transpose(1, 2)))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(b, t, -1))


class LlamaFeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.w1, self.w3 = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.w2 = nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class LlamaBlock(nn.Module):
    def __init__(self, width, n_heads, n_kv_heads, qk_norm):
        super().__init__()
        self.attention, self.feed_forward = LlamaAttention(width, n_heads, n_kv_heads, qk_norm), LlamaFeedForward(width)
        self.attention_norm, self.ffn_norm = RMSNorm(width), RMSNorm(width)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """Layers in a mapping by their numbers, as torchtitan keeps them."""

    def __init__(self, width=32, n_heads=4, n_kv_heads=2, n_layers=2, qk_norm=False):
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleDict({str(i): LlamaBlock(width, n_heads, n_kv_heads, qk_norm) for i in range(n_layers)})
        self.norm, self.output = RMSNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens):
        x = self.tok_embeddings(tokens)
        for layer in self.layers.values():
            x = layer(x)
        return self.output(self.norm(x))


class GroupedAttention(nn.Module):
    """One matrix of [group][its queries, key, value], the first half of a head's channels turns (litgpt, Pythia)."""

    def __init__(self, width, n_head, n_groups):
        super().__init__()
        self.n_head, self.n_groups, self.head_size = n_head, n_groups, width // n_head
        self.attn = nn.Linear(width, (n_head + 2 * n_groups) * self.head_size)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        b, t, _ = x.shape
        g = self.n_head // self.n_groups
        qkv = self.attn(x).view(b, t, self.n_groups, g + 2, self.head_size).permute(0, 2, 3, 1, 4)
        q, k, v = qkv.split((g, 1, 1), dim=2)
        k, v = (z.expand(b, self.n_groups, g, t, self.head_size).flatten(1, 2) for z in (k, v))
        q, k = (turned_half(z, self.head_size // 2) for z in (q.flatten(1, 2), k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(b, t, -1))


class LitGPT(nn.Module):
    def __init__(self, width=32, n_head=4, n_groups=2, n_layer=2):
        super().__init__()
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        blocks = [
            nn.ModuleDict(dict(norm_1=nn.LayerNorm(width), attn=GroupedAttention(width, n_head, n_groups)))
            for _ in range(n_layer)
        ]
        self.transformer = nn.ModuleDict(
            dict(wte=nn.Embedding(VOCABULARY, width), h=nn.ModuleList(blocks), ln_f=nn.LayerNorm(width))
        )

    def forward(self, idx):
        x = self.transformer["wte"](idx)
        for block in self.transformer["h"]:
            x = x + block["attn"](block["norm_1"](x))
        return self.lm_head(self.transformer["ln_f"](x))


class ViTBlock(nn.Module):
    """Pre-norm, [3, heads, channels] in one matrix, ReLU between (in the style of timm)."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.fc2(F.relu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, width=24, num_heads=3, depth=2, classes=5):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 5, width))
        self.blocks = nn.ModuleList([ViTBlock(width, num_heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images):
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class TorchEncoder(nn.Module):
    """torch's own nn.TransformerEncoder, which keeps in_proj_weight as a parameter."""

    def __init__(self, width=24, nhead=3, n_layers=2):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        layer = nn.TransformerEncoderLayer(
            width, nhead, 2 * width, batch_first=True, norm_first=True, activation="relu"
        )
        self.encoder = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.out = nn.Linear(width, VOCABULARY)

    def forward(self, ids):
        return self.out(self.encoder(self.embed(ids)))


class CrossAttention(nn.Module):
    """One nn.MultiheadAttention whose keys and values are of other widths, so its matrices are apart."""

    def __init__(self, width=24, heads=3):
        super().__init__()
        self.mha = nn.MultiheadAttention(width, heads, kdim=10, vdim=14, batch_first=True)

    def forward(self, x, keys, values):
        return self.mha(x, keys, values)[0]


def random_images(model, ids):
    return model(torch.randn(len(ids), 3, 8, 8))


def random_streams(model, ids):
    n = ids.shape[1]
    return model(torch.randn(2, n, 24), torch.randn(2, n + 1, 10), torch.randn(2, n + 1, 14))


# name -> (class, declarations, how it is called where ids are not enough)
MODELS = {
    "nanoGPT": (GPT, [wisca.attention("transformer.h.{i}.attn", qkv="c_attn", out="c_proj", n_heads=3)], None),
    "Llama": (
        Llama,
        [
            wisca.attention(
                "layers.{i}.attention", q="wq", k="wk", v="wv", out="wo", n_heads=4, n_kv_heads=2, rope="interleaved"
            ),
            wisca.feed_forward("layers.{i}.feed_forward", gate="w1", up="w3", down="w2"),
        ],
        None,
    ),
    "litgpt": (
        LitGPT,
        [
            wisca.attention(
                "transformer.h.{i}.attn",
                qkv="attn",
                out="proj",
                n_heads=4,
                n_kv_heads=2,
                layout="per_group",
                rope="half",
                rope_channels=4,
            )
        ],
        None,
    ),
    "ViT": (
        ViT,
        [
            wisca.attention("blocks.{i}", qkv="qkv", out="proj", n_heads=3, stack="vision"),
            wisca.feed_forward("blocks.{i}", up="fc1", down="fc2", activation="relu", stack="vision"),
        ],
        random_images,
    ),
    "nn.TransformerEncoder": (
        TorchEncoder,
        [
            wisca.attention(
                "encoder.layers.{i}.self_attn", qkv="in_proj_weight", out="out_proj", n_heads=3, stack="encoder"
            ),
            wisca.feed_forward("encoder.layers.{i}", up="linear1", down="linear2", activation="relu", stack="encoder"),
        ],
        None,
    ),
    "nn.MultiheadAttention": (
        CrossAttention,
        [
            wisca.attention(
                "mha",
                q="q_proj_weight",
                k="k_proj_weight",
                v="v_proj_weight",
                qkv_bias="in_proj_bias",
                out="out_proj",
                n_heads=3,
                attention="cross",
            )
        ],
        random_streams,
    ),
}
