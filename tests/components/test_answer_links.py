"""Confirmed and rejected pairs against loops over images, their contradictions, and what methods do with them."""
import numpy as np
import pytest
import torch

from upl_reid.components.tracks import answer_links, AnswerLinks, check_answers, find_links
from upl_reid.core import DataError, RunError


def problem(seed, n=60):
    "Tracks of three cameras, labels with noise, features, and answers that a true identity gives."
    rng = np.random.default_rng(seed)
    pids, camids = rng.integers(0, 9, n), rng.integers(0, 3, n)
    tracks = np.where(rng.random(n) < .5, -1, 3*pids + camids)           # a track is one person in one camera
    labels = np.where(rng.random(n) < .3, -1, rng.integers(0, 6, n))
    pairs = np.sort(rng.integers(0, n, (25, 2)), 1)
    pairs = np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)
    return pids, camids, tracks, labels, pairs, pids[pairs[:, 0]] == pids[pairs[:, 1]], rng.normal(size=(n, 5))


def naive_people(tracks, pairs, same):
    "Sets of images that are connected, grown until nothing changes."
    groups = [{i} for i in range(len(tracks))]
    links = [(int(a), int(b)) for (a, b), s in zip(pairs, same) if s]
    links += [(i, j) for i in range(len(tracks)) for j in range(i) if tracks[i] == tracks[j] >= 0]
    for a, b in links:
        one, two = (next(g for g in groups if x in g) for x in (a, b))
        if one is not two:
            groups.remove(two)
            one |= two
    return groups


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("with_tracks", [False, True], ids=["alone", "with-tracks"])
def test_labels_keep_to_all_answers(seed, with_tracks):
    pids, camids, tracks, labels, pairs, same, x = problem(seed)
    if not with_tracks: tracks = np.full_like(tracks, -1)
    links = answer_links(find_links(tracks, camids, np.arange(len(tracks))), pairs, same)
    groups = naive_people(tracks, pairs, same)
    for group in groups: assert len(set(links.people[sorted(group)].tolist())) == 1
    assert len(groups) == len(set(links.people.tolist()))
    y = links.link(labels, x)
    for (a, b), s in zip(pairs, same):
        assert (y[a] == y[b] >= 0) if s else (y[a] != y[b] or y[a] == -1), (a, b)
    alone = ~np.isin(links.people, np.unique(links.rejected))            # images that nothing is known of
    alone &= np.array([sum(links.people == p) == 1 for p in links.people])
    for group in groups:                                                 # one answer for each person
        assert len({int(y[i]) for i in group}) == 1
        seen = [int(labels[i]) for i in group if labels[i] >= 0]
        best = max(map(seen.count, seen), default=0)
        if len(group) == 1 and seen and links.people[min(group)] not in links.rejected:
            assert y[min(group)] >= 0                                    # an image that nothing is known of stays
        assert best or y[min(group)] == -1 or links.people[min(group)] in links.confirmed
        if seen and links.people[min(group)] not in links.rejected:          # the label of most, the smallest of equals
            most = min(k for k in set(seen) if seen.count(k) == best)
            assert {int(y[i]) for i in np.flatnonzero(alone & (labels == most))} <= {int(y[min(group)])}
    used = set(y[y >= 0].tolist())
    assert used == set(range(len(used)))                                 # ids without gaps
    check_answers(y, links, "this")
    kept = np.flatnonzero(alone & (labels >= 0))                         # who was together stays together
    assert (y[kept][:, None] == y[kept]).tolist() == (labels[kept][:, None] == labels[kept]).tolist()


def test_a_pair_of_noise_gets_a_cluster_and_a_large_cluster_stays():
    x = np.eye(6)
    links = answer_links(find_links([-1]*6, [0]*6), [[4, 5], [0, 3]], [True, True])
    assert links.link(np.array([0, 0, 0, 1, -1, -1]), x).tolist() == [0, 0, 0, 0, 1, 1]
    tensors = links.link(torch.tensor([0, 0, 0, 1, -1, -1]), torch.eye(6))
    assert torch.is_tensor(tensors) and tensors.tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("pairs, same, tracks, words", [
    ([[0, 1], [0, 1]], [True, False], [-1]*4, "a and b are rejected as one person, and other answers or a track "
                                              "confirm it;"),
    ([[0, 1], [1, 2], [0, 2]], [True, True, False], [-1]*4, "a and c are rejected .* confirm it through b;"),
    ([[0, 1], [2, 3], [0, 3]], [True, True, False], [-1, 5, 5, -1], "a and d are rejected .* through b, c;"),
    ([[1, 2]], [False], [-1, 5, 5, -1], "b and c are rejected .* or correct the track")],
    ids=["directly", "chain", "through-a-track", "within-a-track"])
def test_a_contradiction_is_one_sentence(pairs, same, tracks, words):
    with pytest.raises(DataError, match=words) as caught:
        answer_links(find_links(tracks, [0]*4), pairs, same, ["a", "b", "c", "d"])
    assert "\n" not in str(caught.value)


def test_a_viewer_overrules_tracks_at_the_same_time():
    tracks, times = [0, 0, 1, 1, 2, 2], [0, 9, 3, 8, 4, 7]
    links = find_links(tracks, [0]*6, times)
    assert links.apart.tolist() == [[0, 1], [0, 2], [1, 2]]
    told = answer_links(links, [[0, 2]], [True])
    assert len(told.rejected) == 2 and told.people[0] == told.people[2]
    y = told.link(np.zeros(6, np.int64), np.eye(6))
    assert y[0] == y[2] == y[1] == y[3] != y[4]


def test_some_of_the_images():
    pids, camids, tracks, labels, pairs, same, x = problem(2)
    links = answer_links(find_links(tracks, camids), pairs, same)
    some = links.among(np.arange(0, 60, 2))
    assert isinstance(some, AnswerLinks) and some.people.tolist() == links.people[::2].tolist()
    assert len(some.link(labels[::2], x[::2])) == 30


@pytest.mark.parametrize("labels", [[0, 1, 1], [-1, -1, 1], [0, 0, 0]], ids=["parted", "noise", "joined"])
def test_labels_that_break_an_answer_are_refused(labels):
    links = answer_links(find_links([-1]*3, [0]*3), [[0, 1], [0, 2]], [True, False])
    check_answers([0, 0, 1], links, "good")
    check_answers([0, 0, -1], links, "good")
    with pytest.raises(RunError, match="method 'bad' do not keep to the answers"): check_answers(labels, links, "bad")
    check_answers(labels, find_links([-1]*3, [0]*3), "without answers")


def test_answers_about_a_part_of_the_images_leave_out_tracks_that_are_not_in_it():
    links = find_links([0, 0, 1, 1, 2, 2], [0]*6, [0, 5, 1, 2, 1, 3])    # each track overlaps both others
    part = answer_links(links.among(np.arange(2, 6)), [], [])
    assert part.rejected.tolist() == [[0, 1]] and len(links.apart) == 3
