"""Small inputs at the edges of the commands about galleries: answers, thresholds, times, names of files."""
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from commands import picture, said
from faults import fault
from upl_reid import cli, deployment
from upl_reid.core import RunError
from upl_reid.deployment.browse import answers_about, confirm_pair, confirmed_pairs, forget_pairs, pairs_file
from upl_reid.deployment.embedder import Embedder
from upl_reid.deployment.gallery_homes import open_gallery
from upl_reid.deployment.match_calibration import Calibration


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path/"runs"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def crops(tmp_path): return [str(picture(tmp_path/f"crops/cam{i % 2}/{i}.png", i)) for i in range(6)]


def index(capsys, saved, home, root="crops"): return said(capsys, "index", saved, root, home, "--device", "cpu")


# ---------------------------------------------------------------- answers

def test_answers_go_when_their_picture_becomes_another_one(home, saved, crops, capsys):
    index(capsys, saved, home)
    confirm_pair(pairs_file(home), crops[0], crops[1], True); confirm_pair(pairs_file(home), crops[2], crops[3], True)
    picture(Path(crops[0]), 99)
    code, facts, _ = index(capsys, saved, home)
    assert code == 3 and facts["updated"] == 1
    assert "answers about pictures that have changed since were removed: 1" in facts["notes"]
    assert confirmed_pairs(pairs_file(home))["first"].tolist() == crops[2:3]
    assert index(capsys, saved, home)[1]["notes"] == []


def test_forget_reaches_answers_in_a_file_of_ones_own(home, saved, crops, capsys):
    index(capsys, saved, home)
    for first in (crops[0], "/else/a.jpg"): confirm_pair(Path("mine.db"), first, crops[1], True)
    code, facts, _ = said(capsys, "forget", home, crops[0], "--pairs", "mine.db")
    assert code == 0 and (facts["removed"], facts["answers"]) == (1, 1)
    assert confirmed_pairs("mine.db")["first"].tolist() == ["/else/a.jpg"]
    assert said(capsys, "forget", home, crops[2])[1]["answers"] == 0 and not pairs_file(home).exists()


def test_nothing_is_forgotten_if_its_answers_cannot_be(home, saved, crops, capsys):
    "And the same command does it later."
    index(capsys, saved, home)
    pairs = pairs_file(home)
    confirm_pair(pairs, crops[0], crops[1], True)
    content = pairs.read_bytes()
    pairs.write_text("damaged "*100)
    code, _, err = said(capsys, "forget", home, crops[0])
    assert code == 1 and "cannot be read as answers" in err
    with open_gallery(home) as gallery: assert len(gallery) == 6
    pairs.write_bytes(content)
    assert said(capsys, "forget", home, crops[0])[1]["answers"] == 1 and len(confirmed_pairs(pairs)) == 0


def test_databases_and_files_of_one_name_have_files_of_their_own():
    addresses = ["postgresql://hosta/db", "postgresql://hostb/db", "postgresql://hosta/other", "postgresql://hosta:1/db",
                 "postgresql://hosta/db#station", "gallery.safetensors"]
    assert len(set(map(pairs_file, addresses))) == 6
    for same in ("postgresql://hosta/db#gallery", "postgres://me:secret@hosta:5432/db"):
        assert pairs_file(same) == pairs_file(addresses[0])
    assert "secret" not in str(pairs_file("postgresql://me:secret@h/d"))


def test_answers_of_a_gallery_behind_a_link_are_those_of_the_gallery(tmp_path):
    (tmp_path/"data").mkdir()
    home = tmp_path/"data"/"people.safetensors"
    home.write_bytes(b"")
    (tmp_path/"link.safetensors").symlink_to(home)
    assert pairs_file(tmp_path/"link.safetensors") == pairs_file(home) == home.with_suffix(".pairs.sqlite")


def test_a_database_of_something_else_is_not_changed(tmp_path):
    for statement in ("CREATE TABLE x (a)", "CREATE TABLE pairs (a)"):
        with sqlite3.connect(tmp_path/"other.sqlite") as other: other.execute(statement)
        other.close()
        before = (tmp_path/"other.sqlite").read_bytes()
        for call in (confirmed_pairs, answers_about, lambda file: forget_pairs(file, ["a"])):
            assert "cannot be read as answers" in fault(call, tmp_path/"other.sqlite", error=RunError)
        assert (tmp_path/"other.sqlite").read_bytes() == before
        (tmp_path/"other.sqlite").unlink()


def test_a_file_of_answers_may_have_any_name(tmp_path):
    confirm_pair(tmp_path/"answers.db", "a", "b", True)
    assert len(answers_about(tmp_path/"answers.db")) == 1
    assert "there are no answers in" in fault(answers_about, tmp_path/"none.sqlite")


def test_browse_looks_at_its_file_of_answers_before_it_serves(saved, crops, capsys, tmp_path):
    index(capsys, saved, "g.safetensors")
    (tmp_path/"notes.txt").write_text("notes "*200)
    for pairs, words in (("no/such/p", "there is no folder no/such"), ("notes.txt", "cannot be read as answers")):
        code, facts, err = said(capsys, "browse", "g.safetensors", "--pairs", pairs)
        assert code == 1 and facts is None and words in err


@pytest.mark.parametrize("as_json", [False, True], ids=["words", "json"])
def test_the_end_of_browse_is_no_error(saved, crops, capsys, as_json):
    index(capsys, saved, "g.safetensors")
    confirm_pair(pairs_file("g.safetensors"), crops[0], crops[1], True)
    command = [sys.executable, "-W", "ignore", "-m", "upl_reid.cli", "browse", "g.safetensors", *["--json"]*as_json]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "http://127.0.0.1" in process.stdout.readline()
    time.sleep(1)                                                # until the server has taken over the signal
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == ""
    assert ('"same": 1' if as_json else "1 pairs accepted and 0 rejected, in g.pairs.sqlite") in out


def test_only_commands_that_go_on_say_so_when_they_are_stopped(saved, capsys, monkeypatch, crops):
    def stop(*_): raise KeyboardInterrupt
    monkeypatch.setattr(cli.data, "list_images", stop, raising=False)
    for arguments, words in ((("check", "crops"), ""), (("search", saved, "crops"), ""), (("index", saved, "crops",
                             "g.safetensors"), "; finished work is kept, and the same command continues it")):
        assert cli.main(list(map(str, arguments))) == 130
        assert capsys.readouterr().err == f"\nstopped{words}\n"


# ---------------------------------------------------------------- index and search

def test_person_0_of_training_pictures_is_a_person(saved, crops, capsys, tmp_path):
    lines = [f"{path},c{i % 2},{i//2}" for i, path in enumerate(crops)]
    (tmp_path/"train.csv").write_text("path,camid,pid\n" + "\n".join(lines))
    (tmp_path/"test.csv").write_text("path,camid,pid,split\n" + "\n".join(f"{line},gallery" for line in lines))
    for name, wanted in (("train", ["0", "0", "1", "1", "2", "2"]), ("test", ["", "", "1", "1", "2", "2"])):
        index(capsys, saved, f"{name}.safetensors", f"{name}.csv")
        assert open_gallery(f"{name}.safetensors").rows.identity.tolist() == wanted


def test_a_folder_and_its_gallery_have_the_same_thresholds(saved, crops, capsys, monkeypatch):
    told = Embedder.load(saved, "cpu").calibration
    cosine = [h["cosine"] for h in said(capsys, "search", saved, "crops", "--device", "cpu")[1]["hits"]]
    own = Calibration(told.slope, told.offset, [float(np.median(cosine))]*5)
    monkeypatch.setattr(deployment, "measure_thresholds", lambda *_: own, raising=False)
    index(capsys, saved, "g.safetensors")
    asked = "--false-match-rate", ".01", "--device", "cpu"
    hits = [[(h["query"], h["path"]) for h in said(capsys, "search", saved, home, *asked)[1]["hits"]]
            for home in ("g.safetensors", "crops")]
    assert sorted(hits[0]) == sorted(hits[1]) and 0 < len(hits[0]) < len(cosine)
    def used(x, cameras, calibration, *_): raise RunError(str(calibration.thresholds))
    monkeypatch.setattr(deployment, "identify", used, raising=False)
    for home in ("g.safetensors", "crops"):
        assert str(own.thresholds) in said(capsys, "identities", saved, home, "who.csv", "--device", "cpu")[2]


def test_raised_thresholds_are_stored_when_nothing_is_new(home, saved, crops, capsys):
    index(capsys, saved, home)
    told = Embedder.load(saved, "cpu").calibration
    with open_gallery(home, change=True) as gallery:
        gallery.calibration = Calibration(told.slope, told.offset, [t - .05 for t in told.thresholds])
        gallery.commit()
    assert index(capsys, saved, home)[1]["added"] == 0
    with open_gallery(home) as gallery: assert gallery.calibration == told


def test_pictures_of_the_gallery_are_searched_for_by_their_vectors(home, saved, crops, capsys):
    index(capsys, saved, home)
    shutil.rmtree("crops")
    code, facts, _ = said(capsys, "search", saved, home, "--same-camera", "-k", 1, "--device", "cpu")
    assert code == 0 and sorted(facts["queries"]) == sorted(crops)
    assert facts["queries"] == [h["path"] for h in facts["hits"]]


def test_images_that_a_limit_of_time_cannot_judge_are_told(home, saved, crops, capsys, tmp_path):
    rows = [f"{path},c,{time}" for path, time in zip(crops, ("2026-05-31", "2026-06-01", "7", "", "noon", "8"))]
    (tmp_path/"t.csv").write_text("path,camid,time\n" + "\n".join(rows))
    index(capsys, saved, home, "t.csv")
    def notes(*limits):
        code, facts, _ = said(capsys, "search", saved, home, "--same-camera", "--device", "cpu", *limits)
        assert code == (3 if "notes" in facts else 0)
        return facts.get("notes", [])
    text = "{} images without a time that can be compared with {}"
    untimed = text + ": not searched"
    assert notes() == [] and notes("--since", "2026-01-01") == [untimed.format(4, "2026-01-01")]
    assert notes("--since", "2026-01-01", "--until", "7") == [untimed.format(4, "2026-01-01"), untimed.format(4, "7")]
    assert said(capsys, "forget", home, "--before", "7")[1]["notes"] == [text.format(4, "7") + ": not removed"]


def test_a_page_says_how_many_hits_it_has_only_if_it_lacks_some(saved, crops, capsys):
    assert cli.main(["search", str(saved), "crops", "-k", "60", "--html", "p.html", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.endswith("page: p.html\n")


# ---------------------------------------------------------------- identities and export

def test_an_empty_gallery_has_no_identities(saved, capsys):
    model = Embedder.load(saved, "cpu")
    with open_gallery("e.safetensors", model.dim, model.calibration, model=model.digest) as gallery: gallery.commit()
    code, _, err = said(capsys, "identities", saved, "e.safetensors", "who.csv", "--device", "cpu")
    assert code == 1 and "the gallery e.safetensors is empty; add pictures with upl-reid index" in err


def test_the_command_that_identities_names_can_be_run(saved, crops, capsys):
    cli.main(["identities", str(saved), "crops", "a b.safetensors", "--device", "cpu"])
    assert "look at them with upl-reid browse 'a b.safetensors'" in capsys.readouterr().out


def test_export_refuses_what_it_would_not_heed_and_files_of_others(saved, crops, capsys, tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    index(capsys, saved, "g.safetensors")
    for name in ("g.parquet", "timm.safetensors"):
        code, _, err = said(capsys, "export", "g.safetensors", name, "--int8")
        assert code == 1 and f"leave them out for {Path(name).suffix}" in err and not os.path.exists(name)
    parquet.write_table(pa.table(dict(a=[1])), "other.parquet")
    code, _, err = said(capsys, "export", "g.safetensors", "other.parquet")
    assert code == 1 and "other.parquet exists and was not written by this command; choose another name" in err
