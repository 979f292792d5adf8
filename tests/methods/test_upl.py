"""UPL-ReID and the baselines: what a round labels, what a step's losses are, and what SRMO's gradient is."""
import functools
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from small import people_in_cameras
from upl_reid.components.encoder import build_encoder
from upl_reid.components.losses import soft_cross_entropy, weighted_triplet
from upl_reid.components.memory import cross_camera_info_nce
from upl_reid.core import ConfigError, DataError, seed_for
from upl_reid.methods import upl
from upl_reid.methods.baseline import GlobalDBSCAN, hard_pseudo_labels
from upl_reid.methods.upl import (GlobalUPL, HybridLabels, UPL, Settings, held_out_loss, hybrid_labels,
                                  loss_weight_gradient, mixup_loss, weigh_labels)
from upl_reid.components.mixup import choose_partners, sample_lambda
from upl_reid.training.loop import check_answering
from upl_reid.training.method import Batch, check_values, PseudoLabels


crowd = functools.partial(people_in_cameras, people=12, cameras=3, visits=4, noise=.2)


def test_hybrid_labels_are_pseudo_labels():
    x, pid, cam = crowd()
    labels = hybrid_labels(x, cam)
    used = labels.hard >= 0
    assert torch.allclose(labels.soft.sum(1), torch.ones(len(x)), atol=1e-5) and (labels.soft >= 0).all()
    assert (labels.weight[~used] == 0).all() and (labels.weight[used] > 0).all() and labels.weight.max() <= 1
    assert sorted(set(labels.hard[used].tolist())) == list(range(len(labels.centroids)))
    entropy = -(labels.soft.double()*labels.soft.double().log()).sum(1)
    assert torch.allclose(labels.weight[used].double(), torch.exp(-entropy[used]), atol=1e-4)       # alpha = 1
    for k in range(len(labels.centroids)):
        mean = x[labels.hard == k].mean(0)
        assert torch.allclose(labels.centroids[k], mean/mean.norm(), atol=1e-5)


def test_camera_bias_breaks_raw_global_clustering_and_not_the_hybrid():
    x, pid, cam = crowd(people=20, bias=2.)
    from sklearn.metrics import adjusted_rand_score as ari
    raw = GlobalDBSCAN(nn.Identity(), center=False, k1=8, eps=.5).relabel(x, cam, 0).hard
    assert ari(pid, hybrid_labels(x, cam).hard) > .9 > ari(pid, raw)


def test_alpha_none_switches_the_weights_off():
    x, _, cam = crowd(noise=.5)
    labels = hybrid_labels(x, cam, alpha=None)
    assert (labels.hard >= 0).any() and torch.equal(labels.weight, (labels.hard >= 0).to(labels.weight))


def test_components_are_as_many_as_asked_for_at_most():
    x, _, cam = crowd()
    labels = hybrid_labels(x, cam, components=5, temperature=None)
    assert 2 <= len(labels.centroids) <= 5
    assert torch.equal(labels.hard[labels.hard >= 0], labels.soft.argmax(1)[labels.hard >= 0])


def test_fixed_components_promise_nothing_about_confirmed_pairs():
    "A confirmed pair in one group may fall into two components."
    def check(**labels): check_answering(HybridLabels, check_values(HybridLabels, dict(labels=labels)))
    check(); check(alpha=2.)
    with pytest.raises(ConfigError, match="HybridLabels, with its arguments, does not keep to answers"):
        check(components=50)
    assert not HybridLabels(nn.Linear(4, 3), labels=dict(components=50)).keeps_answers


def test_nothing_but_noise_is_an_error_that_says_what_to_do():
    x, _, cam = crowd(visits=1)
    with pytest.raises(DataError, match="min_samples"): hybrid_labels(x, cam, min_samples=50)
    with pytest.raises(DataError, match="eps"): GlobalDBSCAN(nn.Identity(), min_samples=500).relabel(x, cam, 0)
    with pytest.raises(DataError, match="pseudo-identities"):
        weigh_labels(x, torch.zeros(len(x), dtype=torch.int64), torch.ones(len(x), 1), 1.)


def test_one_cluster_of_everybody_is_told_to_lower_eps():
    x, _, cam = crowd(visits=3)
    with pytest.raises(DataError, match="1 clusters among 108 images, and two are needed; lower eps"):
        hard_pseudo_labels(x, torch.zeros(len(x), dtype=torch.int64))
    with pytest.raises(DataError, match="0 clusters .* raise eps"):
        hard_pseudo_labels(x, torch.full((len(x),), -1))
    few = torch.where(torch.arange(len(x)) < 5, 0, -1)                          # one dense cluster, the rest is noise
    with pytest.raises(DataError, match="1 clusters .* raise eps"): hard_pseudo_labels(x, few)
    with pytest.raises(DataError, match="left one cluster .* raise eps"): upl.check_clusters(few)
    with pytest.raises(DataError, match="left one cluster of 108 images.*: lower eps"):
        upl.check_clusters(torch.zeros(len(x), dtype=torch.int64))
    with pytest.raises(DataError, match="left no cluster .* raise eps"): upl.check_clusters(torch.full((9,), -1))
    with pytest.raises(ConfigError, match="components=1 would make all images one pseudo-identity; use 2 or more"):
        HybridLabels(nn.Linear(4, 3), labels=dict(components=1))


def test_classes_without_images_are_dropped():
    x = F.normalize(torch.randn(4, 3), dim=1)
    labels = weigh_labels(x, torch.tensor([2, 0, -1, 2]),
                          torch.tensor([[.2, .2, .6], [.5, .3, .2], [1., 0., 0.], [0., 0., 1.]]), 1.)
    assert labels.hard.tolist() == [1, 0, -1, 1] and labels.soft.shape == (4, 2)
    assert torch.allclose(labels.soft[0], torch.tensor([.25, .75])) and labels.weight[2] == 0


def test_global_baseline_gives_hard_labels_of_weight_one():
    x, pid, cam = crowd(bias=0.)
    labels = GlobalDBSCAN(nn.Identity(), center=False, k1=10, eps=.6).relabel(x, cam, 0)
    assert labels.soft is None and torch.equal(labels.weight, (labels.hard >= 0).float())
    assert len(labels.centroids) > 1
    for k, centroid in enumerate(labels.centroids):
        torch.testing.assert_close(centroid, F.normalize(x[labels.hard == k].mean(0), dim=0), rtol=0, atol=1e-5)


# -- a step ------------------------------------------------------------------------------------------------------------

SIZE = (48, 24)


def step(dtype=torch.float64, **kwargs):
    """A UPL method in double precision in the middle of a round, and a batch for it."""
    g = torch.Generator().manual_seed(1)
    encoder = build_encoder("micro", SIZE, 8).to(dtype).train()
    n, k, b = 40, 5, 16
    soft = torch.rand(n, k, generator=g, dtype=dtype).softmax(1)
    labels = PseudoLabels(soft.argmax(1), soft, torch.rand(n, generator=g, dtype=dtype),
                          F.normalize(torch.randn(k, 8, generator=g, dtype=dtype), dim=1))
    meta_images = torch.randint(0, 255, (24, 3, *SIZE), generator=g, dtype=torch.uint8)
    class Bank:
        device = torch.device("cpu")
        def __getitem__(self, index): return meta_images[index]
    pids, cams = np.repeat(np.arange(6), 4), np.tile(np.arange(2), 12)
    method = UPL(encoder, meta=(Bank(), pids, cams), **kwargs).to(dtype)
    method.start_round(labels)
    if method.memory is not None: method.memory.to(dtype)
    index = torch.randperm(n, generator=g)[:b]
    camids = torch.randint(0, 3, (n,), generator=g)
    batch = Batch(torch.randn(b, 3, *SIZE, generator=g, dtype=dtype), index, camids[index], labels.hard[index],
                  soft[index], labels.weight[index], 7, 10, .05)
    if method.memory is not None:
        first = torch.arange(n)[:20]
        method.memory.enqueue(F.normalize(torch.randn(20, 8, generator=g, dtype=dtype), dim=1), first, camids[first])
    return method, batch


def test_mixup_loss_is_its_definition():
    """Eq. 11 and the two weighted losses on it, in plain loops."""
    method, batch = step()
    with torch.no_grad(): f = method.encoder(batch.images)
    got = mixup_loss(method, f, batch, 5, .4, "weight")
    partner = choose_partners(f, 5, seed_for(7, "partner")).tolist()
    lam = sample_lambda(len(f), .4, seed_for(7, "lambda")).double().tolist()
    W = [row/np.linalg.norm(row) for row in method.head.detach().numpy()]
    f, y, w, hard = f.numpy(), batch.soft.numpy(), batch.weight.numpy(), batch.hard.numpy()
    ce = triplet = total = anchors = 0.
    for i, j in enumerate(partner):
        mixed = lam[i]*f[i] + (1 - lam[i])*f[j]
        mixed = mixed/np.sqrt((mixed**2).sum())
        a, b = lam[i]*w[i], (1 - lam[i])*w[j]
        target = (a*y[i] + b*y[j])/(a + b)
        z = np.array([20*(mixed @ c) for c in W])
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        ce -= (a + b)*(target*log_p).sum(); total += a + b
        label = int(target.argmax())
        pos = [np.sqrt(((mixed - f[m])**2).sum()) for m in range(len(f)) if hard[m] == label]
        neg = [np.sqrt(((mixed - f[m])**2).sum()) for m in range(len(f)) if hard[m] != label]
        if pos and neg: triplet += (a + b)*max(0, max(pos) - min(neg) + .3); anchors += a + b
    assert got.item() == pytest.approx(ce/total + triplet/anchors, rel=1e-6)


@pytest.mark.parametrize("kind", ["memory", "all"])
def test_partners_come_from_the_memory_or_from_all_images(kind, monkeypatch):
    """The pool, image by image, and the loss on pairs that a plain search for neighbours finds in it."""
    method, batch = step(partners=kind)
    if kind == "all":
        method.round_features = F.normalize(torch.randn(40, 8, dtype=torch.float64,
                                                        generator=torch.Generator().manual_seed(3)), dim=1)
        vectors, index = method.round_features, list(range(40))
    else: vectors, index = method.memory.features[:20], list(range(20))
    with torch.no_grad(): f = method.encoder(batch.images)
    pool, seed = method.partners(), seed_for(7, "partner")
    assert pool.index.tolist() == index and torch.equal(pool.features, vectors)
    for got, held in ((pool.soft, method.labels.soft), (pool.weight, method.labels.weight)):
        assert torch.equal(got, held[:len(index)])
    pick = np.random.default_rng(seed).integers(5, size=(len(f), 1))[:, 0]
    lam = sample_lambda(len(f), .4, seed_for(7, "lambda")).double().tolist()
    W = [row/np.linalg.norm(row) for row in method.head.detach().numpy()]
    ce = total = 0.
    for i in range(len(f)):
        others = [m for m in range(len(index)) if index[m] != int(batch.index[i])]
        j = sorted(others, key=lambda m: -float(f[i] @ vectors[m]))[pick[i]]
        mixed = (lam[i]*f[i] + (1 - lam[i])*vectors[j]).numpy()
        mixed = mixed/np.sqrt((mixed**2).sum())
        a, b = lam[i]*float(batch.weight[i]), (1 - lam[i])*float(method.labels.weight[j])
        target = (a*batch.soft[i] + b*method.labels.soft[j]).numpy()/(a + b)
        z = np.array([20*(mixed @ c) for c in W])
        ce -= (a + b)*(target*(z - z.max() - np.log(np.exp(z - z.max()).sum()))).sum(); total += a + b
    whole = mixup_loss(method, f, batch, 5, .4, "weight", pool=pool)
    assert method.losses(f, batch)["mix"].item() == pytest.approx(whole.item())
    assert mixup_loss(method, f, batch, 5, .4, "weight").item() != pytest.approx(whole.item())
    monkeypatch.setattr(upl, "weighted_triplet", lambda *a, **k: 0.)
    assert mixup_loss(method, f, batch, 5, .4, "weight", pool=pool).item() == pytest.approx(ce/total, rel=1e-6)


def test_partners_must_exist():
    with pytest.raises(ConfigError, match="'memory' or 'all'"): step(partners="everyone")
    with pytest.raises(ConfigError, match="moco"): step(partners="memory", moco=False)


def test_plain_mixup_is_mixup_of_equally_reliable_images():
    method, batch = step(weigh_mix=False, mix_weight=.3)
    with torch.no_grad():
        f = method.encoder(batch.images)
        equal = Batch(**{**vars(batch), "weight": torch.ones_like(batch.weight)})
        expected = .3*mixup_loss(method, f, equal, 5, .4, "weight")
        mix, weighted = method.losses(f, batch)["mix"].item(), .3*mixup_loss(method, f, batch, 5, .4, "weight").item()
        assert mix == pytest.approx(expected.item()) != weighted


def test_plain_mixup_leaves_noise_out():
    method, batch = step()
    with torch.no_grad():
        f, hard = method.encoder(batch.images), batch.hard.clone()
        hard[:3] = -1
        noisy = Batch(**{**vars(batch), "hard": hard, "weight": torch.where(hard >= 0, 1., 0.).double()})
        assert mixup_loss(method, f, noisy, 5, .4, "weight",
                          weigh=False) == mixup_loss(method, f, noisy, 5, .4, "weight", weigh=True)


def test_held_out_loss_is_fixed_and_leaves_no_trace():
    method, batch = step(torch.float32)
    method.encoder.train()
    before = {k: v.clone() for k, v in method.encoder.state_dict().items()}
    first, second = held_out_loss(method.encoder, *method.meta), held_out_loss(method.encoder, *method.meta)
    assert first == second and method.encoder.training
    assert all(torch.equal(v, before[k]) for k, v in method.encoder.state_dict().items())
    assert method.log_values() == dict(meta_loss=held_out_loss(method.ema, *method.meta), meta_snr=0.)
    assert set(step(srmo=False)[0].to(torch.float32).log_values()) == {"meta_loss"}


def test_without_hybrid_labels_the_labels_are_the_baselines():
    x, _, cam = crowd(people=20)
    method = GlobalUPL(nn.Identity(), srmo=False)
    ours, theirs = method.relabel(x, cam, 0), GlobalDBSCAN(nn.Identity()).relabel(x, cam, 0)
    assert torch.equal(ours.hard, theirs.hard) and torch.equal(ours.centroids, theirs.centroids) and ours.soft is None
    assert set(UPL.arguments()) - set(GlobalUPL.arguments()) == {"labels"}


def test_losses_are_pure():
    method, batch = step()
    features = method.encoder(batch.images)
    state = {k: v.clone() for k, v in method.state_dict().items()}
    first, second = method.losses(features, batch), method.losses(features, batch)
    assert first.keys() == {"ce", "triplet", "mix", "nce"} and all(torch.equal(first[k], second[k]) for k in first)
    assert all(torch.equal(v, method.state_dict()[k]) for k, v in state.items())


@pytest.mark.parametrize("how", [{}, dict(weigh_nce=False), dict(ignore_same_camera=False), dict(tau=.2),
                                 dict(normalise="count")], ids=["default", "anchors", "cameras", "tau", "count"])
def test_losses_are_those_of_the_parts(how):
    "Each part is compared with naive loops in tests/components."
    method, batch = step(**how)
    f = method.encoder(batch.images)
    got, memory, norm = method.losses(f, batch), method.memory, how.get("normalise", "weight")
    logits = 20*F.normalize(f, dim=1) @ F.normalize(method.head, dim=1).T
    torch.testing.assert_close(got["ce"], soft_cross_entropy(logits, batch.soft, batch.weight, norm))
    torch.testing.assert_close(got["triplet"], weighted_triplet(f, batch.hard, batch.weight, normalise=norm))
    keys, labels, cams = memory.features[:20], method.hard[memory.index[:20]], memory.camids[:20]
    arguments = how.get("tau", .07), None if "weigh_nce" in how else batch.weight, how.get("ignore_same_camera", True)
    nce = cross_camera_info_nce(f, batch.hard, batch.camids, keys, labels, cams, *arguments)
    torch.testing.assert_close(got["nce"], nce)


@pytest.mark.parametrize("at", ["step", "start"])
def test_meta_gradient_of_the_whole_method(at):
    """Central differences of L_meta(Theta - eta grad sum lambda_i L_i) by each lambda_i, through the real losses
    (Eq. 13-16)."""
    from upl_reid.data.image_bank import plan_batches, normalise_images
    from upl_reid.components.losses import supervised_contrastive
    method, batch = step(meta_gradient_at=at)
    losses, weights = method.losses(method.features(batch), batch), method.loss_weights()
    # the step's own gradient, which is the virtual step's
    sum(weights[k]*v for k, v in losses.items()).backward()
    state = {k: v.clone() for k, v in method.state_dict().items()}
    bank, pids, cams = method.meta
    class Double:                                           # the bank's bytes, prepared in double precision
        device = bank.device
        def __getitem__(self, i): return bank[i]
    import upl_reid.methods.upl as module
    original = module.normalise_images
    module.normalise_images = lambda images: original(images).double()
    try: got = loss_weight_gradient(method, batch)
    finally: module.normalise_images = original
    assert all(torch.equal(v, method.state_dict()[k]) for k, v in state.items())        # looking ahead leaves no trace
    rows = plan_batches(pids, cams, 4, 4, 1, seed_for(7, "meta"))[0]
    images, truth = normalise_images(bank[torch.from_numpy(rows)]).double(), torch.as_tensor(pids[rows])
    parameters = {k: p.detach().clone().requires_grad_() for k,
                  p in method.encoder.named_parameters() if p.requires_grad}
    def call(p, x):
        return torch.func.functional_call(method.encoder,
                                          {**p, **{k: b.clone() for k, b in method.encoder.named_buffers()}}, (x,))
    grads = []
    for name in method.srmo.names:
        loss = method.losses(call(parameters, batch.images), batch)[name]
        grads.append(torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True))
    def meta(weights):
        ahead = {k: p.detach() - batch.lr*sum(w*g[i] for w, g in zip(weights, grads)) for i,
                 (k, p) in enumerate(parameters.items())}
        return supervised_contrastive(call(ahead, images), truth).item()
    # "start": the derivative at Theta itself, where nothing has been stepped yet
    here = [1.]*4 if at == "step" else [0.]*4
    for i in range(4):
        up, down = list(here), list(here)
        up[i] += 1e-4; down[i] -= 1e-4
        assert got[i].item() == pytest.approx((meta(up) - meta(down))/2e-4, rel=2e-3, abs=1e-9)


def test_a_step_enqueues_momentum_keys_and_meets_srmo_every_tenth_time():
    method, batch = step(torch.float32)
    method.ema.eval()
    stored, weights = method.memory.stored, method.srmo.weights()
    method.before_step(batch)
    sum(method.losses(method.features(batch), batch).values()).backward()
    assert int(method.srmo.updates) == 0
    method.before_update(batch)
    assert method.memory.stored == stored + 16 and int(method.srmo.updates) == 1
    with torch.no_grad(): keys = method.ema(batch.images)
    slots = (torch.arange(16) + stored) % method.memory.size
    assert torch.allclose(method.memory.features[slots], keys) and torch.equal(method.memory.index[slots], batch.index)
    assert not torch.equal(method.srmo.weights(), weights) and method.srmo.weights().sum().item() == pytest.approx(4)
    from dataclasses import replace
    method.before_update(replace(batch, step=11))
    assert int(method.srmo.updates) == 1


@pytest.mark.parametrize("off, names",
        [(dict(mixup=False), {"ce", "triplet", "nce"}), (dict(moco=False), {"ce", "triplet", "mix"}),
         (dict(mixup=False, moco=False), {"ce", "triplet"})])
def test_parts_can_be_switched_off(off, names):
    method, batch = step(**off)
    assert set(method.losses(method.encoder(batch.images), batch)) == names == set(method.loss_weights())
    assert (method.memory is None) == ("moco" in off)


def test_without_srmo_no_meta_set_is_needed_and_all_losses_weigh_one():
    method = UPL(build_encoder("micro", SIZE, 8), srmo=False)
    assert method.loss_weights() == {} and method.srmo is None
    with pytest.raises(ConfigError, match="meta"): UPL(build_encoder("micro", SIZE, 8))
    for people in (1, 0, -4):
        with pytest.raises(ConfigError, match=f"meta_people={people} "):
            UPL(build_encoder("micro", SIZE, 8), meta=(None, [0, 1], None), meta_people=people)


def test_as_written_is_the_letter():
    args = UPL.as_written()
    method = UPL(build_encoder("micro", SIZE, 8), meta=(None, [0, 1], None), **args)
    assert method.embedder() is method.encoder and method.srmo.raw and method.srmo.regulariser == 1
    assert torch.equal(method.srmo.weights(), torch.ones(4))
    assert args == dict(labels=dict(center=False, k1=8, eps=.6, min_samples=4, components=50, temperature=None),
                        max_queue_share=1., ignore_same_camera=False, unit_mix=False, weigh_nce=False,
                        normalise="count", meta_lr=1e-2, regulariser=1., raw=True, average=False)
    s = method.settings
    assert (s.normalise, s.ignore_same_camera, s.neighbours, s.beta, s.meta_every,
            s.queue) == ("count", False, 5, .4, 10, 8192)


def test_hybrid_labels_alone_are_a_method():
    x, _, cam = crowd()
    method = HybridLabels(build_encoder("micro", SIZE, 24), labels=dict(alpha=None))
    labels, same = method.relabel(x, cam, 0), hybrid_labels(x, cam, alpha=None)
    assert torch.equal(labels.hard, same.hard) and torch.equal(labels.weight, same.weight)
    with pytest.raises(ConfigError, match="'ep'"): HybridLabels(build_encoder("micro", SIZE, 8), labels=dict(ep=.5))


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError): UPL(build_encoder("micro", SIZE, 8), srmo=False, momentun=.9)
    assert Settings().moco and not Settings(moco=False).moco
