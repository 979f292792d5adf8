"""Rows of the comparison, their verdicts, and the counts of the data table."""
import itertools, json

import numpy as np
import pandas as pd
import pytest
import torch

from upl_reid.core import ConfigError
from upl_reid.data.splits import Split
from upl_reid.data.benchmarks import domain_statistics
from upl_reid.experiments.tables import (
    Evaluation, explain_total, both_counts, budget_in_words, describe_rows, evaluate_again, evidence_in_words,
    images_per_pair, method_rows, one_direction, place_of_full, standing_in_words, tabulate_runs)
from upl_reid.experiments.config import load_methods, PRESETS, RunConfig
from upl_reid.experiments.runs import Run, open_domain
from upl_reid.core import write_tensors
from upl_reid.training.method import Method, register


@pytest.fixture
def newcomer():
    """A method that somebody has just written."""
    @register("newcomer")
    class Newcomer(Method):
        "Written a minute ago. Raises `DataError` for anything."
        needs_meta = True
    return "newcomer"


def test_a_new_method_has_its_row_by_itself(newcomer):
    before = [name for name in method_rows() if name != newcomer]
    plain = [name for name in method_rows() if not name.endswith(", tuned")]
    assert sorted(plain) == sorted(load_methods()) and method_rows()[newcomer] == (newcomer, {})
    assert before[-2:] == ["upl", "oracle"]
    assert list(method_rows())[-2:] == ["upl", "oracle"]            # it goes above the full model
    row = describe_rows({"mine": (newcomer, {"scale": 3.})}).iloc[0]
    assert row.tolist() == ["mine", "newcomer, scale=3.0", "Written a minute ago.",
                            "images and cameras of the target, held-out source people"]


def test_rows_follow_what_methods_are_given():
    rows = method_rows({"raw": ("dbscan", {"center": False})})
    assert list(rows)[0] == "direct"
    assert rows["raw"] == ("dbscan", {"center": False}) and rows["dbscan"] == ("dbscan", {})
    methods = load_methods()
    order = [(methods[m].needs_identities, methods[m].trains) for m, _ in rows.values()]
    assert order == sorted(order)
    for row, (method, args) in rows.items():
        RunConfig("tiny", "plaza", "campus", method, args)          # every row can be run
    text = describe_rows(rows).set_index("row")["trained on"]
    assert text["direct"] == "nothing more" and "identities" in text["oracle"] and "identities" not in text["upl"]
    tuned = {row.removesuffix(", tuned"): args for row, (_, args) in rows.items() if row.endswith(", tuned")}
    assert tuned == {name: methods[name].tuned() for name in ("mmt", "p2lr", "inclr", "cgc")} and all(tuned.values())
    with pytest.raises(ConfigError, match="no method 'dbscam'"): method_rows({"x": ("dbscam", {})})


@pytest.mark.parametrize("preset", PRESETS)
def test_the_budget_is_the_presets(preset):
    p, text = PRESETS[preset], budget_in_words(preset)
    batch = f"{p.adapt.identities} x {p.adapt.images} images"
    for part in (preset, p.backbone, f"{p.dim} dimensions", batch, f"{p.adapt.epochs} epochs of"): assert part in text
    assert (f"{p.adapt.steps} steps" in text) == (p.adapt.steps is not None)
    for target, longer in p.longer.items():
        steps = f"{longer.steps} steps" if longer.steps else "as many steps"
        assert target not in text
        assert f"(on {target} {longer.epochs} epochs of {steps}" in budget_in_words(preset, ["campus", target])
    assert "backbone as its row says, " in budget_in_words(preset, backbone="as its row says")
    other = budget_in_words(preset, network=dict(backbone="other", size="40x20", dim=32))
    for part in ("backbone other, 32 dimensions", "images of 40 x 20 pixels"): assert part in other


def fake(folder, method, ap, seed=0, source="plaza", target="campus"):
    """A run directory with just enough in it to stand in a table."""
    run = Run(RunConfig("tiny", source, target, method, {}, seed), folder/f"{method}-{len(list(folder.iterdir()))}")
    run.path.mkdir()
    metrics = dict(mAP=float(np.mean(ap)), ap=list(ap), pids=list(range(len(ap))), mINP=.5,
                   cmc={"1": .1, "5": .2, "10": .3}, seconds=1.)
    (run.path/"metrics.json").write_text(json.dumps(metrics))
    return run


def test_standing_by_hand(tmp_path, newcomer):
    value = {"direct": .2, "dbscan": .5, "newcomer": .55, "hybrid": .65, "upl": .6, "oracle": .7}
    runs = {(m, "plaza", "campus"): [fake(tmp_path, m, np.full(20, v) + d, seed) for seed, d in enumerate((-.01, .01))]
            for m, v in value.items()}
    place, = place_of_full(runs)
    figures = {k: pytest.approx(v) for k, v in place.items() if k in ("full", "direct", "oracle", "best")}
    assert figures == dict(full=60, direct=20, oracle=70, best=55)
    assert place["baseline"] == "newcomer"                          # hybrid is a part of the full model, so no baseline
    assert place["above"] == ["hybrid"] and place["free"] == 5
    assert place["gap"] == pytest.approx((5, 5, 5))
    words = standing_in_words(place)
    assert "80 % of the way" in words and "oracle - 3: does not hold, 7.0 mAP short" in words
    assert "lie 15.0 mAP. " in words and "hybrid has a higher mean mAP than upl" in words


def test_what_is_built_on_a_further_method_is_no_baseline(tmp_path):
    value = {"direct": .2, "dbscan": .5, "varied_light": .55, "upl": .6, "varied_light_upl": .65, "oracle": .7}
    runs = {(m, "plaza", "campus"): [fake(tmp_path, m, np.full(9, v))] for m, v in value.items()}
    assert place_of_full(runs)[0]["baseline"] == "varied_light"
    assert place_of_full(runs, beyond=["varied_light"])[0]["baseline"] == "dbscan"
    assert place_of_full(runs, "varied_light_upl")[0]["baseline"] == "upl"


def test_a_model_ranked_in_another_way_is_no_baseline(tmp_path):
    value = {"direct": .2, "dbscan": .5, "upl": .6, "oracle": .7}
    runs = {(m, "plaza", "campus"): [fake(tmp_path, m, np.full(9, v))] for m, v in value.items()}
    other = Evaluation(runs["direct", "plaza", "campus"][0], "centred", dict(mAP=.99, ap=[.99]*9))
    place, = place_of_full({**runs, ("direct, centred", "plaza", "campus"): [other]})
    assert place == place_of_full(runs)[0] and place["baseline"] == "dbscan" and not place["above"]


PLACE = dict(source="a", target="b", full=78., direct=30., oracle=80., baseline="x", best=70., gap=(8., 6., 10.),
             free=4, above=[])


@pytest.mark.parametrize("change, said, unsaid", [
    ({}, ["96 % of the way", "oracle - 3: holds", "baseline + 5: holds", "upl has the highest"],
     ["short", "above the oracle"]),
    (dict(full=77.), ["oracle - 3: holds"], []),
    (dict(full=76.9), ["oracle - 3: does not hold, 0.1 mAP short"], ["oracle - 3: holds"]),
    (dict(best=73.1), ["baseline + 5: does not hold, 0.1 mAP short"], ["above the oracle"]),
    (dict(best=76.), ["asks for a model above the oracle", "lie 4.0 mAP"], []),
    (dict(direct=80.), ["no way to measure"], ["% of the way"]),
    (dict(above=["p", "q"]), ["p; q have a higher mean mAP than upl"], ["upl has the highest"])])
def test_words_follow_the_numbers(change, said, unsaid):
    words = standing_in_words({**PLACE, **change})
    for part in said: assert part in words
    for part in unsaid: assert part not in words


def test_evidence_sorts_rows_by_their_interval(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.uniform(.3, .6, 60)
    groups = {"upl": base, "worse": base - .1 - .02*(np.arange(60) % 2), "better": base + .1 + .02*(np.arange(60) % 2),
              "same": base + .1*rng.permutation(np.repeat([-1, 1], 30))}
    runs = {(row, s, t): [fake(tmp_path, "upl", ap, 0, s, t)]
            for row, ap in groups.items() for s, t in (("plaza", "campus"), ("campus", "plaza"))}
    first, second = evidence_in_words(runs)
    assert first.startswith("**plaza→campus") and second.startswith("**campus→plaza")
    for words in (first, second):
        assert "Below it: worse (-11.0)" in words and "Above it: better (+11.0)" in words
        assert "difference: same (" in words and "another seed" in words
    two = {key: [g, fake(tmp_path, "upl", g.metrics["ap"], 1)] for key, (g,) in runs.items()}
    assert "Over 2 seeds" in evidence_in_words(two)[0] and "another seed" not in evidence_in_words(two)[0]


def average_precision(query, pid, cam, gallery, pids, cams):
    """Of one query, by a loop over the ranking."""
    ranked = [i for i in range(len(gallery)) if not (pids[i] == pid and cams[i] == cam) and pids[i] != -1]
    order = sorted(ranked, key=lambda i: -float(query @ gallery[i]))
    hits, total = 0, 0.
    for rank, i in enumerate(order, 1):
        if pids[i] == pid: hits += 1; total += hits/rank
    return total/hits


def test_another_ranking_is_the_same_model_with_other_scores(tmp_path):
    domain = open_domain("campus", "tiny", store=tmp_path/"store")
    generator = torch.Generator().manual_seed(0)
    drawn = lambda name: torch.randn(len(getattr(domain, name)), 8, generator=generator)
    features = {name: torch.nn.functional.normalize(drawn(name), dim=1) for name in ("query", "gallery")}
    run = fake(tmp_path, "direct", [.1, .2])
    write_tensors(run.path/"test.safetensors", features)
    runs = {("direct", "plaza", "campus"): [run], ("upl", "plaza", "campus"): [run]}
    got = evaluate_again(runs, {"again": ("direct", "centred")}, {"campus": domain}.__getitem__)
    assert [k[0] for k in got] == ["direct", "again", "upl"]
    again, = got["again", "plaza", "campus"]
    assert again.id == run.id and again.how == "centred"
    assert again.metrics["seconds"] == 1. and run.metrics["ap"] == [.1, .2]
    x = torch.cat([features["query"], features["gallery"]]).double().numpy()
    cams = np.concatenate([domain.query.camids, domain.gallery.camids])
    for c in set(cams): x[cams == c] = x[cams == c] - x[cams == c].mean(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    q, g = np.split(x, [len(domain.query)])
    gallery = g, domain.gallery.pids, domain.gallery.camids
    expected = [average_precision(q[i], domain.query.pids[i], domain.query.camids[i], *gallery) for i in range(len(q))]
    assert again.metrics["ap"] == pytest.approx(expected, abs=1e-9)
    assert again.metrics["mAP"] == pytest.approx(np.mean(expected))
    assert again.metrics["pids"] == domain.query.pids.tolist()
    text, numbers = tabulate_runs(got, ["mAP"])
    assert set(numbers["run"]) == {run.id} and text["configuration"].tolist() == ["direct", "again", "upl"]


def test_one_direction_keeps_its_own_columns():
    table = pd.DataFrame([["r", 1, 2, 3]], columns=["configuration", "a→b mAP", "ba→b mAP", "b→a mAP"])
    assert one_direction(table, "a", "b").columns.tolist() == ["configuration", "mAP"]
    assert one_direction(table, "b", "a")["mAP"].tolist() == [3]


def test_account_finds_the_parts_of_a_total():
    parts = dict(train=12, query=3, gallery=20)
    for n in range(1, 4):
        for names in itertools.combinations(parts, n):
            words = explain_total(sum(parts[k] for k in names), parts)
            taken = words.split(", without")[0]
            assert all((k in taken) == (k in names) for k in parts)
            assert ("without" in words) == (n < 3) and ("(35 in all)" in words) == (n < 3)
    assert explain_total(5, parts).startswith("5 is not a sum of any of 12 train, 3 query, 20 gallery")
    assert explain_total(2000, {"one": 1500, "other": 500}) == "2,000 = 1,500 one + 500 other"


def test_both_counts_of_a_domain_by_hand(tmp_path):
    domain = open_domain("plaza", "tiny", store=tmp_path)
    row = both_counts(domain_statistics(domain)).iloc[0]
    files = {name: len(getattr(domain, name).paths) for name in ("train", "query", "gallery")}
    learn, test = set(domain.train.pids.tolist()), set(domain.query.pids.tolist())
    assert (row["ids: train"], row["ids: train + test"]) == (len(learn), len(learn) + len(test))
    assert row["images: train + gallery"] == files["train"] + files["gallery"]
    assert row["images: train + query + gallery"] == sum(files.values())
    assert {k: row[k] for k in files} == files and row["cameras"] == len({int(c) for c in domain.train.camids})


def test_images_per_pair_counts_by_a_loop():
    rng = np.random.default_rng(1)
    split = Split([f"{i}.jpg" for i in range(300)], rng.integers(-1, 12, 300), rng.integers(0, 4, 300))
    people = np.array([-1, 2, 3, 5, 99])
    seen = {}
    for p, c in zip(split.pids.tolist(), split.camids.tolist()):
        if p in (2, 3, 5): seen[p, c] = seen.get((p, c), 0) + 1
    assert sorted(images_per_pair(split, people).tolist()) == sorted(seen.values())
    assert len(images_per_pair(split, np.array([99]))) == 0
