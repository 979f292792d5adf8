"""P2LR: every equation against plain loops, its schedule at the ends, the rows of its Table 2, and that it stops and
goes on as every method does."""
from itertools import permutations, product
from math import exp, inf, log, nan, sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, strategies as st

from small import Linear
from upl_reid.components.encoder import build_encoder
from upl_reid.components.clustering import camera_center
from upl_reid.core import ConfigError, DataError
from upl_reid.data.benchmarks import load_domain
from upl_reid.data.image_bank import ImageBank
from upl_reid.methods.mmt import MMT
from upl_reid.methods.p2lr import (CLUSTERS, P2LR, Beside, label_uncertainty, matched_rows, selected_fraction,
                                   selection_threshold)
from upl_reid.experiments.config import RunConfig
from upl_reid.data.synthetic import write_domain
from upl_reid.training.method import Budget
from upl_reid.training.loop import adapt

SIZE = (48, 24)
# rounds of two epochs and of one
BUDGET = Budget(3, 3, identities=6, lr=1e-3, stem_lr_factor=.5, cluster_every=2, warmup=0)


def crowd(n=40, d=6, k=5, seed=0):
    "Features of any length, centroids of any length, and labels of which the last two are missing."
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    labels[-2:] = -1
    return 3*rng.normal(size=(n, d)), .5*rng.normal(size=(k, d)), labels


def cosine(a, b): return sum(x*y for x, y in zip(a, b))/sqrt(sum(x*x for x in a)*sum(y*y for y in b))


def probabilities(feature, rows, temperature=20.):
    powers = [exp(temperature*cosine(feature, row)) for row in rows]
    return [p/sum(powers) for p in powers]


def naive_uncertainty(feature, rows, label, temperature=20., epsilon=.99):
    "Eq. 2-4, term by term."
    p, c, total = probabilities(feature, rows, temperature), len(rows), 0.
    for j in range(c):
        q = epsilon if j == label else (1 - epsilon)/(c - 1)
        if q: total += q*log(q/p[j])
    return total


@pytest.mark.parametrize("epsilon", [.5, .95, .97, .99, 1.])
@pytest.mark.parametrize("temperature", [5., 20., 50.])
def test_uncertainty_in_plain_loops(epsilon, temperature):
    x, w, y = crowd()
    got = label_uncertainty(x, w, y, temperature, epsilon)
    assert got.dtype == np.float64 and (got[-2:] == inf).all()
    np.testing.assert_allclose(got[:-2], [naive_uncertainty(x[i], w, y[i], temperature, epsilon) for i in range(38)],
                               rtol=1e-9, atol=1e-12)


def test_uncertainty_of_tensors_and_halves():
    x, w, y = crowd()
    want = label_uncertainty(x, w, y)
    double = label_uncertainty(torch.tensor(x), torch.tensor(w), torch.tensor(y))
    single = label_uncertainty(torch.tensor(x).float(), torch.tensor(w).float(), torch.tensor(y))
    assert isinstance(double, torch.Tensor) and single.dtype == torch.float32
    np.testing.assert_allclose(double.numpy(), want, rtol=1e-12)
    np.testing.assert_allclose(single.numpy(), want, rtol=1e-3, atol=1e-4)
    assert label_uncertainty(torch.tensor(x).half(), torch.tensor(w), y.tolist()).isfinite().sum() == 38
    required = torch.tensor(x, requires_grad=True)
    assert not label_uncertainty(required, w, y).requires_grad


@given(st.integers(0, 2**31), st.floats(.05, 1), st.floats(1, 60))
def test_uncertainty_is_a_divergence(seed, epsilon, temperature):
    """Not negative; blind to lengths and to the numbering of the clusters; all labels of one image compared, the
    nearest centroid's is least uncertain if the peak is one."""
    x, w, y = crowd(12, 4, 3, seed)
    u = label_uncertainty(x, w, y, temperature, epsilon)
    assert (u >= 0).all()
    order = np.array([2, 0, 1])
    turned = label_uncertainty(7*x, w[order]*np.array([[1.], [2.], [.1]]), np.where(y >= 0, np.argsort(order)[y], -1),
                               temperature, epsilon)
    np.testing.assert_allclose(u, turned, rtol=1e-6, atol=1e-9)
    each = np.stack([label_uncertainty(x, w, np.full(12, k), temperature, max(epsilon, .5)) for k in range(3)])
    assert (each.argmin(0) == [max(range(3), key=lambda k: cosine(row, w[k])) for row in x]).all()


def test_faults_of_uncertainty_are_named():
    x, w, y = crowd()
    for bad in (0., -1., 1.01, nan):
        with pytest.raises(ConfigError, match="epsilon"): label_uncertainty(x, w, y, epsilon=bad)
    with pytest.raises(ConfigError, match="temperature=0"): label_uncertainty(x, w, y, 0.)
    with pytest.raises(DataError, match="two centroids"): label_uncertainty(x, w[:1], np.zeros(40))
    with pytest.raises(DataError, match="below 5"): label_uncertainty(x, w, y + 1 + (y == y.max()))
    with pytest.raises(DataError, match="each image"): label_uncertainty(x, w, y[:-1])
    with pytest.raises(DataError, match="NaN"): label_uncertainty(x, np.full_like(w, nan), y)


# -- the schedule ------------------------------------------------------------------------------------------------------

def test_schedule_is_equation_10():
    """The paper's setting: p0 0.3, h 1.5, and T = 100, which takes 101 values of t."""
    for t in range(101):
        assert selected_fraction(t, 101) == pytest.approx(.3 + log(1 + (exp(1.5*.7) - 1)*t/100)/1.5, abs=1e-12)
    assert selected_fraction(0, 101) == .3
    assert selected_fraction(50, 101) == pytest.approx(.3 + log((1 + exp(1.05))/2)/1.5) == pytest.approx(.738, abs=5e-4)
    for h in (1.5, 3., 5., 10.):                            # the curves of Fig. 4, right
        for t in range(8):
            assert selected_fraction(t, 8, .2, h) == pytest.approx(.2 + log(1 + (exp(h*.8) - 1)*t/7)/h, abs=1e-12)


@example(3, 0., 5e-324)
@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 500))
def test_schedule_rises_from_p0_to_exactly_one(steps, p0, h):
    p = selected_fraction(np.arange(steps), steps, p0, h)
    assert p[-1] == 1. and (p >= min(p0, p[-1])).all() and (p <= 1).all() and (np.diff(p) >= 0).all()
    if steps > 1: assert p[0] == p0
    assert (np.diff(p, 2) <= 1e-9).all()                    # ever fewer new images
    assert selected_fraction(steps, steps, p0, h) == selected_fraction(10**6, steps, p0, h) == 1.


def test_schedule_with_one_step_uses_everything():
    assert selected_fraction(0, 1) == 1. and selected_fraction(0, 1, p0=0.) == 1. and selected_fraction(0, 2) == .3
    assert selected_fraction(1, 2) == 1.


def test_schedule_is_linear_in_the_limit():
    t = np.arange(11)
    np.testing.assert_allclose(selected_fraction(t, 11, .3, 0), .3 + .07*t)
    np.testing.assert_allclose(selected_fraction(t, 11, .3, 1e-9), .3 + .07*t, atol=1e-8)


def test_schedule_keeps_the_kind_and_names_faults():
    assert isinstance(selected_fraction(1, 4), float) and isinstance(selected_fraction(np.int64(1), 4), float)
    assert isinstance(selected_fraction(np.arange(4), 4), np.ndarray)
    assert torch.equal(selected_fraction(torch.arange(4), 4), torch.from_numpy(selected_fraction(np.arange(4), 4)))
    for kwargs, name in ((dict(step=0, steps=0), "steps=0"), (dict(step=-1, steps=3), "step=-1"),
            (dict(step=0, steps=3, p0=1.1), "p0=1.1"), (dict(step=0, steps=3, h=-1),
                                                        "h=-1"), (dict(step=0, steps=3, h=nan), "h=nan")):
        with pytest.raises(ConfigError, match=name): selected_fraction(**kwargs)


# -- the choice --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("fraction", [.15, .4, .75, 1.])
def test_the_choice_minimises_equation_5(fraction):
    """Every one of 2^9 choices, for the beta of Eq. 9."""
    rng = np.random.default_rng(1)
    u, y = rng.random(9), np.arange(9) % 3
    beta = float(selection_threshold(u, y, fraction))
    best = min(product((0, 1), repeat=9), key=lambda v: sum(a*b for a, b in zip(v, u)) - beta*sum(v) - 1e-12*sum(v))
    assert list(best) == (u <= beta).astype(int).tolist()


@given(st.integers(2, 60), st.floats(0, 1), st.integers(0, 2**31), st.booleans())
def test_as_many_as_asked_for(n, fraction, seed, coarse):
    rng = np.random.default_rng(seed)
    y, u = rng.integers(-1, 4, n + 2), rng.random(n + 2)
    y[:2] = 0, 1
    if coarse: u = np.round(u, 1)                           # many equal ones
    u[y < 0] = inf
    labelled = int((y >= 0).sum())
    chosen = (u <= selection_threshold(u, y, fraction)) & (y >= 0)
    want = max(1, round(fraction*labelled))
    ranked = sorted(u[y >= 0])
    assert len(set(y[chosen])) >= 2
    first = int(y[u.argmin()])
    second = min(v for v, label in zip(u, y) if label >= 0 and label != first)
    assert chosen.sum() == sum(v <= max(ranked[want - 1], second) for v in ranked)
    if not coarse and second <= ranked[want - 1]: assert chosen.sum() == want
    if fraction == 1: assert chosen.sum() == labelled


def test_less_than_one_image_is_one_and_another_person():
    u, y = np.array([.5, .1, .2, .3]), np.array([1, 0, 0, 1])
    for p in (0., .1, .24): assert (u <= selection_threshold(u, y, p)).tolist() == [False, True, True, True]
    assert (u <= selection_threshold(u, np.array([1, 0, 1, 1]), 0.)).tolist() == [False, True, True, False]


def test_equal_uncertainties_come_together():
    u, y = np.zeros(10), np.arange(10) % 2
    assert (u <= selection_threshold(u, y, .3)).all()


def test_faults_of_the_choice_are_named():
    for y in (np.zeros(3), -np.ones(3), np.array([-1, 0, 0])):
        with pytest.raises(DataError, match="clusters"): selection_threshold(np.arange(3.), y, .5)
    with pytest.raises(ConfigError, match="fraction=2"): selection_threshold(np.arange(2.), np.arange(2), 2)


# -- the method --------------------------------------------------------------------------------------------------------

def people(seed=0):
    "Unit features of six people in three cameras, double precision."
    g = torch.Generator().manual_seed(seed)
    pid, cam = torch.arange(6).repeat_interleave(15), torch.arange(3).repeat(30)
    randn = lambda n: torch.randn(n, 6, generator=g, dtype=torch.float64)
    x = randn(6)[pid] + .5*randn(3)[cam] + .5*randn(90)
    return F.normalize(x, dim=1), cam


def small(**kwargs):
    method = P2LR(Linear(0, 6), Linear(1, 6), clusters=6, **kwargs)
    method.rounds = 5
    return method


def clusters_of(x, t, center=False, cam=None):
    return MMT(Linear(0, 6), Linear(1, 6), clusters=6, center=center).relabel(x, cam, t)


def means(x, hard):
    out = []
    for k in range(int(hard.max()) + 1):
        total = [sum(x[i][j] for i in range(len(x)) if hard[i] == k) for j in range(len(x[0]))]
        out.append([v/sqrt(sum(w*w for w in total)) for v in total])
    return out


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("t", [0, 2, 4])
def test_labels_of_a_round(t, center):
    x, cam = people()
    all_of_them, got = clusters_of(x, t, center, cam), small(center=center).relabel(x, cam, t)
    points = (camera_center(x, cam) if center else x).tolist()
    hard = all_of_them.hard.tolist()
    centroids = means(points, all_of_them.hard)
    u = [naive_uncertainty(p, centroids, y) for p, y in zip(points, hard)]
    count = round(90*(.3 + log(1 + (exp(1.05) - 1)*t/4)/1.5))
    kept = sorted(range(90), key=lambda i: u[i])[:count]
    assert sorted(kept) == torch.nonzero(got.hard >= 0).flatten().tolist()
    assert torch.equal(got.hard[kept], all_of_them.hard[kept]) and torch.equal(got.weight, (got.hard >= 0).float())
    # left-out clusters keep their class
    assert torch.equal(got.centroids, all_of_them.centroids) and got.soft is None


def test_figures_are_the_mean_and_the_threshold():
    x, cam = people()
    method = small()
    labels = method.relabel(x, cam, 0)
    u = label_uncertainty(x, labels.centroids, clusters_of(x, 0).hard)
    assert method.log_values() == dict(uncertainty=pytest.approx(u.mean().item(), rel=1e-6),
                                       threshold=pytest.approx(u.sort().values[26].item(), rel=1e-6))


def test_l2_is_the_distance_to_the_own_centroid():
    x, cam = people()
    labels = clusters_of(x, 0)
    got, w = small(uncertainty="l2").measure(labels, x, None, cam), means(x.tolist(), labels.hard)
    for i in range(90):
        assert got[i].item() == pytest.approx(sqrt(sum((a - b)**2 for a, b in zip(x[i].tolist(), w[labels.hard[i]]))),
                                              abs=1e-9)


def test_internal_classifier_is_the_external_one_before_training_and_the_matched_teachers_after():
    x, cam = people()
    method = small(uncertainty="internal")
    labels = clusters_of(x, 0)
    assert torch.equal(method.measure(labels, x, None, cam), small().measure(labels, x, None, cam))
    method.start_round(labels)
    g = torch.Generator().manual_seed(2)
    method.ema_head = 3*torch.randn(2, 6, 6, generator=g, dtype=torch.float64)
    joint = [[a + b for a, b in zip(u, v)] for u, v in zip(*F.normalize(method.ema_head, dim=2).tolist())]
    w = means(x.tolist(), labels.hard)
    order = max(permutations(range(6)), key=lambda o: sum(cosine(w[k], joint[o[k]]) for k in range(6)))
    got = method.measure(labels, x, None, cam)
    for i in range(90):
        assert got[i].item() == pytest.approx(naive_uncertainty(x[i].tolist(), [joint[k] for k in order],
                int(labels.hard[i])), abs=1e-7)
    # then the students' classifiers, which still are the centroids
    method.average = False
    np.testing.assert_allclose(method.measure(labels, x, None, cam).numpy(),
                               small().measure(labels, x, None, cam).numpy(), atol=1e-6)


@pytest.mark.parametrize("rows", [2, 4, 6])
def test_matching_is_the_best_of_all(rows):
    g = torch.Generator().manual_seed(rows)
    w, old = torch.randn(4, 3, generator=g), torch.randn(rows, 3, generator=g)
    got = matched_rows(w, old)
    taken = [next((m for m in range(rows) if torch.allclose(got[k], F.normalize(old[m], dim=0), atol=1e-6)), None)
             for k in range(4)]
    assert len({m for m in taken if m is not None}) == sum(m is not None for m in taken) == min(4, rows)
    for k, m in enumerate(taken):
        if m is None: assert torch.allclose(got[k], F.normalize(w[k], dim=0))
    def worth(pairs): return sum(cosine(w[k].tolist(), old[m].tolist()) for k, m in pairs)
    ways = ([(k, m) for k, m in zip(o, range(rows))]
            for o in permutations(range(4),
                    rows)) if rows <= 4 else ([(k,
                                                m) for k, m in zip(range(4), o)] for o in permutations(range(rows), 4))
    assert worth([(k, m) for k,
                  m in enumerate(taken) if m is not None]) == pytest.approx(max(map(worth, ways)), abs=1e-6)


@pytest.mark.parametrize("center", [False, True])
def test_consistency_is_the_divergence_of_the_students_from_the_teachers(center):
    x, cam = people()
    students = F.normalize(x + .3*torch.randn(90, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64),
                           dim=1)
    labels = clusters_of(x, 1, center, cam)
    got = small(uncertainty="consistency", center=center).relabel(torch.cat([x, students], 1)/2**.5, cam, 1)
    teacher, student = ((camera_center(v, cam) if center else v).tolist() for v in (x, students))
    w, u = means(teacher, labels.hard), []
    for a, b in zip(teacher, student):
        u.append(sum(p*log(p/q) for p, q in zip(probabilities(a, w), probabilities(b, w))))
    kept = sorted(range(90), key=lambda i: u[i])[:round(90*selected_fraction(1, 5))]
    assert sorted(kept) == torch.nonzero(got.hard >= 0).flatten().tolist() and got.centroids.shape == (6, 6)


def test_nobody_is_left_out_while_students_and_teachers_are_the_same():
    x, cam = people()
    assert (small(uncertainty="consistency").relabel(torch.cat([x, x], 1)/2**.5, cam, 0).hard >= 0).all()


@pytest.mark.parametrize("center", [False, True])
def test_rounding_makes_nobody_inconsistent(center):
    g = torch.Generator().manual_seed(1)
    x = F.normalize(torch.randn(400, 96, generator=g)[torch.arange(400) % 40] + .3*torch.randn(400, 96, generator=g),
                    dim=1)
    labels = P2LR(Linear(0, 6), Linear(1, 6), clusters=40, uncertainty="consistency",
                  center=center).relabel(F.normalize(torch.cat([x, x], 1), dim=1), torch.arange(400) % 3, 0)
    assert x.dtype == torch.float32 and (labels.hard >= 0).all()


def test_reweighting_keeps_all_images():
    x, cam = people()
    labels, got = clusters_of(x, 0), small(reweight=True).relabel(x, cam, 0)
    u = small().measure(labels, x, None, cam)
    assert torch.equal(got.hard, labels.hard)
    for w, v in zip(got.weight.tolist(), u.tolist()): assert w == pytest.approx(exp(-v), rel=1e-6)


@pytest.mark.parametrize("epochs, every, rounds", [(16, 2, 8), (5, 2, 3), (1, 4, 1), (100, 1, 100)])
def test_rounds_are_counted_from_the_budget(epochs, every, rounds):
    method = small()
    method.start(Budget(epochs, cluster_every=every), 90)
    x, cam = people()
    assert method.rounds == rounds and (method.relabel(x, cam, rounds - 1).hard >= 0).all()
    if rounds > 1: assert (method.relabel(x, cam, rounds//2).hard < 0).any()


def test_a_student_beside_its_teacher_keeps_its_mode():
    method = small(uncertainty="consistency")
    method.encoder.train()
    both = method.label_encoder()
    assert isinstance(both, Beside) and not both.training
    both.train()
    assert method.encoder.training and not method.ema.training
    assert both.first.first.weight is not method.ema.first.weight
    images = torch.randn(4, 1, 2, 4, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(both(images), torch.cat([method.ema(images), method.encoder(images)], 1)/2**.5)
    plain = small()
    assert plain.label_encoder() is plain.ema
    assert isinstance(small(average=False, uncertainty="consistency").label_encoder(), Beside)


# -- training ----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    domain = load_domain("plaza",
            write_domain("plaza", tmp_path_factory.mktemp("p2lr"), train_ids=12, test_ids=4, cameras=3, size=SIZE))
    return domain, ImageBank(domain.train.paths, SIZE)


def pair(cls=P2LR, **kwargs):
    return cls(build_encoder("micro", SIZE, 16, seed=0), build_encoder("micro", SIZE, 16, seed=1), momentum=.9,
               **kwargs)


def train(world, method, budget=BUDGET, **kwargs):
    domain, bank = world
    states, rows = [], []
    def save(tensors, row, round):
        states.append({k: v.clone() for k, v in tensors.items()})
        rows.append({k: v for k, v in row.items() if "seconds" not in k})
    return adapt(method, domain.train.withhold(), bank, budget, progress=False, save=save, **kwargs), states, rows


@pytest.mark.parametrize("kwargs",
        [{}, dict(uncertainty="internal"), dict(uncertainty="consistency", center=True),
         dict(reweight=True, average=False, uncertainty="internal")], ids=str)
def test_resumes_to_the_same_bits(world, kwargs):
    """In the middle of a round, and between two."""
    whole, states, rows = train(world, pair(**kwargs))
    assert rows[0]["uncertainty"] == rows[1]["uncertainty"] != rows[2]["uncertainty"] and rows[2]["unused"] == 0
    for stop in (1, 2):
        again, _, rest = train(world, pair(**kwargs), state=states[stop - 1], epoch=stop)
        assert rest == rows[stop:]
        for name, value in whole.state_dict().items(): assert torch.equal(value, again.state_dict()[name]), name


def test_using_all_images_is_mutual_mean_teaching(world):
    ours, theirs = (train(world, pair(cls, **kwargs), BUDGET)[0].state_dict() for cls,
                    kwargs in ((P2LR, dict(p0=1.)), (MMT, {})))
    assert set(ours) - set(theirs) == {"measured"}
    for name, value in theirs.items(): assert torch.equal(value, ours[name]), name


def test_a_round_of_next_to_no_images_can_be_trained(world):
    rows = train(world, pair(p0=0.))[2]
    assert .5 < rows[0]["unused"] < 1 and rows[2]["unused"] == 0 and all(np.isfinite(r["loss"]) for r in rows)


def test_arguments_are_checked_at_once():
    for kwargs, name in ((dict(uncertainty="entropy"), "uncertainty='entropy'"), (dict(p0=2.), "p0=2"),
            (dict(h=-1), "h=-1"), (dict(epsilon=0.),
                    "epsilon=0"), (dict(temperature=-1), "temperature=-1"), (dict(soft_id=2.), "soft_id=2")):
        with pytest.raises(ConfigError, match=name): small(**kwargs)
    with pytest.raises(ConfigError, match="no argument 'alpha'"):
        RunConfig("tiny", "plaza", "campus", "p2lr", dict(alpha=20))
    defaults = RunConfig("tiny", "plaza", "campus", "p2lr", dict(clusters=CLUSTERS["market1501"])).defaults
    assert (defaults["temperature"], defaults["epsilon"], defaults["p0"], defaults["h"],
            defaults["clusters"]) == (20., .99, .3, 1.5, None)
    assert CLUSTERS == dict(market1501=500, dukemtmc=700, msmt17=1500)


def test_figures_that_are_no_numbers_are_refused():
    with pytest.raises(ConfigError, match="step=nan"): selected_fraction(nan, 5)
    with pytest.raises(DataError, match="1 labelled images is NaN"):
        selection_threshold([.1, nan, .2, nan], [0, 1, 1, -1], .5)
    with pytest.raises(DataError, match="2 uncertainties and 3 labels"): selection_threshold([.1, .2], [0, 1, 1], .5)
