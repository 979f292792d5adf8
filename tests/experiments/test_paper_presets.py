"""Presets of the other papers: their numbers, their learning rates, and two steps of each with its real network."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from upl_reid.components.encoder import step_drops
from upl_reid.core import ConfigError
from upl_reid.experiments.config import PRESETS, RunConfig
from upl_reid.experiments.runs import get_run
from upl_reid.experiments.tables import budget_in_words
from upl_reid.methods import mspl, p2lr
from upl_reid.training.loop import set_rates
from upl_reid.training.method import Budget

PAPERS = {"paper-p2lr": "p2lr", "paper-inclr": "inclr", "paper-cgc": "cgc", "paper-mspl": "mspl"}


# ---- numbers

@pytest.mark.parametrize("preset, backbone, pooling, batch, epochs", [
    ("paper-p2lr", "resnet50", "avg", (4, 16), 100), ("paper-inclr", "resnet50", "avg", (16, 4), 100),
    ("paper-cgc", "resnet50", "gem", (16, 16), 70), ("paper-mspl", "resnet50_ibn_a", "avg", (16, 4), 450)])
def test_a_preset_has_the_numbers_of_its_paper(preset, backbone, pooling, batch, epochs):
    config, budget = RunConfig(preset, "dukemtmc", "market1501", PAPERS[preset]), PRESETS[preset].budget("market1501")
    assert (config.backbone, config.pooling, config.size, config.dim) == (backbone, pooling, (256, 128), 2048)
    assert (budget.identities, budget.images) == batch and budget.epochs == epochs and budget.lr == 3.5e-4
    assert config.own_network == {} and budget.weight_decay == 5e-4 and budget.erase > 0


def test_only_p2lr_and_inclr_pretrain_without_erasing():
    assert [PRESETS[name].pretrain.erase > 0 for name in PAPERS] == [False, False, False, True]
    assert [PRESETS[name].adapt.cluster_every for name in PAPERS] == [1, 1, 1, 90]
    assert PRESETS["paper-cgc"].budget("msmt17").epochs == 50


@pytest.mark.parametrize("method", ["mmt", "p2lr"])
def test_clusters_go_with_the_name_of_the_target(method):
    for preset in ("paper-p2lr", "paper-inclr"):
        found = {t: RunConfig(preset, "viper", t, method).arguments["clusters"] for t in (*p2lr.CLUSTERS, "mine")}
        assert found == {**p2lr.CLUSTERS, "mine": None}
        assert RunConfig(preset, "a", "market1501", method, dict(clusters=9)).arguments["clusters"] == 9
    assert RunConfig("paper", "a", "market1501", method).arguments["clusters"] is None


def test_radius_and_neighbours_go_with_the_name_of_the_target():
    cgc = lambda target, **args: RunConfig("paper-cgc", "a", target, "cgc", args).arguments
    assert [cgc(t)[k] for t in ("market1501", "msmt17") for k in ("k1", "k2", "eps", "threshold")] == [
        30, 6, .4, "linear", 30, 6, .6, 0.]
    assert cgc("market1501", threshold=.1)["threshold"] == .1
    eps = {t: RunConfig("paper-mspl", "a", t, "mspl").arguments["eps"] for t in ("dukemtmc", "market1501", "mine")}
    assert eps == dict(dukemtmc=.35, market1501=.42, mine=.5)
    assert "cgc on market1501 with k1=30, k2=6, eps=0.4" in budget_in_words("paper-cgc", {"market1501"})
    assert "a tenth of it after epochs 40, 70, begun again in each of 5 periods" in budget_in_words("paper-mspl")


def test_numbers_of_a_preset_are_part_of_a_run_s_identifier(monkeypatch):
    before = {preset: RunConfig(preset, "a", "market1501", "p2lr").id for preset in PRESETS}
    assert len(set(before.values())) == len(before)
    other = replace(PRESETS["paper-p2lr"], arguments=dict(p2lr={"market1501": dict(clusters=501)}))
    monkeypatch.setitem(PRESETS, "paper-p2lr", other)
    assert RunConfig("paper-p2lr", "a", "market1501", "p2lr").id != before["paper-p2lr"]


# ---- learning rates

def rates(budget, steps):
    "The learning rate of every step, as training sets it."
    optimiser = torch.optim.SGD([dict(params=[torch.nn.Parameter(torch.zeros(1))], base_lr=budget.lr)], lr=1.)
    return [set_rates((optimiser,), budget, done, steps) for done in range(budget.epochs*steps)]


def test_multi_step_refinement_has_its_own_rate_in_every_round():
    found = rates(PRESETS["paper-mspl"].adapt, 1)
    np.testing.assert_allclose(found, [mspl.learning_rate(epoch) for epoch in range(1, 91)]*5, rtol=1e-12)


def test_pretraining_of_p2lr_is_torch_s_schedule():
    optimiser = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=3.5e-4)
    schedule, expected = torch.optim.lr_scheduler.MultiStepLR(optimiser, [40, 70]), []
    for _ in range(80):
        expected += [optimiser.param_groups[0]["lr"]]*3
        optimiser.step()
        schedule.step()
    np.testing.assert_allclose(rates(PRESETS["paper-p2lr"].pretrain, 3), expected, rtol=1e-9)
    assert set(rates(PRESETS["paper-p2lr"].adapt, 2)) == {3.5e-4}


def test_a_rate_begins_again_where_a_period_does():
    assert [step_drops(s, 10, (2, 4), periods=2) for s in range(10)] == [1, 1, .1, .1, .1**2]*2
    assert [step_drops(s, 7, (1,), periods=2) for s in range(7)] == [1, .1, .1, .1, 1, .1, .1]       # 3.5 steps each
    assert [step_drops(s, 4, (), warmup=2, warmup_to=.5) for s in range(4)] == [.25, .5, 1, 1]


@pytest.mark.parametrize("wrong", [dict(warmup_to=0.), dict(warmup_to=.5), dict(warmup_to=1.5, drops=())])
def test_a_warm_up_that_ends_low_needs_drops(wrong):
    with pytest.raises(ConfigError, match="warmup_to"): Budget(4, **wrong)


# ---- two steps

def short(budget):
    "Two steps of 4 x 2 images, an eighth of the smallest real batch, so that one core can train them."
    return replace(budget, epochs=1, steps=2, identities=4, images=2, warmup=0, warmup_to=1., periods=1,
                   cluster_every=1)


@pytest.mark.parametrize("preset", PAPERS)
def test_two_steps_of_the_real_network_on_pictures_of_the_real_size(preset, monkeypatch, tmp_path):
    real, method = PRESETS[preset], PAPERS[preset]
    small = replace(real, networks=dict(plaza=(5, 2, 2), campus=(4, 2, 2)), weights="none",
                    pretrain=short(real.pretrain), adapt=short(real.adapt), longer={}, held=.2)
    monkeypatch.setitem(PRESETS, preset, small)
    few = {"cgc": dict(k1=6, k2=2, min_samples=2, eps=.7), "inclr": dict(k1=6, k2=2, min_samples=2, eps=.7),
           "mspl": dict(k1=6, k2=2, min_samples=2, eps=.7, min_size=2)}     # a person has few pictures here
    run = get_run(RunConfig(preset, "plaza", "campus", method, few.get(method, {})), store=tmp_path, device="cpu",
                  progress=False)
    start = get_run(RunConfig(preset, "plaza"), store=tmp_path, device="cpu", progress=False)
    losses = run.history.drop(columns=["epoch"]).select_dtypes("number").to_numpy()
    assert np.isfinite(losses).all() and 0 < run.metrics["mAP"] <= 1
    before, after = start.encoder().state_dict(), run.encoder().state_dict()
    assert before["project.weight"].shape == (2048, 2048)
    kernels = [k for k in before if k in after and k.startswith("body.") and before[k].ndim > 1]
    assert any(not torch.equal(before[k], after[k]) for k in kernels)        # weights, not statistics alone
    assert ("body.global_pool.power" in before) == (real.pooling == "gem")
    assert any(".IN." in k for k in before) == real.backbone.endswith("_ibn_a")
