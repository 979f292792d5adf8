"""A method of one's own: neighbour votes against loops, and that a copy of its notebook is a method with a row in
Table 2."""
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from nbdev.export import nb_export

import upl_reid.methods
from upl_reid.core import ConfigError
from upl_reid.methods.example_neighbour_votes import neighbour_votes
from upl_reid.experiments.tables import describe_rows, method_rows
from upl_reid.experiments.config import RunConfig
from upl_reid.experiments.runs import get_run
from upl_reid.training.method import METHODS

ROOT = Path(__file__).resolve().parents[2]


@given(st.integers(0, 10**6), st.integers(4, 14), st.integers(1, 5))
def test_votes_are_the_double_loop(seed, n, k):
    g = torch.Generator().manual_seed(seed)
    x, labels, k = torch.randn(n, 3, generator=g,
                               dtype=torch.float64), torch.randint(-1, 3, (n,), generator=g), min(k, n - 1)
    got = neighbour_votes(x, labels, k).tolist()
    unit = [[v/sum(u*u for u in row)**.5 for v in row] for row in x.tolist()]
    for i in range(n):
        near = sorted((sum((a - b)**2 for a, b in zip(unit[i], unit[j])), j) for j in range(n) if j != i)[:k]
        want = sum(labels[i] >= 0 and labels[j] == labels[i] for _, j in near)/k
        assert got[i] == pytest.approx(float(want))


@pytest.mark.parametrize("k", [0, 4])
def test_voters_out_of_range(k):
    with pytest.raises(ConfigError, match=f"k={k}: from 1 to 3"):
        neighbour_votes(torch.eye(4), torch.zeros(4).long(), k)


def test_noise_has_no_vote_and_labels_are_the_baselines():
    g = torch.Generator().manual_seed(1)
    x = torch.nn.functional.normalize(torch.randn(8, 16, generator=g).repeat_interleave(12, 0)
                                      + 1.*torch.randn(96, 16, generator=g), dim=1)
    cam, args = torch.arange(3).repeat(32), dict(k1=10, min_samples=3, eps=.5)
    mine, base = (METHODS[m](torch.nn.Identity(), **args).relabel(x, cam, 0) for m in ("votes", "dbscan"))
    assert torch.equal(mine.hard, base.hard) and (mine.hard < 0).any()
    assert (mine.weight[mine.hard < 0] == 0).all() and 0 < mine.weight[mine.hard >= 0].mean() < 1


def test_a_copy_of_the_notebook_is_a_method_with_a_row(tmp_path):
    text = (ROOT/"nbs/methods/example_neighbour_votes.ipynb").read_text(encoding="utf-8")
    changes = {"default_exp methods.example_neighbour_votes": "default_exp methods.mine", "k: int = 8": "k: int = 5",
               '@register(\\"votes\\")': '@register(\\"mine\\")'}
    copy = text
    for old, new in changes.items(): copy = copy.replace(old, new)
    assert copy.count("mine") == 2
    (tmp_path/"mine.ipynb").write_text(copy, encoding="utf-8")
    nb_export(tmp_path/"mine.ipynb", lib_path=tmp_path/"upl_reid")
    upl_reid.methods.__path__.append(str(tmp_path/"upl_reid"/"methods"))
    try:
        assert method_rows()["mine"] == ("mine", {}) and RunConfig("tiny", "plaza", "campus", "mine").defaults["k"] == 5
        assert "votes" in describe_rows({"mine": ("mine", {})})["what it is"][0]
        run = get_run(RunConfig("tiny", "plaza", "campus", "mine"), store=tmp_path/"runs", progress=False)
        assert 0 < run.metrics["mAP"] <= 1 and run.labels["clusters"] >= 2
    finally:
        upl_reid.methods.__path__.pop(); METHODS.pop("mine", None); sys.modules.pop("upl_reid.methods.mine", None)
