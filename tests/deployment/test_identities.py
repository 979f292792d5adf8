"""Identities against loops over pairs: groups, known names, open set, stable names, tables in any script."""
import csv
import os
import re

import numpy as np
import pytest
import torch

from upl_reid.components.tracks import answer_links, find_links
from upl_reid.core import ConfigError, DataError
from upl_reid.deployment import identities as I
from upl_reid.deployment.identities import Identities, UNKNOWN
from upl_reid.deployment.match_calibration import Calibration

TOLD = Calibration(12., -6., (.3, .5, .7))


def crowd(people=6, cameras=3, each=4, noise=.1, seed=0, d=16):
    "Unit vectors of people in cameras, easy to tell apart, and who and where they are."
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(d, d)))[0][:people]
    pids, camids = np.repeat(np.arange(people), cameras*each), np.tile(np.repeat(np.arange(cameras), each), people)
    x = centres[pids] + noise*rng.normal(size=(len(pids), d))
    return (x/np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), pids, camids


def unit(x): return (x/np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def same_partition(names, pids):
    return len(set(zip(names, pids))) == len(set(names)) == len(set(pids))


# ---------------------------------------------------------------- groups and means in loops

@pytest.mark.parametrize("seed", range(5))
def test_member_cosines_and_known_means_against_loops(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels = rng.integers(-1, 7, 40)
    for i, got in enumerate(I.member_cosines(x, labels)):
        others = [x[i] @ x[j] for j in range(40) if j != i and labels[j] == labels[i] >= 0]
        assert got == pytest.approx(np.mean(others) if others else -1, abs=1e-9)
    names = [f"person {n}" for n in rng.integers(1, 12, 40)]
    kept, means = I.identity_means(x, names)
    assert kept == sorted(set(names), key=lambda n: int(n.split()[1]))              # 2 before 10
    queries = rng.normal(size=(9, 6))
    position, cosine = I.best_known(queries, means, .2)
    for q, p, c in zip(queries, position, cosine):
        scores = [np.mean([q @ x[j] for j in range(40) if names[j] == name]) for name in kept]
        assert c == pytest.approx(max(scores)) and p == (int(np.argmax(scores)) if max(scores) >= .2 else -1)


def test_without_known_identities_nothing_is_known():
    position, cosine = I.best_known(np.eye(3), np.zeros((0, 3)), -1.)
    assert position.tolist() == [-1]*3 and I.member_cosines(np.eye(3), np.full(3, -1)).tolist() == [-1]*3


@pytest.mark.parametrize("seed", range(4))
def test_baselines_against_loops(seed):
    rng = np.random.default_rng(seed)
    x, cams = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    names = [str(n) for n in rng.integers(0, 5, 20)]
    for threshold in (-2., .8):
        for i, got in enumerate(I.nearest_crops(x[20:], x[:20], names, threshold)):
            best = max(range(20), key=lambda j: x[20 + i] @ x[j])
            assert got == (names[best] if x[20 + i] @ x[best] >= threshold else UNKNOWN)
    for threshold in (.7, None):
        group = list(range(30))
        def join(a, b):
            old, new = group[b], group[a]
            for k in range(30): group[k] = new if group[k] == old else group[k]
        for i in range(30):
            other = [j for j in range(30) if cams[j] != cams[i]]
            near = [max(other, key=lambda j: x[i] @ x[j])] if threshold is None else \
                [j for j in range(30) if j != i and x[i] @ x[j] >= threshold]
            for j in near: join(i, j)
        assert same_partition(I.linked_crops(x, cams, threshold, block=7).tolist(), group)


# ---------------------------------------------------------------- thresholds

def test_the_rate_is_shared_among_the_known():
    assert I.rate_threshold(TOLD, .01) == I.Threshold(.5)
    assert I.rate_threshold(TOLD, .1, 10).cosine == pytest.approx(.5)
    strict = I.rate_threshold(TOLD, .01, 40)
    assert strict.cosine == .7 and "40 known identities at the rate 0.01 need a threshold for 0.0003" in strict.note
    assert "up to 4 % of strangers' crops" in strict.note


def test_wrong_rates_and_no_calibration_are_refused():
    with pytest.raises(ConfigError, match="the model has no calibration"): I.rate_threshold(None, .01)
    with pytest.raises(ConfigError, match="false-match rate 0.5 was not measured"): I.rate_threshold(TOLD, .5)
    with pytest.raises(ConfigError, match="no calibration"): I.identify(np.eye(3), np.zeros(3, int), None)


def test_strangers_get_known_names_as_rarely_as_stated():
    "Thresholds are quantiles of the very comparisons that are made: the bound holds for crops, not for pairs."
    rng = np.random.default_rng(0)
    def unit(n): return (v := rng.normal(size=(n, 24)))/np.linalg.norm(v, axis=1, keepdims=True)
    known, strangers, means = unit(20), unit(4000), None
    kept, means = I.identity_means(known, [str(i) for i in range(20)])
    pairs = (unit(20_000) @ means.T).ravel()
    told = Calibration(10., 0., tuple(np.quantile(pairs, [.9, .99, .999, .9999])))
    for rate in (.1, .01):
        position, _ = I.best_known(strangers, means, I.rate_threshold(told, rate, 20).cosine)
        assert (position >= 0).mean() <= 1.3*rate
        loose, _ = I.best_known(strangers, means, told.threshold(rate))
        assert (loose >= 0).mean() > 4*rate                              # what the rate of a single pair would let pass


# ---------------------------------------------------------------- who is who

def test_people_are_found_across_cameras_and_strangers_are_unknown():
    x, pids, camids = crowd()
    x = np.concatenate([x, np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0][10:12].astype(np.float32)])
    camids = np.r_[camids, 0, 1]
    found = I.identify(x, camids, TOLD)
    assert found.names[-2:] == [UNKNOWN]*2 and np.isnan(found.confidence[-2:]).all() and not found.notes
    assert same_partition(found.names[:-2], pids.tolist()) and (found.confidence[:-2] > .9).all()
    assert list(dict.fromkeys(found.names[:-2])) == [f"person {i}" for i in range(1, 7)]   # by first appearance
    assert I.identify(x, camids, TOLD).names == found.names


def test_known_names_are_kept_and_taken_by_new_crops():
    x, pids, camids = crowd()
    given = [""]*len(x)
    given[0] = given[1] = "佐藤, 花子"                                    # person 0
    given[12] = "person 4"                                               # person 1
    given[13] = "person 9"                                               # the model disagrees: kept all the same
    found = I.identify(x, camids, TOLD, .1, given=given)
    assert [n for n, g in zip(found.names, given) if g] == [g for g in given if g]
    assert found.confidence[[0, 1, 12, 13]].tolist() == [1]*4
    assert set(found.names[:12]) == {"佐藤, 花子"}
    assert set(found.names[24:]) == {f"person {i}" for i in range(10, 14)}                 # after the largest number
    others = (x[24:26], ["Ann", "Ann"])                                  # crops that are not among those to name
    again = I.identify(x, camids, TOLD, .1, others=others, taken=["person 20"])
    assert set(again.names[24:36]) == {"Ann"} and set(again.names[:12]) == {"person 21"}


def test_a_whole_track_has_one_answer_and_is_an_identity():
    x, pids, camids = crowd(noise=.35, seed=1)
    tracks = pids*3 + camids
    links = find_links(tracks, camids)
    found = I.identify(x, camids, TOLD, links=links)
    for track in np.unique(tracks): assert len({n for n, t in zip(found.names, tracks) if t == track}) == 1
    assert UNKNOWN not in found.names
    lone = np.concatenate([x, np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16)))[0][[10, 10]]])
    links = find_links(np.r_[tracks, 99, 99], np.r_[camids, 0, 0])
    names = I.identify(lone, np.r_[camids, 0, 0], TOLD, links=links).names
    assert names[-1] == names[-2] != UNKNOWN and names.count(names[-1]) == 2
    one = find_links(np.r_[np.full(len(x), -1), 99], np.r_[camids, 0])   # a track of one crop proves nothing
    assert I.identify(lone[:-1], np.r_[camids, 0], TOLD, links=one).names[-1] == UNKNOWN


def test_tracks_at_the_same_time_are_two_people():
    x = np.tile(np.eye(4, dtype=np.float32)[0], (8, 1)) + 1e-3*np.random.default_rng(0).normal(size=(8, 4))
    x = x/np.linalg.norm(x, axis=1, keepdims=True)
    tracks, camids = np.repeat([0, 1], 4), np.zeros(8, int)
    together = I.identify(x, camids, TOLD, links=find_links(tracks, camids, [0, 1, 2, 3, 9, 10, 11, 12]))
    apart = I.identify(x, camids, TOLD, links=find_links(tracks, camids, [0, 1, 2, 3, 1, 2, 3, 4]))
    assert len({*together.names}) == 1 and len({*apart.names}) == 2 and UNKNOWN not in apart.names


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_few_crops(n):
    found = I.identify(np.eye(8)[:n], np.arange(n), TOLD)
    assert found.names == [UNKNOWN]*n
    assert I.identify(np.eye(8)[:n], np.arange(n), TOLD, given=["Ann"]*n).names == ["Ann"]*n


def test_a_crop_alone_in_its_camera_is_found_in_another():
    x, pids, camids = crowd(people=8, cameras=3, each=3)
    alone = np.flatnonzero((camids == 2) & (pids < 3))[::3]                     # one crop of each of three people
    groups = I.group_crops(x, np.where(np.isin(np.arange(len(x)), alone), 10 + pids, camids))
    for i in alone: assert groups[i] >= 0 and set(pids[groups == groups[i]]) == {pids[i]}


@pytest.mark.parametrize("seed", range(4))
def test_cameras_to_center_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    x, camids = torch.as_tensor(rng.normal(size=(12, 3))), torch.as_tensor(rng.integers(0, 9, 12))
    before, wanted = camids.clone(), camids.clone()
    several = [c for c in range(9) if (camids == c).sum() > 1]
    for i in range(12):
        if (camids == camids[i]).sum() > 1: continue
        wanted[i] = min(several, key=lambda c: float((x[camids == c].mean(0) - x[i]).norm()))
    assert I.cameras_to_center(x, camids).tolist() == wanted.tolist() and camids.equal(before)
    each = torch.arange(12)
    assert I.cameras_to_center(x, each).equal(each)                             # every crop is alone


def test_copies_of_one_picture_are_one_person():
    x = np.tile(np.eye(8)[0], (6, 1))
    assert I.identify(x, np.zeros(6, int), TOLD).names == ["person 1"]*6


def test_more_copies_than_neighbours_are_one_person():
    x, pids, camids = crowd(people=5, cameras=3, each=4)
    x, pids, camids = (np.concatenate([a, np.repeat(a[:1], 60, 0)]) for a in (x, pids, camids))
    names = I.identify(x, camids, TOLD).names
    assert len(set(names[-60:])) == 1 and names[-1] == names[0] != UNKNOWN


@pytest.mark.parametrize("seed", range(4))
def test_copies_are_united_as_by_a_loop(seed):
    rng = np.random.default_rng(seed)
    x, labels = rng.integers(0, 3, (14, 2)).astype(np.float32), rng.integers(-1, 4, 14)
    found = I.unite_copies(x, labels)
    for i in range(14):
        same = [j for j in range(14) if (x[j] == x[i]).all()]
        sure = [labels[j] for j in same if labels[j] >= 0]
        assert {found[j] for j in same} == {found[i]}
        if len(same) == 1: assert found[i] == labels[i]
        elif sure: assert sure.count(found[i]) == max(map(sure.count, sure))
        else: assert found[i] > labels.max() and [j for j in range(14) if found[j] == found[i]] == same


# ---------------------------------------------------------------- quality in loops

@pytest.mark.parametrize("seed", range(6))
def test_pair_quality_against_loops(seed):
    rng = np.random.default_rng(seed)
    pids, camids = rng.integers(0, 6, 50), rng.integers(0, 3, 50)
    names = [UNKNOWN if rng.random() < .2 else f"p{rng.integers(0, 8)}" for _ in range(50)]
    claimed = true = both = 0
    for i in range(50):
        for j in range(i):
            if camids[i] == camids[j]: continue
            one, said = pids[i] == pids[j], names[i] == names[j] != UNKNOWN
            claimed, true, both = claimed + said, true + one, both + (said and one)
    got = I.pair_quality(names, pids, camids)
    assert (got["precision"], got["recall"]) == (both/claimed, both/true)
    assert got["unknown"] == pytest.approx(names.count(UNKNOWN)/50)


@pytest.mark.parametrize("seed", range(6))
def test_open_set_quality_against_loops(seed):
    rng = np.random.default_rng(seed)
    known = ["Ann", "Ben", "person 1"]
    names = [str(rng.choice([*known, "person 2", UNKNOWN])) for _ in range(60)]
    truth = [str(rng.choice([*known, "stranger", "person 2"])) for _ in range(60)]
    strangers = [n for n, t in zip(names, truth) if t not in known]
    friends = [(n, t) for n, t in zip(names, truth) if t in known]
    claimed = [(n, t) for n, t in zip(names, truth) if n in known]
    assert I.open_set_quality(names, truth, known) == pytest.approx(dict(
        strangers_recognised=np.mean([n not in known for n in strangers]),
        known_found=np.mean([n == t for n, t in friends]), known_precision=np.mean([n == t for n, t in claimed])))


def test_quality_of_nothing_is_no_number():
    assert all(np.isnan(v) for v in I.pair_quality([], [], []).values())
    got = I.pair_quality([UNKNOWN]*3, [1, 1, 2], [0, 1, 1])
    assert np.isnan(got["precision"]) and got["recall"] == 0 and got["unknown"] == 1
    assert all(np.isnan(v) for v in I.open_set_quality([], [], ["Ann"]).values())


# ---------------------------------------------------------------- tables

NAMES = ["a, b.jpg", 'say "x".jpg', "庭の人.jpg", "new\nline.jpg", " spaces .jpg", "=1+2.jpg"]

@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_hostile_names_come_back(tmp_path, suffix):
    if suffix == ".parquet": pytest.importorskip("pyarrow")
    who = ["Ann, jr.", "花子", UNKNOWN, "person 1", 'the "boss"', "=cmd()"]
    paths = [str(tmp_path/"sub"/name) for name in NAMES[:-1]] + ["/elsewhere/=1+2.jpg"]
    told = np.array([1, .5, np.nan, .25, .75, 0])
    out = I.write_identities(tmp_path/f"who{suffix}", paths, ["庭", "a,b", "", "c", "d", "e"],
                             Identities(who, told, []), tracks=["1", "", "", "t,2", "", ""])
    want = {os.path.abspath(p): (n, c) for p, n, c in zip(paths, who, told) if n != UNKNOWN}
    assert I.read_known(out) == want
    if suffix == ".csv":
        with open(out, encoding="utf-8", newline="") as f: rows = list(csv.reader(f))
        assert rows[0] == ["path", "camera", "track", "identity", "confidence"] and rows[3][3:] == [UNKNOWN, ""]
        assert rows[1][0] == "sub/a, b.jpg" and rows[6][0] == "/elsewhere/=1+2.jpg"


def test_names_that_are_no_text(tmp_path):
    name, found = str(tmp_path/"a\udcff.jpg"), Identities(["Ann"], np.array([1.]), [])
    assert I.read_known(I.write_identities(tmp_path/"who.csv", [name], ["x"], found)) == {name: ("Ann", 1.)}
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="not UTF-8"): I.write_identities(tmp_path/"w.parquet", [name], ["x"], found)
    assert not (tmp_path/"w.parquet").exists()


@pytest.mark.parametrize("text, message", [
    ("", "has the columns (none)"), ("path,who\na,b\n", "has the columns path,who"),
    ("path,identity\na,unknown\nb,\nc,Unknown\nd,nan\n", "names no identity"),
    ('path,identity\na,"b\n', "cannot be divided into fields"), ("path,identity\na,b,c\n", "line 2 has 1 field more"),
    ("path,identity\na.jpg,Ann\na.jpg,花子\n", "a.jpg two identities, 'Ann' and '花子'")])
def test_wrong_known_tables_say_what_is_wrong(tmp_path, text, message):
    (tmp_path/"k.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(message)) as e: I.read_known(tmp_path/"k.csv")
    assert str(tmp_path/"k.csv") in str(e.value)


@pytest.mark.parametrize("columns", ["path, identity, camera", "path, pid, camid"])
def test_known_names_are_read_by_the_rules_of_all_tables(tmp_path, columns):
    rows = ["a,7.0,1", "b,7,1", "c,Cafe\u0301,", "d,NA,2", "a,7,1"]
    (tmp_path/"k.csv").write_text("\n".join([columns, *rows]), encoding="utf-8")
    wanted = {"a": "7", "b": "7", "c": "Caf\u00e9"}
    assert I.read_known(tmp_path/"k.csv") == {str(tmp_path/n): (who, 1.) for n, who in wanted.items()}


def test_a_known_table_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no.csv cannot be read"): I.read_known(tmp_path/"no.csv")
    (tmp_path/"x.parquet").write_text("no parquet")
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="cannot be read as Parquet"): I.read_known(tmp_path/"x.parquet")


def test_confidence_of_a_known_table_is_kept_if_it_is_a_share(tmp_path):
    (tmp_path/"k.csv").write_text("path,identity,confidence\na,Ann,.5\nb,Ann,high\nc,Ann,7\nd,Ann,\n")
    assert [c for _, c in I.read_known(tmp_path/"k.csv").values()] == [.5, 1, 1, 1]


def test_groups_are_those_of_the_clustering_of_adaptation():
    from upl_reid.components.label_choice import choose_clustering
    from upl_reid.methods.baseline import global_ways, possible_scales
    x, _, camids = crowd(noise=.3)
    ways = global_ways(possible_scales(), center=True, eps=.5)
    best = choose_clustering(ways, torch.tensor(x), torch.tensor(camids))[0]
    assert I.group_crops(x, camids).tolist() == ways[best](torch.tensor(x), torch.tensor(camids)).tolist()


# ---------------------------------------------------------------- answers about pairs

def told_pairs(rng, pids, count):
    "Pairs of crops and what their true identities say."
    pairs = np.unique(np.sort(rng.integers(0, len(pids), (count, 2)), 1), axis=0)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    return pairs, pids[pairs[:, 0]] == pids[pairs[:, 1]]


def keeps(names, pairs, same):
    "Whether names keep to all answers, in a loop."
    return all(names[a] == names[b] != UNKNOWN if s else names[a] != names[b] or names[a] == UNKNOWN
               for (a, b), s in zip(pairs, same))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("with_tracks", [False, True], ids=["alone", "with-tracks"])
def test_identities_keep_to_all_answers(seed, with_tracks):
    rng = np.random.default_rng(seed)
    x, pids, camids = crowd(noise=.45, seed=seed)                        # people that are confused without answers
    tracks = np.where(rng.random(len(pids)) < .5, 3*pids + camids, -1) if with_tracks else np.full(len(pids), -1)
    pairs, same = told_pairs(rng, pids, 60)
    given = np.where(rng.random(len(pids)) < .1, [f"who {p}" for p in pids], "")
    links = answer_links(find_links(tracks, camids), pairs, same)
    found = I.identify(x, camids, TOLD, .1, links, given, others=(x[pids == 0][:2], ["who 0"]*2))
    assert keeps(found.names, pairs, same)
    assert all(name == who for name, who in zip(found.names, given) if who)
    assert np.isnan(found.confidence).tolist() == [name == UNKNOWN for name in found.names]


def test_without_answers_they_would_be_broken_and_identities_worse():
    broken, quality = 0, []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, pids, camids = crowd(noise=.45, seed=seed)
        pairs, same = told_pairs(rng, pids, 60)
        links = answer_links(find_links([-1]*len(x), camids), pairs, same)
        names = [I.identify(x, camids, TOLD, .1, given).names for given in (None, links)]
        broken += not keeps(names[0], pairs, same)
        quality.append([list(I.pair_quality(found, pids, camids).values())[:2] for found in names])
    without, told = np.nanmean(quality, 0)
    assert broken == 20 and (told > without).all()


@pytest.mark.parametrize("seed", range(30))
def test_known_identities_under_answers_against_loops(seed):
    rng = np.random.default_rng(seed)
    people = np.repeat(np.arange(12), 2)
    x, means = np.repeat(rng.normal(size=(12, 4)), 2, 0), rng.normal(size=(5, 4))
    two, least = rng.integers(0, 14, (10, 2)), -.5
    two = two[two[:, 0] != two[:, 1]]
    barred = {int(p): set(rng.integers(0, 5, 2).tolist()) for p in rng.integers(0, 12, 4)}
    position, cosine = I.best_allowed(x, means, least, people, two, barred)
    plain = I.best_known(x, means, least)
    about = {*two.ravel().tolist(), *barred}
    has: dict = {}
    while True:                                                          # the best allowed pair, again and again
        allowed = [(float(x[2*p] @ means[k]), -p, -k) for p in range(12) for k in range(5)
                   if p in about and p not in has and x[2*p] @ means[k] >= least and k not in barred.get(p, ())
                   and not any(has.get(int(b if a == p else a)) == k for a, b in two if p in (a, b))]
        if not allowed: break
        _, p, k = max(allowed)
        has[-p] = -k
    for i, p in enumerate(people.tolist()):
        if p not in about: assert (position[i], cosine[i]) == (plain[0][i], plain[1][i])
        else:
            assert position[i] == has.get(p, -1)
            assert cosine[i] == pytest.approx(x[i] @ means[has[p]] if p in has else -1.)


def test_a_confirmed_crop_that_fits_badly_stays_with_its_person():
    x, pids, camids = crowd(people=3)
    x, camids = np.concatenate([x, np.linalg.svd(x)[2][-1:]]), np.r_[camids, 1]     # like none of the others
    assert I.identify(x, camids, TOLD, .01).names[-1] == UNKNOWN
    links = answer_links(find_links([-1]*len(x), camids), [[0, len(x) - 1]], [True])
    found = I.identify(x, camids, TOLD, .01, links)
    assert found.names[-1] == found.names[0] == found.names[1]
    apart = answer_links(find_links([-1]*len(x), camids), [[0, 1]], [False])
    names = I.identify(x, camids, TOLD, .01, apart).names
    assert names[0] != names[1] and UNKNOWN in (names[0], names[1])


def test_names_that_contradict_answers_are_one_sentence():
    links = lambda pairs, same: answer_links(find_links([-1]*4, [0]*4), pairs, same)
    called = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert I.agree_names(["Ann", "", "", "Ben"], links([[0, 1], [1, 2]], [True, True]), called).tolist() == [
        "Ann", "Ann", "Ann", "Ben"]
    assert I.agree_names(["Ann", "", "", ""], None, called).tolist() == ["Ann", "", "", ""]
    for names, pairs, same, words in (
            (["Ann", "", "Ben", ""], [[0, 1], [1, 2]], [True, True],
             r"a.jpg \('Ann'\) and c.jpg \('Ben'\) are confirmed"),
            (["Ann", "Ann", "", ""], [[0, 1]], [False], r"a.jpg \('Ann'\) and b.jpg \('Ann'\) are two people"),
            (["Ann", "", "", "Ann"], [[0, 1], [1, 3]], [True, False], "are two people by an answer")):
        with pytest.raises(DataError, match=words) as caught: I.agree_names(names, links(pairs, same), called)
        assert "\n" not in str(caught.value) and "withdraw the answer" in str(caught.value)


def test_answers_about_known_crops_elsewhere():
    paths, known = ["/n/a.jpg", "/n/b.jpg", "/n/c.jpg"], {"/old/x.jpg": "Ann", "/old/y.jpg": "Ben", "/n/c.jpg": "Cem"}
    rows = [("/n/a.jpg", "/old/x.jpg", True), ("/old/y.jpg", "/n/b.jpg", False), ("/n/a.jpg", "/n/c.jpg", False),
            ("/old/x.jpg", "/old/y.jpg", False), ("/n/a.jpg", "/who/knows.jpg", True)]
    assert I.names_by_answers(paths, ["", "", "Cem"], rows, known) == (["Ann", "", "Cem"], [(1, "Ben")])
    more = ("/n/a.jpg", "/old/y.jpg", True)
    with pytest.raises(DataError, match="a.jpg is 'Ann', and an answer confirms it as 'Ben'"):
        I.names_by_answers(paths, ["", "", ""], [*rows, more], known)
    names, barred = I.names_by_answers(paths, ["", "", ""], [*rows, ("/n/a.jpg", "/old/x.jpg", False)], known)
    with pytest.raises(DataError, match="a.jpg is 'Ann', and an answer rejects it as 'Ann'"):
        I.agree_names(names, None, paths, barred)
    x, pids, camids = crowd(people=2, cameras=2, each=2)
    links = answer_links(find_links([-1]*8, camids), [], [])
    old = (x[:2], ["Ann"]*2)
    assert I.identify(x[2:], camids[2:], TOLD, .1, links.among(np.arange(2, 8)), others=old).names[:2] == ["Ann"]*2
    barred = I.identify(x[2:], camids[2:], TOLD, .1, links.among(np.arange(2, 8)), others=old, barred=[(0, "Ann")])
    assert barred.names[0] != "Ann" and barred.names[1] == "Ann"


# ---------------------------------------------------------------- tracks and known names

def test_of_two_tracks_at_the_same_time_one_takes_a_known_name():
    "The likelier one, as with answers; without overlap both do. A crop never takes a name that it has not."
    x = unit(np.eye(4)[[0, 0, 0, 0]] + [[0]*4, [0]*4, [0, .1, 0, 0], [0, .1, 0, 0]])
    camids, ann = np.zeros(4, int), (np.eye(4)[:1], ["Ann"])
    together, later = (find_links([0, 0, 1, 1], camids, times) for times in ([0, 10, 5, 15], [0, 10, 20, 30]))
    for links in (together, answer_links(together, [], [])):
        names = I.identify(x, camids, TOLD, .1, links, others=ann).names
        assert names[:2] == ["Ann"]*2 and names[2] == names[3] != "Ann"
    assert I.identify(x, camids, TOLD, .1, later, others=ann).names == ["Ann"]*4
    assert I.identify(x, camids, TOLD, .1, others=ann, barred=[(0, "Ann")]).names[:2] == [UNKNOWN, "Ann"]


def test_new_crops_of_a_named_track_have_its_name():
    "Even if its other known crops are unlike; a track with two given names gets no third, and keeps both."
    x, camids = unit(np.tile(np.eye(4)[0], (3, 1))), np.zeros(3, int)
    links, far = find_links([0, 0, 0], camids, [0, 1, 2]), (np.tile(-np.eye(4)[0], (6, 1)), ["Ann"]*6)
    for kind in (links, answer_links(links, [], [])):
        found = I.identify(x, camids, TOLD, .1, kind, ["Ann", "", ""], far)
        assert found.names == ["Ann"]*3 and found.confidence.tolist() == [1]*3
        assert I.identify(x, camids, TOLD, .1, kind, ["Ann", "Ben", ""], far).names[:2] == ["Ann", "Ben"]


def test_a_name_that_travels_to_a_crop_that_has_it_not_is_told():
    "Over a confirmed pair, and along a track."
    called, plain = ["a.jpg", "b.jpg"], find_links([-1, -1], [0, 0])
    for links in (answer_links(plain, [[0, 1]], [True]), find_links([0, 0], [0, 0])):
        with pytest.raises(DataError, match="b.jpg is 'Ann', and an answer rejects it as 'Ann'"):
            I.agree_names(["Ann", ""], links, called, [(1, "Ann")])
        assert I.agree_names(["Ann", ""], links, called, [(1, "Ben")]).tolist() == ["Ann", "Ann"]
