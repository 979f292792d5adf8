"""The loop: what it may see, what it saves, and that going on from a checkpoint is the same as never having stopped."""
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from upl_reid.components.encoder import build_encoder
from upl_reid.core import ConfigError, DataError, RunError
from upl_reid.data.benchmarks import load_domain
from upl_reid.data.image_bank import ImageBank, normalise_images
from upl_reid.methods.baseline import GlobalDBSCAN
from upl_reid.methods.upl import UPL
from upl_reid.data.synthetic import write_domain
from upl_reid.training.method import METHODS, Budget, Method, PseudoLabels, Supervised, register
from upl_reid.training.loop import adapt, check_features, embed_bank, fit, pack_labels, pretrain, unpack_labels

SIZE = (48, 24)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny network, its bank, and a pretrained encoder."""
    domain = load_domain("campus",
            write_domain("campus", tmp_path_factory.mktemp("data"), train_ids=12, test_ids=4, cameras=4, size=SIZE))
    bank = ImageBank(domain.train.paths, SIZE)
    encoder = build_encoder("micro", SIZE, 16)
    pretrain(encoder, domain.train, bank, Budget(2, identities=6, lr=2e-3, stem_lr_factor=1.), progress=False)
    return domain, bank, encoder.state_dict()


def fresh(world, cls=UPL, **kwargs):
    domain, bank, weights = world
    encoder = build_encoder("micro", SIZE, 16)
    encoder.load_state_dict(weights)
    if cls is UPL: kwargs["meta"] = (bank, domain.train.pids, domain.train.camids)
    if cls is Supervised: kwargs["pids"] = domain.train.pids
    return cls(encoder, momentum=.9, **kwargs)


BUDGET = Budget(4, steps=4, identities=6, lr=1e-3, stem_lr_factor=1., cluster_every=2)


@pytest.mark.parametrize("make", [
    lambda w: fresh(w, meta_every=2), lambda w: fresh(w, meta_every=2, moco=False), lambda w: fresh(w, srmo=False),
    lambda w: fresh(w, partners="all"), lambda w: fresh(w, partners="memory", meta_every=2),
    lambda w: fresh(w, GlobalDBSCAN, k1=8, eps=.6), lambda w: fresh(w, GlobalDBSCAN), lambda w: fresh(w, Supervised)],
    ids=["upl", "upl without memory", "upl without srmo", "partners of all images", "partners of the memory", "dbscan",
         "dbscan with chosen numbers", "oracle"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_going_on_from_any_epoch_is_bit_identical(world, make, stop):
    domain, bank, _ = world
    states, rows = [], []
    def save(tensors, row, round): states.append({k: v.clone() for k, v in tensors.items()}); rows.append(row)
    whole = fit(make(world), bank, domain.train.camids, BUDGET, 5, progress=False, save=save)
    again = []
    resumed = fit(make(world), bank, domain.train.camids, BUDGET, 5, progress=False, state=states[stop - 1], epoch=stop,
                  save=lambda t, row, r: again.append((t, row)))
    assert len(again) == BUDGET.epochs - stop
    for k, v in whole.state_dict().items(): assert torch.equal(v, resumed.state_dict()[k]), k
    for k, v in states[-1].items(): assert torch.equal(v, again[-1][0][k]), k
    timeless = lambda row: {k: v for k, v in row.items() if "seconds" not in k}
    assert [timeless(r) for r in rows[stop:]] == [timeless(r) for _, r in again]


def test_two_seeds_differ_and_one_seed_does_not(world):
    domain, bank, _ = world
    run = lambda seed: fit(fresh(world), bank, domain.train.camids, replace(BUDGET, epochs=1), seed,
                           progress=False).encoder.project.weight
    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_training_leaves_the_callers_random_numbers_alone(world):
    domain, bank, _ = world
    torch.manual_seed(3); np.random.seed(3)
    a, b = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    fit(fresh(world, srmo=False), bank, domain.train.camids, replace(BUDGET, epochs=1), 0, progress=False)
    assert torch.equal(a, torch.random.get_rng_state()) and (b == np.random.get_state()[1]).all()


def test_adapt_refuses_identities(world):
    domain, bank, _ = world
    with pytest.raises(DataError, match="withhold"): adapt(fresh(world, GlobalDBSCAN), domain.train, bank, BUDGET)
    assert not hasattr(domain.train.withhold(), "pids")


def test_second_view_is_of_the_same_images_and_changes_no_first(world):
    domain, bank, _ = world
    seen = {}
    for views in (1, 2):
        class Spy(GlobalDBSCAN):
            def losses(self, features, batch):
                seen.setdefault(self.views, []).append(batch); return super().losses(features, batch)
        Spy.views = views
        adapt(fresh(world, Spy, k1=8, eps=.6), domain.train.withhold(), bank, replace(BUDGET, epochs=1), progress=False)
    one, two = seen[1][0], seen[2][0]
    assert torch.equal(one.images, two.images) and torch.equal(one.index, two.index)
    assert two.second.shape == two.images.shape
    assert not torch.equal(two.second, two.images) and (two.second - two.images).flatten(1).abs().sum(1).gt(0).all()


def test_nothing_in_a_batch_knows_identities(world):
    """A method that records everything it is given during adaptation never sees the true partition."""
    domain, bank, _ = world
    seen = []
    class Spy(GlobalDBSCAN):
        def losses(self, features, batch): seen.append(batch); return super().losses(features, batch)
    method = fresh(world, Spy, k1=8, eps=.6)
    adapt(method, domain.train.withhold(), bank, replace(BUDGET, epochs=1), progress=False)
    assert seen
    assert all(set(vars(b)) == {"images", "index", "camids", "hard", "soft", "weight", "seed", "step", "lr", "second"}
               and b.second is None for b in seen)
    for b in seen:
        assert torch.equal(b.hard, method.hard[b.index])
        assert torch.equal(b.camids, torch.tensor(domain.train.camids)[b.index])


@pytest.mark.parametrize("what", ["loss", "gradient", "infinite"])
def test_what_is_no_number_stops_the_run_before_it_is_saved(world, what):
    "The step and the pictures of its batch are named; the gradient alone can be broken too (the square root of zero)."
    domain, bank, _ = world
    class Broken(GlobalDBSCAN):
        def losses(self, features, batch):
            value = features.sum()*0
            if batch.step == 1:
                value = {"loss": value*float("nan"), "gradient": value.abs().sqrt(),
                         "infinite": features.sum()*0 + float("inf")}[what]
            seen.append(batch)
            return dict(ce=value)
    saved, seen = [], []
    with pytest.raises(RunError, match="step 2 of epoch 1") as e:
        fit(fresh(world, Broken, k1=8, eps=.6), bank, domain.train.camids, BUDGET, 0, progress=False,
            save=lambda *a: saved.append(a))
    assert not saved and all(str(bank.paths[i]) in str(e.value) for i in seen[1].index[:8].tolist())


@pytest.mark.parametrize("features, says",
        [(torch.ones(5, 3), "collapsed"), (torch.ones(5, 3) + 1e-5*torch.eye(5, 3), "collapsed"),
                (torch.tensor([[1., float("nan")], [0., 1.]]),
                 "no numbers"), (torch.tensor([[float("inf"), 1.], [0., 1.]]), "no numbers")])
def test_features_that_say_nothing(features, says):
    with pytest.raises(RunError, match=says): check_features(features, "here")
    check_features(torch.eye(3), "here")


def test_equal_pictures_are_told_as_a_collapse(world, tmp_path):
    "Copies of one picture, however many cameras and files."
    from PIL import Image
    domain, bank, _ = world
    for i in range(24): Image.new("RGB", (24, 48), (9, 99, 200)).save(tmp_path/f"{i}.png")
    with pytest.raises(RunError, match="collapsed"):
        fit(fresh(world, GlobalDBSCAN, k1=8, eps=.6), ImageBank([tmp_path/f"{i}.png" for i in range(24)], bank.size),
            np.arange(24) % 3, BUDGET, 0, progress=False)


def test_the_weighted_sum_is_what_is_minimised(world):
    """Weights of zero on every loss but one give the same step as that loss alone."""
    domain, bank, _ = world
    class Weighted(GlobalDBSCAN):
        def loss_weights(self): return dict(ce=2., triplet=0.)
    class Alone(GlobalDBSCAN):
        def losses(self, features, batch): return dict(ce=2*super().losses(features, batch)["ce"])
    a, b = (fit(fresh(world, cls, k1=8, eps=.6), bank, domain.train.camids, replace(BUDGET, epochs=1), 0,
                progress=False).encoder.state_dict() for cls in (Weighted, Alone))
    for k in a: assert torch.allclose(a[k].double(), b[k].double(), atol=1e-6), k


def test_slow_copy_follows_every_step(world):
    domain, bank, _ = world
    class Record(GlobalDBSCAN):
        def after_step(self, batch):
            self.trace.append(self.encoder.project.weight.detach().clone()); super().after_step(batch)
    method = fresh(world, Record, k1=8, eps=.6); method.trace = []
    slow = method.ema.project.weight.clone()
    fit(method, bank, domain.train.camids, replace(BUDGET, epochs=1), 0, progress=False)
    for w in method.trace: slow = .9*slow + .1*w
    assert len(method.trace) == BUDGET.steps and torch.allclose(slow, method.ema.project.weight, atol=1e-6)


def test_embed_equals_one_image_at_a_time_and_restores_the_mode(world):
    domain, bank, weights = world
    encoder = build_encoder("micro", SIZE, 16); encoder.load_state_dict(weights); encoder.train()
    together = embed_bank(encoder, bank, batch=7)
    assert encoder.training and together.shape == (len(bank), 16) and not together.requires_grad
    encoder.eval()
    for i in (0, 6, 7, len(bank) - 1):
        assert torch.allclose(together[i], encoder(normalise_images(bank[torch.tensor([i])]))[0], atol=1e-5)


def test_pseudo_labels_check_themselves_and_survive_packing():
    good = PseudoLabels(torch.tensor([0, 1, -1]), torch.eye(3)[:, :2], torch.ones(3), torch.eye(2))
    back = unpack_labels(pack_labels(good), torch.device("cpu"))
    assert all(torch.equal(getattr(good, k), getattr(back, k)) for k in ("hard", "soft", "weight", "centroids"))
    assert unpack_labels(pack_labels(replace(good, soft=None)), torch.device("cpu")).soft is None
    for wrong in (dict(weight=torch.ones(2)), dict(soft=torch.eye(3)), dict(hard=torch.tensor([0, 2, -1]))):
        with pytest.raises(DataError, match="disagree"): replace(good, **wrong)


def test_rows_are_one_hot_or_soft():
    hard = PseudoLabels(torch.tensor([1, -1, 0]), None, torch.ones(3), torch.eye(2))
    assert hard.rows(torch.arange(3)).tolist() == [[0, 1], [0, 0], [1, 0]]
    soft = replace(hard, soft=torch.tensor([[.2, .8], [.5, .5], [.9, .1]]))
    assert torch.equal(soft.rows(torch.tensor([2])), torch.tensor([[.9, .1]]))


@pytest.mark.parametrize("wrong",
                         [dict(epochs=0), dict(identities=1), dict(images=1), dict(cluster_every=0), dict(periods=0)])
def test_impossible_budgets(wrong):
    with pytest.raises(ConfigError): Budget(**{"epochs": 1, **wrong})


def test_registering_a_method():
    @register("test-only")
    class Mine(Method): pass
    assert METHODS["test-only"] is Mine
    with pytest.raises(TypeError, match="Mine does not say how it labels"):
        Mine(build_encoder("micro", SIZE, 8)).relabel(None, None, 0)


def test_oracle_keeps_its_classifier_and_everyone_else_starts_anew(world):
    domain, bank, _ = world
    oracle = fresh(world, Supervised)
    labels = oracle.relabel(F.normalize(torch.randn(len(bank), 16), dim=1), None, 0)
    oracle.start_round(labels); first = oracle.head
    oracle.start_round(labels)
    assert oracle.head is first and torch.allclose(labels.centroids.norm(dim=1), torch.ones(len(labels.centroids)))
    other = fresh(world, GlobalDBSCAN)
    other.start_round(labels); first = other.head
    other.start_round(labels)
    assert other.head is not first and torch.equal(other.head, labels.centroids)
