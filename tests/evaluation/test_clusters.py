"Cluster quality and camera bias against looking at every pair, plus edge cases and faults."
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from retrieval_problem import naive_distance, problem
from upl_reid.core import DataError
from upl_reid.evaluation import clusters, retrieval
from upl_reid.evaluation.clusters import cluster_quality, same_camera_chance, same_camera_neighbour_rate

def naive_pairs(labels, pids, camids=None):
    pairs = [(i, j) for i, j in combinations(range(len(pids)), 2) if camids is None or camids[i] != camids[j]]
    claimed = [p for p in pairs if labels[p[0]] == labels[p[1]] >= 0]
    true = [p for p in pairs if pids[p[0]] == pids[p[1]]]
    both = len(set(claimed) & set(true))
    return both/len(claimed) if claimed else math.nan, both/len(true) if true else math.nan

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=25))
def test_pair_scores_equal_looking_at_every_pair(rows):
    labels, pids, camids = map(np.array, zip(*rows))
    found = cluster_quality(np.random.default_rng(0).normal(size=(len(rows), 3)), labels, pids, camids)
    np.testing.assert_equal((found["pair_precision"], found["pair_recall"]), naive_pairs(labels, pids))
    cross = found["cross_camera_precision"], found["cross_camera_recall"]
    np.testing.assert_equal(cross, naive_pairs(labels, pids, camids))
    assert found["noise_ratio"] == pytest.approx(np.mean(labels == -1))
    assert found["clusters"] == len(set(labels.tolist()) - {-1})

def naive_geometry(x, labels):
    "Silhouette and Davies-Bouldin from their definitions on unit vectors."
    x = [v/math.sqrt(v @ v) for v in x]
    groups = {k: [i for i, l in enumerate(labels) if l == k] for k in set(labels)}
    dist = lambda u, v: math.sqrt(sum((u - v)**2))
    s = []
    for i, k in enumerate(labels):
        if len(groups[k]) == 1: s.append(0.); continue
        a = sum(dist(x[i], x[j]) for j in groups[k])/(len(groups[k]) - 1)
        b = min(np.mean([dist(x[i], x[j]) for j in groups[other]]) for other in groups if other != k)
        s.append((b - a)/max(a, b))
    centre = {k: np.mean([x[i] for i in g], axis=0) for k, g in groups.items()}
    scatter = {k: np.mean([dist(x[i], centre[k]) for i in g]) for k, g in groups.items()}
    worst = [max((scatter[k] + scatter[o])/dist(centre[k], centre[o]) for o in groups if o != k) for k in groups]
    return np.mean(s), np.mean(worst)

def test_geometry_is_of_unit_vectors_without_noise():
    rng = np.random.default_rng(3)
    x, labels = rng.normal(size=(40, 4))*rng.uniform(.1, 9, (40, 1)), rng.integers(-1, 5, 40)
    kept = labels >= 0
    found = cluster_quality(torch.from_numpy(x), torch.from_numpy(labels))
    geometry = found["silhouette"], found["davies_bouldin"]
    assert geometry == pytest.approx(naive_geometry(x[kept], labels[kept].tolist()))
    assert set(found) == {"silhouette", "davies_bouldin", "silhouette_images", "noise_ratio", "clusters"}
    assert found["silhouette_images"] == kept.sum()

@pytest.mark.parametrize("labels, count", [([-1]*4, 0), ([0]*4, 1), ([0, 1, 2, 3], 4), ([0, -1, -1, -1], 1)])
def test_undefined_scores_are_nan(labels, count):
    found = cluster_quality(np.eye(4), labels, [1, 1, 2, 2], [0, 1, 0, 1])
    assert math.isnan(found["silhouette"]) and math.isnan(found["davies_bouldin"]) and found["clusters"] == count
    assert math.isnan(found["ari"]) == (count == 0)

def test_agreement_ignores_names_and_noise():
    rng = np.random.default_rng(0)
    pids, x = rng.integers(1, 6, 60), rng.normal(size=(60, 3))
    labels = (pids*7) % 11
    labels[::4] = -1
    found = cluster_quality(x, labels, pids)
    for name in ("ari", "ami", "fmi", "v_measure", "pair_precision"): assert found[name] == pytest.approx(1)
    assert found["pair_recall"] < 1
    assert "cross_camera_recall" not in found

def test_silhouette_of_many_images_is_a_fixed_sample(monkeypatch):
    "The full computation is too slow for a test, so silhouette_samples is replaced by one that records its arguments."
    seen = []
    monkeypatch.setattr(clusters, "silhouette_samples", lambda x, labels: seen.append((x, labels)) or np.zeros(1))
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(20_500, 2)), rng.integers(-1, 3, 20_500)
    labels[:20_100] = np.abs(labels[:20_100])
    found = [cluster_quality(x, labels)["silhouette_images"] for _ in range(2)]
    assert found == [20_000]*2
    assert np.array_equal(seen[0][0], seen[1][0]) and np.array_equal(seen[0][1], seen[1][1])
    unit = x/np.linalg.norm(x, axis=1, keepdims=True)
    where = {row.tobytes(): i for i, row in enumerate(np.round(unit, 12))}
    assert len({row.tobytes() for row in np.round(seen[0][0], 12)}) == 20_000 # no image twice
    for row, label in zip(np.round(seen[0][0], 12), seen[0][1]): assert labels[where[row.tobytes()]] == label

def test_cluster_quality_refuses_what_does_not_fit():
    good = dict(features=np.eye(3), labels=[0, 0, 1], pids=[1, 1, 2], camids=[0, 1, 0])
    for change in (dict(labels=[0, 1]), dict(pids=[1]), dict(camids=[0.5]*3), dict(features=np.zeros((3, 3)))):
        with pytest.raises(DataError): cluster_quality(**{**good, **change})

def test_block_boundaries_change_nothing(monkeypatch):
    _, x, ids = problem(7)
    pids, camids = ids["gallery_pids"], ids["gallery_camids"]
    rate, quality = same_camera_neighbour_rate(x, pids, camids), cluster_quality(x, pids, pids, camids)
    for module in (retrieval, clusters):
        monkeypatch.setattr(module, "row_blocks", lambda n, width, most=0: [(i, min(i + 4, n)) for i in range(0, n, 4)])
    assert same_camera_neighbour_rate(x, pids, camids) == rate and cluster_quality(x, pids, pids, camids) == quality

def test_arguments_are_left_as_they_were():
    _, x, ids = problem(3)
    arrays = x, ids["gallery_pids"], ids["gallery_camids"]
    before = [a.copy() for a in arrays]
    for a in arrays: a.flags.writeable = False
    cluster_quality(x, arrays[1], arrays[1], arrays[2])
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before))

# ---- camera bias

@pytest.mark.parametrize("seed", range(3))
def test_camera_bias_equals_naive_loop(seed):
    _, x, ids = problem(seed, images=40)
    pids, camids, d, same, chance = ids["gallery_pids"], ids["gallery_camids"], naive_distance(x, x), 0, 0
    known = [i for i in range(40) if pids[i] >= 0]
    for i in known:
        others = [j for j in known if pids[j] != pids[i]]
        same += camids[min(others, key=lambda j: d[i][j])] == camids[i]
        chance += sum(camids[j] == camids[i] for j in others)/len(others)
    assert same_camera_neighbour_rate(*map(torch.from_numpy, (x, pids, camids))) == pytest.approx(same/len(known))
    assert same_camera_chance(pids, camids) == pytest.approx(chance/len(known))

def test_camera_bias_at_its_extremes():
    pids, camids = np.arange(12), np.arange(12) % 3
    assert same_camera_neighbour_rate(np.eye(3)[camids], pids, camids) == 1
    # all alike: image 0 is the nearest of all others, 3, 6 and 9 have its camera; the nearest to image 0 is image 1
    assert same_camera_neighbour_rate(np.ones((12, 2)), pids, camids) == 3/12
    one = [1, 1, 1], [0, 1, 2]
    with pytest.raises(DataError, match="one identity"): same_camera_neighbour_rate(np.eye(3), *one)
    with pytest.raises(DataError, match="one identity"): same_camera_chance(*one)

def test_unknown_people_are_no_identity():
    x = np.random.default_rng(0).normal(size=(6, 3))
    labels, pids, camids = np.array([0, 0, 0, 1, 1, 1]), np.array([-1, -1, -1, 5, 5, 6]), np.arange(6) % 2
    known = cluster_quality(x[3:], labels[3:], pids[3:], camids[3:])
    found = cluster_quality(x, labels, pids, camids)
    for name in ("ari", "ami", "fmi", "v_measure", "pair_precision", "pair_recall", "cross_camera_precision"):
        assert found[name] == known[name]
    assert same_camera_neighbour_rate(x, pids, camids) == same_camera_neighbour_rate(x[3:], pids[3:], camids[3:])
    assert same_camera_chance(pids, camids) == same_camera_chance(pids[3:], camids[3:])
