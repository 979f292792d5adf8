"""A path that begins with ~ means the home folder, wherever a path comes in."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from upl_reid.cli import main
from upl_reid.components.encoder import read_weights
from upl_reid.core import ConfigError, given_path, project_root, read_tensors, write_atomic, write_tensors
from upl_reid.data.benchmarks import load_domain
from upl_reid.data.decoding import read_image
from upl_reid.data.own_crops import list_images, read_folder, read_table, write_table
from upl_reid.data.synthetic import write_domain
from upl_reid.deployment.gallery import Gallery
from upl_reid.experiments.config import load_plugins
from upl_reid.experiments.runs import open_domain, store_root, weights_mark


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A home folder with two pictures in it, and another working folder in which nothing may appear."
    home, other = tmp_path/"home", tmp_path/"elsewhere"
    for camera in ("a", "b"):
        (home/"crops"/camera).mkdir(parents=True)
        Image.new("RGB", (20, 40), (200, 20, 20)).save(home/"crops"/camera/"1.png")
    other.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(other)
    yield home
    assert not list(other.iterdir()), "a path was taken literally"


def test_names_of_nobody_stay(home):
    assert given_path("~/x") == home/"x" and given_path("x/~") == Path("x/~")
    assert given_path("~no user is called this/x") == Path("~no user is called this/x")


def test_files_are_written_and_read_there(home):
    assert write_atomic("~/note.txt", "old") == home/"note.txt"
    write_tensors("~/t.safetensors", dict(a=torch.arange(3)))
    assert read_tensors("~/t.safetensors")[0]["a"].tolist() == [0, 1, 2] and (home/"t.safetensors").is_file()
    gallery = Gallery(4).add(np.eye(3, 4), list("abc"))
    assert gallery.save("~/g.safetensors") == home/"g.safetensors" and len(Gallery.load("~/g.safetensors")) == 3
    gallery.add(np.eye(1, 4), [home/"crops/a/1.png"]).save("~/g.safetensors")
    assert main(["forget", "~/g.safetensors", "~/crops/a/1.png"]) == 0 and len(Gallery.load("~/g.safetensors")) == 3


def test_pictures_and_tables_are_found_there(home):
    assert read_image("~/crops/a/1.png").size == (20, 40)
    assert len(list_images("~/crops")) == len(read_folder("~/crops")) == 2
    assert len(load_domain("folder", "~/crops").train) == 2
    write_table(list_images("~/crops"), "~/all.csv")
    assert len(read_table("~/all.csv")) == 2
    (home/"one.csv").write_text("path\n~/crops/a/1.png\n")
    assert read_table("~/one.csv").path.tolist() == [home/"crops/a/1.png"]


def test_networks_weights_and_modules_are_found_there(home, monkeypatch):
    folder = write_domain("plaza", "~/drawn", train_ids=3, test_ids=2, cameras=2, size=(32, 16))
    assert folder == home/"drawn/plaza" and len(load_domain("plaza", "~/drawn").train) > 0
    assert len(open_domain("campus", "tiny", store="~/store").train) and (home/"store/data").is_dir()
    save_file(dict(a=torch.ones(2)), home/"w.safetensors")
    assert read_weights("~/w.safetensors")["a"].tolist() == [1, 1]
    assert weights_mark(dict(weights="~/w.safetensors"), home/"digests.sqlite")
    (home/"nothing.py").write_text("")
    with pytest.raises(ConfigError, match="registers no method"): load_plugins("~/nothing.py")
    monkeypatch.setenv("UPL_REID_RUNS", "~/runs")
    assert store_root() == home/"runs"
    monkeypatch.setenv("UPL_REID_ROOT", "~/crops")
    assert project_root() == home/"crops"


def test_commands_write_there(home, capsys):
    assert main(["check", "~/crops", "--table=~/t.csv"]) in (0, 3) and (home/"t.csv").is_file()
    capsys.readouterr()
    assert main(["synth", "~/drawn", "--preset", "tiny", "--json"]) == 0
    assert (home/"drawn").is_dir() and json.loads(capsys.readouterr().out)
