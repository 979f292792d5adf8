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
from upl_reid.methods.varied_light import (DBSCANInVariedLight, LARGEST, VariedLight, change_light, light_factors,
                                              light_spread, vary_light)
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


def spread_by_loops(images, camids):
    "The spread of the light, picture by picture and pixel by pixel."
    height, width = images[0].shape[1:]
    tall, wide = max(1, height//8), max(1, width//8)
    light: dict = {}
    for image, camera in zip(images, camids):
        for c in range(3):
            edge = [float(image[c, y, x]) for y in range(height) for x in range(width)
                    if y < tall or y >= height - tall or x < wide or x >= width - wide]
            light.setdefault((camera, c), []).append(math.log(max(sum(edge)/len(edge), 1.)/255))
    squares = sum((v - sum(group)/len(group))**2 for group in light.values() for v in group)
    free = len(images) - len(set(camids))
    return math.sqrt(squares/(3*free)) if free else 0.


@pytest.mark.parametrize("size", [(16, 8), (7, 5), (9, 17)], ids=str)
@pytest.mark.parametrize("cameras", [1, 3, 11])
def test_spread_of_the_light_is_that_of_plain_loops(size, cameras):
    rng = np.random.default_rng(cameras)
    images = (rng.integers(0, 256, (11, 3, *size))*rng.uniform(0, 1, (11, 3, 1, 1))).astype(np.uint8)
    images[0] = 0
    camids = (np.arange(11) % cameras).tolist()
    got = light_spread(torch.from_numpy(images), torch.tensor(camids))
    assert got == pytest.approx(spread_by_loops(images, camids), rel=1e-5)
    assert (got == 0) == (cameras == 11)


def test_spread_looks_at_some_of_many_images():
    bank = torch.full((101, 3, 16, 8), 100, dtype=torch.uint8)
    bank[1::2] = 200                                             # not among every second image
    assert light_spread(bank, torch.zeros(101, dtype=torch.int64), most=51) == pytest.approx(0, abs=1e-5)
    assert light_spread(bank, torch.zeros(101, dtype=torch.int64)) == pytest.approx(math.log(2)/2, rel=.01)


def test_strengths_are_measured_unless_given(world):
    domain, bank = world
    camids = torch.tensor(domain.train.camids)
    measured = light_spread(bank, camids)
    assert 0 < measured < LARGEST
    for how, want in ((dict(), (measured, measured)), (dict(gain=.2), (.2, measured)),
                      (dict(gamma=0.), (measured, 0.)), (dict(gain=2., gamma=.1), (2., .1))):
        method = DBSCANInVariedLight(Linear(4, 3), **how)
        method.look(bank, camids)
        assert method.strengths == want and method.log_values()["light_gain"] == want[0]
    strong = torch.zeros(10, 3, 16, 8, dtype=torch.uint8)
    strong[::2] = 255
    method.look(strong, torch.zeros(10, dtype=torch.int64))
    assert method.strengths == (2., .1)                           # given ones may be larger
    free = DBSCANInVariedLight(Linear(4, 3))
    free.look(strong, torch.zeros(10, dtype=torch.int64))
    assert free.strengths == (LARGEST, LARGEST)
    one_each = DBSCANInVariedLight(Linear(4, 3))
    one_each.look(strong, torch.arange(10))
    assert one_each.strengths == (0., 0.)


def test_training_uses_the_measured_strength(world):
    domain, bank = world
    spread = light_spread(bank, torch.tensor(domain.train.camids))
    chosen, given = trained(DBSCANInVariedLight, world), trained(DBSCANInVariedLight, world, gain=spread, gamma=spread)
    for a, b in zip(chosen[2], given[2]): assert torch.equal(a, b)
    assert chosen[1][0]["light_gain"] == spread


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


@pytest.mark.parametrize("how", [dict(gain=-.1), dict(gamma=-1.), dict(share=1.5), dict(share=float("nan")),
                                 dict(gamma=float("nan"))])
def test_strengths_out_of_range(how):
    with pytest.raises(ConfigError, match="share"): DBSCANInVariedLight(Linear(4, 3), **how)
