"""Tables of answers, written and read, and positions of pairs against a loop."""
import os

import numpy as np
import pytest

from upl_reid.core import DataError
from upl_reid.data.answers import find_answers, read_answers, write_answers
from upl_reid.deployment.browse import answers_about

STRANGE = ["/a/with, comma.jpg", "/a/庭 \"quoted\".jpg", "/a/\udce4.jpg", "/a/new\nline.jpg", "=1+1.jpg"]


def test_a_table_comes_back(tmp_path, monkeypatch):
    (tmp_path/"here").mkdir()
    monkeypatch.chdir(tmp_path/"here")
    rows = [(a, b, bool(i % 2)) for i, (a, b) in enumerate(zip(STRANGE, STRANGE[1:]))]
    whole = [(os.path.abspath(a), os.path.abspath(b), same) for a, b, same in rows]
    assert read_answers(write_answers(rows, tmp_path/"t.csv")) == whole
    assert read_answers(write_answers([], tmp_path/"none.csv")) == []


@pytest.mark.parametrize("text, words", [
    ("a,b\n1,2\n", "has the columns a,b"), ("first,second,same\n\nx,y,1\nx,y,yes\n", "line 4 .*same is 'yes'"),
    ("first,second,same\n,y,1\n", "line 2"),
    ("first,second,same\n  ,y,1\n", "line 2"), ("first,second,same\n\"x,y,1\n", "cannot be read"),
    ("", "has the columns .none"), ("first;second;same\n", "with commas"), ("a,b\n", "has the columns a,b"),
    ("first,second,same\nx,y,1,2\n", "line 2")],
    ids=["columns", "value", "no-path", "blank-path", "quote", "empty", "semicolons", "no-rows", "fields"])
def test_another_table_is_refused(tmp_path, text, words):
    (tmp_path/"t.csv").write_text(text)
    with pytest.raises(DataError, match=words): read_answers(tmp_path/"t.csv")
    with pytest.raises(DataError, match="cannot be read"): read_answers(tmp_path/"gone.csv")


def test_relative_paths_count_from_the_table(tmp_path, monkeypatch):
    (tmp_path/"x").mkdir()
    (tmp_path/"x/a.csv").write_text("first,second,same\n0.jpg,../1.jpg,True\n~/2.jpg,0.jpg,0.0\n")
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", str(tmp_path/"home"))
    rows = read_answers(tmp_path/"x/a.csv")
    assert rows == [(f"{tmp_path}/x/0.jpg", f"{tmp_path}/1.jpg", True),
                    (f"{tmp_path}/home/2.jpg", f"{tmp_path}/x/0.jpg", False)]
    assert find_answers([tmp_path/"x/0.jpg", tmp_path/"1.jpg"], rows).pairs.tolist() == [[0, 1]]
    assert answers_about(tmp_path/"x/a.csv").values.tolist() == [list(row) for row in rows]
    (tmp_path/"x/B.CSV").write_bytes((tmp_path/"x/a.csv").read_bytes())
    assert answers_about(tmp_path/"x/B.CSV").values.tolist() == [list(row) for row in rows]


def test_spaces_around_names_and_paths_do_not_count(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg", "c.jpg "): (tmp_path/name).write_bytes(b"")
    (tmp_path/"t.csv").write_text("first , second, same\na.jpg , b.jpg , 1 \n a.jpg,c.jpg ,0\ngone.jpg , b.jpg,1\n")
    rows = read_answers(tmp_path/"t.csv")
    names = [(*(os.path.relpath(name, tmp_path) for name in pair), same) for *pair, same in rows]
    assert names == [("a.jpg", "b.jpg", True), ("a.jpg", "c.jpg ", False), ("gone.jpg", "b.jpg", True)]
    assert read_answers(write_answers(rows, tmp_path/"again.csv")) == rows


@pytest.mark.parametrize("same", [True, 1, 1., "1", " TRUE ", "1.0", np.True_, np.float32(1), np.array(1)])
def test_an_answer_means_the_same_in_tables_and_programs(tmp_path, same):
    rows = [("/a.jpg", "/b.jpg", same)]
    no = [("/a.jpg", "/b.jpg", str(same).strip().lower().replace("1", "0").replace("true", "false"))]
    for given, means in ((rows, True), (no, False)):
        assert find_answers(["/a.jpg", "/b.jpg"], given).same.tolist() == [means]
        assert read_answers(write_answers(given, tmp_path/"t.csv")) == [("/a.jpg", "/b.jpg", means)]


@pytest.mark.parametrize("same", [2, -1, .5, float("nan"), None, "", "yes", "same", b"1", [True], np.array([1, 0])])
def test_an_answer_without_a_meaning_is_refused(tmp_path, same):
    words = r"answer about /a.jpg and /b.jpg is .*; give 1 for one person, 0 for two"
    with pytest.raises(DataError, match=words): write_answers([("/a.jpg", "/b.jpg", same)], tmp_path/"t.csv")
    for paths in ([], ["/a.jpg", "/b.jpg"]):
        with pytest.raises(DataError, match=words): find_answers(paths, [("/a.jpg", "/b.jpg", same)])
    assert not (tmp_path/"t.csv").exists()


@pytest.mark.parametrize("seed", range(6))
def test_pairs_among_images_against_a_loop(seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(seed)
    names = [str(tmp_path/f"{i}.jpg") for i in range(12)]
    paths = [names[i] if i % 2 else f"{i}.jpg" for i in rng.permutation(9)]          # relative names too
    rows = [(names[a], names[b], bool(s)) for a, b, s in rng.integers(0, 12, (40, 3)) % [12, 12, 2] if a != b]
    found, wanted, absent = find_answers(paths, rows), set(), 0
    where = {str(tmp_path/p) if not p.startswith("/") else p: i for i, p in enumerate(paths)}
    for first, second, same in rows:
        if first in where and second in where:
            a, b = where[first], where[second]
            wanted.add((min(a, b), max(a, b), same))
        else: absent += 1
    assert [(*p, s) for p, s in zip(found.pairs.tolist(), found.same.tolist())] == sorted(wanted)
    assert found.left_out == absent
    again = find_answers(paths, [(b, a, s) for a, b, s in reversed(rows)])
    assert again.mark == found.mark and len(found.mark) == 8
    if len(found.same): # another answer, another mark
        p = found.pairs[0]
        other = [(paths[p[0]], paths[p[1]], not found.same[0]), *rows]
        extra = (int(p[0]), int(p[1]), not found.same[0]) in wanted
        assert (find_answers(paths, other).mark == found.mark) == extra


def test_a_picture_with_itself_is_refused():
    with pytest.raises(DataError, match="a.jpg is answered with itself"):
        find_answers(["a.jpg", "b.jpg"], [("a.jpg", "./a.jpg", True)])
