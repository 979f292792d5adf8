"""Varied light: pixels against plain loops, what it leaves alone, and that a run resumes to the same bits."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from small import Linear
from upl_reid.components.encoder import build_encoder
from upl_reid.core import ConfigError, seed_for
from upl_reid.data.benchmarks import load_domain
from upl_reid.data.image_bank import IMAGENET_MEAN, IMAGENET_STD, ImageBank
from upl_reid.data.synthetic import write_domain
from upl_reid.methods.baseline import GlobalDBSCAN
from upl_reid.methods.cgc import CGC
from upl_reid.methods.varied_light import DBSCANInVariedLight, VariedLight, change_light, light_factors, vary_light
from upl_reid.training.loop import adapt
from upl_reid.training.method import Batch, Budget

SIZE = (48, 24)
BUDGET = Budget(2, 4, identities=6, lr=1e-3, stem_lr_factor=1., cluster_every=1, warmup=0)


@pytest.mark.parametrize("seed", range(6))
def test_pixels_are_those_of_plain_loops(seed):
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(5, 3, 4, 3, generator=g)
    factors, exponents = light_factors(5, .4, .5, .7, seed)
    want = np.empty(images.shape)
    for b, c, y, x in np.ndindex(*images.shape):
        m, s = IMAGENET_MEAN[c], IMAGENET_STD[c]
        p = min(1., max(0., float(images[b, c, y, x])*s + m))
        want[b, c, y, x] = (min(1., p**float(exponents[b])*float(factors[b, c])) - m)/s
    np.testing.assert_allclose(vary_light(images, .4, .5, .7, seed).numpy(), want, atol=1e-5)


@given(st.integers(1, 40), st.floats(0, 2), st.floats(0, 2), st.floats(0, 1), st.integers(0, 2**32))
@settings(max_examples=60)
def test_factors_are_positive_and_repeat(count, gain, gamma, share, seed):
    factors, exponents = light_factors(count, gain, gamma, share, seed)
    assert factors.shape == (count, 3, 1, 1) and exponents.shape == (count, 1, 1, 1)
    assert (factors > 0).all() and (exponents.log().abs() <= gamma + 1e-5).all()
    again = light_factors(count, gain, gamma, share, seed)
    assert torch.equal(factors, again[0]) and torch.equal(exponents, again[1])
    still = (exponents == 1).flatten() & (factors == 1).flatten(1).all(1)
    if share == 0: assert still.all()
    pixels = torch.rand(count, 3, 2, 2)
    changed = change_light(pixels, factors, exponents)
    assert ((changed >= 0) & (changed <= 1)).all() and torch.equal(changed[still], pixels[still])


def test_spread_and_share_are_those_asked_for():
    factors, exponents = light_factors(20_000, .3, .4, .8, 0)
    changed = exponents.flatten() != 1
    assert changed.float().mean().item() == pytest.approx(.8, abs=.01)
    assert factors[changed].log().std().item() == pytest.approx(.3, abs=.01)
    assert exponents[changed].log().std().item() == pytest.approx(.4/math.sqrt(3), abs=.01)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = write_domain("plaza", tmp_path_factory.mktemp("data"), train_ids=10, test_ids=4, cameras=3, size=SIZE)
    domain = load_domain("plaza", root)
    return domain, ImageBank(domain.train.paths, SIZE)


def trained(cls, world, state=None, epoch=0, **how):
    domain, bank = world
    states, rows, seen = [], [], []
    method = cls(build_encoder("micro", SIZE, 16), momentum=.9, k1=8, eps=.6, **how)
    method.encoder.register_forward_pre_hook(lambda m, given: seen.append(given[0].clone()) if m.training else None)
    adapt(method, domain.train.withhold(), bank, BUDGET, progress=False, save=lambda t, row, r: (
        states.append({k: v.clone() for k, v in t.items()}), rows.append(row)), state=state, epoch=epoch)
    return states, rows, seen


def test_only_training_images_change(world):
    "The first step of both methods has the same images, labels and seed; the light is the only difference."
    lit, plain = trained(DBSCANInVariedLight, world), trained(GlobalDBSCAN, world)
    assert lit[2][0].shape == plain[2][0].shape and not torch.allclose(lit[2][0], plain[2][0], atol=1e-3)
    same = (lit[2][0] - plain[2][0]).abs().flatten(1).amax(1) < 1e-5
    assert 0 < int(same.sum()) < len(same)
    assert lit[1][0]["classes"] == plain[1][0]["classes"] and lit[1][0]["unused"] == plain[1][0]["unused"]


def test_without_strength_it_is_the_baseline(world):
    dark, plain = trained(DBSCANInVariedLight, world, gain=0., gamma=0.), trained(GlobalDBSCAN, world)
    for a, b in zip(dark[1], plain[1]): assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


def test_resumes_to_the_same_bits(world):
    states = trained(DBSCANInVariedLight, world)[0]
    end = trained(DBSCANInVariedLight, world, state=states[0], epoch=1)[0]
    for name, value in states[-1].items(): assert torch.equal(value, end[-1][name]), name


def test_it_stands_before_another_method(world):
    class Mine(VariedLight, CGC): "CGC under varied light."
    assert {"gain", "gamma", "share", "beta", "center"} <= set(Mine.arguments())
    assert np.isfinite(trained(Mine, world)[1][-1]["loss"])


def test_the_meta_step_sees_the_images_of_the_gradients():
    seen = []
    class Watch(GlobalDBSCAN):
        "Notes the images that each hook is given."
        def features(self, batch): seen.append(batch.images); return super().features(batch)
        def before_update(self, batch): seen.append(batch.images)
    class Mine(VariedLight, Watch): "Both hooks under varied light."
    images, second = torch.rand(2, 6, 3, 1, 3)
    none = torch.zeros(6, dtype=torch.int64)
    batch = Batch(images, none, none, none, torch.ones(6, 1), torch.ones(6), 7, 0, 1e-3)
    method = Mine(Linear(4, 3).float())
    method.features(replace(batch, second=second))
    other = vary_light(second, .3, .3, .8, seed_for(7, "second light"))
    assert torch.equal(method.lit.second, other) and not torch.equal(other, vary_light(second, .3, .3, .8,
                                                                                      seed_for(7, "light")))
    seen.clear()
    method.features(batch)
    assert method.lit.second is None
    method.before_update(batch)
    assert torch.equal(seen[0], seen[1]) and not torch.allclose(seen[0], images)


@pytest.mark.parametrize("how", [dict(gain=-.1), dict(gamma=-1.), dict(share=1.5), dict(share=float("nan"))])
def test_strengths_out_of_range(how):
    with pytest.raises(ConfigError, match="share"): DBSCANInVariedLight(Linear(4, 3), **how)
