"""Values that no run can use are refused when the run is named, before anything is trained, and by the constructor."""
import warnings

import pytest
from torch import nn

from upl_reid.components.encoder import Encoder
from upl_reid.core import ConfigError
from upl_reid.experiments.config import RunConfig, load_methods
from upl_reid.methods.upl import UPL, GlobalUPL

REFUSED = [
    ("dbscan", dict(scale=-20), "scale=-20"), ("cgc", dict(scale=0), "scale=0"),
    ("cgc", dict(memory_momentum=2), "memory_momentum=2"),
    ("upl", dict(queue=-5), "queue=-5"), ("upl", dict(queue=2.5), "queue=2.5"),
    ("upl", dict(max_queue_share=-1), "max_queue_share=-1"), ("upl", dict(tau=-.1), "tau=-0.1"),
    ("upl", dict(tau=0), "tau=0"), ("varied_light_upl", dict(tau=0), "tau=0"),
    ("upl", dict(mix_weight=-1), "mix_weight"),
    ("upl", dict(meta_lr=-.1), "meta_lr"), ("upl", dict(meta_beta=-1), "meta_beta"), ("upl", dict(beta=0), "beta=0"),
    ("upl", dict(neighbours=0), "neighbours=0"), ("upl", dict(normalise="foo"), "weight or count"),
    ("upl", dict(meta_gradient_at="foo"), "step or start"), ("upl", dict(meta_every=0), "every=0"),
    ("upl", dict(labels=dict(alpha=-1)), "alpha=-1"), ("upl", dict(labels=dict(temperature=0)), "temperature=0"),
    ("upl", dict(labels=dict(components=0)), "components=0"), ("upl", dict(labels=dict(threshold=-1)), "threshold=-1"),
    ("hybrid", dict(labels=dict(eps=-.5, k1=3)), "eps=-0.5"), ("hybrid", dict(labels=dict(k1=0)), "k1=0"),
    ("upl_global", dict(labels={}), "no argument 'labels'"),
    ("dbscan", dict(k1=0), "k1=0"), ("dbscan", dict(k1=3.), "k1=3.0"), ("dbscan", dict(eps=-1), "eps=-1"),
    ("dbscan", dict(eps=1), "eps must be below 1"), ("dbscan", dict(min_samples=0), "min_samples=0"),
    ("dbscan", dict(eps="x"), "cannot be made"), ("mspl", dict(per_cluster=0), "per_cluster=0"),
    ("mspl", dict(clusters="kmeans", k1=0), "k1=0"), ("mmt", dict(clusters=2.5), "clusters=2.5"),
    ("spcl", dict(eps=.99), "below 1 - eps"),
]

@pytest.mark.parametrize("method, given, cause", REFUSED, ids=[f"{m}-{'-'.join(map(str, a))}-{i}"
                                                              for i, (m, a, _) in enumerate(REFUSED)])
def test_a_run_with_it_cannot_be_named(method, given, cause):
    with pytest.raises(ConfigError) as e: RunConfig("tiny", "plaza", "campus", method, given)
    assert cause in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("name", sorted(load_methods()))
def test_what_methods_recommend_can_be_named(name):
    cls = load_methods()[name]
    for given in [{}, *(getattr(cls, how)() for how in ("as_written", "tuned") if hasattr(cls, how))]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert RunConfig("tiny", "plaza", "campus", name, given).arguments


def test_the_labels_arguments_are_not_ignored_where_there_are_none():
    with pytest.raises(ConfigError, match="no argument 'labels'"):
        GlobalUPL(Encoder(nn.Identity(), 2, 2), labels=dict(eps=.3), srmo=False)


def test_a_meta_set_of_one_person_is_refused():
    with pytest.raises(ConfigError, match="has one person"):
        UPL(Encoder(nn.Identity(), 2, 2), meta=(None, [3, 3, 3], [0, 1, 2]))
