"""A tiny run and its model file, for all tests of this folder."""
import pytest

from upl_reid.deployment.embedder import Embedder
from upl_reid.deployment.match_calibration import Calibration
from upl_reid.experiments.config import RunConfig
from upl_reid.experiments.runs import get_run


@pytest.fixture(scope="session")
def store(tmp_path_factory): return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def run(store):
    return get_run(RunConfig("tiny", "plaza", "campus", "dbscan"), device="cpu", store=store, progress=False)


@pytest.fixture(scope="session")
def saved(run, tmp_path_factory):
    told = Calibration(10., -6., (.1, .2, .3, .4, .5))
    return Embedder.load(run, "cpu").calibrated(told).save(tmp_path_factory.mktemp("model")/"model.safetensors")
