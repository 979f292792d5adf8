"""Files that are written: their permissions. Names of files: absolute, links not resolved."""
import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from upl_reid.core import (absolute_name, ConfigError, file_mode, part_name, RunError, seed_for, write_atomic,
                           write_folder, write_tensors)

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
    left = part_name(tmp_path/"new")
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


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_the_file_behind_a_link_is_replaced(tmp_path, write):
    "Otherwise the old content, such as a vector that was to be forgotten, stays in the file behind the link."
    (tmp_path/"disk").mkdir()
    (tmp_path/"disk/real").write_text("old secret")
    (tmp_path/"link").symlink_to("disk/real")
    assert write(tmp_path/"link") == tmp_path/"link" and (tmp_path/"link").is_symlink()
    assert b"secret" not in (tmp_path/"disk/real").read_bytes()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["disk", "link", "real"]


@pytest.mark.parametrize("name", ["x"*255, "ü"*120 + ".csv", "人"*80 + ".csv"], ids=["ascii", "latin", "chinese"])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path, name):
    assert write_atomic(tmp_path/name, "a").read_text() == "a"


@pytest.mark.parametrize("name, says", [("x"*256, "choose a shorter name"), (".", "choose another name"),
                                        ("folder", "choose another name")], ids=["long", "dot", "folder"])
def test_a_name_that_cannot_be_written_says_why(tmp_path, name, says):
    (tmp_path/"folder").mkdir()
    with pytest.raises(RunError, match=f"cannot write .*; {says}"): write_atomic(tmp_path/name, "a")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_pipe_a_device_and_a_folder_stay_what_they_are(tmp_path):
    os.mkfifo(tmp_path/"pipe"); (tmp_path/"folder").mkdir(); (tmp_path/"link").symlink_to("pipe")
    for name in ("pipe", "folder", "link"):
        with pytest.raises(RunError, match=f"{name}, which is there and is no file; choose another name"):
            write_atomic(tmp_path/name, "a")
    assert stat.S_ISFIFO((tmp_path/"pipe").stat().st_mode) and not list((tmp_path/"folder").iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "link", "pipe"]


def test_threads_write_one_file_at_the_same_time(tmp_path):
    start = threading.Barrier(4)
    def write(part):
        start.wait(10)                                                  # all four temporary files are there
        part.write_text("whole")
    with ThreadPoolExecutor(4) as pool: list(pool.map(lambda _: write_atomic(tmp_path/"a", write), range(4)))
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path/"a").read_text() == "whole"


def test_what_a_stopped_process_left_is_no_part_of_a_new_folder(tmp_path):
    (left := part_name(tmp_path/"new")).mkdir()
    (left/"half").touch()
    write_folder(tmp_path/"new", lambda part: (part/"whole").touch())
    assert [p.name for p in tmp_path.rglob("*")] == ["new", "whole"]
    with pytest.raises(ConfigError, match="new exists"): write_folder(tmp_path/"new", lambda part: None)
    def full(part): raise OSError(errno.ENOSPC, "No space left on device", "source.jpg", None, str(part/"copy.jpg"))
    with pytest.raises(RunError, match=r"cannot write .*/other \(No space left on device\); free some space"):
        write_folder(tmp_path/"other", full)
    def gone(part): raise FileNotFoundError(errno.ENOENT, "No such file or directory", "source.jpg")
    with pytest.raises(FileNotFoundError, match="source.jpg"): write_folder(tmp_path/"other", gone)


def test_numbers_of_numpy_name_the_same_stream():
    assert seed_for(np.int64(3), "a", np.uint8(1)) == seed_for(3, "a", 1) != seed_for(1, "a", 3)
