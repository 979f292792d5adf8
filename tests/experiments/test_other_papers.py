"""Published tables of the other papers against the papers' text where it is at hand, and how they stand beside ours."""
import os, re
from pathlib import Path
from types import SimpleNamespace

import pytest

from upl_reid.core import ConfigError
from upl_reid.experiments import other_papers as paper
from upl_reid.experiments.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [Path(os.environ.get("UPL_REID_PAPERS", "/nowhere")), ROOT/"shared"/"papers", ROOT.parent/"shared"/"papers"]
TABLES = {"p2lr": (paper.P2LR_TABLE1, paper.P2LR_TABLE2),
          "inclr": (paper.INCLR_TABLE1, paper.INCLR_TABLE2, paper.INCLR_TABLE3),
          "cgc": (paper.CGC_TABLE1, paper.CGC_TABLE2, paper.CGC_TABLE3),
          "mspl": (paper.MSPL_TABLE1, paper.MSPL_TABLE2, paper.MSPL_TABLE3, paper.MSPL_TABLE4)}
EACH = [(name, number) for name, tables in TABLES.items() for number in range(len(tables))]


def text_of(name):
    found = [folder/f"{name}.txt" for folder in FOLDERS if (folder/f"{name}.txt").exists()]
    if not found: pytest.skip(f"the text of {name} is not at hand; name its folder in UPL_REID_PAPERS")
    return found[0].read_text(encoding="utf-8", errors="replace")


def digits(text): return re.sub(r"\D", "", text)


def lines_with(row, text):
    "Lines of a paper's text that have the words of a row's name, whatever stands between them."
    if row.startswith("Constant"): return text.splitlines()      # its threshold is a column of its own
    if row == "Baseline+Ours†, cameras": row = "Baseline+Ours"
    words = re.findall(r"[A-Za-z0-9]+", re.sub(r"\(.*?'\d\d\)|, cameras", "", row))
    read = lambda line: line.lower().replace("partl", "part1")                       # as the scan has it
    return [line for line in text.splitlines() if all(word.lower() in read(line) for word in words)]


@pytest.mark.parametrize("name, number", EACH)
def test_every_published_number_stands_in_the_paper(name, number):
    text, table, rows = text_of(name), TABLES[name][number], {}
    for (row, transfer, _), value in table.items(): rows.setdefault((row, transfer), []).append(digits(str(value)))
    for (row, transfer), values in rows.items():
        # points that a scan has lost do not count: 712 is 71.2, and "91.8 932" the two numbers 91.8 and 93.2
        found = [line for line in lines_with(row, text) if "".join(values) in digits(line)
                 or set(values) <= {digits(word) for word in line.split()}]
        assert found, f"{name}, table {number + 1}: no line has {row} with {values} for {transfer}"


def test_a_changed_number_is_found(monkeypatch):
    changed = {**paper.P2LR_TABLE2, ("Base.", paper.D2M, "mAP"): 58.1}
    monkeypatch.setitem(TABLES, "p2lr", (paper.P2LR_TABLE1, changed))
    text_of("p2lr")
    with pytest.raises(AssertionError, match=r"Base\."): test_every_published_number_stands_in_the_paper("p2lr", 1)


@pytest.mark.parametrize("line", ["a | 1.0", "a | 1.0 2.0 3.0", "a 1.0 2.0"])
def test_a_line_of_another_width_is_refused(line):
    with pytest.raises(ConfigError, match="2 columns"): paper.parse_rows([paper.D2M], ("mAP", "R-1"), line)


def test_real_data_stand_beside_their_own_numbers_only():
    ours = [("market1501", "dukemtmc"), ("dukemtmc", "market1501"), ("market1501", "msmt17"), ("viper", "msmt17")]
    assert paper.published_transfers(paper.P2LR_TABLE1, ours) == [paper.M2D, paper.D2M, paper.M2S, None]
    assert paper.published_transfers(paper.CGC_TABLE1, ours[:2]) == [None, paper.MARKET]
    assert paper.published_transfers(paper.MSPL_TABLE1, [("mine", "yours")]) == [None]
    assert paper.published_transfers(paper.P2LR_TABLE2, ours[:1] + ours[2:3]) == [None, None]


def test_embedded_networks_stand_beside_the_data_sets_that_they_are_like_or_else_in_order():
    onward = [("plaza", "campus"), ("plaza", "station")]
    assert paper.published_transfers(paper.P2LR_TABLE1, onward) == [paper.M2D, paper.M2S]
    assert paper.published_transfers(paper.P2LR_TABLE2, onward) == [paper.D2M, None]
    assert paper.published_transfers(paper.P2LR_TABLE2, [*onward, ("campus", "plaza")]) == [None, None, paper.D2M]
    assert paper.published_transfers(paper.MSPL_TABLE1, onward) == [paper.M2D, None]
    assert paper.published_transfers(paper.CGC_TABLE2, onward) == [paper.MARKET, paper.MSMT]


def test_a_published_step_is_the_printed_difference():
    rows = "Baseline + P2LR (Ours)", "Base.+ML+MT (Baseline)"
    assert paper.published_step(paper.P2LR_TABLE2, rows, paper.D2M) == "*+6.5*"
    assert paper.published_step(paper.P2LR_TABLE2, rows, paper.M2D) == "-"
    assert paper.published_step(paper.P2LR_TABLE2, (None, rows[1]), paper.D2M) == "-"


@pytest.mark.parametrize("preset", ["demo", "paper-cgc"])
def test_networks_of_cgc_are_those_of_its_table_3(preset):
    "Rows with GeM and without IBN-a are, in this order, the ResNet, the deeper one and the ConvNeXt of the paper."
    networks = paper.cgc_networks(SimpleNamespace(preset=preset))
    source = "plaza" if preset == "demo" else "market1501"
    configs = {row: RunConfig(preset, source, **fields) for row, fields in networks.items()}
    plain = [row for row in networks if row.endswith(", GeM") and "IBN" not in row]
    assert all(configs[row].pooling == "gem" for row in plain) and len(plain) == 3
    backbones = [configs[row].backbone for row in plain]
    assert backbones == (["resnet18", "resnet34", "convnext_atto"] if preset == "demo" else
                         ["resnet50", "resnet101", "convnext_tiny"])
    assert [c.pooling for row, c in configs.items() if row.endswith(", mean")] == ["avg"]


def trained(ap, *processors):
    return SimpleNamespace(config=SimpleNamespace(seed=0), environments=[dict(hardware=p) for p in processors],
                           metrics=dict(mAP=sum(ap)/len(ap), ap=list(ap), pids=[0, 0, 1, 1]), id=f"{ap}")


@pytest.mark.parametrize("a, b, marked", [(["x"], ["x"], False), (["x"], ["y"], True), (["x", "x"], ["x"], False),
                                          (["x", "y"], ["x"], True)])        # two sessions: the run was resumed
def test_rows_of_different_processors_are_marked(a, b, marked):
    runs = {("p2lr", "plaza", "campus"): [trained((.6, .5, .7, .6), *a)],
            ("mmt", "plaza", "campus"): [trained((.5, .4, .7, .5), *b)]}
    text = paper.steps_table(runs, [("p2lr", "mmt")], {}, {})
    assert ("†" in text.splitlines()[2]) == ("different processors" in text) == marked
