"""Features that a round of pseudo-labels may meet on somebody's cameras: every method makes labels of them or says in one sentence why not."""
import pytest
import torch
import torch.nn.functional as F

from upl_reid.cost import benches
from upl_reid.runs import METHODS, load_methods
from upl_reid.train import PseudoLabels

CPU = torch.device("cpu")
NAMES = ["upl", "upl_global", "hybrid", "dbscan", "mmt", "p2lr", "inclr", "cgc", "mspl", "votes"]


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    "Every method that makes pseudo-labels, in its tiny form."
    store = tmp_path_factory.mktemp("runs")
    made = benches({n: (n, {}) for n in NAMES}, "tiny", "plaza", "campus", 0, CPU, store=store)
    return {n: (b.method, b.features, b.camids) for n, b in made.items()}


def test_no_method_is_left_out():
    assert set(NAMES) == {n for n, c in load_methods().items() if c.__module__.startswith("upl_reid.") and c.trains and not c.needs_identities}


def directions(n, d, seed=0): return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def people(x, count): return F.normalize(directions(count, x.shape[1])[torch.arange(len(x)) % count] + .05*directions(len(x), x.shape[1], 1), dim=1)


KINDS = {"one identity": lambda x, c: (people(x, 1), c), "two identities": lambda x, c: (people(x, 2), c), "all noise": lambda x, c: (directions(*x.shape), c), "one camera": lambda x, c: (people(x, 20), torch.zeros_like(c)),
         "a camera each": lambda x, c: (people(x, 20), torch.arange(len(x))), "duplicates only": lambda x, c: (x[:1].expand_as(x).clone(), c), "pairs of duplicates": lambda x, c: (x[torch.arange(len(x))//2*2], c),
         "camera tells all": lambda x, c: (F.normalize(directions(int(c.max()) + 1, x.shape[1])[c] + 1e-4*x, dim=1), c)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_labels_or_a_sentence(methods, name, kind):
    method, features, camids = methods[name]
    x, c = KINDS[kind](features, camids)
    try: labels = method.relabel(x, c, 0)
    except ValueError as e:
        assert kind not in ("one camera", "two identities") or "identit" in str(e) or "cluster" in str(e)
        assert "\n" not in str(e) and len(str(e)) > 30, e
        return
    assert isinstance(labels, PseudoLabels) and len(labels.hard) == len(x) and len(labels.centroids) >= 2
    assert torch.isfinite(labels.centroids).all() and torch.isfinite(labels.weight).all() and (labels.weight >= 0).all() and (labels.weight <= 1).all()
    assert labels.soft is None or torch.allclose(labels.soft.sum(1), torch.ones(len(x)), atol=1e-4)
    method.start_round(labels)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers(methods, name, value):
    method, features, camids = methods[name]
    x = features.clone()
    x[3, 0] = value
    with pytest.raises(ValueError) as e: method.relabel(x, camids, 0)
    assert "\n" not in str(e.value)
