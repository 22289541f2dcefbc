"""Sites declared for classes of one's own: proved on the model, trained, and refused by name where they are wrong."""

import copy
import json

import pytest
import torch
from declared_models import GPT, MODELS, VOCABULARY, Llama, RMSNorm, TorchEncoder, ViT, turned_interleaved
from torch import nn

import wisca_core as wisca
from wisca_core.architecture.declaration_files import read_declarations, toml
from wisca_core.architecture.declared_sites import declared_sites
from wisca_core.checkpoint.live import module_checkpoint
from wisca_core.errors import BadOption, DeclarationError, NothingToRescale, ProofFailed, UnreadableInput
from wisca_core.training import telemetry

LLAMA = MODELS["Llama"][1]
PAIRS = {name: ("qk", "vo", "mlp") if len(sites) > 1 else ("qk", "vo") for name, (_, sites, _) in MODELS.items()}


def made(make, seed=0, **sizes):
    torch.manual_seed(seed)
    return make(**sizes)


def ids(seed=0, n=12):
    return torch.randint(VOCABULARY, (3, n), generator=torch.Generator().manual_seed(seed))


def called(model, forward, seed=0):
    torch.manual_seed(seed)
    out = forward(model, ids(seed)) if forward else model(ids(seed))
    return out[0] if isinstance(out, tuple) else out


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def with_words(one, **words):
    """The declaration with other words."""
    make = {"attention": wisca.attention, "feed_forward": wisca.feed_forward}[one.kind]
    return make(one.layer, **{**dict(one.words), **words})


# --- right declarations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_declared_model_is_proved_and_keeps_its_function_at_every_granularity(name):
    make, sites, forward = MODELS[name]
    model = made(make).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.set_default_dtype(torch.float64)
    try:
        before = called(model, forward)
        n = {}
        for granularity in ("tensor", "group", "channel"):
            done = wisca.rescale_(
                model, sites=sites, forward=forward, pairs=PAIRS[name], granularity=granularity, check="always"
            )
            assert done.proof.passed and done.proof.max_rel < 1e-13 and done.proof.liveness > 1e-3
            assert not done.refusals
            if granularity == "tensor":  # a pair of one group is level from then on
                assert {one.split(".")[-1] for one, _ in done.factors.sites} == set(PAIRS[name])
            n[granularity] = sum(len(fs) for _, fs in done.factors.sites)
            assert done.check.moved <= 10 * max(done.check.control, 1e-16)
            after = called(model, forward)
            assert ((after - before).abs().max() / before.abs().max()).item() < 1e-12
    finally:
        torch.set_default_dtype(torch.float32)
    assert n["tensor"] < n["group"] < n["channel"]


@pytest.mark.parametrize("name", MODELS)
def test_a_declared_model_trains_with_rescales_and_its_weights_are_saved_and_read_back(name, tmp_path):
    make, sites, forward = MODELS[name]
    model = made(make)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = wisca.Scaler(
        model, optimizer, every=2, sites=sites, forward=forward, pairs=PAIRS[name], output=tmp_path / "wisca.jsonl"
    )
    losses = []
    for _ in range(4):
        loss = called(model, forward).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scaler.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    rows = telemetry.read(tmp_path / "wisca.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert float(rows[0]["check"]["moved"]) < 1e-5 and "check" not in rows[1]
    header = json.loads((tmp_path / "wisca.jsonl").read_text().splitlines()[0])
    assert header["choices"]["sites"][0]["kind"] == "attention" and header["proof"]["rule"] == "declared"
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = made(make, seed=1)
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(called(other.eval(), forward), called(model.eval(), forward))
    assert all(
        abs(ratio - 1) < 1e-4
        for ratio in wisca.rescale_(other, sites=sites, forward=forward, pairs=PAIRS[name]).ratios.values()
    )


def test_what_the_rates_of_a_declared_model_do():
    model = made(Llama)
    before = bits(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = wisca.Scaler(model, optimizer, every=2, sites=LLAMA, by="rates")
    assert same_bits(before, bits(model))
    # two queries share a key: Wq is twice as large, so its own coordinates train faster by the root of two
    assert scaler.multipliers["layers.0.attention.wq.weight"] == pytest.approx(2**0.5, rel=0.1)
    groups = wisca.param_groups(model, lr=1e-3, sites=LLAMA)
    assert {round(group["lr"] / 1e-3, 1) for group in groups} == {0.7, 1.0, 1.4}


def test_a_wrapped_model_is_found_inside_its_wrappers():
    class Module(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

    inner = made(Llama)
    for wrapped in (Module(inner), nn.DataParallel(Module(inner)), torch.compile(inner, backend="eager")):
        done = wisca.rescale_(wrapped, sites=LLAMA)
        assert [name for name, _ in done.factors.sites][0] == "decoder.0.self.qk" and not done.check.not_checked


def test_gains_of_norms_on_q_and_k_are_the_live_pair():
    model = made(Llama, qk_norm=True)
    with torch.no_grad():
        model.layers["0"].attention.q_norm.weight.mul_(8)
    before = bits(model)
    own = with_words(LLAMA[0], qk_norm=("q_norm", "k_norm"))
    done = wisca.rescale_(model, sites=[own], granularity="channel")
    assert dict(done.factors.sites)["decoder.0.self.qk"] == pytest.approx([8**-0.5] * 4)
    assert torch.equal(model.layers["0"].attention.wq.weight, before["layers.0.attention.wq.weight"])
    undeclared = wisca.rescale_(made(Llama, qk_norm=True), sites=LLAMA)
    assert {r.what for r in undeclared.refusals} == {"decoder.0.self.qk", "decoder.1.self.qk"}
    assert "qk_norm=" in undeclared.refusals[0].reason and len(undeclared.factors.sites) == 2


def test_a_file_of_declarations_says_the_same(tmp_path):
    every = [one for _, sites, _ in MODELS.values() for one in sites]
    every += [with_words(LLAMA[0], qk_norm={"q": "q_norm", "k": "k_norm", "offset": 1.0}, layers="0-1", part="other")]
    path = tmp_path / "sites.toml"
    path.write_text(toml(every))
    assert sorted(map(repr, read_declarations(path))) == sorted(map(repr, every))
    path.write_text('format = "wisca-sites"\nversion = 1\n[[attention]]\nlayer = "h.{i}"\nheads = 3\n')
    with pytest.raises(DeclarationError, match=r"\[\[attention\]\] has heads; its words are layer"):
        read_declarations(path)
    path.write_text('format = "wisca-sites"\nversion = 9\n')
    with pytest.raises(UnreadableInput, match="version 9"):
        read_declarations(path)


def test_a_guess_is_text_to_confirm_and_is_not_taken_by_itself():
    guess = wisca.guess(made(Llama))
    model = made(Llama)
    before = bits(model)
    with pytest.raises(DeclarationError, match="a Guess was given.*is to be read"):
        wisca.rescale_(model, sites=guess)
    assert same_bits(before, bits(model))
    assert "n_heads=4, n_kv_heads=2" in str(guess) and "rope" in guess.open_questions[0]
    assert guess.declarations[1] == LLAMA[1]
    for name in ("nanoGPT", "litgpt", "ViT", "nn.TransformerEncoder"):
        assert (
            dict(wisca.guess(made(MODELS[name][0])).declarations[0].words)["n_heads"] == MODELS[name][1][0]["n_heads"]
        )


class LatentAttention(nn.Module):
    """Queries [content, rotary]; keys and values out of a stream of 10, one rotary key for all heads (DeepSeek-V2)."""

    def __init__(self, width=24, n_heads=3, nope=6, rope=4, value=5, rank=10):
        super().__init__()
        self.sizes = n_heads, nope, rope, value, rank
        self.wq, self.wo = nn.Linear(width, n_heads * (nope + rope)), nn.Linear(n_heads * value, width)
        self.wkv_a, self.wkv_b = nn.Linear(width, rank + rope), nn.Linear(rank, n_heads * (nope + value))
        self.kv_norm = RMSNorm(rank)

    def forward(self, x):
        n, nope, rope, value, rank = self.sizes
        b, t, _ = x.shape
        stream, turning = self.wkv_a(x).split([rank, rope], -1)
        q, q_turning = self.wq(x).view(b, t, n, -1).transpose(1, 2).split([nope, rope], -1)
        k, v = self.wkv_b(self.kv_norm(stream)).view(b, t, n, -1).transpose(1, 2).split([nope, value], -1)
        k_turning = turned_interleaved(turning[:, None]).expand(-1, n, -1, -1)
        q, k = torch.cat([q, turned_interleaved(q_turning)], -1), torch.cat([k, k_turning], -1)
        y = (q @ k.transpose(-2, -1) / 4).softmax(-1) @ v
        return self.wo(y.transpose(1, 2).reshape(b, t, -1))


def test_latent_attention_is_three_pairs():
    class Latent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(VOCABULARY, 24)
            self.layers = nn.ModuleList([LatentAttention() for _ in range(2)])

        def forward(self, ids):
            x = self.embed(ids)
            for layer in self.layers:
                x = x + layer(x)
            return x

    words = dict(q="wq", kv_a="wkv_a", kv_b="wkv_b", out="wo", n_heads=3)
    done = wisca.rescale_(
        made(Latent), sites=[wisca.attention("layers.{i}", **words, rope="interleaved")], granularity="channel"
    )
    n = {name: len(fs) for name, fs in done.factors.sites if ".0." in name}
    assert n == {"decoder.0.self.qk": 18, "decoder.0.self.qk:rope": 2, "decoder.0.self.vo": 15} and not done.refusals
    wrong = wisca.rescale_(made(Latent), sites=[wisca.attention("layers.{i}", **words, rope="half")])
    assert {r.what.split(".", 2)[2] for r in wrong.refusals} == {"self.qk:rope"}
    with pytest.raises(DeclarationError, match="wkv_b 33 x 10.* do not make 5 heads of latent attention"):
        wisca.rescale_(made(Latent), sites=[wisca.attention("layers.{i}", **{**words, "n_heads": 5}, rope="half")])


# --- wrong ones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, words, pair, cause",
    [
        ("Llama", {"rope": "half"}, "qk", "With rope='interleaved' it would hold"),
        ("Llama", {"rope": "none"}, "qk", "With rope='interleaved' it would hold"),
        ("litgpt", {"rope_channels": None}, "qk", "rope_channels="),
        ("litgpt", {"layout": "concat"}, "vo", "layout="),
        ("nanoGPT", {"layout": "per_head"}, "vo", "layout="),
    ],
)
def test_a_wrong_rule_is_refused_with_how_far_it_moves_and_what_usually_causes_it(name, words, pair, cause):
    make, sites, forward = MODELS[name]
    model = made(make)
    before = bits(model)
    with pytest.raises(ProofFailed) as caught:
        wisca.rescale_(model, sites=[with_words(sites[0], **words)], pairs=(pair,), forward=forward)
    message = str(caught.value)
    assert "the outputs differ by" in message and cause in message and "The model is unchanged." in message
    assert same_bits(before, bits(model))


def test_a_pair_that_is_wrong_leaves_the_others_alone():
    done = wisca.rescale_(made(Llama), sites=[with_words(LLAMA[0], rope="half")])
    assert [name for name, _ in done.factors.sites] == ["decoder.0.self.vo", "decoder.1.self.vo"]
    assert {r.what for r in done.refusals} == {"decoder.0.self.qk", "decoder.1.self.qk"}


def test_every_rule_is_exact_on_a_tie_that_spans_layers():
    model = made(Llama)
    model.layers["1"].attention = model.layers["0"].attention
    done = wisca.rescale_(model, sites=LLAMA)
    assert [name for name, _ in done.factors.sites] == ["decoder.0.self.qk", "decoder.0.self.vo"]
    model.layers["1"].attention = copy.deepcopy(model.layers["0"].attention)
    model.layers["1"].attention.wq = model.layers["0"].attention.wq
    with pytest.raises(NothingToRescale, match="not all, are those of"):
        wisca.rescale_(model, sites=LLAMA, pairs=("qk",))


ATTENTION = dict(q="wq", k="wk", v="wv", out="wo", n_heads=4, n_kv_heads=2, rope="interleaved")
BAD = {
    "a path that matches nothing": (
        lambda: [wisca.attention("layers.{i}.atention", **ATTENTION)],
        r"attention\('layers.{i}.atention'\): no tensor of the model lies there. Near it are layers.0.attention",
    ),
    "a module that is not there": (
        lambda: [wisca.attention("layers.{i}.attention", **{**ATTENTION, "q": "q_proj"})],
        r"layers.0.attention.q_proj is no tensor of the model .* there are wk, wo, wq, wv",
    ),
    "heads that do not divide": (
        lambda: [wisca.attention("layers.{i}.attention", **{**ATTENTION, "n_heads": 6, "n_kv_heads": 6})],
        r"layers.0.attention.wq has 32 rows; 6 query and 6 key/value heads \(layout separate\) do not divide",
    ),
    "heads that do not share": (
        lambda: [wisca.attention("layers.{i}.attention", **{**ATTENTION, "n_kv_heads": 3})],
        "4 query heads cannot share 3 key/value heads",
    ),
    "another number of key heads": (
        lambda: [wisca.attention("layers.{i}.attention", **{**ATTENTION, "n_kv_heads": 4})],
        r"layers.0.attention.wo reads 32 channels; 4 heads of 4 are 16. Check n_heads, n_kv_heads",
    ),
    "rows claimed twice": (
        lambda: [LLAMA[0], with_words(LLAMA[0], part="again")],
        r"both claim the same rows of layers.0.attention.wq.weight",
    ),
    "an odd number of channels that turn two by two": (
        lambda: [with_words(LLAMA[0], n_heads=32, n_kv_heads=16)],
        "heads have 1 channel, and channels rotate two by two",
    ),
    "a layer that is not there": (lambda: [with_words(LLAMA[0], layers=(0, 5))], r"layers=\[0, 5\] names layer 5"),
    "not enough names": (
        lambda: [wisca.attention("layers.{i}.attention", q="wq", out="wo", n_heads=4)],
        "give q, k and v",
    ),
    "an unknown rotation": (
        lambda: [wisca.attention("h", qkv="a", out="b", n_heads=1, rope="full")],
        "choose from half",
    ),
    "no gate and no ReLU": (
        lambda: [wisca.feed_forward("layers.{i}", up="a", down="b")],
        "without a gate a factor passes",
    ),
    "layers beyond any model": (lambda: [with_words(LLAMA[0], layers="0-999999999999")], "layers='0-999999999999' was"),
    "a follower without a side": (
        lambda: [with_words(LLAMA[0], follow=[{"pair": "qk", "tensor": "bias"}])],
        "a list of mappings with pair, tensor, axis, like, side",
    ),
    "a follower that is not there": (
        lambda: [
            with_words(LLAMA[0], follow=[{"pair": "qk", "tensor": "bias", "axis": 0, "like": "q", "side": "left"}])
        ],
        "layers.0.attention.bias, which follow= names, is no tensor",
    ),
    "one name for two norms": (lambda: [with_words(LLAMA[0], qk_norm="qn")], r"needed is \('q_norm', 'k_norm'\)"),
    "an offset in words": (lambda: [with_words(LLAMA[0], qk_norm={"q": "a", "k": "b", "offset": "1"})], "qk_norm="),
    "a storage in words": (lambda: [with_words(LLAMA[0], conv1d="no")], "conv1d='no' was given; True or False"),
    "a stack of two words": (lambda: [with_words(LLAMA[0], stack="a.b")], "stack='a.b'.* make no name of a pair"),
    "no declaration": (lambda: ["layers.{i}.attention"], "a list of wisca.attention"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_declarations_are_named_errors(what):
    declare, message = BAD[what]
    model = made(Llama)
    before = bits(model)
    with pytest.raises(DeclarationError, match=message):
        wisca.rescale_(model, sites=declare())
    assert same_bits(before, bits(model))


def test_a_path_in_two_places_is_asked_for_from_the_top_on():
    both = nn.ModuleDict({"teacher": made(Llama), "student": made(Llama)})
    with pytest.raises(DeclarationError, match=r"below 2 places of the model \('student.', 'teacher.'\)"):
        wisca.rescale_(both, sites=LLAMA)
    whole = with_words(LLAMA[0])
    whole = wisca.attention(f"student.{whole.layer}", **dict(whole.words))
    call = lambda model, ids: model["student"](ids)
    assert wisca.rescale_(both, sites=[whole], forward=call).factors.sites


def test_a_model_without_declared_sites_says_how_to_declare_them():
    with pytest.raises(wisca.WiscaError, match=r"sites=\[wisca.attention\(...\)\]; print\(wisca.guess\(model\)\)"):
        wisca.rescale_(made(Llama))
    with pytest.raises(BadOption, match="build, forward: they prove declared sites"):
        wisca.rescale_(made(Llama), forward=lambda model, ids: model(ids))


# --- how it is built and called ---------------------------------------------------------------------------------------


def test_the_proof_is_made_on_what_build_makes():
    built = []

    def build():
        built.append(made(Llama, width=16, n_layers=1))
        return built[-1]

    torch.manual_seed(7)
    state = torch.get_rng_state()
    model = made(Llama, seed=7)
    torch.set_rng_state(state)
    done = wisca.rescale_(model, sites=LLAMA, build=build)
    assert "as build() makes it" in done.proof.what and len(done.factors.sites) == 4 and len(built) == 1
    assert torch.equal(torch.get_rng_state(), state)
    own = [wisca.attention("layers.{i}.attention", **{**ATTENTION, "n_heads": 2, "n_kv_heads": 1})]
    with pytest.raises(DeclarationError, match="the model that it makes has no .*several KV heads"):
        wisca.rescale_(model, sites=LLAMA, build=lambda: (made(Llama, n_heads=2, n_kv_heads=1), own))
    own = [wisca.attention("layers.{i}.attention", **{**ATTENTION, "n_heads": 8, "n_kv_heads": 4})]
    assert wisca.rescale_(model, sites=LLAMA, build=lambda: (made(Llama, n_heads=8, n_kv_heads=4), own)).factors.sites


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: made(GPT), "it makes a GPT; the model is a Llama"),
        (
            lambda: made(Llama, qk_norm=True),
            r"only the small model has layers.#.attention.k_norm.weight \(1 dimensions\)",
        ),
        (
            lambda: made(Llama, n_heads=3, n_kv_heads=3, width=30),
            "do not fit the model that it makes.*Keep the head counts",
        ),
        (lambda: 1 / 0, "making the small model failed: ZeroDivisionError"),
        (lambda: "small", "it returned a str; a torch module is needed"),
        (7, "build: a int was given; a function"),
    ],
)
def test_a_build_that_does_not_fit_is_a_named_error(build, message):
    model = made(Llama)
    before = bits(model)
    with pytest.raises(DeclarationError, match=message):
        wisca.rescale_(model, sites=LLAMA, build=build)
    assert same_bits(before, bits(model))


def test_a_build_that_gives_the_live_model_or_a_part_of_it_is_refused_before_a_proof_makes_it_random():
    model, half = made(Llama), made(Llama)
    half.layers["0"].attention.wq = model.layers["0"].attention.wq
    before = bits(model)
    for build in (lambda: model, lambda: half):
        with pytest.raises(DeclarationError, match="returns the live model, or a part of it"):
            wisca.rescale_(model, sites=LLAMA, build=build)
    assert same_bits(before, bits(model)) and {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_call_that_does_not_fit_says_how_to_give_one():
    _, vit, _ = MODELS["ViT"]
    with pytest.raises(DeclarationError, match="holds no nn.Embedding.*forward=lambda"):
        wisca.rescale_(made(ViT), sites=vit)

    class TwoInputs(Llama):
        def forward(self, tokens, mask):
            return super().forward(tokens) + mask

    with pytest.raises(
        DeclarationError, match=r"calling it with ids of \(2, 1\) failed: TypeError.*'mask'.*forward=lambda"
    ):
        wisca.rescale_(made(TwoInputs), sites=LLAMA)
    assert wisca.rescale_(made(TwoInputs), sites=LLAMA, forward=lambda model, ids: model(ids, 1.0)).factors.sites
    with pytest.raises(DeclarationError, match="without any floating value.*Let forward= return its outputs"):
        wisca.rescale_(made(TwoInputs), sites=LLAMA, forward=lambda model, ids: None)


def test_a_model_that_does_not_repeat_its_outputs_is_refused():
    class Restless(Llama):
        n = 0

        def forward(self, tokens):
            self.n += 1
            return super().forward(tokens) * (1 + 0.1 * self.n)

    class Dropping(Llama):
        def forward(self, tokens):
            return nn.functional.dropout(super().forward(tokens), 0.2, True)

    with pytest.raises(ProofFailed, match="does not repeat its own outputs in eval mode"):
        wisca.rescale_(made(Restless), sites=LLAMA)
    assert wisca.rescale_(made(Dropping), sites=LLAMA).factors.sites  # drawn alike each time, it is no reason


def test_a_model_that_gives_its_cache_is_told_so_and_goes_with_a_forward():
    class Caching(TorchEncoder):
        def forward(self, ids):
            x = self.embed(ids)
            weight, bias = (getattr(self.encoder.layers[0].self_attn, f"in_proj_{one}") for one in ("weight", "bias"))
            return super().forward(ids), nn.functional.linear(x, weight[24:], bias[24:])

    _, sites, _ = MODELS["nn.TransformerEncoder"]
    with pytest.raises(
        ProofFailed, match="a call that returns keys and values itself|returns keys and values themselves"
    ):
        wisca.rescale_(made(Caching), sites=sites)
    assert wisca.rescale_(made(Caching), sites=sites, forward=lambda model, ids: model(ids)[0]).factors.sites


def test_transposed_storage_is_declared_and_its_absence_is_hinted_at():
    from transformers.pytorch_utils import Conv1D

    model = made(GPT)
    for block in model.transformer.h:
        old, block.attn.c_attn = block.attn.c_attn, Conv1D(72, 24)
        block.attn.c_attn.weight.data.copy_(old.weight.T)
        old, block.attn.c_proj = block.attn.c_proj, Conv1D(24, 24)
        block.attn.c_proj.weight.data.copy_(old.weight.T)
    sites = MODELS["nanoGPT"][1]
    with pytest.raises(DeclarationError, match="Stored .in, out. it has 72: conv1d=True.|conv1d"):
        wisca.rescale_(model, sites=sites)
    before = called(model.eval(), None)
    done = wisca.rescale_(model, sites=[with_words(sites[0], conv1d=True)], granularity="group")
    assert len(done.factors.sites) == 4 and torch.allclose(called(model, None), before, atol=1e-6)


def test_a_norm_before_the_output_projection_takes_the_place_of_the_values():
    class SubNormed(Llama):
        def __init__(self, **sizes):
            super().__init__(**sizes)
            for layer in self.layers.values():
                layer.attention.wo = nn.Sequential(RMSNorm(32), nn.Linear(32, 32, bias=False))

    with pytest.raises(ProofFailed, match="sub_norm="):
        wisca.rescale_(made(SubNormed), sites=[with_words(LLAMA[0], out="wo.1")], pairs=("vo",))
    done = wisca.rescale_(made(SubNormed), sites=[with_words(LLAMA[0], out="wo.1", sub_norm="wo.0")], pairs=("vo",))
    assert len(done.factors.sites) == 2


def test_experts_are_pairs_of_their_own():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(
                [Llama(width=16, n_heads=2, n_kv_heads=1).layers["0"].feed_forward for _ in range(3)]
            )
            self.embed = nn.Embedding(VOCABULARY, 16)

        def forward(self, ids):
            x = self.embed(ids)
            return sum(expert(x) for expert in self.experts)

    sites = declared_sites(
        module_checkpoint(made(Experts)), [wisca.feed_forward("experts.{e}", gate="w1", up="w3", down="w2")], ("mlp",)
    )
    assert [site.name for site in sites.sites] == [f"decoder.0.none.mlp.e{i}" for i in range(3)]


def test_ragged_models_take_a_declaration_a_kind_of_layer():
    model = made(Llama)
    model.layers["1"].attention = made(Llama, n_heads=8, n_kv_heads=1).layers["0"].attention
    first = with_words(LLAMA[0], layers=[0])
    second = with_words(LLAMA[0], layers="1", n_heads=8, n_kv_heads=1)
    done = wisca.rescale_(model, sites=[first, second], granularity="group")
    assert {name: len(fs) for name, fs in done.factors.sites} == {
        "decoder.0.self.qk": 2,
        "decoder.0.self.vo": 2,
        "decoder.1.self.qk": 1,
        "decoder.1.self.vo": 1,
    }


def test_averages_of_a_class_of_ones_own_follow():
    model = made(Llama)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    with pytest.raises(BadOption, match="also: an AveragedModel of this model is kept"):
        wisca.rescale_(model, sites=LLAMA)
    wisca.rescale_(model, sites=LLAMA, also=[averaged])
    assert torch.equal(averaged.module.layers["0"].attention.wq.weight, model.layers["0"].attention.wq.weight)


# --- trainers ---------------------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return {"idx": ids(i)[0, :-1], "targets": ids(i)[0, 1:]}


class ForTrainer(GPT):
    def forward(self, idx, targets=None):
        logits, loss = super().forward(idx, targets)
        return {"loss": loss, "logits": logits}


def test_transformers_trainer_trains_a_class_of_ones_own(tmp_path):
    from transformers import Trainer, TrainingArguments

    model = made(ForTrainer)
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        save_strategy="no",
    )
    call = wisca.WiscaCallback(every=2, sites=MODELS["nanoGPT"][1], check="always")
    Trainer(model, arguments, train_dataset=Rows(), callbacks=[call]).train()
    rows = telemetry.read(tmp_path / "wisca.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4] and len(rows[0]["ratios"]) == 4
    assert all(row["check"]["inputs"] == "the trainer's data" for row in rows)


def test_lightning_trains_a_class_of_ones_own(tmp_path):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = made(GPT)

        def training_step(self, batch, i):
            return self.net(**batch)[1]

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    call = wisca.LightningWisca(every=2, sites=MODELS["nanoGPT"][1], check="always")
    trainer = lightning.Trainer(
        max_steps=4,
        accelerator="cpu",
        callbacks=[call],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(Rows(), 2))
    rows = telemetry.read(tmp_path / "wisca.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4] and len(rows[0]["ratios"]) == 4
    assert all(row["check"]["inputs"] == "the trainer's data" for row in rows)


def test_the_example_trains(capsys):
    import runpy
    from pathlib import Path

    example = runpy.run_path(str(Path(__file__).parents[1] / "sample_runs" / "nanogpt_like.py"))
    assert 0 < example["main"](2, 1) < 10
    assert len(capsys.readouterr().out.splitlines()) == 2
