"""Tensors that the proof's inputs never reach: those of global tokens (Longformer, LED) and of entities (LUKE) follow
the pairs they share keys or Wo with. Each model is run here on what does reach them.
"""

import numpy as np
import pytest
import torch

from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import open_checkpoint
from wisca_core.checkpoint.writer import write_weights
from wisca_core.equivalence.float64 import in_float64
from wisca_core.equivalence.miniature import load
from wisca_core.rescale import changes, scalings

generator = torch.Generator().manual_seed(3)
IDS = torch.randint(5, 60, (2, 33), generator=generator)
GLOBAL = torch.zeros_like(IDS)
GLOBAL[:, 0] = GLOBAL[0, 7] = 1
ENTITIES = torch.randint(1, 5, (2, 3), generator=generator)
WHERE = torch.randint(0, 30, (2, 3, 4), generator=generator)

CALLS = {
    "longformer": ("value_global", lambda m: m(input_ids=IDS, global_attention_mask=GLOBAL).logits),
    "led": (
        "value_global",
        lambda m: m(input_ids=IDS, global_attention_mask=GLOBAL, decoder_input_ids=IDS[:, :9]).logits,
    ),
    "luke": (
        "w2e_query",
        lambda m: m.luke(input_ids=IDS, entity_ids=ENTITIES, entity_position_ids=WHERE).last_hidden_state,
    ),
}
CLASSES = {"led": "LEDForConditionalGeneration"}


@pytest.mark.parametrize("model_type", CALLS)
def test_what_the_proof_does_not_run_follows(model_type, small_model, tmp_path):
    named = {"architectures": [CLASSES[model_type]]} if model_type in CLASSES else {}
    folder = small_model(model_type, **named)
    checkpoint = open_checkpoint(folder)
    sites = find_sites(checkpoint)
    part, call = CALLS[model_type]
    assert any(part in leg.tensor for site in sites.sites for leg in site.legs)
    rng = np.random.default_rng(0)
    factors = {site.name: np.exp2(rng.uniform(-8, 8, site.n_cells("channel"))) for site in sites.sites}
    shapes = {t.name: t.shape for t in checkpoint.tensors}
    write_weights(checkpoint, changes(scalings(sites, factors, "channel", shapes, None)), tmp_path)
    (tmp_path / "config.json").write_text(checkpoint.config_json)

    def run(model):
        with in_float64(), torch.no_grad():
            return call(model)

    before = run(load(folder))
    assert ((run(load(tmp_path)) - before).abs().max() / before.abs().max()).item() < 1e-11
    forgotten = load(tmp_path)
    with torch.no_grad():
        for name, parameter in forgotten.named_parameters():
            if part in name:
                parameter.copy_(load(folder).get_parameter(name))
    assert ((run(forgotten) - before).abs().max() / before.abs().max()).item() > 1e-3
