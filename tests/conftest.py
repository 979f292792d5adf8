"""The same for every test: no display, no downloads, the same examples in every run."""
import os

os.environ.setdefault("MPLBACKEND", "Agg")       # figures are drawn without a screen
os.environ.setdefault("HF_HUB_OFFLINE", "1")     # a test that asks for ImageNet weights fails at once instead of waiting for a network

from hypothesis import settings

# Derandomised: a failure seen once is seen again. No deadline: a loaded machine is not a fault.
settings.register_profile("upl_reid", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("upl_reid")
