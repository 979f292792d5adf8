"""Files that are written: their permissions. Names of files: absolute, links not resolved."""
import os

import pytest
import torch

from upl_reid.core import absolute_name, file_mode, write_atomic, write_tensors

WRITERS = {"text": lambda path: write_atomic(path, "x"),
           "function": lambda path: write_atomic(path, lambda part: part.write_text("x")),
           "tensors": lambda path: write_tensors(path, dict(a=torch.ones(2)))}


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_new_file_has_the_umask_of_the_user(umask, tmp_path, write):
    assert write(tmp_path/"new").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o440])
def test_a_file_that_is_replaced_keeps_its_mode(umask, tmp_path, write, mode):
    (tmp_path/"old").write_text("old")
    (tmp_path/"old").chmod(mode)
    assert file_mode(write(tmp_path/"old")) == mode
    assert [p.name for p in tmp_path.iterdir()] == ["old"] and (tmp_path/"old").read_bytes() != b"old"


def test_what_a_stopped_process_left_does_not_set_the_mode(tmp_path):
    left = tmp_path/f".new.{os.getpid()}.part"
    left.write_text("half")
    left.chmod(0o600)
    wanted = file_mode(write_atomic(tmp_path/"other", "x"))
    assert file_mode(write_atomic(tmp_path/"new", "x")) == wanted != 0o600 and not left.exists()


def test_absolute_names_resolve_no_link(tmp_path, monkeypatch):
    (tmp_path/"store/inner").mkdir(parents=True)
    (tmp_path/"cam1").mkdir()
    (tmp_path/"store/0a1b.jpg").write_text("x")
    (tmp_path/"cam1/a.jpg").symlink_to(tmp_path/"store/0a1b.jpg")
    (tmp_path/"cam2").symlink_to(tmp_path/"store/inner")
    monkeypatch.chdir(tmp_path/"cam1")
    for given in ("a.jpg", "./a.jpg", "../cam1/a.jpg", tmp_path/"cam1/a.jpg", f"{tmp_path}//cam1/../cam1/./a.jpg"):
        assert absolute_name(given) == str(tmp_path/"cam1/a.jpg")
    assert absolute_name(tmp_path/"cam2/absent.jpg") == str(tmp_path/"cam2/absent.jpg")
    through = absolute_name(tmp_path/"cam2/../0a1b.jpg")                # abspath names tmp_path/0a1b.jpg, no file
    assert through == str(tmp_path/"cam2/../0a1b.jpg") and os.path.samefile(through, tmp_path/"store/0a1b.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_name("~/cam1/a.jpg") == str(tmp_path/"cam1/a.jpg")
