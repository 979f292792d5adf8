"""The embedded benchmark: the same bytes for the same arguments, a benchmark that can be evaluated, folders whole or
absent, the camera's formula in loops."""
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from upl_reid.data import synthetic as synth
from upl_reid.core import ConfigError, DataError, part_name
from upl_reid.data.benchmarks import load_domain
from upl_reid.data.synthetic import (
    apply_photometry, at_light, draw_camera, draw_identity, draw_person, draw_visit, LENSES, Network,
    network_identity, OUTFIT, render_image, share_outfit, sorted_box, VISITS, WARDROBES, write_domain)

ARGS = dict(train_ids=3, test_ids=12, cameras=3, size=(32, 16))
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module", params=list(WARDROBES))
def network(request, tmp_path_factory):
    return request.param, write_domain(request.param, tmp_path_factory.mktemp("first"), **ARGS)


# ---------------------------------------------------------------- what is written

def test_same_arguments_same_bytes(network, tmp_path):
    name, folder = network
    again = write_domain(name, str(tmp_path/"not"/"there"/"yet"), **ARGS, seed=0)
    assert again == tmp_path/"not"/"there"/"yet"/name and contents(again) == contents(folder)


def test_another_seed_draws_other_people(network, tmp_path):
    name, folder = network
    a, b = contents(folder), contents(write_domain(name, tmp_path, **ARGS, seed=1))
    assert not set(a.values()) & set(b.values())


def test_the_networks_differ(tmp_path):
    seen = [set(contents(write_domain(name, tmp_path, **{**ARGS, "test_ids": 1})).values()) for name in WARDROBES]
    assert len(set.union(*seen)) == sum(map(len, seen))


def test_file_names_are_market_1501s(network):
    name, folder = network
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FOLDERS, "spec.json"])
    for path in (p for f in FOLDERS for p in (folder/f).iterdir()):
        assert re.fullmatch(r"\d{4}_c[1-3]s1_\d{6}_\d\d\.jpg", path.name)
        with Image.open(path) as image: assert image.size == (16, 32) and image.mode == "RGB" and image.format == "JPEG"
    counted = {f: len(list((folder/f).iterdir())) for f in FOLDERS}
    domain = load_domain(name, folder)
    assert counted == {"bounding_box_train": len(domain.train),
                       "query": len(domain.query),
                       "bounding_box_test": len(domain.gallery)}


def test_people_of_the_splits(network):
    name, folder = network
    domain = load_domain(name, folder)
    asking = set(domain.query.pids.tolist())
    assert set(domain.train.pids.tolist()) == {1, 2, 3} and asking <= set(range(4, 16))
    assert len(asking) == 12 or name == "station" and len(asking) > 8       # there, all visits may be of one image
    assert set(domain.gallery.pids.tolist()) == {0, *range(4, 16)}          # twelve test people: one distractor
    assert all(set(s.camids.tolist()) == {0, 1, 2} for s in (domain.train, domain.query, domain.gallery))


def test_every_query_can_be_answered_by_another_camera(network):
    name, folder = network
    domain = load_domain(name, folder)
    gallery = list(zip(domain.gallery.pids.tolist(), domain.gallery.camids.tolist()))
    queries = list(zip(domain.query.pids.tolist(), domain.query.camids.tolist()))
    assert len(set(queries)) == len(queries)                                # one query of a person and camera
    for pid, cam in queries: assert any(p == pid and c != cam for p, c in gallery)
    for pid in set(domain.train.pids.tolist()):
        assert len(set(domain.train.camids[domain.train.pids == pid].tolist())) >= 2


def test_images_of_a_person_and_camera(network):
    name, folder = network
    domain, (least, most) = load_domain(name, folder), VISITS[name].images
    pairs = list(zip(domain.train.pids.tolist(), domain.train.camids.tolist()))
    assert {pairs.count(p) for p in pairs} <= set(range(least, most + 1))
    asked = list(zip(domain.query.pids.tolist(), domain.query.camids.tolist()))
    shown = [p for p in zip(domain.gallery.pids.tolist(), domain.gallery.camids.tolist()) if p[0]]
    assert {shown.count(p) for p in asked} <= set(range(max(1, least - 1), most))
    assert set(asked) <= set(shown) and (least == 1 or set(shown) == set(asked))
    assert all(shown.count(p) == 1 for p in set(shown) - set(asked))


def test_every_picture_is_different(network):
    pictures = [v for k, v in contents(network[1]).items() if k.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures) > 100


@pytest.mark.parametrize("test_ids, distractors", [(1, 1), (19, 1), (20, 2)])
def test_number_of_distractors(tmp_path, test_ids, distractors):
    folder = write_domain("plaza", tmp_path, **{**ARGS, "train_ids": 1, "test_ids": test_ids, "size": (16, 16)})
    assert len({p.name.split("_")[2] for p in (folder/"bounding_box_test").glob("0000_*")}) == distractors


def test_a_picture_does_not_depend_on_how_many_others_there_are(network, tmp_path):
    name, folder = network
    small, large = contents(folder), contents(write_domain(name, tmp_path, **{**ARGS, "train_ids": 5, "test_ids": 14}))
    train = [k for k in small if k.startswith("bounding_box_train")]
    assert train and all(small[k] == large[k] for k in train)
    assert {k for k in large if re.match("bounding_box_train/000[123]_", k)} == set(train)
    later = lambda m: f"/{int(m[1]) + 2:04d}" if int(m[1]) else m[0]
    moved = {re.sub(r"/(\d{4})", later, k): v for k, v in small.items() if k.startswith(("query", "bounding_box_test"))}
    assert all(large[k] == v for k, v in moved.items())     # test people are numbered after the training people


def test_processes_draw_the_same_pictures(network, tmp_path, monkeypatch):
    "Large networks are drawn by several processes; here the same calls run in threads, in an order of their own."
    name, folder = network
    real = synth.Parallel
    monkeypatch.setattr(synth, "Parallel", lambda n_jobs: real(n_jobs=3, backend="threading"))
    assert contents(write_domain(name, tmp_path, **ARGS)) == contents(folder)


# ---------------------------------------------------------------- found, refused, broken off

def test_found_again_and_left_alone(tmp_path, monkeypatch):
    folder = write_domain("plaza", tmp_path, **ARGS)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*")}
    monkeypatch.setattr(synth, "render_image", None)                                         # drawing again would fail
    assert write_domain("plaza", tmp_path, **{**ARGS, "size": [32, 16]}) == folder
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*")}
    assert [p.name for p in tmp_path.iterdir()] == ["plaza"]


@pytest.mark.parametrize("change", [
    dict(train_ids=4), dict(test_ids=11), dict(cameras=4), dict(size=(32, 32)), dict(seed=1)])
def test_other_arguments_are_refused(network, change):
    name, folder = network
    before = contents(folder)
    with pytest.raises(DataError, match=re.escape(str(folder)) + ".*remove it or choose another root"):
        write_domain(name, folder.parent, **{**ARGS, **change})
    assert contents(folder) == before


@pytest.mark.parametrize("foreign", ["empty folder", "images", "file", "broken spec"])
def test_foreign_folder_is_refused_and_kept(tmp_path, foreign):
    path = tmp_path/"campus"
    if foreign == "file": path.write_text("mine")
    else: path.mkdir()
    if foreign == "images": (path/"0001_c1s1_000000_00.jpg").write_bytes(b"mine")
    if foreign == "broken spec": (path/"spec.json").write_text("{")
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    with pytest.raises(DataError, match="holds something else"): write_domain("campus", tmp_path, **ARGS)
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch, error):
    real, calls = synth.render_image, []

    def breaks(*args):
        calls.append(len(list(tmp_path.rglob("*.jpg"))))
        if len(calls) == 30: raise error("the lamp went out")
        return real(*args)
    monkeypatch.setattr(synth, "render_image", breaks)
    with pytest.raises(error): write_domain("plaza", tmp_path, **ARGS)
    assert calls[-1] == 29 and not list(tmp_path.iterdir())                            # 29 pictures were there
    monkeypatch.setattr(synth, "render_image", real)
    assert len(load_domain("plaza", write_domain("plaza", tmp_path, **ARGS)).query) >= 24


def test_failure_at_the_last_moment_leaves_nothing(tmp_path, monkeypatch):
    def full(*args): raise OSError("no space left on device")
    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="no space"): write_domain("plaza", tmp_path, **ARGS)
    assert not list(tmp_path.iterdir())


def test_remains_of_a_killed_process_are_cleared(tmp_path):
    remains = part_name(tmp_path/"plaza")/"query"
    remains.mkdir(parents=True)
    (remains/"9999_c1s1_000000_00.jpg").write_bytes(b"half")
    folder = write_domain("plaza", tmp_path, **ARGS)
    assert not list(folder.rglob("9999*")) and [p.name for p in tmp_path.iterdir()] == ["plaza"]


@pytest.mark.parametrize("same", [True, False])
def test_another_process_that_was_faster(network, tmp_path, monkeypatch, same):
    "The same network under the final name is as good as ours; anything else is not overwritten."
    name, first = network
    real = os.rename

    def late(part, final):
        write = final/"spec.json"
        final.mkdir()
        write.write_text((part/"spec.json").read_text() if same else "{}")
        real(part, final)
    monkeypatch.setattr(os, "rename", late)
    if same: assert write_domain(name, tmp_path, **ARGS) == tmp_path/name
    else:
        with pytest.raises(OSError): write_domain(name, tmp_path, **ARGS)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert [p.name for p in (tmp_path/name).iterdir()] == ["spec.json"]


@pytest.mark.parametrize("name, change, said", [
    ("market1501", {}, "no embedded network 'market1501'; there are plaza, campus"),
    ("plaza", dict(train_ids=0), "train_ids >= 1"), ("plaza", dict(test_ids=0), "not 3, 0"),
    ("campus", dict(cameras=1), "cameras >= 2"), ("plaza", dict(size=(8, 32)), "size >= 16"),
    ("plaza", dict(size=(32, 15)), r"\(32, 15\)"), ("plaza", dict(size=16), "size is two whole numbers"),
    ("plaza", dict(train_ids=2.5), "two whole numbers, others one"), ("plaza", dict(seed="0"), "others one")])
def test_impossible_arguments(tmp_path, name, change, said):
    with pytest.raises(ConfigError, match=said): write_domain(name, tmp_path, **{**ARGS, **change})
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_name_the_same_network(network):
    name, folder = network
    given = {k: np.asarray(v) if k == "size" else np.int64(v) for k, v in ARGS.items()}
    assert write_domain(name, folder.parent, **given, seed=np.int64(0)) == folder            # found, not drawn again


def test_spec_is_plain_json(network):
    name, folder = network
    spec = json.loads((folder/"spec.json").read_text())
    assert {k: spec[k] for k in ("name", "seed", *ARGS)} == {"name": name, "seed": 0, **ARGS, "size": [32, 16]}


# ---------------------------------------------------------------- parts of a picture

class Quiet:
    "A generator without sensor noise."
    def normal(self, mean, deviation, shape): return np.full(shape, float(mean))


@pytest.mark.parametrize("seed", range(4))
def test_expose_is_the_formula(seed):
    rng = np.random.default_rng(seed)
    camera, x = draw_camera("campus", rng), rng.random((5, 7, 3))
    x[0, 0], x[0, 1] = 0, 1
    before, got = x.copy(), apply_photometry(x, camera, Quiet())
    assert got.dtype == np.uint8 and got.shape == x.shape and np.array_equal(x, before)
    for i in range(5):
        for j in range(7):
            for c in range(3):
                v = camera["gain"][c]*x[i, j, c]**camera["gamma"]
                v = camera["contrast"]*(v - .5) + .5 + camera["brightness"] + camera["gradient"]*(j/6 - .5)
                exact = 255*min(max(v, 0), 1)
                assert abs(got[i, j, c] - exact) <= .5 + 1e-9


def test_sensor_noise_has_its_standard_deviation():
    plain = dict(gain=np.ones(3), gamma=1., contrast=1., brightness=0., gradient=0.)
    noise = apply_photometry(np.full((80, 80, 3), .5), plain, np.random.default_rng(0))/255 - .5
    assert abs(noise.std() - .02) < .001 and abs(noise.mean()) < .001


@pytest.mark.parametrize("name", WARDROBES)
def test_cameras_stay_within_the_lens(name):
    lens = LENSES[name]
    for seed in range(200):
        camera = draw_camera(name, np.random.default_rng(seed))
        ranges = dict(gamma=lens.gamma, contrast=lens.contrast, shrink=lens.shrink,
                      gradient=(-lens.gradient, lens.gradient))
        assert all(lo <= camera[k] <= hi for k, (lo, hi) in ranges.items())
        assert camera["view"] in range(4) and camera["gain"].shape == (3,) and (camera["gain"] > 0).all()


@pytest.mark.parametrize("name", WARDROBES)
def test_wardrobe_gives_its_shares(name):
    people = [draw_identity(name, np.random.default_rng(s)) for s in range(1500)]
    wardrobe = WARDROBES[name]
    share = lambda test: sum(map(test, people))/len(people)
    assert abs(share(lambda w: w["long_sleeves"]) - wardrobe.long_sleeves) < .05
    assert abs(share(lambda w: w["hat"]) - wardrobe.hats) < .05
    for k in range(3):
        assert abs(share(lambda w: w["lower"] == k) - wardrobe.lower[k]) < .05
        assert abs(share(lambda w: w["bag"] == k) - wardrobe.bags[k]) < .05


@pytest.mark.parametrize("pattern", range(1, 6))
@pytest.mark.parametrize("side, front, back", [(0, True, False), (1, False, True), (2, True, True)])
def test_pattern_shows_on_its_side_only(pattern, side, front, back):
    "Two people who differ in the pattern's colour look different exactly where the pattern can be seen."
    who = {**draw_identity("plaza", np.random.default_rng(3)), "pattern": pattern, "pattern_side": side, "bag": 0}
    for view, seen in ((0, front), (2, back)):
        canvases = []
        for colour in ((255, 0, 0), (0, 255, 0)):
            canvases.append(Image.new("RGB", (64, 128), (90, 90, 90)))
            draw_person(canvases[-1], {**who, "top2": colour}, view, .3, .5, 1.)
        assert (canvases[0].tobytes() != canvases[1].tobytes()) == seen


@pytest.mark.parametrize("view", range(4))
@pytest.mark.parametrize("bag", range(3))
@pytest.mark.parametrize("lower", range(3))
def test_every_figure_can_be_drawn(view, bag, lower):
    who = {**draw_identity("campus", np.random.default_rng(view)), "bag": bag, "lower": lower}
    canvas = Image.new("RGB", (32, 64), (1, 2, 3))
    draw_person(canvas, who, view, -1., .5, 1.06)
    changed = (np.asarray(canvas) != (1, 2, 3)).any(2)
    assert .1 < changed.mean() < .8
    rows = np.flatnonzero(changed.any(1))
    assert rows[-1] - rows[0] > .6*64


def test_render_is_a_function_of_its_stream():
    who, camera = draw_identity("plaza", np.random.default_rng(0)), draw_camera("plaza", np.random.default_rng(1))
    visit = dict(offset=.3, view=1)
    images = [np.asarray(render_image(who, camera, visit, (40, 20), np.random.default_rng(s))) for s in (5, 5, 6)]
    first, same, other = images
    assert first.shape == (40, 20, 3) and np.array_equal(first, same) and not np.array_equal(first, other)


def test_box_has_its_left_side_first():
    assert sorted_box(3, 1, 2, 5) == (2, 1, 3, 5) and sorted_box(2, 1, 3, 5) == (2, 1, 3, 5)


# ---------------------------------------------------------------- what is special about station

def drawn(name, train_ids=300): return Network(name, train_ids, 10, 6, (32, 16), 0)


@pytest.mark.parametrize("name", ["plaza", "campus"])
def test_visits_of_plaza_and_campus_are_drawn_as_in_version_one(name):
    "Offset, view and number of images, from the same random numbers in the same order as when the runs were made."
    camera = draw_camera(name, np.random.default_rng(5))
    assert camera["lights"] == [] and at_light(camera, 0) is camera
    for seed in range(100):
        old, new = np.random.default_rng(seed), np.random.default_rng(seed)
        offset = old.random()
        view = camera["view"] if old.random() < camera["view_bias"] else int(old.integers(4))
        images = 3 + int(old.random() < .5)
        assert draw_visit(drawn(name), camera, new) == dict(offset=offset, view=view, images=images)
        assert new.random() == old.random()
        who = network_identity(drawn(name), np.random.default_rng(seed))
        assert who == draw_identity(name, np.random.default_rng(seed))


def test_visits_of_station_are_unequal_and_have_a_time_of_day():
    camera, (least, most) = draw_camera("station", np.random.default_rng(0)), VISITS["station"].images
    visits = [draw_visit(drawn("station"), camera, np.random.default_rng(s)) for s in range(3000)]
    images, lights = np.array([v["images"] for v in visits]), [v["light"] for v in visits]
    assert set(images) == set(range(least, most + 1)) and set(lights) == set(range(LENSES["station"].lights))
    n, skew = most - least + 1, VISITS["station"].skew
    for k in range(n):                                  # the share of each number, by the inverse of the power
        share = ((k + 1)/n)**(1/skew) - (k/n)**(1/skew)
        assert abs((images == least + k).mean() - share) < .03


def test_the_light_of_a_time_of_day():
    camera = draw_camera("station", np.random.default_rng(3))
    for k, light in enumerate(camera["lights"]):
        seen = at_light(camera, k)
        assert seen["gain"] == pytest.approx([a*b for a, b in zip(camera["gain"], light["gain"])])
        assert seen["gamma"] == pytest.approx(camera["gamma"]*light["gamma"])
        assert seen["gradient"] == pytest.approx(camera["gradient"] + light["gradient"])
        assert {key for key in camera if seen[key] is not camera[key]} <= {"gain", "gamma", "brightness", "gradient"}
    warm = [np.log(light["gain"][0]/light["gain"][2])/2 for seed in range(300)
            for light in draw_camera("station", np.random.default_rng(seed))["lights"]]
    assert abs(np.std(warm) - LENSES["station"].light) < .03


def test_people_of_station_share_outfits():
    people = [network_identity(drawn("station"), drawn("station").stream("train", n)) for n in range(400)]
    shape = lambda who: tuple(int(who[k]) for k in ("pattern", "pattern_side", "long_sleeves", "lower"))
    streams = [drawn("station").stream("outfit", k) for k in range(WARDROBES["station"].outfits)]
    outfits, colours = [draw_identity("station", rng) for rng in streams], ("top", "top2", "lower_colour")
    near = lambda who, other: max(abs(a - b) for k in colours for a, b in zip(who[k], other[k]))
    worn = [[k for k, o in enumerate(outfits) if shape(o) == shape(who) and near(who, o) <= 40] for who in people]
    assert all(worn) and len({k for w in worn for k in w}) > .8*len(outfits)
    first, second = people[0], share_outfit(people[1], people[0], np.random.default_rng(0))
    assert shape(second) == shape(first) and 0 < near(second, first) <= 40
    assert {k for k in people[1] if second[k] != people[1][k]} <= set(OUTFIT)
