"""Search by tracks: the mean of a track's unit vectors against loops, and the command on embedded test pictures."""
import csv
import json
import shutil

import numpy as np
import pytest

from upl_reid.cli import main
from upl_reid.core import DataError
from upl_reid.deployment.embedder import Embedder
from upl_reid.deployment.gallery import track_queries


def said(capsys, *arguments):
    "Exit code, the facts of a command (its words if it has none), and standard error."
    words = "--words" in arguments
    given = [str(a) for a in arguments if a != "--words"]
    code = main(given if words else [*given, "--json"])
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return code, (out.out if words else json.loads(out.out)) if out.out else None, out.err


def naive_mean(vectors):
    "Unit mean of unit vectors, one number at a time."
    total = [0.]*len(vectors[0])
    for v in vectors:
        length = sum(float(a)**2 for a in v)**.5
        total = [t + float(a)/length for t, a in zip(total, v)]
    length = sum(t*t for t in total)**.5
    return [t/length for t in total]


@pytest.mark.parametrize("seed", range(8))
def test_means_of_tracks_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    x, tracks = rng.normal(size=(n, 6))*rng.uniform(.1, 9, (n, 1)), rng.integers(-1, 5, n)
    members = {}
    for i, track in enumerate(tracks.tolist()): members.setdefault(("picture", i) if track < 0 else track, []).append(i)
    found, own = track_queries(x, tracks)
    assert found.dtype == np.float32 and found.shape == (len(members), 6)
    for q, rows in enumerate(members.values()):                         # in the order of first pictures
        np.testing.assert_allclose(found[q], naive_mean(x[rows]), atol=2e-6)
        assert (own[rows] == q).all()


@pytest.mark.parametrize("x, tracks, words", [
    ([[1, 0], [-1, 0]], [0, 0], "zero or not finite"), ([[1, 0], [0, np.nan]], [0, 0], "zero or not finite"),
    ([[1, 0], [0, 1]], [0], "beside 2 images"), ([[1, 0], [0, 1]], [0, -2], "beside 2 images")],
    ids=["opposite", "nan", "too-few", "below"])
def test_tracks_without_a_direction_are_refused(x, tracks, words):
    with pytest.raises(DataError, match=words): track_queries(np.array(x, float), tracks)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    "Pictures of the embedded network with tables of tracks."
    folder = tmp_path_factory.mktemp("tracks")/"mine"
    assert main(["synth", str(folder), "--preset", "tiny"]) == 0
    return folder


def rows_of(table):
    with open(table, encoding="utf-8", newline="") as f: return list(csv.DictReader(f))


def naive_hits(model, mine, k):
    "For each track, in the order of first pictures: its camera and the best cosines and names of other cameras."
    embedder, rows = Embedder.load(model, "cpu"), rows_of(mine/"search.csv")
    x = {r["path"]: embedder.embed([mine/r["path"]])[0].astype(float) for r in rows}
    tracks = {}
    for r in rows: tracks.setdefault((r["camid"], r["track"]), []).append(r["path"])
    for (camera, _), pictures in tracks.items():
        mean = np.array(naive_mean([x[p] for p in pictures]))
        others = [(float(mean @ x[r["path"]]), r["path"]) for r in rows if r["camid"] != camera]
        yield camera, pictures, sorted(others, reverse=True)[:k]


def test_tracks_are_searched_for_in_both_homes(home, saved, mine, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UPL_REID_RUNS", str(tmp_path/"runs"))
    assert said(capsys, "index", saved, mine/"search.csv", home, "--device", "cpu")[0] == 0
    code, facts, _ = said(capsys, "search", saved, home, mine/"search.csv", "--tracks", "-k", 4, "--device", "cpu")
    wanted = list(naive_hits(saved, mine, 4))
    assert code == 0 and len(facts["tracks"]) == len(facts["queries"]) == len(wanted) < len(rows_of(mine/"search.csv"))
    assert max(len(t["pictures"]) for t in facts["tracks"]) > 1
    for q, (camera, pictures, best) in enumerate(wanted):
        told, hits = facts["tracks"][q], [h for h in facts["hits"] if h["query"] == q]
        assert told["camera"] == camera and told["pictures"] == [str(mine/p) for p in pictures]
        assert facts["queries"][q] in told["pictures"]
        np.testing.assert_allclose([h["cosine"] for h in hits], [c for c, _ in best], atol=2e-5)
        for hit, (cosine, path) in zip(hits, best):
            assert hit["path"] == str(mine/path) or abs(hit["cosine"] - cosine) < 2e-5      # equal to the last digits
    code, facts, err = said(capsys, "search", saved, home, "--tracks", "--device", "cpu")
    assert code == 1 and facts is None and "has no tracks of its own; name a folder or table" in err


def test_ways_to_give_tracks(saved, mine, tmp_path, capsys):
    few = rows_of(mine/"search.csv")[:40]
    for r in few:                                       # the track in the names, for a pattern
        to = tmp_path/"named"/r["camid"]/f"t{r['track']}"/r["path"].split("/")[-1]
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(mine/r["path"], to)
    (tmp_path/"table.csv").write_text("path,camid,track\n" + "".join(
        f"{mine/r['path']},{r['camid']},{r['track']}\n" for r in few))
    options = "--same-camera", "-k", 3, "--device", "cpu", "--tracks"
    def asked(*more, pattern=("--pattern", r"^(?P<cam>[^/]+)/t(?P<track>[^/]+)/")):
        return said(capsys, "search", saved, tmp_path/"named", *more, *options, *pattern)
    code, by_pattern, _ = asked(tmp_path/"named")
    code, by_table, _ = asked(tmp_path/"table.csv")
    def answers(facts): # track -> cosines; the order of tracks is that of the files
        return {(t["camera"], t["track"]): [round(h["cosine"], 4) for h in facts["hits"] if h["query"] == q]
                for q, t in enumerate(facts["tracks"])}
    assert code == 0 and answers(by_pattern) == answers(by_table) and len(by_table["tracks"]) < len(few)
    code, six, _ = asked()                                              # of the folder that is searched
    assert len(six["tracks"]) == min(6, len(by_table["tracks"])) and all(t["track"] for t in six["tracks"])
    page = tmp_path/"hits.html"
    code, text, _ = asked(tmp_path/"table.csv", "--html", page, "--words")
    many = max(by_table["tracks"], key=lambda t: len(t["pictures"]))
    line = f"track {many['track']} of camera {many['camera']}, {len(many['pictures'])} images"
    assert code == 0 and line in text and line in page.read_text()
    code, _, err = asked(tmp_path/"named", pattern=())
    assert code == 1 and "no crop of" in err and "has a track; give a table with a column track" in err


def test_a_broken_picture_of_a_track_is_left_out_and_told(saved, mine, tmp_path, capsys):
    rows = rows_of(mine/"search.csv")
    own = [r for r in rows if (r["camid"], r["track"]) == (rows[0]["camid"], rows[0]["track"])]
    (tmp_path/"broken.png").write_bytes(b"no picture")
    (tmp_path/"t.csv").write_text("path,camid,track\n" + "".join(
        f"{p},{own[0]['camid']},{own[0]['track']}\n" for p in [tmp_path/"broken.png", *(mine/r["path"] for r in own)])
        + f"{mine/rows[-1]['path']},{rows[-1]['camid']},\n")
    given = "search", saved, mine/"search.csv", tmp_path/"t.csv", "--tracks", "--device", "cpu"
    code, facts, _ = said(capsys, *given)
    assert code == 3 and len(facts["left_out"]) == 1 and "broken.png" in facts["left_out"][0]
    assert sorted(len(t["pictures"]) for t in facts["tracks"]) == sorted([len(own), 1])
    assert [t["track"] for t in facts["tracks"]].count("") == 1        # a picture without a track is a query too
