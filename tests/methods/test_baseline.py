"""Clusterings whose numbers are chosen from the data in the first round."""
from functools import partial

import pytest
import torch
from torch import nn

from small import Linear, people_in_cameras
from upl_reid.components.label_choice import choose_clustering
from upl_reid.core import DataError
from upl_reid.methods.baseline import SCALES, GlobalDBSCAN, global_clusters, possible_scales
from upl_reid.methods.cgc import CGC
from upl_reid.methods.mmt import MMT
from upl_reid.methods.mspl import MSPL, refined_clusters
from upl_reid.methods.p2lr import P2LR
from upl_reid.methods.upl import (STAGES, HybridLabels, GlobalUPL, camera_parts, label_arguments, mixture_labels,
                                  two_stage_clusters, ways_to_group)


def test_what_is_given_stays():
    assert possible_scales() == list(SCALES)
    assert possible_scales(k1=8) == [dict(k1=8, k2=6, min_samples=4)]
    assert possible_scales(k1=8, k2=2, min_samples=3) == [dict(k1=8, k2=2, min_samples=3)]
    assert {s["min_samples"] for s in possible_scales(min_samples=5)} == {5}
    assert [s["k1"] for s in possible_scales(k2=4)] == [s["k1"] for s in SCALES]


@pytest.mark.parametrize("visits, few", [(1, True), (10, False)])
def test_few_images_of_a_person_lead_to_a_small_k1(visits, few):
    x, pid, cam = people_in_cameras(60, 2, visits, .25 if few else .5, dim=64)
    method = GlobalDBSCAN(nn.Identity())
    labels = method.relabel(x, cam, 0)
    scale = SCALES[int(method.chosen)]
    assert (scale["k1"] <= 6) == few and (scale["k1"] == 20) == (not few)
    assert torch.equal(labels.hard, global_clusters(x, cam, **scale))


def test_the_first_rounds_choice_is_kept_and_stored():
    few, _, few_cam = people_in_cameras(60, 2, 1, .25, dim=64)
    many, _, many_cam = people_in_cameras(20, 2, 10, .5, dim=64)
    method = GlobalDBSCAN(nn.Identity())
    method.relabel(few, few_cam, 0)
    first = int(method.chosen)
    again = GlobalDBSCAN(nn.Identity())
    again.load_state_dict(method.state_dict())
    for m in (method, again):
        labels = m.relabel(many, many_cam, 1)
        assert int(m.chosen) == first and torch.equal(labels.hard, global_clusters(many, many_cam, **SCALES[first]))
    other = GlobalDBSCAN(nn.Identity())
    other.relabel(many, many_cam, 0)
    assert int(other.chosen) != first


def test_a_given_k1_is_not_chosen_again():
    x, _, cam = people_in_cameras(20, 2, 10, .5, dim=64)
    method = GlobalDBSCAN(nn.Identity(), k1=8)
    assert torch.equal(method.relabel(x, cam, 0).hard, global_clusters(x, cam, k1=8))
    assert method.chosen == 0 and len(method.scales) == 1
    assert len(MSPL(nn.Identity(), clusters="kmeans").scales) == 1 and len(MSPL(nn.Identity()).scales) == len(SCALES)
    assert CGC.arguments()["k1"] is None and CGC.arguments()["center"] is False


def test_one_camera_takes_one_dbscan_for_many_images():
    x, _, cam = people_in_cameras(20, 2, 10, .5, dim=64)
    for method in (HybridLabels(nn.Identity()), GlobalUPL(nn.Identity(), srmo=False), GlobalDBSCAN(nn.Identity())):
        hard = method.relabel(x, torch.zeros_like(cam), 0).hard
        assert method.chosen == 0 and torch.equal(hard, global_clusters(x, torch.zeros_like(cam)))


def test_the_two_stages_are_among_the_ways_and_are_taken_where_they_agree_best():
    x, pid, cam = people_in_cameras(40, 2, 8, .5, dim=64, bias=2.)
    method = HybridLabels(nn.Identity(), labels=dict(eps=.4))
    ways = ways_to_group(eps=.4)
    best, found = choose_clustering(ways, x, cam)
    labels = method.relabel(x, cam, 0)
    assert int(method.chosen) == best >= len(SCALES) and len(ways) == len(SCALES) + len(STAGES)   # of two stages
    groups = ways[best](x, cam)
    assert torch.equal(labels.hard, groups)
    assert torch.equal(ways_to_group(k1=5)[0](x, cam), two_stage_clusters(x, cam, k1=5))
    assert set(label_arguments()) >= {"k1", "k2", "min_samples", "eps", "threshold", "center", "alpha", "components"}


def test_parts_are_the_images_of_one_group_in_one_camera():
    g = torch.Generator().manual_seed(0)
    groups, cam = torch.randint(-1, 5, (80,), generator=g), torch.randint(0, 3, (80,), generator=g)*4 + 2
    groups[:5] = torch.arange(5)
    parts, owner = camera_parts(groups, cam)
    for i in range(80):
        assert (parts[i] < 0) == (groups[i] < 0)
        if groups[i] >= 0: assert owner[parts[i]] == groups[i]
        for j in range(80):
            if groups[i] < 0 or groups[j] < 0: continue
            assert (parts[i] == parts[j]) == (groups[i] == groups[j] and cam[i] == cam[j])
    assert sorted(set(parts[parts >= 0].tolist())) == list(range(len(owner)))


def test_any_groups_get_soft_labels_and_weights():
    x, pid, cam = people_in_cameras(20, 3, 4, .6)
    groups = pid.clone()
    groups[::7] = -1
    labels = mixture_labels(x, cam, groups)
    used = groups >= 0
    assert torch.equal(labels.hard, groups) and (labels.weight[~used] == 0).all()
    assert (labels.soft.argmax(1) == pid)[used].float().mean() > .9
    entropy = -(labels.soft.double()*labels.soft.double().log()).sum(1)
    assert torch.allclose(labels.weight[used].double(), torch.exp(-entropy[used]), atol=1e-4)
    for few, words, remedy in ((0, "one cluster", "lower eps"), (-1, "no cluster", "lower min_samples, raise eps")):
        with pytest.raises(DataError, match=f"left {words} of 240 images.*: {remedy}$"):
            mixture_labels(x, cam, torch.full_like(pid, few))


def with_lone_images(copies=1):
    "Ninety-six images in three cameras, and six people of whom six further cameras have one image, or copies of it."
    x, _, cam = people_in_cameras(8, 3, 4, .4, bias=.5, seed=1)
    g = torch.Generator().manual_seed(0)
    lone = x[torch.arange(0, 72, 12)] + .02*torch.randn(6, 24, generator=g)
    cams = torch.cat([cam, 10 + torch.arange(6).repeat_interleave(copies)])
    return torch.cat([x, lone.repeat_interleave(copies, 0)]), cams


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("cluster", [
    global_clusters, partial(global_clusters, k1=10, k2=3), partial(refined_clusters, k1=10, k2=3, select=False),
    partial(refined_clusters, normalize=False, center=True, k1=10, k2=3, select=False),
    partial(refined_clusters, clusters="kmeans", select=False),
    lambda x, cam: MMT(Linear(0, 24), Linear(1, 24), center=True).relabel(x, cam, 0).hard,
    lambda x, cam: P2LR(Linear(0, 24), Linear(1, 24), center=True, reweight=True).relabel(x, cam, 0).hard,
], ids=["global", "small k1", "mspl", "mspl centred", "mspl k-means", "mmt", "p2lr"])
def test_the_only_images_of_their_cameras_are_noise_and_change_no_other_label(cluster, copies):
    x, cam = with_lone_images(copies)
    labels = cluster(x, cam)
    assert (labels[96:] == -1).all()
    assert torch.equal(labels[:96], cluster(x[:96], cam[:96]))


def test_uncentred_lone_images_are_clustered():
    x, cam = with_lone_images()
    assert (global_clusters(x, cam, center=False, k1=10, k2=3)[96:] >= 0).all()


@pytest.mark.parametrize("cluster", [global_clusters, refined_clusters, two_stage_clusters], ids=lambda f: f.__name__)
def test_a_camera_for_each_image_is_said(cluster):
    x, _ = with_lone_images()
    with pytest.raises(DataError, match="102 of 102 images are the only image .* set center=False"):
        cluster(x, torch.arange(len(x)))
