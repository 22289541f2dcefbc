"""Declared sites say what a family's row can say: heads as an axis, keys and values of another layer, an output that
reads more than the heads, experts below each other, a norm a head. Each proved on a small model, and refused where it
is said wrong.
"""

import pytest
import torch
from declared_words import APART, CASES, EINSUM, HEADS, IDS
from safetensors.torch import load_file, save_file

import wisca_core as wisca
from wisca_core.errors import DeclarationError, ProofFailed

STATE = ("exp_avg", "exp_avg_sq")


def made(make):
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    return model


@pytest.mark.parametrize("name", CASES)
def test_it_is_proved_and_the_model_stays_the_same(name):
    make, sites, n_pairs = CASES[name]
    model = made(make).double().eval()
    before = model(IDS).detach()
    done = wisca.rescale_(model, sites=sites, pairs=("qk", "vo", "mlp"), granularity="channel")
    assert len(done.factors.sites) == n_pairs
    assert torch.allclose(model(IDS), before, rtol=0, atol=1e-10)
    changed = [
        n for n, p in made(make).double().named_parameters() if not torch.equal(p, dict(model.named_parameters())[n])
    ]
    if name == "keys of another layer":  # the readers' queries and outputs go along
        assert {f"layers.{i}.{w}.weight" for i in range(3) for w in ("wq", "wo")} <= set(changed)
    assert changed


def test_heads_as_an_axis_are_proved_in_files(tmp_path):
    make, sites = EINSUM
    file = tmp_path / "model" / "model.safetensors"
    file.parent.mkdir()
    save_file(made(make).state_dict(), file)
    model = wisca.open(file, sites=sites, build=make)
    done = wisca.export(model, wisca.plan(model, granularity="group", exact=True), tmp_path / "new", check=False)
    assert done.proof.passed and len(done.proof.proved) == 2
    after = made(make)
    after.load_state_dict(load_file(tmp_path / "new" / "model.safetensors"))
    assert torch.equal(after(IDS), made(make)(IDS)) and not torch.equal(after.layers[0].q, made(make).layers[0].q)
    wrong = [wisca.attention("layers.{i}", **dict(sites[0].words) | {"rope": "interleaved"})]
    model = wisca.open(file, sites=wrong, build=make)
    assert not wisca.prove(model).passed and "rope='half'" in wisca.prove(model).reason


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_heads_as_an_axis_are_balanced_in_the_norm_that_is_asked_for(norm):
    make, sites = EINSUM
    model = made(make).double()
    wisca.rescale_(model, sites=sites, granularity="group", norm=norm)
    size = {"l1": lambda w: w.abs().sum(), "l2": lambda w: w.norm(), "max": lambda w: w.abs().max()}[norm]
    for layer in model.layers:
        for kv in range(2):
            mine = slice(2 * kv, 2 * kv + 2)  # two query heads a KV head
            assert size(layer.q[:, mine]).item() == pytest.approx(size(layer.k[:, kv]).item(), rel=1e-12)
            assert size(layer.o[:, mine]).item() == pytest.approx(size(layer.v[:, kv]).item(), rel=1e-12)


def test_heads_as_an_axis_train_at_rates_as_by_weights():
    """Momentum on their axes goes along, and each tensor has one rate: one training in two coordinates, in float64."""
    make, sites = EINSUM
    losses, models = [], [made(make).double() for _ in range(3)]
    for model, by, strength in zip(models, ("weights", "rates", "rates"), (1.0, 1.0, 0.0)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1, eps=1e-3)
        scaler = wisca.Scaler(model, optimizer, every=3, sites=sites, by=by, strength=strength)
        found = []
        for step in range(10):
            ids = torch.randint(0, 19, (2, 9), generator=torch.Generator().manual_seed(step))
            loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            scaler.step()
            optimizer.zero_grad()
            found.append(loss.item())
        losses.append(found)
    weights, rates, plain = losses
    assert max(abs(a / b - 1) for a, b in zip(weights, rates)) < 1e-12
    assert max(abs(a / b - 1) for a, b in zip(weights, plain)) > 1e-4  # else the bound would say nothing
    assert not torch.equal(models[0].layers[0].q, models[1].layers[0].q)


def test_momentum_of_heads_on_an_axis_goes_along_cell_by_cell():
    make, sites = EINSUM
    model = made(make).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(IDS).square().mean().backward()
    optimizer.step()
    before = {p: (p.detach().clone(), *(optimizer.state[p][key].clone() for key in STATE)) for p in model.parameters()}
    wisca.rescale_(model, optimizer, sites=sites, granularity="group")
    for layer in model.layers:
        for p in (layer.q, layer.k, layer.v, layer.o):
            c = p.detach() / before[p][0]
            assert c.amax((0, 2)).sub(c.amin((0, 2))).max() < 1e-12 and len(c[0, :, 0].unique()) > 1  # one a head
            for key, power, kept in zip(STATE, (-1, -2), before[p][1:]):
                assert torch.allclose(optimizer.state[p][key], kept * c**power, rtol=1e-12, atol=0)


def test_the_words_are_read_back_from_toml(tmp_path):
    from wisca_core.architecture.declaration_files import read_declarations, toml

    for sites in (EINSUM[1], *(sites for _, sites, _ in CASES.values())):
        (tmp_path / "sites.toml").write_text(toml(sites))
        assert read_declarations(tmp_path / "sites.toml") == tuple(sites)


def test_what_is_said_wrong_is_refused_by_name_and_nothing_changes():
    owner, reader = CASES["keys of another layer"][1]
    make = CASES["keys of another layer"][0]
    for sites, error, message in (
        ([reader], DeclarationError, "kv_layer=0: no declaration gives layer 0 keys and values of its own"),
        ([owner], ProofFailed, "the outputs differ by"),
        (
            [
                owner,
                wisca.attention("layers.{i}", q="wq", out="wo", kv_layer=0, layers="1-2", n_heads=HEADS, rope="half"),
            ],
            DeclarationError,
            "but is declared with 4 key/value heads",
        ),
    ):
        model = made(make)
        with pytest.raises(error, match=message):
            wisca.rescale_(model, sites=sites)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), made(make).parameters(), strict=True))
    for words, message in (
        (dict(q="wq", kv_layer=0), "for layers= that have q and out"),
        (dict(q="wq", k="wk", v="wv", kv_layer=0, layers=[1]), "for layers= that have q and out"),
        (dict(q="wq", kv_layer=-1, layers=[1]), "kv_layer=-1"),
    ):
        with pytest.raises(DeclarationError, match=message):
            wisca.attention("layers.{i}", out="wo", n_heads=2, **words)
    with pytest.raises(DeclarationError, match=r"is 24 x 4 x 6, 4 heads; 2 were declared"):
        wisca.rescale_(
            made(EINSUM[0]),
            sites=[wisca.attention("layers.{i}", q="q", k="k", v="v", out="o", heads_axis=True, n_heads=2)],
        )
    with pytest.raises(DeclarationError, match="reads 38 channels; 4 heads of 6 are 24"):
        wisca.rescale_(made(CASES["an output that reads more"][0]), sites=[wisca.attention("layers.{i}", **APART)])
