"""`upl-reid identities` from a drawn folder to a table, by the command itself: a random network, six people who differ
in colour, names with commas and in Japanese, tracks in file names."""
import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

import upl_reid.components as components
from upl_reid.cli import main
from upl_reid.components.encoder import build_encoder
from upl_reid.data.own_crops import as_domain, list_images
from upl_reid.deployment.browse import confirm_pair
from upl_reid.deployment.embedder import Embedder
from upl_reid.deployment.gallery_homes import open_gallery
from upl_reid.deployment.match_calibration import Calibration, RATES

PATTERN = r"^(?P<cam>[^/]+)/p(?P<pid>\d)t(?P<track>\d)f(?P<time>\d)"
CAMERAS = ["door, left", "庭"]


def draw(folder, people, cameras=CAMERAS, each=4):
    for p in people:
        for c, camera in enumerate(cameras):
            (folder/camera).mkdir(parents=True, exist_ok=True)
            for k in range(each):
                rng = np.random.default_rng(100*p + 10*c + k)
                colour = np.random.default_rng(p + 7).integers(0, 255, (6, 1, 3)).repeat(8, 0)
                pixels = np.clip(np.broadcast_to(colour, (48, 24, 3)) + rng.normal(0, 8, (48, 24, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder/camera/f"p{p}t{p}f{k}.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Crops of six people in two cameras, a model that was not trained, and one without a calibration."
    folder = tmp_path_factory.mktemp("home")
    draw(folder/"crops", range(6))
    facts = dict(format=1, backbone="micro", size=[48, 24], dim=32, method="pretrain", origin={}, calibration=None)
    embedder = Embedder(build_encoder("micro", (48, 24), 32), facts)
    embedder.save(folder/"plain.safetensors")
    images = list_images(folder/"crops", PATTERN)
    x, pids = embedder.embed(list(images.path)), images.pid.to_numpy()
    apart = (x @ x.T)[pids[:, None] != pids]
    thresholds = np.quantile(apart, [1 - r for r in RATES[:3]]) + [0, 1e-4, 2e-4]
    embedder.calibrated(Calibration(10., -9., thresholds)).save(folder/"model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path): monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path/"runs"))


def said(capsys, *arguments):
    "Exit code, what went to standard output, and standard error, which has no traceback."
    code = main(["identities", *map(str, arguments), "--device", "cpu"])
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return code, out.out.strip(), out.err.strip()


def rows_of(table):
    with open(table, encoding="utf-8", newline="") as f: return list(csv.DictReader(f))


def test_a_folder_with_tracks_becomes_a_table_of_people(home, capsys, tmp_path):
    out = tmp_path/"who.csv"
    code, text, _ = said(capsys, home/"model.safetensors", home/"crops", out, "--pattern", PATTERN)
    rows = rows_of(out)
    assert code == 0 and text.startswith("48 crops: ") and str(out) in text
    assert list(rows[0]) == ["path", "camera", "track", "identity", "confidence"]
    assert [r["path"] for r in rows] == sorted(r["path"] for r in rows) and {r["camera"] for r in rows} == set(CAMERAS)
    for camera in CAMERAS:                                               # a track has one answer, and tracks differ
        names = [{r["identity"] for r in rows if r["camera"] == camera and r["track"] == str(p)} for p in range(6)]
        assert all(len(n) == 1 for n in names) and {"unknown"} not in names
        assert len(set.union(*names)) == 6                               # seen at the same time: six people
    assert all(0 <= float(r["confidence"]) <= 1 for r in rows)
    said(capsys, home/"model.safetensors", home/"crops", tmp_path/"again.csv", "--pattern", PATTERN)
    assert (tmp_path/"again.csv").read_bytes() == out.read_bytes()       # stable names
    code, text, _ = said(capsys, home/"model.safetensors", home/"crops", out, "--pattern", PATTERN, "--json")
    facts = json.loads(text)                                             # its own table may be replaced
    assert facts["crops"] == 48 and facts["unknown"] == 0 and facts["left_out"] == []


def test_known_names_are_kept_and_new_ones_added(home, capsys, tmp_path):
    draw(tmp_path/"crops", range(3))
    table = "path,identity\n" + "".join(f'"{tmp_path}/crops/{camera}/p{p}t{p}f0.png","{who}"\n' for p, who in
                                        ((0, "佐藤, 花子"), (1, "person 7")) for camera in CAMERAS)
    (tmp_path/"known.csv").write_text(table, encoding="utf-8")
    given = (home/"model.safetensors", tmp_path/"crops", tmp_path/"who.csv", "--rate", .1)
    code, text, _ = said(capsys, *given, "--known", tmp_path/"known.csv")
    who = {tuple(r["path"].split("/")[1:]): r["identity"] for r in rows_of(tmp_path/"who.csv")}
    assert who[CAMERAS[0], "p0t0f0.png"] == "佐藤, 花子" and who[CAMERAS[1], "p1t1f0.png"] == "person 7"
    assert not {"person 1", "person 7"} & {n for (_, name), n in who.items() if name.startswith("p2")}
    draw(tmp_path/"crops", [5])
    said(capsys, *given, "--known", tmp_path/"who.csv")                 # the table that it replaces
    later = {tuple(r["path"].split("/")[1:]): r["identity"] for r in rows_of(tmp_path/"who.csv")}
    assert len(later) == 32 and all(later[k] == n for k, n in who.items() if n != "unknown")


def test_answers_are_kept_to(home, capsys, tmp_path):
    given, out = (home/"model.safetensors", home/"crops"), tmp_path/"who.csv"
    said(capsys, *given, out, "--rate", .1)
    plain = {str(home/"crops"/r["path"].split("crops/")[1]): r["identity"] for r in rows_of(out)}
    paths = sorted(plain)
    a = next(p for p in paths if plain[p] != "unknown")
    b = next(p for p in paths if p != a and plain[p] == plain[a])                # together: rejected
    c = next(p for p in paths if plain[p] != plain[a])                           # apart: confirmed
    answers = tmp_path/"g.pairs.sqlite"
    confirm_pair(answers, a, b, False); confirm_pair(answers, a, c, True); confirm_pair(answers, a, "/else.jpg", True)
    code, text, err = said(capsys, *given, out, "--rate", .1, "--answers", answers, "--json")
    facts, now = json.loads(text), {str(home/"crops"/r["path"].split("crops/")[1]): r["identity"] for r in rows_of(out)}
    assert code == 0 and facts["answers"] == dict(same=1, different=1, left_out=1, doubled_tracks=0)
    assert "answers: 1 pairs are one person, 1 are two; 1 left out" in err
    assert now[a] == now[c] != "unknown" and now[b] != now[a]
    (tmp_path/"known.csv").write_text(f'path,identity\n"{a}",Ann\n"{b}",Ann\n', encoding="utf-8")
    before = out.read_bytes()
    code, text, err = said(capsys, *given, out, "--answers", answers, "--known", tmp_path/"known.csv")
    assert code == 1 and "are two people by an answer" in err and "withdraw the answer" in err
    assert out.read_bytes() == before
    confirm_pair(answers, b, c, True)
    code, text, err = said(capsys, *given, out, "--answers", answers)
    assert code == 1 and "are rejected as one person, and other answers or a track confirm it" in err
    other = tmp_path/"other.pairs.sqlite"
    confirm_pair(other, "/x.jpg", "/y.jpg", True)
    assert "none of 1 answers in" in said(capsys, *given, out, "--answers", other)[2]
    assert "there are no answers in" in said(capsys, *given, out, "--answers", tmp_path/"none.safetensors")[2]


def test_a_new_crop_takes_the_name_of_a_known_one_that_an_answer_confirms(home, capsys, tmp_path):
    draw(tmp_path/"crops", [3], CAMERAS[:1], each=2)
    new, old = tmp_path/"crops"/CAMERAS[0]/"p3t3f0.png", home/"crops"/"庭"/"p5t5f0.png"
    (tmp_path/"known.csv").write_text(f"path,identity\n{old},佐藤\n", encoding="utf-8")
    answers = tmp_path/"g.pairs.sqlite"
    confirm_pair(answers, str(old), str(new), True)
    code, text, err = said(capsys, home/"model.safetensors", tmp_path/"crops", tmp_path/"who.csv", "--known",
                           tmp_path/"known.csv", "--answers", answers)
    who = {r["path"].split("/")[-1]: (r["identity"], float(r["confidence"] or 0)) for r in rows_of(tmp_path/"who.csv")}
    assert code == 0 and who["p3t3f0.png"] == ("佐藤", 1.)


def test_a_gallery_with_names_to_browse(home, capsys, tmp_path):
    out, given = tmp_path/"people.safetensors", ("--pattern", PATTERN)
    code, text, _ = said(capsys, home/"model.safetensors", home/"crops", out, *given)
    said(capsys, home/"model.safetensors", home/"crops", tmp_path/"who.csv", *given)
    rows = open_gallery(out).rows
    wanted = {str(tmp_path/r["path"]): r["identity"] for r in rows_of(tmp_path/"who.csv")}
    wanted = {os.path.abspath(path): name for path, name in wanted.items()}
    assert code == 0 and f"look at them with upl-reid browse {out}" in text
    assert dict(zip(rows.path, rows.identity)) == {p: "" if n == "unknown" else n for p, n in wanted.items()}
    assert set(rows.camera) == set(CAMERAS) and set(rows.time) == set("0123")          # for the timelines
    before = out.read_bytes()
    code, _, err = said(capsys, home/"model.safetensors", home/"crops", out, *given)   # no other gallery is replaced
    assert code == 1 and "was not written by this command" in err and out.read_bytes() == before
    with open_gallery(out, change=True) as gallery:
        gallery.set_identities({rows.path[0]: "Ann", rows.path[1]: ""})
        gallery.commit()
    code, text, _ = said(capsys, home/"model.safetensors", out, out)
    again = open_gallery(out).rows
    named = [i for i in range(2, 48) if rows.identity[i]]
    assert again.identity[0] == "Ann" and [again.identity[i] for i in named] == [rows.identity[i] for i in named]
    assert f"crops have names of {out}" in text and len(again) == 48


def test_names_of_a_gallery_that_are_kept_and_that_are_not(home, capsys, tmp_path):
    "`unknown` is no name; names of a gallery that is only read are not used, and that is told."
    out = tmp_path/"people.safetensors"
    said(capsys, home/"model.safetensors", home/"crops", out, "--pattern", PATTERN)
    rows = open_gallery(out).rows
    with open_gallery(out, change=True) as gallery:
        gallery.set_identities({p: "Ann" if i < 2 else "unknown" for i, p in enumerate(rows.path)})
        gallery.commit()
    code, text, _ = said(capsys, home/"model.safetensors", out, tmp_path/"who.csv")
    assert code == 3 and f"2 images of {out} with a name that is not used" in text
    assert "Ann" not in {r["identity"] for r in rows_of(tmp_path/"who.csv")}
    text = json.loads(said(capsys, home/"model.safetensors", out, out, "--json")[1])
    names = open_gallery(out).rows.identity
    assert names[:2].tolist() == ["Ann"]*2 and "unknown" not in set(names) and text["notes"] == []
    assert text["known"] == (names == "Ann").sum()


def test_answers_that_the_known_names_contradict_over_a_confirmed_pair(home, capsys, tmp_path):
    "a is Ann by the table, a and b are confirmed, and b is rejected with a crop elsewhere that is Ann."
    a, b = home/"crops"/CAMERAS[0]/"p3t3f0.png", home/"crops"/CAMERAS[0]/"p3t3f1.png"
    (tmp_path/"known.csv").write_text(f'path,identity\n"{a}",Ann\n{tmp_path}/old.png,Ann\n', encoding="utf-8")
    answers = tmp_path/"g.pairs.sqlite"
    confirm_pair(answers, str(a), str(b), True); confirm_pair(answers, str(b), f"{tmp_path}/old.png", False)
    code, text, err = said(capsys, home/"model.safetensors", home/"crops", tmp_path/"who.csv", "--known",
                           tmp_path/"known.csv", "--answers", answers)
    assert code == 1 and "p3t3f1.png is 'Ann', and an answer rejects it as 'Ann'" in err
    assert not (tmp_path/"who.csv").exists()


def test_a_gallery_and_parquet(home, capsys, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    gallery = tmp_path/"g.safetensors"
    assert main(["index", str(home/"model.safetensors"), str(home/"crops"), str(gallery), "--device", "cpu"]) == 0
    capsys.readouterr()
    said(capsys, home/"model.safetensors", gallery, tmp_path/"a.parquet")
    said(capsys, home/"model.safetensors", home/"crops", tmp_path/"b.csv")
    table = parquet.read_table(tmp_path/"a.parquet").to_pylist()
    assert [r["identity"] for r in table] == [r["identity"] for r in rows_of(tmp_path/"b.csv")]
    assert list(table[0]) == ["path", "camera", "identity", "confidence"]
    code, text, _ = said(capsys, home/"model.safetensors", gallery, tmp_path/"a.parquet", "--known",
                         tmp_path/"a.parquet")
    assert "crops have names of" in text


def test_crops_that_cannot_be_read_are_told(home, capsys, tmp_path):
    draw(tmp_path/"crops", range(2))
    (tmp_path/"crops"/CAMERAS[0]/"broken.png").write_bytes(b"no picture")
    (tmp_path/"known.csv").write_text(f"path,identity\n{tmp_path}/gone.png,Ann\n{home}/crops/庭/p5t5f0.png,Ben\n")
    code, text, _ = said(capsys, home/"model.safetensors", tmp_path/"crops", tmp_path/"w.csv", "--known",
                         tmp_path/"known.csv")
    assert code == 3 and "left out: " in text and "1 of 2 known crops cannot be read" in text
    assert len(rows_of(tmp_path/"w.csv")) == 16


@pytest.mark.parametrize("change, message", [
    (dict(model="plain.safetensors"), "the model has no calibration"),
    (dict(rate=.9), "false-match rate 0.9 was not measured; choose one between"),
    (dict(root="empty"), "holds no image"), (dict(root="nothing"), "there is no gallery"),
    (dict(out="who.txt"), "should end with .csv or .parquet"), (dict(known="cols.csv"), "has the columns path,name"),
    (dict(known="gone.csv"), "gone.csv cannot be read"), (dict(out="mine.csv"), "was not written by this command")])
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(home, capsys, tmp_path, change, message):
    (tmp_path/"empty").mkdir()
    (tmp_path/"cols.csv").write_text("path,name\na,b\n")
    (tmp_path/"mine.csv").write_text("my,own\ntable,1\n")
    root = tmp_path/change["root"] if "root" in change else home/"crops"
    given = [home/change.get("model", "model.safetensors"), root, tmp_path/change.get("out", "who.csv")]
    given += ["--rate", change.get("rate", .01)]
    if "known" in change: given += ["--known", tmp_path/change["known"]]
    before = sorted(p.name for p in tmp_path.iterdir())
    code, text, err = said(capsys, *given)
    assert code == 1 and not text and err.startswith("upl-reid identities: ") and message in err and "\n" not in err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "runs") == [n for n in before if n != "runs"]
    assert (tmp_path/"mine.csv").read_text() == "my,own\ntable,1\n"


def test_adapting_with_tracks_needs_tracks(home, capsys, tmp_path):
    code = main(["adapt", str(home/"crops"), str(tmp_path/"m.safetensors"), "--preset", "tiny", "--tracks"])
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 1 and "--tracks is given, and no crop of" in err and "column track" in err


def test_synthetic_crops_come_with_tracks_and_without_identities(tmp_path, capsys):
    assert main(["synth", str(tmp_path/"mine"), "--preset", "tiny"]) == 0
    truth = {r["path"]: r for r in rows_of(tmp_path/"mine/truth.csv")}
    assert list(next(iter(truth.values()))) == ["path", "camid", "pid", "split", "time"]
    for name in ("crops", "search"):
        rows = rows_of(tmp_path/f"mine/{name}.csv")
        assert list(rows[0]) == ["path", "camid", "time", "track"]
        assert {r["path"] for r in rows} == {p for p in truth if p.startswith(f"{name}/")}
        people = {}
        for r in rows: people.setdefault((r["camid"], r["track"]), set()).add(truth[r["path"]]["pid"])
        assert all(len(pids) == 1 for pids in people.values()) and len(people) < len(rows)
        assert list_images(tmp_path/f"mine/{name}.csv").track.ne("").all()


def test_parquet_files_of_ones_own_are_kept(home, capsys, tmp_path):
    pyarrow, out = pytest.importorskip("pyarrow"), tmp_path/"who.parquet"
    import pyarrow.parquet as parquet
    given = home/"model.safetensors", home/"crops", out, "--pattern", PATTERN
    gallery = dict(path=["a"], camera=["c"], identity=["b"], confidence=[.5])
    mine = dict(path=["a"], identity=["b"], note=["mine"])
    for columns, facts in ((mine, {}), (gallery, {"upl_reid_gallery": "{}"})):
        parquet.write_table(pyarrow.table(columns).replace_schema_metadata(facts), out)
        before = out.read_bytes()
        code, _, err = said(capsys, *given)
        assert code == 1 and "was not written by this command" in err and out.read_bytes() == before
    out.unlink()
    assert said(capsys, *given)[0] == 0 and said(capsys, *given)[0] == 0         # its own table may be replaced


def test_tracks_of_unknown_cameras_may_be_one_person(home, capsys, tmp_path, monkeypatch):
    "Two tracks at the same time are two people in one camera only, and unknown cameras need not be one."
    seen, find = [], components.find_links
    monkeypatch.setattr(components, "find_links", lambda *given: seen.append(given) or find(*given))
    for camera, pairs in (("hall", 6), ("", 0)):                         # six tracks of three people, in pairs
        rows = [(f"{home}/crops/{CAMERAS[1]}/p{p}t{p}f{k}.png", camera, 10*p + k % 2, f"{p}-{k//2}")   # time, track
                for p in range(3) for k in range(4)]
        with open(tmp_path/"t.csv", "w", encoding="utf-8", newline="") as f:
            csv.writer(f).writerows([("path", "camid", "time", "track"), *rows])
        said(capsys, home/"model.safetensors", tmp_path/"t.csv", tmp_path/"who.csv", "--rate", .1)
        assert 2*len(components.overlapping_tracks(*seen.pop())) == pairs
        times = as_domain(list_images(tmp_path/"t.csv")).train.times     # what adapt --tracks uses
        assert (times is None or np.isnan(times).all()) == (camera == "")
