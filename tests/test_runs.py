"""The store: a run is named by its configuration, survives being killed at any moment, and is done once."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from upl_reid import runs
from upl_reid.core import ConfigError, DataError, RunError
from upl_reid.metrics import evaluate_retrieval
from upl_reid.runs import PRESETS, Run, RunConfig, get_run, get_runs, open_domain, read_rows, read_tensors, resume_point, retrieve, write_tensors
from upl_reid.train import Method, register

CONFIG = RunConfig("tiny", "plaza", "campus", "upl", {"every": 2}, 3)
TIMING = ("seconds", "peak_memory", "finished")


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
    assert {k: v for k, v in a.metrics.items() if k not in TIMING} == {k: v for k, v in b.metrics.items() if k not in TIMING}
    for x, y in zip(a.rounds(), b.rounds(), strict=True): assert all(torch.equal(x[k], y[k]) for k in x) and x.keys() == y.keys()
    drop = lambda run: run.history.drop(columns=[c for c in run.history if "seconds" in c])
    assert drop(a).equals(drop(b))


def in_a_process(store, prelude):
    """Start CONFIG in a process of its own after some code that arranges its death."""
    code = textwrap.dedent(prelude) + textwrap.dedent(f"""
        from upl_reid.runs import RunConfig, get_run
        get_run(RunConfig(**{vars(CONFIG)!r}), store={str(store)!r}, device="cpu", progress=False)
    """)
    return subprocess.run([sys.executable, "-c", code], cwd=Path(runs.__file__).parents[1], env=dict(os.environ, OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=300)


DEATHS = {
    # in the middle of an epoch: at the n-th optimiser step of the adaptation or of the pretraining before it
    "mid-epoch of pretraining": """
        import os, signal, torch, upl_reid.train as t
        step, count = t.follow, [0]
        def follow(*a):
            count[0] += 1
            if count[0] == 9: os.kill(os.getpid(), signal.SIGKILL)
            step(*a)
        t.follow = follow""",
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
        import os, signal, pathlib, upl_reid.runs as r
        save, count = r.save_file, [0]
        def dying(tensors, path, metadata):
            save(tensors, path, metadata)
            if "checkpoint" in str(path):
                count[0] += 1
                if count[0] == 8:
                    whole = pathlib.Path(path).read_bytes()
                    pathlib.Path(path).write_bytes(whole[:len(whole)//2])
                    os.kill(os.getpid(), signal.SIGKILL)
        r.save_file = dying""",
    # after the row of an epoch, before its checkpoint
    "between history and checkpoint": """
        import os, signal, upl_reid.runs as r
        write, count = r.write_tensors, [0]
        def dying(path, tensors, **meta):
            if path.name == "checkpoint.safetensors":
                count[0] += 1
                if count[0] == 7: os.kill(os.getpid(), signal.SIGKILL)
            write(path, tensors, **meta)
        r.write_tensors = dying""",
    # training done, result not yet
    "before the metrics": """
        import os, signal, upl_reid.runs as r
        def dying(*a): os.kill(os.getpid(), signal.SIGKILL)
        r.label_scores = dying""",
}


@pytest.mark.parametrize("moment", DEATHS)
def test_killed_and_continued_is_bit_identical(store, tmp_path, moment):
    died = in_a_process(tmp_path, DEATHS[moment])
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (tmp_path/CONFIG.id/"metrics.json").exists()
    before = {p.name: read_rows(p/"history.jsonl") for p in tmp_path.iterdir() if p.name != "data"}
    assert any(before.values()) or "pretraining" in moment
    again = get_run(CONFIG, store=tmp_path, device="cpu", progress=False)
    same_result(again, get_run(CONFIG, store=store))
    for name, rows in before.items():                  # complete epochs were kept, not done again
        kept, n = read_rows(tmp_path/name/"history.jsonl"), max(0, len(rows) - 1)     # the last row may have been written before its checkpoint
        assert [r["seconds"] for r in kept[:n]] == [r["seconds"] for r in rows[:n]]
    assert len(again.environments) == 2                # both sessions are on record


def test_finished_runs_are_read_not_done(store, monkeypatch):
    monkeypatch.setattr(runs, "_work", lambda *a: pytest.fail("trained again"))
    run = get_run(CONFIG, store=store)
    assert run.metrics["mAP"] > 0 and list(run.history.epoch) == [1, 2] and len(run.rounds()) == 2
    assert not (run.path/"checkpoint.safetensors").exists()


def test_metrics_are_those_of_the_saved_model(store):
    run, domain = get_run(CONFIG, store=store), open_domain("campus", "tiny", store=store)
    encoder = run.encoder()
    q, g = (runs.embed(encoder, runs.ImageBank(s.paths, PRESETS["tiny"].size)) for s in (domain.query, domain.gallery))
    scores = evaluate_retrieval(q, domain.query.pids, domain.query.camids, g, domain.gallery.pids, domain.gallery.camids)
    for kept, again in ((run.test_features()["query"], q), (run.test_features()["gallery"], g)): torch.testing.assert_close(kept, again, rtol=0, atol=1e-5)     # a run has one thread, this test may have more
    assert run.metrics["pids"] == domain.query.pids.tolist()[:len(run.metrics["ap"])] and scores.skipped == 0
    assert scores.mAP == pytest.approx(run.metrics["mAP"], abs=1e-6) and np.mean(run.metrics["ap"]) == pytest.approx(scores.mAP, abs=1e-6)


def test_other_ways_to_rank(store):
    run, domain = get_run(CONFIG, store=store), open_domain("campus", "tiny", store=store)
    q, g = domain.query, domain.gallery
    both = torch.cat([run.test_features()[k] for k in ("query", "gallery")]).double()
    camids = np.concatenate([q.camids, g.camids])
    for c in set(camids.tolist()): both[camids == c] -= both[camids == c].mean(0)
    centred = evaluate_retrieval(both[:len(q.pids)], q.pids, q.camids, both[len(q.pids):], g.pids, g.camids)
    assert retrieve(run.test_features(), domain, "centred").mAP == pytest.approx(centred.mAP, abs=1e-6)
    assert retrieve(run.test_features(), domain, "reranked").mAP != retrieve(run.test_features(), domain).mAP == run.metrics["mAP"]
    with pytest.raises(ConfigError, match="sorted"): retrieve(run.test_features(), domain, "sorted")


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
    assert all(torch.equal(a[k], b[k]) for k in a) and direct.history.empty and direct.labels == {} and direct.metrics["rounds"] == []


def test_two_processes_want_the_same_run(tmp_path):
    code = f"from upl_reid.runs import RunConfig, get_run; get_run(RunConfig('tiny', 'plaza'), store={str(tmp_path)!r}, progress=False)"
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=Path(runs.__file__).parents[1], env=dict(os.environ, OMP_NUM_THREADS="1"), stderr=subprocess.PIPE) for _ in range(2)]
    for p in both:
        _, err = p.communicate(timeout=300)
        assert p.returncode == 0, err
    run = Run(RunConfig("tiny", "plaza"), tmp_path/RunConfig("tiny", "plaza").id)
    assert list(run.history.epoch) == list(range(1, 7)) and len(run.environments) == 1


def test_workers_give_the_same_runs_as_one_process(store, tmp_path):
    configs = [RunConfig("tiny", "plaza", "campus", "direct", seed=3), CONFIG]
    made = get_runs(configs, store=tmp_path, device="cpu", jobs=2, progress=False)
    same_result(made[1], get_run(CONFIG, store=store))
    assert [r.config for r in made] == configs


def test_a_worker_that_fails_says_why(tmp_path):
    bad = [RunConfig("tiny", "plaza", "campus", "upl", {"labels": {"min_samples": k}}) for k in (500, 501)]
    with pytest.raises(RunError, match="lower min_samples"): get_runs(bad, store=tmp_path, device="cpu", jobs=2, progress=False)


def test_a_method_of_the_calling_notebook_runs_in_its_process(tmp_path):
    @register("homemade")
    class Homemade(Method): trains = False
    try:
        configs = [RunConfig("tiny", "plaza", "campus", "homemade", {"scale": float(k)}) for k in (1, 2)]
        assert len({r.metrics["mAP"] for r in get_runs(configs, store=tmp_path, device="cpu", jobs=2, progress=False)}) == 1
    finally: del runs.METHODS["homemade"]


def test_configurations_are_told_apart_and_checked():
    ids = {RunConfig("tiny", "plaza", "campus", m, a, s).id for m in ("upl", "dbscan") for a in ({}, {"scale": 10.}) for s in (0, 1)}
    assert len(ids) == 8
    for wrong, message in ((dict(preset="tinny"), "tiny"), (dict(method="upI"), "upl"), (dict(target=""), "needs a target"),
                           (dict(method="pretrain"), "has none"), (dict(method_args={"x": {1, 2}}), "plain values")):
        with pytest.raises(ConfigError, match=message): RunConfig(**{**dict(preset="tiny", source="plaza", target="campus", method="upl"), **wrong})


def test_an_edited_preset_is_another_run(monkeypatch):
    before = CONFIG.id
    monkeypatch.setitem(PRESETS, "tiny", runs.replace(PRESETS["tiny"], dim=32))
    assert CONFIG.id != before


@pytest.mark.parametrize("method, args, named", [("dbscan", {"momentun": .9}, "momentun"), ("upl", {"mocco": False}, "mocco"), ("upl", {"labels": {"ep": .5}}, "ep"), ("oracle", {"pids": []}, "pids"), ("upl", {"meta": 0}, "meta")])
def test_arguments_a_method_does_not_have_are_refused_before_anything_is_trained(method, args, named):
    with pytest.raises(ConfigError, match=f"no argument '{named}'"): RunConfig("tiny", "plaza", "campus", method, args)


def test_a_default_spelt_out_is_the_same_run_and_a_changed_default_is_another(monkeypatch):
    plain = RunConfig("tiny", "plaza", "campus", "upl").id
    assert plain == RunConfig("tiny", "plaza", "campus", "upl", {"moco": True, "labels": {"eps": .5}}).id != RunConfig("tiny", "plaza", "campus", "upl", {"labels": {"eps": .4}}).id
    arguments = runs.METHODS["upl"].arguments()
    monkeypatch.setattr(runs.METHODS["upl"], "arguments", classmethod(lambda cls: {**arguments, "tau": .5}))
    assert RunConfig("tiny", "plaza", "campus", "upl").id != plain


def test_a_configuration_cannot_be_changed_through_what_it_was_made_of():
    args = {"labels": {"eps": .4}}
    config = RunConfig("tiny", "plaza", "campus", "upl", args)
    before = config.id
    args["labels"]["eps"] = .9
    assert config.id == before and len({config, RunConfig("tiny", "plaza", "campus", "upl", {"labels": {"eps": .4}})}) == 1
    for seed in (True, "0", 0.):
        with pytest.raises(ConfigError, match="seed"): RunConfig("tiny", "plaza", seed=seed)


def test_other_data_of_the_same_name_is_another_run(tmp_path):
    """A folder given for a domain marks the run's directory; where the folder lies makes no difference, what is in it does."""
    from upl_reid.synth import write_domain
    make = lambda root, seed: write_domain("plaza", tmp_path/root, train_ids=12, test_ids=4, cameras=3, size=PRESETS["tiny"].size, seed=seed)
    config = RunConfig("tiny", "plaza")
    paths = [runs.run_path(config, roots, tmp_path) for roots in (None, {"plaza": str(make("a", 1))}, {"plaza": str(make("b", 1))}, {"plaza": str(make("c", 2))})]
    assert paths[0].name == config.id and paths[1] == paths[2] and len(set(paths)) == 3
    run = get_run(config, roots={"plaza": str(tmp_path/"a/plaza")}, store=tmp_path, progress=False)
    assert run.path == paths[1] and run.id.startswith(config.id)


def test_initial_weights_from_a_file(tmp_path):
    """A file of weights is used instead of the preset's, and its content is part of the run's name."""
    import timm
    from safetensors.torch import save_file
    from upl_reid.backbone import Shape
    model = timm.create_model("deit_tiny_patch16_224", embed_dim=48, depth=2, num_heads=3, num_classes=0)
    save_file(model.state_dict(), tmp_path/"w.safetensors")
    config = RunConfig("tiny", "plaza")
    run = get_run(config, roots={"weights": str(tmp_path/"w.safetensors")}, store=tmp_path, progress=False)
    other = get_run(config, store=tmp_path, progress=False)
    assert run.id != other.id and run.metrics["mAP"] != other.metrics["mAP"]


def test_waiting_for_another_process_is_said(tmp_path, capsys):
    import threading
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
    with pytest.raises(DataError, match="nowhere"): open_domain("market1501", "paper", {"market1501": str(tmp_path/"nowhere")})


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
    assert {"time", "device", "hardware", "python", "packages", "commit", "changed"} <= set(e) and "torch" in e["packages"]
    assert json.loads((store/CONFIG.id/"config.json").read_text()) == dict(preset="tiny", source="plaza", target="campus", method="upl", method_args={"every": 2}, seed=3)


def test_threads_are_given_back(store, tmp_path):
    threads = torch.get_num_threads()
    get_run(RunConfig("tiny", "plaza", "campus", "direct", seed=3), store=store, progress=False)
    assert torch.get_num_threads() == threads
