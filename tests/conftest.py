"""The same for every test: no display, no downloads, the same examples in every run. And which tests are slow."""
import os

os.environ.setdefault("MPLBACKEND", "Agg")       # figures are drawn without a screen
os.environ.setdefault("HF_HUB_OFFLINE", "1")     # a test that needs ImageNet weights fails at once, not after a timeout
if "PYTEST_XDIST_WORKER" in os.environ: os.environ.setdefault("OMP_NUM_THREADS", "1")   # one thread a process under -n

import pytest
from hypothesis import settings

from slow import SLOW
from upl_reid.experiments.config import is_outside, PLUGINS
from upl_reid.training.method import METHODS

# Derandomised: a failure seen once is seen again. No deadline: a loaded machine is not a fault.
settings.register_profile("upl_reid", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("upl_reid")

def pytest_collection_modifyitems(items):
    for item in items:
        names = SLOW.get(item.nodeid.split("::")[0].removeprefix("tests/"), "").split()
        own = {"*", getattr(item, "originalname", item.name), *item.fixturenames}
        if own & set(names): item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def unload_plugins():
    "Methods from outside and plugins that a test loads are gone for the next one."
    methods, plugins = set(METHODS), set(PLUGINS)
    yield
    for name in [n for n, cls in METHODS.items() if n not in methods and is_outside(cls)]: del METHODS[name]
    for name in set(PLUGINS) - plugins: del PLUGINS[name]
