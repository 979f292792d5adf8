"""The store: a run is named by its configuration, survives being killed at any moment, and is done once."""
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from upl_reid import core
from upl_reid.components.encoder import build_encoder
from upl_reid.core import ConfigError, DataError, file_digests, RunError, read_rows, read_tensors, write_tensors
from upl_reid.data.image_bank import ImageBank, normalise_images
from upl_reid.data.splits import Domain, Split
from upl_reid.data.synthetic import write_domain
from upl_reid.evaluation.reranking import expand_queries, rerank
from upl_reid.evaluation.retrieval import evaluate_distances, evaluate_retrieval
from upl_reid.experiments import runs
from upl_reid.experiments.config import PRESETS, RunConfig
from upl_reid.experiments.runs import (Run, again_path, features_to_rank, get_run, labelled_images, measured_epochs,
                                        measured_part, open_domain, resume_point, run_path, score_retrieval)
from upl_reid.experiments.tables import rank_again
from upl_reid.experiments.workers import get_runs
from upl_reid.training.loop import embed_bank
from upl_reid.training.method import METHODS, Method, register

CONFIG = RunConfig("tiny", "plaza", "campus", "upl", {"meta_every": 2}, 3)
TIMING = ("seconds", "peak_memory", "finished")
ROOT = Path(runs.__file__).parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with an uninterrupted run in it."""
    folder = tmp_path_factory.mktemp("store")
    get_run(CONFIG, store=folder, device="cpu", progress=False)
    return folder


def same_result(a, b):
    """Bit-identical weights, metrics, labels of every round and histories, but for what the clock says."""
    weights, others = (read_tensors(r.path/"model.safetensors")[0] for r in (a, b))
    assert weights.keys() == others.keys() and all(torch.equal(weights[k], others[k]) for k in weights)
    scores = lambda run: {k: v for k, v in run.metrics.items() if k not in TIMING}
    assert scores(a) == scores(b)
    for x, y in zip(a.rounds(), b.rounds(), strict=True):
        assert all(torch.equal(x[k], y[k]) for k in x) and x.keys() == y.keys()
    drop = lambda run: run.history.drop(columns=[c for c in run.history if "seconds" in c])
    assert drop(a).equals(drop(b))


def in_a_process(store, prelude):
    """Start CONFIG in a process of its own after some code that arranges its death."""
    code = textwrap.dedent(prelude) + textwrap.dedent(f"""
        from upl_reid.experiments.config import RunConfig
        from upl_reid.experiments.runs import get_run
        get_run(RunConfig(**{vars(CONFIG)!r}), store={str(store)!r}, device="cpu", progress=False)
    """)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ, OMP_NUM_THREADS="1"),
                          capture_output=True, text=True, timeout=300)


DEATHS = {
    # in the middle of an epoch: at the n-th optimiser step of the adaptation or of the pretraining before it
    "mid-epoch of pretraining": """
        import os, signal, upl_reid.training.method as t
        step, count = t.update_ema, [0]
        def dying(*a):
            count[0] += 1
            if count[0] == 9: os.kill(os.getpid(), signal.SIGKILL)
            step(*a)
        t.update_ema = dying""",
    "mid-epoch of adaptation": """
        import os, signal, upl_reid.methods.upl as u
        losses, count = u.UPL.losses, [0]
        def dying(self, *a):
            count[0] += 1
            if count[0] == 14: os.kill(os.getpid(), signal.SIGKILL)
            return losses(self, *a)
        u.UPL.losses = dying""",
    # while the n-th checkpoint is written: half of its bytes are in the temporary file
    "checkpoint half written": """
        import os, signal, pathlib, upl_reid.core as r
        save, count = r.save_file, [0]
        mark = r.part_name(pathlib.Path("checkpoint.safetensors")).name.split(".")[1]
        def dying(tensors, path, metadata):
            save(tensors, path, metadata)
            if mark in str(path):
                count[0] += 1
                if count[0] == 8:
                    whole = pathlib.Path(path).read_bytes()
                    pathlib.Path(path).write_bytes(whole[:len(whole)//2])
                    os.kill(os.getpid(), signal.SIGKILL)
        r.save_file = dying""",
    # after the row of an epoch, before its checkpoint
    "between history and checkpoint": """
        import os, signal, upl_reid.experiments.runs as r
        write, count = r.write_tensors, [0]
        def dying(path, tensors, **meta):
            if path.name == "checkpoint.safetensors":
                count[0] += 1
                if count[0] == 7: os.kill(os.getpid(), signal.SIGKILL)
            write(path, tensors, **meta)
        r.write_tensors = dying""",
    # training done, result not yet
    "before the metrics": """
        import os, signal, upl_reid.experiments.runs as r
        def dying(*a): os.kill(os.getpid(), signal.SIGKILL)
        r.label_scores = dying""",
}


@pytest.mark.parametrize("moment", DEATHS)
def test_killed_and_continued_is_bit_identical(store, tmp_path, moment):
    died = in_a_process(tmp_path, DEATHS[moment])
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (tmp_path/CONFIG.id/"metrics.json").exists()
    before = {p.name: read_rows(p/"history.jsonl") for p in tmp_path.iterdir() if (p/"config.json").exists()}
    assert any(before.values()) or "pretraining" in moment
    again = get_run(CONFIG, store=tmp_path, device="cpu", progress=False)
    same_result(again, get_run(CONFIG, store=store))
    for name, rows in before.items():                  # complete epochs were kept, not done again
        kept = read_rows(tmp_path/name/"history.jsonl")
        n = max(0, len(rows) - 1)                      # the last row may have been written before its checkpoint
        assert [r["seconds"] for r in kept[:n]] == [r["seconds"] for r in rows[:n]]
    assert len(again.environments) == 2                # both sessions are on record


def test_finished_runs_are_read_not_done(store, monkeypatch):
    monkeypatch.setattr(runs, "train_run", lambda *a: pytest.fail("trained again"))
    run = get_run(CONFIG, store=store)
    assert run.metrics["mAP"] > 0 and list(run.history.epoch) == [1, 2] and len(run.rounds()) == 2
    assert not (run.path/"checkpoint.safetensors").exists()


def truth(domain):
    "Identities and cameras of a domain's test images, as the evaluation takes them."
    return dict(query_pids=domain.query.pids, query_camids=domain.query.camids,
                gallery_pids=domain.gallery.pids, gallery_camids=domain.gallery.camids)


def test_metrics_are_those_of_the_saved_model(store):
    run, domain = get_run(CONFIG, store=store), open_domain("campus", "tiny", store=store)
    encoder = run.encoder()
    size = PRESETS["tiny"].size
    q, g = (embed_bank(encoder, ImageBank(s.paths, size)) for s in (domain.query, domain.gallery))
    scores = evaluate_retrieval(query=q, gallery=g, **truth(domain))
    for kept, again in ((run.test_features()["query"], q), (run.test_features()["gallery"], g)):
        torch.testing.assert_close(kept, again, rtol=0, atol=1e-5)     # a run has one thread, this test may have more
    assert run.metrics["pids"] == domain.query.pids.tolist()[:len(run.metrics["ap"])] and scores.skipped == 0
    assert scores.mAP == pytest.approx(run.metrics["mAP"], abs=1e-6)
    assert np.mean(run.metrics["ap"]) == pytest.approx(scores.mAP, abs=1e-6)


def test_other_ways_to_rank(store):
    run, domain = get_run(CONFIG, store=store), open_domain("campus", "tiny", store=store)
    q, g = domain.query, domain.gallery
    both = torch.cat([run.test_features()[k] for k in ("query", "gallery")]).double()
    camids = np.concatenate([q.camids, g.camids])
    for c in set(camids.tolist()): both[camids == c] -= both[camids == c].mean(0)
    centred = evaluate_retrieval(query=both[:len(q.pids)], gallery=both[len(q.pids):], **truth(domain))
    score = lambda *how: score_retrieval(run.test_features(), domain, *how).mAP
    assert score("centred") == pytest.approx(centred.mAP, abs=1e-6)
    features = run.test_features()
    reranked = evaluate_distances(rerank(features["query"], features["gallery"]), **truth(domain))
    assert score("reranked") == pytest.approx(reranked.mAP, abs=1e-9) != score() == run.metrics["mAP"]
    expanded = expand_queries(features["query"], features["gallery"])
    assert score("expanded") == evaluate_retrieval(expanded, features["gallery"], **truth(domain)).mAP != score()
    with pytest.raises(ConfigError, match="sorted"): score_retrieval(run.test_features(), domain, "sorted")


@pytest.mark.parametrize("name", ["labelled", "market1501"])
def test_person_0_of_a_source_is_a_person(name):
    pids = np.array([0, 0, 3, -1, 3, 0])
    train = Split(tuple(Path(f"{i}.jpg") for i in range(6)), pids, np.array([0, 1, 0, 0, 1, 1]))
    empty = train.subset(np.zeros(6, bool))
    source = labelled_images(Domain(name, train, empty, empty))
    assert source.pids.tolist() == [0, 0, 3, 3, 0] and [p.stem for p in source.paths] == list("01245")


def test_a_source_with_one_image_of_everybody_has_no_positive_pairs():
    def source(pids):
        train = Split(tuple(Path(f"{i}.jpg") for i in range(len(pids))), np.array(pids), np.zeros(len(pids), int))
        empty = train.subset(np.zeros(len(pids), bool))
        return labelled_images(Domain("labelled", train, empty, empty))
    with pytest.raises(DataError, match="4 training images of 4 people, one of each, so there are no positive pairs"):
        source([3, 1, 0, 7, -1, -1])
    assert len(source([3, 1, 0, 7, 3])) == 5                                  # people with one image among others
    with pytest.raises(DataError, match="of 1 people"): source([4, 4])


def test_a_root_that_no_domain_has_is_refused(tmp_path):
    "In one run and in several, before anything is read; roots of domains that a run does not use are fine."
    config = RunConfig("tiny", "plaza", "campus", "direct")
    for get in (get_run, lambda config, **how: get_runs([config], **how)):
        with pytest.raises(ConfigError, match="roots has 'campsu', which is no domain; it may have .*campus.*weights"):
            get(config, roots={"campsu": str(tmp_path)}, store=tmp_path/"runs", progress=False)
    assert not (tmp_path/"runs").exists()
    other = {"market1501": str(tmp_path), "folder": str(tmp_path)}
    assert run_path(config, other, tmp_path/"runs").name == config.id
    with pytest.raises(ConfigError, match="weights"): run_path(config, {"weight": "w.pth"}, tmp_path/"runs")


def test_the_only_image_of_a_camera_keeps_its_direction_under_centring():
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(7, 5, generator=g), dim=1)
    pids, camids = np.array([1, 2, 1, 1, 2, 3, 2]), np.array([0, 0, 1, 1, 1, 1, 2])      # camera 2 has one image
    paths = [Path(f"{i}.jpg") for i in range(7)]
    split = lambda rows: Split(tuple(paths[i] for i in rows), pids[rows], camids[rows])
    query, gallery = np.arange(2), np.arange(2, 7)
    domain = Domain("folder", split(query), split(query), split(gallery))
    points = x.double().numpy().copy()
    for c in (0, 1): points[camids == c] -= points[camids == c].mean(0)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    expected = []
    for q in query:
        ranked = [i for i in sorted(gallery, key=lambda i: -points[q] @ points[i]) if camids[i] != camids[q]]
        hits = [rank for rank, i in enumerate(ranked, 1) if pids[i] == pids[q]]
        expected.append(np.mean([n/rank for n, rank in enumerate(hits, 1)]))
    scores = score_retrieval(dict(query=x[query], gallery=x[gallery]), domain, "centred")
    np.testing.assert_allclose(scores.ap, expected, atol=1e-6)


def test_mirror_images_are_ranked_with(store):
    run, domain = get_run(CONFIG, store=store), open_domain("campus", "tiny", store=store)
    encoder, size = run.encoder(), PRESETS["tiny"].size
    same, found = features_to_rank(run, domain), features_to_rank(run, domain, "flipped")
    for name, kept in run.test_features().items():
        assert torch.equal(same[name], kept)
        images = normalise_images(ImageBank(getattr(domain, name).paths, size)[torch.arange(len(kept))])
        with torch.no_grad(): mean = encoder(images) + encoder(torch.flip(images, [3]))
        torch.testing.assert_close(found[name], mean/mean.norm(dim=1, keepdim=True), rtol=0, atol=1e-5)
    again = rank_again(run, domain, "flipped").metrics
    assert again["mAP"] == score_retrieval(found, domain).mAP != run.metrics["mAP"]


def test_every_clustering_has_its_scores(store):
    run, split = get_run(CONFIG, store=store), open_domain("campus", "tiny", store=store).train
    assert [r["epoch"] for r in run.metrics["rounds"]] == [1, 2] and run.labels == run.metrics["rounds"][-1]
    features, hard = run.rounds()[0]["features"].double().numpy(), run.rounds()[0]["labels.hard"].tolist()
    for key, labels in dict(nce=hard, true_nce=split.pids.tolist()).items():
        losses = []
        for i, y in enumerate(labels):              # Eq. 12 in loops
            own = [j for j in range(len(labels)) if y >= 0 and labels[j] == y]
            positives = [j for j in own if split.camids[j] != split.camids[i]]
            others = [j for j in range(len(labels)) if j not in own]
            mass = lambda js: sum(np.exp(features[i] @ features[j]/.07) for j in js)
            if positives: losses.append(-np.log(mass(positives)/(mass(positives) + mass(others))))
        assert run.metrics["rounds"][0][key] == pytest.approx(np.mean(losses), rel=1e-3)


def test_a_method_shares_its_pretraining_and_direct_transfer_is_that_model(store):
    base = RunConfig("tiny", "plaza", seed=3)
    assert (store/base.id/"metrics.json").exists()
    direct = get_run(RunConfig("tiny", "plaza", "campus", "direct", seed=3), store=store, progress=False)
    a, b = (read_tensors(p/"model.safetensors")[0] for p in (direct.path, store/base.id))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert direct.history.empty and direct.labels == {} and direct.metrics["rounds"] == []


def test_two_processes_want_the_same_run(tmp_path):
    code = ("from upl_reid.experiments import RunConfig, get_run; "
            f"get_run(RunConfig('tiny', 'plaza'), store={str(tmp_path)!r}, progress=False)")
    env = dict(os.environ, OMP_NUM_THREADS="1")
    start = lambda: subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stderr=subprocess.PIPE)
    both = [start() for _ in range(2)]
    for p in both:
        _, err = p.communicate(timeout=300)
        assert p.returncode == 0, err
    run = Run(RunConfig("tiny", "plaza"), tmp_path/RunConfig("tiny", "plaza").id)
    assert list(run.history.epoch) == list(range(1, 7)) and len(run.environments) == 1


def test_configurations_are_told_apart_and_checked():
    ids = {RunConfig("tiny", "plaza", "campus", m, a, s).id
           for m in ("upl", "dbscan") for a in ({}, {"scale": 10.}) for s in (0, 1)}
    assert len(ids) == 8
    right = dict(preset="tiny", source="plaza", target="campus", method="upl")
    for wrong, message in ((dict(preset="tinny"), "tiny"), (dict(method="upI"), "upl"),
                           (dict(target=""), "needs a target"), (dict(method="pretrain"), "has none"),
                           (dict(method_args={"x": {1, 2}}), "plain values")):
        with pytest.raises(ConfigError, match=message): RunConfig(**{**right, **wrong})


def test_an_edited_preset_is_another_run(monkeypatch):
    before = CONFIG.id
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["tiny"], dim=32))
    assert CONFIG.id != before


@pytest.mark.parametrize("method, args, named", [
    ("dbscan", {"momentun": .9}, "momentun"), ("upl", {"mocco": False}, "mocco"), ("upl", {"labels": {"ep": .5}}, "ep"),
    ("oracle", {"pids": []}, "pids"), ("upl", {"meta": 0}, "meta")])
def test_arguments_a_method_does_not_have_are_refused_before_anything_is_trained(method, args, named):
    with pytest.raises(ConfigError, match=f"no argument '{named}'"): RunConfig("tiny", "plaza", "campus", method, args)


def test_a_default_spelt_out_is_the_same_run_and_a_changed_default_is_another(monkeypatch):
    plain = RunConfig("tiny", "plaza", "campus", "upl").id
    spelt = RunConfig("tiny", "plaza", "campus", "upl", {"moco": True, "labels": {"eps": .5}}).id
    assert plain == spelt != RunConfig("tiny", "plaza", "campus", "upl", {"labels": {"eps": .4}}).id
    arguments = METHODS["upl"].arguments()
    monkeypatch.setattr(METHODS["upl"], "arguments", classmethod(lambda cls: {**arguments, "tau": .5}))
    assert RunConfig("tiny", "plaza", "campus", "upl").id != plain


def test_a_configuration_cannot_be_changed_through_what_it_was_made_of():
    args = {"labels": {"eps": .4}}
    config = RunConfig("tiny", "plaza", "campus", "upl", args)
    before = config.id
    args["labels"]["eps"] = .9
    same = RunConfig("tiny", "plaza", "campus", "upl", {"labels": {"eps": .4}})
    assert config.id == before and len({config, same}) == 1
    for seed in (True, "0", 0.):
        with pytest.raises(ConfigError, match="seed"): RunConfig("tiny", "plaza", seed=seed)


def network(root, seed):
    "A small network of the embedded kind, drawn into a folder that is then given like a real one."
    return write_domain("plaza", root, train_ids=12, test_ids=4, cameras=3, size=PRESETS["tiny"].size, seed=seed)


def test_other_data_of_the_same_name_is_another_run(tmp_path):
    """A folder given for a domain marks the run's folder; where it lies makes no difference, what is in it does."""
    given = [{"plaza": str(network(tmp_path/n, seed))} for n, seed in (("a", 1), ("b", 1), ("c", 2))]
    config = RunConfig("tiny", "plaza")
    paths = [run_path(config, roots, tmp_path) for roots in (None, *given)]
    assert paths[0].name == config.id and paths[1] == paths[2] and len(set(paths)) == 3
    run = get_run(config, roots={"plaza": str(tmp_path/"a/plaza")}, store=tmp_path, progress=False)
    assert run.path == paths[1] and run.id.startswith(config.id)


def test_the_same_names_with_other_pictures_are_other_runs(tmp_path):
    """Three folders of a benchmark with the same names, identities and cameras; only the pictures differ."""
    from PIL import Image, ImageOps
    home, config = network(tmp_path/"a", 1), RunConfig("tiny", "plaza")
    for n in "bc": shutil.copytree(tmp_path/"a", tmp_path/n)
    for p in (tmp_path/"b").rglob("*.jpg"): Image.open(p).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(p)
    for p in (tmp_path/"c").rglob("*.jpg"): ImageOps.invert(Image.open(p)).save(p)
    roots = [{"plaza": str(home).replace(str(tmp_path/"a"), str(tmp_path/n))} for n in "abc"]
    made = [get_run(config, roots=r, store=tmp_path/"store", progress=False) for r in roots]
    assert len({r.id for r in made}) == 3 and len({r.metrics["mAP"] for r in made}) == 3
    found = [get_run(config, roots=r, store=tmp_path/"store", progress=False).id for r in roots]
    assert found == [r.id for r in made]


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_picture_is_noticed_and_unchanged_ones_are_not_read(tmp_path, monkeypatch, change):
    root, config = network(tmp_path/"a", 1), RunConfig("tiny", "plaza")
    pictures = sorted((tmp_path/"a").rglob("*.jpg"))
    for p in pictures: os.utime(p, (1e9, 1e9))              # a file changed within the last seconds is always read
    read, digest = [], core.content_digest
    monkeypatch.setattr(core, "content_digest", lambda path: (read.append(Path(path)), digest(path))[1])
    find = lambda: run_path(config, {"plaza": str(root)}, tmp_path/"store")
    first = find()
    assert len(read) == len(pictures) and find() == first and len(read) == len(pictures)
    before = pictures[3].read_bytes()
    if change == "size": pictures[3].write_bytes(before + b"more")
    else: pictures[3].write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    os.utime(pictures[3], (1e9, 1e9 + (change == "time")))
    read.clear()
    assert find() != first and read == [pictures[3]]
    pictures[3].write_bytes(before)
    assert find() == first


def test_a_damaged_cache_of_digests_costs_time_only(tmp_path):
    root, config = network(tmp_path/"a", 1), RunConfig("tiny", "plaza")
    for p in (tmp_path/"a").rglob("*.jpg"): os.utime(p, (1e9, 1e9))
    first = run_path(config, {"plaza": str(root)}, tmp_path/"store")
    (tmp_path/"store/digests.sqlite").write_bytes(b"junk"*1000)
    with pytest.warns(UserWarning, match="digests.sqlite cannot be written .* remove it if it is damaged"):
        assert run_path(config, {"plaza": str(root)}, tmp_path/"store") == first


def test_fingerprints_of_own_crops_are_those_of_earlier_versions(tmp_path):
    """Their contents always counted, so their runs keep their names."""
    import hashlib
    from upl_reid.data.own_crops import load_folder
    for name in ("cam1/a.jpg", "cam2/b.jpg"):
        (tmp_path/name).parent.mkdir()
        (tmp_path/name).write_bytes(name.encode())
    domain, h = load_folder(tmp_path), hashlib.sha256()
    for split in (domain.train, domain.query, domain.gallery):
        h.update("\n".join(f"{p.name} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in split.paths).encode())
        h.update(split.pids.tobytes()); h.update(split.camids.tobytes())
    assert runs.domain_fingerprint(domain) == h.hexdigest()[:8] != runs.domain_fingerprint(domain, contents=False)


def outside(**members):
    "A method class outside the package whose source text is the given one."
    return type("Outside", (Method,), dict(trains=False, __module__="somewhere", **members))


def test_changed_code_of_a_method_is_told_and_again_replaces_the_run(tmp_path, capsys):
    """Found, told, trained anew beside the finished run, and replaced in one step."""
    config = lambda: RunConfig("tiny", "plaza", "campus", "outside")
    get = lambda **more: get_run(config(), store=tmp_path, device="cpu", progress=False, **more)
    try:
        register("outside")(outside(version=1))
        first = get()
        code, = json.loads((first.path/"code.json").read_text())
        assert code["classes"] == {"somewhere.Outside": "trains = False\nversion = 1"}
        assert first.code_digests == [at["code"] for at in first.environments] == [code["digest"]]
        METHODS["outside"] = outside(version=1)                 # the same text in another session
        capsys.readouterr()
        assert get().metrics == first.metrics and capsys.readouterr().err == ""
        METHODS["outside"] = outside(version=2)
        assert get().metrics == first.metrics
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "code of method 'outside' has changed" in said and "again=True" in said
        second = get(again=True)
        assert second.path == first.path
        assert json.loads((second.path/"code.json").read_text())[0]["digest"] != code["digest"]
        assert list((tmp_path/"again").iterdir()) == [] and capsys.readouterr().err == ""
        get()
        assert capsys.readouterr().err == ""
        (second.path/"code.json").unlink()                      # stored by an earlier version
        get()
        assert "stored without the code" in capsys.readouterr().err
    finally: METHODS.pop("outside", None)


def test_a_run_that_is_trained_anew_is_whole_at_every_moment(store, tmp_path, monkeypatch):
    """The finished run stays until the new one is complete, also if training or the replacement is interrupted."""
    for name in ("data", CONFIG.id, RunConfig("tiny", "plaza", seed=3).id): shutil.copytree(store/name, tmp_path/name)
    path, before = tmp_path/CONFIG.id, (tmp_path/CONFIG.id/"metrics.json").read_bytes()
    get = lambda **more: get_run(CONFIG, store=tmp_path, device="cpu", progress=False, **more)
    stop = lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
    with monkeypatch.context() as m:
        m.setattr(runs, "measure_run", stop)                    # trained, not measured
        with pytest.raises(KeyboardInterrupt): get(again=True)
    assert (path/"metrics.json").read_bytes() == before and not (again_path(path)/"metrics.json").exists()
    rename = os.replace
    with monkeypatch.context() as m:
        m.setattr(runs.os, "replace", lambda a, b: stop() if Path(a) == again_path(path) else rename(a, b))
        with pytest.raises(KeyboardInterrupt): get(again=True)  # between the two renames
    assert not path.exists() and (again_path(path)/"metrics.json").exists()
    monkeypatch.setattr(runs, "train_run", lambda *a: pytest.fail("trained again"))
    run = get()
    assert json.loads(before)["finished"] < run.metrics["finished"] and list((tmp_path/"again").iterdir()) == []
    same_result(run, get_run(CONFIG, store=store))


def test_initial_weights_from_a_file(tmp_path):
    """A file of weights is used instead of the preset's, and its content is part of the run's name."""
    import timm
    from safetensors.torch import save_file
    model = timm.create_model("deit_tiny_patch16_224", embed_dim=48, depth=2, num_heads=3, num_classes=0)
    save_file(model.state_dict(), tmp_path/"w.safetensors")
    config = RunConfig("tiny", "plaza")
    run = get_run(config, roots={"weights": str(tmp_path/"w.safetensors")}, store=tmp_path, progress=False)
    other = get_run(config, store=tmp_path, progress=False)
    assert run.id != other.id and run.metrics["mAP"] != other.metrics["mAP"]


def test_waiting_for_another_process_is_said(tmp_path, capsys):
    from filelock import FileLock
    taken = threading.Event()
    def hold():
        with FileLock(tmp_path/"lock"): taken.set(); time.sleep(3)
    threading.Thread(target=hold).start()
    taken.wait()
    with runs.waiting_lock(tmp_path/"lock", "this run"): pass
    assert "another process is working on this run" in capsys.readouterr().err


def test_real_data_without_a_folder_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="source_root"): open_domain("market1501", "paper", store=tmp_path)
    roots = {"market1501": str(tmp_path/"nowhere")}
    with pytest.raises(DataError, match="nowhere"): open_domain("market1501", "paper", roots)


def test_damaged_files_are_named(tmp_path):
    write_tensors(tmp_path/"checkpoint.safetensors", dict(a=torch.ones(100)), epoch=1)
    whole = (tmp_path/"checkpoint.safetensors").read_bytes()
    (tmp_path/"checkpoint.safetensors").write_bytes(whole[:-50])
    with pytest.raises(RunError, match="checkpoint.safetensors cannot be read"): resume_point(tmp_path)


def test_resume_point_cuts_the_history_back_to_the_checkpoint(tmp_path):
    assert resume_point(tmp_path) == dict(state=None, epoch=0)
    write_tensors(tmp_path/"checkpoint.safetensors", dict(a=torch.arange(3.)), epoch=2)
    (tmp_path/"history.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3}\n{"epo')
    point = resume_point(tmp_path)
    assert point["epoch"] == 2 and torch.equal(point["state"]["a"], torch.arange(3.))
    assert (tmp_path/"history.jsonl").read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


def test_a_history_without_rows(tmp_path):
    assert read_rows(tmp_path/"absent.jsonl") == []
    (tmp_path/"cut.jsonl").write_text('{"epoch": 1')
    assert read_rows(tmp_path/"cut.jsonl") == []


def test_environment_names_what_a_reader_needs(store):
    e = get_run(CONFIG, store=store).environments[0]
    assert {"time", "device", "hardware", "python", "packages", "commit", "changed"} <= set(e)
    assert "torch" in e["packages"]
    stored = json.loads((store/CONFIG.id/"config.json").read_text())
    assert stored == dict(preset="tiny", source="plaza", target="campus", method="upl", method_args={"meta_every": 2},
                          seed=3)
    assert not (store/CONFIG.id/"code.json").exists()           # the commit tells the code of the package


def test_threads_are_given_back(store, tmp_path, monkeypatch):
    source = RunConfig("tiny", "plaza", seed=3)
    get_run(source, store=store, device="cpu", progress=False)
    for part in ("data", source.id): shutil.copytree(store/part, tmp_path/part)
    noted, real, before = [], runs.train_run, torch.get_num_threads()
    monkeypatch.setattr(runs, "train_run", lambda *a, **k: (noted.append(torch.get_num_threads()), real(*a, **k))[1])
    torch.set_num_threads(2)
    try:
        get_run(RunConfig("tiny", "plaza", "campus", "direct", seed=3), store=tmp_path, device="cpu", progress=False)
        assert noted == [PRESETS["tiny"].threads] == [1] and torch.get_num_threads() == 2
    finally: torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    "A project folder with the shipped pretraining of `tiny`, seed 5, and the store that it was trained in."
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPL_REID_ROOT", str(root))
        written = runs.ship_pretraining("tiny", seed=5, store=root/"store")
    assert sorted(written) == sorted((root/"pretrained").glob("*.safetensors")) and len(written) == 2
    return root


class Trained(Exception): "Raised in place of a training."


@pytest.fixture
def beside(shipped, tmp_path, monkeypatch):
    "A copy of that project in which no training can begin."
    def refuse(*args, **kwargs): raise Trained
    monkeypatch.setattr(runs, "pretrain", refuse)
    shutil.copytree(shipped/"pretrained", tmp_path/"pretrained")
    monkeypatch.setenv("UPL_REID_ROOT", str(tmp_path))
    return tmp_path


PRETRAINED = RunConfig("tiny", "plaza", seed=5)


def test_a_shipped_pretraining_gives_the_run_that_training_gives(shipped, beside):
    run = get_run(PRETRAINED, store=beside/"runs", device="cpu", progress=False)
    trained = get_run(PRETRAINED, store=shipped/"store", device="cpu", progress=False)
    weights, others = (read_tensors(r.path/"model.safetensors")[0] for r in (run, trained))
    assert weights.keys() == others.keys() and all(torch.equal(weights[k], others[k]) for k in weights)
    measured = lambda r: {k: v for k, v in r.metrics.items() if k not in ("peak_memory", "finished")}
    assert measured(run) == measured(trained) and run.history.equals(trained.history)
    assert len(run.environments) == 2 and run.environments[0] == trained.environments[0]


@pytest.mark.parametrize("change", [dict(seed=6), dict(preset="edited"), dict(again=True), dict(images="another"),
                                    dict(folder=True), dict(weights=True)])
def test_a_shipped_pretraining_is_for_its_own_run_only(beside, monkeypatch, change):
    config, roots = PRETRAINED, {}
    if "seed" in change: config = replace(config, seed=6)
    if "preset" in change: monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["tiny"], held=.25))
    if "images" in change:
        facts = runs.shipped_files(config)[1]
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "images": change["images"]}))
    if "folder" in change: roots = dict(plaza=str(drawn_plaza(beside)))
    if "weights" in change:
        encoder = build_encoder("micro", (48, 24), 64)
        roots = dict(weights=str(write_tensors(beside/"w.safetensors", encoder.body.state_dict())))
    with pytest.raises(Trained):
        get_run(config, store=beside/"runs", roots=roots, device="cpu", progress=False, again="again" in change)


def drawn_plaza(folder): return runs.open_domain("plaza", "tiny", None, folder).train.paths[0].parents[1]


def test_damaged_shipped_weights_are_refused(beside):
    weights = runs.shipped_files(PRETRAINED)[0]
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=f"{weights.name} is not the file that .*json describes.*ship_pretraining"):
        get_run(PRETRAINED, store=beside/"runs", device="cpu", progress=False)


def test_the_shipped_files_are_those_of_the_present_presets():
    facts = sorted((ROOT/"pretrained").glob("*.json"))
    assert len(facts) == 2         # plaza and campus
    for file in facts:
        about = json.loads(file.read_text())
        config, preset = RunConfig(**about["config"]), PRESETS[about["config"]["preset"]]
        assert config.id == file.stem and config.preset == "demo" and config.method == "pretrain" and config.seed == 0
        assert len(about["history"]) == preset.pretrain.epochs
        weights = file.with_suffix(".safetensors")
        assert file_digests([weights])[0] == about["sha256"]
        build_encoder(preset.backbone, preset.size, preset.dim).load_state_dict(read_tensors(weights)[0])


# ---- the test after each round

def naive_map(features, q, g):
    """Mean AP by loops, over queries with a match in another camera."""
    found = []
    for i, vector in enumerate(features["query"].double()):
        far = ((features["gallery"].double() - vector)**2).sum(1).numpy()
        own = (g.pids == q.pids[i]) & (g.camids == q.camids[i])
        order = [j for j in np.argsort(far, kind="stable") if not own[j] and g.pids[j] != -1]
        hits = np.array([g.pids[j] == q.pids[i] for j in order])
        if hits.any(): found.append(np.mean([(hits[:r + 1].sum())/(r + 1) for r in np.flatnonzero(hits)]))
    return np.mean(found)


def test_rows_of_a_run_rank_the_same_people_from_the_first_to_the_final_model(store, monkeypatch):
    run, target = Run(CONFIG, run_path(CONFIG, None, store)), open_domain("campus", "tiny", None, store)
    monkeypatch.setattr(runs.measured_part, "__defaults__", (.25, 3))
    query, gallery = measured_part(target)
    people = set(target.query.pids[query])
    assert len(people) == 3 and people == set(target.gallery.pids[gallery])
    q, g = target.query.subset(query), target.gallery.subset(gallery)
    get_run(CONFIG, store=store/"three", device="cpu", progress=False)
    three = Run(CONFIG, run_path(CONFIG, None, store/"three"))
    rows = three.metrics["tests"]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    last = {name: x[torch.from_numpy(m)] for (name, x), m in zip(sorted(three.test_features().items(), reverse=True),
                                                                  (query, gallery))}
    assert rows[-1]["mAP"] == pytest.approx(naive_map(last, q, g), abs=1e-6)
    start = get_run(RunConfig("tiny", "plaza", seed=3), store=store/"three", device="cpu", progress=False).encoder()
    first = {name: embed_bank(start, ImageBank(part.paths, (48, 24), torch.device("cpu")))
             for name, part in (("query", q), ("gallery", g))}
    assert rows[0]["mAP"] == pytest.approx(naive_map(first, q, g), abs=1e-6)
    same = read_tensors(three.path/"model.safetensors")[0], read_tensors(run.path/"model.safetensors")[0]
    assert all(torch.equal(same[0][k], same[1][k]) for k in same[0])   # who is ranked does not change the training


def test_without_rows_the_weights_are_the_same_bits(store, tmp_path):
    shutil.copytree(store/"data", tmp_path/"data")
    bare = get_run(CONFIG, store=tmp_path, device="cpu", progress=False, test_rounds=False)
    assert bare.metrics["tests"] == [] and not (bare.path/"tests.jsonl").exists()
    full = Run(CONFIG, run_path(CONFIG, None, store))
    weights = [read_tensors(r.path/"model.safetensors")[0] for r in (bare, full)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.parametrize("epochs, every, most, expected", [
    (2, 1, 16, [0, 1]), (16, 2, 16, [0, 2, 4, 6, 8, 10, 12, 14]), (100, 10, 3, [0, 40, 90]), (5, 5, 16, [0])])
def test_rounds_are_measured_where_they_begin(epochs, every, most, expected):
    budget = replace(PRESETS["tiny"].adapt, epochs=epochs, cluster_every=every)
    assert measured_epochs(budget, most) == expected


def test_a_run_with_an_interval_of_its_own_clusters_as_often(store):
    run = get_run(RunConfig("tiny", "plaza", "campus", "dbscan", {"recluster": 2}), store=store, device="cpu",
                  progress=False)
    assert len(run.rounds()) == 1 and [row["epoch"] for row in run.metrics["tests"]] == [0, 2]
