"""index, search, forget and export with a gallery in a file and in PostgreSQL; and days on which things go wrong."""
import errno
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from commands import picture, said
import upl_reid.deployment.gallery as gallery_module
import upl_reid.deployment.postgres_gallery as postgres_module
from upl_reid import core
from upl_reid.deployment.browse import confirm_pair, confirmed_pairs, pairs_file
from upl_reid.deployment.embedder import Embedder
from upl_reid.deployment.gallery_homes import open_gallery


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path/"runs"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def crops(tmp_path):
    for i in range(12): picture(tmp_path/f"crops/cam{i % 3}/{i:02d}.png", i)
    return tmp_path/"crops"


def table(tmp_path, crops, **changed):
    "A table of the crops with a time each hour and a person for each four."
    lines = ["path,camid,pid,time"]
    for path in sorted(crops.rglob("*.png")):
        i = int(path.stem)
        row = dict(camid=f"cam{i % 3}", pid=f"who{i//4}", time=f"2026-05-31T{i:02d}:00") | changed.get(path.stem, {})
        lines.append(f"{path},{row['camid']},{row['pid']},{row['time']}")
    (tmp_path/"crops.csv").write_text("\n".join(lines))
    return tmp_path/"crops.csv"


def entries(home):
    with open_gallery(home) as gallery: rows = gallery.rows
    return rows.assign(name=[Path(p).stem for p in rows.path]).set_index("name")


def test_index_search_and_forget(home, saved, crops, tmp_path, capsys):
    listed = table(tmp_path, crops)
    code, facts, _ = said(capsys, "index", saved, listed, home, "--device", "cpu")
    assert (facts["added"], facts["images"], facts["updated"]) == (12, 12, 0) and code == 0
    assert said(capsys, "index", saved, listed, home, "--device", "cpu")[1]["added"] == 0
    assert entries(home).loc["05", ["camera", "time", "identity"]].tolist() == ["cam2", "2026-05-31T05:00", "who1"]
    code, facts, _ = said(capsys, "search", saved, home, crops/"cam0/03.png", "-k", 20, "--device", "cpu")
    assert code == 0 and {h["camera"] for h in facts["hits"]} == {"cam1", "cam2"} and len(facts["hits"]) == 8
    limits = "--camera", "cam1", "--camera", "cam2", "--since", "2026-05-31T04:00", "--until", "2026-05-31T08:00"
    _, facts, _ = said(capsys, "search", saved, home, crops/"cam0/03.png", "--device", "cpu", *limits)
    assert {Path(h["path"]).stem for h in facts["hits"]} == {"04", "05", "07"}
    pairs = pairs_file(home)
    confirm_pair(pairs, str(crops/"cam0/00.png"), str(crops/"cam1/01.png"), True)
    confirm_pair(pairs, str(crops/"cam0/09.png"), str(crops/"cam1/10.png"), True)
    for arguments, gone in ((("--before", "2026-05-31T02:00"), 2), (("--identity", "who1"), 4),
                            (("--camera", "cam2"), 3), ((crops/"cam0/03.png",), 1)):
        code, facts, _ = said(capsys, "forget", home, *arguments)
        assert code == 0 and facts["removed"] == gone, arguments
    assert list(entries(home).index) == ["09", "10"]
    assert confirmed_pairs(pairs)["first"].tolist() == [str(crops/"cam0/09.png")]
    assert said(capsys, "search", saved, home, "--device", "cpu")[0] == 0


def test_search_tells_which_times_cannot_be_compared(saved, crops, tmp_path, capsys):
    listed = table(tmp_path, crops, **{"04": dict(time="noon"), "05": dict(time="20260531_230000")})
    code, facts, _ = said(capsys, "search", saved, listed, crops/"cam0/03.png", "-k", 20, "--device", "cpu",
                          "--since", "2026-05-31T09:00")
    assert {Path(h["path"]).stem for h in facts["hits"]} == {"05", "10", "11"}       # 09 is of the query's camera
    assert facts["notes"][-1] == "1 image without a time that can be compared with 2026-05-31T09:00: not searched"
    assert sum("first 'noon'" in note for note in facts["notes"]) == 1              # how the table was read


def test_forget_refuses_what_could_mean_two_things(home, saved, crops, capsys):
    assert said(capsys, "index", saved, crops, home, "--device", "cpu")[0] == 0
    for arguments, words in (((), "nothing to remove"), (("--before", "2026-01-01", "--camera", "cam1"), "alone"),
                             (("--before", "soon"), "is no time"), (("--identity", "nobody"), "nobody"),
                             (("--identity", ""), "--identity is empty"), (("--camera", " "), "--camera is empty")):
        code, _, err = said(capsys, "forget", home, *arguments)
        assert code == 1 and words in err and err.count("\n") == 1, arguments
    code, facts, _ = said(capsys, "forget", home, "--before", "2030-01-01")
    assert code == 3 and facts["removed"] == 0 and facts["notes"][0].startswith("12 images without a time")
    os.remove(crops/"cam0/00.png")
    code, _, err = said(capsys, "forget", home, "--gone")
    if isinstance(home, str): assert code == 1 and "on this machine" in err
    assert len(entries(home)) == (12 if isinstance(home, str) else 11)


def test_a_gallery_travels_as_parquet(home, saved, crops, tmp_path, capsys):
    assert said(capsys, "index", saved, crops, home, "--device", "cpu")[0] == 0
    assert said(capsys, "export", home, tmp_path/"g.parquet")[1]["images"] == 12
    assert said(capsys, "export", home, tmp_path/"g.parquet")[0] == 0                       # its own file is replaced
    (tmp_path/"other.parquet").write_text("notes")
    assert said(capsys, "export", home, tmp_path/"other.parquet")[0] == 1
    code, facts, _ = said(capsys, "index", saved, tmp_path/"g.parquet", tmp_path/"again.safetensors", "--device", "cpu")
    assert code == 0 and facts["added"] == 12 and entries(home).equals(entries(tmp_path/"again.safetensors"))


def test_another_model_is_refused_in_one_sentence(home, saved, crops, tmp_path, capsys):
    assert said(capsys, "index", saved, crops, home, "--device", "cpu")[0] == 0
    other = Embedder.load(saved, "cpu")
    next(p for p in other.model.parameters() if p.ndim).data.mul_(1.01)
    other.save(tmp_path/"other.safetensors")
    for command, *arguments in (("index", crops, home), ("search", home)):
        code, _, err = said(capsys, command, tmp_path/"other.safetensors", *arguments, "--device", "cpu")
        assert code == 1 and "another model" in err and err.strip().count("\n") == 0
    assert len(entries(home)) == 12


def test_names_that_are_probably_one_person_are_told(home, saved, crops, tmp_path, capsys):
    def indexed(rows, pid):
        named = {f"{i:02d}": dict(pid=pid(i)) for i in range(12)}
        listed = table(tmp_path, crops, **named).read_text().splitlines()
        (tmp_path/"part.csv").write_text("\n".join([listed[0], *(listed[i + 1] for i in rows)]))
        return said(capsys, "index", saved, tmp_path/"part.csv", home, "--device", "cpu")
    assert indexed(range(6), lambda i: "007")[0] == 0 and set(entries(home).identity) == {"7"}
    code, facts, _ = indexed(range(6, 12), lambda i: "007" if i > 8 else "bob")
    note = "identities '007' and '7' are taken for different ones; if they are one, write them alike"
    assert code == 3 and facts["notes"] == [note + "; a table whose identities are all numbers gives 7 for 007"]
    code, facts, _ = said(capsys, "forget", home, "--identity", "007")
    note = "6 images of '7' not removed: if this is '007' too, forget it by that name"
    assert (code, facts["removed"], facts["notes"]) == (3, 2, [note]) and set(entries(home).identity) == {"7", "bob"}
    code, facts, _ = said(capsys, "forget", home, "--identity", "7")
    assert code == 0 and "notes" not in facts and set(entries(home).identity) == {"bob"}


def test_the_suffix_of_a_gallery_is_in_any_case(saved, crops, tmp_path, capsys):
    said(capsys, "index", saved, crops, tmp_path/"g.safetensors", "--device", "cpu")
    other = (tmp_path/"g.safetensors").rename(tmp_path/"G.SafeTensors")
    asked = ("search", saved, other, crops/"cam0/03.png", "--same-camera", "--device", "cpu")
    assert said(capsys, *asked)[1]["hits"][0]["path"] == str(crops/"cam0/03.png")
    code, _, err = said(capsys, "search", saved, other, "--tracks", "--device", "cpu")
    assert code == 1 and "divided into fields" not in err
    code, facts, _ = said(capsys, "identities", saved, other, tmp_path/"who.csv", "--device", "cpu")
    assert code in (0, 3) and facts["crops"] == 12
    assert said(capsys, "forget", other, "--camera", "cam1")[1]["images"] == 8
    with open_gallery(other) as gallery: assert len(gallery) == 8


def test_a_camera_with_another_name(home, saved, crops, tmp_path, capsys):
    assert said(capsys, "index", saved, table(tmp_path, crops), home, "--device", "cpu")[0] == 0
    renamed = {f"{i:02d}": dict(camid="gate") for i in range(0, 12, 3)}
    code, facts, _ = said(capsys, "index", saved, table(tmp_path, crops, **renamed), home, "--device", "cpu")
    assert (facts["added"], facts["updated"], facts["images"]) == (0, 4, 12)
    rows = entries(home)
    assert set(rows.camera) == {"gate", "cam1", "cam2"} and (rows.identity != "").all() and rows.path.is_unique
    renamed = {f"{i:02d}": dict(camid="gate", pid="Ann") for i in range(0, 12, 3)}      # a name: nothing to embed
    facts = said(capsys, "index", saved, table(tmp_path, crops, **renamed), home, "--device", "cpu")[1]
    assert facts["updated"] == 0 and (entries(home).identity == "Ann").sum() == 4


def test_a_folder_that_changes_while_it_is_indexed(home, saved, crops, capsys, monkeypatch):
    embed, state = Embedder.embed, dict(first=True)
    def changing(self, images, *args, **kwargs):
        if state.pop("first", False): picture(crops/"cam1/99.png", 99)
        return embed(self, images, *args, **kwargs)
    monkeypatch.setattr(Embedder, "embed", changing)
    listing = core.file_digests
    def vanishing(paths, *args):
        found = listing(paths, *args)
        if (crops/"cam2/11.png").exists() and "first" in state: os.remove(crops/"cam2/11.png")
        return found
    monkeypatch.setattr(core, "file_digests", vanishing)
    code, facts, _ = said(capsys, "index", saved, crops, home, "--device", "cpu")
    assert code == 3 and facts["added"] == 11 and len(facts["left_out"]) == 1 and "11.png" in facts["left_out"][0]
    assert said(capsys, "index", saved, crops, home, "--device", "cpu")[1]["added"] == 1
    assert set(entries(home).index) == {f"{i:02d}" for i in range(11)} | {"99"}


def test_only_what_can_be_read_takes_the_place_of_an_entry(home, saved, crops, capsys):
    said(capsys, "index", saved, crops, home, "--device", "cpu")
    with open_gallery(home, change=True) as gallery:
        gallery.set_identities(dict.fromkeys(gallery.paths, "Ann"))
        gallery.commit()
    before = entries(home)
    for name in ("00", "03"): (crops/f"cam0/{name}.png").write_bytes(b"damaged")
    picture(crops/"cam1/04.png", 77)
    picture(crops/"cam1/50.png", 50)
    code, facts, _ = said(capsys, "index", saved, crops, home, "--device", "cpu")
    assert code == 3 and (facts["added"], facts["updated"], facts["images"], len(facts["left_out"])) == (1, 1, 13, 2)
    assert [n for n in facts["notes"] if "the old entries are kept" in n][0].startswith("2 images of the gallery")
    after = entries(home)
    assert after.drop(["04", "50"]).sort_index().equals(before.drop("04").sort_index())
    assert after.loc["04", "digest"] != before.loc["04", "digest"]


def test_a_full_disk_changes_nothing(home, saved, crops, tmp_path, capsys, monkeypatch):
    assert said(capsys, "index", saved, crops, home, "--device", "cpu")[0] == 0
    before, content = entries(home), None if isinstance(home, str) else home.read_bytes()
    picture(crops/"cam1/50.png", 50)
    def full(*_, **__): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    def full_server(*_):
        import psycopg
        raise psycopg.errors.DiskFull("could not extend file: No space left on device")
    with monkeypatch.context() as m:
        m.setattr(core, "save_file", full)
        m.setattr(postgres_module.PostgresGallery, "_store", full_server)
        code, _, err = said(capsys, "index", saved, crops, home, "--device", "cpu")
    assert code == 1 and "No space left on device" in err and err.strip().count("\n") == 0
    assert entries(home).equals(before)
    if content: assert home.read_bytes() == content and [p.name for p in tmp_path.glob(".*part")] == []
    assert said(capsys, "index", saved, crops, home, "--device", "cpu")[1]["added"] == 1


def test_a_clock_that_jumps_and_many_copies_of_one_picture(home, monkeypatch):
    for module in (gallery_module, postgres_module): monkeypatch.setattr(module, "EXACT", 500)
    hours = [f"2026-03-29T{i % 24:02d}:30:00{'+01:00' if i % 2 else '+02:00'}" for i in range(800)]
    x = np.tile(np.random.default_rng(0).normal(size=(1, 16)), (800, 1))
    with open_gallery(home, 16) as gallery:
        gallery.add(x, [f"p{i}" for i in range(800)], [f"c{i % 2}" for i in range(800)], hours)
        hits = gallery.search(x[:2], 30)
        assert len(hits) == 60 and np.allclose(hits.cosine, 1, atol=1e-5)
        assert hits.groupby("query").path.nunique().eq(30).all()
        some = gallery.search(x[:1], 800, since="2026-03-29T01:00Z", until="2026-03-29T02:00Z")
        # two zones in turn, as when clocks are changed: half past two here is half past one or half past zero in UTC
        utc = [(i % 24) - (1 if i % 2 else 2) for i in range(800)]
        assert sorted(some.path) == sorted(f"p{i}" for i in range(800) if utc[i] == 1)
        gone = sum(h < 5 for h in utc)
        assert gallery.remove(before="2026-03-29T05:00Z") == gone and len(gallery) == 800 - gone


def test_a_load_of_writers_and_searchers_loses_nothing(capsys):
    spec = importlib.util.spec_from_file_location("gallery_load", Path(__file__).parents[2]/".ci/gallery_load.py")
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    assert load.main(["--seconds", "2", "--writers", "2", "--searchers", "2", "--dim", "16"])
    out = capsys.readouterr().out
    assert out.count("entries lost: 0, still there or twice: 0; wrong result lists: 0; failed processes: 0") == 2
    assert out.count("search: ") == 2


def test_identities_of_a_gallery_go_to_its_entries(home, saved, crops, tmp_path, capsys):
    listed = table(tmp_path, crops, **{f"{i:02d}": dict(pid="") for i in range(4, 12)})       # four names are known
    assert said(capsys, "index", saved, listed, home, "--device", "cpu")[0] == 0
    given = ("identities", saved, home, home, "--rate", ".1", "--device", "cpu")
    facts = said(capsys, *given)[1]
    names = entries(home)["identity"]
    assert facts["crops"] == 12 and facts["unknown"] == (names == "").sum()
    assert (names[["00", "01", "02", "03"]] == "who0").all() and facts["identities"] == names[names != ""].nunique()
    assert entries(home).loc["05", ["camera", "time"]].tolist() == ["cam2", "2026-05-31T05:00"]
    said(capsys, *given)
    assert (entries(home)["identity"][names != ""] == names[names != ""]).all()               # a second call keeps them
    facts = said(capsys, "identities", saved, home, tmp_path/"who.csv", "--device", "cpu")[1]
    assert facts["crops"] == 12 and (tmp_path/"who.csv").read_text().count("\n") == 13


def test_identities_of_a_folder_do_not_go_to_a_database(address, saved, crops, capsys):
    code, _, err = said(capsys, "identities", saved, crops, address, "--device", "cpu")
    assert code == 1 and "as the crops and as the place to write to" in err
