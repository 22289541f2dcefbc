"""Declared sites say what a family's row can say: heads as an axis, keys and values of another layer, an output that reads
more than the heads, experts below each other, a norm a head. Each proved on a small model, and refused where it is said wrong.
"""

import pytest
import torch
from declared_words import APART, CASES, EINSUM, HEADS, IDS
from safetensors.torch import load_file, save_file

import wisca_core as wisca
from wisca_core.errors import DeclarationError, NothingToRescale, ProofFailed


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
    """A running training leaves tensors alone that hold several heads on an axis of their own."""
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
    with pytest.raises(NothingToRescale, match="several experts or heads in one tensor"):
        wisca.rescale_(made(make), sites=sites)


def test_the_words_are_read_back_from_toml(tmp_path):
    from wisca_core.architecture.declaration import read_declarations, toml

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
