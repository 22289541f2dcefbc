"""Many models of one shape as one: parameters stacked along a leading axis of replicas, trained by the same few
kernels.

All parameters of all replicas lie in one buffer (n_replicas, n_values), gradients and optimiser moments in others like
it. Every model and every optimiser state becomes a view of its row, so whatever acts on a single cell (a rescale, a
checkpoint, an export) acts on the stack. No operation mixes two rows: a replica that turns to NaN stays alone, and the
numbers of the others do not depend on how many there are.

Batched matrix products instead of vmap: on CPU they measured the same, and they need no batching rules of others.

Covered: decoders of Llama's and Qwen2's shape without dropout or adapters. Anything else is refused by name, and the
stacked loss is compared with each model's own before the first step.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.optim.adamw import adamw

from wisca_core.comparison.replicas.orthogonal import norms, orthogonalise

# A row's length is a multiple of this, and every tensor begins at one: no vectorised loop is cut at a replica's border.
_ALIGN = 64
_SHAPES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_ROPES = ("default", "linear", "llama3")
_ONE_HOT_TOKENS = 1024

# What each optimiser keeps of a parameter, in the order of ``Stack.moments``.
_MOMENTS = {"AdamW": ("exp_avg", "exp_avg_sq"), "SGD": ("momentum_buffer",), "Muon": ("momentum_buffer",)}


def why_not(config) -> str:
    """Why models of this config cannot be stacked, "" where they can."""
    if config.model_type not in _SHAPES:
        return f"they are of the shape of {' and '.join(_SHAPES)}; this is a {config.model_type}"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in _ROPES:
        return f"its rotary embedding is {rope!r}, which changes with the length of the text"
    if getattr(config, "attention_dropout", 0):
        return "it has attention dropout, whose random numbers would differ from a single run's"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "some of its layers attend to a window only"
    return ""


def why_not_model(model: nn.Module) -> str:
    """The same of a model itself: adapters, frozen parts and classes of others."""
    named = f"{type(model).__module__.partition('.')[0]}.{type(model).__name__}"
    if named not in {f"transformers.{name}" for name in _SHAPES.values()}:
        return f"this is a {named}"
    if not all(p.requires_grad for p in model.parameters()):
        return "some of its parameters are frozen"
    return why_not(model.config)


@dataclass(frozen=True)
class _Slice:
    """One parameter: its values ``start:stop`` in a row."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class _ParameterGroup:
    """One parameter group: neighbours in a row, ``start:stop``. ``kind``: class of its optimiser."""

    kind: str
    start: int
    stop: int
    slices: tuple[_Slice, ...]
    options: Mapping


class Stack:
    """``models``: of one config, on one device, each with its optimisers, built alike. Both keep working: their tensors
    become views of the stack. ``update_`` after ``losses(...).sum().backward()`` is one optimiser step of every
    replica.
    """

    def __init__(self, models: Sequence[nn.Module], optimisers: Sequence[Sequence[torch.optim.Optimizer]]):
        first = models[0]
        self.config, self.models, self.optimisers = first.config, list(models), [list(one) for one in optimisers]
        self.n = len(models)
        parameter = next(first.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        # whether kernels are chosen that suit a GPU; they compute the same
        self.for_gpu = self.device.type != "cpu"
        self.groups, self.row_length = _layout(first, self.optimisers[0])
        size = (self.n, self.row_length)
        self.values, self.gradients, *self.moments = (
            torch.zeros(size, dtype=self.dtype, device=self.device) for _ in range(4)
        )
        self.leaves: dict[str, torch.Tensor] = {}
        slices = [one for group in self.groups for one in group.slices]
        for r, model in enumerate(self.models):
            named = dict(model.named_parameters())
            for one in slices:
                view = self.values[r, one.start : one.stop].view(one.shape)
                view.copy_(named[one.name].detach())
                named[one.name].data = view
                named[one.name].grad = None
            self._absorb(r, named)
        for one in slices:
            leaf = self._all(self.values, one).detach().requires_grad_()
            leaf.grad = self._all(self.gradients, one)
            self.leaves[one.name] = leaf
        rotary = first.model.rotary_emb
        self._frequencies, self._rope_scale = rotary.inv_freq, rotary.attention_scaling
        self._rope: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._norm_eps, self._act = first.config.rms_norm_eps, first.model.layers[0].mlp.act_fn
        self._heads = (
            first.config.num_attention_heads,
            first.config.num_key_value_heads,
            first.model.layers[0].self_attn.head_dim,
        )
        self.coming: list[tuple[float, int]] = []
        # rows of numbers an update needs of each replica, in a place of their own so that a captured graph finds them
        self._numbers = torch.zeros(
            (sum(_N_NUMBERS[g.kind] for g in self.groups), self.n), dtype=torch.float64, device=self.device
        )

    # --- forward ------------------------------------------------------------------------------------------------------

    def losses(self, rows: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy a token of each replica, (n_replicas,). ``rows``: (n_replicas, n, context + 1) int64."""
        n_rows, length = rows.shape[1], rows.shape[2] - 1
        table = self.leaves["model.embed_tokens.weight"]
        x = self._embedded(table, rows[:, :, :-1].reshape(self.n, -1))
        cos, sin = self._rotation(length)
        for i in range(self.config.num_hidden_layers):
            at = f"model.layers.{i}."
            h = self._norm(x, at + "input_layernorm")
            x = x + self._attention(h, at + "self_attn.", n_rows, length, cos, sin)
            h = self._norm(x, at + "post_attention_layernorm")
            h = self._act(self._linear(h, at + "mlp.gate_proj")) * self._linear(h, at + "mlp.up_proj")
            x = x + self._linear(h, at + "mlp.down_proj")
        x = self._norm(x, "model.norm")
        logits = torch.bmm(x, self.leaves.get("lm_head.weight", table).transpose(1, 2)).flatten(0, 1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return functional.cross_entropy(logits, rows[:, :, 1:].flatten(), reduction="none").view(self.n, -1).mean(1)

    @torch.no_grad()
    def mean_losses(self, rows: torch.Tensor, at_once: int = 16) -> list[float]:
        """Of each replica over the same ``rows`` (n, context + 1), some at a time."""
        total = torch.zeros(self.n, dtype=torch.float64, device=self.device)
        for part in rows.split(at_once):
            total += self.losses(part.expand(self.n, *part.shape)).double() * len(part)
        return (total / len(rows)).tolist()

    def _embedded(self, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        n_tokens = table.shape[1]
        if self.for_gpu and n_tokens <= _ONE_HOT_TOKENS:
            # the gradient of a look-up sorts or adds atomically; a product does neither and can be captured
            one_hot = (ids[..., None] == torch.arange(n_tokens, device=self.device)).to(table.dtype)
            with torch.autocast(self.device.type, enabled=False):
                return torch.bmm(one_hot, table)
        first = torch.arange(self.n, device=self.device)[:, None] * n_tokens
        return functional.embedding(ids + first, table.reshape(-1, table.shape[2]))

    def _attention(
        self, h: torch.Tensor, at: str, n_rows: int, length: int, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        n_heads, n_kv_heads, size = self._heads

        def heads(name: str, count: int) -> torch.Tensor:
            return self._linear(h, at + name).view(self.n * n_rows, length, count, size).transpose(1, 2)

        q, k, v = heads("q_proj", n_heads), heads("k_proj", n_kv_heads), heads("v_proj", n_kv_heads)
        q, k = q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin
        shares = n_heads > n_kv_heads
        if shares and self.for_gpu:  # CUDA's kernels for float32 know no shared heads
            k, v = (t.repeat_interleave(n_heads // n_kv_heads, dim=1) for t in (k, v))
            shares = False
        out = functional.scaled_dot_product_attention(
            q, k, v, is_causal=length > 1, scale=size**-0.5, enable_gqa=shares
        )
        return self._linear(out.transpose(1, 2).reshape(self.n, n_rows * length, n_heads * size), at + "o_proj")

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.leaves[name + ".weight"].transpose(1, 2), self.leaves.get(name + ".bias")
        return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias[:, None], x, weight)

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        long = x.to(torch.promote_types(x.dtype, torch.float32))
        long = long * torch.rsqrt(long.pow(2).mean(-1, keepdim=True) + self._norm_eps)
        return self.leaves[name + ".weight"][:, None] * long.to(x.dtype)

    def _rotation(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        if length not in self._rope:
            work = torch.promote_types(self.dtype, torch.float32)
            angles = torch.arange(length, device=self.device, dtype=work)[:, None] * self._frequencies.to(
                self.device, work
            )
            angles = torch.cat((angles, angles), dim=-1)
            self._rope[length] = (
                (angles.cos() * self._rope_scale).to(self.dtype),
                (angles.sin() * self._rope_scale).to(self.dtype),
            )
        return self._rope[length]

    # --- update -------------------------------------------------------------------------------------------------------

    def set_rates(self, rates: Sequence[float], steps: Sequence[int]) -> None:
        """Learning rate and number (from 1) of each replica's coming update."""
        self.coming = list(zip(rates, steps, strict=True))
        columns = [[n for g in self.groups for n in _numbers(g, rate, step)] for rate, step in self.coming]
        self._numbers.copy_(torch.tensor(columns, dtype=torch.float64).T)

    @torch.no_grad()
    def update_(self, clip: float) -> torch.Tensor:
        """Clip each replica's gradient to norm ``clip`` (0: not at all) and take the optimiser's step; returns the
        norms before, (n_replicas,).
        """
        # of each tensor, then of the norms, in the model's own order, as for one model
        each = [norms(self.leaves[name].grad) for name, _ in self.models[0].named_parameters()]
        found = norms(torch.stack(each, dim=1))
        if clip:
            self.gradients.mul_((clip / (found + 1e-6)).clamp(max=1.0)[:, None])
        at = 0
        for group in self.groups:
            count = _N_NUMBERS[group.kind]
            _UPDATES[group.kind](self, group, self._numbers[at : at + count])
            at += count
        return found

    def publish(self, steps: Sequence[int], rates: Sequence[float]) -> None:
        """Step counts and rates into the single optimisers, before their state is kept."""
        for optimisers, step, rate in zip(self.optimisers, steps, rates, strict=True):
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = rate
                for state in optimiser.state.values():
                    if "step" in state:
                        state["step"].fill_(step)

    def release(self, r: int) -> None:
        """Give replica ``r`` a memory of its own again; the stack no longer moves it."""
        for parameter in self.models[r].parameters():
            parameter.data = parameter.data.clone()
        for optimiser in self.optimisers[r]:
            for state in optimiser.state.values():
                state.update({key: value.clone() for key, value in state.items()})

    def totals(self) -> dict[str, torch.Tensor]:
        """Parameter name -> sum of |values| of each replica, (n_replicas,) float64 on the CPU; one transfer."""
        sums = [self.leaves[name].detach().abs().flatten(1).sum(1, dtype=torch.float64) for name in self.leaves]
        return dict(zip(self.leaves, torch.stack(sums).cpu()))

    def parts(self, group: _ParameterGroup) -> list[torch.Tensor]:
        """Its columns of the values, the gradients and both moments."""
        return [b[:, group.start : group.stop] for b in (self.values, self.gradients, *self.moments)]

    def _all(self, buffer: torch.Tensor, one: _Slice) -> torch.Tensor:
        return buffer[:, one.start : one.stop].view(self.n, *one.shape)

    def _absorb(self, r: int, named: Mapping[str, nn.Parameter]) -> None:
        kinds = {type(one).__name__: one for one in self.optimisers[r]}
        for group in self.groups:
            for one in group.slices:
                state = kinds[group.kind].state[named[one.name]]
                for moment, key in zip(self.moments, _MOMENTS[group.kind]):
                    view = moment[r, one.start : one.stop].view(one.shape)
                    if isinstance(state.get(key), torch.Tensor):
                        view.copy_(state[key])
                    state[key] = view
                if group.kind == "AdamW":
                    state.setdefault("step", torch.tensor(0.0))


def _layout(model: nn.Module, optimisers: Sequence[torch.optim.Optimizer]) -> tuple[tuple[_ParameterGroup, ...], int]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups, at = [], 0
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            slices = []
            start = at
            for parameter in group["params"]:
                slices.append(_Slice(names[id(parameter)], tuple(parameter.shape), at, at + parameter.numel()))
                at += -(-parameter.numel() // _ALIGN) * _ALIGN
            options = {key: value for key, value in group.items() if key != "params"}
            groups.append(_ParameterGroup(type(optimiser).__name__, start, at, tuple(slices), options))
    return tuple(groups), at


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


_N_NUMBERS = {"AdamW": 3, "SGD": 1, "Muon": 2}


def _numbers(group: _ParameterGroup, rate: float, step: int) -> tuple[float, ...]:
    decay = 1 - rate * group.options.get("weight_decay", 0.0)
    if group.kind == "AdamW":
        beta1, beta2 = group.options["betas"]
        return decay, -rate / (1 - beta1**step), math.sqrt(1 - beta2**step)
    return (-rate,) if group.kind == "SGD" else (decay, -rate)


def _adamw(stack: Stack, group: _ParameterGroup, numbers: torch.Tensor) -> None:
    values, gradient, mean, square = stack.parts(group)
    beta1, beta2 = group.options["betas"]
    if group.options.get("fused") and not stack.for_gpu:
        # torch's kernel goes over memory once; a captured graph cannot take rates as numbers, so a GPU has the lines
        # below
        for r, (rate, step) in enumerate(stack.coming):
            adamw(
                [values[r]],
                [gradient[r]],
                [mean[r]],
                [square[r]],
                [],
                [torch.tensor(step - 1.0)],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=rate,
                weight_decay=group.options["weight_decay"],
                eps=group.options["eps"],
                maximize=False,
            )
        return
    decay, minus_rate, root = (n[:, None] for n in numbers.to(stack.dtype))
    if group.options["weight_decay"]:
        values.mul_(decay)
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    values.add_((mean * minus_rate).div_((square.sqrt() / root).add_(group.options["eps"])))


def _sgd(stack: Stack, group: _ParameterGroup, numbers: torch.Tensor) -> None:
    values, gradient, momentum, _ = stack.parts(group)
    momentum.mul_(group.options["momentum"]).add_(gradient)
    _add_(values, momentum, numbers[0][:, None])


def _muon(stack: Stack, group: _ParameterGroup, numbers: torch.Tensor) -> None:
    values, gradient, momentum, _ = stack.parts(group)
    beta = group.options["momentum"]
    momentum.lerp_(gradient, 1 - beta)
    wanted = torch.lerp(gradient, momentum, beta) if group.options["nesterov"] else momentum
    values.mul_(numbers[0][:, None].to(stack.dtype))
    for shape in dict.fromkeys(one.shape for one in group.slices):
        same = [one for one in group.slices if one.shape == shape]
        matrices = torch.stack(
            [wanted[:, s.start - group.start : s.stop - group.start].view(stack.n, *shape) for s in same], dim=1
        )
        found = orthogonalise(
            matrices.flatten(0, 1), group.options["ns_coefficients"], group.options["ns_steps"], group.options["eps"]
        )
        found = found.view(stack.n, len(same), *shape)
        rate = (numbers[1] * math.sqrt(max(1.0, shape[0] / shape[1])))[:, None, None]
        for i, one in enumerate(same):
            _add_(stack.leaves[one.name].detach(), found[:, i], rate)


def _add_(values: torch.Tensor, update: torch.Tensor, rate: torch.Tensor) -> None:
    """values += rate * update, rounded once, as add_(alpha=rate) does. Muon would grow a last bit into a digit: its
    iteration is in bfloat16.
    """
    values.copy_(torch.addcmul(values.double(), update.double(), rate.to(values.dtype).double()))


_UPDATES = {"AdamW": _adamw, "SGD": _sgd, "Muon": _muon}
