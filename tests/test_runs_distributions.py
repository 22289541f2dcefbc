"""Histograms of the tools as distributions: their quantiles and norms against the values they were made of."""

import os
import subprocess
import sys

import numpy as np
import pytest

from wisca_core.runs import read
from wisca_core.runs.distributions import FIGURES, families, figures_of, layer_of


def test_tensorboards_histograms_give_the_quantiles_and_the_exact_l2_norm_of_the_values(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    rng = np.random.default_rng(0)
    values = {step: rng.normal(size=5000) * 0.02 * (1 + step) for step in (0, 1, 2)}
    with SummaryWriter(tmp_path) as writer:
        for step, one in values.items():
            writer.add_histogram("model.layers.3.self_attn.q_proj.weight", one, step)
    run = read([tmp_path]).runs[0]
    found = run.distributions["model.layers.3.self_attn.q_proj.weight"]
    assert found.step.tolist() == [0, 1, 2] and not run.series and run.counts["histogram"] == 3
    for k, one in enumerate(values.values()):
        row = dict(zip(FIGURES, found.figures[k]))
        assert row["count"] == 5000 and row["lowest"] == one.min() and row["highest"] == one.max()
        assert row["l2"] == pytest.approx(np.linalg.norm(one), rel=1e-12)  # its sum of squares was logged
        assert row["l1"] == pytest.approx(np.abs(one).sum(), rel=0.02)  # bins are 10 % wide
        assert row["median"] == pytest.approx(np.median(one), abs=0.1 * one.std())
        assert row["q95"] == pytest.approx(np.quantile(one, 0.95), rel=0.1)


def test_the_newer_histograms_of_tensors_are_read_too(tmp_path):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.histogram.summary_v2 import histogram_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    values = np.linspace(-1.0, 3.0, 401)
    writer = EventFileWriter(str(tmp_path))
    writer.add_event(Event(wall_time=1.0, step=7, summary=histogram_pb("w", values, buckets=100)))
    writer.close()
    found = read([tmp_path]).runs[0].distributions["w"]
    row = dict(zip(FIGURES, found.figures[0]))
    assert found.step.tolist() == [7] and (row["lowest"], row["highest"], row["count"]) == (-1.0, 3.0, 401)
    assert row["median"] == pytest.approx(1.0, abs=0.04) and row["l2"] == pytest.approx(
        np.linalg.norm(values), rel=5e-3
    )


def test_what_wandbs_watch_keeps_of_weights_and_gradients(tmp_path):
    script = """
import sys, torch, wandb
settings = wandb.Settings(x_disable_stats=True, x_disable_meta=True, console="off", silent=True)
run = wandb.init(project="p", name="watched", dir=sys.argv[1], mode="offline", settings=settings)
torch.manual_seed(0)
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))
    def forward(self, x):
        return self.layers(x)
model = Model()
wandb.watch(model, log="all", log_freq=1)
for k in range(3):
    model(torch.randn(4, 16)).square().mean().backward()
    run.log({"loss": 1.0, "global_step": k * 10})
run.finish()
torch.save(model.layers[1].weight.detach().double(), sys.argv[1] + "/weight.pt")
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, env=environment)
    import torch

    weight = torch.load(tmp_path / "weight.pt")
    run = read([tmp_path / "wandb"]).runs[0]
    found = run.distributions["parameters/layers.1.weight"]
    assert found.step[-1] == 20 and found.column("count").tolist() == [256.0] * len(found)
    assert found.column("l2")[-1] == pytest.approx(float(weight.norm()), rel=0.01)
    assert families(run.distributions)["gradients/layers.*.weight"] == {
        0: "gradients/layers.0.weight",
        1: "gradients/layers.1.weight",
    }


def test_a_row_of_figures_by_hand_and_what_is_none():
    row = dict(zip(FIGURES, figures_of([0.0, 1.0, 2.0, 4.0], [2, 0, 2])))
    # half of [0, 1], half of [2, 4]: the quarter lies in the middle of the first, the three quarters in that of the
    # last
    assert (row["count"], row["lowest"], row["q25"], row["q75"], row["highest"]) == (4, 0.0, 0.5, 3.0, 4.0)
    assert (row["l1"], row["l2"]) == (2 * 0.5 + 2 * 3.0, pytest.approx((2 * 0.25 + 2 * 9.0) ** 0.5))
    for edges, counts in (([0, 1], [0]), ([0, 1], [-1, 2]), ([0, 1, 2], [float("nan"), 1]), ([1, 0], [1]), ([], [])):
        assert figures_of(edges, counts) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wisca/log2_ratio/decoder.12.self.qk", ("wisca/log2_ratio/decoder.*.self.qk", 12)),
        ("transformer.h.3.attn.c_attn.weight", ("transformer.h.*.attn.c_attn.weight", 3)),
        ("parameters/0.weight", ("parameters/*.weight", 0)),
        ("lm_head.weight", None),
    ],
)
def test_a_layer_is_read_off_a_name(name, expected):
    assert layer_of(name) == expected
