"""What table 3 and figures 3, 4 and 8 read from runs: correlations, who is drawn, which rankings are shown, which runs
count."""
import io, json, math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from PIL import Image
from sklearn.metrics import silhouette_score

from upl_reid.core import ConfigError, DataError, seed_for
from upl_reid.data.image_bank import plan_batches
from upl_reid.data.splits import Domain, Split
from upl_reid.experiments.label_analysis import (
    FEWEST, QUALITY, choose_queries, correlation_table, correlation_in_words, entropy_scores,
    finished_in, finished_runs, label_agreement, label_facts, most_seen, normalised_entropy, pack_store, partner_shares,
    preview_figure, quality_frame, quality_table, relabel_round, shown_rounds, spaced_rounds, target_of, top_matches,
    true_label_scores)
from upl_reid.methods.upl import mixture_labels, two_stage_clusters
from upl_reid.evaluation.retrieval import evaluate_retrieval
from upl_reid.experiments.records import (archived_config, archived_runs, ArchivedRun, merge_rows, read_archive,
    record_of, RECORDS)
from upl_reid.experiments.runs import get_run, open_domain, Run
from upl_reid.experiments.config import RunConfig
from upl_reid.training.method import Budget, PseudoLabels


def split(pids, camids):
    return Split(tuple(Path(f"{i}.jpg") for i in range(len(pids))), np.asarray(pids), np.asarray(camids))


def put(store, method="upl", mark="", name=None, rounds=(), mAP=.5, config=None, **kwargs):
    """A folder in a store with as much of a finished run as is looked at."""
    target = "" if method == "pretrain" else "campus"
    made = RunConfig(**{**dict(preset="tiny", source="plaza", target=target, method=method), **kwargs})
    folder = store/((name or made.id) + mark)
    folder.mkdir(parents=True)
    (folder/"config.json").write_text(json.dumps(config or made.stated))
    (folder/"metrics.json").write_text(json.dumps(dict(mAP=mAP, rounds=list(rounds))))
    return Run(made, folder)


# ---- rounds

@given(st.integers(1, 40), st.integers(2, 6))
def test_spaced_rounds_are_evenly_spaced(rounds, shown):
    found = spaced_rounds(rounds, shown)
    assert found == sorted(set(found)) and found[0] == 0 and found[-1] == rounds - 1
    assert len(found) == min(rounds, shown)
    gaps = np.diff(found)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_no_rounds_to_show_is_an_error():
    with pytest.raises(DataError, match="no clusterings"): spaced_rounds(0)


def test_quality_table_averages_the_seeds_of_each_round(tmp_path):
    rounds = [[dict(epoch=1 + 2*i, silhouette=.1*(i + s), noise_ratio=.01*s) for i in range(3)] for s in range(2)]
    runs = [put(tmp_path, seed=s, rounds=r) for s, r in enumerate(rounds)]
    table = quality_table({"a": shown_rounds(runs, [0, 2])}, {("ours", 100, "DBI"): 1.42})
    assert table["epochs"].tolist() == ["0", "4", "*100*"]
    assert table["labels"].tolist() == ["a", "a", "*published: ours*"]
    for line, i in ((0, 0), (1, 2)):
        one, two = .1*i, .1*(i + 1)
        assert table["SC"][line] == f"{(one + two)/2:.3f} ± {abs(one - two)/math.sqrt(2):.3f}"
        assert table["noise %"][line] == f"0.5 ± {1/math.sqrt(2):.1f}" and table["ARI"][line] == "-"
    assert table["DBI"][2] == "*1.42*" and table["SC"][2] == ""


def test_true_identities_are_scored_as_a_clustering():
    rng = np.random.default_rng(0)
    x, pids = rng.normal(size=(40, 5)), np.repeat(np.arange(8) + 1, 5)
    scores = true_label_scores(torch.from_numpy(x), split(pids, np.tile(np.arange(5), 8)))
    unit = x/np.linalg.norm(x, axis=1, keepdims=True)
    assert scores["silhouette"] == pytest.approx(silhouette_score(unit, pids), abs=1e-9)
    assert scores["noise_ratio"] == 0
    assert all(scores[k] == pytest.approx(1) for k in ("ari", "ami", "cross_camera_precision", "cross_camera_recall"))


# ---- which runs count

def test_finished_runs_are_those_on_the_same_data(tmp_path):
    mine = put(tmp_path, "upl")
    same = [mine, put(tmp_path, "dbscan"), put(tmp_path, "upl", seed=3), put(tmp_path, "direct")]
    put(tmp_path, "upl", preset="demo")
    put(tmp_path, "upl", source="campus", target="plaza")
    put(tmp_path, "hybrid", mark="-1234abcd")                       # same name of the domain, other data
    put(tmp_path, "pretrain")
    (put(tmp_path, "hybrid").path/"metrics.json").unlink()          # not finished
    (tmp_path/"data").mkdir(); (tmp_path/"worker-1-0.log").write_text("")
    found, outdated = finished_runs([mine])
    assert {r.id for r in found} == {r.id for r in same} and outdated == []
    assert all(r.config.id == r.id and r.metrics["mAP"] == .5 for r in found)


def test_finished_runs_of_real_data_need_the_same_fingerprint(tmp_path):
    mine, other = put(tmp_path, mark="-1234abcd"), put(tmp_path, "dbscan", mark="-00000000")
    assert [r.id for r in finished_runs([mine])[0]] == [mine.id]
    assert {r.id for r in finished_runs([mine, other])[0]} == {mine.id, other.id}


def test_finished_runs_are_of_the_same_network(tmp_path):
    rounds = [dict(epoch=1, silhouette=.1)]
    mine, other = put(tmp_path, rounds=rounds), put(tmp_path, dim=32, rounds=rounds)
    assert [[r.id for r in finished_runs([r])[0]] for r in (mine, other)] == [[mine.id], [other.id]]
    assert quality_frame([mine, other])["configuration"].tolist() == ["upl", 'upl {"dim": 32}']
    for run in (mine, other):
        (run.path/"history.jsonl").write_text("")
        (run.path/"environment.json").write_text("[]")
    merge_rows(tmp_path/RECORDS, map(record_of, (mine, other)))
    rows = read_archive(tmp_path/RECORDS)
    assert archived_config(rows[other.id]) == other.config and archived_config(rows[mine.id]) == mine.config
    archived, = [ArchivedRun(other.config, tmp_path/RECORDS, rows[other.id])]
    assert [r.id for r in finished_runs([archived])[0]] == [other.id]


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
@pytest.mark.parametrize("text", ['{"preset":', "[]"], ids=["cut", "list"])
def test_one_damaged_folder_is_told_and_stops_nothing(tmp_path, name, text):
    mine, odd = put(tmp_path), put(tmp_path, "direct")
    for run in (mine, odd):
        for more in ("history.jsonl", "environment.json"): (run.path/more).write_text("[]"*(more[0] == "e"))
    (odd.path/name).write_text(text)
    assert [r.id for r in finished_runs([mine])[0]] == [mine.id] and finished_runs([mine])[1] == [odd.id]
    said: list = []
    assert [r.id for r in finished_in(tmp_path)[0]] == [mine.id] and [*finished_in(tmp_path)[1]] == [odd.id]
    (mine.path/"metrics.json").write_text("{}")
    assert pack_store(tmp_path, say=said.append)["left_out"] == [odd.id] and name in said[0]
    with pytest.raises(ConfigError, match="no run .* the domain 'market'"): pack_store(tmp_path, roots=dict(market=[]))


@pytest.mark.parametrize("mark, found", [("", True), ("-start0123abcd", True), ("-answers0123abcd", True),
                                         ("-0123abcd", False)], ids=["plain", "start", "answers", "folder"])
def test_a_start_and_answers_are_no_folder_of_images(tmp_path, mark, found):
    domain = target_of(put(tmp_path, mark=mark), tmp_path, lambda name, tracks: {})
    assert (domain is not None and domain.name == "campus") == found


def test_runs_that_the_code_no_longer_names_so_are_told(tmp_path):
    mine = put(tmp_path)
    put(tmp_path, name="f"*16)                                                      # made with other defaults
    gone = dict(mine.config.stated, method="a_method_that_is_gone")
    put(tmp_path, name="e"*16, config=gone)
    put(tmp_path, name="d"*16, config=dict(mine.config.stated, method_args={"an_argument_that_is_gone": 1}))
    found, outdated = finished_runs([mine])
    assert [r.id for r in found] == [mine.id] and outdated == ["d"*16, "e"*16, "f"*16]


def test_quality_frame_has_the_last_round_of_pseudo_labels_only(tmp_path):
    rounds = [dict(epoch=1, silhouette=.1, ari=.2, noise_ratio=.5),
              dict(epoch=3, silhouette=.3, ari=.4, noise_ratio=.25)]
    upl = put(tmp_path, "upl", method_args={"moco": False}, rounds=rounds, mAP=.625)
    frame = quality_frame([upl, put(tmp_path, "oracle", rounds=rounds), put(tmp_path, "direct")])
    assert len(frame) == 1
    line = frame.iloc[0]
    assert line["run"] == upl.id and line["configuration"] == 'upl {"moco": false}' and line["mAP"] == 62.5
    assert (line["SC"], line["ARI"], line["noise %"]) == (.3, .4, 25.) and np.isnan(line["DBI"])
    assert list(quality_frame([]).columns) == list(frame.columns)
    tracked = put(tmp_path, "upl", method_args={"moco": False}, rounds=rounds, tracks=True)
    assert quality_frame([upl, tracked])["configuration"].tolist() == ['upl {"moco": false}',
                                                                       'upl {"moco": false} with tracks']


# ---- correlation

def naive_ranks(values):
    return [sum(b < a for b in values) + (sum(b == a for b in values) + 1)/2 for a in values]

def naive_pearson(x, y):
    mx, my = sum(x)/len(x), sum(y)/len(y)
    cov = sum((a - mx)*(b - my) for a, b in zip(x, y))
    return cov/math.sqrt(sum((a - mx)**2 for a in x)*sum((b - my)**2 for b in y))

@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=15)
       .filter(lambda v: all(len(set(c)) > 1 for c in zip(*v))))
def test_correlations_agree_with_naive_ones(pairs):
    x, y = map(list, zip(*pairs))
    c = correlation_table(x, y, np.arange(len(x)), resamples=5)
    assert c["pearson"] == pytest.approx(naive_pearson(x, y), abs=1e-9)
    assert c["spearman"] == pytest.approx(naive_pearson(naive_ranks(x), naive_ranks(y)), abs=1e-9)


def test_interval_is_that_of_resampled_runs():
    rng = np.random.default_rng(1)
    x = rng.normal(size=30)
    y = x + rng.normal(size=30)
    c = correlation_table(x, y, np.arange(30), resamples=2000)
    draws = [rng.integers(30, size=30) for _ in range(600)]
    low, high = np.quantile([naive_pearson(x[d].tolist(), y[d].tolist()) for d in draws], [.025, .975])
    assert c["pearson_low"] == pytest.approx(low, abs=.06) and c["pearson_high"] == pytest.approx(high, abs=.06)
    assert c["spearman_low"] < c["spearman"] < c["spearman_high"]


def test_copies_of_a_configuration_are_no_further_witnesses():
    rng = np.random.default_rng(2)
    x, y, names = rng.normal(size=9), rng.normal(size=9), np.array(list("abcdefghi"))
    once, thrice = correlation_table(x, y, names), correlation_table(*(np.repeat(v, 3) for v in (x, y, names)))
    assert thrice["runs"] == 27 and thrice["configurations"] == 9
    for key in ("spearman", "spearman_low", "spearman_high", "pearson_low", "pearson_high"):
        assert thrice[key] == pytest.approx(once[key], abs=1e-9)
    alone = correlation_table(np.repeat(x, 3), np.repeat(y, 3), np.arange(27))
    assert alone["pearson_high"] - alone["pearson_low"] < once["pearson_high"] - once["pearson_low"]


def test_correlation_says_what_it_cannot_say():
    few = correlation_table(np.arange(FEWEST - 1.), np.arange(FEWEST - 1.), np.arange(FEWEST - 1))
    assert few["spearman"] == pytest.approx(1) and np.isnan(few["spearman_low"])
    assert "no evidence of anything" in correlation_in_words("SC", few)
    constant = correlation_table(np.ones(8), np.arange(8.), np.arange(8))
    assert np.isnan(constant["spearman"]) and "no correlation" in correlation_in_words("SC", constant)
    none = correlation_table([], [], np.array([]))
    assert none["runs"] == 0 and "no correlation" in correlation_in_words("ARI", none)
    with pytest.raises(DataError, match="finite"): correlation_table([1., np.nan], [1., 2.], ["a", "b"])
    with pytest.raises(DataError, match="one of each"): correlation_table([1., 2.], [1., 2.], ["a"])


@pytest.mark.parametrize("measure, sign, said", [
    ("SC", 1, "higher mAP"), ("SC", -1, "*lower* mAP"),
    ("DBI", -1, "higher mAP"), ("DBI", 1, "*lower* mAP"), ("noise %", -1, "higher mAP")])
def test_words_know_which_way_is_better(measure, sign, said):
    c = dict(runs=9, configurations=9, spearman=sign*.8, spearman_low=sign*.8 - .1, spearman_high=sign*.8 + .1)
    assert said in correlation_in_words(measure, c) and "evidence that better" in correlation_in_words(measure, c)
    assert "no evidence that the two" in correlation_in_words(measure, {**c, "spearman_low": -.9, "spearman_high": .9})


def test_every_measure_names_a_score_of_a_clustering():
    scores = true_label_scores(np.eye(6) + .1, split([1, 1, 2, 2, 3, 3], [0, 1]*3))
    assert {key for key, *_ in QUALITY.values()} <= set(scores)


# ---- entropies

def test_normalised_entropy_agrees_with_a_naive_loop():
    p = np.random.default_rng(0).dirichlet(np.ones(7), size=20)
    naive = [-sum(v*math.log(v) for v in row)/math.log(7) for row in p.tolist()]
    assert np.allclose(normalised_entropy(p), naive) and isinstance(normalised_entropy(p), np.ndarray)
    with pytest.raises(DataError, match="at least two"): normalised_entropy(np.ones((3, 1)))


def made_labels(seed, n=60, k=4, noise=True):
    rng = np.random.default_rng(seed)
    soft = torch.from_numpy(rng.dirichlet(np.full(k, .4), size=n))
    hard = soft.argmax(1)
    if noise: hard[:5] = -1
    return PseudoLabels(hard, soft, (hard >= 0).float(), torch.eye(k)), rng.integers(1, k + 1, n)


def test_entropy_finds_wrong_labels_as_counted_pair_by_pair():
    labels, pids = made_labels(0)
    hard, u = labels.hard.tolist(), normalised_entropy(labels.soft).tolist()
    used = [i for i in range(60) if hard[i] >= 0]
    def majority(c):
        found = [pids[i] for i in used if hard[i] == c]
        return min(set(found), key=lambda p: (-found.count(p), p))
    right = [i for i in used if pids[i] == majority(hard[i])]
    wrong = [i for i in used if i not in right]
    wins = sum((u[w] > u[r]) + .5*(u[w] == u[r]) for w in wrong for r in right)
    x = entropy_scores(labels, pids)
    assert x["auc"] == pytest.approx(wins/len(wrong)/len(right)) and x["wrong"] == pytest.approx(len(wrong)/len(used))
    assert x["mean"] == pytest.approx(sum(u[i] for i in used)/len(used))
    assert x["certain"] == pytest.approx(sum(u[i] < .01 for i in used)/len(used))


def test_without_wrong_labels_there_is_nothing_to_find():
    labels, _ = made_labels(1)
    assert np.isnan(entropy_scores(labels, np.maximum(labels.hard.numpy(), 0) + 1)["auc"])


def test_agreement_does_not_depend_on_the_classes_names():
    labels, _ = made_labels(2)
    p = torch.tensor([2, 0, 3, 1])                                                  # class k is now called p[k]
    hard = torch.where(labels.hard >= 0, p[labels.hard], -1)
    order = p.argsort()
    renamed = PseudoLabels(hard, labels.soft[:, order], labels.weight, labels.centroids[order])
    same = label_agreement(labels, renamed)
    assert same["ari"] == pytest.approx(1) and same["gap"] < 1e-12
    other = made_labels(3)[0]
    both = [i for i in range(60) if labels.hard[i] >= 0 and other.hard[i] >= 0]
    gaps = [abs(normalised_entropy(labels.soft)[i] - normalised_entropy(other.soft)[i]) for i in both]
    found = label_agreement(labels, other)
    assert found["gap"] == pytest.approx(float(sum(gaps)/len(gaps))) and found["ari"] < .5


def people_in_cameras():
    g = torch.Generator().manual_seed(0)
    pid, cam = torch.arange(12).repeat_interleave(9), torch.arange(3).repeat_interleave(3).repeat(12)
    people, cameras = torch.randn(12, 8, generator=g)[pid], torch.randn(3, 8, generator=g)[cam]
    return F.normalize(people + .5*cameras + .4*torch.randn(108, 8, generator=g), dim=1), cam


def test_a_round_is_labelled_again_with_the_runs_own_arguments(tmp_path):
    x, cam = people_in_cameras()
    run = Run(RunConfig("tiny", "plaza", "campus", "upl", {"labels": {"center": False, "alpha": 2.}}), tmp_path)
    groups = two_stage_clusters(x, cam)
    cam_only_read = cam.numpy().copy(); cam_only_read.flags.writeable = False
    for changed in ({}, {"temperature": None}, {"alpha": None}):
        again = relabel_round(run, x, cam_only_read, groups, **changed)
        meant = mixture_labels(x, cam, groups, **{**dict(center=False, alpha=2.), **changed})
        assert torch.equal(again.hard, meant.hard) and torch.allclose(again.soft, meant.soft, atol=1e-5)
        assert torch.allclose(again.weight, meant.weight, atol=1e-5)


@pytest.mark.parametrize("method", ["dbscan", "upl_global", "oracle", "direct"])
def test_other_labels_cannot_be_made_again(method, tmp_path):
    x, cam = people_in_cameras()
    run = Run(RunConfig("tiny", "plaza", "campus", method), tmp_path)
    with pytest.raises(ConfigError, match=method): relabel_round(run, x, cam, cam)


def test_a_mixture_that_makes_the_hard_labels_cannot_be_made_again(tmp_path):
    x, cam = people_in_cameras()
    run = Run(RunConfig("tiny", "plaza", "campus", "upl", {"labels": {"components": 5}}), tmp_path)
    with pytest.raises(ConfigError, match="components=5"): relabel_round(run, x, cam, cam)


def test_partner_shares_count_partners_of_the_own_label():
    """Each pool by plain loops over images."""
    x, cam = people_in_cameras()
    hard = torch.arange(12).repeat_interleave(9)
    hard[::10] = -1
    labels = PseudoLabels(hard, None, (hard >= 0).float(), torch.zeros(12, 8))
    budget = Budget(1, identities=3, images=4)
    got = partner_shares(x, labels, cam.numpy(), budget, 2, steps=3, seed=5)
    half = sorted(np.random.default_rng(5).permutation(108)[:54].tolist())
    same = dict(batch=[], memory=[], all=[])
    for i, rows in enumerate(plan_batches(hard.numpy(), cam.numpy(), 3, 4, 3, 5).tolist()):
        pick = np.random.default_rng(seed_for(5, "partner", i)).integers(2, size=(12, 1))[:, 0]
        for name, pool in dict(batch=rows, memory=half, all=list(range(108))).items():
            for a, row in enumerate(rows):
                others = [m for m in pool if m != row]
                near = sorted(others, key=lambda m: -float(x[row] @ x[m]))
                same[name].append(hard[near[pick[a]]] == hard[row])
    for name, found in same.items(): assert got[name] == pytest.approx(np.mean(found), abs=.03), name
    assert 0 < min(got.values()) < max(got.values()) < 1


# ---- whom and what to show

@given(st.lists(st.tuples(st.integers(-1, 8), st.integers(0, 3)), min_size=1, max_size=40),
       st.integers(1, 9), st.integers(0, 3))
def test_most_seen_takes_nobody_seen_by_fewer_cameras_than_one_left_out(rows, people, seed):
    s = split(*zip(*rows))
    cameras = {p: len({c for q, c in rows if q == p}) for p, _ in rows if p >= 0}
    found = most_seen(s, people, seed).tolist()
    assert found == sorted(set(found)) and set(found) <= set(cameras) and len(found) == min(people, len(cameras))
    left = set(cameras) - set(found)
    if found and left: assert min(cameras[p] for p in found) >= max(cameras[p] for p in left)
    assert found == most_seen(s, people, seed).tolist()


def test_the_draw_among_equals_depends_on_the_seed_alone():
    s = split(np.arange(1, 101), np.zeros(100, int))
    one, two = most_seen(s, 20, 0), most_seen(s, 20, 1)
    assert set(one) != set(two) and one.tolist() != list(range(1, 21))
    with pytest.raises(DataError, match="at least one"): most_seen(s, 0)


@given(st.lists(st.tuples(st.sampled_from([0., .25, .5, .75, 1.]), st.integers(1, 12)), min_size=6, max_size=40),
       st.integers(1, 2))
def test_queries_follow_the_stated_rule(rows, each):
    ap, pids = map(np.array, zip(*rows))
    if len(set(pids)) < 3*each:
        with pytest.raises(DataError, match="too few"): choose_queries(ap, pids, each)
        return
    chosen, taken, median = choose_queries(ap, pids, each), set(), float(np.median(ap))
    costs = (("best", lambda i: -ap[i]), ("worst", lambda i: ap[i]), ("median", lambda i: abs(ap[i] - median)))
    for kind, cost in costs:
        meant = []
        for _ in range(each):
            i = min((i for i in range(len(ap)) if pids[i] not in taken), key=lambda i: (cost(i), i))
            meant.append(i); taken.add(pids[i])
        assert chosen[kind] == meant
    assert list(chosen) == ["best", "median", "worst"]


def test_top_matches_are_the_ranking_that_is_evaluated():
    rng = np.random.default_rng(0)
    query = split(rng.integers(1, 6, 12), rng.integers(0, 3, 12))
    gallery = split(rng.integers(-1, 6, 70), rng.integers(0, 3, 70))
    features = dict(query=torch.from_numpy(rng.normal(size=(12, 4))),
                    gallery=torch.from_numpy(rng.normal(size=(70, 4)).round(1)))
    features["gallery"][30:40] = features["gallery"][:10]                           # ties
    domain = Domain("made", query, query, gallery)
    ids = dict(query_pids=query.pids, query_camids=query.camids,
               gallery_pids=gallery.pids, gallery_camids=gallery.camids)
    scores = evaluate_retrieval(features["query"], features["gallery"], **ids)
    unit = {k: F.normalize(v, dim=1).numpy() for k, v in features.items()}
    for ap, q in zip(scores.ap, scores.evaluated):
        top = top_matches(features, domain, int(q), k=1000)
        left_out = (gallery.pids == query.pids[q]) & (gallery.camids == query.camids[q])
        meant = [g for g in range(70) if gallery.pids[g] != -1 and not left_out[g]]
        assert sorted(top["gallery"]) == meant and top["rank"].tolist() == list(range(1, len(meant) + 1))
        assert np.allclose(top["cosine"], [unit["query"][q] @ unit["gallery"][g] for g in top["gallery"]])
        assert (np.diff(top["cosine"]) <= 1e-12).all()
        assert top["match"].tolist() == [gallery.pids[g] == query.pids[q] for g in top["gallery"]]
        assert top["camid"].tolist() == gallery.camids[top["gallery"]].tolist()
        position = top["gallery"].tolist()
        ties = [(g, g + 30) for g in range(10) if g in position and g + 30 in position]
        assert all(position.index(g) < position.index(later) for g, later in ties)
        hits, precisions = 0, []
        for n, match in enumerate(top["match"], start=1):
            hits += match
            if match: precisions.append(hits/n)
        assert ap == pytest.approx(sum(precisions)/len(precisions))
        pd.testing.assert_frame_equal(top_matches(features, domain, int(q)), top[:5])


def test_a_preview_is_a_small_picture_and_closes_its_figure():
    for photos, kind in ((False, "PNG"), (True, "JPEG")):
        figure = plt.figure(figsize=(3, 2))
        figure.add_subplot().plot([0, 1])
        written = preview_figure(figure, dpi=50, photos=photos)
        with Image.open(io.BytesIO(written)) as picture:
            assert picture.format == kind and 100 < picture.width < 200
        assert not plt.fignum_exists(figure.number)


def test_label_facts_by_loops_and_from_the_record(tmp_path):
    config = RunConfig("tiny", "plaza", "campus", "upl", {"labels": {"k1": 3, "min_samples": 2}})
    run = get_run(config, device="cpu", store=tmp_path, progress=False)
    split = open_domain("campus", "tiny", None, tmp_path).train
    facts = label_facts(run, split)
    last = run.rounds(1)[-1]
    hard, weight = last["labels.hard"].tolist(), last["labels.weight"].double().tolist()
    owner = {}
    for label in set(hard) - {-1}:                                     # a label is right for its most frequent person
        people = [p for p, h in zip(split.pids.tolist(), hard) if h == label]
        owner[label] = max(sorted(set(people)), key=people.count)
    used = [i for i, h in enumerate(hard) if h >= 0]
    wrong = [owner[hard[i]] != split.pids[i] for i in used]
    assert facts["wrong labels"] == pytest.approx(sum(wrong)/len(used))
    for alpha in (1, 3, 10):
        w = [weight[i]**alpha for i in used]
        expected = sum(w)**2/sum(v*v for v in w)/len(w)
        assert facts[f"effective share, alpha {alpha}"] == pytest.approx(expected, abs=1e-6)
    assert pack_store(tmp_path)["left_out"] == []
    light, = archived_runs([config], [tmp_path/RECORDS], None, tmp_path)
    assert label_facts(light, split) == facts
