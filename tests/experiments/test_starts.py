"""Where a run starts: another network, weights without a source, an adapted model; and what it says on the way."""
import io
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from upl_reid.components.encoder import build_encoder
from upl_reid.core import ConfigError, DataError, read_tensors, write_tensors
from upl_reid.deployment.embedder import Embedder
from upl_reid.experiments import runs
from upl_reid.experiments.config import PRESETS, RunConfig, parse_size
from upl_reid.experiments.progress import all_of, duration_in_words, epoch_in_words, EpochLines, TensorBoardLog
from upl_reid.experiments.runs import get_run, open_domain, pretraining_configs
from upl_reid.experiments.tables import open_table
from upl_reid.experiments.workers import get_runs

BODY = dict(backbone="mobilenetv3_small_050", size=(64, 32), dim=16)


@pytest.fixture(scope="module")
def store(tmp_path_factory): return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def weights(store):
    "A file of weights that differ from the random ones of any seed."
    file = store/"body.pth"
    torch.save({"state_dict": build_encoder(*BODY.values(), seed=77).body.state_dict()}, file)
    return file


# ---------------------------------------------------------------- names of runs

def test_the_presets_own_network_is_no_change():
    usual, p = RunConfig("tiny", "plaza", "campus", "upl"), PRESETS["tiny"]
    spelt = RunConfig("tiny", "plaza", "campus", "upl", backbone=p.backbone, size="48x24", dim=p.dim, pooling="avg")
    assert spelt == usual and spelt.id == usual.id and spelt.own_network == {}


@pytest.mark.parametrize("field", [dict(backbone="resnet18"), dict(size=(64, 32)), dict(dim=7), dict(pooling="gem")])
def test_every_field_of_the_network_is_part_of_the_name(field, tmp_path):
    config = RunConfig("tiny", "plaza", "campus", "upl", **field)
    assert config.id != RunConfig("tiny", "plaza", "campus", "upl").id
    first = pretraining_configs(config)[0]
    assert {k: getattr(first, k) for k in field} == field
    (tmp_path/"config.json").write_text(json.dumps(asdict(config)))
    assert RunConfig.read(tmp_path/"config.json") == config and next(iter(field)) in str(config)


@pytest.mark.parametrize("field, words", [
    (dict(size=(64,)), "size=.*256x128"), (dict(size="64"), "size='64'"), (dict(size="ax3"), "size='ax3'"),
    (dict(size=(4, 4)), "from 8 to 2048"), (dict(size=(64.5, 32)), "size="), (dict(dim=1), "dim=1.*2 to 16,384"),
    (dict(dim=True), "dim=True"), (dict(dim="8"), "dim='8'"), (dict(pooling="max"), "pooling='max'.*avg or gem"),
    (dict(backbone=None), "backbone=None.*text")])
def test_a_network_out_of_range_is_refused(field, words):
    with pytest.raises(ConfigError, match=words): RunConfig("tiny", "plaza", "campus", "upl", **field)


def test_sizes(): assert parse_size("256x128") == parse_size("256,128") == parse_size([256, 128.]) == (256, 128)


def test_pretraining_needs_a_source():
    with pytest.raises(ConfigError, match="without a source"): RunConfig("tiny", "")


# ---------------------------------------------------------------- without a source

@pytest.fixture(scope="module")
def sourceless(store, weights):
    config = RunConfig("tiny", "", "campus", "upl", **BODY)
    return get_run(config, store=store, roots=dict(weights=weights), device="cpu", progress=False)


def test_a_run_without_a_source_starts_from_the_weights_and_trains(sourceless, store, weights):
    assert sourceless.metrics["mAP"] > 0 and len(sourceless.history) == PRESETS["tiny"].adapt.epochs
    assert pretraining_configs(sourceless.config) == [] and sourceless.config.arguments["srmo"] is False
    assert not (store/"data"/"tiny-16-8-3").exists()                     # plaza was not drawn
    before = torch.load(weights)["state_dict"]
    after = sourceless.encoder().body.state_dict()
    moved = [k for k in before if before[k].is_floating_point() and not torch.equal(before[k], after[k])]
    near = sum(float((after[k] - before[k]).norm()) for k in moved)/sum(float(before[k].norm()) for k in moved)
    assert moved and near < .5


def test_its_first_features_are_whitened(sourceless, store, weights):
    first = sourceless.rounds()[0]["features"].double()
    assert torch.linalg.eigvalsh(torch.cov(first.T))[-1] < .35*first.var(0).sum()    # no direction has most of it
    direct = get_run(RunConfig("tiny", "", "campus", "direct", **BODY), store=store, roots=dict(weights=weights),
                     device="cpu", progress=False)
    train = open_domain("campus", "tiny", store=store).train
    again = Embedder.load(direct).embed(train.paths)
    np.testing.assert_allclose(again, first.numpy(), atol=2e-3)


def test_target_pictures_are_decoded_once(store, weights, monkeypatch):
    "Also where they are needed twice: to whiten the start, and to train."
    made, Bank = [], runs.ImageBank
    monkeypatch.setattr(runs, "ImageBank", lambda paths, *args, **kwargs: made.append(tuple(paths)) or
                        Bank(paths, *args, **kwargs))
    get_run(RunConfig("tiny", "", "campus", "dbscan", seed=7, **BODY), store=store, roots=dict(weights=weights),
            device="cpu", progress=False)
    assert made.count(tuple(open_domain("campus", "tiny", store=store).train.paths)) == 1


def test_a_method_of_two_networks_has_no_source_either(store, weights):
    run = get_run(RunConfig("tiny", "", "campus", "mmt", **BODY), store=store, roots=dict(weights=weights),
                  device="cpu", progress=False)
    assert run.metrics["mAP"] > 0


def test_rows_of_a_table_without_a_source(sourceless, store, weights, monkeypatch):
    monkeypatch.setenv("UPL_REID_RUNS", str(store)); monkeypatch.delenv("IN_TEST", raising=False)
    given = dict(preset="tiny", source="plaza", target="campus", source_root="", target_root="", seeds="0",
                 device="cpu", weights=str(weights), **BODY | dict(size="64x32"))
    table = open_table(given, set())
    runs = table.sourceless({"upl": ("upl", {})})
    assert list(runs) == [("upl, no source", "plaza", "campus"), ("upl, no source", "campus", "plaza")]
    assert [[r.id for r in group] for group in runs.values()][0] == [sourceless.id]
    assert all(r.config.source == "" and r.config.target == key[2] for key, group in runs.items() for r in group)
    assert open_table({**given, "weights": ""}, set()).sourceless({"upl": ("upl", {})}) == {}


def test_neither_source_nor_weights_is_said(store):
    with pytest.warns(UserWarning, match="neither a source nor weights.*give weights"):
        get_run(RunConfig("tiny", "", "campus", "direct"), store=store, device="cpu", progress=False)


def test_srmo_cannot_be_asked_for_without_a_source():
    with pytest.raises(ConfigError, match="srmo=True of method 'upl' needs source"):
        RunConfig("tiny", "", "campus", "upl", dict(srmo=True))
    assert RunConfig("tiny", "", "campus", "upl", dict(srmo=False)).arguments["srmo"] is False


# ---------------------------------------------------------------- going on from a model

@pytest.fixture(scope="module")
def model(sourceless, store): return Embedder.load(sourceless, "cpu").save(store/"model.safetensors")


def test_a_run_goes_on_from_a_model(sourceless, model, store):
    config = RunConfig("tiny", "plaza", "campus", "direct", **BODY)
    run = get_run(config, store=store, roots=dict(start=model), device="cpu", progress=False)
    there, here = sourceless.encoder().state_dict(), run.encoder().state_dict()
    assert all(torch.equal(there[k], here[k]) for k in there)
    assert not any(store.glob(f"{pretraining_configs(config)[0].id}*"))              # stage 1 was left out
    other = get_run(RunConfig("tiny", "", "campus", "dbscan", **BODY), store=store, roots=dict(start=model),
                    device="cpu", progress=False)
    start = open_domain("campus", "tiny", store=store).train
    np.testing.assert_allclose(other.rounds()[0]["features"].float().numpy(),
                               Embedder.load(model, "cpu").embed(start.paths), atol=2e-3)


def test_the_model_that_it_starts_from_is_part_of_a_runs_name(sourceless, model, store, tmp_path):
    changed = {k: v + .01 if v.is_floating_point() else v for k, v in read_tensors(model)[0].items()}
    embedder = Embedder.load(model, "cpu")
    embedder.model.load_state_dict(changed)
    config, other = RunConfig("tiny", "", "campus", "direct", **BODY), embedder.save(tmp_path/"other.safetensors")
    ids = {get_run(config, store=store, roots=dict(start=m), device="cpu", progress=False).id for m in (model, other)}
    assert len(ids) == 2


def test_table_runs_leave_stage_1_out_too(model, tmp_path):
    config = RunConfig("tiny", "plaza", "campus", "direct", **BODY)
    get_runs([config], roots=dict(start=str(model)), store=tmp_path, device="cpu", progress=False)
    assert not any(tmp_path.glob(f"{pretraining_configs(config)[0].id}*"))


@pytest.mark.parametrize("fields, words", [
    ({**BODY, "dim": 8}, "dim 16 instead of 8"), ({}, "backbone mobilenetv3_small_050 instead of micro, size"),
    ({**BODY, "pooling": "gem"}, "pooling avg instead of gem")])
def test_a_model_of_another_network_is_refused(fields, words, model, store):
    with pytest.raises(ConfigError, match=words):
        get_run(RunConfig("tiny", "", "campus", "direct", **fields), store=store, roots=dict(start=model),
                device="cpu", progress=False)


def test_what_is_no_model_is_refused(store, weights, tmp_path):
    def go(file, method="direct"):
        return get_run(RunConfig("tiny", "", "campus", method, **BODY), store=store, roots=dict(start=file),
                       device="cpu", progress=False)
    with pytest.raises(DataError, match="body.pth is no model.*--weights"): go(weights)
    with pytest.raises(ConfigError, match="no model file at .*gone"): go(tmp_path/"gone")


@pytest.mark.parametrize("backbone", ["micro", "mobilenetv3_small_050"])
def test_a_model_is_no_file_of_weights(backbone, tmp_path):
    encoder = build_encoder(backbone, (32, 32), 16)
    facts = dict(format=1, backbone=backbone, size=[32, 32], dim=16, method="pretrain")
    file = write_tensors(tmp_path/"m.safetensors", encoder.state_dict(), upl_reid=json.dumps(facts))
    with pytest.raises(DataError, match="m.safetensors is a model of this project.*--start") as e:
        build_encoder(backbone, (48, 24), 16, str(file))
    assert "\n" not in str(e.value)
    write_tensors(file, encoder.body.state_dict())                       # the same network without facts
    body = build_encoder(backbone, (32, 32), 16, str(file), seed=5).body.state_dict()
    assert all(torch.equal(v, body[k]) for k, v in encoder.body.state_dict().items())


def test_two_networks_cannot_start_from_one(model, store):
    with pytest.raises(ConfigError, match="mmt.*two networks"):
        get_run(RunConfig("tiny", "", "campus", "mmt", **BODY), store=store, roots=dict(start=model), device="cpu",
                progress=False)


def test_a_model_of_several_encoders_is_refused(store, weights, tmp_path):
    run = get_run(RunConfig("tiny", "", "campus", "inclr"), store=store, device="cpu", progress=False)
    file = Embedder.load(run, "cpu").save(tmp_path/"parts.safetensors")
    with pytest.raises(ConfigError, match="inclr.*more than one encoder"):
        get_run(RunConfig("tiny", "", "campus", "dbscan"), store=store, roots=dict(start=file), device="cpu",
                progress=False)


def test_a_pooling_is_kept_with_the_model(store, weights, tmp_path):
    run = get_run(RunConfig("tiny", "", "campus", "direct", pooling="gem", **BODY), store=store,
                  roots=dict(weights=weights), device="cpu", progress=False)
    file, paths = Embedder.load(run, "cpu").save(tmp_path/"gem.safetensors"), open_domain("campus", "tiny",
                                                                                          store=store).train.paths[:4]
    np.testing.assert_array_equal(Embedder.load(file, "cpu").embed(paths), Embedder.load(run, "cpu").embed(paths))
    assert Embedder.load(file, "cpu").facts["pooling"] == "gem"


# ---------------------------------------------------------------- what a run says

def rows(epochs, seconds): return [dict(epoch=e + 1, loss=1/(e + 1), classes=7, unused=.25, seconds=seconds)
                                   for e in range(epochs)]


def test_a_line_an_epoch_has_the_time_left():
    now, log = [0.], io.StringIO()
    lines, config = EpochLines(log, clock=lambda: now[0]), RunConfig("tiny", "plaza", "campus", "dbscan")
    for row in rows(3, 50):
        now[0] += 60                                                    # an epoch, and ten seconds of something else
        lines(config, 3, row)
    text = log.getvalue().splitlines()
    assert text[0] == "dbscan campus: epoch 1 of 3, loss 1.000, 7 clusters, 25 % of the images in none, 2 min left"
    assert "55 s left" in text[1] and text[2].endswith("done")          # 110 seconds for two epochs
    lines(RunConfig("tiny", "plaza"), 2, rows(1, 10)[0])
    assert log.getvalue().splitlines()[3] == "pretrain plaza: epoch 1 of 2, loss 1.000, 7 people, 10 s left"


def test_a_night_in_the_middle_is_not_counted_for_the_rest():
    now, log = [0.], io.StringIO()
    lines, config = EpochLines(log, clock=lambda: now[0]), RunConfig("tiny", "plaza", "campus", "dbscan")
    for row, gap in zip(rows(8, 50), (60, 60, 60, 30_000, 60, 60, 60, 60)):
        now[0] += gap
        lines(config, 8, row)
    assert "4 min left" in log.getvalue().splitlines()[3]               # four epochs of a minute


def test_durations(): assert [duration_in_words(s) for s in (0, 99, 100, 7200)] == ["0 s", "99 s", "2 min", "2.0 h"]


def test_every_epoch_is_said_and_only_those_of_this_session(store, weights, tmp_path):
    said, roots = [], dict(weights=weights)
    config = RunConfig("tiny", "", "campus", "dbscan", seed=5, **BODY)
    get_run(config, store=tmp_path, roots=roots, device="cpu", progress=False,
            watch=lambda c, epochs, row: said.append((c, epochs, row["epoch"])))
    assert said == [(config, 2, 1), (config, 2, 2)]
    get_run(config, store=tmp_path, roots=roots, device="cpu", progress=False, watch=lambda *a: said.append(a))
    assert len(said) == 2                                               # a finished run has nothing to say


def test_stage_1_is_said_too(tmp_path):
    said = []
    get_run(RunConfig("tiny", "plaza", "campus", "dbscan"), store=tmp_path, device="cpu", progress=False,
            watch=lambda c, epochs, row: said.append(c.method))
    assert said == ["pretrain"]*PRESETS["tiny"].pretrain.epochs + ["dbscan"]*PRESETS["tiny"].adapt.epochs


def test_event_files_hold_every_number(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    log, config = TensorBoardLog(tmp_path), RunConfig("tiny", "plaza", "campus", "dbscan")
    for row in rows(3, 50): log(config, 3, dict(row, note="text is no number"))
    events = EventAccumulator(str(tmp_path/f"dbscan-plaza-campus-0-{config.id}")).Reload()
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("loss")] == [(1, 1.), (2, .5), (3, .3333)]
    assert set(events.Tags()["scalars"]) == {"epoch", "loss", "classes", "unused", "seconds"} and not log.writers


def test_epochs_that_were_trained_without_the_log_are_written_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    config, history = RunConfig("tiny", "plaza", "campus", "dbscan"), rows(3, 50)
    folder = tmp_path/f"dbscan-plaza-campus-0-{config.id}"
    steps = lambda: [e.step for e in EventAccumulator(str(folder)).Reload().Scalars("loss")]
    log = TensorBoardLog(tmp_path)
    log(config, 3, history[2])                                           # begun without a log, continued with one
    log.complete(config, history)
    assert sorted(steps()) == [1, 2, 3] and not log.writers
    later = TensorBoardLog(tmp_path)
    later.complete(config, history)
    assert len(steps()) == 3 and not later.writers
    (other := TensorBoardLog(tmp_path/"other")).complete(config, history)     # finished without a log
    assert len(list((tmp_path/"other").rglob("events*"))) == 1 and not other.writers


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(ConfigError, match="file/x.*choose another folder"): TensorBoardLog(tmp_path/"file"/"x")


def test_several_watchers_are_called_in_order():
    seen = []
    all_of(lambda *a: seen.append(("a", a)), lambda *a: seen.append(("b", a)))(1, 2, 3)
    assert seen == [("a", (1, 2, 3)), ("b", (1, 2, 3))]
    assert epoch_in_words(RunConfig("tiny", "plaza"), 2, rows(1, 1)[0], 1.) == \
        "pretrain plaza: epoch 1 of 2, loss 1.000, 7 people, 1 s left"
