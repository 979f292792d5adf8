"""A gallery in a file and one in PostgreSQL do the same: each test runs for both, beside a naive computation."""
import subprocess
import sys

import filelock
import numpy as np
import pytest

from faults import fault
from upl_reid.core import ConfigError, DataError
from upl_reid.deployment.gallery import KNOWN, unit_vectors
from upl_reid.deployment.gallery_homes import (export_parquet, FileGallery, GalleryHome, import_parquet, open_gallery,
                                               parquet_facts, ReadableGallery)
from upl_reid.deployment.match_calibration import Calibration
from upl_reid.deployment.postgres_gallery import PostgresGallery

TOLD = Calibration(10., -6., (.7, .8, .9, .95, .99))
HOSTILE = ["'; DROP TABLE upl_reid.galleries; --", '"x" OR 1=1', "%s %(path)s {table}", "back\\slash \\\\x41",
           "line\nbreak\t", "caf\udcff\udc80", "监控/摄像头 1.jpg", "x"*5000, "$1 $$ $tag$", "\\N", " ", "é" + "\u202e"]


def people(n, d=16, seed=0):
    rng = np.random.default_rng(seed)
    return unit_vectors(rng.normal(size=(-(-n//10), d)).repeat(10, 0)[:n] + .4*rng.normal(size=(n, d)))


def filled(address, n=60, **options):
    "A gallery of n people in three cameras, one each hour."
    gallery = open_gallery(address, 16, TOLD, model="0a", **options)
    hours = [f"2026-05-{1 + i//24:02d}T{i%24:02d}:00" for i in range(n)]
    gallery.add(people(n), [f"p{i}" for i in range(n)], [f"c{i % 3}" for i in range(n)], hours,
                [f"{i:016x}" for i in range(n)], [f"who{i//10}" for i in range(n)])
    gallery.commit()
    return gallery


def naive(queries, x, k, good=lambda q, i: True):
    "The k best positions of each query in double precision, among those that may be hits."
    best = []
    for q, query in enumerate(queries.astype(float)):
        rows = [i for i in range(len(x)) if good(q, i)]
        best.append(sorted(rows, key=lambda i: -float(x[i].astype(float) @ query))[:k])
    return best


def found(hits, count): return [[int(p[1:]) for p in hits.path[hits["query"] == q]] for q in range(count)]


def plain(value): return "" if callable(value) else str(value)   # equal in every process, unlike a function's


@pytest.mark.parametrize("filters, good", [
    ({}, lambda q, i: True), (dict(cameras="c1"), lambda q, i: i % 3 == 1),
    (dict(cameras=["c0", "c2", "no such"]), lambda q, i: i % 3 != 1),
    (dict(without=["c0", "", "c2", "c0", "c1"]), lambda q, i: i % 3 != (0, None, 2, 0, 1)[q]),
    (dict(since="2026-05-02"), lambda q, i: i >= 24), (dict(until="2026-05-02T01:00+01:00"), lambda q, i: i < 24),
    (dict(since="2026-05-01T05:00", until="2026-05-01T09:00", cameras=["c1"]), lambda q, i: 5 <= i < 9 and i % 3 == 1),
    (dict(since=3), lambda q, i: False), (dict(cameras=[]), lambda q, i: False),
    (dict(since="2026-05-03", without="c0"), lambda q, i: i >= 48 and i % 3)], ids=plain)
def test_a_search_with_filters_is_a_sort(home, filters, good):
    with filled(home) as gallery:
        queries, x = people(5, seed=0), people(60)
        hits = gallery.search(queries, 7, **filters)
        assert found(hits, 5) == naive(queries, x, 7, good)
        rows = [int(p[1:]) for p in hits.path]
        cosine = np.einsum("nd,nd->n", queries[hits["query"]].astype(float), x[rows].astype(float))
        assert np.allclose(hits.cosine, cosine, atol=1e-6) and np.allclose(hits.probability, TOLD.probability(cosine))
        assert hits["rank"].tolist() == [r for f in found(hits, 5) for r in range(1, len(f) + 1)]
        assert hits.camera.tolist() == [f"c{i % 3}" for i in rows]
        assert list(hits) == ["query", "rank", "position", "cosine", "probability", *KNOWN]
        assert (gallery.search(queries, 60, false_match_rate=.1, **filters).cosine >= TOLD.threshold(.1)).all()


def test_times_that_cannot_be_read_are_neither_early_nor_late(home):
    with open_gallery(home, 16) as gallery:
        times = ["2026-01-01", "17", "noon", "", "2026-01-01T00:00:01+00:00", "9e3"]
        gallery.add(people(6), list("abcdef"), "c", times)
        def paths(**limits): return set(gallery.search(people(1), 6, **limits).path)
        assert paths(since="2026-01-01") == {"a", "e"} and paths(until="2026-01-01T00:00:00.5") == {"a"}
        assert paths(since=0) == {"b", "f"} and paths(until=1000) == {"b"}
        for wrong in ("noon", "", "nan"): assert "is no time" in fault(paths, since=wrong, error=ConfigError)
        assert gallery.remove(before=1000) == 1 and gallery.remove(before="2030-01-01") == 2
        assert sorted(gallery.paths) == ["c", "d", "f"] and gallery.remove(before="1990-01-01") == 0


def test_times_hold_after_every_change(home):
    rng, x, kept, added = np.random.default_rng(0), people(200), {}, 0
    with open_gallery(home, 16) as gallery:
        for step in range(12):
            rows = range(added, added + 1 + int(rng.integers(12)))
            given = {f"p{i}": str(rng.choice(["", "noon", f"2026-05-{1 + i % 28:02d}T0{i % 10}:00"])) for i in rows}
            gallery.add(x[list(rows)], list(given), "c", list(given.values()))
            kept |= given; added += len(rows)
            if step % 3 == 2:
                gone = sorted(rng.choice(sorted(kept), 3, replace=False))
                gallery.remove(gone)
                for name in gone: del kept[name]
            if step % 4 == 3:                                            # another time for the first one
                first = sorted(kept)[0]
                gallery.update(x[:1], [first], "c", ["2026-05-20T05:00"])
                kept[first] = "2026-05-20T05:00"
            hits = gallery.search(x[:1], 200, since="2026-05-05", until="2026-05-21")
            assert set(hits.path) == {name for name, time in kept.items() if "2026-05-05" <= time < "2026-05-21"}


@pytest.mark.parametrize("arguments, gone", [
    (dict(paths="p4"), lambda i: i == 4), (dict(paths=["p4", "p5", "p4"]), lambda i: i in (4, 5)),
    (dict(cameras="c1"), lambda i: i % 3 == 1), (dict(identities=["who0", "who5"]), lambda i: i//10 in (0, 5)),
    (dict(before="2026-05-02"), lambda i: i < 24), (dict(paths=[]), lambda i: False),
    (dict(paths=["p0"], cameras=["c2"], identities="who5", before="2026-05-01T02:00"),
     lambda i: i < 2 or i % 3 == 2 or i >= 50)], ids=plain)
def test_what_is_removed_is_not_there_any_more(home, arguments, gone):
    with filled(home) as gallery:
        before, keep = gallery.rows, [i for i in range(60) if not gone(i)]
        assert gallery.remove(**arguments) == 60 - len(keep) and len(gallery) == len(keep)
        assert gallery.rows.equals(before.iloc[keep].reset_index(drop=True))
        gallery.purge()
        assert found(gallery.search(people(5), 9), 5) == naive(people(5), people(60), 9, lambda q, i: not gone(i))
    with open_gallery(home) as again: assert again.paths == [f"p{i}" for i in keep]


def test_a_name_that_is_not_there_removes_nothing(home):
    with filled(home) as gallery:
        for arguments in (dict(paths="p99"), dict(paths=["p1", "p99"]), dict(cameras="c9"),
                          dict(paths="p1", cameras="c9"), dict(identities=["who0", "who9"]),
                          dict(before="2030-01-01", paths="p99")):
            assert "9" in fault(gallery.remove, **arguments) and len(gallery) == 60
        fault(gallery.remove, error=ConfigError)
        fault(gallery.rename_camera, "c9", "c1"), fault(gallery.set_identities, {"p1": "a", "p99": "b"})
        assert gallery.rows.identity[1] == "who0"


def test_a_changed_image_replaces_its_entry_and_the_last_of_two_counts(home):
    with filled(home) as gallery:
        x = people(3, seed=9)
        gallery.update(x, ["p7", "new", "p7"], ["c1", "c2", "other"], digests=["1", "2", "3"])
        assert len(gallery) == 61
        best = gallery.search(x, 1)
        assert best.path.tolist() == ["p7" if x[0] @ x[2] > x[0] @ x[1] else "new", "new", "p7"]
        row = gallery.rows.set_index("path").loc["p7"]
        assert row.tolist() == ["other", "", "3", ""] and "other" in gallery.cameras


def test_cameras_and_people_get_other_names(home):
    with filled(home) as gallery:
        new = "it's; \udcff"
        assert gallery.rename_camera("c0", new) == 20 and set(gallery.cameras) == {new, "c1", "c2"}
        assert gallery.rename_camera("c2", "c1") == 20 and len(gallery.cameras) == 2
        hits = gallery.search(people(5), 7, cameras="c1")
        assert found(hits, 5) == naive(people(5), people(60), 7, lambda q, i: i % 3)
        assert gallery.set_identities({"p3": "Ann", "p4": ""}) == 2
        assert gallery.rows.identity[2:6].tolist() == ["who0", "Ann", "", "who0"]
        gallery.commit()
        with open_gallery(home) as again: assert again.rows.equals(gallery.rows)


def test_hostile_names_are_data(home):
    n = len(HOSTILE)
    with open_gallery(home, 16) as gallery:
        gallery.add(people(n), HOSTILE, HOSTILE[::-1], HOSTILE, HOSTILE, HOSTILE)
        gallery.commit()
    with open_gallery(home) as gallery:
        table = gallery.rows
        for column in ("path", "time", "digest", "identity"): assert table[column].tolist() == HOSTILE, column
        assert table.camera.tolist() == HOSTILE[::-1] and list(gallery.cameras) == HOSTILE[::-1]
        for i, name in enumerate(HOSTILE):
            assert gallery.search(people(n), 1, cameras=name).path.tolist() == [HOSTILE[n - 1 - i]]*n
        left = gallery.search(people(n)[:1], n, without=HOSTILE[0])
        assert len(left) == n - 1 and HOSTILE[-1] not in set(left.path)
        for i, name in enumerate(HOSTILE[:-1]):
            assert gallery.remove(identities=name) == 1 and len(gallery) == n - i - 1
        assert gallery.remove(HOSTILE[-1]) == 1
        fault(gallery.add, people(1), ["zero\0byte"])
        fault(gallery.remove, "zero\0byte")


def test_entries_are_read_by_position_and_in_parts(home):
    with filled(home) as gallery:
        positions = gallery.positions(10, 5)
        some = gallery.entries_at(positions[::-1])
        assert some.position.tolist() == positions[::-1] and some.path.tolist() == [f"p{i}" for i in range(14, 9, -1)]
        assert np.allclose(gallery.vectors_at(positions), people(60)[10:15], atol=1e-6)
        hits = gallery.search(people(2), 3)
        assert gallery.entries_at(hits.position[:3].tolist()).path.tolist() == hits.path[:3].tolist()
        parts = list(gallery.batches(25))
        assert [len(x) for x, _ in parts] == [25, 25, 10]
        assert np.allclose(np.concatenate([x for x, _ in parts]), people(60), atol=1e-6)
        assert [p for _, names in parts for p in names["path"]] == gallery.paths == [f"p{i}" for i in range(60)]
        gallery.remove("p10")
        assert gallery.positions(59, 5) == [] and fault(gallery.vectors_at, [10**9])
        assert len(gallery.entries_at([10**9])) == 0


@pytest.mark.parametrize("names", [["a", "b'", "监控"], ["a", "caf\udcff", ""]], ids=["text", "bytes"])
def test_parquet_gives_the_same_gallery(home, tmp_path, names):
    pq = pytest.importorskip("pyarrow.parquet")
    with open_gallery(home, 16, TOLD, model="0a") as gallery:
        gallery.add(people(3), ["x", *names[1:]] if not names[2] else names, names, names, names, names)
        assert export_parquet(gallery, tmp_path/"g.parquet") == 3
        table = pq.read_table(tmp_path/"g.parquet")
        assert table.column_names == [*KNOWN, "vector"] and np.allclose(table["vector"].to_pylist(), people(3))
        for address in (tmp_path/"again.safetensors", home):
            with open_gallery(address, 16, TOLD, model="0a") as again:
                assert import_parquet(tmp_path/"g.parquet", again) == 3 and again.rows.equals(gallery.rows)
                assert np.allclose(again.vectors_at(again.positions()), people(3))
    assert parquet_facts(tmp_path/"g.parquet")["calibration"]["slope"] == 10
    with open_gallery(tmp_path/"other.safetensors", 16, model="0b") as other:
        assert "another model" in fault(import_parquet, tmp_path/"g.parquet", other) and len(other) == 0
    (tmp_path/"no.parquet").write_bytes(b"PAR1 something")
    assert "not a gallery in Parquet" in fault(parquet_facts, tmp_path/"no.parquet")


def test_another_model_or_dimension_is_refused(home):
    filled(home).close()
    assert "another model (0a, this is 0b)" in fault(open_gallery, home, model="0b")
    assert "16 dimensions, not 8" in fault(open_gallery, home, 8)
    with open_gallery(home, model="0a") as gallery:
        fault(gallery.add, people(2, 8), ["a", "b"])
        fault(gallery.add, np.full((1, 16), np.nan), ["a"])
        fault(gallery.add, people(2), ["a", "b"], ["c"])
        assert len(gallery) == 60 and gallery.calibration == TOLD


def test_a_missing_folder_is_told_whatever_it_ends_with(tmp_path):
    assert f"there is no {tmp_path/'serch'}" in fault(open_gallery, tmp_path/"serch")
    assert "should end with .safetensors" in fault(open_gallery, tmp_path/"new.db", 16, error=ConfigError)


def test_after_close_a_gallery_file_counts_as_unlocked(tmp_path):
    path = tmp_path/"g.safetensors"
    with open_gallery(path, 16, change=True) as ours:
        ours.add(people(3), ["a", "b", "c"])
        ours.commit()
    with open_gallery(path, change=True) as theirs:
        theirs.add(people(1), ["d"])
        theirs.commit()
    assert ours.refresh() == 1 and len(ours) == 4


def test_an_absent_or_empty_gallery_is_told(home):
    assert "there is no" in fault(open_gallery, home)
    with open_gallery(home, 16) as gallery:
        assert "is empty" in fault(gallery.search, people(1)) and len(gallery.rows) == 0 and not gallery.cameras
        assert "k=0" in fault(gallery.add(people(1), ["a"]).search, people(1), 0, error=ConfigError)
        assert "no calibration" in fault(gallery.search, people(1), 1, None, .1, error=ConfigError)


def test_both_homes_have_every_method_of_the_interface():
    import inspect
    for protocol in (ReadableGallery, GalleryHome):
        for name, member in vars(protocol).items():
            if name.startswith("_") or not callable(member): continue
            wanted = list(inspect.signature(member).parameters)
            for home in (FileGallery, PostgresGallery):
                assert list(inspect.signature(getattr(home, name)).parameters)[:len(wanted)] == wanted, (home, name)


def test_without_its_packages_a_database_is_one_sentence():
    code = ("import sys\nfor name in ('psycopg', 'pgvector', 'pyarrow', 'fastapi'): sys.modules[name] = None\n"
            "from upl_reid.deployment import Gallery, open_gallery\n"
            "try: open_gallery('postgresql://nobody:secret@nowhere/x', 3)\n"
            "except ValueError as e: print(type(e).__name__, e)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("ConfigError a gallery in PostgreSQL needs psycopg") and "upl-reid[postgres]" in out
    assert out.count("\n") == 1 and "secret" not in out


def test_two_processes_cannot_change_one_file(tmp_path, capsys):
    with open_gallery(tmp_path/"g.safetensors", 16, change=True) as gallery:
        from filelock import FileLock, Timeout
        with pytest.raises(Timeout): FileLock(tmp_path/".g.safetensors.lock").acquire(timeout=.1)
        gallery.add(people(1), ["a"]).commit()
    with FileLock(tmp_path/".g.safetensors.lock").acquire(timeout=1): pass
    with pytest.raises(DataError): open_gallery(tmp_path/"absent.safetensors", change=True)
    with FileLock(tmp_path/".absent.safetensors.lock").acquire(timeout=1): pass


def test_a_link_to_a_gallery_is_the_gallery(tmp_path):
    "One lock for both names, and a removed entry is in no file."
    (tmp_path/"disk").mkdir()
    (tmp_path/"g.safetensors").symlink_to("disk/g.safetensors")
    with open_gallery(tmp_path/"disk/g.safetensors", 16) as gallery:
        gallery.add(np.eye(2, 16, dtype=np.float32), ["secret", "b"])
        gallery.commit()
    with open_gallery(tmp_path/"g.safetensors", change=True) as gallery:
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(tmp_path/"disk/.g.safetensors.lock", timeout=0, is_singleton=False).acquire()
        gallery.remove(["secret"])
        assert gallery.purge() and (tmp_path/"g.safetensors").is_symlink()
    assert not any(b"secret" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
