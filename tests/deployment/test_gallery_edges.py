"""Small inputs at the edges of a gallery: odd numbers and names, tables that are changed, parts of killed writers."""
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from faults import fault
from upl_reid.core import ConfigError, part_name
from upl_reid.deployment.gallery import draw_hits, Gallery, page_name, page_text, unit_vectors
from upl_reid.deployment.gallery_homes import export_parquet, import_parquet, in_memory, open_gallery
from upl_reid.deployment.match_calibration import Calibration

X = np.eye(3, dtype=np.float32)


def filled(home):
    gallery = open_gallery(home, 3)
    gallery.add(X, ["p0", "p1", "p2"], ["a", "b", ""])
    gallery.commit()
    return gallery


@pytest.mark.parametrize("length", [1e20, 1e-20, 1e-25, 1e30, 3e-39], ids=str)
def test_the_length_of_a_vector_does_not_matter(length):
    x = np.random.default_rng(0).normal(size=(4, 8))
    scaled = x.copy()
    scaled[1] *= length
    np.testing.assert_allclose(unit_vectors(scaled), unit_vectors(x), atol=1e-6 if length > 1e-38 else .1)
    for wrong in (0, np.inf, np.nan):
        bad = x.copy()
        bad[2, :] = wrong
        assert "1 of 4 vectors are zero or not finite, first row 2" in fault(unit_vectors, bad)


def test_tensors_of_every_kind_are_vectors():
    for x in (torch.eye(3, requires_grad=True), torch.eye(3, dtype=torch.bfloat16), torch.eye(3, dtype=torch.float64)):
        np.testing.assert_allclose(unit_vectors(x, 3), np.eye(3))
    for x in ([*torch.eye(3, requires_grad=True)], [*np.eye(3)], np.eye(3).astype(object), np.eye(3, dtype=bool),
              (*torch.eye(3, dtype=torch.bfloat16),), pd.DataFrame(np.eye(3)), np.eye(3).tolist()):
        np.testing.assert_allclose(unit_vectors(x, 3), np.eye(3))
    for dim in (None, 3): assert "put it into a list" in fault(unit_vectors, np.ones(3), dim)
    assert "from the model" in fault(unit_vectors, np.ones(4), 3) and "from the model" in fault(unit_vectors, X, 4)


def test_one_name_for_all_is_of_any_kind(home):
    with open_gallery(home, 3) as gallery:
        gallery.add(X, (f"p{i}" for i in range(3)), 3, datetime(2026, 5, 31), identities=np.array(["a", "b", "c"]))
        assert gallery.rows.camera.tolist() == ["3"]*3 and gallery.rows.time.tolist() == ["2026-05-31 00:00:00"]*3
        assert gallery.rows.identity.tolist() == ["a", "b", "c"] and gallery.rows.path.tolist() == ["p0", "p1", "p2"]
        assert len(gallery.search(X[:1], 3, cameras=3)) == 3 and len(gallery.search(X[:1], 3, without=3)) == 0
        gallery.update(X[:1], np.array(["p0"]), np.array(["other"]))
        assert gallery.rows.set_index("path").camera["p0"] == "other" and gallery.remove(cameras=3) == 2


@pytest.mark.parametrize("x", [
    [[1, 2], [3]], [torch.ones(2), torch.ones(3)], [["1", "0"]], np.array([["1", "0"]]), [[1, "0"]], [[b"1", b"0"]],
    np.array([["1", 0]], object), [[1j, 0]], np.array([[1j, 0]], object), torch.tensor([[1j, 0]]), [[None, {}]],
    np.array([["2026-05-31"]*2], "datetime64[D]"), "12", (v for v in [[1, 2]])],
    ids=lambda x: "generator" if hasattr(x, "gi_frame") else repr(x))
def test_what_holds_no_real_numbers_is_no_vector(x): assert "; give " in fault(unit_vectors, x)


@pytest.mark.parametrize("names, text", [
    (np.array([1., 2, np.nan]), ["1", "2", ""]), ([1., -2., .5], ["1", "-2", "0.5"]),
    ([np.inf, 1e3, 7], ["inf", "1000", "7"]),
    (np.float32([3, 4, 5]), ["3", "4", "5"]), (torch.tensor([1, 2, 3]), ["1", "2", "3"]), (np.array("a"), ["a"]*3),
    (np.array(2.), ["2"]*3), ([np.array("a"), np.array(1.), "1.0"], ["a", "1", "1.0"]), (True, ["True"]*3),
    (np.array(["2026-05-31"]*3, "datetime64[ns]"), ["2026-05-31T00:00:00.000000000"]*3)], ids=repr)
def test_numbers_are_names_as_tables_have_them(home, names, text):
    with open_gallery(home, 3) as gallery:
        gallery.add(X, [*"abc"], names, names, None, names)
        for column in ("camera", "time", "identity"): assert gallery.rows[column].tolist() == text
        if text[0] == "1": assert len(gallery.search(X[:1], 3, cameras=1.)) == 1 == gallery.remove(cameras=1)


@pytest.mark.parametrize("names", [
    b"cam1", [b"cam1"]*3, np.array([b"cam1"]*3), [bytearray(b"a")]*3, [["cam1"]]*3, np.array([["cam1"]]*3),
    [{"a"}, "b", "c"], {*"abc"}, frozenset("abc"), dict(a=1, b=2, c=3), pd.DataFrame(dict(a=[*"abc"], b=1, c=2)),
    [("a", "b")]*3, torch.eye(3)], ids=lambda v: type(v).__name__)
def test_what_is_not_one_name_for_each_vector_is_refused(home, names):
    with filled(home) as gallery:
        for columns in ((names,), ([*"xyz"], names), ([*"xyz"], None, names), ([*"xyz"], None, None, None, names)):
            assert "give" in fault(gallery.add, X, *columns) and len(gallery) == 3
        assert "give" in fault(gallery.search, X, without=names)
        assert gallery.remove({"p0", "p1"}) == 2                            # the order of what goes does not matter
    assert "with the one path 'p'" in fault(Gallery(3).add, X, np.array("p"))


def test_a_name_that_is_no_text_is_refused_when_it_is_added(home):
    with filled(home) as gallery:
        assert "is no text of a file system" in fault(gallery.add, X[:1], ["\ud800x"]) and len(gallery) == 3


def test_numbers_of_numpy_are_saved(tmp_path):
    told = Calibration(np.float32(10), np.float32(-6), np.array([.1, .2], np.float32))
    Gallery(np.int64(3), told, np.float32(.9)).add(X, list("abc")).save(tmp_path/"g.safetensors")
    assert Gallery.load(tmp_path/"g.safetensors").calibration == told


def test_a_table_of_rows_belongs_to_the_caller(home):
    with filled(home) as gallery:
        table = gallery.rows
        table["camera"] = "x"
        table.loc[0, "path"] = "other"
        assert gallery.rows.camera.tolist() == ["a", "b", ""] and gallery.rows.path[0] == "p0"


def test_hits_from_before_a_file_was_read_anew_are_void(tmp_path):
    filled(tmp_path/"g.safetensors").close()
    with open_gallery(tmp_path/"g.safetensors") as shown:
        hits = shown.nearest(X[1:2], 1)
        assert hits.table().path.tolist() == ["p1"]
        with open_gallery(tmp_path/"g.safetensors", change=True) as other:
            other.remove("p0")
            other.commit()
        assert hits.table().path.tolist() == ["p1"] and shown.refresh() == 1
        assert "search again" in fault(hits.table) and shown.nearest(X[1:2], 1).table().path.tolist() == ["p1"]


def test_parts_that_a_killed_writer_left_are_erased_with_what_is_forgotten(tmp_path):
    home = tmp_path/"g[1].safetensors"
    filled(home).close()
    with ThreadPoolExecutor(1) as pool:                     # another thread: it writes under other names
        part, other = pool.map(part_name, (home, tmp_path/"g1.safetensors"))
    for file in (part, other): file.write_bytes(home.read_bytes())
    with open_gallery(home) as gallery:
        gallery.purge()
        assert part.exists()                                # another process may be writing it
    with open_gallery(home, change=True) as gallery:
        gallery.remove("p0")
        gallery.purge()
    assert not part.exists() and other.exists() and b"p0" not in home.read_bytes()


def test_numbers_that_make_no_sense_are_one_sentence_in_both_homes(home):
    with filled(home) as gallery:
        for wrong in (0, -1, 2.5): assert f"k={wrong}" in fault(gallery.search, X, wrong, error=ConfigError)
        assert len(gallery.search(X, np.int64(2))) == 6 and len(gallery.search(X, 10**30)) == 9
        for wrong in ((-1,), (0, -1)): assert "from 0 on" in fault(gallery.positions, *wrong, error=ConfigError)
        p = gallery.positions()
        assert gallery.entries_at([p[1], p[0], p[1]]).path.tolist() == ["p1", "p0", "p1"]
        assert gallery.set_identities({"p1": "Ann", Path("p1"): "Ben"}) == 1 and gallery.rows.identity[1] == "Ben"


def test_a_camera_that_is_not_there_is_told(home):
    with filled(home) as gallery:
        with pytest.warns(UserWarning, match="no image .* is from camera typo, so no hit is from it") as told:
            assert len(gallery.search(X, 3, cameras=["typo", "a"])) == 3
        assert told[0].filename == __file__
        with pytest.warns(UserWarning, match="camera typo, so nothing is left out") as told:
            assert len(gallery.search(X, 3, without="typo")) == 9
        assert told[0].filename == __file__


def test_a_model_is_not_read_as_a_gallery(saved):
    assert "it has no mark of a gallery, and may be a model" in fault(open_gallery, saved)


def test_cameras_are_counted_in_words():
    for cameras, words in ((None, " 0 cameras,"), ("a", " 1 camera,"), (["a", "b", ""], " 2 cameras,")):
        assert words in repr(Gallery(3).add(X, list("abc"), cameras))


def test_a_figure_needs_a_query():
    assert "no query to draw" in fault(draw_hits, [], Gallery(3).add(X, ["a", "b", "c"]).search(X), error=ConfigError)


def test_pages_keep_joiners_and_spaces_of_scripts():
    for name in ("علی\u200cرضا.jpg", "क्\u200dष", "8.00\u202fAM.png"): assert page_text(name) == f"<bdi>{name}</bdi>"
    assert page_name("a\u202eb\nc<\x00") == "a\\u202eb\\nc<\\x00" and len(page_name("x"*600)) == 500


# ---------------------------------------------------------------- Parquet

def exported(tmp_path, told):
    with open_gallery(tmp_path/"old.safetensors", 3, told, recall=.9, model="0a") as gallery:
        gallery.add(X, ["p0", "p1", "p2"])
        export_parquet(gallery, tmp_path/"g.parquet")
    return tmp_path/"g.parquet"


def test_an_empty_gallery_takes_recall_and_higher_thresholds_from_parquet(home, tmp_path):
    pytest.importorskip("pyarrow")
    file, own = exported(tmp_path, Calibration(10., -6., (.2, .9))), Calibration(9., -5., (.5, .6))
    with open_gallery(home, 3, own, model="0a") as gallery:
        import_parquet(file, gallery)
        gallery.commit()
    with open_gallery(home) as gallery:
        assert gallery.calibration == Calibration(9., -5., (.5, .9)) and gallery.recall == .9
        assert in_memory(gallery).recall == .9
        gallery.calibration, gallery.recall = own, .95
        assert import_parquet(file, gallery) == 3                                   # it has thresholds of its own
        assert gallery.calibration == own and gallery.recall == .95 and len(gallery) == 3


@pytest.mark.parametrize("case", ["cut", "zero vector"])
def test_a_damaged_parquet_file_is_named_and_adds_nothing(home, tmp_path, case):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = exported(tmp_path, None)
    table = parquet.read_table(file)
    if case == "cut":
        parquet.write_table(pa.concat_tables([table]*40), file, compression="zstd", use_dictionary=False)
        content = bytearray(file.read_bytes())
        content[40:400] = bytes(360)
        file.write_bytes(content)
    else:
        zero = pa.FixedSizeListArray.from_arrays(pa.array([0., 0, 0]*3, pa.float32()), 3)
        parquet.write_table(pa.concat_tables([table]*3000 + [table.set_column(5, table.schema.field(5), zero)]), file)
    with open_gallery(home, 3, model="0a") as gallery:
        assert f"{file} is damaged" in fault(import_parquet, file, gallery) and len(gallery) == 0
