"""`upl-reid adapt --answers`: pairs that were accepted and rejected in `browse`, in the pseudo-labels of a run."""
import json

import pytest

from upl_reid.cli import main
from upl_reid.core import absolute_name
from upl_reid.data.own_crops import as_domain, list_images
from upl_reid.deployment.browse import confirm_pair, pairs_file
from upl_reid.experiments.config import RunConfig
from upl_reid.experiments.runs import Run


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")/"mine"
    assert main(["synth", str(folder), "--preset", "tiny"]) == 0
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory): return tmp_path_factory.mktemp("store")


def adapted(capsys, monkeypatch, store, *arguments):
    "Exit code, facts, standard error."
    monkeypatch.setenv("UPL_REID_RUNS", str(store))
    code = main(["adapt", *map(str, arguments), "--preset", "tiny", "--device", "cpu", "--json"])
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return code, json.loads(out.out) if out.out else None, out.err


def answer(mine, gallery, pairs):
    "Answers about pairs of positions in the training split; returns the names of its images."
    paths = [absolute_name(p) for p in as_domain(list_images(mine/"crops.csv")).train.paths]
    for a, b, same in pairs: confirm_pair(pairs_file(gallery), paths[a], paths[b], same)
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dbscan", "mspl", "inclr"])
def test_a_run_keeps_to_the_answers(mine, store, tmp_path, capsys, monkeypatch, method):
    plain = adapted(capsys, monkeypatch, store, mine/"crops.csv", tmp_path/"a.safetensors", "--method", method)[1]
    assert "answers" not in plain["run"] and "answers" not in plain
    before = Run(RunConfig("tiny", "plaza", "folder", method), store/plain["run"]).rounds()[0]["labels.hard"].tolist()
    first = next(y for y in before if y >= 0)
    one = [i for i, y in enumerate(before) if y == first]               # rejected: of one cluster, not of one track
    other = [i for i, y in enumerate(before) if y not in (first, -1)]   # confirmed: of two clusters
    assert len(one) > 1 and other
    pairs = [(one[0], one[-1], False), (one[0], other[0], True), (other[1], before.index(-1), True)]
    gallery = tmp_path/"g.safetensors"
    paths = answer(mine, gallery, pairs)
    confirm_pair(pairs_file(gallery), paths[0], "/somewhere/else.jpg", True)
    given = mine/"crops.csv", tmp_path/"b.safetensors", "--method", method, "--answers"
    code, facts, err = adapted(capsys, monkeypatch, store, *given, gallery)
    assert facts["answers"] == dict(same=2, different=1, left_out=1, doubled_tracks=0)
    assert "answers: 2 pairs are one person, 1 are two; 1 left out, whose pictures are not among these crops" in err
    assert facts["run"].startswith(f"{plain['run']}-answers") and len(facts["run"]) == len(plain["run"]) + 16
    for round in Run(RunConfig("tiny", "plaza", "folder", method), store/facts["run"]).rounds():
        y = round["labels.hard"].tolist()
        for a, b, same in pairs: assert (y[a] == y[b] >= 0) if same else (y[a] != y[b] or y[a] == -1)
    assert "answers about 3 pairs of pictures" in (tmp_path/"b.safetensors.md").read_text()
    # the same answers from another file are the same run; one answer more is another one
    answer(mine, tmp_path/"moved", pairs)
    code, again, err = adapted(capsys, monkeypatch, store, *given, tmp_path/"moved.pairs.sqlite")
    assert again["run"] == facts["run"] and "is finished already" in err
    answer(mine, tmp_path/"moved", [(one[0], one[-1], None), (other[0], one[-1], False)])
    code, changed, _ = adapted(capsys, monkeypatch, store, *given, tmp_path/"moved.pairs.sqlite", "--tracks")
    assert changed["run"] != facts["run"] and "-answers" in changed["run"]


@pytest.mark.parametrize("pairs, more, words", [
    ([], (), "there are no answers in"),
    ([(0, 1, True), (1, 2, True), (0, 2, False)], (), "are rejected as one person, and other answers or a track "
                                                      "confirm it through"),
    ([(0, 1, True)], ("--method", "mmt"), "method MMT does not keep to answers about pairs; use dbscan"),
    ([(0, 1, True)], ("--method", "spcl"), "method SpCL does not keep to answers")],
    ids=["none", "contradiction", "mmt", "spcl"])
def test_what_cannot_be_used_is_one_sentence_before_training(mine, tmp_path, capsys, monkeypatch, pairs, more, words):
    answer(mine, tmp_path/"g.safetensors", pairs)
    code, facts, err = adapted(capsys, monkeypatch, tmp_path/"runs", mine/"crops.csv", tmp_path/"m.safetensors",
                               "--answers", tmp_path/"g.safetensors", *more)
    assert code == 1 and facts is None and words in err.strip().splitlines()[-1]
    assert not list((tmp_path/"runs").glob("*/config.json")) and not (tmp_path/"m.safetensors").exists()


def test_answers_about_other_pictures(mine, tmp_path, capsys, monkeypatch):
    confirm_pair(tmp_path/"p.sqlite", "/a.jpg", "/b.jpg", True)
    code, _, err = adapted(capsys, monkeypatch, tmp_path/"runs", mine/"crops.csv", tmp_path/"m.safetensors",
                           "--answers", tmp_path/"p.sqlite")
    assert code == 1 and "none of 1 answers in" in err and "give the answers about these images" in err
