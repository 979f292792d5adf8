"""The command line: every command by its JSON and its words, exit codes, and what goes wrong in one sentence."""
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from upl_reid import experiments
from upl_reid.cli import EXAMPLES, PRESET_NAMES, choose_network, file_is_gone, main, make_parser
from upl_reid.components.encoder import build_encoder
from upl_reid.deployment.match_calibration import RATES, Calibration
from upl_reid.deployment.embedder import Embedder
from upl_reid.deployment.gallery import Gallery
from upl_reid.data.own_crops import list_images, write_table
from upl_reid.evaluation.reranking import rerank
from upl_reid.evaluation.retrieval import evaluate_distances, evaluate_retrieval
from upl_reid.experiments.config import PRESETS
from upl_reid.experiments.runs import open_domain


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Crops and an adapted model, by the commands themselves."
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("UPL_REID_RUNS", str(folder/"runs"))
        assert main(["synth", str(folder/"mine"), "--preset", "tiny"]) == 0
        assert main(["adapt", str(folder/"mine/crops"), str(folder/"model.safetensors"), "--preset", "tiny",
                     "--device", "cpu", "--json"]) in (0, 3)
    embedder, images = Embedder.load(folder/"model.safetensors", "cpu"), list_images(folder/"mine/truth.csv")
    x, pids = embedder.embed(list(images.path)), images.pid.to_numpy()
    # after two epochs `adapt` can calibrate the model on some processors only: thresholds from the true identities
    apart = (x @ x.T)[pids[:, None] != pids]
    embedder.calibrated(Calibration(10., -9.,
                                    np.quantile(apart, [1 - r for r in RATES[:3]]))).save(folder/"model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path): monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path/"runs"))


def said(capsys, *arguments):
    "Exit code, what went to standard output, and the last line of standard error."
    code = main([str(a) for a in arguments])
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return code, out.out, (out.err.strip().splitlines() or [""])[-1]


def test_synth_hides_who_is_who(home):
    names = [p.name for p in (home/"mine/crops").rglob("*.jpg")]
    truth = pd.read_csv(home/"mine/truth.csv")
    assert len(names) == (truth.split == "train").sum() and len(truth) == len(list((home/"mine").rglob("*.jpg")))
    assert set(truth.split) == {"train", "query", "gallery"}
    assert (list_images(home/"mine/crops").pid == -1).all() and not (home/"mine/crops/images.csv").exists()
    assert all(n[0] == "t" for n in names)


def test_check_by_words_and_json(home, capsys, tmp_path):
    code, out, _ = said(capsys, "check", home/"mine/crops", "--json")
    report = json.loads(out)
    assert code in (0, 3) and report["images"] == report["readable"] == len(list_images(home/"mine/crops"))
    assert set(report["cameras"]) == {f"cam{i}" for i in (1, 2, 3, 4)}
    assert said(capsys, "check", home/"mine/crops", "--pattern", r"cam(?P<cam>\d)", "--table",
                tmp_path/"t.csv")[0] == code
    assert sorted(list_images(tmp_path/"t.csv").camid.unique()) == ["1", "2", "3", "4"]


def test_a_folder_that_does_not_suffice_is_code_3(tmp_path, capsys):
    for i in range(4):
        (tmp_path/"a").mkdir(exist_ok=True)
        Image.new("RGB", (20, 40), (i, 0, 0)).save(tmp_path/f"a/{i}.png")
    code, out, _ = said(capsys, "check", tmp_path)
    assert code == 3 and "NOT enough" in out


def test_evaluate_is_the_evaluation(home, capsys):
    code, out, _ = said(capsys, "evaluate", home/"model.safetensors", home/"mine/truth.csv", "--json", "--device",
                        "cpu")
    got, images = json.loads(out), list_images(home/"mine/truth.csv")
    embedder = Embedder.load(home/"model.safetensors", "cpu")
    q, g = (images[images.split == s] for s in ("query", "gallery"))
    cam = {c: i for i, c in enumerate(sorted(set(images.camid)))}
    x, y = embedder.embed(list(q.path)), embedder.embed(list(g.path))
    ids = dict(query_pids=q.pid.to_numpy(), query_camids=q.camid.map(cam).to_numpy(),
               gallery_pids=g.pid.to_numpy(), gallery_camids=g.camid.map(cam).to_numpy())
    wanted = evaluate_retrieval(x, y, **ids)
    assert code == 0 and got["mAP"] == pytest.approx(wanted.mAP, abs=1e-9) and got["queries"] == len(wanted.ap)
    pairs = [(float(a @ b) >= embedder.calibration.threshold(1e-2), p == r)
             for a, p, c in zip(x, q.pid, q.camid) for b, r, d in zip(y, g.pid, g.camid)
             if c != d and (p != r) * (r >= 0) + (p == r)]
    for name, same in (("false matches at 0.01", False), ("true matches at 0.01", True)):
        assert got[name] == pytest.approx(np.mean([hit for hit, s in pairs if s == same]), abs=1e-6)
    code, out, _ = said(capsys, "evaluate", home/"model.safetensors", home/"mine/truth.csv", "--rerank", "--json",
                        "--device", "cpu")
    assert json.loads(out)["mAP"] == pytest.approx(evaluate_distances(rerank(x, y), **ids).mAP, abs=1e-9) != wanted.mAP


def test_evaluate_tells_of_copies_in_other_cameras(home, capsys, tmp_path):
    truth = list_images(home/"mine/truth.csv")
    query = truth[truth.split == "query"].iloc[:6]
    rows = pd.concat([query, truth[(truth.split == "gallery") & truth.pid.isin(query.pid)]], ignore_index=True)
    evaluated = lambda: said(capsys, "evaluate", home/"model.safetensors", write_table(rows, tmp_path/"t.csv"),
                             "--device", "cpu")
    assert "byte for byte" not in evaluated()[1]
    for i in (1, 3): # under another name, in another camera; of the third one only in its own camera
        shutil.copyfile(query.path.iloc[i], tmp_path/f"copy{i}.jpg")
        camera = query.camid.iloc[i] if i == 3 else min(set(rows.camid) - {query.camid.iloc[i]})
        rows.loc[len(rows)] = rows.iloc[i]
        rows.loc[len(rows) - 1, ["path", "camid", "split"]] = [tmp_path/f"copy{i}.jpg", camera, "gallery"]
    code, out, _ = evaluated()
    assert code == 3 and f"1 query is also in the gallery, byte for byte, as a picture of another camera, first " \
        f"{query.path.iloc[1]}" in out


def test_leave_one_out_is_every_picture_against_all_others(home, capsys, tmp_path):
    "A table of animals with names, without queries; pid 0 is an animal. Compared with a loop over pictures."
    truth = list_images(home/"mine/truth.csv")
    some = truth[(truth.split == "gallery") & (truth.pid >= 0)].head(40)
    names = {pid: f"turtle_{i}" for i, pid in enumerate(sorted(set(some.pid)))}
    embedder = Embedder.load(home/"model.safetensors", "cpu")
    x = embedder.embed(list(some.path))
    for pids in (some.pid.map(names), some.pid.map({pid: i for i, pid in enumerate(names)})):
        rows = zip(some.path, pids)
        (tmp_path/"t.csv").write_text("\n".join(["path,pid", *(f"{p},{i}" for p, i in rows), f"{truth.path.iloc[0]},"]))
        code, _, err = said(capsys, "evaluate", home/"model.safetensors", tmp_path/"t.csv")
        assert code == 1 and "--leave-one-out" in err
        got = json.loads(said(capsys, "evaluate", home/"model.safetensors", tmp_path/"t.csv", "--leave-one-out",
                              "--json")[1])
        scores, order = [], np.asarray(pids)
        for i in range(40):
            others = np.array([j for j in np.argsort(-(x @ x[i]), kind="stable") if j != i])
            hit = order[others] == order[i]
            if hit.any(): scores.append((np.cumsum(hit)/np.arange(1, 40))[hit].mean())
        assert got["mAP"] == pytest.approx(np.mean(scores), abs=1e-6) and got["queries"] == len(scores)
    (tmp_path/"t.csv").write_text(f"path\n{truth.path.iloc[0]}\n")
    code, _, err = said(capsys, "evaluate", home/"model.safetensors", tmp_path/"t.csv", "--leave-one-out")
    assert code == 1 and "none of 1 image has an identity" in err


def test_hits_show_the_names_of_a_gallery(home, capsys, tmp_path):
    pictures = sorted((home/"mine/search/cam1").glob("*"))[:3]
    (tmp_path/"t.csv").write_text("\n".join(["path,pid", *(f"{p},turtle_{i}" for i, p in enumerate(pictures[:2])),
                                             f"{pictures[2]},"]))
    assert said(capsys, "index", home/"model.safetensors", tmp_path/"t.csv", tmp_path/"g.safetensors")[0] == 3
    lines = said(capsys, "search", home/"model.safetensors", tmp_path/"g.safetensors", pictures[1])[1].splitlines()
    assert lines[1].split()[-2:] == ["identity", "path"] and lines[2].split()[-2:] == ["turtle_1", str(pictures[1])]
    out = said(capsys, "search", home/"model.safetensors", home/"mine/search", pictures[1])[1]
    assert "identity" not in out.splitlines()[1]


def test_warnings_are_notes_without_lines_of_the_program(home, tmp_path):
    "In a process of its own, as a user sees it."
    (tmp_path/"t.csv").write_text((home/"mine/truth.csv").read_text().replace("search/", f"{home}/mine/search/")
                                  .replace("crops/", f"{home}/mine/crops/"))
    done = subprocess.run([sys.executable, "-m", "upl_reid.cli", "adapt", tmp_path/"t.csv", tmp_path/"m.safetensors",
                           "--preset", "tiny", "--source", "none"], capture_output=True, text=True,
                          env={**os.environ, "UPL_REID_RUNS": str(tmp_path/"runs")})
    assert done.returncode in (0, 3) and "note: " in done.stderr and "starts from random values" in done.stderr
    assert "UserWarning" not in done.stderr and "warnings.warn" not in done.stderr


def test_what_is_not_ranked_is_counted_and_unknown_cameras_differ(home, capsys, tmp_path):
    def measured(change):
        images = list_images(home/"mine/truth.csv")
        change(images)
        table = write_table(images, tmp_path/"t.csv")
        asked = "evaluate", home/"model.safetensors", table, "--device", "cpu"
        return json.loads(said(capsys, *asked, "--json")[1]), said(capsys, *asked)[1]
    def nothing(images): pass
    def without_cameras(images): images.loc[images.split != "train", "camid"] = ""
    def apart(images):
        rows = images.index[images.split != "train"]
        images.loc[rows, "camid"] = [f"own{i}" for i in rows]
    def without_pids(images):
        rows = images.index[(images.split == "gallery") & (images.pid > 0)]
        images.loc[rows[::7], "pid"] = -1
    images, (whole, text) = list_images(home/"mine/truth.csv"), measured(nothing)
    known = (images.split == "gallery") & (images.pid >= 0)
    assert whole["gallery"] == known.sum() and f"in {known.sum()} images" in text
    assert whole["without_pid"] == (images.split == "gallery").sum() - known.sum()
    unknown, different = measured(without_cameras)[0], measured(apart)[0]
    assert {k: unknown[k] for k in ("mAP", "queries")} == {k: different[k] for k in ("mAP", "queries")}
    assert unknown["mAP"] != whole["mAP"]
    fewer, text = measured(without_pids)
    lost = len(range(0, int(((images.split == "gallery") & (images.pid > 0)).sum()), 7))
    assert (fewer["gallery"], fewer["without_pid"]) == (whole["gallery"] - lost, whole["without_pid"] + lost)
    assert f"; {fewer['without_pid']} gallery images without a pid left out (write 0 for people" in text


def test_queries_without_a_hit_outside_their_camera_are_told_the_remedy(home, capsys, tmp_path):
    shutil.copytree(sorted((home/"mine/search").iterdir())[0], tmp_path/"own/cam1")
    ask = "search", home/"model.safetensors", tmp_path/"own", "-k", 3, "--device", "cpu"
    code, out, _ = said(capsys, *ask)
    assert code == 0 and "6 of 6 have no hit outside their own camera; --same-camera searches it too" in out
    assert "--same-camera" not in said(capsys, *ask, "--same-camera")[1]
    assert "--same-camera" not in said(capsys, *ask[:2], home/"mine/search", *ask[3:])[1]


def test_index_appends_and_search_finds(home, capsys, tmp_path):
    cams = sorted((home/"mine/search").iterdir())
    assert json.loads(said(capsys, "index", home/"model.safetensors", cams[0], tmp_path/"g.safetensors", "--json",
                           "--device", "cpu")[1])["added"] == len(list(cams[0].iterdir()))
    total = json.loads(said(capsys, "index", home/"model.safetensors", home/"mine/search", tmp_path/"g.safetensors",
                            "--json", "--device", "cpu")[1])
    assert total["images"] == len(list((home/"mine/search").rglob("*.jpg"))) and total["added"] < total["images"]
    assert json.loads(said(capsys, "index", home/"model.safetensors", home/"mine/search", tmp_path/"g.safetensors",
                           "--json", "--device", "cpu")[1])["added"] == 0
    query = sorted(cams[1].glob("*.jpg"))[0]
    code, out, _ = said(capsys, "search", home/"model.safetensors", home/"mine/search", query, "-k", 5, "--json",
                        "--device", "cpu", "--picture", tmp_path/"hits.png")
    hits = json.loads(out)["hits"]
    assert code == 0 and [h["rank"] for h in hits] == [1, 2, 3, 4, 5] and all(h["camera"] != cams[1].name for h in hits)
    assert (tmp_path/"hits.png").read_bytes()[:4] == b"\x89PNG"
    own = json.loads(said(capsys, "search", home/"model.safetensors", home/"mine/search", query, "-k", 1,
                          "--same-camera", "--json", "--device", "cpu")[1])["hits"][0]
    assert own["path"] == str(query.resolve()) and own["cosine"] == pytest.approx(1, abs=1e-5)
    few = json.loads(said(capsys, "search", home/"model.safetensors", home/"mine/search", query, "-k", 50,
                          "--false-match-rate", .01, "--json", "--device", "cpu")[1])["hits"]
    assert len(few) < 50
    assert all(h["cosine"] >= Embedder.load(home/"model.safetensors", "cpu").calibration.threshold(.01) for h in few)
    assert str(query) in said(capsys, "search", home/"model.safetensors", tmp_path/"g.safetensors", query, "--device",
                              "cpu")[1]


@pytest.fixture
def album(home, tmp_path):
    "A copy of the pictures; `indexed` puts them into g.safetensors beside it."
    import shutil
    shutil.copytree(home/"mine/search", tmp_path/"s")
    return tmp_path/"s"


def indexed(capsys, home, root, *more):
    "Exit code and facts of `index`."
    code, out, _ = said(capsys, "index", home/"model.safetensors", root, root.parent/"g.safetensors", "--json",
                        "--device", "cpu", *more)
    return code, json.loads(out)


def found_first(capsys, home, album, query):
    "The best hit for a picture, its own camera included."
    return json.loads(said(capsys, "search", home/"model.safetensors", album.parent/"g.safetensors", query, "-k", 1,
                           "--same-camera", "--json", "--device", "cpu")[1])["hits"][0]


def test_a_picture_that_was_overwritten_is_embedded_anew(home, capsys, tmp_path, album):
    import shutil
    first, second = sorted((album/"cam1").iterdir())[:2]
    total = len(list(album.rglob("*.jpg")))
    code, facts = indexed(capsys, home, album)
    assert (code, facts["added"], facts["updated"], facts["gone"]) == (0, total, 0, 0)
    code, facts = indexed(capsys, home, album)
    assert (code, facts["added"], facts["updated"], facts["images"]) == (0, 0, 0, total)
    state = first.stat()
    shutil.copyfile(sorted((home/"mine/crops/cam3").iterdir())[0], first)
    os.utime(first, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    Image.new("RGB", (24, 48), (9, 200, 9)).save(album/"cam1/new.jpg")
    code, out, _ = said(capsys, "index", home/"model.safetensors", album, tmp_path/"g.safetensors", "--device", "cpu")
    assert code == 0 and out.startswith(f"1 image added, 1 updated in {tmp_path/'g.safetensors'}: Gallery({total + 1}")
    for path in (first, second, album/"cam1/new.jpg"):
        best = found_first(capsys, home, album, path)
        assert best["path"] == str(path) and best["cosine"] == pytest.approx(1, abs=1e-5)
    gallery = Gallery.load(tmp_path/"g.safetensors")
    fresh = Embedder.load(home/"model.safetensors", "cpu").embed(gallery.paths)
    np.testing.assert_allclose(gallery.vectors, fresh, atol=1e-6)
    assert gallery.digests == [hashlib.sha256(open(p, "rb").read()).hexdigest()[:16] for p in gallery.paths]


def test_the_entry_of_a_picture_that_became_unreadable_stays(home, capsys, tmp_path, album):
    first = sorted((album/"cam1").iterdir())[0]
    total = indexed(capsys, home, album)[1]["images"]
    gallery, content = Gallery.load(tmp_path/"g.safetensors"), first.read_bytes()
    gallery.set_identities({str(first): "Ann"})
    gallery.save(tmp_path/"g.safetensors")
    for damage in (b"no picture", content[:len(content)//2], b""):
        first.write_bytes(damage)
        code, facts = indexed(capsys, home, album)
        assert (code, facts["added"], facts["updated"], facts["images"]) == (3, 0, 0, total)
        assert len(facts["left_out"]) == 1 and first.name in facts["left_out"][0]
        assert "1 image of the gallery cannot be read any more: the old entries are kept" in facts["notes"]
        again = Gallery.load(tmp_path/"g.safetensors")
        assert again.rows.equals(gallery.rows) and np.array_equal(again.vectors, gallery.vectors)
    first.write_bytes(content)
    code, facts = indexed(capsys, home, album)
    assert (code, facts["updated"], facts["notes"]) == (0, 0, [])


def test_changed_cameras_and_times_are_taken_over_and_unknown_ones_are_not(home, capsys, tmp_path, album):
    images = list_images(album).assign(time="9:00")
    def tell(**columns): return indexed(capsys, home, write_table(images.assign(**columns), tmp_path/"t.csv"))[1]
    assert tell()["added"] == len(images)
    moved = images.camid.where(images.index > 2, "gate")
    assert tell(camid=moved)["updated"] == 3 and tell(camid=moved)["updated"] == 0
    assert tell(camid="", time="")["updated"] == 0
    rows = Gallery.load(tmp_path/"g.safetensors").rows
    assert sorted(rows.camera) == sorted(moved) and set(rows.time) == {"9:00"} and (rows.camera == "gate").sum() == 3
    assert tell(camid="", time="9:30")["updated"] == len(images)
    rows = Gallery.load(tmp_path/"g.safetensors").rows
    assert sorted(rows.camera) == sorted(moved) and set(rows.time) == {"9:30"}
    images.path[0].write_bytes(images.path[1].read_bytes())             # another picture: its time is not known
    assert tell(camid="", time="")["updated"] == 1
    rows = Gallery.load(tmp_path/"g.safetensors").rows.set_index("path")
    assert tuple(rows.loc[str(images.path[0]), ["camera", "time"]]) == ("gate", "")


def test_files_that_are_gone_are_told_and_forgotten(home, capsys, tmp_path, album):
    indexed(capsys, home, album)
    first, second, third = sorted((album/"cam1").iterdir())[:3]
    gallery = Gallery.load(tmp_path/"g.safetensors")
    vector = gallery.vectors[gallery.paths.index(str(first))].tobytes()
    file, total = tmp_path/"g.safetensors", len(list(album.rglob("*.jpg")))
    traces = [str(first).encode(), vector]
    assert all(t in file.read_bytes() for t in traces)
    first.unlink()
    code, facts = indexed(capsys, home, album)
    note, = facts["notes"]
    assert (code, facts["gone"], facts["images"]) == (3, 1, total) and str(first) in note
    assert note.startswith("1 entry is of a file that is gone") and f"`upl-reid forget {file} --gone`" in note
    second.unlink(); third.unlink()
    assert indexed(capsys, home, album)[1]["notes"][0].startswith("3 entries are of files that are gone, first ")
    code, out, _ = said(capsys, "forget", file, "--gone")
    assert code == 0 and out == f"3 images removed from {file}, {total - 3} stay\n"
    assert not any(t in file.read_bytes() for t in traces)
    assert indexed(capsys, home, album)[0] == 0
    before = file.stat()
    assert json.loads(said(capsys, "forget", file, "--gone", "--json")[1])["removed"] == 0
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_folder_that_may_not_be_read_is_not_gone(tmp_path, monkeypatch):
    (tmp_path/"a").write_text("x")
    assert not file_is_gone(str(tmp_path/"a")) and not file_is_gone("absent") and file_is_gone(str(tmp_path/"b"))
    assert file_is_gone(str(tmp_path/"a/b"))
    def denied(path): raise PermissionError(13, "denied")
    with monkeypatch.context() as m:
        m.setattr(os, "stat", denied)
        assert not file_is_gone(str(tmp_path/"b"))


def test_forget_takes_names_and_cameras_or_changes_nothing(home, capsys, tmp_path, album, monkeypatch):
    indexed(capsys, home, album)
    first, second, third = sorted((album/"cam2").iterdir())[:3]
    file, total = tmp_path/"g.safetensors", len(list(album.rglob("*.jpg")))
    before = file.read_bytes()
    for wrong in ((), (album/"cam2/absent.jpg",), (first, album/"cam2/absent.jpg"), ("--camera", "cam9"),
                  (first, "--camera", "cam9"), (first.name,)):
        code, out, error = said(capsys, "forget", file, *wrong)
        assert code == 1 and out == "" and error.startswith("upl-reid forget: ") and len(error) < 400, wrong
        assert file.read_bytes() == before
    assert said(capsys, "forget", tmp_path/"none.safetensors", first)[0] == 1
    assert said(capsys, "forget", home/"model.safetensors", first)[0] == 1
    assert not (tmp_path/".none.safetensors.lock").exists()
    monkeypatch.chdir(album/"cam2")
    assert json.loads(said(capsys, "forget", file, first.name, f"../cam2/{second.name}", third,
                           "--json")[1]) == dict(out=str(file), removed=3, images=total - 3, answers=0)
    mode = file.stat().st_mode
    inside = len(list((album/"cam1").iterdir()))
    assert json.loads(said(capsys, "forget", file, "--camera", "cam1", "--json")[1])["images"] == total - 3 - inside
    content = file.read_bytes()
    assert b"cam1" not in content and b"cam2" in content and file.stat().st_mode == mode
    assert indexed(capsys, home, album)[1]["added"] == 3 + inside          # forgotten is not forbidden


def test_forget_waits_for_index(home, capsys, album, monkeypatch):
    "Both hold one lock: `index` takes it, and `forget` waits until another one that has it gives it back."
    from filelock import FileLock
    taken, freed, real = [], [], FileLock.acquire
    def acquire(self, *a, **k):
        taken.append(os.path.basename(self.lock_file))
        return real(self, *a, **k)
    monkeypatch.setattr(FileLock, "acquire", acquire)
    indexed(capsys, home, album)
    assert ".g.safetensors.lock" in taken
    other = FileLock(album.parent/".g.safetensors.lock", thread_local=False, is_singleton=False)
    real(other)
    def give_back():
        freed.append(time.monotonic())
        other.release()
    timer = threading.Timer(.5, give_back)
    timer.start()
    taken.clear()
    assert said(capsys, "forget", album.parent/"g.safetensors", "--gone")[0] == 0
    assert freed and ".g.safetensors.lock" in taken
    timer.join()


def test_links_are_entries_under_the_names_given(home, capsys, tmp_path, monkeypatch):
    "A store named by hashes, two cameras that link to one of its files."
    pictures = sorted((home/"mine/search/cam1").iterdir())[:4]
    for i, picture in enumerate(pictures):
        (tmp_path/"store").mkdir(exist_ok=True)
        (tmp_path/f"store/{i:08x}.jpg").write_bytes(picture.read_bytes())
        for camera in ("cam1", "cam2")[:1 + (i == 0)]:
            (tmp_path/"v"/camera).mkdir(parents=True, exist_ok=True)
            (tmp_path/f"v/{camera}/a{i}.jpg").symlink_to(tmp_path/f"store/{i:08x}.jpg")
    monkeypatch.chdir(tmp_path)
    from pathlib import Path
    facts = indexed(capsys, home, Path("v"))[1]
    rows = Gallery.load("g.safetensors").rows
    assert facts["images"] == 5 and sorted(zip(rows.path, rows.camera)) == sorted(
        [(str(tmp_path/f"v/cam1/a{i}.jpg"), "cam1") for i in range(4)] + [(str(tmp_path/"v/cam2/a0.jpg"), "cam2")])
    assert indexed(capsys, home, tmp_path/"v")[1]["added"] == 0
    for query, camera in (("v/cam1/a0.jpg", "cam1"), ("v/cam2/a0.jpg", "cam2"), ("v/cam1/../cam2/a0.jpg", "cam2")):
        out = said(capsys, "search", home/"model.safetensors", "g.safetensors", query, "--device", "cpu")[1]
        assert out.startswith(f"{query}, outside camera {camera}:")


def test_a_query_known_by_its_target_finds_its_camera(home, capsys, tmp_path, album):
    indexed(capsys, home, album)
    first = sorted((album/"cam2").iterdir())[0]
    (tmp_path/"link.jpg").symlink_to(first)
    out = said(capsys, "search", home/"model.safetensors", tmp_path/"g.safetensors", tmp_path/"link.jpg", "--device",
               "cpu")[1]
    assert out.startswith(f"{tmp_path/'link.jpg'}, outside camera cam2:")


def test_galleries_of_older_formats_are_brought_up_to_date(home, capsys, tmp_path, album):
    "They called links by their targets and had no digests: nothing is doubled, known cameras stay."
    embedder = Embedder.load(home/"model.safetensors", "cpu")
    (tmp_path/"linked").symlink_to(album)
    images = list_images(album)
    old = Gallery(embedder.dim, model=embedder.digest).add(embedder.embed(list(images.path))*0 + 1, images.path,
                                                           images.camid)
    old.save(tmp_path/"g.safetensors")
    code, facts = indexed(capsys, home, tmp_path/"linked")
    assert (facts["added"], facts["updated"], facts["images"], code) == (0, len(images), len(images), 0)
    gallery = Gallery.load(tmp_path/"g.safetensors")
    assert set(gallery.paths) == {str(tmp_path/"linked"/p.relative_to(album)) for p in images.path}
    np.testing.assert_allclose(gallery.vectors, embedder.embed(gallery.paths), atol=1e-6)


def test_an_empty_gallery_says_so(home, capsys, tmp_path, album):
    indexed(capsys, home, album)
    cameras = Gallery.load(tmp_path/"g.safetensors").cameras
    for camera in cameras: assert said(capsys, "forget", tmp_path/"g.safetensors", "--camera", camera)[0] == 0
    code, _, error = said(capsys, "search", home/"model.safetensors", tmp_path/"g.safetensors", "--device", "cpu")
    assert code == 1 and "is empty" in error


def test_the_card_names_folder_cameras_and_crops(home):
    card, files = (home/"model.safetensors.md").read_text(), list((home/"mine/crops").rglob("*.jpg"))
    assert card.startswith("# Model card: people on the cameras of crops\n")
    assert f"crops: {len(files)} crops of people, no identities were used." in card
    for camera in (home/"mine/crops").iterdir(): assert f"| {camera.name} | {len(list(camera.iterdir()))} |" in card


def test_files_of_the_commands_have_the_umask_of_the_user(home, capsys, tmp_path):
    mask, wanted = os.umask(0o027), ("index", home/"model.safetensors", home/"mine/search", tmp_path/"g.safetensors")
    try: said(capsys, *wanted, "--device", "cpu")
    finally: os.umask(mask)
    assert (tmp_path/"g.safetensors").stat().st_mode & 0o777 == 0o640


def test_export_and_pretrain(home, capsys, tmp_path):
    code, out, _ = said(capsys, "export", home/"model.safetensors", tmp_path/"m.onnx", "--json")
    assert code == 0 and json.loads(out)["difference"] <= 1e-4 and (tmp_path/"m.onnx").stat().st_size > 1000
    import onnx
    assert said(capsys, "export", home/"model.safetensors", tmp_path/"m.onnx", "--opset", 17)[0] == 0
    assert [entry.version for entry in onnx.load(tmp_path/"m.onnx").opset_import if not entry.domain] == [17]
    code, _, error = said(capsys, "export", home/"model.safetensors", tmp_path/"n.onnx", "--opset", 9)
    assert code == 1 and "choose 14 to 23" in error and not (tmp_path/"n.onnx").exists()
    code, out, _ = said(capsys, "pretrain", tmp_path/"p.safetensors", "--preset", "tiny", "--device", "cpu", "--json")
    told = json.loads(out)
    assert code == 0 and 0 < told["mAP"] <= 1
    people = len(set(open_domain("plaza", "tiny").train.pids.tolist()))
    assert told["people"] + told["held"] == people and told["held"] == round(PRESETS["tiny"].held*people)
    code, out, _ = said(capsys, "pretrain", tmp_path/"p.safetensors", "--preset", "tiny", "--device", "cpu")
    assert f"on {told['people']:,} people ({told['held']:,} are held out" in out
    assert Embedder.load(tmp_path/"p.safetensors", "cpu").facts["method"] == "pretrain"


def test_a_source_of_ones_own(home, capsys, tmp_path):
    "A labelled table to pretrain on; without identities it is refused."
    code, out, _ = said(capsys, "pretrain", tmp_path/"p.safetensors", "--preset", "tiny", "--device", "cpu", "--json",
                        "--source", "labelled", "--source-root", home/"mine/truth.csv")
    assert code == 0 and json.loads(out)["mAP"] > .05
    code, out, _ = said(capsys, "adapt", home/"mine/crops", tmp_path/"a.safetensors", "--preset", "tiny", "--device",
                        "cpu", "--json", "--source", "labelled", "--source-root", home/"mine/truth.csv", "--method",
                        "dbscan")
    assert code in (0, 3) and Embedder.load(tmp_path/"a.safetensors", "cpu").facts["origin"]["source"] == "labelled"
    code, _, error = said(capsys, "pretrain", tmp_path/"q.safetensors", "--preset", "tiny", "--source", "labelled",
                          "--source-root", home/"mine/crops")
    assert code == 1 and "pid" in error and not (tmp_path/"q.safetensors").exists()


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    "Weights of a body under another library's wrapping."
    file, state = tmp_path_factory.mktemp("body")/"w.pth", build_encoder("mobilenetv3_small_050", (64, 32), 8, seed=9)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.body.state_dict().items()}}, file)
    return file


def test_two_starts_are_compared_before_training(home, body, capsys, tmp_path):
    "With weights and a source: both numbers once, before the run begins, and nothing is switched."
    arguments = ["adapt", home/"mine/crops", tmp_path/"m.safetensors", "--preset", "tiny", "--weights", body,
                 "--backbone", "mobilenetv3_small_050", "--size", "64x32", "--dim", "16", "--device", "cpu", "--json"]
    assert main([str(a) for a in arguments]) in (0, 3)
    out, error = capsys.readouterr()
    found, said_so = json.loads(out)["starts"], "distorted copies of the crops that are found again"
    assert set(found) == {"source", "weights"} and all(0 <= share <= 1 for share in found.values())
    assert f"{said_so}: {100*found['source']:.0f} % after training on plaza, {100*found['weights']:.0f} %" in error
    assert error.index(said_so) < error.index("varied_light_upl folder: epoch 1")
    assert Embedder.load(tmp_path/"m.safetensors", "cpu").facts["origin"]["source"] == "plaza"
    assert main([str(a) for a in arguments]) in (0, 3)
    out, error = capsys.readouterr()
    assert "starts" not in json.loads(out) and said_so not in error       # the run is finished: nothing to choose


def test_adapting_without_a_source_then_going_on(home, body, capsys, tmp_path):
    "From weights alone; then from the model that came out, whose network needs not be named again."
    network = ("--preset", "tiny", "--backbone", "mobilenetv3_small_050", "--size", "64x32", "--dim", "16")
    def adapted(name, *more):
        code = main([*map(str, ("adapt", home/"mine/crops", tmp_path/name, "--source", "none", "--device", "cpu")),
                     *map(str, more), "--json"])
        return code, *capsys.readouterr()
    code, out, error = adapted("a.safetensors", "--weights", body, *network, "--tensorboard", tmp_path/"board")
    facts = Embedder.load(tmp_path/"a.safetensors", "cpu").facts
    assert code in (0, 3) and (facts["backbone"], facts["size"], facts["dim"]) == (network[3], [64, 32], 16)
    assert facts["origin"]["source"] == "" and "preset tiny, as given" in error
    assert "epoch 1 of 2, loss" in error and "epoch 2 of 2" in error and "done" in error
    assert len(list((tmp_path/"board").rglob("events*"))) == 1
    adapted("a.safetensors", "--weights", body, *network, "--tensorboard", tmp_path/"late")  # it is finished already
    assert len(list((tmp_path/"late").rglob("events*"))) == 1
    for _ in range(2):                                                   # its own file may be replaced
        code, out, _ = said(capsys, "export", tmp_path/"a.safetensors", tmp_path/"timm.safetensors", "--json")
        assert code == 0 and json.loads(out)["difference"] <= 1e-4
    assert said(capsys, "export", tmp_path/"a.safetensors", tmp_path/"a.safetensors")[0] == 1       # a model is not
    assert "--opset" in said(capsys, "export", tmp_path/"a.safetensors", tmp_path/"t.safetensors", "--opset", 17)[2]
    code, out, error = adapted("b.safetensors", "--start", tmp_path/"a.safetensors", "--method", "dbscan")
    again = Embedder.load(tmp_path/"b.safetensors", "cpu").facts
    assert code in (0, 3) and again["backbone"] == facts["backbone"] and "the network of" in error
    assert again["origin"]["preset"] == "tiny" and json.loads(out)["run"].rpartition("-")[2].startswith("start")


def test_where_a_network_comes_from_is_said(home, body):
    def chosen(*more): return choose_network(make_parser().parse_args(["adapt", "crops", "m.safetensors", *more]))
    assert chosen()[:2] == ("demo", {}) and "--weights FILE" in chosen()[2]
    assert chosen("--weights", str(body), "--dim", "8")[:2] == ("photo", dict(dim=8))
    assert chosen("--source", "none")[0] == "photo" and chosen("--preset", "gpu", "--source", "none")[0] == "gpu"
    preset, network, why = chosen("--start", str(home/"model.safetensors"), "--dim", "8")
    assert (preset, network["backbone"], network["dim"]) == ("tiny", "micro", 8) and "model.safetensors" in why


def test_pretraining_needs_a_source(capsys, tmp_path):
    code, _, error = said(capsys, "pretrain", tmp_path/"p.safetensors", "--source", "none")
    assert code == 1 and "source with identities" in error and not list(tmp_path.glob("p*"))


def test_imagenet_weights_that_cannot_be_had_are_one_sentence(home, capsys, tmp_path, monkeypatch):
    import timm
    def offline(*a, pretrained=False, **k):
        if pretrained: raise OSError("no network")
        return real(*a, **k)
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", offline)
    code, _, error = said(capsys, "adapt", home/"mine/crops", tmp_path/"m.safetensors", "--source", "none", "--device",
                          "cpu")
    last = error.strip().splitlines()[-1]
    assert code == 1 and "no ImageNet weights for mobilenetv2_100" in last and "weights=<local file>" in last
    assert not (tmp_path/"m.safetensors").exists()


def test_version(capsys):
    with pytest.raises(SystemExit) as stop: main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("upl-reid 0.")


WRONG = [("check", "{tmp}/absent"), ("synth", "{home}/mine"), ("synth", "{tmp}/x", "--preset", "paper"),
         ("synth", "{tmp}/x", "--network", "moon"), ("adapt", "{tmp}/absent", "{tmp}/m.safetensors"),
         ("adapt", "{home}/mine/crops", "{tmp}/m.safetensors", "--preset", "huge"), ("adapt", "{home}/mine/crops",
             "{tmp}/m.safetensors", "--method", "nonsense"),
         ("adapt", "{home}/mine/crops", "{tmp}/m.safetensors", "--source", "folder"), ("adapt", "{home}/mine/crops",
                 "{tmp}/m.safetensors", "--source", "market1501", "--source-root", "{tmp}"),
                 ("adapt", "{home}/mine/crops", "{tmp}/m.safetensors", "--device", "cuda:77"),
                 ("adapt", "{home}/mine/crops", "{tmp}/m.safetensors", "--method", "oracle", "--preset", "tiny"),
         ("evaluate", "{home}/model.safetensors", "{home}/mine/crops"), ("evaluate", "{home}/mine/truth.csv",
                 "{home}/mine/truth.csv"), ("index", "{home}/model.safetensors", "{home}/mine/search",
                                            "{home}/model.safetensors"), ("search", "{home}/model.safetensors",
                                                                          "{home}/model.safetensors"),
         ("search", "{home}/model.safetensors", "{home}/mine/search", "{tmp}/absent.jpg"), ("search",
                 "{home}/model.safetensors", "{home}/mine/search", "-k", "0"), ("search", "{home}/model.safetensors",
                                                                                "{home}/mine/search",
                                                                                "--false-match-rate", "0.9"),
                                                                                ("search", "{home}/model.safetensors",
                                                                                    "{home}/mine/search", "--picture",
                                                                                        "{tmp}/hits.xyz"),
         ("export", "{tmp}/absent", "{tmp}/m.onnx"), ("adapt", "{home}/mine/crops", "{tmp}/m.safetensors", "--preset",
                                                      "tiny", "--weights", "{home}/mine/truth.csv")]


@pytest.mark.parametrize("arguments", WRONG, ids=lambda a: " ".join(a)[:60])
def test_what_is_wrong_is_one_sentence_and_leaves_nothing(home, capsys, tmp_path, arguments):
    before = (home/"model.safetensors").read_bytes()
    code, out, error = said(capsys, *(a.format(home=home, tmp=tmp_path) for a in arguments))
    assert code == 1 and error.startswith(f"upl-reid {arguments[0]}: ") and len(error) < 700 and out == ""
    assert not [p for p in tmp_path.iterdir() if p.name not in ("runs",)]
    assert (home/"model.safetensors").read_bytes() == before


def test_the_same_names_with_other_pictures_are_another_run(home, capsys, tmp_path):
    "Pictures of equal size in bytes: their contents count."
    import shutil
    from upl_reid.experiments.runs import domain_fingerprint
    from upl_reid.data.benchmarks import load_domain
    for n, shade in (("a", 10), ("b", 200)):
        for i in range(4):
            (tmp_path/n/f"cam{i % 2}").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 16), (shade, i, 0)).save(tmp_path/n/f"cam{i % 2}/{i}.bmp")
    one, two = (load_domain("folder", tmp_path/n) for n in "ab")
    assert {p.stat().st_size for d in (one, two) for p in d.train.paths} == {next(iter(one.train.paths)).stat().st_size}
    assert domain_fingerprint(one) != domain_fingerprint(two)
    shutil.copytree(tmp_path/"a", tmp_path/"c")
    assert domain_fingerprint(load_domain("folder", tmp_path/"c")) == domain_fingerprint(one)


def test_a_gallery_of_another_model_is_refused(home, capsys, tmp_path):
    said(capsys, "index", home/"model.safetensors", home/"mine/search", tmp_path/"g.safetensors", "--device", "cpu")
    said(capsys, "pretrain", tmp_path/"p.safetensors", "--preset", "tiny", "--device", "cpu", "--json")
    before = (tmp_path/"g.safetensors").read_bytes()
    for arguments in (("index", tmp_path/"p.safetensors", home/"mine/crops", tmp_path/"g.safetensors"),
                      ("search", tmp_path/"p.safetensors", tmp_path/"g.safetensors")):
        code, _, error = said(capsys, *arguments, "--device", "cpu")
        assert code == 1 and "another model" in error
    assert (tmp_path/"g.safetensors").read_bytes() == before


def test_index_leaves_out_what_cannot_be_read_and_says_so(home, capsys, tmp_path):
    import shutil
    shutil.copytree(home/"mine/search", tmp_path/"pictures")
    (tmp_path/"pictures/cam1/bad.jpg").write_bytes(b"no picture")
    (tmp_path/"pictures/cam1/link.jpg").symlink_to(next((tmp_path/"pictures/cam2").glob("*.jpg")))
    code, out, _ = said(capsys, "index", home/"model.safetensors", tmp_path/"pictures", tmp_path/"g.safetensors",
                        "--json", "--device", "cpu")
    facts = json.loads(out)
    assert code == 3 and len(facts["left_out"]) == 1 and "bad.jpg" in facts["left_out"][0]
    assert facts["images"] == len(list((home/"mine/search").rglob("*.jpg"))) + 1    # the link is an entry too


def test_names_that_are_no_text_can_be_found(home, capsys, tmp_path):
    import os, shutil
    shutil.copytree(home/"mine/search", tmp_path/"pictures")
    first = sorted((tmp_path/"pictures/cam1").iterdir())[0]
    os.rename(first, os.fsencode(tmp_path) + b"/pictures/cam1/\xff.jpg")
    for more in ([], ["--json"]):
        code, out, _ = said(capsys, "search", home/"model.safetensors", tmp_path/"pictures",
                            sorted((tmp_path/"pictures/cam2").iterdir())[0], "-k", 1000, "--device", "cpu", *more)
        assert code == 0 and ("xff.jpg" in out or "udcff.jpg" in out)


def test_json_is_json(home, capsys, tmp_path):
    "One camera: signs that do not exist are null, not NaN."
    import shutil
    for p in (home/"mine/crops").rglob("*.jpg"):
        (tmp_path/"crops").mkdir(exist_ok=True)
        shutil.copyfile(p, tmp_path/"crops"/f"{p.parent.name}{p.name}")
    code, out, _ = said(capsys, "adapt", tmp_path/"crops", tmp_path/"m.safetensors", "--preset", "tiny", "--device",
                        "cpu", "--json", "--method", "dbscan")
    assert code in (0, 3)
    assert json.loads(out, parse_constant=lambda c: pytest.fail(c))["quality"]["cross_camera"] is None


def test_outputs_do_not_destroy_what_is_there(home, capsys, tmp_path):
    (tmp_path/"notes.safetensors").write_text("mine")
    (tmp_path/"folder.safetensors").mkdir()
    for arguments in (("adapt", home/"mine/crops", "{}/model.md"), ("adapt", home/"mine/crops",
                                                                    "{}/notes.safetensors"),
                                                                    ("adapt", home/"mine/crops",
                                                                     "{}/folder.safetensors"),
                                                                     ("adapt", home/"mine/crops", "."),
                                                                     ("pretrain", "{}/notes.safetensors"),
                      ("export", home/"model.safetensors", home/"model.safetensors"), ("index",
                              home/"model.safetensors", home/"mine/search", "{}/notes.safetensors"),
                              ("index", home/"model.safetensors", home/"mine/search", "{}/gallery"),
                      ("search", home/"model.safetensors", home/"mine/search", "--without", "Cam1")):
        code, _, error = said(capsys, *(str(a).format(tmp_path) for a in arguments))
        assert code == 1 and len(error) < 300, arguments
    assert (tmp_path/"notes.safetensors").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.safetensors", "notes.safetensors"]


def test_unreadable_crops_stop_before_training(home, capsys, tmp_path):
    import shutil
    shutil.copytree(home/"mine/crops", tmp_path/"crops")
    (tmp_path/"crops/cam1/bad.jpg").write_bytes(b"")
    assert main(["adapt", str(tmp_path/"crops"), str(tmp_path/"m.safetensors"), "--preset", "tiny"]) == 1
    whole = capsys.readouterr().err
    error = whole.strip().splitlines()[-1]
    assert "bad.jpg" in error and not (tmp_path/"runs").exists()
    assert "1 of" in error and "--skip-unreadable" in error and "NOT enough" not in whole
    code, out, _ = said(capsys, "check", tmp_path/"crops")
    assert code == 3 and "NOT enough" not in out and "1 of" in out.splitlines()[-1]


def test_unreadable_crops_may_be_left_out(home, capsys, tmp_path):
    "With a count and names; the stored table and the run are those of the readable crops alone."
    import shutil
    shutil.copytree(home/"mine/crops", tmp_path/"crops")
    for name in ("bad", "worse"): (tmp_path/f"crops/cam1/{name}.jpg").write_bytes(b"")
    arguments = ("--preset", "tiny", "--device", "cpu", "--method", "dbscan", "--skip-unreadable", "--json")
    code, out, _ = said(capsys, "adapt", tmp_path/"crops", tmp_path/"m.safetensors", *arguments)
    facts = json.loads(out)
    assert code in (0, 3) and ["bad.jpg" in facts["left_out"][0], "worse.jpg" in facts["left_out"][1]] == [True, True]
    table, = (tmp_path/"runs/tables").glob("*.csv")
    assert len(list_images(table)) == len(list_images(home/"mine/crops")) == facts["check"]["readable"]
    code, out, _ = said(capsys, "adapt", tmp_path/"crops", tmp_path/"m.safetensors", *arguments[:-1])
    assert "2 of" in out and "were left out" in out and "left out: " in out and "bad.jpg" in out
    code, out, _ = said(capsys, "adapt", home/"mine/crops", tmp_path/"n.safetensors", *arguments)
    assert json.loads(out)["run"] == facts["run"] and json.loads(out)["left_out"] == []
    few = tmp_path/"few/cam1"
    few.mkdir(parents=True)
    (few/"bad.jpg").write_bytes(b"")
    code, _, error = said(capsys, "adapt", tmp_path/"few", tmp_path/"f.safetensors", *arguments)
    assert code == 1 and "0 different pictures" in error


def people_folders(home):
    "One folder an identity: 40 of three pictures."
    rng = np.random.default_rng(0)
    for i in range(120):
        path = home/f"{i // 3:04d}/{i // 3:04d}_c{1 + i % 3}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 20, 3), dtype=np.uint8)).save(path)
    return home


def test_identities_taken_for_cameras_are_asked_about(home, capsys, tmp_path):
    "One note, exit code 3, no verdict, no table; `adapt` refuses; with the pattern of the note all is well."
    people = people_folders(tmp_path/"people")
    code, out, _ = said(capsys, "check", people, "--table", tmp_path/"t.csv")
    assert code == 3 and out.count("note:") == 1 and "are these identities or splits?" in out
    assert "enough" not in out.lower() and not (tmp_path/"t.csv").exists() and "not written" in out
    report = json.loads(said(capsys, "check", people, "--json")[1])
    assert not report["sufficient"] and report["advice"] == [report["doubt"]]
    pattern = report["doubt"].split("--pattern '")[1].split("'")[0]
    code, _, error = said(capsys, "adapt", people, tmp_path/"m.safetensors", "--preset", "tiny")
    assert code == 1 and report["doubt"] in error and not (tmp_path/"runs").exists()
    code, out, _ = said(capsys, "index", home/"model.safetensors", people, tmp_path/"g.safetensors", "--device", "cpu")
    assert code == 3 and report["doubt"] in out
    code, out, _ = said(capsys, "check", people, "--pattern", pattern, "--table", tmp_path/"t.csv", "--json")
    assert code == 0 and json.loads(out)["cameras"] == {"1": 40, "2": 40, "3": 40} and (tmp_path/"t.csv").exists()
    code, out, _ = said(capsys, "check", people, "--pattern", "(?P<cam>[^/]+)/")
    assert "enough pictures to train on" in out and "in 40 cameras" in out


def test_evaluate_by_a_pattern_is_that_of_the_table_it_finds(home, capsys, tmp_path):
    "Splits, identities as names, leave one out: the listing, and its table written by `check`, measure the same."
    import shutil
    names = list_images(home/"mine/truth.csv")
    for i, row in enumerate(names.itertuples()):
        path = tmp_path/f"r/{dict(train='train', query='image_query', gallery='image_test')[row.split]}"
        path.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(row.path, path/f"p{row.pid}_{row.camid}_{i}{row.path.suffix}")
    pattern = r"^(?P<split>[^/]+)/(?P<pid>p\d+)_(?P<cam>cam\d)"
    command = ("evaluate", home/"model.safetensors", "--json", "--device", "cpu")
    measured = lambda *a: json.loads(said(capsys, *command[:2], *a, *command[2:])[1])
    expected = measured(home/"mine/truth.csv")
    assert abs(measured(tmp_path/"r", "--pattern", pattern)["mAP"] - expected["mAP"]) < 1e-6
    said(capsys, "check", tmp_path/"r", "--pattern", pattern, "--table", tmp_path/"t.csv")
    assert set(pd.read_csv(tmp_path/"t.csv").pid) == {f"p{pid}" for pid in names.pid}
    assert abs(measured(tmp_path/"t.csv")["mAP"] - expected["mAP"]) < 1e-6
    queries = names[names.split == "query"]
    twice = pd.concat([queries, queries.assign(split="gallery")]).assign(camid="")
    one = measured(write_table(twice, tmp_path/"one.csv"))
    assert one["queries"] + one["skipped"] == one["gallery"] == len(queries) and one["mAP"] < 1


def test_a_source_in_a_benchmark_s_layout(home, capsys, tmp_path):
    "VeRi-776's folders and names: the same pictures, identities and cameras as the table."
    import shutil
    from upl_reid.data.benchmarks import load_domain
    folders = dict(train="image_train", query="image_query", gallery="image_test")
    listed = list_images(home/"mine/truth.csv")
    for i, row in enumerate(listed.itertuples()):
        name = f"{row.pid:04d}_c{int(row.camid[3:]):03d}_{i:08d}_0{row.path.suffix}"
        (tmp_path/"around/VeRi"/folders[row.split]).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(row.path, tmp_path/"around/VeRi"/folders[row.split]/name)
    domain = load_domain("veri776", tmp_path/"around")
    for part in folders:
        split, rows = getattr(domain, part), listed[listed.split == part]
        assert sorted(zip(split.pids, split.camids)) == sorted(zip(rows.pid, rows.camid.str[3:].astype(int) - 1))
    code, out, _ = said(capsys, "pretrain", tmp_path/"v.safetensors", "--preset", "tiny", "--device", "cpu", "--json",
                        "--source", "veri776", "--source-root", tmp_path/"around")
    assert code == 0 and json.loads(out)["mAP"] > .05


def test_a_source_with_names_and_one_with_single_pictures(home, capsys, tmp_path):
    names = list_images(home/"mine/truth.csv")
    train = names[names.split == "train"]
    table = write_table(train.assign(person=[f"turtle_{pid}" for pid in train.pid]), tmp_path/"names.csv")
    assert list_images(table).person.str.startswith("turtle_").all()
    arguments = ("--preset", "tiny", "--device", "cpu", "--source", "labelled", "--source-root")
    assert said(capsys, "pretrain", tmp_path/"p.safetensors", *arguments, table)[0] == 0
    singles = write_table(train.assign(pid=range(len(train))), tmp_path/"singles.csv")
    code, _, error = said(capsys, "pretrain", tmp_path/"q.safetensors", *arguments, singles)
    assert code == 1 and "no positive pairs" in error and f"of {len(train)} people" in error
    assert "no positive pairs" in said(capsys, "check", singles)[1]


def test_a_slip_costs_no_picture_and_no_model(home, capsys, tmp_path):
    "A file that is there is replaced only by one of its kind: what the command itself wrote before."
    import shutil
    shutil.copytree(home/"mine/search", tmp_path/"s")
    shutil.copyfile(home/"model.safetensors", tmp_path/"m.safetensors")
    (tmp_path/"plot.png").write_bytes(sorted((tmp_path/"s/cam1").iterdir())[0].read_bytes())
    (tmp_path/"other.csv").write_text("mine\n"); (tmp_path/"other.onnx").write_bytes(b"onnx")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    picture = sorted((tmp_path/"s/cam1").iterdir())[0]
    for arguments in (("search", tmp_path/"m.safetensors", tmp_path/"s", "--picture", picture),
                      ("search", tmp_path/"m.safetensors", tmp_path/"s", "--picture", tmp_path/"plot.png"),
                      ("check", tmp_path/"s", "--table", tmp_path/"m.safetensors"),
                      ("check", tmp_path/"s", "--table", picture), ("check", tmp_path/"s", "--table",
                                                                    tmp_path/"other.csv"),
                                                                    ("export", tmp_path/"m.safetensors",
                                                                     tmp_path/"other.onnx"),
                                                                     ("adapt", tmp_path/"s", "/proc/m.safetensors"),
                                                                     ("adapt", tmp_path/"s",
                                                                      tmp_path/"m.safetensors/x.safetensors"),
                                                                      ("index", tmp_path/"m.safetensors", tmp_path/"s",
                                                                       "/proc/g.safetensors")):
        code, _, error = said(capsys, *arguments)
        assert code == 1 and len(error) < 300, arguments
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert [said(capsys, "check", tmp_path/"s", "--table", tmp_path/"t.csv")[0] == 1 for _ in range(2)] == [False, True]
    for _ in range(2):
        for kind in ("png", "pdf"):
            assert said(capsys, "search", tmp_path/"m.safetensors", tmp_path/"s", "-k", 2, "--device", "cpu",
                        "--picture", tmp_path/f"hits.{kind}")[0] == 0


def test_search_tells_what_it_left_out(home, capsys, tmp_path):
    import shutil
    shutil.copytree(home/"mine/search", tmp_path/"s")
    query, bad = sorted((tmp_path/"s/cam1").iterdir())[:2]
    bad.write_bytes(b"junk")
    code, out, _ = said(capsys, "search", home/"model.safetensors", tmp_path/"s", query, "-k", 2, "--device", "cpu")
    assert code == 3 and "left out: cannot read the image" in out and bad.name in out
    assert len(json.loads(said(capsys, "search", home/"model.safetensors", tmp_path/"s", query, "-k", 2, "--device",
                               "cpu", "--json")[1])["left_out"]) == 1
    for p in (tmp_path/"s").rglob("*.jpg"): p.write_bytes(b"junk")
    code, _, error = said(capsys, "search", home/"model.safetensors", tmp_path/"s", query, "--device", "cpu")
    assert code == 1 and "can be read" in error


def test_a_picture_of_many_queries_shows_the_first(home, capsys, tmp_path):
    "Rows cost seconds; camera names are names, not formulas."
    import shutil
    shutil.copytree(home/"mine/search/cam1", tmp_path/"s/a$\\frac{$"); shutil.copytree(home/"mine/search/cam2",
            tmp_path/"s/摄像头")
    queries = sorted((home/"mine/search").rglob("*.jpg"))[:30]
    code, out, _ = said(capsys, "search", home/"model.safetensors", tmp_path/"s", *queries, "-k", 2, "--device", "cpu",
                        "--picture", tmp_path/"hits.png")
    assert code == 0 and out.splitlines()[-1].endswith("the first 12 queries")
    assert Image.open(tmp_path/"hits.png").height < 3000


def test_hits_as_a_page_and_letters_that_the_font_lacks(home, capsys, tmp_path):
    import shutil
    shutil.copytree(home/"mine/search/cam1", tmp_path/"s/大门")
    shutil.copytree(home/"mine/search/cam2", tmp_path/"s/b")
    query = sorted((tmp_path/"s/b").iterdir())[0]
    asked = ("search", home/"model.safetensors", tmp_path/"s", query, "-k", 60, "--device", "cpu")
    for _ in range(2):                                      # its own page is replaced
        code, out, error = said(capsys, *asked, "--html", tmp_path/"hits.html", "--picture", tmp_path/"hits.png")
        assert code == 0 and error == "" and out.count("lacks letters of some names; --html FILE shows them") == 1
        found = len(list((tmp_path/"s/大门").iterdir()))
        assert f"page: {tmp_path/'hits.html'}{', the first 50 hits of each'*(found > 50)}\n" in out
    page = (tmp_path/"hits.html").read_text(encoding="utf-8")
    assert "大门" in page and query.name in page and "outside camera <bdi>b</bdi>" in page
    assert page.count("<img") == 1 + min(50, found)
    out = said(capsys, "search", home/"model.safetensors", home/"mine/search", "-k", 2, "--device", "cpu", "--picture",
               tmp_path/"hits.png")[1]
    assert "lacks letters" not in out
    others = {"notes.html": "<p>about upl_reid search", "hits.txt": ""}
    for name, text in others.items():
        if text: (tmp_path/name).write_text(text)
        code, _, error = said(capsys, *asked, "--html", tmp_path/name)
        assert code == 1 and name in error and ((tmp_path/name).exists() == bool(text))
    assert (tmp_path/"notes.html").read_text() == others["notes.html"]


def test_methods_that_cannot_adapt_stop_before_training(home, capsys, tmp_path):
    for method in ("direct", "oracle"):
        code, _, error = said(capsys, "adapt", home/"mine/crops", tmp_path/"m.safetensors", "--preset", "tiny",
                              "--method", method)
        assert code == 1 and method in error and not (tmp_path/"runs").exists()


def test_a_gallery_without_cameras_says_so_and_learns_them(home, capsys, tmp_path):
    bare = said(capsys, "index", home/"model.safetensors", home/"mine/search/cam1", tmp_path/"g.safetensors",
                "--device", "cpu")
    assert bare[0] == 3 and "no cameras are known" in bare[1]
    code, out, _ = said(capsys, "index", home/"model.safetensors", home/"mine/search", tmp_path/"g.safetensors",
                        "--device", "cpu")
    count = len(list((home/"mine/search/cam1").iterdir()))
    assert code == 0 and f" {count} updated in " in out and "no cameras" not in out
    assert "" not in Gallery.load(tmp_path/"g.safetensors").cameras


def test_names_of_every_kind_go_through_adapt(home, capsys, tmp_path):
    "Two names of one picture, bytes that are no text; a finished run is reported as such; a pattern finds cameras."
    import os, shutil
    shutil.copytree(home/"mine/crops", tmp_path/"crops")
    first, second = sorted((tmp_path/"crops/cam1").iterdir())[:2]
    (tmp_path/"crops/cam1/twin.jpg").symlink_to(first)
    os.rename(second, os.fsencode(tmp_path) + b"/crops/cam1/\xff.jpg")
    arguments = ("adapt", tmp_path/"crops", tmp_path/"m.safetensors", "--preset", "tiny", "--device", "cpu",
                 "--method", "dbscan")
    assert said(capsys, *arguments)[0] in (0, 3)
    assert main([str(a) for a in arguments]) in (0, 3) and "is finished already" in capsys.readouterr().err
    assert main([*map(str, arguments), "--pattern", r"(?P<cam>\d)/"]) in (0, 3)
    assert "4 cameras: 1 " in capsys.readouterr().err


def test_a_device_that_computes_nothing(home, capsys):
    for device in ("meta", "warp drive"):
        code, _, error = said(capsys, "search", home/"model.safetensors", home/"mine/search", "-k", 1, "--device",
                              device)
        assert code == 1 and device in error and len(error) < 300


def test_output_that_cannot_be_written(home, tmp_path):
    "Into a full device: one sentence. Into `head`: no error. In an encoding without the letters: their codes."
    import os, shutil
    command = f"{sys.executable} -m upl_reid.cli"
    run = lambda line, **env: subprocess.run(["bash", "-c", line], capture_output=True, text=True,
                                             env={**os.environ, **env})
    full = run(f"{command} check {home/'mine/crops'} > /dev/full")
    assert full.returncode == 1 and full.stderr.startswith("upl-reid check:") and len(full.stderr.splitlines()) == 1
    searching = f"{command} search {home/'model.safetensors'} {home/'mine/search'} -k 1000 --device cpu"
    assert run(f"{searching} | head -1").stderr == ""
    shutil.copytree(home/"mine/search/cam1", tmp_path/"s/摄像头")
    latin = run(f"{command} check {tmp_path/'s'}", PYTHONIOENCODING="latin-1")
    assert latin.returncode == 3 and "\\u6444" in latin.stdout and "Traceback" not in latin.stderr


def test_too_few_crops_stop_before_training(capsys, tmp_path):
    for i in range(12):
        (tmp_path/f"crops/cam{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 40), (20*i, 0, 0)).save(tmp_path/f"crops/cam{i % 2}/{i}.png")
    code, _, error = said(capsys, "adapt", tmp_path/"crops", tmp_path/"m.safetensors", "--preset", "tiny")
    assert code == 1 and "12 different pictures" in error and "100" in error and not (tmp_path/"runs").exists()


def test_words_for_people(home, capsys, tmp_path):
    "Columns have headings and stand below each other; thresholds say what passes them."
    query = sorted((home/"mine/search/cam1").glob("q*.jpg"))[0]
    code, out, _ = said(capsys, "search", home/"model.safetensors", home/"mine/search", query, "-k", 12, "--device",
                        "cpu", "--picture", tmp_path/"hits.png")
    head, titles, *hits, picture = out.splitlines()
    assert code == 0 and head == f"{query}, outside camera cam1:"
    assert titles.split() == ["rank", "cosine", "probability", "camera", "path"] and len(hits) == 12
    for column in ("cosine", "camera", "path"):
        assert all(line[titles.index(column) - 1] == " " != line[titles.index(column)] for line in hits)
    assert picture == f"picture: {tmp_path/'hits.png'}, the first 10 hits of each"
    assert said(capsys, "search", home/"model.safetensors", home/"mine/search", "-k", 2, "--device",
                "cpu")[1].startswith("no picture was given, so 6 pictures of the gallery are searched for\n")
    code, out, _ = said(capsys, "evaluate", home/"model.safetensors", home/"mine/truth.csv", "--device", "cpu")
    facts = json.loads(said(capsys, "evaluate", home/"model.safetensors", home/"mine/truth.csv", "--device", "cpu",
                            "--json")[1])
    assert f"mAP {100*facts['mAP']:.1f} %, mINP" in out
    false, true = (100*facts[f"{kind} matches at 0.01"] for kind in ("false", "true"))
    assert f"false-match rate of 1 %: passed by {false:.2f} % of the pairs of different people" in out
    assert f"and {true:.1f} % of the pairs of one person" in out


def test_a_broken_command_line_is_code_2(capsys):
    for arguments in ([], ["nonsense"], ["check"], ["adapt", "x"], ["search", "m", "g", "-k", "many"],
                      ["synth", "x", "--preset", "huge"], ["reports", "--page", "--only", "table1"]):
        with pytest.raises(SystemExit) as e: main(arguments)
        assert e.value.code == 2
    capsys.readouterr()


def test_help_has_examples_that_parse(capsys):
    import shlex
    for command in ([], ["check"], ["synth"], ["pretrain"], ["adapt"], ["evaluate"], ["index"], ["search"], ["export"],
                    ["forget"]):
        with pytest.raises(SystemExit) as e: main([*command, "--help"])
        assert e.value.code == 0 and "upl-reid adapt mine/crops model.safetensors" in capsys.readouterr().out
    lines = [line.strip() for line in EXAMPLES.splitlines() if line.strip().startswith("upl-reid")]
    for line in lines: make_parser().parse_args(shlex.split(line.split("   ")[0])[1:])
    assert len(lines) >= 7


def test_the_help_loads_no_large_library():
    "Modules are loaded by the command that needs them."
    large = ("torch", "numpy", "pandas", "scipy", "sklearn", "matplotlib", "timm", "faiss")
    code = f"import sys, upl_reid.cli as c; c.make_parser().format_help(); print(*({{*{large}}} & {{*sys.modules}}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def test_presets_of_the_help_are_those_of_the_experiments(): assert PRESET_NAMES == tuple(PRESETS)


def test_the_module_is_the_command():
    out = subprocess.run([sys.executable, "-m", "upl_reid.cli", "check", "nowhere at all"], capture_output=True,
                         text=True)
    assert out.returncode == 1 and out.stderr.startswith("upl-reid check: nowhere at all")
    assert "Traceback" not in out.stderr


def test_the_command_is_installed():
    "pyproject.toml names it; where the package is installed, as README does it, it is there."
    import os
    import tomllib
    from importlib import import_module
    from pathlib import Path
    project = tomllib.loads((Path(__file__).parents[1]/"pyproject.toml").read_text())["project"]
    module, name = project["scripts"]["upl-reid"].split(":")
    assert getattr(import_module(module), name) is main
    command = Path(sys.executable).with_name("upl-reid")
    if not command.exists(): assert not os.environ.get("CI"); pytest.skip("the package is not installed here")
    out = subprocess.run([command, "--help"], capture_output=True, text=True)
    assert out.returncode == 0 and "upl-reid search" in out.stdout


def test_plugins_of_the_reports_reach_the_notebooks(tmp_path, monkeypatch):
    (tmp_path/"cli_plugin.py").write_text("""
from upl_reid.methods.baseline import Direct
from upl_reid.training.method import register

@register("from_cli")
class FromCli(Direct): "Direct transfer with another name."
""")
    seen = {}
    def pretend(chosen, parameters, jobs):
        rows = list(experiments.outside_rows())
        seen.update(plugins=os.environ["UPL_REID_PLUGINS"], rows=rows, parameters=parameters)
        page = tmp_path/"index.html"
        page.write_text("")
        return [page]
    monkeypatch.setattr(experiments, "make_reports", pretend)
    monkeypatch.setenv("UPL_REID_PLUGINS", "")
    assert main(["reports", "--plugins", str(tmp_path/"cli_plugin.py"), "--only", "table5"]) == 0
    assert seen["plugins"].endswith("cli_plugin.py") and "from_cli" in seen["rows"] and seen["parameters"] == {}


def test_what_would_be_ignored_is_refused(home, capsys, tmp_path, monkeypatch):
    assert main(["run", "--method", "pretrain", "--preset", "tiny", "--start", str(home/"model.safetensors")]) == 1
    assert "pretraining goes on from no model" in capsys.readouterr().err
    monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path/"mistyped"))
    assert main(["records"]) == 1 and "no folder of runs" in capsys.readouterr().err
    assert not (tmp_path/"mistyped").exists()
    check = ["check", str(home/"mine/crops"), "--table", str(tmp_path/"t.csv")]
    assert main(check) in (0, 3) and main(check) == 1
    assert "t.csv exists and is not replaced" in capsys.readouterr().err


def test_what_is_read_otherwise_or_left_out_is_told_by_every_command(home, capsys, tmp_path):
    "Unknown cameras, alike names and files of other formats, from a table and from a folder."
    rows = pd.read_csv(home/"mine/truth.csv").query("split != 'train'").assign(
        path=lambda t: [str(home/"mine"/p) for p in t.path])
    rows.loc[rows.index[::2], "camid"] = rows.camid[::2].str.upper()
    rows["time"] = np.where(rows.split == "gallery", "9h05", "")
    rows.to_csv(tmp_path/"t.csv", index=False)
    for n, path in enumerate(rows.path[:4]):
        (tmp_path/"crops/cam1").mkdir(parents=True, exist_ok=True)
        image = Image.open(path)
        image.save(tmp_path/f"crops/cam1/{n}.{'tif' if n % 2 else 'png'}")
    model, query = home/"model.safetensors", rows.path.iloc[0]
    for root, words in ((tmp_path/"t.csv", ("are taken for different ones", "cannot be used, first '9h05'")),
                        (tmp_path/"crops", ("2 left out, first cam1/1.tif",))):
        asked = [("search", model, root, query), ("identities", model, root, tmp_path/"who.csv")]
        if root.suffix: asked.append(("evaluate", model, root))
        for command in asked:
            code, out, err = said(capsys, *command, "--device", "cpu", "--json")
            assert code == 3, (command, err)
            for word in words: assert sum(word in note for note in json.loads(out)["notes"]) == 1, (command, word)
            (tmp_path/"who.csv").unlink(missing_ok=True)
            text = said(capsys, *command, "--device", "cpu")[1]
            assert "\nnote: " in text and all(word in text for word in words)
            (tmp_path/"who.csv").unlink(missing_ok=True)


def test_pictures_of_nobody_are_counted_when_every_other_one_is_a_query(home, capsys, tmp_path):
    table = pd.read_csv(home/"mine/truth.csv").assign(path=lambda t: [str(home/"mine"/p) for p in t.path])
    table["pid"] = table.pid.astype(object)
    table.loc[::2, "pid"] = ""
    table[["path", "camid", "pid"]].to_csv(tmp_path/"t.csv", index=False)
    asked = "evaluate", home/"model.safetensors", tmp_path/"t.csv", "--leave-one-out", "--device", "cpu"
    facts = json.loads(said(capsys, *asked, "--json")[1])
    assert facts["without_pid"] == -(-len(table)//2) and facts["gallery"] + facts["without_pid"] == len(table)
    assert f"; {facts['without_pid']:,} images without a pid left out" in said(capsys, *asked)[1]


def test_a_length_of_zero_is_refused(home, capsys, tmp_path):
    for dim in (0, 1, -3):
        asked = "adapt", home/"mine/crops", tmp_path/"m.safetensors", "--preset", "tiny", "--dim", dim
        code, _, err = said(capsys, *asked)
        assert code == 1 and f"--dim {dim}: vectors have at least 2 dimensions" in err


def test_suffixes_in_upper_case_are_the_same(home, capsys, tmp_path):
    import shutil
    model, crops, gallery = tmp_path/"M.SAFETENSORS", home/"mine/search", tmp_path/"G.SAFETENSORS"
    shutil.copyfile(home/"model.safetensors", model)
    query, cpu = sorted(crops.rglob("*.jpg"))[0], ("--device", "cpu")
    for _ in range(2): assert said(capsys, "index", model, crops, gallery, *cpu)[0] == 0
    assert said(capsys, "search", model, gallery, query, *cpu, "--picture", tmp_path/"H.PNG", "--html",
                tmp_path/"H.HTML")[0] == 0
    assert (tmp_path/"H.PNG").read_bytes()[:4] == b"\x89PNG" and b"<html" in (tmp_path/"H.HTML").read_bytes()[:200]
    assert said(capsys, "identities", model, gallery, gallery, *cpu)[0] == 0
    assert said(capsys, "identities", model, crops, tmp_path/"P.SAFETENSORS", *cpu)[0] == 0
    assert len(Gallery.load(tmp_path/"P.SAFETENSORS")) == len(Gallery.load(gallery))
    pytest.importorskip("pyarrow")
    assert said(capsys, "identities", model, crops, tmp_path/"W.PARQUET", *cpu)[0] == 0
    assert (tmp_path/"W.PARQUET").read_bytes()[:4] == b"PAR1"
    assert said(capsys, "export", gallery, tmp_path/"E.PARQUET")[0] == 0
    assert said(capsys, "index", model, tmp_path/"E.PARQUET", tmp_path/"I.SAFETENSORS", *cpu)[0] == 0
    assert Gallery.load(tmp_path/"I.SAFETENSORS").paths == Gallery.load(gallery).paths
    assert said(capsys, "export", model, tmp_path/"M.ONNX")[0] == 0
    assert said(capsys, "evaluate", tmp_path/"M.ONNX", home/"mine/truth.csv")[0] == 0
