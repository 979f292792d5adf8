"""Must-links and cannot-links of tracks against loops over images, and in the pseudo-labels of a run."""
import numpy as np
import pytest
import torch

from upl_reid.components.tracks import (
    check_tracks, find_links, join_tracks, overlapping_tracks, part_tracks, track_means, TrackLinks)
from upl_reid.core import ConfigError, DataError
from upl_reid.experiments.config import RunConfig
from upl_reid.training.loop import adapt


def problem(seed, n=70):
    "Tracks of three cameras with gaps, unknown times, noise and features with small whole numbers."
    rng = np.random.default_rng(seed)
    camids = rng.integers(0, 3, n)
    tracks = np.where(rng.random(n) < .2, -1, 3*rng.integers(0, 6, n) + camids)
    times = np.where(rng.random(n) < .2, np.nan, rng.integers(0, 12, n))
    labels = np.where(rng.random(n) < .2, -1, rng.integers(0, 4, n))
    return tracks, camids, times, labels, rng.integers(-2, 3, (n, 5)) + rng.random((n, 5))*.01


def naive_overlaps(tracks, camids, times):
    span = {}
    for i, track in enumerate(tracks.tolist()):
        if track < 0 or np.isnan(times[i]): continue
        low, high, _ = span.get(track, (np.inf, -np.inf, 0))
        span[track] = min(low, times[i]), max(high, times[i]), camids[i]
    return sorted([a, b] for a in span for b in span if a < b and span[a][2] == span[b][2]
                  and span[a][0] < span[b][1] and span[b][0] < span[a][1])


def naive_join(labels, tracks):
    out = labels.copy()
    for i, track in enumerate(tracks):
        mine = [labels[j] for j in range(len(labels)) if tracks[j] == track and labels[j] >= 0]
        if track >= 0 and mine: out[i] = min(mine, key=lambda label: (-mine.count(label), label))
    return out


def naive_part(labels, tracks, apart, x):
    x, out = x/np.linalg.norm(x, axis=1, keepdims=True), labels.copy()
    foes = {frozenset(map(int, pair)) for pair in apart}
    for cluster in set(labels[labels >= 0].tolist()):
        centre = x[labels == cluster].mean(0)
        mine = sorted({int(t) for t in tracks[(labels == cluster) & (tracks >= 0)]})
        mine.sort(key=lambda t: -np.mean([x[i] @ centre for i in np.flatnonzero(tracks == t)]))
        kept = []
        for track in mine:
            if any(frozenset((track, other)) in foes for other in kept): out[tracks == track] = -1
            else: kept.append(track)
    return out


@pytest.mark.parametrize("seed", range(20))
def test_links_against_loops(seed):
    tracks, camids, times, labels, x = problem(seed)
    apart = overlapping_tracks(tracks, camids, times)
    assert apart.tolist() == naive_overlaps(tracks, camids, times)
    joined = join_tracks(labels, tracks)
    assert joined.tolist() == naive_join(labels, tracks).tolist()
    parted = part_tracks(joined, tracks, apart, x)
    assert parted.tolist() == naive_part(joined, tracks, apart, x).tolist()
    linked = find_links(tracks, camids, times).link(labels, x)
    used = linked[linked >= 0]
    assert set(used.tolist()) == set(range(len(set(used.tolist()))))                       # ids without gaps
    assert ((linked[:, None] == linked) & (linked >= 0) == (parted[:, None] == parted) & (parted >= 0)).all()
    for a, b in apart:                                                                     # both rules hold
        one, two = set(linked[tracks == a].tolist()), set(linked[tracks == b].tolist())
        assert len(one) == len(two) == 1 and (one != two or one == {-1})


@pytest.mark.parametrize("kind", [np.float64, np.float32, torch.float32])
def test_means_against_loops(kind):
    tracks, *_, x = problem(3)
    given = torch.tensor(x, dtype=kind) if kind is torch.float32 else x.astype(kind)
    got = track_means(given, torch.tensor(tracks))
    assert type(got) is type(given) and got.dtype == given.dtype and got is not given
    for i, track in enumerate(tracks):
        want = x[i]
        if track >= 0:
            rows = x[tracks == track]
            mean = rows.mean(0)
            want = mean/np.linalg.norm(mean)*np.linalg.norm(rows, axis=1).mean()
        np.testing.assert_allclose(np.asarray(got[i]), want, rtol=2e-5, atol=1e-5)


def test_tensors_stay_tensors_and_lists_are_taken():
    y, x = torch.tensor([0, 0, 1]), torch.eye(3)
    for out in (join_tracks(y, [5, 5, 5]), part_tracks(y, [5, 6, 7], [[5, 6]], x),
                TrackLinks(np.array([5, 5, 7]), np.zeros((0, 2), int)).link(y, x)):
        assert torch.is_tensor(out) and out.dtype == torch.int64
    assert join_tracks([0, 0, 1], [5, 5, 5]).tolist() == [0, 0, 0]


def test_nothing_known_changes_nothing():
    y, x = np.array([2, 2, 0, -1]), np.eye(4)
    links = find_links([-1]*4, [0]*4)
    assert links.apart.shape == (0, 2) and links.link(y, x).tolist() == [0, 0, 1, -1]
    assert links.means(x).tolist() == x.tolist()
    assert overlapping_tracks([0, 0, 1], [0]*3, None).shape == (0, 2)


@pytest.mark.parametrize("seed", range(5))
def test_units_against_loops(seed):
    tracks, camids, _, _, x = problem(seed)
    links = find_links(tracks, camids)
    seen, first = {}, []
    for i, track in enumerate(tracks.tolist()):
        key = ("track", track) if track >= 0 else ("image", i)
        if key not in seen:
            seen[key] = len(first)
            first.append(i)
    rows, place = links.units
    assert sorted(rows.tolist()) == first
    one, two = links.first(x, torch.tensor(camids))
    assert (one == x[rows]).all() and two.tolist() == camids[rows].tolist()
    spread = links.spread(torch.arange(len(rows)))
    for i, track in enumerate(tracks.tolist()):
        key = ("track", track) if track >= 0 else ("image", i)
        assert rows[spread[i]] == first[seen[key]]
    some = links.among(np.flatnonzero(camids == 1))
    assert some.tracks.tolist() == tracks[camids == 1].tolist() and some.apart is links.apart


@pytest.mark.parametrize("times, overlap", [
    ([0, 5, 5, 9], False), ([0, 5, 4, 9], True), ([3, 3, 0, 9], True), ([3, 3, 3, 3], False), ([0, 5, 7, 6], False)])
def test_touching_is_no_overlap(times, overlap):
    assert (len(overlapping_tracks([0, 0, 1, 1], [0]*4, times)) == 1) == overlap
    assert len(overlapping_tracks([0, 0, 1, 1], [0, 0, 1, 1], times)) == 0


def test_opposite_images_of_a_track_become_zero():
    assert track_means([[1., 0], [-1, 0], [0, 1]], [0, 0, -1]).tolist() == [[0, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize("tracks", [[0, 1], [0., 1, 2], [0, -2, 1], [[0, 1, 2]]])
def test_wrong_tracks_are_refused(tracks):
    with pytest.raises(DataError, match="beside 3 images; give each image the number of its track, or -1"):
        check_tracks(np.array(tracks), 3)


# ---------------------------------------------------------------- in a run

ARGS = dict(preset="tiny", source="plaza", target="campus", method="dbscan")

def test_a_run_without_tracks_keeps_its_identifier():
    plain = RunConfig(**ARGS)
    assert "tracks" not in plain.stated and RunConfig(**ARGS, tracks=False).id == plain.id
    used = RunConfig(**ARGS, tracks=True)
    assert used.id != plain.id and used.stated["tracks"] is True and str(used) == f"{plain} with tracks"
    assert RunConfig(**used.stated) == used


@pytest.mark.parametrize("given", [dict(ARGS, tracks=1), dict(preset="tiny", source="plaza", tracks=True)])
def test_tracks_in_a_wrong_place_are_refused(given):
    with pytest.raises(ConfigError, match="only an adaptation uses tracks"): RunConfig(**given)


def test_labels_of_an_adaptation_keep_to_the_tracks(tmp_path):
    from upl_reid.components.encoder import build_encoder
    from upl_reid.data.benchmarks import load_domain
    from upl_reid.data.image_bank import ImageBank
    from upl_reid.data.synthetic import write_domain
    from upl_reid.methods.baseline import GlobalDBSCAN
    from upl_reid.training.method import Budget
    folder = write_domain("plaza", tmp_path, train_ids=12, test_ids=1, cameras=3, size=(32, 16))
    target = load_domain("plaza", folder).train.withhold()
    bank, kept = ImageBank(target.paths, (32, 16), torch.device("cpu")), []
    def run(target, **how):
        method = GlobalDBSCAN(build_encoder("micro", (32, 16), 16), k1=8, k2=2, eps=.6, min_samples=2)
        adapt(method, target, bank, Budget(1, 1, 4), progress=False,
              save=lambda tensors, row, round: kept.append(round), **how)
        return method
    run(target)
    method = run(target, tracks=True)
    names, of = np.unique(target.tracks), lambda t: target.tracks == t
    ends = {t: (target.camids[of(t)][0], target.times[of(t)].min(), target.times[of(t)].max()) for t in names}
    naive = {(a, b) for a in names for b in names if a < b and ends[a][0] == ends[b][0]
             and ends[a][1] <= ends[b][2] and ends[b][1] <= ends[a][2]}
    assert naive and {tuple(sorted(pair)) for pair in method.links.apart.tolist()} == naive
    free = kept[0]["labels.hard"].numpy()                                   # labels of the run without tracks
    assert any(len(set(free[of(t)].tolist())) > 1 for t in names)
    assert not any("links" in name for name in method.state_dict())
    hard = kept[1]["labels.hard"].numpy()
    for track in np.unique(target.tracks): assert len(set(hard[target.tracks == track].tolist())) == 1
    for a, b in method.links.apart:
        assert hard[target.tracks == a][0] != hard[target.tracks == b][0] or hard[target.tracks == a][0] == -1
    assert torch.equal(kept[0]["features"], kept[1]["features"])         # what is stored are the images' own features
    with pytest.raises(DataError, match="no image of the target has one"): run(target.without_tracks(), tracks=True)
    with pytest.raises(DataError, match="without identities"): adapt(method, target.paths, bank, None)
