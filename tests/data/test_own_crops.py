"""One's own crops: folders, tables and pictures as users and attackers have them; each row of the input matrix has its
test here or beside it."""
import csv
import importlib
import io
import os
import shutil
import struct
import time
import unicodedata
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from upl_reid.core import DataError
from upl_reid.data.benchmarks import load_domain
from upl_reid.data.own_crops import (
    alike_note, as_domain, camera_numbers, check_images, compile_pattern, raise_faults, find_images, likeness_key,
    list_images, load_folder, make_listing, natural_sort_key, ignored_files, readable_images, read_folder, read_table,
    report_in_words, split_of, write_table)
from upl_reid.core import printable_text
from upl_reid.data import decoding
from upl_reid.data.decoding import MAX_PIXELS, read_image, upright_rgb
from upl_reid.deployment.embedder import as_pixels
from upl_reid.deployment.identities import identity_rows


def picture(path, size=(6, 12), colour=(200, 30, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def table(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def fault(f, *args):
    with pytest.raises(DataError) as e: f(*args)
    return str(e.value)


# ---- folders

def test_sub_folders_are_cameras_in_natural_order(tmp_path):
    for name in ("cam10/a.jpg", "cam2/x/y/b.PNG", "cam2/c.jpeg", "cam1/.hidden.jpg", "cam1/d.bmp", ".git/e.jpg"):
        picture(tmp_path/name)
    (tmp_path/"cam2/notes.txt").write_text("")
    domain = load_domain("folder", tmp_path)
    assert domain.cameras == ("cam1", "cam2", "cam10") and len(domain.query) == len(domain.gallery) == 0
    images = [(p.name, c) for p, c in zip(domain.train.paths, domain.train.camids)]
    assert images == [("d.bmp", 0), ("a.jpg", 2), ("c.jpeg", 1), ("b.PNG", 1)]
    assert (domain.train.pids == -1).all()


def test_images_in_the_root_have_no_camera(tmp_path):
    for name in "ab": picture(tmp_path/f"{name}.jpg")
    domain = load_folder(tmp_path)
    assert domain.cameras == ("",) and domain.train.camids.tolist() == [0, 0]


def test_half_of_each_is_refused(tmp_path):
    picture(tmp_path/"a.jpg"); picture(tmp_path/"cam1/b.jpg")
    assert "beside its sub-folders" in fault(load_folder, tmp_path)


def test_pattern(tmp_path):
    for name in ("x/0007_c3_1.jpg", "0009_c1_2.jpg"): picture(tmp_path/name)
    found = read_folder(tmp_path, r"(?P<pid>\d+)_c(?P<cam>\d+)")
    assert found.camid.tolist() == ["1", "3"] and found.pid.tolist() == [9, 7]
    picture(tmp_path/"odd.jpg")
    assert "1 fault" in (said := fault(read_folder, tmp_path, r"c(?P<cam>\d)")) and "odd.jpg" in said
    assert "regular expression" in fault(read_folder, tmp_path, "(") and "(?P<cam>" in fault(read_folder, tmp_path, "x")


def test_a_pattern_may_have_identities_without_cameras_and_splits(tmp_path):
    for name in ("train/7/a.jpg", "train/cat/b.jpg", "image_query/7/c.jpg", "test/7/d.jpg", "test/0000/e.jpg"):
        picture(tmp_path/name)
    found = read_folder(tmp_path, r"^(?P<split>[^/]+)/(?P<pid>[^/]+)/")
    assert found.split.tolist() == ["query", "gallery", "gallery", "train", "train"] and set(found.camid) == {""}
    assert found.pid.tolist() == [1, 0, 1, 1, 2] and found.person.tolist() == ["7", "", "7", "7", "cat"]
    picture(tmp_path/"val/7/f.jpg")
    said = fault(read_folder, tmp_path, r"^(?P<split>[^/]+)/(?P<pid>[^/]+)/")
    assert "1 fault" in said and "val/7/f.jpg gives the split 'val'" in said
    said = fault(read_folder, tmp_path, r"(?P<split>[^/]+)/\d*(?P<cam>)")
    assert "image_query/7/c.jpg is a query without a pid" in said
    said = fault(read_folder, tmp_path, r"(?P<split>[^/]+)/")
    assert "(?P<cam>" in said and "(?P<pid>" in said and "(?P<split>" in said


def test_names_of_splits():
    said = {"train": "train TRAIN bounding_box_train image_train trainval", "query": "query image_query query_list",
            "gallery": "gallery test bounding_box_test image_test test_gallery", "": "val cam1 train_query  "}
    for split, names in said.items(): assert {split_of(n) for n in names.split(" ")} == {split}


@pytest.mark.parametrize("root", ["absent", "empty"])
def test_nothing_there(tmp_path, root):
    (tmp_path/"empty").mkdir()
    assert str(tmp_path/root) in fault(list_images, tmp_path/root)


@pytest.mark.parametrize("name", [
    "new\nline", "Überwachung", "摄像头", "مخرج", "tab\there", "quo\"te, comma", "-rf", "a..x", "emoji 🚶", "x"*200])
def test_names_of_any_kind(tmp_path, name):
    picture(tmp_path/name/f"{name[:100]}.jpg"); picture(tmp_path/"other"/"b.jpg")
    domain = load_folder(tmp_path)
    assert set(domain.cameras) == {name, "other"}
    written = write_table(list_images(tmp_path), tmp_path/"images.csv")
    assert load_folder(tmp_path).cameras == domain.cameras and load_folder(written).train.paths == domain.train.paths
    assert "\n" not in printable_text(name) and len(printable_text(name)) <= 120


def test_bytes_that_are_no_text_as_a_name(tmp_path):
    folder = os.fsencode(tmp_path) + b"/cam\xff1"
    os.mkdir(folder)
    picture(Path(os.fsdecode(folder))/"a.jpg")
    domain = load_folder(tmp_path)
    assert len(domain.train) == 1 and printable_text(domain.cameras[0]).isprintable()


def test_links_are_not_followed_in_circles(tmp_path):
    picture(tmp_path/"cam1/a.jpg")
    (tmp_path/"cam1/loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path/"cam1/self.jpg").symlink_to(tmp_path/"cam1/self.jpg")
    (tmp_path/"cam1/gone.jpg").symlink_to(tmp_path/"nowhere.jpg")
    assert [p.as_posix() for p in find_images(tmp_path)] == ["cam1/a.jpg"]


def test_what_is_not_read_is_told(tmp_path):
    "Links to folders and formats that are not decoded; nothing else, and nothing for a table."
    picture(tmp_path/"crops/cam1/a.jpg"); picture(tmp_path/"pool/b.jpg"); picture(tmp_path/"crops/.hidden/c.tif.jpg")
    assert ignored_files(tmp_path/"crops") == []
    (tmp_path/"crops/cam2").symlink_to(tmp_path/"pool", target_is_directory=True)
    for name in ("x.TIF", "y.gif"): (tmp_path/"crops/cam1"/name).write_bytes(b"")
    links, others = ignored_files(tmp_path/"crops")
    assert "1 left out, first cam2" in links and "2 left out, first cam1/x.TIF" in others
    assert check_images(list_images(tmp_path/"crops"), ignored_files(tmp_path/"crops"))["advice"][:2] == [links, others]
    assert ignored_files(write_table(list_images(tmp_path/"crops"), tmp_path/"t.csv")) == []


def test_a_written_table_is_the_same_images(tmp_path):
    """Two names of one picture, bytes that are no text, spaces around a name: `adapt` writes and reads such a table
    each time."""
    picture(tmp_path/"crops/cam1/a.jpg"); picture(tmp_path/"crops/cam2/ b .jpg")
    (tmp_path/"crops/cam1/twin.jpg").symlink_to(tmp_path/"crops/cam1/a.jpg")
    odd = os.fsencode(tmp_path/"crops") + b"/c\xff"
    os.mkdir(odd); picture(Path(os.fsdecode(odd + b"/\xfe.jpg")))
    images = list_images(tmp_path/"crops")
    for table in (tmp_path/"crops/t.csv", tmp_path/"elsewhere/t.csv"):
        again = read_table(write_table(images, table))
        assert [p.absolute() for p in again.path] == [p.absolute() for p in images.path]
        assert again.camid.tolist() == images.camid.tolist() and len(again) == 4


def test_folders_that_differ_by_spaces_only_are_refused(tmp_path):
    for name in ("cam1", " cam1", "cam2 "): picture(tmp_path/name/"a.jpg")
    assert "'cam1'" in fault(load_folder, tmp_path)
    shutil.rmtree(tmp_path/" cam1")
    assert load_folder(tmp_path).cameras == ("cam1", "cam2")


def test_a_line_that_is_no_csv_or_no_text_is_named_beside_the_others(tmp_path):
    for n in "abc": picture(tmp_path/f"{n}.jpg")
    (tmp_path/"quotes.csv").write_text('path,camid\na.jpg,1\nabsent.jpg,2\n"b.jpg" ,1\nc.jpg,1\n')
    said = fault(read_table, tmp_path/"quotes.csv")
    assert "2 faults" in said and "line 3 names absent.jpg" in said and "line 4 cannot be divided" in said
    (tmp_path/"latin.csv").write_bytes("path,camid\na.jpg,büro\nb.jpg,2\ncafé.jpg,3\n".encode("latin-1"))
    said = fault(read_table, tmp_path/"latin.csv")
    assert "2 faults" in said and "line 2 is not in UTF-8" in said and "line 4 is not in UTF-8" in said
    (tmp_path/"semicolon.csv").write_text("path;camid\na.jpg;1\n")
    assert "commas" in fault(read_table, tmp_path/"semicolon.csv")
    (tmp_path/"windows.csv").write_text("path,camid\ncam1\\a.jpg,1\n")
    assert "separate folders with /" in fault(read_table, tmp_path/"windows.csv")


def test_pipes_and_devices_are_no_images(tmp_path):
    picture(tmp_path/"cam1/a.jpg")
    os.mkfifo(tmp_path/"cam1/pipe.jpg")
    (tmp_path/"cam1/zero.jpg").symlink_to("/dev/zero")
    assert len(find_images(tmp_path)) == 1
    started = time.monotonic()
    for name in ("pipe.jpg", "zero.jpg"): fault(read_image, tmp_path/"cam1"/name)
    assert time.monotonic() - started < 5


# ---- tables

def test_table_with_everything(tmp_path):
    for n in "abcd": picture(tmp_path/f"{n}.jpg")
    text = ('path,split,pid,camid,time\r\na.jpg,train,,"yard, left",9:00\r\nb.jpg,,3,door,\r\n\r\n'
            '"c.jpg",query,7,door,\r\nd.jpg,gallery,7,"yard, left",x\r\n')
    frame = read_table(table(tmp_path/"t.csv", "\ufeff" + text))
    assert frame.split.tolist() == ["train", "train", "query", "gallery"]
    assert frame.pid.tolist() == [-1, 3, 7, 7] and frame.time.tolist() == ["9:00", "", "", "x"]
    domain = as_domain(frame)
    assert domain.cameras == ("door", "yard, left")
    assert domain.query.pids.tolist() == [7] and domain.gallery.camids.tolist() == [1]


def test_unknown_cameras_are_one_in_training_and_differ_in_measuring(tmp_path):
    for n in "abcdefg": picture(tmp_path/f"{n}.jpg")
    head = "path,camid,split,pid\na.jpg,,train,\nb.jpg,,train,\nc.jpg,door,train,\n"
    some = table(tmp_path/"t.csv", head + "d.jpg,,query,7\ne.jpg,,query,8\nf.jpg,,gallery,7\ng.jpg,door,gallery,8\n")
    domain = as_domain(read_table(some))
    assert domain.cameras == ("door", "") and domain.train.camids.tolist() == [1, 1, 0]
    tested = [*domain.query.camids.tolist(), *domain.gallery.camids.tolist()]
    assert tested[3] == 0 and len({*tested, 1}) == 5
    same = table(tmp_path/"u.csv", head + "d.jpg,door,query,7\ng.jpg,door,gallery,7\n")
    assert "in another camera" in fault(as_domain, read_table(same))


def test_identities_may_be_names(tmp_path):
    "Numbers in natural order, whatever the table's; nobody stays nobody, names come back, a domain has them."
    names = ["turtle_10", "turtle_2", "", "-1", "0", "0", "00", "007", "7", "turtle_2"]
    splits = ["train"]*5 + ["gallery"]*4 + ["query"]
    for i in range(10): picture(tmp_path/f"{i}.jpg")
    lines = [f"{i}.jpg,c{i},{n},{s}" for i, (n, s) in enumerate(zip(names, splits))]
    found = read_table(table(tmp_path/"t.csv", "\n".join(["path,camid,pid,split", *lines])))
    order = ["0", "007", "7", "turtle_2", "turtle_10"]
    expected = [{"": -1, "-1": -1}.get(n, 0 if set(n) == {"0"} and s != "train" else 1 + order.index(n) if n in order
                                       else None) for n, s in zip(names, splits)]
    assert found.pid.tolist() == expected == [5, 4, -1, -1, 1, 0, 0, 2, 3, 4] and found.pid.dtype == np.int64
    again = read_table(write_table(found, tmp_path/"w.csv"))
    assert again.pid.tolist() == expected and again.person.tolist() == found.person.tolist()
    written = list(csv.DictReader(open(tmp_path/"w.csv")))
    assert [r["pid"] for r in written] == ["turtle_10", "turtle_2", "", "", "0", "0", "0", "007", "7", "turtle_2"]
    gallery = found.assign(split=[*splits[:5], *["gallery"]*5])
    assert as_domain(gallery[gallery.split == "train"]).people == {1: "0", 4: "turtle_2", 5: "turtle_10"}
    ours = read_table(table(tmp_path/"n.csv", "path,pid\n0.jpg,007\n1.jpg,7.0\n2.jpg,\n3.jpg,-1.0\n"))
    assert ours.pid.tolist() == [7, 7, -1, -1] and set(ours.person) == {""} and as_domain(ours).people == {}
    numbers = load_domain("labelled", tmp_path/"n.csv")
    assert numbers.train.pids.tolist() == [7, 7, -1, -1]
    large = read_table(table(tmp_path/"l.csv", "path,pid\n0.jpg,99999999999\n1.jpg,٣\n"))
    assert large.pid.tolist() == [1, 2] and large.person.tolist() == ["99999999999", "٣"]


def test_tables_of_wildlife_datasets(tmp_path):
    "Columns identity, path, date; others are named and not used; unknown animals are counted."
    for n in "abc": picture(tmp_path/f"images/{n}.jpg")
    text = (",image_id,identity,path,date,orientation\n0,11,t_3,images/a.jpg,2015-01-02 10:00:00,left\n"
            "1,12,unknown,images/b.jpg,,right\n2,13,t_20,images/c.jpg,2016,top\n")
    found = read_table(table(tmp_path/"metadata.csv", text))
    assert found.pid.tolist() == [1, -1, 2] and found.time.tolist() == ["2015-01-02 10:00:00", "", "2016"]
    report = check_images(found)
    assert "'image_id', 'orientation'" in report["advice"][0] and report["advice"][1].startswith("1 of 3 pictures")
    with pytest.warns(UserWarning, match="orientation"): domain = load_domain("labelled", tmp_path/"metadata.csv")
    assert domain.people == {1: "t_3", 2: "t_20"}
    own = read_table(table(tmp_path/"own.csv", "path,pid\nimages/a.jpg,Unknown\n"))
    assert own.person.tolist() == [""] and own.attrs["notes"] == ["pid 'Unknown' is read as unknown, in 1 pictures"]
    twice = "identity,path,path\nx,images/a.jpg,images/a.jpg\n"
    assert "has the columns" in fault(read_table, table(tmp_path/"twice.csv", twice))


def test_the_table_of_identities_keeps_its_cameras(tmp_path):
    for n in "ab": picture(tmp_path/f"{n}.jpg")
    text = "path,camera,track,identity,confidence\na.jpg,door,t1,Ann,.5\nb.jpg,yard,,Unknown,\n"
    found = read_table(table(tmp_path/"who.csv", text))
    assert found.camid.tolist() == ["door", "yard"] and found.person.tolist() == ["Ann", ""]
    assert found.track.tolist() == ["t1", ""] and not found.attrs["notes"]


def test_whole_numbers_with_a_point_are_whole(tmp_path):
    "Programs write 1.0 where some cells of a column are empty."
    for n in "ab": picture(tmp_path/f"{n}.jpg")
    found = read_table(table(tmp_path/"t.csv", "path,camid,pid,track\na.jpg,1.0,7.0,3.0\nb.jpg,1,7,3\n"))
    assert [found[c].tolist() for c in ("camid", "pid", "track")] == [["1"]*2, [7]*2, ["3"]*2]


@pytest.mark.parametrize("form, other", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_the_other_form_of_unicode_is_found(tmp_path, form, other):
    name = picture(tmp_path/unicodedata.normalize(form, "café.jpg"))
    assert read_table(table(tmp_path/"t.csv", f"path\n{unicodedata.normalize(other, name.name)}\n")).path[0] == name


def test_a_name_is_not_looked_for_in_the_folder_of_the_command(tmp_path, monkeypatch):
    "Where the table's own file is missing, another one of its name would be taken without a word."
    picture(tmp_path/"here/a.jpg")
    picture(tmp_path/"home/b.jpg")
    (tmp_path/"there").mkdir()
    monkeypatch.chdir(tmp_path/"here")
    monkeypatch.setenv("HOME", str(tmp_path/"home"))
    assert "names a.jpg, which is no file" in fault(read_table, table(tmp_path/"there/t.csv", "path\na.jpg\n"))
    assert read_table(table(tmp_path/"there/t.csv", "path\n~/b.jpg\n")).path[0] == tmp_path/"home/b.jpg"


def test_leave_one_out_by_brute_force(tmp_path):
    "Every picture is a query and in the gallery; cameras known or not. No picture is its own match."
    from upl_reid.evaluation.retrieval import evaluate_retrieval
    rng = np.random.default_rng(0)
    n, x = 24, rng.normal(size=(24, 5))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    pids, cams = rng.integers(1, 6, n), ["", "", "a", "b"]*6
    for i in range(n): picture(tmp_path/f"{i:02d}.jpg")
    rows = [f"{i:02d}.jpg,{cams[i]},{pids[i]},{split}" for split in ("query", "gallery") for i in range(n)]
    listed = read_table(table(tmp_path/"t.csv", "\n".join(["path,camid,pid,split", *rows])))
    numbers = camera_numbers(listed)[1]
    picture(tmp_path/"x.jpg")
    rows.append("./x.jpg,a,,train")
    domain = load_folder(table(tmp_path/"t.csv", "\n".join(["path,camid,pid,split", *rows])))
    assert (domain.query.camids == domain.gallery.camids).all() and len(domain.query) == n
    precisions = []
    for i in range(n):
        ranked, hits, precision = 0, 0, []
        for j in np.argsort(-(x @ x[i]), kind="stable"):
            if j == i or pids[j] == pids[i] and cams[i] and cams[j] == cams[i]: continue
            ranked += 1
            if pids[j] == pids[i]: hits += 1; precision.append(hits/ranked)
        if precision: precisions.append(np.mean(precision))
    ids = dict(query_pids=pids, gallery_pids=pids, query_camids=numbers[:n], gallery_camids=numbers[n:])
    got = evaluate_retrieval(x, x, **ids)
    assert abs(got.mAP - np.mean(precisions)) < 1e-12 and got.skipped == n - len(precisions)
    report = check_images(listed)
    assert (report["images"], report["copies"], report["splits"]) == (n, n - 1, {"query": n, "gallery": n})


@pytest.mark.parametrize("ann, bob", [("Ann", "Bob"), ("0", "1"), ("2", "3")], ids=["names", "from 0", "numbers"])
def test_leave_one_out_keeps_people_of_all_splits_apart(tmp_path, ann, bob):
    from upl_reid.cli import leave_one_out
    for n in "abcdef": picture(tmp_path/f"{n}.jpg")
    rows = [f"a.jpg,1,{ann},train", f"b.jpg,2,{ann},{'train' if ann == '0' else 'gallery'}", f"c.jpg,1,{bob},query",
            f"d.jpg,2,{bob},gallery", "e.jpg,1,0,gallery", "f.jpg,2,,train"]
    known = leave_one_out(read_table(table(tmp_path/"t.csv", "\n".join(["path,camid,pid,split", *rows]))))
    pids = {split: dict(zip((p.stem for p in own.path), own.pid)) for split, own in known.groupby("split")}
    one, two = pids["query"]["a"], pids["query"]["c"]
    assert pids["query"] == dict(a=one, b=one, c=two, d=two) and one != two and min(one, two) > 0
    assert pids["gallery"] == pids["query"] | dict(e=0)


@pytest.mark.parametrize("rows, says", [
    ("a.jpg,c,1,query|a.jpg,c,1,query", "again, after line 2"),
    ("a.jpg,c,1,train|a.jpg,c,1,query", "again, after line 2"),
    ("a.jpg,c,1,gallery|a.jpg,c,1,gallery", "again"), ("a.jpg,c,1,gallery|a.jpg,c,1,train", "again"),
    ("a.jpg,c,1,query|a.jpg,c,1,gallery|./a.jpg,c,1,gallery", "line 4"),
    ("a.jpg,c,1,query|a.jpg,c,2,gallery", "another camid or pid"),
    ("a.jpg,c,1,query|a.jpg,d,1,gallery", "another camid or pid")])
def test_other_repetitions_are_faults(tmp_path, rows, says):
    picture(tmp_path/"a.jpg")
    text = "\n".join(["path,camid,pid,split", *rows.split("|")])
    assert says in (said := fault(read_table, table(tmp_path/"t.csv", text))) and "1 fault;" in said


def test_columns_may_be_missing_but_not_misspelt(tmp_path):
    picture(tmp_path/"a.jpg")
    assert read_table(table(tmp_path/"t.csv", "path\na.jpg\n")).camid.tolist() == [""]
    for header in ("", "camid,pid", "path,camera", "path,path", "path;camid"):
        assert "columns" in fault(read_table, table(tmp_path/"t.csv", f"{header}\na.jpg,1\n"))


FAULTS = {
    "pid": ("a.jpg,1,-7,", "pid"),
    "broken pid": ("a.jpg,1,-1.5,", "pid"),
    "query of zeros": ("a.jpg,1,000,query", "query without"),
    "split": ("a.jpg,1,1,test", "split"),
    "query": ("a.jpg,1,,query", "query without"),
    "query of nobody": ("a.jpg,1,0,query", "query without"),
    "short": ("a.jpg,1", "less"),
    "long": ("a.jpg,1,2,train,x,y", "more"),
    "gone": ("gone.jpg,1,2,", "no file"),
    "folder": ("sub,1,2,", "no file"),
    "nothing": (",1,2,", "names no file"),
    "endless": (f"{'x'*5000},1,2,", "no file")}


@pytest.mark.parametrize("line, says", FAULTS.values(), ids=FAULTS)
def test_every_fault_of_a_line_names_the_line(tmp_path, line, says):
    picture(tmp_path/"a.jpg"); picture(tmp_path/"b.jpg"); (tmp_path/"sub").mkdir()
    said = fault(read_table, table(tmp_path/"t.csv", f"path,camid,pid,split\nb.jpg,1,2,\n{line}\n"))
    assert "line 3" in said and says in said and len(said) < 600


def test_faults_come_together(tmp_path):
    picture(tmp_path/"a.jpg")
    said = fault(read_table, table(tmp_path/"t.csv", "path,pid\n" + "a.jpg,-2\n"*25))
    assert "25 faults" in said and said.count("\n  line") == 10 and "15 more" in said
    assert "again, after line 2" in fault(read_table, table(tmp_path/"t.csv", "path\na.jpg\na.jpg\n"))
    assert raise_faults("x", [], "y") is None


NO_TABLES = {
    "no utf-8": b"path\n\xff\xfe\x00\n",
    "utf-16": "path\na.jpg\n".encode("utf-16"),
    "open quote": b'path\n"a.jpg',
    "zero byte": b"path\na\0.jpg\n",
    "long field": b"path\n" + b"x"*200_000 + b"\n",
    "pickle": b"\x80\x04\x95pickle"}


@pytest.mark.parametrize("start", ["\n", " , \n\n", "sep=,\n", "\ufeffsep=,\n\n"], ids=repr)
def test_lines_before_the_names_of_columns_are_passed_over(tmp_path, start):
    picture(tmp_path/"a.jpg")
    assert read_table(table(tmp_path/"t.csv", start + "path,camid\na.jpg,1\n")).camid.tolist() == ["1"]


@pytest.mark.parametrize("content, says", [
    (b"PK\x03\x04\x14\r\"x\"y", "an Excel file or a ZIP archive; save the sheet as 'CSV UTF-8'"),
    (b"PAR1\x15\x04\x15\n", "a Parquet file; save it as CSV"), (b"sep=;\npath;camid\n", "with semicolons")],
    ids=["excel", "parquet", "semicolons"])
def test_what_is_another_kind_of_table_is_named(tmp_path, content, says):
    (tmp_path/"t.csv").write_bytes(content)
    assert says in fault(read_table, tmp_path/"t.csv")


@pytest.mark.parametrize("name", ["a\rb", "a\nb", "a\r\nb", '"a', "a,b"], ids=repr)
def test_a_written_table_holds_any_name(tmp_path, name):
    picture(tmp_path/f"cam1/{name}.jpg")
    picture(tmp_path/"cam1/z.jpg")
    images = list_images(tmp_path)
    assert read_table(write_table(images, tmp_path/"t.csv")).path.tolist() == images.path.tolist()


@pytest.mark.parametrize("content", NO_TABLES.values(), ids=NO_TABLES)
def test_what_is_no_table(tmp_path, content):
    path = tmp_path/"t.csv"
    path.write_bytes(content)
    assert str(path) in fault(read_table, path)


def test_too_many_rows_end_early(tmp_path, monkeypatch):
    "Reading stops at the limit, whatever follows."
    path, files, reader = tmp_path/"t.csv", [], csv.reader
    path.write_text("path,camid\n" + "no.jpg,1\n"*20_000)
    def kept(file, **how):
        files.append(reader(file, **how))
        return files[-1]
    monkeypatch.setattr("upl_reid.data.own_crops.MAX_ROWS", 2000)
    monkeypatch.setattr("upl_reid.data.own_crops.csv.reader", kept)
    assert "2,000" in fault(read_table, path) and files[0].line_num == 2002     # the header, 2,000 rows, one too many


def test_a_table_may_not_need_its_own_folder(tmp_path):
    picture(tmp_path/"far/a.jpg")
    frame = read_table(table(tmp_path/"t.csv", f"path\n{tmp_path/'far/a.jpg'}\n"))
    assert frame.path[0] == tmp_path/"far/a.jpg"


cell = st.text(st.characters(codec="utf-8"), max_size=12)


@settings(max_examples=400)
@given(rows=st.lists(st.lists(cell, min_size=1, max_size=6), max_size=6),
       header=st.lists(st.sampled_from(["path", "camid", "pid", "split", "time", "x", ""]), max_size=6))
def test_any_text_is_a_table_or_a_data_error(tmp_path_factory, rows, header):
    home = tmp_path_factory.getbasetemp()/"fuzz"
    if not home.exists(): picture(home/"a.jpg")
    path = table(home/"t.csv", "\n".join(",".join(row) for row in [header, *rows, ["a.jpg"]]))
    try: assert set(read_table(path).split) <= {"train", "query", "gallery"}
    except DataError as e: assert "\x00" not in str(e)


@settings(max_examples=400)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_table_or_a_data_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp()/"bytes.csv"
    path.write_bytes(content)
    with pytest.raises(DataError): read_table(path)


@settings(max_examples=300)
@given(pattern=st.text(max_size=20))
def test_any_pattern_is_one_or_a_data_error(tmp_path_factory, pattern):
    home = tmp_path_factory.getbasetemp()/"patterns"
    if not home.exists(): picture(home/"cam1/0001_c1.jpg")
    with pytest.raises(DataError): read_folder(home, pattern)


@given(st.lists(st.text(max_size=6), max_size=8))
def test_natural_order_is_one(names):
    forwards, backwards = dict.fromkeys(names), dict.fromkeys(names[::-1])
    assert sorted(forwards, key=natural_sort_key) == sorted(backwards, key=natural_sort_key)
    assert len({natural_sort_key(n) for n in names}) == len(set(names))


def test_natural_order_by_hand():
    names = ["cam10", "cam2", "cam1", "cam01", "a", "", "9"*5000, "cam"]
    assert sorted(names, key=natural_sort_key) == ["9"*5000, "a", "cam01", "cam1", "cam2", "cam10", "cam", ""]


# ---- splits of a table

def test_domains_that_cannot_be(tmp_path):
    for n in "abc": picture(tmp_path/f"{n}.jpg")
    assert "training" in fault(load_folder, table(tmp_path/"t.csv", "path,pid,split\na.jpg,1,query\nb.jpg,1,gallery\n"))
    text = "path,pid,split\na.jpg,1,train\nb.jpg,1,query\n"
    assert "gallery of 0" in fault(load_folder, table(tmp_path/"t.csv", text))


def test_queries_that_nobody_can_answer_are_told_before_training(tmp_path):
    for n in "abcd": picture(tmp_path/f"{n}.jpg")
    text = "path,pid,split{}\na.jpg,,train{}\nb.jpg,3,query{}\nc.jpg,3,gallery{}\nd.jpg,4,gallery{}\n"
    unknown = text.format("", "", "", "", "")           # unknown cameras may differ, so c.jpg may answer
    assert len(load_folder(table(tmp_path/"t.csv", unknown)).query) == 1
    other = unknown.replace("c.jpg,3", "c.jpg,5")
    assert "none of the 1 queries" in fault(load_folder, table(tmp_path/"t.csv", other))
    one_camera = text.format(",camid", ",1", ",1", ",1", ",2")
    assert "none of the 1 queries" in fault(load_folder, table(tmp_path/"t.csv", one_camera))
    assert len(load_folder(table(tmp_path/"t.csv", text.format(",camid", ",1", ",1", ",2", ",2"))).query) == 1


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    picture(tmp_path/"cam1/a.jpg"); picture(tmp_path/"cam2/b.jpg")
    scan = os.scandir
    def denied(path="."):
        if str(path).endswith("cam2"): raise PermissionError(13, "Permission denied", str(path))
        return scan(path)
    monkeypatch.setattr(os, "scandir", denied)
    assert "cam2" in fault(find_images, tmp_path)


def test_images_csv_is_found_in_its_folder(tmp_path):
    picture(tmp_path/"cam1/a.jpg")
    table(tmp_path/"images.csv", "path,camid\ncam1/a.jpg,gate\n")
    assert load_folder(tmp_path).cameras == ("gate",)
    assert list_images(tmp_path, r"(?P<cam>cam\d)").camid.tolist() == ["cam1"]


def test_a_foreign_images_csv_is_to_be_renamed(tmp_path):
    picture(tmp_path/"cam1/a.jpg")
    table(tmp_path/"images.csv", "filename,width\ncam1/a.jpg,64\n")
    assert fault(list_images, tmp_path).endswith("if it is no table of the pictures in its folder, rename it")
    table(tmp_path/"mine.csv", "filename,width\ncam1/a.jpg,64\n")
    assert "rename" not in fault(list_images, tmp_path/"mine.csv")


def test_pictures_beside_images_csv_are_told(tmp_path):
    for n in "abc": picture(tmp_path/f"cam1/{n}.jpg")
    table(tmp_path/"images.csv", "path\ncam1/a.jpg\n")
    assert list_images(tmp_path).attrs["notes"] == [
        f"2 pictures of {tmp_path} are not in its images.csv and are left out, first {tmp_path}/cam1/b.jpg; "
        "list them, or remove the table"]
    write_table(list_images(tmp_path, "(?P<cam>cam1)"), tmp_path/"images.csv")
    assert not list_images(tmp_path).attrs["notes"]


@pytest.mark.parametrize("root, pattern, says", [
    ("t.csv", r"(?P<cam>\w)", "a pattern is for a folder"), ("", None, "an empty name is no folder"),
    ("x"*300, None, "is neither a folder nor a CSV file"), ("a\0b", None, "is neither a folder nor a CSV file"),
    (".", "(?P<cam>a{99999999999999})", "is no regular expression"),
    (".", "("*5000 + ")"*5000 + "(?P<cam>.)", "is no regular expression")],
    ids=["table", "empty", "long", "zero", "huge", "deep"])
def test_what_cannot_be_listed(tmp_path, monkeypatch, root, pattern, says):
    picture(tmp_path/"a.jpg")
    table(tmp_path/"t.csv", "path\na.jpg\n")
    monkeypatch.chdir(tmp_path)
    assert says in fault(list_images, root, pattern)


@pytest.mark.parametrize("folder", ["@eaDir", "__MACOSX", "$RECYCLE.BIN", "#recycle", ".thumbnails"])
def test_folders_of_systems_hold_no_crops(tmp_path, folder):
    for place in (".", folder, f"cam1/{folder}", f"cam1/{folder}/0.jpg"): picture(tmp_path/place/"cam1/0.jpg")
    assert [p.as_posix() for p in find_images(tmp_path)] == ["cam1/0.jpg"] and not ignored_files(tmp_path)


# ---- pictures

def bomb(width, height):
    "A PNG of a few bytes that announces a huge picture."
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0"*1000))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def encoded(image, fmt, **options):
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


whole = encoded(Image.new("RGB", (40, 80), (9, 200, 30)), "JPEG")
BAD = {
    "truncated": whole[:len(whole)//2],
    "empty": b"",
    "huge": bomb(60_000, 60_000),
    "large": bomb(10_000, MAX_PIXELS//10_000 + 1),
    "no pixels": bomb(0, 10),
    "text": b"hello",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "tiff": encoded(Image.new("RGB", (4, 4)), "TIFF"),
    "pickle": b"\x80\x04cos\nsystem\n"}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_pictures_that_are_refused(tmp_path, content):
    path = tmp_path/"a.jpg"
    path.write_bytes(content)
    said = fault(read_image, path)
    assert str(path) in said and "\n" not in said


def turned(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


upright = np.zeros((80, 40, 3), np.uint8)
upright[:20] = 255                                       # light on top
light = Image.fromarray(upright)
sixteen_bits = Image.fromarray(upright[..., 0].astype(np.uint16) << 8)
second = dict(save_all=True, append_images=[Image.new("RGB", (40, 80))])       # another picture behind the first
GOOD = {
    "grey": (encoded(light.convert("L"), "PNG"), 3),
    "16 bits": (encoded(sixteen_bits, "PNG"), 3),
    "cmyk": (encoded(light.convert("CMYK"), "JPEG"), 40),
    "palette": (encoded(light.convert("P"), "PNG"), 3),
    "alpha": (encoded(light.convert("RGBA"), "PNG"), 3),
    "1 bit": (encoded(light.convert("1"), "PNG"), 6),
    "animated webp": (encoded(light, "WEBP", **second, lossless=True), 3),
    "animated png": (encoded(light, "PNG", **second), 3),
    "sideways": (encoded(light.transpose(Image.Transpose.ROTATE_90), "PNG", exif=turned(6)), 3),
    "upside down": (encoded(light.transpose(Image.Transpose.ROTATE_180), "PNG", exif=turned(3)), 3),
    "bmp": (encoded(light, "BMP"), 3)}


@pytest.mark.parametrize("content, near", GOOD.values(), ids=GOOD)
def test_pictures_that_look_the_same(tmp_path, content, near):
    path = tmp_path/"a.png"
    path.write_bytes(content)
    image = read_image(path)
    assert image.mode == "RGB" and image.size == (40, 80)
    pixels = np.asarray(image).astype(int)
    assert abs(pixels[:18] - 255).max() <= near and abs(pixels[24:]).max() <= near


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "key"])
def test_what_is_transparent_lies_on_white(tmp_path, kind):
    "Its hidden colour is never seen; half transparent is halfway, where a format has it."
    colours = np.full((4, 6, 4), (200, 200, 200, 255), np.uint8)
    colours[:, 2:4], colours[:, 4:] = (0, 0, 0, 0), (100, 100, 100, 128)
    image = Image.fromarray(colours)
    if kind == "LA": image = image.convert("LA")
    if kind == "P":
        image = Image.fromarray(np.repeat([[0, 0, 1, 1, 2, 2]], 4, 0).astype(np.uint8)).convert("P")
        image.putpalette([200]*3 + [0]*3 + [100]*3)
    if kind == "key": image = image.convert("RGB")
    clear = dict(P=b"\xff\x00\x80", key=(0, 0, 0)).get(kind)
    image.save(tmp_path/"a.png", **({} if clear is None else dict(transparency=clear)))
    row = np.asarray(read_image(tmp_path/"a.png"))[0, ::2, 0].astype(int)
    mixed = 100 if kind == "key" else round((128*100 + 127*255)/255)
    assert row[:2].tolist() == [200, 255] and abs(row[2] - mixed) <= 1


HARMLESS = {
    "png": encoded(light, "PNG", exif=b"garbage"),
    "webp": encoded(light, "WEBP", lossless=True, exif=b"Exif\0\0garbage"),
    "short": encoded(light, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"),
    "palette": encoded(light.convert("P"), "PNG", transparency=b"\xff"*10)}                        # none is


@pytest.mark.parametrize("content", HARMLESS.values(), ids=HARMLESS)
def test_damaged_exif_and_transparency_are_no_reason_to_refuse_or_warn(tmp_path, content):
    (tmp_path/"a.png").write_bytes(content)
    with warnings.catch_warnings(record=True) as told:
        image = importlib.reload(decoding).read_image(tmp_path/"a.png")  # with its filter, which pytest has removed
    assert abs(np.asarray(image).astype(int) - upright).max() <= 40 and not told


@pytest.mark.parametrize("name, remedy", [("huge", "make it smaller"), ("large", "make it smaller"),
                                          ("truncated", "copy it again"), ("no pixels", "copy it again")])
def test_a_picture_that_is_too_large_is_to_be_made_smaller(tmp_path, name, remedy):
    (tmp_path/"a.jpg").write_bytes(BAD[name])
    assert f"; {remedy}" in fault(read_image, tmp_path/"a.jpg")


def test_a_truncated_picture_with_damaged_exif_is_refused(tmp_path):
    (tmp_path/"a.png").write_bytes(HARMLESS["png"][:-40])
    assert "truncated" in fault(read_image, tmp_path/"a.png").lower()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone_whatever_else_exif_says(tmp_path, orientation):
    "As PIL turns it; but a resolution written as text, which PIL cannot write again, is no reason to refuse a picture."
    from PIL import ImageOps
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path/"a.png", exif=turned(orientation))
    theirs = ImageOps.exif_transpose(Image.open(tmp_path/"a.png"))
    assert np.array_equal(np.asarray(read_image(tmp_path/"a.png")), np.asarray(theirs))
    tags = struct.pack("<HHII", 274, 3, 1, orientation) + struct.pack("<HHI4s", 282, 2, 3, b"72\0\0")
    block = b"II*\0\x08\0\0\0\x02\0" + tags + b"\0\0\0\0"
    Image.fromarray(pixels).save(tmp_path/"b.png", exif=b"Exif\0\0" + block)
    assert np.array_equal(np.asarray(read_image(tmp_path/"b.png")), np.asarray(read_image(tmp_path/"a.png")))


@settings(max_examples=300)
@given(at=st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=12))
def test_any_damage_is_a_picture_or_a_data_error(tmp_path_factory, at):
    content, path = bytearray(whole), tmp_path_factory.getbasetemp()/"damaged.jpg"
    for where, value in at: content[where] = value
    path.write_bytes(content)
    try: assert read_image(path).mode == "RGB"
    except DataError as e: assert str(path) in str(e)


# ---- the check

def crops(home, count=120, cameras=2, size=(20, 40), copies=0):
    rng = np.random.default_rng(0)
    for i in range(count):
        path = home/f"cam{i % cameras}"/f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0], 3)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8) if i >= copies else np.zeros(shape, np.uint8)
        Image.fromarray(pixels).save(path)
    return home


def test_check_of_good_crops(tmp_path):
    report = check_images(list_images(crops(tmp_path)))
    assert report["sufficient"] and not report["advice"] and report["cameras"] == {"cam0": 60, "cam1": 60}
    assert report["width"] == [20, 20, 20] and report["height"] == [40, 40, 40] and report["copies"] == 0
    assert report_in_words(report).endswith("enough to train on")


@pytest.mark.parametrize("options, says", [
    (dict(count=30), "too few"),
    (dict(cameras=1, count=100), "all pictures are from camera 'cam0'"),
    (dict(copies=40), "copies"),
    (dict(size=(8, 16)), "pixels high"),
    (dict(size=(40, 40)), "as wide as high"),
    (dict(cameras=10), "few pictures from camera 'cam3', 12")])
def test_check_says_what_is_missing(tmp_path, options, says):
    report = check_images(list_images(crops(tmp_path, **options)))
    assert any(says in a for a in report["advice"]) and says in report_in_words(report)
    enough = report["readable"] - report["copies"] >= 100
    verdict = "enough pictures to train on, but mind the notes" if enough else "NOT enough to train on"
    assert report["sufficient"] == enough and report_in_words(report).splitlines()[-1] == verdict


def test_check_tells_one_camera_from_none(tmp_path):
    crops(tmp_path/"named", cameras=1)
    shutil.copytree(tmp_path/"named/cam0", tmp_path/"bare")
    named, bare = (check_images(list_images(tmp_path/n))["advice"] for n in ("named", "bare"))
    assert len(named) == len(bare) == 1
    assert named[0].startswith("all pictures are from camera 'cam0'") and bare[0].startswith("no cameras are known")


def test_check_names_unreadable_files(tmp_path):
    crops(tmp_path)
    (tmp_path/"cam0/bad\nname.jpg").write_bytes(whole[:100])
    report = check_images(list_images(tmp_path))
    assert not report["sufficient"] and len(report["unreadable"]) == 1
    assert "bad\\nname.jpg" in report["unreadable"][0]["path"]
    assert (report["images"], report["readable"]) == (121, 120)


# ---- identities, splits or cameras?

def collection(home, folders, each, name="{folder}_c{cam}_{i}.jpg"):
    for folder in folders:
        for i in range(each):
            path = home/folder/name.format(folder=Path(folder).name, cam=1 + i % 2, i=i)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    return home


def doubt(root, pattern=None): return list_images(root, pattern).attrs["doubt"]


def given_pattern(said): return said.split("--pattern '")[1].split("'")[0]


def test_folders_of_identities_are_asked_about(tmp_path):
    root = collection(tmp_path/"people", [f"{i:04d}" for i in range(1, 41)], 4)
    said = doubt(root)
    assert said.startswith("are these identities or splits? 40 sub-folders") and "0001/0001_c1_0.jpg" in said
    assert said.endswith("--pattern '(?P<cam>[^/]+)/'")
    found = list_images(root, given_pattern(said))
    assert found.pid.tolist() == [i for i in range(1, 41) for _ in range(4)] and set(found.camid) == {"1", "2"}
    assert not doubt(root, given_pattern(said)) and not doubt(root, "(?P<cam>[^/]+)/")
    with pytest.warns(UserWarning, match="are these identities or splits"): load_folder(root)
    write_table(list_images(root), root/"images.csv")
    assert not doubt(root) and not doubt(root/"images.csv")


@pytest.mark.parametrize("name, cameras", [
    ("c{cam}_{i}.jpg", {"1", "2"}), ("{i}.jpg", {""}), ("x_cam{cam}_{i}.png", {"1", "2"}),
    ("{folder}C{cam}T0001F{i:03d}.jpg", {"1", "2"})])
def test_the_pattern_for_identities_reads_what_is_there(tmp_path, name, cameras):
    root = collection(tmp_path, [f"p{i}" for i in range(1, 36)], 3, name)
    found = list_images(root, given_pattern(doubt(root)))
    assert set(found.camid) == cameras and set(found.person) == {f"p{i}" for i in range(1, 36)}


@pytest.mark.parametrize("folders, name", [
    (("image_train", "image_query", "image_test"), "{i:04d}_c00{cam}_0003_0.jpg"),
    (("bounding_box_train", "query", "bounding_box_test"), "{i:04d}_c{cam}s1_0003_00.jpg"),
    (("train/x", "gallery/x", "query/x"), "{i:04d}_c{cam}_f003.jpg"),
    (("train/1", "test/1", "query/1"), "c{cam}_{i}.jpg"), (("train/1", "test/1"), "{i}.jpg")])
def test_folders_of_splits_are_asked_about(tmp_path, folders, name):
    for folder in folders: collection(tmp_path, [folder], 3, name)
    for path in list(tmp_path.rglob("0000_*")): path.unlink()                    # a query of nobody would be a fault
    said = doubt(tmp_path)
    assert said.startswith("are these identities or splits? sub-folders such as") and "look like splits" in said
    found = list_images(tmp_path, given_pattern(said))
    assert set(found.split) == {split_of(f.split("/")[0]) for f in folders} and (found.pid > 0).all()
    collection(tmp_path, ["gt_bbox"], 1, "{i:04d}_c{cam}s1_0003_00.jpg")
    assert "once gt_bbox lie elsewhere" in doubt(tmp_path)


@pytest.mark.parametrize("folders, each", [
    ([f"cam{i}" for i in range(30)], 3), ([f"cam{i}" for i in range(40)], 60), (["platform", "train", "bus"], 3),
    (["test_gate", "train_station"], 2), ([f"Camera {i}" for i in range(12)], 4),
    ([f"hall{i}" for i in range(12)], 24)])
def test_cameras_are_not_doubted(tmp_path, folders, each):
    name = "{i}.jpg" if folders[0] == "hall0" else "{folder}_c{cam}_{i}.jpg"
    assert not doubt(collection(tmp_path, folders, each, name))


@pytest.mark.parametrize("folders, each, name", [
    ([f"turtle_{i}" for i in range(12)], 4, "{i}.jpg"),
    ([f"{i:04d}" for i in range(20)], 6, "{folder}_c{cam}s1_{i}.jpg"),
    ([f"{i:04d}" for i in range(8)], 30, "c{cam}_{i}.jpg"),
    ([f"p{i}/cam{k}" for i in range(5) for k in range(3)], 20, "{i}.jpg")],
    ids=["twelve turtles", "twenty people", "eight people with many pictures", "a folder a camera inside"])
def test_few_folders_of_identities_are_asked_about(tmp_path, folders, each, name):
    said = doubt(collection(tmp_path, folders, each, name))
    found = list_images(tmp_path, given_pattern(said))
    assert len(set(found.pid)) == len({f.split("/")[0] for f in folders}) and len(found) == len(folders)*each


@pytest.mark.parametrize("folders, cameras", [
    ([f"crops/cam{k}" for k in range(3)], ["cam0", "cam1", "cam2"]),
    ([f"site{s}/cam{k}" for s in "12" for k in range(2)], [f"site{s}/cam{k}" for s in "12" for k in range(2)])],
    ids=["wrapper", "sites"])
def test_cameras_one_level_deeper_are_asked_about(tmp_path, folders, cameras):
    said = doubt(collection(tmp_path, folders, 30, "{i}.jpg"))
    assert said.startswith("are the cameras one level deeper? ")
    assert sorted(set(list_images(tmp_path, given_pattern(said)).camid)) == cameras
    assert not doubt(tmp_path, "(?P<cam>[^/]+)/")


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "test", "query")], ids="-".join)
def test_cameras_in_splits_are_no_identities(tmp_path, splits):
    said = doubt(collection(tmp_path, [f"{s}/cam{k}" for s in splits for k in range(3)], 20, "{i}.jpg"))
    assert "look like splits" in said and "identity cam" not in said
    if "query" in splits: assert "a table path,camid,pid,split" in said              # a query needs a pid
    else:
        found = list_images(tmp_path, given_pattern(said))
        assert set(found.camid) == {"cam0", "cam1", "cam2"} and set(found.pid) == {-1}


@pytest.mark.parametrize("name, pattern", [
    ("{i:04d}_c{cam}s1_0_00.jpg", r"(?P<pid>-?\d+)_c(am)?(?P<cam>\d+)"),
    ("cam{cam}_{i}.jpg", r"(^|[_-])c(am(era)?)?[_-]?(?P<cam>\d+)[_-]")])
def test_names_that_tell_the_cameras_are_pointed_out(tmp_path, name, pattern):
    note, = list_images(collection(tmp_path/"a", [""], 12, name)).attrs["notes"]
    assert note.startswith("the names seem to tell the 2 cameras") and given_pattern(note) == pattern
    assert sorted(set(list_images(tmp_path/"a", pattern).camid)) == ["1", "2"]
    assert not list_images(collection(tmp_path/"b", [""], 12, "{i}.jpg")).attrs["notes"]
    assert not list_images(collection(tmp_path/"c", [""], 12, "c{i}_x.jpg")).attrs["notes"]       # one picture a number


# ---- names and cells

@pytest.mark.parametrize("word", ["nan", "NaN", "None", "NA", "N/A", "<NA>", "null", "NaT"])
def test_words_for_nothing_are_unknown_and_told(tmp_path, word):
    for name in "abc": picture(tmp_path/f"{name}.jpg")
    columns = "path,camid,pid,split,time,track"
    rows = f"a.jpg,{word},{word},{word},{word},{word}\nb.jpg,1,3,,,\nc.jpg,1,4,,,\n"
    path = table(tmp_path/"t.csv", f"{columns}\n{rows}")
    found = read_table(path)
    assert found.camid.tolist() == ["", "1", "1"] and found.pid.tolist() == [-1, 3, 4] and set(found.split) == {"train"}
    assert found.track.tolist() == found.time.tolist() == [""]*3
    assert [n.split(" ")[0] for n in found.attrs["notes"]] == ["camid", "pid", "time", "track"]
    assert repr(word) in found.attrs["notes"][0] and "unknown, in 1 pictures" in found.attrs["notes"][0]
    again = read_table(write_table(found, tmp_path/"u.csv"))
    assert again.camid.tolist() == found.camid.tolist() and not again.attrs["notes"]
    picture(tmp_path/"crops"/word.replace("/", "")/"a.jpg"); picture(tmp_path/"crops/gate/a.jpg")
    if "/" not in word: assert sorted(list_images(tmp_path/"crops").camid) == ["", "gate"]


def test_composed_and_decomposed_letters_are_one_name(tmp_path):
    for i in range(2): picture(tmp_path/f"{i}.jpg")
    path = table(tmp_path/"t.csv", "path,camid,pid\n0.jpg,Caf\u00e9,J\u00fcrgen\n1.jpg,Cafe\u0301,Ju\u0308rgen\n")
    found = read_table(path)
    assert set(found.camid) == {"Caf\u00e9"} and found.pid.tolist() == [1, 1] and not found.attrs["notes"]
    for name in ("Caf\u00e9", "Cafe\u0301"): picture(tmp_path/"crops"/name/"a.jpg")
    assert "how letters are coded" in fault(list_images, tmp_path/"crops")


def test_names_that_are_alike_are_told_and_stay_apart(tmp_path):
    rows = [("0", "cam1", "Bob"), ("1", "Cam 01", "bob"), ("2", "cam01", "007"), ("3", "1", "7"), ("4", "01", "7a")]
    for name, *_ in rows: picture(tmp_path/f"{name}.jpg")
    lines = ["path,camid,pid", *(f"{n}.jpg,{c},{p}" for n, c, p in rows)]
    found = read_table(table(tmp_path/"t.csv", "\n".join(lines)))
    cameras, people = found.attrs["notes"]
    assert cameras.startswith("cameras '01' and '1', 'cam01' and 'cam1' are taken for different ones")
    assert people.startswith("identities '007' and '7', 'Bob' and 'bob' are")
    assert found.camid.nunique() == found.pid.nunique() == 5
    assert any("'cam01' and 'cam1'" in a for a in check_images(found)["advice"])


@pytest.mark.parametrize("one, two, alike", [
    ("cam1", "CAM01", True), ("1", "01", True), ("1e5", "1E+05", True), ("a b", "a_b", True), ("cam1", "cam 1", False),
    ("1_2", "12", False), ("1-12", "11-2", False), ("10", "1", False), ("a0", "a", False), ("00", "0", True),
    ("\uff11", "1", True), ("9"*30, "9"*29 + "8", False), ("nan", "inf", False)])
def test_likeness_by_hand(one, two, alike): assert (likeness_key(one) == likeness_key(two)) == alike


def test_times_that_are_none_are_told(tmp_path):
    for name in "abc": picture(tmp_path/f"{name}.jpg")
    found = read_table(table(tmp_path/"t.csv", "path,time\na.jpg,1.5.2024\nb.jpg,9:00:03\nc.jpg,May 2024\n"))
    assert found.attrs["notes"] == ["the time of 2 pictures cannot be used, first '1.5.2024'; "
                                    "give seconds, 9:00:03 or 2024-05-01T09:00:03"]


@pytest.mark.parametrize("times, says", [
    (["23:59:58", "0:00:02", "9:00", "9:05"], "tracks that last longer than 12 hours: 1, first 'A'"),
    (["9:00:00", "2024-05-01T09:00:05", "", ""], "some times are dates and others are not"),
    (["9:00", "20:59", "9:00", "9:05"], ""), (["0", "86400", "5", ""], ""),
    (["2024-05-01T23:59:58", "2024-05-02T00:00:02", "", ""], "")], ids=["midnight", "both", "day", "seconds", "dates"])
def test_times_that_hold_for_several_days_are_told(tmp_path, times, says):
    for i in range(4): picture(tmp_path/f"{i}.jpg")
    lines = [f"{i}.jpg,1,{'AABB'[i]},{t}" for i, t in enumerate(times)]
    notes = read_table(table(tmp_path/"t.csv", "\n".join(["path,camid,track,time", *lines]))).attrs["notes"]
    assert len(notes) == bool(says) and says in "".join(notes)


@pytest.mark.parametrize("head, encoding, says", [
    ("path;camid", "utf-8", "with semicolons"), ("path\tcamid", "utf-8", "with tabs"),
    ("path|camid", "utf-8", "vertical"),
    ("Path,CamID", "utf-8", "in lower case"), (",path,camid", "utf-8", "without a name"),
    ("path,camid", "utf-16", "is no text in UTF-8"), ("\0\1JFIF", "utf-8", "is no text in UTF-8")],
    ids=["semicolons", "tabs", "bars", "upper case", "index column", "utf-16", "a picture"])
def test_header_that_is_nearly_right_gets_its_remedy(tmp_path, head, encoding, says):
    assert says in fault(read_table, table(tmp_path/"t.csv", f"{head}\na.jpg,1\n", encoding))


# ---- what is not read, and what is in pictures

def test_pictures_under_other_names_are_told(tmp_path):
    picture(tmp_path/"cam1/a.jpg"); picture(tmp_path/"cam1/b.png")
    for name in ("x", "y.jpe", ".hidden"): shutil.copy(tmp_path/"cam1/a.jpg", tmp_path/"cam1"/name)
    (tmp_path/"cam1/notes.txt").write_text("x"); (tmp_path/"cam1/Thumbs.db").write_bytes(b"\xd0\xcf"*9)
    (tmp_path/"cam1/film.MP4").write_bytes(b"")
    (tmp_path/"cam1/gone.jpg").symlink_to(tmp_path/"nowhere.jpg"); (tmp_path/"cam1/self.png").symlink_to("self.png")
    links, unnamed, videos = ignored_files(tmp_path)
    assert "2 left out, first cam1/gone.jpg" in links and "2 left out, first cam1/x;" in unnamed
    assert "1 left out, first cam1/film.MP4" in videos
    only = tmp_path/"other"; only.mkdir(); (only/"a.tif").write_bytes(b"")
    assert "1 left out, first a.tif; convert" in fault(find_images, only)


@pytest.mark.parametrize("content, says", [
    (b"", "the file is empty"), (b"hello", "no picture, or its beginning is damaged"),
    (encoded(Image.new("L", (4, 4)), "GIF"), "its content is GIF, whatever its name says); convert it")],
    ids=["empty", "text", "gif"])
def test_unreadable_pictures_say_what_they_are(tmp_path, content, says):
    (tmp_path/"a.jpg").write_bytes(content)
    assert says in fault(read_image, tmp_path/"a.jpg")


@pytest.mark.parametrize("name", ["gone.jpg", "x"*5000, "nul\0.jpg"], ids=["gone", "long", "nul"])
def test_missing_pictures_are_called_missing(tmp_path, name):
    assert "there is no such file" in fault(read_image, tmp_path/name)


def test_pictures_that_show_nothing_are_told(tmp_path):
    crops(tmp_path)
    deep = np.random.default_rng(0).integers(0, 4096, (40, 20)).astype(np.uint16)       # 12 bits of 16
    Image.fromarray(deep).save(tmp_path/"cam0/deep.png")
    Image.new("RGB", (1, 200), (255, 0, 0)).save(tmp_path/"cam1/thin.png")
    tiny, dark = check_images(list_images(tmp_path))["advice"]
    assert tiny.startswith("1 pictures are less than 8 pixels") and "1 pictures are almost black" in dark
    assert "cam0/deep.png" in dark


def test_many_small_cameras_are_one_note(tmp_path):
    crops(tmp_path, count=120, cameras=24)
    advice = check_images(list_images(tmp_path))["advice"]
    assert len(advice) == 11 and advice[-1] == "few pictures from 14 more cameras"


def test_a_doubt_is_one_note_and_no_verdict(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        for k in range(3):
            (tmp_path/f"{i:03d}").mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 20, 3), dtype=np.uint8)).save(tmp_path/f"{i:03d}/{k}.png")
    report = check_images(list_images(tmp_path), ignored_files(tmp_path))
    assert len(report["advice"]) == 1 and report["advice"] == [report["doubt"]] and not report["sufficient"]
    text = report_in_words(report)
    assert text.count("note:") == 1 and "enough" not in text.lower() and "in 40 sub-folders" in text
    report = check_images(list_images(tmp_path, "(?P<cam>[^/]+)/"))
    assert report["sufficient"] and report_in_words(report).endswith("enough pictures to train on, but mind the notes")


def test_one_picture_an_identity_is_told(tmp_path):
    crops(tmp_path)
    listed = list_images(tmp_path)
    told = lambda pids: [a for a in check_images(listed.assign(pid=pids))["advice"] if "positive pairs" in a]
    assert len(told(range(120))) == 1 and "120 identities" in told(range(120))[0]
    assert not told([0, *range(119)]) and not told([-1]*120)


def test_unreadable_files_do_not_say_that_there_are_too_few(tmp_path):
    crops(tmp_path)
    (tmp_path/"cam0/bad.jpg").write_bytes(whole[:100]); (tmp_path/"cam1/bad.jpg").write_bytes(b"")
    listed = list_images(tmp_path)
    report = check_images(listed)
    text = report_in_words(report)
    assert not report["sufficient"] and "NOT" not in text and "--skip-unreadable" in text
    assert text.splitlines()[-1] == "enough pictures to train on, but 2 of 122 files cannot be read: mind the notes"
    left = readable_images(listed, report)
    assert len(left) == 120 and "bad.jpg" not in {p.name for p in left.path} and check_images(left)["sufficient"]
    few = check_images(listed[-50:])
    assert few["unreadable"] and report_in_words(few).endswith("NOT enough to train on")


@pytest.mark.parametrize("name", ["g.safetensors", "g.parquet"])
def test_a_gallery_is_no_table_of_crops(tmp_path, name):
    (tmp_path/name).write_bytes(b"PAR1\x15")
    with pytest.raises(DataError, match="is no table of crops; `upl-reid index` brings"): list_images(tmp_path/name)


# ---- what tables and names say in other words

@pytest.mark.parametrize("word", ["unknown", "Unknown", "?", "-", "UNLABELED", "unlabelled", "None", "-1", "-1.0"])
def test_a_word_for_nothing_is_no_camera_and_no_track(tmp_path, word):
    for n in "abc": picture(tmp_path/f"{n}.jpg")
    found = read_table(table(tmp_path/"t.csv", f"path,camid,track\na.jpg,{word},{word}\nb.jpg,c1,t1\nc.jpg,{word},\n"))
    assert found.camid.tolist() == ["", "c1", ""] and found.track.tolist() == ["", "t1", ""]
    said = word.removesuffix(".0")
    assert found.attrs["notes"] == [f"camid {said!r} is read as unknown, in 2 pictures",
                                    f"track {said!r} is read as unknown, in 1 pictures"]
    assert as_domain(found).train.tracks.tolist() == [-1, 0, -1]


def test_a_word_for_nobody_in_a_folder_s_names_is_nobody(tmp_path):
    for n in ("unknown/a.jpg", "unknown/b.jpg", "anna/c.jpg", "?/d.jpg"): picture(tmp_path/n)
    found = read_folder(tmp_path, "^(?P<pid>[^/]+)/")
    assert sorted(zip(found.person, found.pid)) == [("", -1)]*3 + [("anna", 1)]
    assert found.attrs["notes"] == ["pid '?' is read as unknown, in 3 pictures"]


@pytest.mark.parametrize("pattern, group", [
    (r"(?P<camid>\d+)", "camid"), (r"^(?P<identity>\d+)_c(?P<cam>\d+)", "identity"), (r"(?P<pid>\d+)(?P<x>a)?", "x")])
def test_a_group_that_means_nothing_is_named(pattern, group):
    assert f"has the group {group!r}, which means nothing here" in fault(compile_pattern, pattern)


def test_a_probe_is_a_query(tmp_path):
    for part in ("gallery", "probe", "train"):
        for camera in (1, 2): picture(tmp_path/part/f"0001_c{camera}_{part}.jpg")
    found = read_folder(tmp_path, r"^(?P<split>[^/]+)/(?P<pid>\d+)_c(?P<cam>\d+)")
    assert sorted(found.split) == ["gallery"]*2 + ["query"]*2 + ["train"]*2


@pytest.mark.parametrize("times, words", [
    (["2024-05-01T09:00:00+02:00", "2024-05-01T09:00:05"], "1 dates name a time zone, and 1 do not"),
    (["9:00:00", "1714554005"], "1 times are times of day, and 1 are numbers"),
    (["1714554005", "1714554005123"], "1 times are numbers as large as milliseconds"),
    (["20240501", "20240502"], "2 times look like days without dashes"),
    (["45:75", "9:00"], "the time of 1 pictures cannot be used, first '45:75'"),
    (["2024-05-01", "9:00"], "some times are dates and others are not"),
    (["2024-05-01T09:00:00Z", "2024-05-01T09:00:00+02:00"], ""), (["9:00", "9:00:01.5"], ""),
    (["5", "6.5", "1e3"], "")])
def test_times_of_several_kinds_are_told(tmp_path, times, words):
    for i in range(len(times)): picture(tmp_path/f"{i}.jpg")
    notes = read_table(table(tmp_path/"t.csv", "path,time\n" + "".join(
        f"{i}.jpg,{time}\n" for i, time in enumerate(times)))).attrs["notes"]
    assert len(notes) == bool(words) and all(words in note for note in notes)


def test_names_that_differ_by_what_cannot_be_seen_are_alike():
    for pair in (["cam1", "cam1\u200b"], ["1", "١"], ["bob", "bob\ufeff"]): assert len(alike_note("cameras", pair)) == 1
    assert alike_note("cameras", ["cam1", "cam2"]) == []


def test_a_picture_and_a_link_to_it_are_one_picture(tmp_path):
    "As query and gallery image of unknown cameras it would be its own match."
    first, other = picture(tmp_path/"a.jpg"), picture(tmp_path/"b.jpg")
    (tmp_path/"link").symlink_to(tmp_path)
    rows = [(first, "", "1", "gallery", "", ""), (tmp_path/"link/a.jpg", "", "1", "query", "", ""),
            (other, "", "1", "gallery", "", "")]
    numbers = camera_numbers(make_listing(rows))[1]
    assert numbers[0] == numbers[1] != numbers[2]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_turned_once(tmp_path, orientation, kind):
    "A path goes through `read_image` and then through `as_pixels`, as do pictures that were read before."
    flat = np.zeros((24, 12, 3), np.uint8)
    flat[:8, :6] = 250
    (tmp_path/"p").write_bytes(encoded(Image.fromarray(flat), kind, exif=turned(orientation)))
    once = read_image(tmp_path/"p")
    assert not once.getexif() and np.array_equal(upright_rgb(once), once)
    expected = np.asarray(once.resize((12, 24), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    opened = Image.open(tmp_path/"p")
    for one in (tmp_path/"p", once, opened): assert np.array_equal(as_pixels(one, (24, 12)), expected)
    assert opened.getexif()[274] == orientation                          # the caller's picture keeps what it knows


def test_a_picture_of_32_bit_numbers_has_no_white():
    with pytest.raises(DataError, match="32-bit whole numbers has no fixed white; give bytes"):
        as_pixels(Image.fromarray(np.full((24, 12), 200, np.int32)), (24, 12))


@pytest.mark.parametrize("word", ["unknown", "-", "?", "probe"])
def test_a_split_that_is_none_is_refused(tmp_path, word):
    picture(tmp_path/"a.jpg")
    words = fault(read_table, table(tmp_path/"t.csv", f"path,split\na.jpg,{word}\n"))
    assert f"has the split {word!r}; use train, query or gallery" in words


def test_a_pattern_may_repeat_a_group_of_its_own():
    assert compile_pattern(r"^(?P<folder>[^/]+)/(?P=folder)_c(?P<cam>\d+)").search("a/a_c3")["cam"] == "3"


def test_tables_of_identities_and_of_crops_know_the_same_places(tmp_path):
    for n in "ab": picture(tmp_path/f"{n}.jpg")
    made = table(tmp_path/"t.csv", "path,camera,identity,track\na.jpg,-1,-,-1.0\nb.jpg,c1,anna,t\n")
    found = read_table(made)
    places = [row[1:3] + row[4:5] for row in identity_rows(made)]
    assert places == list(zip(found.camid, found.person, found.track)) == [("", "", ""), ("c1", "anna", "t")]
