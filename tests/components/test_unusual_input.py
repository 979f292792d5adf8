"""Numbers as arrays and tensors have them: any order in memory and type, copies of rows, extreme and missing values."""
import numpy as np
import pytest
import torch
from torch import nn

from upl_reid.components.clustering import (camera_center, cluster_centroids, dbscan, group_images, jaccard_dbscan,
                                            kmeans_labels, silhouette_samples)
from upl_reid.components.losses import center_loss, softmax_triplet, supervised_contrastive, updated_centers
from upl_reid.components.memory import ClusterMemory, cross_camera_info_nce, queue_size
from upl_reid.components.mixup import choose_partners, mix, sample_lambda
from upl_reid.components.neighbours import jaccard_distance, unit_rows
from upl_reid.components.uncertainty import centroid_log_probabilities, entropy, fit_mixture, soft_labels
from upl_reid.components.weights import load_named, named_tensors
from upl_reid.core import ConfigError, DataError, seed_for, to_numpy
from upl_reid.evaluation.reranking import expand_queries
from upl_reid.methods.cgc import confidence_guided_centroids, confidence_guided_labels
from upl_reid.methods.inclr import inaccuracy, joint_distance, merge_clusters, mutual_refinement
from upl_reid.methods.mspl import camera_normalize
from upl_reid.methods.p2lr import label_uncertainty, selection_threshold

X = np.random.default_rng(0).normal(size=(12, 4))
IDS, CAMS = np.arange(12) % 3, np.arange(12) % 2
SOFT = np.abs(X)/np.abs(X).sum(1, keepdims=True)
MIXTURE = fit_mixture(X, IDS)
CALLS = {
    "jaccard": lambda f: jaccard_distance(f(X), 3, 2).toarray(), "unit_rows": lambda f: unit_rows(f(X)),
    "center": lambda f: camera_center(f(X), f(CAMS)), "normalize": lambda f: camera_normalize(f(X), f(CAMS)),
    "kmeans": lambda f: kmeans_labels(f(X), 3), "centroids": lambda f: cluster_centroids(f(X), f(IDS)),
    "silhouettes": lambda f: silhouette_samples(f(X), f(IDS)), "entropy": lambda f: entropy(f(SOFT)),
    "mixture": lambda f: fit_mixture(f(X), f(IDS)).means, "soft": lambda f: soft_labels(f(X), MIXTURE),
    "log_p": lambda f: centroid_log_probabilities(f(X), f(X[:3])), "partners": lambda f: choose_partners(f(X)),
    "mix": lambda f: mix(f(X), f(X), f(SOFT), f(SOFT), f(SOFT[:, 0]), f(SOFT[:, 1]), f(SOFT[:, 2]))[1],
    "uncertainty": lambda f: label_uncertainty(f(X), f(X[:3]), f(IDS)),
    "threshold": lambda f: selection_threshold(f(SOFT[:, 0]), f(IDS), .5),
    "cgc_labels": lambda f: confidence_guided_labels(f(X), f(X[:3]), f(IDS)),
    "cgc_centroids": lambda f: confidence_guided_centroids(f(X), f(IDS), f(SOFT[:, 0]), .2),
    "inaccuracy": lambda f: inaccuracy(f(X), f(SOFT), f(X[:3])), "joint": lambda f: joint_distance(f(X), [f(X)]),
    "expand": lambda f: expand_queries(f(X[:4]), f(X)),
}

def backwards(x): return np.ascontiguousarray(x[::-1])[::-1]

def foreign(x): return x.astype(x.dtype.newbyteorder(">"))

def read_only(x):
    x = x.copy()
    x.setflags(write=False)
    return x


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layout", [backwards, foreign, read_only], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", list(CALLS))
def test_the_layout_of_an_array_does_not_matter(name, layout):
    assert np.array_equal(to_numpy(CALLS[name](layout)), to_numpy(CALLS[name](np.array)))


def test_unsigned_labels_are_labels():
    want = confidence_guided_labels(X, X[:3], IDS)
    assert np.array_equal(confidence_guided_labels(X, X[:3], IDS.astype(np.uint16)), want)


def test_bfloat16_is_taken():
    x = torch.tensor([[0., .25], [.25, 0]], dtype=torch.bfloat16)
    assert to_numpy(x).tolist() == [[0, .25], [.25, 0]] and dbscan(x, .5, 2).tolist() == [0, 0]


def test_seeds_of_numpy_and_below_zero():
    assert seed_for(np.int64(3), "a") == seed_for(3, "a")
    with pytest.raises(TypeError): seed_for(np.float32(.5))
    assert len(sample_lambda(3, seed=-1)) == 3 and len(choose_partners(torch.eye(3), seed=-1)) == 3


def test_whole_numbers_are_mixed_and_compared_as_floats():
    f, y = mix([1, 0], [0, 1], [1., 0.], [0., 1.], 1., 1., .5)
    assert f.tolist() == y.tolist() == [.5, .5]
    for kind in (np.array, torch.tensor): assert mix(kind([1, 0]), kind([0, 1]), kind([1., 0]), kind([0., 1]), 1., 1.,
                                                      .5)[0].tolist() == [.5, .5]
    assert mix(np.eye(2), np.eye(2)[::-1], np.eye(2), np.eye(2), np.ones(2), np.ones(2), .3)[0][0, 0] == .3
    centroids = [[.9, .1], [.1, .9]]
    want = inaccuracy(np.array([[1., 0]]), np.array([[.1, .9]]), np.array(centroids))
    assert np.array_equal(inaccuracy(np.array([[1, 0]]), np.array([[.1, .9]]), np.array(centroids)), want) and want > 10


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e25, 3e37])
def test_rows_of_extreme_length_have_length_one(scale):
    x = torch.tensor([[3., 4], [0, 0], [1, 0]])
    rows = unit_rows(torch.cat([x[:2]*scale, x[2:]]))
    assert torch.allclose(rows, torch.tensor([[.6, .8], [0, 0], [1, 0]]), atol=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("seed", range(5))
def test_copies_in_two_clusters_have_silhouette_zero(metric, seed):
    x = np.tile(np.random.default_rng(seed).normal(size=(1, 64)), (6, 1))
    assert (silhouette_samples(x, np.array([0, 0, 0, 1, 1, 1]), metric) == 0).all()
    with_other = silhouette_samples(np.vstack([x, -x[:1], -x[:1]]), np.array([0, 0, 0, 1, 1, 1, 2, 2]), metric)
    assert (np.abs(with_other) <= 1).all() and (with_other[:6] == 0).all() and with_other[6] == pytest.approx(1)


def test_copies_are_at_distance_zero_exactly():
    x = np.repeat(X, 2, 0)
    d = jaccard_distance(x, 5, 3)
    assert all(d[i, i + 1] == 0 for i in range(0, 24, 2))
    assert (jaccard_dbscan(x, 1, 1, 0., 2) == np.repeat(np.arange(12), 2)).all()


def test_large_ids_are_named_and_take_no_memory():
    ids = np.array([0, 0, 3*10**9, 3*10**9])
    for call in (lambda: cluster_centroids(X[:4], ids), lambda: fit_mixture(X[:4], ids)):
        with pytest.raises(DataError, match="renumber"): call()
    assert mutual_refinement(ids, ids, 2).tolist() == merge_clusters(ids, ids).tolist() == [0, 0, 1, 1]
    assert group_images([0, 1, -5], [7, 8]).tolist() == [7, 8, -1]


def test_weights_with_nan_are_refused_and_are_no_second_network():
    body = nn.Linear(2, 2)
    state = {k: v.clone() for k, v in body.state_dict().items()}
    state["weight"][0, 0] = torch.nan
    assert set(named_tensors(dict(model=state))) == set(state)
    with pytest.raises(DataError, match="first: weight.* NaN or infinity"): load_named(body, state)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.int64])
def test_queries_and_gallery_of_different_types(kind):
    query, gallery = torch.tensor([[1., 0]], dtype=torch.float64), torch.tensor([[1, 0], [0, 1]])
    assert torch.allclose(expand_queries(query, gallery.to(kind)), query.to(torch.float64))


def test_keys_and_centroids_of_another_precision():
    y, c = torch.tensor([0, 0]), torch.tensor([0, 1])
    assert cross_camera_info_nce(torch.eye(2), y, c, torch.eye(2).double(), y, c).dtype == torch.float32
    assert ClusterMemory(torch.eye(2).double())(torch.eye(2)).dtype == torch.float32
    assert softmax_triplet(torch.zeros(0, 2), torch.zeros(0)) == 0


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32])
def test_center_loss_takes_whole_numbers_of_any_type(kind):
    y = torch.tensor([1, 0])
    assert center_loss(torch.eye(2), y.to(kind), torch.eye(2)) == center_loss(torch.eye(2), y, torch.eye(2))
    assert torch.equal(updated_centers(torch.eye(2), torch.eye(2), y.to(kind)),
                       updated_centers(torch.eye(2), torch.eye(2), y))


@pytest.mark.parametrize("call", [
    lambda: supervised_contrastive(torch.eye(2), torch.zeros(2), tau=0.), lambda: queue_size(10, -5, .5),
    lambda: cross_camera_info_nce(*[torch.eye(2), torch.zeros(2), torch.arange(2)]*2, tau=-.1),
    lambda: queue_size(10, 5, -1.), lambda: jaccard_dbscan(X, 3, 2, float("nan"), 2),
    lambda: dbscan(np.zeros((2, 2)), float("nan"), 2),
], ids=["supcon", "queue", "nce", "share", "jaccard nan", "dense nan"])
def test_numbers_out_of_range(call):
    with pytest.raises(ConfigError): call()
