"""Tracks and times as columns of a split: from tables, patterns and names, kept by subsets, refused where wrong."""
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from upl_reid.core import DataError
from upl_reid.data.benchmarks import load_domain
from upl_reid.data.own_crops import as_domain, list_images, load_folder, make_listing, write_table
from upl_reid.data.image_bank import ImageBank
from upl_reid.data.splits import Split, Unlabelled
from upl_reid.data.synthetic import write_domain
from upl_reid.data.tracks import moment, seconds_in_cameras, seconds_of_text, track_numbers, walk_times
from upl_reid.deployment.gallery import Gallery
from upl_reid.experiments.runs import domain_fingerprint


def crops(root, *names):
    for i, name in enumerate(names):
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8), (i, 20, 30)).save(root/name)


# ---------------------------------------------------------------- columns of a split

def test_columns_are_checked_copied_and_read_only():
    tracks, times = np.array([3, 3, -1]), [1, np.inf, np.nan]
    split = Split(list("abc"), [1, 1, 2], [0, 0, 0], tracks=tracks, times=times)
    tracks[0] = 9
    assert split.tracks.tolist() == [3, 3, -1] and split.tracks.dtype == np.int64
    assert split.times[0] == 1 and np.isnan(split.times[1:]).all()
    with pytest.raises(ValueError): split.tracks[0] = 1
    with pytest.raises(ValueError): split.times[0] = 1
    assert Split(list("ab"), [1, 1], [0, 0], tracks=[-1, -1], times=[np.nan]*2).tracks is None


@pytest.mark.parametrize("tracks, message", [
    ([0, 0], "tracks has shape (2,) beside 3 paths"), ([0, 0, 0], "track 0 has images of 2 cameras"),
    ([0., 0., 1.], "tracks holds float64 values"), ([0, -2, 1], "tracks go down to -2")])
def test_wrong_tracks_are_refused(tracks, message):
    with pytest.raises(DataError, match=re.escape(message)): Split(list("abc"), [1]*3, [0, 0, 1], tracks=tracks)


@pytest.mark.parametrize("times, message", [([1., 2.], "give one for each path"), (["9:00"]*3, "are no seconds")],
                         ids=["length", "text"])
def test_wrong_times_are_refused(times, message):
    with pytest.raises(DataError, match=message): Split(list("abc"), [1]*3, [0]*3, times=times)


@pytest.mark.parametrize("pids, message", [
    ([[1], [1, 2]], "rows of different lengths"), (np.array([1, 2**63], np.uint64), "below 2**63"),
    ([1., 2.], "float64 values")], ids=["ragged", "huge", "floats"])
def test_wrong_identities_are_refused(pids, message):
    with pytest.raises(DataError, match=re.escape(message)): Split(["a", "b"], pids, [0, 0])
    assert Split(["a"], np.array([2**63 - 1], np.uint64), [0]).pids.tolist() == [2**63 - 1]


@pytest.mark.parametrize("make", [lambda paths: Split(paths, [1]*6, [0]*6), lambda paths: Unlabelled(paths, [0]*6),
                                  lambda paths: ImageBank(paths, (8, 4))], ids=["split", "unlabelled", "bank"])
@pytest.mark.parametrize("kind", [str, Path])
def test_one_path_is_no_list_of_paths(make, kind):
    with pytest.raises(DataError, match="ab.jpg is one path; give a list"): make(kind("ab.jpg"))


def test_subset_and_withhold_keep_tracks_and_times():
    rng = np.random.default_rng(0)
    camids = rng.integers(0, 4, 60)
    tracks = np.where(rng.random(60) < .2, -1, 4*rng.integers(0, 6, 60) + camids)
    split = Split([f"{i}.jpg" for i in range(60)], rng.integers(0, 9, 60), camids, tracks=tracks, times=rng.random(60))
    rows = rng.permutation(60)[:25]
    part = split.subset(rows)
    for i, row in enumerate(rows):
        assert part.tracks[i] == tracks[row] and part.times[i] == split.times[row] and part.camids[i] == camids[row]
    target = part.withhold()
    assert target.tracks.tolist() == part.tracks.tolist() and target.times.tolist() == part.times.tolist()
    assert target.without_tracks().tracks is None and target.without_tracks().times is None
    assert target.without_tracks().paths == target.paths


# ---------------------------------------------------------------- from text

@pytest.mark.parametrize("text, seconds", [
    ("12", 12), ("1e5", 1e5), ("-3.5", -3.5), ("0:01", 60), ("23:59:59.5", 86399.5), ("2024-02-29", 1709164800),
    ("2024-02-29T00:00:01Z", 1709164801), ("2024-02-29T01:00:01+01:00", 1709164801)])
def test_seconds_of_text(text, seconds): assert seconds_of_text(f" {text} ") == seconds


@pytest.mark.parametrize("text", ["", "noon", "１２", "nan", "inf", "1e999", "2024-13-01", "正午", "12,5",
                                  "9999999-01-01"])
def test_other_text_is_no_time(text): assert np.isnan(seconds_of_text(text))


@pytest.mark.parametrize("text, date", [
    ("20240501_090003", True), ("20240501090003", True), ("20240501T090003", True), ("2024-05-01 09:00:03", True),
    ("20240501", False), ("20241301090003", False), ("1714554003123", False), ("9:00:03", False), ("-3.5", False)])
def test_a_text_is_one_time_for_training_and_search(text, date):
    gallery = Gallery(2, None)
    gallery.add(np.eye(2), ["a", "b"], times=[text, "noon"])
    since = "2024-05-01T09:00:03" if date else seconds_of_text(text)
    assert seconds_of_text(text) == (1714554003 if date else moment(since)[1])
    for limit, there in ((since, ["a"]), ("2024-05-01T09:00:04" if date else since + 1, [])):
        assert list(gallery.search(np.eye(2), since=limit).path.unique()) == there


@pytest.mark.parametrize("time", [3, 3., np.int64(3), np.float64(3), "3", "0:00:03", "٠:٠٠:٠٣"], ids=repr)
def test_numbers_are_times(time): assert moment(time) == (False, 3.)


@pytest.mark.parametrize("time", [float("nan"), float("inf"), "1_0", "1e999", "", None, "noon"], ids=repr)
def test_what_is_no_moment(time): assert moment(time) is None


def test_track_numbers_are_pairs_of_camera_and_name():
    rng = np.random.default_rng(1)
    cameras = rng.integers(0, 3, 80).tolist()
    names = [["", "7", "a, b", "追跡"][i] for i in rng.integers(0, 4, 80)]
    numbers = track_numbers(cameras, names)
    for i in range(80):
        assert (numbers[i] == -1) == (names[i] == "")
        for j in range(80):
            if names[i] and names[j]:
                assert (numbers[i] == numbers[j]) == (cameras[i] == cameras[j] and names[i] == names[j])
    used = np.unique(numbers[numbers >= 0])
    assert used.tolist() == list(range(len(used)))


# ---------------------------------------------------------------- tables and patterns

def test_a_table_with_tracks_in_any_script(tmp_path):
    crops(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
    (tmp_path/"t.csv").write_text('path,camid,time,track\na.jpg,庭,9:00,"1, left"\nb.jpg,庭,9:01,"1, left"\n'
                                  'c.jpg,door,,"1, left"\nd.jpg,door,soon,追\ne.jpg,庭,9:05,\n', encoding="utf-8")
    images = list_images(tmp_path/"t.csv")
    assert images.track.tolist() == ["1, left", "1, left", "1, left", "追", ""]
    train = as_domain(images).train
    a, b, c, d, e = train.tracks.tolist()
    assert a == b and len({a, c, d}) == 3 and e == -1
    assert train.times[:2].tolist() == [32400, 32460] and np.isnan(train.times[2:4]).all() and train.times[4] == 32700
    again = list_images(write_table(images, tmp_path/"again.csv"))
    assert again.equals(images)


def test_a_table_without_tracks_is_written_without_the_column(tmp_path):
    crops(tmp_path, "cam1/a.jpg")
    head = write_table(list_images(tmp_path/"cam1"), tmp_path/"t.csv").read_text().splitlines()[0]
    assert head == "path,camid,pid,split,time"
    assert load_folder(tmp_path/"cam1").train.tracks is None and load_folder(tmp_path/"cam1").train.times is None


def test_a_pattern_finds_tracks_and_times(tmp_path):
    crops(tmp_path, "0001/0001C1T0001F001.jpg", "0001/0001C1T0001F002.jpg", "0001/0001C2T0001F001.jpg",
          "0002/0002C1T0001F001.jpg")
    images = list_images(tmp_path, r"(?P<track>\d+C(?P<cam>\d+)T\d+)F(?P<time>\d+)")
    train = as_domain(images).train
    assert train.tracks.tolist() == [0, 0, 1, 2] and train.camids.tolist() == [0, 0, 1, 0]
    assert train.times.tolist() == [1, 2, 1, 1] and images.track.tolist()[0] == "0001C1T0001"


def test_images_of_unknown_cameras_in_query_and_gallery_share_no_track(tmp_path):
    crops(tmp_path, *(f"{n}.jpg" for n in "abc"))
    rows = [(tmp_path/f"{n}.jpg", "", "7", split, "", "t") for n, split in zip("abc", ("train", "query", "gallery"))]
    domain = as_domain(make_listing(rows))
    assert len({int(s.tracks[0]) for s in (domain.train, domain.query, domain.gallery)}) == 3


# ---------------------------------------------------------------- benchmarks

@pytest.fixture(scope="module", params=["plaza", "station"])
def network(request, tmp_path_factory):
    args = dict(train_ids=6, test_ids=12, cameras=4, size=(16, 16))
    return load_domain(request.param, write_domain(request.param, tmp_path_factory.mktemp("net"), **args))


def test_a_visit_of_an_embedded_network_is_a_track_with_times(network):
    seen = {}
    for split in (network.train, network.query, network.gallery):
        for path, pid, cam, track, time in zip(split.paths, split.pids, split.camids, split.tracks, split.times):
            person, k = path.name.split("_")[2], int(path.stem[-2:])
            seen.setdefault((int(pid), person, int(cam)), []).append((int(track), k, float(time)))
    assert len({t[0][0] for t in seen.values()}) == len(seen)           # as many tracks as visits
    for images in seen.values():
        assert len({track for track, _, _ in images}) == 1
        start = {time - 5*k for _, k, time in images}
        assert max(start) - min(start) < 1e-6
    people = {}
    for (pid, person, _), images in seen.items():
        people.setdefault((pid, person), []).append((min(t for *_, t in images), max(t for *_, t in images)))
    for visits in people.values():                                       # nobody is in two cameras at once
        visits.sort()
        assert all(a[1] < b[0] for a, b in zip(visits, visits[1:]))


def test_walks_depend_on_network_seed_and_person_only():
    seen = [("0001_000000", 0, 0), ("0002_000001", 2, 3)]
    first = walk_times("plaza", 0, 4, seen)
    assert walk_times("plaza", 0, 4, seen[::-1]).tolist() == first.tolist()[::-1]
    assert (walk_times("plaza", 1, 4, seen) != first).all() and (walk_times("campus", 0, 4, seen) != first).all()


def test_a_network_without_its_spec_has_tracks_and_no_times(tmp_path):
    folder = write_domain("plaza", tmp_path, train_ids=2, test_ids=2, cameras=2, size=(16, 16))
    mark = domain_fingerprint(load_domain("plaza", folder), contents=False)
    for spec in ("[1]", '{"name": "plaza"}', '{"name": "plaza", "cameras": 2, "seed": "a"}',
                 '{"name": "plaza", "cameras": "2", "seed": 0}'):
        (folder/"spec.json").write_text(spec)
        domain = load_domain("plaza", folder)
        assert domain.train.times is None and domain.train.tracks is not None, spec
    assert domain_fingerprint(domain, contents=False) == mark            # tracks and times do not rename a domain


def test_tracks_of_mars_and_none_of_market(tmp_path):
    crops(tmp_path/"MARS", "bbox_train/0001/0001C1T0001F001.jpg", "bbox_train/0001/0001C1T0001F002.jpg",
          "bbox_train/0001/0001C1T0002F001.jpg", "bbox_train/0002/0002C1T0001F001.jpg",
          "bbox_test/0003/0003C1T0001F001.jpg", "bbox_test/0003/0003C1T0001F002.jpg",
          "bbox_test/0003/0003C2T0001F001.jpg", "bbox_test/00-1/00-1C1T0001F001.jpg")
    mars = load_domain("mars", tmp_path)
    assert mars.train.tracks.tolist() == [0, 0, 1, 2] and mars.train.times is None
    assert mars.query.tracks[0] == mars.gallery.tracks[1] == mars.gallery.tracks[2] != mars.gallery.tracks[3]
    crops(tmp_path/"market1501", *(f"{f}/0001_c{c}s1_000001_00.jpg" for f, c in (
        ("bounding_box_train", 1), ("query", 1), ("bounding_box_test", 2))))
    assert load_domain("market1501", tmp_path).train.tracks is None


def test_numbers_and_empty_cells_as_names_of_tracks():
    assert track_numbers([0, 0, 0], [0, 0, 1]).tolist() == [0, 0, 1]
    assert track_numbers([0]*5, [float("nan"), None, "", -1, "a"]).tolist() == [-1]*4 + [0]


@pytest.mark.parametrize("times, seconds", [
    (np.array(["2024-05-01", "NaT"], "datetime64[s]"), [1714521600, np.nan]),
    (np.array(["2024-05-01", "NaT"], "datetime64[ns]"), [1714521600, np.nan]),
    (np.array([2, 3], "timedelta64[m]"), [120, 180]), ([1, 2], [1, 2])], ids=str)
def test_dates_of_numpy_are_seconds(times, seconds):
    np.testing.assert_array_equal(Split(["a", "b"], [1, 2], [0, 0], times=times).times, np.array(seconds, float))
    np.testing.assert_array_equal(Unlabelled(["a", "b"], [0, 0], times=times).times, np.array(seconds, float))


def test_missing_values_of_pandas_are_no_tracks():
    for column in (pd.Series([1, None, 1], dtype="Int64"), pd.Series(["1", None, "1"], dtype="string")):
        assert track_numbers([0]*3, column).tolist() == [0, -1, 0]


def test_dates_among_other_things_are_refused():
    with pytest.raises(DataError, match="dates among other things"):
        Split(list("abc"), [1, 2, 3], [0]*3, times=[np.datetime64("2024-05-01"), None, np.datetime64("NaT")])


def test_times_of_unknown_cameras_are_not_compared():
    found = seconds_in_cameras(["5", "2026-01-01", "", "7"], ["hall", "", "hall", "door"])
    assert np.array_equal(found, [5., np.nan, np.nan, 7.], equal_nan=True) and found.dtype == np.float64
