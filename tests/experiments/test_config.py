"Configurations keep the names of the runs that earlier versions stored."
import json
from pathlib import Path

import numpy as np
import pytest

from upl_reid.core import ConfigError
from upl_reid.experiments.config import PRESETS, RENAMED, RunConfig, stored_names
from upl_reid.experiments.tables import method_rows
from upl_reid.methods.upl import UPL
from upl_reid.training.method import METHODS

# Pretraining, direct transfer, the oracle, MMT and P2LR: written by the flat version of the package (commit c8a1857),
# before folders and arguments had their present names. The others: since DBSCAN's numbers are chosen from the data.
STORED = json.loads((Path(__file__).parent/"stored_ids.json").read_text())


def test_every_row_of_every_preset_keeps_its_identifier():
    found = {f"{preset} pretrain": RunConfig(preset, "plaza", seed=2).id for preset in PRESETS}
    for row, (method, args) in method_rows().items():
        found |= {f"{preset} {row}": RunConfig(preset, "plaza", "campus", method, args).id for preset in PRESETS}
    variants = dict(as_written=UPL.as_written(), start={"meta_gradient_at": "start"}, meta_every={"meta_every": 5},
                    queue={"max_queue_share": .25, "queue": 512}, no_memory={"moco": False})
    variant = lambda args: RunConfig("demo", "campus", "plaza", "upl", args, 1).id
    found |= {f"demo upl {name}": variant(args) for name, args in variants.items()}
    assert {name: id for name, id in found.items() if name in STORED} == STORED


def test_a_renamed_argument_keeps_its_first_name_in_the_identifier_at_any_depth():
    now = {"a": {"max_queue_share": 1, "b": [{"meta_every": 2}]}}
    assert stored_names(now) == {"a": {"share": 1, "b": [{"meta_every": 2}]}}
    assert set(RENAMED) & set(UPL.arguments()) == {"meta_every", "meta_gradient_at", "max_queue_share"}


@pytest.mark.parametrize("old, new", [
    ({"share": .25}, {"max_queue_share": .25}), ({}, {}),
    ({"at": "start", "every": 5}, {"meta_gradient_at": "start", "meta_every": 5})])
def test_a_configuration_of_an_earlier_version_is_read(tmp_path, old, new):
    stored = dict(preset="tiny", source="plaza", target="campus", method="upl", method_args=old, seed=3)
    (tmp_path/"config.json").write_text(json.dumps(stored))
    config = RunConfig.read(tmp_path/"config.json")
    assert config == RunConfig("tiny", "plaza", "campus", "upl", new, 3) and config.method_args == new
    if old:
        with pytest.raises(ConfigError): RunConfig(**stored)


# ---- a method's own interval between clusterings

def test_an_interval_of_its_own_makes_another_run_and_another_budget():
    usual, same = (RunConfig("demo", "plaza", "campus", "inclr", args) for args in ({}, {"recluster": None}))
    other = RunConfig("demo", "plaza", "campus", "inclr", {"recluster": 4})
    assert usual.id == same.id != other.id and usual.budget == PRESETS["demo"].adapt
    assert other.budget.cluster_every == 4 and other.budget.epochs == usual.budget.epochs
    own = RunConfig("demo", "plaza", "campus", "inclr", {"refinement": "both"})      # a later argument of the class
    assert own.id == usual.id


@pytest.mark.parametrize("recluster", [0, True, 1.5], ids=str)
def test_an_interval_that_is_no_number_of_epochs_is_named(recluster):
    with pytest.raises(ConfigError, match=f"recluster={recluster!r}.*at least 1"):
        repr(RunConfig("demo", "plaza", "campus", "upl", {"recluster": recluster}).budget)


# ---- what may be given

def test_an_argument_that_shares_its_stored_name_counts_too():
    made = lambda **args: RunConfig("tiny", "plaza", "campus", "varied_light_upl", args).id
    usual = {k: v for k, v in METHODS["varied_light_upl"].arguments().items() if k in ("share", "max_queue_share")}
    assert len(usual) == 2 and made() == made(**usual)                            # both are stored as "share"
    assert len({made(), made(share=.1), made(share=.2), made(max_queue_share=.1)}) == 4


def test_an_argument_with_the_value_that_the_preset_sets_anyway_names_the_same_run():
    run = lambda **given: RunConfig("paper-p2lr", "dukemtmc", "market1501", "p2lr", given)
    assert run(clusters=500) == run() and run(clusters=500).arguments == run().arguments
    assert run(clusters=501).id != run().id != run(clusters=METHODS["p2lr"].arguments()["clusters"]).id
    upl = lambda **given: RunConfig("gpu", "plaza", "campus", "upl", given).id
    assert upl(momentum=PRESETS["gpu"].momentum) == upl() != upl(momentum=.99)


def test_numbers_of_numpy_are_numbers():
    made = RunConfig("tiny", "plaza", seed=np.int64(3), dim=np.int32(32))
    assert made == RunConfig("tiny", "plaza", seed=3, dim=32) and type(made.seed) is type(made.dim) is int


CIRCLE: dict = {}
CIRCLE["self"] = CIRCLE

@pytest.mark.parametrize("fields", [dict(size=64), dict(size=None), dict(seed=.5), dict(method_args=CIRCLE)],
                         ids=["number", "none", "seed", "circle"])
def test_what_is_no_size_seed_or_plain_value_is_named(fields):
    with pytest.raises(ConfigError): RunConfig("tiny", "plaza", "campus", "dbscan", **fields)


def test_a_later_argument_that_is_a_tuple_may_be_given_as_it_is(monkeypatch):
    class Steps(METHODS["dbscan"]):
        later_arguments = ("steps",)
        def __init__(self, encoder, steps=(1, 2), **kwargs): super().__init__(encoder, **kwargs)
    monkeypatch.setitem(METHODS, "steps", Steps)
    made = [RunConfig("tiny", "plaza", "campus", "steps", args) for args in ({}, dict(steps=(1, 2)), dict(steps=[1]))]
    assert made[0].id == made[1].id != made[2].id


@pytest.mark.parametrize("text", ['{"preset": "tiny", "wholly": 1, "method": "dbscan", "method_args": {}}', "{}", "[]",
                                  '{"preset":'], ids=["later", "empty", "list", "cut"])
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path/"config.json").write_text(text)
    with pytest.raises(ConfigError, match="config.json is no configuration"): RunConfig.read(tmp_path/"config.json")
