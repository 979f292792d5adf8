"""INCLR: every equation against plain loops, what two clusterings agree on against sets, one vector for four
distances, and that runs load and resume."""
from math import exp, log, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from upl_reid.components.tracks import answer_links, check_answers, find_links, TrackLinks
from upl_reid.components.encoder import build_encoder, feature_map, parameter_groups, make_ema
from upl_reid.core import ConfigError, DataError, seeded_torch
from upl_reid.data.benchmarks import load_domain
from upl_reid.data.image_bank import ImageBank
from upl_reid.methods.inclr import (INCLR, REFINEMENTS, PartEncoder, inaccuracy, inference_rows, join_parts,
                                    joint_distance, mutual_refinement, split_parts)
from upl_reid.methods.mmt import MMT
from upl_reid.evaluation.retrieval import evaluate_distances, evaluate_retrieval
from upl_reid.experiments.config import RunConfig
from upl_reid.experiments.runs import get_run, open_domain, score_retrieval
from upl_reid.data.synthetic import write_domain
from upl_reid.training.method import Batch, Budget, PseudoLabels
from upl_reid.training.loop import adapt, embed_bank

SIZE = (48, 24)
BUDGET = Budget(2, 4, identities=8, lr=1e-3, stem_lr_factor=.5, cluster_every=1, warmup=0)
LOOSE = dict(k1=8, eps=.6)      # sixteen people, networks that have learned nothing


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("inclr")
    domain = load_domain("plaza", write_domain("plaza", root, train_ids=16, test_ids=4, cameras=3, size=SIZE))
    return domain, ImageBank(domain.train.paths, SIZE)


def encoder(seed=0): return build_encoder("micro", SIZE, 16, seed=seed)
def method(cls=INCLR, **kwargs): return cls(encoder(0), encoder(1), momentum=.9, **kwargs)
def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
def unit(*shape, seed=0): return nn.functional.normalize(randn(*shape, seed=seed), dim=-1)


# ---------------------------------------------------------------- Eq. 4-6

def distribution(feature, centroids, beta):
    cosines = [sum(a*b for a, b in zip(feature, c))/sqrt(sum(a*a for a in feature))/sqrt(sum(b*b for b in c))
               for c in centroids]
    top = max(cosines)
    weights = [exp(beta*(c - top)) for c in cosines]
    return [w/sum(weights) for w in weights]


def doubts(student, teacher, centroids, beta):
    out = []
    for s, t in zip(student.tolist(), teacher.tolist()):
        p, q = distribution(s, centroids.tolist(), beta), distribution(t, centroids.tolist(), beta)
        out.append(sum(b*log(b/a) for a, b in zip(p, q)))
    return out


@pytest.mark.parametrize("beta", [20., 1.5])
def test_inaccuracy_in_loops(beta):
    s, t, c = randn(7, 5), randn(7, 5, seed=1), randn(4, 5, seed=2)
    want = doubts(s, t, c, beta)
    assert inaccuracy(s, t, c, beta).tolist() == pytest.approx(want, abs=1e-10)
    array = inaccuracy(s.numpy(), t.numpy(), c.numpy(), temperature=beta)
    assert isinstance(array, np.ndarray) and array.tolist() == pytest.approx(want, abs=1e-10)
    assert inaccuracy(s.float(), t.float(), c.float(), beta).dtype == torch.float32


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(.1, 50), st.floats(.01, 100))
def test_inaccuracy_is_a_divergence_of_directions(seed, k, beta, length):
    s, t, c = randn(5, 3, seed=seed), randn(5, 3, seed=seed + 1), randn(k, 3, seed=seed + 2)
    value = inaccuracy(s, t, c, beta)
    assert (value >= 0).all() and torch.allclose(inaccuracy(s*length, t/length, c*3, beta), value, atol=1e-7)
    assert inaccuracy(s, s, c, beta).abs().max() < 1e-12
    if k == 1: assert value.abs().max() == 0


def test_inaccuracy_refuses():
    with pytest.raises(DataError, match="student features"): inaccuracy(randn(3, 4), randn(2, 4), randn(2, 4))
    with pytest.raises(DataError, match="centroids"): inaccuracy(randn(3, 4), randn(3, 4), randn(2, 5))
    with pytest.raises(ConfigError, match="temperature=0"): inaccuracy(randn(3, 4), randn(3, 4), randn(2, 4), 0)


# ---------------------------------------------------------------- the joint distance

def test_joint_distance_in_loops():
    d, parts = randn(3, 4).abs(), randn(3, 3, 4, seed=1).abs()
    want = [[d[i, j].item() + sum(.2*parts[n, i, j].item() for n in range(3)) for j in range(4)] for i in range(3)]
    for given_parts in (parts, list(parts), parts.numpy(), tuple(p.numpy() for p in parts)):
        assert torch.is_tensor(joint_distance(d, given_parts))
        assert np.allclose(joint_distance(d, given_parts), want, atol=1e-12)
        assert isinstance(joint_distance(d.numpy(), given_parts), np.ndarray)
        assert np.allclose(joint_distance(d.numpy(), given_parts), want, atol=1e-12)
    assert torch.equal(joint_distance(d, parts, kappa=0.), d) and torch.equal(joint_distance(d, []), d)
    with pytest.raises(DataError, match=r"\(4, 3\)"): joint_distance(d, [p.T for p in parts])


@given(st.integers(0, 10**6), st.floats(1e-3, 3.), st.integers(1, 5))
def test_distances_of_the_joined_vector_are_the_joint_ones(seed, kappa, parts):
    spaces = unit(1 + parts, 6, 4, seed=seed)
    v = join_parts(spaces, kappa)
    apart = torch.cdist(spaces, spaces, compute_mode="donot_use_mm_for_euclid_dist")**2
    assert v.shape == (6, 4*(1 + parts)) and torch.allclose(v.norm(dim=1), torch.ones(6).double())
    assert torch.allclose((1 + parts*kappa)*torch.cdist(v, v, compute_mode="donot_use_mm_for_euclid_dist")**2,
                          joint_distance(apart[0], apart[1:], kappa), atol=1e-9)
    cosine = 1 - spaces @ spaces.transpose(1, 2)
    assert torch.allclose((1 + parts*kappa)*(1 - v @ v.T), joint_distance(cosine[0], cosine[1:], kappa), atol=1e-9)
    assert torch.allclose(split_parts(v, parts), spaces, atol=1e-9)


def test_evaluation_of_the_vector_is_evaluation_by_the_joint_distance():
    spaces, g = unit(4, 60, 5), np.random.default_rng(0)
    pids, camids = g.integers(1, 9, 60), g.integers(0, 3, 60)
    v, d = join_parts(spaces, .2), torch.stack([(s[:20, None] - s[None, 20:]).square().sum(2) for s in spaces])
    ids = dict(query_pids=pids[:20], query_camids=camids[:20], gallery_pids=pids[20:], gallery_camids=camids[20:])
    one, other = evaluate_retrieval(v[:20], v[20:], **ids), evaluate_distances(joint_distance(d[0], d[1:]), **ids)
    assert one.mAP == pytest.approx(other.mAP, abs=1e-12) and one.cmc == other.cmc and np.allclose(one.ap, other.ap)


def test_split_refuses_a_width_that_does_not_divide():
    with pytest.raises(DataError, match="features of 10 numbers"): split_parts(randn(3, 10))
    with pytest.raises(DataError, match="are not 3 of one width"): split_parts(randn(3, 16), parts=2)


def test_mean_of_joined_rows_holds_each_spaces_mean_direction():
    spaces = unit(4, 5, 3)
    assert torch.allclose(split_parts(join_parts(spaces, .2).mean(0, keepdim=True))[:, 0],
                          nn.functional.normalize(spaces.mean(1), dim=1))


def test_rows_of_table_2():
    spaces = unit(4, 5, 3)
    rows = inference_rows(dict(query=join_parts(spaces, .2)))
    assert list(rows) == ["INCLR-G", "INCLR-part1", "INCLR-part2", "INCLR-part3", "INCLR-Joint"]
    for row, space in zip(rows.values(), spaces): assert torch.allclose(row["query"], space)
    assert torch.equal(rows["INCLR-Joint"]["query"], join_parts(spaces, .2))


# ---------------------------------------------------------------- bands

@pytest.mark.parametrize("name, size", [("micro", (48, 24)), ("micro", (64, 32)), ("resnet18", (160, 32))],
                         ids=["2+2+2 rows", "3+3+2 rows", "2+2+1 rows"])
def test_bands_in_loops(name, size):
    with seeded_torch(0): plain = build_encoder(name, size, 6).double().eval()
    divided = PartEncoder(plain, parts=3).double().eval()
    for n, head in enumerate(divided.heads):        # heads that differ, to tell them apart
        head.project.weight.data, head.neck.running_mean = randn(*head.project.weight.shape, seed=n), randn(6,
                seed=n + 9)
    x = randn(2, 3, *size)
    with torch.no_grad(): grid, got, joint = feature_map(plain.body, x), divided.parts(x), divided(x)
    h = grid.shape[2]
    bands = [range(h)] + [[r for r in range(h) if r in rows] for rows in np.array_split(range(h), 3)]
    for i in range(2):
        for n, (rows, head) in enumerate(zip(bands, divided.heads)):
            pooled = [sum(float(grid[i, c, r, w]) for r in rows for w in range(grid.shape[3]))/len(rows)/grid.shape[3]
                      for c in range(grid.shape[1])]
            neck = head.neck
            parts = head.project.weight, head.project.bias, neck.running_mean, neck.running_var, neck.weight
            v = [(sum(a*b for a, b in zip(row, pooled)) + bias - mean)/sqrt(var + neck.eps)*gain
                 for row, bias, mean, var, gain in zip(*(t.tolist() for t in parts))]
            length = sqrt(sum(a*a for a in v))
            assert got[n, i].tolist() == pytest.approx([a/length for a in v], abs=1e-9)
    assert torch.allclose(joint, join_parts(got, .2), atol=1e-7) and divided.dim == joint.shape[1] == 24


def test_a_part_encoder_begins_as_the_plain_one_and_its_heads_are_its_own():
    plain = encoder().eval()
    divided, x = PartEncoder(plain, kappa=0.).eval(), torch.rand(3, 3, *SIZE)
    with torch.no_grad():
        assert torch.allclose(divided(x)[:, :16], plain(x), atol=1e-6) and not divided(x)[:, 16:].any()
        assert all(torch.equal(h.project.weight, plain.project.weight) for h in divided.heads)
        divided.heads[1].project.weight.zero_()
        assert plain.project.weight.any() and divided.heads[2].project.weight.any()
    groups = parameter_groups(divided, 1., .1)
    assert divided.body is plain.body
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in divided.parameters() if p.requires_grad}
    assert [g["lr"] for g in groups] == [.1, 1.] and groups[0]["params"][0] is plain.body.stem[0].weight


def test_kappa_travels_with_the_weights():
    one, other = PartEncoder(encoder(), kappa=.7), PartEncoder(encoder(1))
    other.load_state_dict(one.state_dict())
    x = torch.rand(2, 3, *SIZE)
    assert other.kappa == torch.tensor(.7) and torch.equal(one.eval()(x), other.eval()(x))


def test_a_class_token_stays_the_global_feature():
    plain = build_encoder("deit_tiny_patch16_224", (224, 224), 8).eval()
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad(): assert torch.allclose(PartEncoder(plain).eval().parts(x)[0], plain(x), atol=1e-6)


def test_bodies_without_bands():
    with pytest.raises(ConfigError, match="a feature map of 2 rows has no 3 bands"):
        PartEncoder(build_encoder("resnet18", (64, 32), 8)).eval()(torch.rand(1, 3, 64, 32))
    with pytest.raises(ConfigError, match="960 channels and the projection takes 1280"):
        PartEncoder(build_encoder("mobilenetv3_large_100", (64, 32), 8))
    with pytest.raises(ConfigError, match="kappa=-1"): PartEncoder(encoder(), kappa=-1)


# ---------------------------------------------------------------- mutual refinement

def naive_refinement(a, b, least):
    "The rule with sets, image by image: a cell as a frozen set of images, None for noise."
    images = range(len(a))
    def cluster(labels, i): return {j for j in images if labels[j] == labels[i]} if labels[i] >= 0 else None
    def cells(members):
        found = {}
        for j in members:
            if a[j] >= 0 and b[j] >= 0: found.setdefault((a[j], b[j]), set()).add(j)
        return [c for c in found.values() if len(c) >= least]
    home = {}
    for i in images:
        of_a, of_b = cluster(a, i), cluster(b, i)
        if of_a and of_b: home[i] = frozenset(of_a & of_b) if len(of_a & of_b) >= least else None
        elif of_a or of_b:
            home[i] = next((frozenset(c) for c in cells(of_a or of_b) if 2*len(c) > len(of_a or of_b)), None)
        else: home[i] = None
    names = {}
    return [-1 if home[i] is None else names.setdefault(home[i], len(names)) for i in images]


labellings = st.integers(0, 25).flatmap(lambda n: st.tuples(*[st.lists(st.integers(-1, 3), min_size=n, max_size=n)]*2))


@given(labellings, st.integers(1, 4))
def test_refinement_with_sets(labels, least):
    a, b = labels
    assert mutual_refinement(np.array(a, np.int64), np.array(b, np.int64),
                             least).tolist() == naive_refinement(a, b, least)


@given(labellings, st.integers(1, 4))
def test_refinement_treats_both_spaces_alike_and_joins_nobody_that_both_keep_apart(labels, least):
    a, b = (torch.tensor(x, dtype=torch.int64) for x in labels)
    got = mutual_refinement(a, b, least)
    assert torch.is_tensor(got) and torch.equal(got, mutual_refinement(b, a, least))
    assert torch.equal(got, mutual_refinement(3 - a.where(a >= 0, 4), b, least))
    for i in range(len(a)):
        assert got[i] < 0 or a[i] >= 0 or b[i] >= 0
        for j in range(i):
            if got[i] == got[j] >= 0: assert a[i] == a[j] or b[i] == b[j] or a[i] == b[j] == -1 or b[i] == a[j] == -1


@given(st.lists(st.integers(-1, 4), max_size=30))
def test_refinement_of_equal_clusterings_only_drops_small_ones(labels):
    got = mutual_refinement(np.array(labels, np.int64), np.array(labels, np.int64), 2)
    assert [g >= 0 for g in got] == [x >= 0 and labels.count(x) >= 2 for x in labels]


def test_refinement_edges():
    noise, some = np.full(6, -1), np.array([0, 0, 0, 1, 1, 1])
    for a, b in ((noise, some), (some, noise), (noise, noise)): assert (mutual_refinement(a, b, 1) == -1).all()
    assert mutual_refinement(some, np.zeros(6, int), 3).tolist() == some.tolist()      # one space chains everybody
    # half is no majority
    assert mutual_refinement(np.array([0, 0, 0, 0]), np.array([0, 0, -1, -1]), 2).tolist() == [0, 0, -1, -1]
    with pytest.raises(DataError, match="6 global and 5 part labels"): mutual_refinement(some, some[:5])


# ---------------------------------------------------------------- Eq. 1-3, 7, 8

def small_case(k=4, **kwargs):
    """A method whose teachers and classifiers differ from the students', two views of ten images with labels and
    weights."""
    m = method(triplet_scale=3., **kwargs).double()
    with torch.no_grad():
        for n, p in enumerate(m.ema.parameters()): p.add_(.3*randn(*p.shape, seed=n))
    g = torch.Generator().manual_seed(5)
    hard = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, -1, 1])
    m.start_round(PseudoLabels(hard, None, (hard >= 0).double(),
                               join_parts(unit(4, k, 16, seed=6), .2 if m.lgmr else 0.)))
    m.head.data, m.ema_head = randn(*m.head.shape, seed=7), randn(*m.ema_head.shape, seed=8)
    soft = nn.functional.one_hot(hard.clamp(min=0), k).double()*(hard >= 0)[:, None]
    weight = torch.rand(10, generator=g).double()*(hard >= 0)
    return m, Batch(randn(10, 3, *SIZE, seed=1), torch.arange(10), torch.zeros(10), hard, soft, weight, 1, 0, .1,
                    randn(10, 3, *SIZE, seed=2))


def log_probability(feature, rows, label):
    p = distribution(feature, rows, 20.)
    return log(p[label])


def naive_terms(f, teacher, heads, m, batch):
    "The four terms of one student: f (4, B, d) and teacher (B, d) as numbers, heads (4, K, d)."
    hard, weight, out = batch.hard.tolist(), batch.weight.tolist(), dict(ce=0., part_ce=0., triplet=0., kl=0.)
    doubt = doubts(f[0], teacher, m.centroids, m.temperature)
    def distance(i, j): return sqrt(sum((a - b)**2 for a, b in zip(f[0][i].tolist(), f[0][j].tolist())))
    triplets = 0.
    for i, y in enumerate(hard):
        if y < 0: continue
        logs = [log_probability(f[n][i].tolist(), heads[n].tolist(), y) for n in range(len(f))]
        out["ce"] -= weight[i]*logs[0]/sum(weight)
        out["part_ce"] -= weight[i]*sum(logs[1:])/sum(weight)
        out["kl"] -= weight[i]*exp(-doubt[i])*logs[0]/len(hard)
        positives, negatives = [j
                for j in range(10) if j != i and hard[j] == y], [j for j in range(10) if hard[j] >= 0 and hard[j] != y]
        if not positives: continue
        far, near = max(distance(i, j) for j in positives), min(distance(i, j) for j in negatives)
        out["triplet"] -= weight[i]*log(exp(3*near)/(exp(3*near) + exp(3*far)))
        triplets += weight[i]
    out["triplet"] /= triplets
    return out


def test_losses_in_loops():
    m, batch = small_case()
    f = m.features(batch)
    with torch.no_grad():
        taught = torch.stack([m.ema.first.parts(batch.images)[0], m.ema.second.parts(batch.second)[0]])
    assert torch.allclose(f[1], m.encoder.second.parts(batch.second))
    assert torch.equal(m.ema.first.parts(batch.images, 1), m.ema.first.parts(batch.images)[:1])
    assert f.shape == (2, 4, 10, 16)
    one, two = naive_terms(f[0], taught[1], m.head[0], m, batch), naive_terms(f[1], taught[0], m.head[1], m, batch)
    got = m.losses(f, batch)
    assert got.keys() == one.keys()
    for name in one: assert got[name].item() == pytest.approx(one[name] + two[name], abs=1e-9), name
    weights = m.loss_weights()
    total = sum(weights.get(k, 1.)*v for k, v in got.items()).item()
    # Eq. 8
    assert total == pytest.approx(sum(x["ce"] + x["part_ce"] + x["triplet"] + .5*x["kl"] for x in (one, two)), abs=1e-9)


def test_a_student_gains_nothing_by_disagreeing():
    "The gradient of the weighted loss is that of cross-entropy with the weights as numbers."
    m, batch = small_case(kl_weight=1.)
    f = m.features(batch).detach().requires_grad_()
    got = torch.autograd.grad(m.losses(f, batch)["kl"], f)[0]
    with torch.no_grad(): taught = m.apart(m.ema, batch)[:, 0].flip(0)
    want = 0
    for a in (0, 1):
        weight = torch.tensor(doubts(f[a, 0].detach(), taught[a], m.centroids, 20.)).neg().exp()*batch.weight
        z = 20*f[a, 0] @ nn.functional.normalize(m.head[a, 0], dim=1).T
        want = want - (weight*(z.log_softmax(1)*batch.soft).sum(1)).sum()/10
    assert torch.allclose(got, torch.autograd.grad(want, f)[0], atol=1e-9) and not got[:, 1:].any()


def test_smoothing_changes_cross_entropy_and_not_the_credible_one():
    got = {}
    for smoothing in (0., .1):
        m, batch = small_case(smoothing=smoothing)
        got[smoothing] = {k: v.item() for k, v in m.losses(m.features(batch), batch).items()}
    assert got[0.]["kl"] == got[.1]["kl"] and got[0.]["triplet"] == got[.1]["triplet"]
    assert got[0.]["ce"] != got[.1]["ce"] and got[0.]["part_ce"] != got[.1]["part_ce"]


def test_teachers_get_no_gradient_and_losses_change_nothing():
    m, batch = small_case()
    before = {k: v.clone() for k, v in m.ema.state_dict().items()}
    f = m.features(batch)
    once, twice = m.losses(f, batch), m.losses(f, batch)
    assert all(torch.equal(once[k], twice[k]) for k in once)
    sum(once.values()).backward()
    assert all(p.grad is None for p in m.ema.parameters())
    assert all(torch.equal(v, before[k]) for k, v in m.ema.state_dict().items())
    assert all(h.project.weight.grad.any() for net in (m.encoder.first, m.encoder.second) for h in net.heads)
    assert m.head.grad.flatten(2).any(2).all()


def test_switches_of_table_3():
    for lgmr in (True, False):
        for igmo in (True, False):
            m, batch = small_case(lgmr=lgmr, igmo=igmo)
            f = m.features(batch)
            assert f.shape[1] == (4 if lgmr else 1)
            assert set(m.losses(f, batch)) == {"ce",
                                               "triplet"}.union(["part_ce"] if lgmr else [], ["kl"] if igmo else [])
    assert method(lgmr=False).encoder.first.kappa == 0 and method().encoder.first.kappa == torch.tensor(.2)


def test_without_its_modules_and_with_soft_losses_it_is_mutual_mean_teaching():
    m, batch = small_case(lgmr=False, igmo=False, soft_id=.5, soft_triplet=.8, smoothing=.1)
    base = method(MMT, triplet_scale=3.).double()
    for own, theirs in ((m.encoder, base.encoder), (m.ema, base.ema)):
        for a, b in ((own.first, theirs.first), (own.second, theirs.second)):
            b.body.load_state_dict(a.body.state_dict())
            b.project.load_state_dict(a.heads[0].project.state_dict())
            b.neck.load_state_dict(a.heads[0].neck.state_dict())
    base.start_round(PseudoLabels(batch.hard, None, batch.weight, m.centroids))
    base.head.data, base.ema_head = m.head.data[:, 0], m.ema_head[:, 0]
    one, other = m.losses(m.features(batch), batch), base.losses(base.features(batch), batch)
    assert one.keys() == other.keys() and all(torch.allclose(one[k], other[k], atol=1e-10) for k in one)
    assert all(m.loss_weights()[k] == v for k, v in base.loss_weights().items())


# ---------------------------------------------------------------- labels and rounds

def people(n=12, ids=6, alike=False, cameras=0.):
    """Features of a few people that scatter around one direction in each space; the first two look alike from afar
    if asked, and cameras, in turn, may shift all."""
    who, where = torch.arange(ids).repeat_interleave(n), unit(4, ids, 16)
    if alike: where[:2, 1] = where[:2, 0]        # and so do their heads
    camids = torch.arange(len(who)) % 3
    spaces = where[:, who] + .05*randn(4, len(who), 16, seed=1) + cameras*unit(4, 3, 16, seed=2)[:, camids]
    return nn.functional.normalize(spaces, dim=2).float(), who, camids


def test_relabel_finds_people_and_keeps_each_spaces_centroids():
    spaces, who, camids = people()
    m = method(k1=8, k2=4)
    labels = m.relabel(join_parts(spaces, .2), camids, 0)
    assert torch.equal(labels.hard, who) and torch.equal(labels.weight, torch.ones(len(who)))
    assert labels.centroids.shape == (6, 64)
    m.start_round(labels)
    want = torch.stack([nn.functional.normalize(torch.stack([s[who == k].mean(0) for k in range(6)]), dim=1)
                        for s in spaces])
    assert m.head.shape == (2, 4, 6, 16) and torch.allclose(m.head[0], want, atol=1e-6)
    assert torch.allclose(m.head[1], want, atol=1e-6)
    assert torch.equal(m.ema_head, m.head) and torch.allclose(m.centroids, want[0], atol=1e-6)


def test_the_part_space_separates_two_people_whom_the_global_one_confuses():
    spaces, who, camids = people(alike=True)
    both, alone = (method(k1=12, k2=4, lgmr=lgmr).relabel(join_parts(spaces, .2), camids, 0).hard
                   for lgmr in (True, False))
    assert torch.equal(both, who) and torch.equal(alone, (who - 1).clamp(min=0))


def test_cameras_are_centred_on_request_in_both_spaces():
    spaces, who, camids = people(n=18, cameras=.5)
    raw, centred = (method(k1=12, k2=4, center=c).relabel(join_parts(spaces, .2), camids, 0).hard
                    for c in (False, True))
    assert torch.equal(centred, who) and not torch.equal(raw, who)


def test_whole_numbers_are_distances_too():
    assert np.allclose(joint_distance(np.array([[1]]), [np.array([[.9]])]*3), 1.54)


def test_a_space_without_clusters_leaves_nothing_to_agree_on_and_the_message_says_so():
    spaces, who, camids = people()
    blind = torch.stack([spaces[0], *nn.functional.normalize(randn(3, len(who), 16, seed=9), dim=2).float()])
    with pytest.raises(DataError, match="6 global and . part clusters agree on [01]; .*lgmr=False"):
        method(k1=8, k2=4, eps=.3).relabel(join_parts(blind, .2), camids, 0)
    assert torch.equal(method(k1=8, k2=4, lgmr=False).relabel(join_parts(blind, .2), camids, 0).hard, who)


def test_clusters_with_both_teachers_and_evaluates_the_first(world):
    m, bank = method(), world[1]
    assert m.label_encoder() is m.ema and m.embedder() is m.ema.first
    assert isinstance(INCLR.model(encoder()), PartEncoder)
    a, b = (split_parts(embed_bank(net, bank)) for net in (m.ema.first, m.ema.second))
    assert torch.allclose(split_parts(embed_bank(m.label_encoder(), bank)), nn.functional.normalize(a + b, dim=2),
                          atol=1e-5)


@pytest.mark.parametrize("switches", [{}, dict(lgmr=False, soft_id=.5)], ids=["full", "global only"])
def test_resumes_to_the_same_bits(world, switches):
    domain, bank = world
    def train(**kwargs):
        kept = []
        m = adapt(method(**LOOSE, **switches), domain.train.withhold(), bank, BUDGET, progress=False, save=lambda t,
                  row, r: kept.append({k: v.clone() for k, v in t.items()}), **kwargs)
        return m, kept
    whole, states = train()
    again, _ = train(state=states[0], epoch=1)
    assert whole.state_dict().keys() == again.state_dict().keys()
    for name, value in whole.state_dict().items(): assert torch.equal(value, again.state_dict()[name]), name
    fresh = make_ema(method(**LOOSE, **switches).encoder.first).state_dict()
    assert not torch.equal(whole.state_dict()["encoder.first.heads.0.project.weight"], fresh["heads.0.project.weight"])
    moved = not torch.equal(whole.state_dict()["encoder.first.heads.2.project.weight"], fresh["heads.2.project.weight"])
    assert moved == whole.lgmr


def test_a_finished_run_loads_with_its_kappa(tmp_path):
    run = get_run(RunConfig("tiny", "plaza", "campus", "inclr", dict(**LOOSE, kappa=.5)), store=tmp_path,
                  progress=False)
    loaded, target = run.encoder(), open_domain("campus", "tiny", store=tmp_path)
    features = embed_bank(loaded, ImageBank(target.query.paths, SIZE))
    assert loaded.kappa == .5 and torch.allclose(features, run.test_features()["query"], atol=1e-5)
    rows = {name: score_retrieval(f, target).mAP for name, f in inference_rows(run.test_features()).items()}
    assert rows["INCLR-Joint"] == pytest.approx(run.metrics["mAP"]) and all(0 < v <= 1 for v in rows.values())
    assert {"ce", "part_ce", "triplet", "kl"} <= set(run.history.columns) and "soft_ce" not in run.history


def test_arguments_out_of_range():
    with pytest.raises(ConfigError, match="kappa=0"): method(kappa=0)
    with pytest.raises(ConfigError, match="kl_weight=-1"): method(kl_weight=-1)
    with pytest.raises(ConfigError, match="kappa=-5"): method(lgmr=False, kappa=-5)
    with pytest.raises(ConfigError, match="kappa=inf"): method(kappa=np.inf)
    with pytest.raises(ConfigError, match="temperature=0"): method(temperature=0)
    with pytest.raises(ConfigError, match="kappa=-1"): joint_distance(np.ones((1, 1)), [np.ones((1, 1))], -1)
    with pytest.raises(DataError, match="below -1"): mutual_refinement([0, -2], [0, 0])
    with pytest.raises(DataError, match="'query' have no parts"):
        inference_rows(dict(query=join_parts(unit(4, 3, 5), 0.)))
    with pytest.raises(ConfigError, match="no argument 'clusters'"): method(clusters=5)
    with pytest.raises(ConfigError, match="no argument 'clusters'"):
        RunConfig("tiny", "plaza", "campus", "inclr", dict(clusters=5))
    assert RunConfig("tiny", "plaza", "campus", "inclr",
                     dict(kappa=.2)).id == RunConfig("tiny", "plaza", "campus", "inclr").id


# ---- other rules of refinement

def naive_rule(rule, a, b, least):
    "Which pairs of images are together, image by image and pair by pair."
    n = len(a)
    same = lambda labels, i, j: labels[i] >= 0 and labels[i] == labels[j]
    if rule == "none": return {(i, j) for i in range(n) for j in range(i) if same(a, i, j)}
    if rule == "split":
        cells = [[i for i in range(n) if a[i] == x and b[i] == y] for x in set(a) - {-1} for y in set(b) - {-1}]
        return {(i, j) for cell in cells if len(cell) >= least for i in cell for j in cell if j < i}
    if rule == "rescue":
        home = list(a)
        for i in range(n):
            if a[i] >= 0 or b[i] < 0: continue
            mates = [a[j] for j in range(n) if b[j] == b[i]]
            home[i] = next((x for x in set(mates) - {-1} if 2*mates.count(x) > len(mates)), -1)
        return {(i, j) for i in range(n) for j in range(i) if same(home, i, j)}
    linked = {(i, j) for i in range(n) for j in range(n) if same(a, i, j) or same(b, i, j)}
    while True:                                              # transitive closure
        more = linked | {(i, k) for i, j in linked for l, k in linked if j == l}
        if more == linked: return {(i, j) for i, j in linked if j < i}
        linked = more


@pytest.mark.parametrize("rule", ["none", "split", "rescue", "merge"])
def test_other_rules_of_refinement_by_loops(rule):
    rng = np.random.default_rng(7)
    for _ in range(40):
        a, b = rng.integers(-1, 3, (2, 9))
        found = REFINEMENTS[rule](a, b, 2)
        together = {(i, j) for i in range(9) for j in range(i) if found[i] >= 0 and found[i] == found[j]}
        assert together == naive_rule(rule, a.tolist(), b.tolist(), 2), (rule, a, b)
        if rule != "none": assert sorted(set(found) - {-1}) == list(range(found.max() + 1))
        assert REFINEMENTS[rule](torch.tensor(a), torch.tensor(b), 2).tolist() == found.tolist()


def test_a_rule_is_an_argument_and_the_default_names_no_other_run():
    name = lambda **args: RunConfig("demo", "plaza", "campus", "inclr", args)
    assert name(refinement="both").id == name().id != name(refinement="merge").id
    assert name().arguments["refinement"] == "both" and "refinement" not in name().hashed_arguments
    with pytest.raises(ConfigError, match="refinement='all'"): method(refinement="all")


@pytest.mark.parametrize("refinement", ["both", "rescue", "merge"])
def test_tracks_of_two_people_stay_apart_after_the_refinement(refinement):
    g = torch.Generator().manual_seed(0)
    pid, cam, track = torch.arange(180)//18, torch.arange(180)//6 % 3, torch.arange(180)//2
    people, noise = torch.randn(4, 10, 8, generator=g), torch.randn(4, 90, 8, generator=g)
    features = join_parts(torch.nn.functional.normalize(people[:, pid] + .55*noise[:, track], dim=2), .2)
    rng, apart = np.random.default_rng(0), set()
    while len(apart) < 150:
        a, b = sorted(rng.integers(0, 90, 2).tolist())
        if cam[2*a] == cam[2*b] and pid[2*a] != pid[2*b]: apart.add((a, b))
    method = INCLR(*(build_encoder("micro", SIZE, 8, seed=s) for s in (0, 1)), k1=10, k2=3, eps=.6, min_samples=3,
                   refinement=refinement)
    method.links = TrackLinks(track.numpy(), np.array(sorted(apart)))
    labels = method.relabel(features, cam, 0).hard
    assert not any(labels[2*a] == labels[2*b] >= 0 for a, b in apart) and (labels[::2] == labels[1::2]).all()


@pytest.mark.parametrize("refinement", ["both", "split", "merge"])
def test_answers_are_kept_after_the_refinement(refinement):
    g = torch.Generator().manual_seed(0)
    pid, cam = torch.arange(120)//12, torch.arange(120) % 3
    people, noise = torch.randn(4, 10, 8, generator=g), torch.randn(4, 120, 8, generator=g)
    features = join_parts(torch.nn.functional.normalize(people[:, pid] + .4*noise, dim=2), .2)
    method = INCLR(*(build_encoder("micro", SIZE, 8, seed=s) for s in (0, 1)), k1=10, k2=3, eps=.6, min_samples=3,
                   refinement=refinement)
    plain = method.relabel(features, cam, 0).hard
    a, b = torch.nonzero(plain[:, None] == plain).unbind(1)
    joined = next((i, j) for i, j in zip(a.tolist(), b.tolist()) if i < j and plain[i] >= 0)
    parted = next((i, j) for i in range(120) for j in range(i) if plain[i] != plain[j] and not {i, j} & {*joined})
    pairs, same = np.array([joined, parted]), np.array([False, True])
    method.links = answer_links(find_links(np.full(120, -1), cam.numpy()), pairs, same)
    labels = method.relabel(features, cam, 0).hard
    check_answers(labels, method.links, "inclr")
    assert labels[parted[0]] == labels[parted[1]] >= 0 and method.keeps_answers
    assert labels[joined[0]] != labels[joined[1]] or labels[joined[0]] == -1
