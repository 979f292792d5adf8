"Every loss against loops over plain floats, and its derivatives in both modes."
from math import exp, log

import numpy as np
import pytest
import torch

from upl_reid.core import ConfigError, DataError
from upl_reid.components.losses import (center_loss, pair_distance, soft_cross_entropy, softmax_triplet,
                                        supervised_contrastive, updated_centers, weighted_triplet)

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def rng(seed): return torch.Generator().manual_seed(seed)
def randn(seed, *shape): return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


# soft cross-entropy

def naive_cross_entropy(logits, soft, weight, normalise):
    "Equation 10, one term at a time."
    total = 0.
    for row, label, w in zip(logits.tolist(), soft.tolist(), weight.tolist()):
        bottom = sum(exp(x) for x in row)
        total -= w*sum(y*log(exp(x)/bottom) for x, y in zip(row, label))
    return total/(len(logits) if normalise == "count" else sum(weight.tolist()))


@pytest.mark.parametrize("normalise", ["weight", "count"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("device", DEVICES)
def test_soft_cross_entropy_is_equation_10(seed, normalise, device):
    logits, soft = randn(seed, 6, 4), randn(seed + 50, 6, 4).softmax(1)
    weight = torch.rand(6, generator=rng(seed)).double()
    want = naive_cross_entropy(logits, soft, weight, normalise)
    got = soft_cross_entropy(logits.to(device), soft.to(device), weight.to(device), normalise)
    assert got.item() == pytest.approx(want, abs=1e-12)
    single = soft_cross_entropy(logits.float().to(device), soft.float().to(device), weight.float().to(device),
                                normalise)
    assert single.dtype == torch.float32 and single.item() == pytest.approx(want, abs=1e-5)


def test_hard_labels_and_no_weights_are_torch_cross_entropy():
    logits, labels = randn(1, 7, 5), torch.arange(7) % 5
    soft = torch.nn.functional.one_hot(labels, 5).double()
    for normalise in ("weight", "count"):
        torch.testing.assert_close(soft_cross_entropy(logits, soft, normalise=normalise),
                                   torch.nn.functional.cross_entropy(logits, labels))


def test_scaling_all_weights_changes_only_the_version_as_printed():
    logits, soft, weight = randn(2, 5, 3), randn(3, 5, 3).softmax(1), torch.rand(5, generator=rng(0)).double()
    torch.testing.assert_close(soft_cross_entropy(logits, soft, weight), soft_cross_entropy(logits, soft, weight/10))
    torch.testing.assert_close(soft_cross_entropy(logits, soft, weight, "count"),
                               10*soft_cross_entropy(logits, soft, weight/10, "count"))


@pytest.mark.parametrize("normalise", ["weight", "count"])
@pytest.mark.parametrize("n", [0, 1, 4])
def test_cross_entropy_of_zero_weights(normalise, n):
    logits = randn(4, n, 3).requires_grad_()
    loss = soft_cross_entropy(logits, torch.full((n, 3), 1/3), torch.zeros(n), normalise)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_confident_logits_stay_finite():
    logits = torch.tensor([[1000., 0.], [-1000., 0.]], requires_grad=True)
    loss = soft_cross_entropy(logits, torch.eye(2), torch.ones(2))
    loss.backward()
    assert loss.item() == 0 and logits.grad.isfinite().all()


def test_labels_of_another_clustering():
    with pytest.raises(DataError, match="resized"):
        soft_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2))
    with pytest.raises(DataError, match="one weight a sample"):
        soft_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3))
    with pytest.raises(DataError, match="one weight a sample"):
        soft_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 1))


def test_unknown_divisor():
    with pytest.raises(ConfigError, match="normalise='sum'"):
        soft_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2), "sum")


# triplet

def naive_triplet(features, labels, weight, margin, references=None, reference_labels=None, normalise="weight"):
    "Batch-hard mining with two loops."
    own = references is None
    if own: references, reference_labels = features, labels
    total, mass = 0., 0.
    for i in range(len(features)):
        positives, negatives = [], []
        for j in range(len(references)):
            if labels[i] == -1 or reference_labels[j] == -1 or (own and i == j): continue
            d = sum((a - b)**2 for a, b in zip(features[i].tolist(), references[j].tolist()))**.5
            (positives if labels[i] == reference_labels[j] else negatives).append(d)
        if positives and negatives:
            total += weight[i].item()*max(0., max(positives) - min(negatives) + margin)
            mass += weight[i].item()
    if normalise == "count": mass = len(features)
    return total/mass if mass else 0.


def triplet_case(seed, n=10, d=4):
    features = torch.nn.functional.normalize(randn(seed, n, d), dim=1)
    labels = torch.randint(-1, 4, (n,), generator=rng(seed))
    return features, labels, torch.rand(n, generator=rng(seed)).double()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("normalise", ["weight", "count"])
@pytest.mark.parametrize("device", DEVICES)
def test_triplet_is_the_double_loop(seed, normalise, device):
    args = triplet_case(seed)
    got = weighted_triplet(*(x.to(device) for x in args), margin=.3, normalise=normalise)
    assert got.item() == pytest.approx(naive_triplet(*args, .3, normalise=normalise), abs=1e-10)
    single = weighted_triplet(args[0].float().to(device), args[1].to(device), args[2].to(device), .3,
                              normalise=normalise)
    assert single.dtype == torch.float32 and single.item() == pytest.approx(got.item(), abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_triplet_with_references(seed):
    features, labels, weight = triplet_case(seed)
    references, reference_labels, _ = triplet_case(seed + 30, n=17)
    got = weighted_triplet(features, labels, weight, .5, references, reference_labels)
    assert got.item() == pytest.approx(naive_triplet(features, labels, weight, .5, references, reference_labels),
                                       abs=1e-10)


def test_triplet_gradients_in_both_modes():
    features, labels, weight = triplet_case(1)
    def fn(f): return weighted_triplet(f, labels, weight, 2.)  # a wide margin keeps every hinge away from its corner
    assert torch.autograd.gradcheck(fn, (features.requires_grad_(),), check_forward_ad=True)
    x, along = features.detach(), randn(9, *features.shape)
    torch.testing.assert_close(torch.func.jvp(fn, (x,), (along,))[1], (torch.func.grad(fn)(x)*along).sum())


@pytest.mark.parametrize("labels", [[-1, -1, -1, -1], [0, 1, 2, 3], [5, 5, 5, 5], [5, 5, -1, -1]])
def test_triplet_without_a_triplet_is_zero_with_a_gradient(labels):
    features = randn(2, 4, 3).requires_grad_()
    loss = weighted_triplet(features, torch.tensor(labels), torch.ones(4), .3)
    loss.backward()
    assert loss.item() == 0 and not features.grad.any()


@pytest.mark.parametrize("n", [0, 1])
def test_triplet_of_almost_nothing(n):
    features = randn(3, n, 3).requires_grad_()
    loss = weighted_triplet(features, torch.zeros(n, dtype=torch.long), torch.ones(n), .3)
    loss.backward()
    assert loss.item() == 0 and features.grad.shape == (n, 3)


def test_triplet_with_no_references_at_all():
    features = randn(3, 4, 3).requires_grad_()
    loss = weighted_triplet(features, torch.zeros(4, dtype=torch.long), None, .3, torch.zeros(0, 3).double(),
                            torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and not features.grad.any()


def test_triplet_zero_weights_and_zero_weight_anchors():
    features, labels, weight = triplet_case(5)
    assert weighted_triplet(features, labels, torch.zeros(10), .3) == 0
    weight[::2] = 0
    got = weighted_triplet(features, labels, weight, .3).item()
    assert got == pytest.approx(naive_triplet(features, labels, weight, .3), abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_images_have_finite_derivatives_in_both_modes(dtype):
    features, labels = torch.ones(6, 4, dtype=dtype, requires_grad=True), torch.tensor([0, 0, 0, 1, 1, 1])
    loss = weighted_triplet(features, labels, torch.ones(6), .3)
    loss.backward()
    assert loss.item() == pytest.approx(.3) and features.grad.isfinite().all()
    slope = torch.func.jvp(lambda f: weighted_triplet(f, labels, None, .3), (features.detach(),),
                           (torch.ones(6, 4, dtype=dtype),))[1]
    assert slope.isfinite()


def test_small_distances_are_exact_in_single_precision():
    "The matrix-product formula alone would be off by about 3e-4 here."
    a = torch.nn.functional.normalize(torch.ones(1, 768), dim=1)
    b = a.clone(); b[0, 0] += 1e-5
    assert pair_distance(a, b).item() == pytest.approx((b - a).double().norm().item(), rel=1e-4)


def test_triplet_lengths_that_do_not_fit():
    with pytest.raises(DataError, match="one label for each row"):
        weighted_triplet(torch.eye(3), torch.arange(2), torch.ones(3))
    with pytest.raises(DataError, match="no labels"):
        weighted_triplet(torch.eye(3), torch.arange(3), torch.ones(3), references=torch.eye(3))
    with pytest.raises(DataError, match="one weight a sample"):
        weighted_triplet(torch.eye(3), torch.arange(3), torch.ones(2))


# supervised contrastive

def naive_contrastive(z, labels, tau):
    "L_out of Khosla et al. 2020, three loops."
    losses, z, labels = [], z.tolist(), labels.tolist()
    def e(i, j): return exp(sum(a*b for a, b in zip(z[i], z[j]))/tau)
    for i in range(len(z)):
        if labels[i] == -1: continue
        others = [a for a in range(len(z)) if a != i and labels[a] != -1]
        positives = [p for p in others if labels[p] == labels[i]]
        if positives: losses.append(-sum(log(e(i, p)/sum(e(i, a) for a in others)) for p in positives)/len(positives))
    return sum(losses)/len(losses) if losses else 0.


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("device", DEVICES)
def test_contrastive_is_the_triple_loop(seed, device):
    z, labels, _ = triplet_case(seed)
    want, labels = naive_contrastive(z, labels, .2), labels.to(device)
    assert supervised_contrastive(z.to(device), labels, .2).item() == pytest.approx(want, abs=1e-10)
    assert supervised_contrastive(z.float().to(device), labels, .2).item() == pytest.approx(want, abs=1e-4)


def test_contrastive_gradients_in_both_modes():
    z, labels, _ = triplet_case(3)
    assert torch.autograd.gradcheck(lambda z: supervised_contrastive(z, labels, .5), (z.requires_grad_(),),
                                    check_forward_ad=True)


@pytest.mark.parametrize("labels", [[], [4], [0, 1, 2], [-1, -1, -1]])
def test_contrastive_without_positives(labels):
    z = randn(1, len(labels), 3).requires_grad_()
    loss = supervised_contrastive(z, torch.tensor(labels, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and not z.grad.any()


def test_contrastive_is_lower_for_separated_people():
    labels = torch.tensor([0, 0, 1, 1])
    apart, mixed = torch.eye(2)[labels], torch.eye(2)[torch.tensor([0, 1, 0, 1])]
    assert supervised_contrastive(apart, labels) < supervised_contrastive(mixed, labels)
    with pytest.raises(DataError, match="one label"): supervised_contrastive(apart, labels[:3])


# softmax triplet

def naive_softmax_triplet(features, labels, weight, teacher, scale):
    "Exponentials as the formula has them."
    def d(x, i, j): return sum((a - b)**2 for a, b in zip(x[i].tolist(), x[j].tolist()))**.5
    total = mass = 0.
    for i in range(len(features)):
        positives = [j for j in range(len(features)) if j != i and labels[i] >= 0 and labels[j] == labels[i]]
        negatives = [j for j in range(len(features)) if labels[i] >= 0 and labels[j] >= 0 and labels[j] != labels[i]]
        if not positives or not negatives: continue
        p, n = max(positives, key=lambda j: d(features, i, j)), min(negatives, key=lambda j: d(features, i, j))
        def share(x): return exp(scale*d(x, i, n))/(exp(scale*d(x, i, p)) + exp(scale*d(x, i, n)))
        t = 1. if teacher is None else share(teacher)
        total += weight[i].item()*(-t*log(share(features)) - (1 - t)*log(1 - share(features)))
        mass += weight[i].item()
    return total/mass if mass else 0.


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [1., 8.])
@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_softmax_triplet_is_the_double_loop(seed, scale, taught, device):
    features, labels, weight = triplet_case(seed)
    teacher = torch.nn.functional.normalize(randn(seed + 50, len(features), 6), dim=1) if taught else None
    got = softmax_triplet(features.to(device), labels.to(device), weight.to(device),
                          teacher if teacher is None else teacher.to(device), scale)
    assert got.item() == pytest.approx(naive_softmax_triplet(features, labels, weight, teacher, scale), abs=1e-9)


def test_softmax_triplet_gradients_reach_the_student_only():
    features, labels, weight = triplet_case(3)
    teacher = randn(4, len(features), 4).requires_grad_()
    def fn(f): return softmax_triplet(f, labels, weight, teacher.detach(), 2.)
    assert torch.autograd.gradcheck(fn, (features.requires_grad_(),), check_forward_ad=True)
    softmax_triplet(features, labels, weight, teacher).backward()
    assert teacher.grad is None and features.grad.abs().sum() > 0


def test_softmax_triplet_of_huge_gaps_and_of_nothing():
    far = torch.tensor([[0.], [1e4], [1.], [2e4]], requires_grad=True)
    assert torch.isfinite(softmax_triplet(far, torch.tensor([0, 0, 1, 1])))
    none = softmax_triplet(far, torch.tensor([-1, -1, 0, 0]))
    none.backward()
    assert none == 0 and (far.grad == 0).all()
    with pytest.raises(DataError, match="4 features with 3 teacher"):
        softmax_triplet(far, torch.zeros(4), teacher=torch.zeros(3, 1))


# centre loss

@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("device", DEVICES)
def test_center_loss_and_its_centres_are_equations_2_to_4_of_wen(seed, device):
    # class 4 has no image
    x, c, y = randn(seed, 9, 3), randn(seed + 30, 5, 3), torch.randint(-1, 4, (9,), generator=rng(seed))
    loss, moved = 0., []
    for row, k in zip(x.tolist(), y.tolist()):
        if k >= 0: loss += .5*sum((a - b)**2 for a, b in zip(row, c[k].tolist()))
    for k, center in enumerate(c.tolist()):
        own = [row for row, label in zip(x.tolist(), y.tolist()) if label == k]
        moved.append([b - .3*sum(b - row[d] for row in own)/(1 + len(own)) for d, b in enumerate(center)])
    before = c.clone()
    given = [t.to(device) for t in (x, y, c)]
    assert center_loss(*given).item() == pytest.approx(loss, abs=1e-12)
    np.testing.assert_allclose(updated_centers(given[2], given[0], given[1], .3).cpu(), moved, atol=1e-12)
    assert torch.equal(c, before) and torch.equal(updated_centers(c, x, y, 0.), c)
    assert center_loss(x.float(), y, c.float()).dtype == updated_centers(c.float(), x.float(), y).dtype == torch.float32


def test_center_loss_pulls_towards_the_centre_only():
    x, c, y = randn(1, 6, 4).requires_grad_(), randn(2, 3, 4), torch.tensor([0, 1, 2, 2, -1, 0])
    center_loss(x, y, c).backward()
    want = torch.where(y[:, None] >= 0, x.detach() - c[y.clamp(min=0)], 0)
    torch.testing.assert_close(x.grad, want)
    x.grad = None
    nothing = center_loss(x, torch.full((6,), -1), c)
    nothing.backward()
    assert nothing.item() == 0 and not x.grad.any()
    assert torch.autograd.gradcheck(lambda f: center_loss(f, y, c), randn(3, 6, 4).requires_grad_(),
                                    check_forward_ad=True)


def test_centres_end_at_the_mean_of_their_images():
    x, y, c = randn(5, 8, 2), torch.arange(8) % 2, randn(6, 2, 2)
    for _ in range(200): c = updated_centers(c, x, y)
    torch.testing.assert_close(c, torch.stack([x[0::2].mean(0), x[1::2].mean(0)]))


def test_centres_of_another_width_or_labels_of_another_length():
    x, y, c = randn(0, 4, 3), torch.zeros(4, dtype=torch.int64), randn(1, 2, 3)
    for call in (lambda *a: center_loss(*a), lambda x, y, c: updated_centers(c, x, y)):
        with pytest.raises(DataError, match="3 labels"): call(x, y[:3], c)
        with pytest.raises(DataError, match="width"): call(x, y, c[:, :1])
