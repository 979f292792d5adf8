"Random retrieval problems and their distances, for the tests of several modules."
import numpy as np


def problem(seed, queries=25, images=90, ids=9, cams=3, dims=5):
    "Features of queries and gallery, and their identities and cameras by name."
    rng = np.random.default_rng(seed)
    q, qp, qc = rng.normal(size=(queries, dims)), rng.integers(1, ids, queries), rng.integers(0, cams, queries)
    g, gp, gc = rng.normal(size=(images, dims)), rng.integers(-1, ids, images), rng.integers(0, cams, images)
    return q, g, dict(query_pids=qp, query_camids=qc, gallery_pids=gp, gallery_camids=gc)


def naive_distance(a, b):
    "Squared Euclidean distance of unit vectors, straight from the definition."
    return [[sum((x/np.sqrt(sum(u*u)) - y/np.sqrt(sum(v*v)))**2 for x, y in zip(u, v)) for v in b] for u in a]
