"""Fake archives of every format on disk, naive counting, the faults' messages, and properties of the identity split."""
import dataclasses
import io
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from upl_reid.core import ConfigError, DataError
from upl_reid.data.benchmarks import LAYOUTS, domain_statistics, load_domain, published_statistics, split_identities
from upl_reid.data.splits import Domain, Split, Unlabelled
from upl_reid.data.decoding import read_image

pytestmark = pytest.mark.filterwarnings("ignore:1 junk images")     # of MARKET_ROWS

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def put(path, content=b"not decoded by load_domain"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def make_folders(home, rows, name):
    "rows: {split: [(pid, cam from 1)]}; returns {split: [(file name, pid, cam)]} sorted by file name."
    made = {}
    for split, people in rows.items():
        made[split] = []
        for i, (pid, cam) in enumerate(people):
            path = put(home/FOLDERS[split]/name(pid, cam, i))
            made[split].append((path.name, pid, cam))
        made[split].sort()
    return made


def market_name(pid, cam, i):
    return f"{pid if pid == -1 else f'{pid:04d}'}_c{cam}s{i % 3 + 1}_{i:06d}_{i % 100:02d}.jpg"
def duke_name(pid, cam, i): return f"{pid:04d}_c{cam}_f{i:07d}.jpg"


MARKET_ROWS = {"train": [(2, 1), (2, 12), (7, 3), (-1, 1), (7, 1), (1500, 6)],
               "query": [(1, 1), (1, 2), (3, 12)],
               "gallery": [(-1, 4), (0, 1), (1, 3), (3, 1), (0, 2), (3, 20), (-1, 1)]}
DUKE_ROWS = {"train": [(5, 2), (5, 8), (9, 1)], "query": [(1, 1), (30, 5)],
             "gallery": [(1, 2), (30, 8), (4000, 3), (30, 1)]}
MSMT_ROWS = {"train": [(0, 1), (0, 14), (1, 3)], "val": [(0, 2), (1, 15)], "query": [(0, 5), (1, 10)],
             "gallery": [(0, 15), (1, 1), (2, 7)]}


def make_msmt(home, version, rows=MSMT_ROWS):
    home.mkdir(parents=True)
    halves = {1: ("train", "test"), 2: ("mask_train_v2", "mask_test_v2")}[version]
    made = {}
    for i, (part, people) in enumerate(rows.items()):
        half, lines, made[part] = halves[part in ("query", "gallery")], [], []
        for k, (pid, cam) in enumerate(people):
            relative = f"{pid:04d}/{pid:04d}_{10*i + k:03d}_{cam:02d}_0303morning_{k:04d}_{k % 2}{'_ex' * (k == 1)}.jpg"
            put(home/half/relative)
            lines.append(f"{relative} {pid}")
            made[part].append((relative, pid, cam))
        (home/f"list_{part}.txt").write_text("\n".join(reversed(lines)) + "\n")
    return made, halves


def check(split, home, expected):
    "`expected`: (path below home, pid, cam from 1), sorted."
    assert [p.relative_to(home).as_posix() for p in split.paths] == [name for name, _, _ in expected]
    assert split.pids.tolist() == [pid for _, pid, _ in expected]
    assert split.camids.tolist() == [cam - 1 for _, _, cam in expected]
    assert split.pids.dtype == split.camids.dtype == np.int64
    assert all(p.is_file() for p in split.paths)


def says(error, *parts):
    "The message is one sentence that holds every part and a remedy after a semicolon."
    text = str(error.value)
    for part in parts: assert str(part) in text, (part, text)
    assert "\n" not in text and re.search(r"; (unpack|write|pass|choose|correct|copy|give)\b", text), text


# ---------------------------------------------------------------- formats

@pytest.mark.parametrize("domain, rows, name", [("market1501", MARKET_ROWS, market_name),
                                                ("dukemtmc", DUKE_ROWS, duke_name),
                                                ("plaza", MARKET_ROWS, market_name),
                                                ("campus", MARKET_ROWS, market_name)])
@pytest.mark.parametrize("inside", [False, True])
def test_folder_formats(tmp_path, domain, rows, name, inside):
    for home in LAYOUTS[domain][0].homes if inside else ["."]:
        root = tmp_path/f"around-{home}"
        made = make_folders(root/home, rows, name)
        loaded = load_domain(domain, str(root))
        assert isinstance(loaded, Domain) and loaded.name == domain
        for part, folder in FOLDERS.items():
            expected = [row for row in made[part] if not (part == "train" and row[1] == -1)]
            check(getattr(loaded, part), root/home/folder, expected)


@pytest.mark.parametrize("archive", ["Market-1501-v15.09.15", "Market-1501"])
def test_market_archive_names(tmp_path, archive):
    make_folders(tmp_path/archive, MARKET_ROWS, market_name)
    assert len(load_domain("market1501", tmp_path).train) == len(load_domain("market1501", tmp_path/archive).train) == 5


@pytest.mark.parametrize("version, archive", [(1, "."), (1, "MSMT17_V1"), (1, "MSMT17"), (2, "."), (2, "MSMT17_V2"),
                                              (2, "MSMT17")])
def test_msmt17(tmp_path, version, archive):
    root = tmp_path/"data"
    made, (train, test) = make_msmt(root/archive, version)
    loaded = load_domain("msmt17", root)
    # listed from 0, which would mean distractor
    from_one = lambda rows: sorted((path, pid + 1, cam) for path, pid, cam in rows)
    check(loaded.train, root/archive/train, from_one(made["train"] + made["val"]))
    check(loaded.query, root/archive/test, from_one(made["query"]))
    check(loaded.gallery, root/archive/test, from_one(made["gallery"]))


def test_msmt17_versions_side_by_side(tmp_path):
    make_msmt(tmp_path/"MSMT17_V1", 1)
    make_msmt(tmp_path/"MSMT17_V2", 2)
    assert "MSMT17_V1" in load_domain("msmt17", tmp_path).train.paths[0].parts
    assert "mask_train_v2" in load_domain("msmt17", tmp_path/"MSMT17_V2").train.paths[0].parts


def test_only_listed_msmt_images_count_and_blank_lines_do_not(tmp_path):
    make_msmt(tmp_path/"m", 1)
    put(tmp_path/"m/train/0000/0000_999_01_0303morning_0015_0.jpg")
    listed = tmp_path/"m/list_train.txt"
    listed.write_text("\r\n" + listed.read_text().replace("\n", "\r\n") + "\r\n\r\n")
    assert len(load_domain("msmt17", tmp_path/"m").train) == 5


def test_other_files_are_ignored_and_extensions_are_not_case_sensitive(tmp_path):
    make_folders(tmp_path, DUKE_ROWS, duke_name)
    for other in ("Thumbs.db", "readme.txt", "._0005_c2_f0046985.jpg", ".DS_Store", "0001_c1_f0000001.jpg.part"):
        put(tmp_path/"query"/other)
    (tmp_path/"query/folder.jpg").mkdir()
    for more in ("0002_c3_f0000001.JPG", "0002_c3_f0000002.jpeg", "0002_c3_f0000003.PNG", "0002_c3_f0000004.JpEg",
                 "0002_c3_f0000005.bmp", "0002_c3_f0000006.WebP"):
        put(tmp_path/"query"/more)
    query = load_domain("dukemtmc", tmp_path).query
    assert sorted(query.pids.tolist()) == [1, 2, 2, 2, 2, 2, 2, 30] and set(query.camids[query.pids == 2]) == {2}


# name -> (home, {folder: files}, {split: [(file, pid, camid)]}): a small tree of each further format
MORE = {
    "veri776": ("VeRi", {
        "image_train": ["0002_c002_00030600_0.jpg", "0002_c011_00030610_1.jpg", "0010_c020_00000001_0.jpg"],
        "image_query": ["0005_c003_00032450_0.jpg"],
        "image_test": ["0005_c003_00032450_0.jpg", "0005_c001_00030600_0.jpg", "0770_c010_00030600_0.jpg"]},
        dict(train=[(2, 1), (2, 10), (10, 19)], query=[(5, 2)], gallery=[(5, 0), (5, 2), (770, 9)])),
    "cuhk03": ("cuhk03-np", {
        "bounding_box_train": ["0003_c1_21.png", "0003_c2_26.png"], "query": ["0001_c1_1.png"],
        "bounding_box_test": ["0001_c2_6.png", "0019_c1_1.png"]},
        dict(train=[(3, 0), (3, 1)], query=[(1, 0)], gallery=[(1, 1), (19, 0)])),
    "cuhk03 by pairs": ("CUHK03", {
        "bounding_box_train": ["1_001_1_01.png", "1_001_2_06.png", "5_001_1_01.png"], "query": ["2_010_1_02.png"],
        "bounding_box_test": ["2_010_2_07.png"]},
        dict(train=[(1001, 0), (1001, 1), (5001, 0)], query=[(2010, 0)], gallery=[(2010, 1)])),
    "personx": ("PersonX", {
        "bounding_box_train": ["0001_c1s1_15_00.jpg", "0001_c6_15.jpg"], "query": ["0004_c3s1_15_00.jpg"],
        "bounding_box_test": ["0004_c4s1_15_00.jpg", "-1_c4s1_15_00.jpg"]},
        dict(train=[(1, 0), (1, 5)], query=[(4, 2)], gallery=[(-1, 3), (4, 3)])),
    "occluded_duke": ("Occluded_Duke", {
        "bounding_box_train": ["0001_c2_f0046182.jpg"], "query": ["0005_c1_f0046182.jpg"],
        "bounding_box_test": ["0005_c8_f0046182.jpg"]}, dict(train=[(1, 1)], query=[(5, 0)], gallery=[(5, 7)])),
    "msmt17": ("MSMT17", {
        "bounding_box_train": ["0000_000_01_0303morning_0015_0.jpg", "0000_c14_0004.jpg", "0001_c3s1_000004_00.jpg"],
        "query": ["0000_c1_0001.jpg"], "bounding_box_test": ["0000_013_15_0303noon_0015_0_ex.jpg"]},
        dict(train=[(1, 0), (1, 13), (2, 2)], query=[(1, 0)], gallery=[(1, 14)])),
    "mars": ("MARS", {
        "bbox_train/0001": ["0001C1T0001F001.jpg", "0001C6T0002F003.jpg"],
        "bbox_test/0003": ["0003C2T0002F001.jpg", "0003C1T0001F002.jpg", "0003C1T0001F010.jpg"],
        "bbox_test/0000": ["0000C4T0001F001.jpg"], "bbox_test/00-1": ["00-1C1T0001F001.jpg"]},
        dict(train=[(1, 0), (1, 5)], query=[(3, 0), (3, 1)], gallery=[(-1, 0), (0, 3), (3, 0), (3, 0), (3, 1)]))}


@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize("inside", [False, True])
def test_further_formats(tmp_path, name, inside):
    home, files, expected = MORE[name]
    for folder, images in files.items():
        for image in images: put((tmp_path/home if inside else tmp_path)/folder/image)
    loaded = load_domain(name.split()[0], tmp_path)
    for part, rows in expected.items():
        split = getattr(loaded, part)
        assert [(p, c) for p, c in zip(split.pids.tolist(), split.camids.tolist())] == rows, part
        assert all(p.is_file() for p in split.paths)
    if name == "mars": assert [p.name for p in loaded.query.paths] == ["0003C1T0001F002.jpg", "0003C2T0002F001.jpg"]


@pytest.mark.parametrize("name", ["veri776", "cuhk03", "personx", "occluded_duke", "mars", "msmt17"])
def test_names_that_do_not_fit_are_counted_and_a_table_is_proposed(tmp_path, name):
    _, files, _ = MORE[name]
    for folder, images in files.items():
        for image in [*images, "portrait.jpg", "x_1.jpg"]: put(tmp_path/folder/image)
    with pytest.raises(DataError, match="others?\\)|nor are") as e: load_domain(name, tmp_path)
    says(e, next(iter(files)), "nor are", "path,camid,pid,split", "labelled", LAYOUTS[name][-1].example)


def test_cuhk03_and_msmt17_say_what_is_missing(tmp_path):
    put(tmp_path/"cuhk-03.mat")
    with pytest.raises(DataError) as e: load_domain("cuhk03", tmp_path)
    says(e, "lacks bounding_box_train", "cuhk-03.mat", "not read", "detected")
    for half in ("train", "test"): (tmp_path/half).mkdir()
    with pytest.raises(DataError, match="lacks list_train.txt"): load_domain("msmt17", tmp_path)


def test_what_is_left_out_is_told_with_a_count(tmp_path):
    make_folders(tmp_path, {**MARKET_ROWS, "train": [(-1, 1), (-1, 2), (2, 1)]}, market_name)
    with pytest.warns(UserWarning, match=r"2 junk images .*bounding_box_train are left out"):
        assert len(load_domain("market1501", tmp_path).train) == 1
    for i in range(3): put(tmp_path/f"query/deeper/0001_c1s1_00000{i}_00.jpg")
    with pytest.warns(UserWarning, match=r"3 images in sub-folders of .*query are left out, first .*deeper"):
        assert len(load_domain("market1501", tmp_path).query) == 3
    put(tmp_path/"mars/bbox_train/00-1/00-1C1T0001F001.jpg")
    for folder, images in MORE["mars"][1].items():
        for image in images: put(tmp_path/"mars"/folder/image)
    with pytest.warns(UserWarning, match="1 junk images"): assert len(load_domain("mars", tmp_path).train) == 2


@pytest.mark.parametrize("other", ["0002_c3_f0000005.tif", "0002_c3_f0000005.HEIC", "0002_c3_f0000005.avif"])
def test_pictures_in_formats_that_are_not_read_are_refused(tmp_path, other):
    make_folders(tmp_path, DUKE_ROWS, duke_name)
    for name in (other, other.replace("5.", "6.")): put(tmp_path/"query"/name)
    with pytest.raises(DataError, match=f"query holds 2 pictures in formats.* first {other}; convert"):
        load_domain("dukemtmc", tmp_path)


def test_the_order_of_the_folder_does_not_matter(tmp_path):
    rows = [(pid, cam) for pid in range(1, 9) for cam in range(1, 5)]
    names = [market_name(pid, cam, i) for i, (pid, cam) in enumerate(rows)]
    loaded = []
    for k in range(2):
        random.Random(k).shuffle(names)
        home = tmp_path/str(k)
        make_folders(home, {"query": [(1, 1)], "gallery": [(1, 2)]}, market_name)
        for name in names: put(home/"bounding_box_train"/name)
        loaded.append([p.name for p in load_domain("market1501", home).train.paths])
    assert loaded[0] == loaded[1] == sorted(names)


def test_root_itself_comes_before_folders_in_it(tmp_path):
    make_folders(tmp_path, MARKET_ROWS, market_name)
    make_folders(tmp_path/"Market-1501", {part: [(4, 1)] for part in FOLDERS}, market_name)
    assert len(load_domain("market1501", tmp_path).train) == 5


def test_an_incomplete_root_does_not_hide_a_complete_archive(tmp_path):
    (tmp_path/"query").mkdir()
    make_folders(tmp_path/"DukeMTMC-reID", DUKE_ROWS, duke_name)
    assert len(load_domain("dukemtmc", tmp_path).gallery) == 4


# ---------------------------------------------------------------- faults

def test_unknown_domain(tmp_path):
    with pytest.raises(DataError) as e: load_domain("market", tmp_path)
    says(e, "market", tmp_path, *LAYOUTS)


@pytest.mark.parametrize("domain", LAYOUTS)
def test_missing_root_and_empty_root(tmp_path, domain):
    with pytest.raises(DataError) as e: load_domain(domain, tmp_path/"nowhere")
    says(e, tmp_path/"nowhere", domain)
    with pytest.raises(DataError) as e: load_domain(domain, tmp_path)
    says(e, tmp_path, domain)
    with pytest.raises(DataError) as e: load_domain(domain, put(tmp_path/"archive.zip"))
    says(e, tmp_path/"archive.zip")


@pytest.mark.parametrize("gone", FOLDERS.values())
def test_missing_folder_is_named(tmp_path, gone):
    home = tmp_path/"Market-1501"
    make_folders(home, MARKET_ROWS, market_name)
    (home/gone).rename(home/"renamed")
    with pytest.raises(DataError) as e: load_domain("market1501", tmp_path)
    says(e, home, gone)
    assert not any(other in str(e.value) for other in FOLDERS.values() if other != gone)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("gone", ["list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt", "train",
                                  "test"])
def test_missing_list_or_half_is_named(tmp_path, version, gone):
    _, halves = make_msmt(tmp_path/"m", version)
    if gone in ("train", "test"): gone = halves[gone == "test"]
    (tmp_path/"m"/gone).rename(tmp_path/"elsewhere")
    with pytest.raises(DataError) as e: load_domain("msmt17", tmp_path/"m")
    says(e, tmp_path/"m", f"lacks {gone} of")


@pytest.mark.parametrize("part", FOLDERS)
def test_empty_split(tmp_path, part):
    make_folders(tmp_path, MARKET_ROWS, market_name)
    for image in (tmp_path/FOLDERS[part]).iterdir(): image.unlink()
    put(tmp_path/FOLDERS[part]/"Thumbs.db")
    with pytest.raises(DataError) as e: load_domain("market1501", tmp_path)
    says(e, tmp_path/FOLDERS[part])


def test_training_split_of_junk_only_is_empty(tmp_path):
    make_folders(tmp_path, {**MARKET_ROWS, "train": [(-1, 1), (-1, 2)]}, market_name)
    with pytest.raises(DataError) as e: load_domain("market1501", tmp_path)
    says(e, tmp_path/"bounding_box_train")


def test_empty_lists(tmp_path):
    make_msmt(tmp_path/"m", 1)
    (tmp_path/"m/list_query.txt").write_text("\n\n")
    with pytest.raises(DataError) as e: load_domain("msmt17", tmp_path/"m")
    says(e, tmp_path/"m/test", "list_query.txt")
    make_msmt(tmp_path/"n", 1, {**MSMT_ROWS, "val": []})
    assert len(load_domain("msmt17", tmp_path/"n").train) == 3      # one of two lists may be empty


@pytest.mark.parametrize("domain, name", [
    ("market1501", "0002_c1_f0046985.jpg"), ("market1501", "0002.jpg"), ("market1501", "0002_c0s1_000451_03.jpg"),
    ("market1501", "-2_c1s1_000451_03.jpg"), ("market1501", "x0002_c1s1_000451_03.jpg"),
    ("market1501", "0002_cs1_000451_03.jpg"),
    ("dukemtmc", "0002_c1s1_000451_03.jpg"), ("dukemtmc", "0002_c_f0046985.png"),
    ("dukemtmc", "0002_c0_f0046985.JPEG")])
@pytest.mark.parametrize("part", FOLDERS)
def test_name_that_does_not_parse(tmp_path, domain, name, part):
    make_folders(tmp_path, MARKET_ROWS if domain == "market1501" else DUKE_ROWS,
                 market_name if domain == "market1501" else duke_name)
    bad = put(tmp_path/FOLDERS[part]/name)
    with pytest.raises(DataError) as e: load_domain(domain, tmp_path)
    says(e, bad, LAYOUTS[domain][0].example)


@pytest.mark.parametrize("line", ["0000/0000_000_01_0303morning_0000_0.jpg",
                                  "0000/0000_000_01_0303morning_0000_0.jpg one", "0",
                                  "0000/0000_000_01_0303morning_0000_0.jpg 1.5",
                                  "0000/0000_000_01_0303morning_0000_0.jpg,0"])
@pytest.mark.parametrize("part", MSMT_ROWS)
def test_malformed_line(tmp_path, line, part):
    make_msmt(tmp_path/"m", 2)
    source = tmp_path/f"m/list_{part}.txt"
    source.write_text(source.read_text() + line + "\n")
    with pytest.raises(DataError) as e: load_domain("msmt17", tmp_path/"m")
    says(e, source, f"line {len(MSMT_ROWS[part]) + 1}", line)


@pytest.mark.parametrize("part", MSMT_ROWS)
def test_listed_file_that_is_missing(tmp_path, part):
    made, halves = make_msmt(tmp_path/"m", 1)
    gone = tmp_path/"m"/halves[part in ("query", "gallery")]/made[part][1][0]
    gone.unlink()
    with pytest.raises(DataError) as e: load_domain("msmt17", tmp_path/"m")
    says(e, gone, tmp_path/f"m/list_{part}.txt", "line")


@pytest.mark.parametrize("name", ["0000.jpg", "0000_000_00_0303morning_0000_0.jpg",
                                  "0000_000_x_0303morning_0000_0.jpg"])
def test_listed_name_that_does_not_parse(tmp_path, name):
    make_msmt(tmp_path/"m", 1)
    bad = put(tmp_path/"m/train/0000"/name)
    (tmp_path/"m/list_val.txt").write_text(f"0000/{name} 0\n")
    with pytest.raises(DataError) as e: load_domain("msmt17", tmp_path/"m")
    says(e, bad)


def test_list_that_is_no_text(tmp_path):
    make_msmt(tmp_path/"m", 1)
    put(tmp_path/"m/list_train.txt", bytes(range(128, 256)))
    with pytest.raises(DataError) as e: load_domain("msmt17", tmp_path/"m")
    says(e, tmp_path/"m/list_train.txt")


# ---------------------------------------------------------------- splits

def some_split(n=6): return Split([f"{i}.png" for i in range(n)], [i//2 for i in range(n)], [i % 3 for i in range(n)])


@pytest.mark.parametrize("pids, camids", [([1], [0, 0]), ([1, 1], [0]), ([[1, 2]], [0, 0]), ([1, 2, 3], [0, 0, 0]),
                                          ([1.0, 2.0], [0, 0]), ([1, 2], [True, False]), (["1", "2"], [0, 0])])
def test_columns_that_do_not_fit(pids, camids):
    with pytest.raises(DataError): Split(("a", "b"), pids, camids)


def test_unlabelled_columns_that_do_not_fit():
    with pytest.raises(DataError): Unlabelled(("a", "b"), [0])
    with pytest.raises(TypeError): Unlabelled(("a", "b"), [1, 1], [0, 0])


@pytest.mark.parametrize("kind", [list, tuple, lambda v: np.array(v, np.int32), lambda v: np.array(v, np.uint8),
                                  torch.tensor])
def test_columns_of_any_kind_become_read_only_int64(kind):
    split = Split(["a", Path("b")], kind([3, 4]), kind([0, 1]))
    assert split.paths == (Path("a"), Path("b")) and split.pids.tolist() == [3, 4] and split.camids.tolist() == [0, 1]
    for column in (split.pids, split.camids, split.withhold().camids):
        assert column.dtype == np.int64
        with pytest.raises(ValueError): column[0] = 9


def test_columns_are_copies():
    pids = np.array([1, 2])
    split = Split(("a", "b"), pids, [0, 1])
    pids[0] = 99
    assert split.pids.tolist() == [1, 2] and pids.flags.writeable


def test_fields_cannot_be_replaced():
    split = some_split()
    for thing in (split, split.withhold()):
        with pytest.raises(dataclasses.FrozenInstanceError): thing.camids = np.zeros(6, int)
    with pytest.raises(dataclasses.FrozenInstanceError): split.withhold().pids = split.pids


def test_withheld_identities_are_nowhere_in_the_object():
    split = some_split()
    target = split.withhold()
    assert not isinstance(target, Split) and not isinstance(split, Unlabelled)
    assert set(vars(target)) == {"paths", "camids", "tracks", "times"} and not hasattr(target, "pids")
    assert target.paths == split.paths and target.camids.tolist() == split.camids.tolist() and len(target) == len(split)


def test_empty_splits_are_allowed_in_memory():
    split = Split((), [], [])
    assert len(split) == len(split.withhold()) == len(split.subset([])) == 0 and split.pids.dtype == np.int64


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 9), st.integers(0, 20)), max_size=30), st.data())
def test_subset_agrees_with_a_loop(rows, data):
    split = Split([f"{i}.png" for i in range(len(rows))], [p for p, _ in rows], [c for _, c in rows])
    mask = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    index = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=40)) if rows else []
    for chosen, ways in (([i for i, m in enumerate(mask) if m],
                          (np.array(mask, bool), torch.tensor(mask, dtype=torch.bool))),
                         (index, (index, np.array(index, np.int32), torch.tensor(index, dtype=torch.int64)))):
        for which in ways:
            got = split.subset(which)
            images = [(p.name, a, b) for p, a, b in zip(got.paths, got.pids, got.camids)]
            assert images == [(f"{i}.png", *rows[i]) for i in chosen]


@pytest.mark.parametrize("which", [[6], [-1], [0.0, 1.0], [[0, 1]], 3, np.zeros(5, bool), np.zeros(7, bool),
                                   np.zeros(0, bool), ["a"]])
def test_selections_that_do_not_fit(which):
    with pytest.raises(DataError, match="6"): some_split().subset(which)


def test_repr_is_short():
    big = Split([f"{i}.png" for i in range(1000)], np.arange(1000) % 70, np.arange(1000) % 6)
    assert repr(big) == "Split(1000 images, 70 ids, 6 cameras)" and len(repr(Domain("x", big, big, big))) < 200


# ---------------------------------------------------------------- images

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 12, 3), dtype=np.uint8)


def encoded(mode, fmt):
    image = Image.fromarray(PIXELS).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, fmt)
    return buffer.getvalue(), image


@pytest.mark.parametrize("mode, fmt", [("RGB", "PNG"), ("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("L", "JPEG"),
                                       ("CMYK", "JPEG")])
def test_read_image_is_rgb(tmp_path, mode, fmt):
    content, image = encoded(mode, fmt)
    got = read_image(put(tmp_path/"image.png", content))
    assert got.mode == "RGB" and got.size == (12, 24)
    if fmt == "PNG": assert np.array_equal(np.asarray(got), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("fmt", ["PNG", "JPEG"])
def test_truncated_at_any_place(tmp_path, fmt):
    content, _ = encoded("RGB", fmt)
    path = tmp_path/"cut.jpg"
    for n in range(0, len(content)*9//10, 13):
        path.write_bytes(content[:n])
        with pytest.raises(DataError) as e: read_image(path)
        says(e, path)


def test_damaged_images_raise_nothing_else(tmp_path):
    rng, path, refused = np.random.default_rng(0), tmp_path/"damaged.png", 0
    for k in range(400):
        content = bytearray(encoded("RGB", "PNG" if k % 2 else "JPEG")[0])
        for at in rng.integers(0, len(content), 8): content[at] = rng.integers(256)
        path.write_bytes(content)
        try: assert read_image(path).mode == "RGB"
        except DataError as e: refused += str(path) in str(e)
    assert refused > 100


def test_what_is_no_image(tmp_path):
    for path in (tmp_path/"absent.jpg", put(tmp_path/"text.jpg", b"hello"), put(tmp_path/"empty.jpg", b""), tmp_path):
        with pytest.raises(DataError) as e: read_image(path)
        says(e, path)


# ---------------------------------------------------------------- identity split

@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=80), st.floats(0.001, 0.999), st.integers(0, 2**31))
def test_split_identities_properties(pids, fraction, seed):
    split = Split([f"{i}.png" for i in range(len(pids))], pids, np.arange(len(pids)) % 5)
    n = len(set(pids))
    if n < 2:
        with pytest.raises(DataError, match="two"): split_identities(split, fraction, seed)
        return
    kept, held = split_identities(split, fraction, seed)
    kept_ids, held_ids = set(kept.pids.tolist()), set(held.pids.tolist())
    assert kept_ids & held_ids == set() and kept_ids | held_ids == set(pids)
    assert len(held_ids) == max(1, min(n - 1, round(fraction*n)))
    assert sorted(kept.paths + held.paths) == sorted(split.paths)
    for part in (kept, held):
        for path, pid, camid in zip(part.paths, part.pids, part.camids):
            i = int(path.stem)
            assert (pids[i], i % 5) == (pid, camid)
        assert [int(p.stem) for p in part.paths] == sorted(int(p.stem) for p in part.paths)
    again = split_identities(split, fraction, seed)
    assert [p.paths for p in again] == [kept.paths, held.paths]


@pytest.mark.parametrize("seed", [None, 1.7, "3", True], ids=repr)
def test_a_seed_that_is_no_whole_number_is_named(seed):
    split = Split(["a", "b"], [1, 2], [0, 0])
    with pytest.raises(ConfigError, match="is no whole number"): split_identities(split, .5, seed)
    assert len(split_identities(split, .5, np.int64(3))[0]) == 1


@settings(deadline=None)
@given(st.permutations(range(30)), st.integers(0, 99))
def test_who_is_held_depends_on_identities_and_seed_only(order, seed):
    pids = np.arange(30) % 11
    plain = Split([f"{i}.png" for i in range(30)], pids, [0]*30)
    expected = set(split_identities(plain, 0.3, seed)[1].pids.tolist())
    assert set(split_identities(plain.subset(order), 0.3, seed)[1].pids.tolist()) == expected
    assert set(split_identities(plain.subset(order + order), 0.3, np.int64(seed))[1].pids.tolist()) == expected


def test_seeds_differ_and_hold_everybody_equally_often():
    split = Split([f"{i}.png" for i in range(20)], np.arange(20), [0]*20)
    held = [split_identities(split, 0.2, seed)[1].pids for seed in range(500)]
    assert len({tuple(h) for h in held}) > 400
    counts = np.bincount(np.concatenate(held), minlength=20)
    assert counts.sum() == 2000 and np.abs(counts - 100).max() < 45      # binomial, standard deviation 8.9


def test_split_identities_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].copy()
    split_identities(some_split(), 0.5, 1)
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan"), float("inf"), "0.2"])
def test_fractions_outside_zero_and_one(fraction):
    with pytest.raises(ConfigError, match="fraction=") as e: split_identities(some_split(), fraction)
    assert isinstance(e.value, ValueError) and repr(fraction) in str(e.value)


# ---------------------------------------------------------------- Table 1

def naive(rows_by_part):
    "Count one domain given as {part: [(pid, cam)]} with plain loops."
    train, query, gallery = ([*rows_by_part[p]] for p in ("train", "query", "gallery"))
    train = [r for r in train if r[0] != -1]
    asked, learnt, cams, distractors, junk = set(), set(), set(), 0, 0
    for pid, _ in query:
        if pid != -1: asked.add(pid)
    for pid, _ in train: learnt.add(pid)
    for part in (train, query, gallery):
        for _, cam in part: cams.add(cam)
    for pid, _ in gallery:
        if pid == -1: junk += 1
        elif pid not in asked: distractors += 1
    return {"train ids": len(learnt), "test ids": len(asked), "ids": len(learnt) + len(asked),
            "images": len(train) + len(query) + len(gallery),
            "train images": len(train), "query images": len(query), "gallery images": len(gallery),
            "cameras": len(cams),
            "distractors": distractors, "junk": junk}


def in_memory(name, rows):
    def column(part, k): return [row[k] for row in rows[part]]
    return Domain(name, *(Split([f"{p}{i}.png" for i in range(len(rows[p]))], column(p, 0),
                                column(p, 1)) for p in ("train", "query", "gallery")))


person = st.tuples(st.integers(1, 8), st.integers(0, 4))
anybody = st.tuples(st.integers(-1, 12), st.integers(0, 6))


world = st.fixed_dictionaries({"train": st.lists(person, max_size=12), "query": st.lists(anybody, max_size=6),
                               "gallery": st.lists(anybody, max_size=15)})


@settings(deadline=None, max_examples=60)
@given(st.lists(world, max_size=3))
def test_statistics_agree_with_loops(worlds):
    table = domain_statistics(*(in_memory(f"d{i}", rows) for i, rows in enumerate(worlds)))
    assert len(table) == len(worlds) and list(table.columns)[0] == "domain"
    for i, rows in enumerate(worlds): assert table.loc[i].to_dict() == {"domain": f"d{i}", **naive(rows)}


def test_statistics_of_archives_on_disk(tmp_path):
    make_folders(tmp_path/"a", MARKET_ROWS, market_name)
    make_folders(tmp_path/"b", DUKE_ROWS, duke_name)
    make_msmt(tmp_path/"c", 2)
    msmt = {"train": MSMT_ROWS["train"] + MSMT_ROWS["val"], "query": MSMT_ROWS["query"],
            "gallery": MSMT_ROWS["gallery"]}
    table = domain_statistics(load_domain("market1501", tmp_path/"a"), load_domain("dukemtmc", tmp_path/"b"),
                              load_domain("msmt17", tmp_path/"c"))
    assert table.domain.tolist() == ["market1501", "dukemtmc", "msmt17"]
    msmt = {part: [(pid + 1, cam) for pid, cam in rows] for part, rows in msmt.items()}
    for i, rows in enumerate((MARKET_ROWS, DUKE_ROWS, msmt)):
        assert table.loc[i].drop("domain").to_dict() == naive(rows)
    assert table["distractors"].tolist() == [2, 1, 1] and table["junk"].tolist() == [2, 0, 0]
    assert table["ids"].tolist() == [5, 4, 4]


def test_a_domain_of_duke_s_published_size_is_counted_as_the_paper_counts_it():
    def spread(ids, n): return [(int(ids[i % len(ids)]), i % 8) for i in range(n)]
    train, test, lone = np.arange(702), np.arange(1000, 1702), np.arange(5000, 5408)
    duke = in_memory("dukemtmc", {"train": spread(train, 16522), "query": spread(test, 2228),
                                  "gallery": spread(np.concatenate([test, lone]), 17661)})
    ours, theirs = domain_statistics(duke).iloc[0], published_statistics().iloc[1]
    same = {"ids": "#IDs", "images": "#Images", "cameras": "#Cameras", "train images": "Train",
            "query images": "Query", "gallery images": "Gallery"}
    for a, b in same.items(): assert ours[a] == theirs[b], (a, b)


def test_what_is_left_out_of_an_archive_is_told(tmp_path):
    home = tmp_path/"Market-1501"
    make_folders(home, MARKET_ROWS, market_name)
    (home/"query/0009_c1s1_000001_00.jpg").symlink_to(tmp_path/"gone.jpg")
    put(home/"query/0009_c1s1_000002_00", b"\xff\xd8\xff and so on")
    with pytest.warns(UserWarning) as told: assert len(load_domain("market1501", home).query) == 3
    said = " ".join(str(w.message) for w in told)
    assert "links to files that do not exist, 1 left out" in said and "names do not end as pictures' do" in said


def test_linked_folders_of_mars_are_told(tmp_path):
    for part in ("bbox_train", "bbox_test"):
        for i in (1, 2): put(tmp_path/f"MARS/{part}/{i:04d}/{i:04d}C{i}T0001F001.jpg")
    put(tmp_path/"else/0005/0005C1T0001F001.jpg")
    (tmp_path/"MARS/bbox_train/0005").symlink_to(tmp_path/"else/0005")
    with pytest.warns(UserWarning, match="links to folders are not followed, 1 left out, first 0005"):
        assert len(load_domain("mars", tmp_path).train) == 2


def test_lists_as_windows_writes_them(tmp_path):
    make_msmt(tmp_path/"MSMT17_V1", 1)
    for lists in (tmp_path/"MSMT17_V1").glob("*.txt"): lists.write_bytes(b"\xef\xbb\xbf" + lists.read_bytes())
    assert len(load_domain("msmt17", tmp_path).train) == 5
    lists = tmp_path/"MSMT17_V1/list_train.txt"
    first = lists.read_text(encoding="utf-8-sig").splitlines()[0]
    lists.write_text(f"{first}\n"*3)
    with pytest.warns(UserWarning, match="2 lines of list_train.txt, list_val.txt in .* repeat an image"):
        load_domain("msmt17", tmp_path)
    lists.write_text(first.replace("/", "\\"))
    with pytest.raises(DataError, match=r"separate folders with / instead of"): load_domain("msmt17", tmp_path)
