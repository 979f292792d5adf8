"""Committed reports: no damage in their text, tables that agree with their own .csv, links and names that exist."""
import math, re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
REPORTS = sorted(p for folder in ("", "p2lr", "inclr", "cgc", "mspl") for p in (ROOT/"reports"/folder).glob("*.md")
                 if p.stem != "gpu")                                              # gpu.md: see test_gpu_check.py
NAMES = [path.relative_to(ROOT/"reports").with_suffix("").as_posix() for path in REPORTS]


def text_of(name): return (ROOT/"reports"/f"{name}.md").read_text(encoding="utf-8")
def frame_of(name): return pd.read_csv(ROOT/"reports"/f"{name}.csv", low_memory=False)


# ---- reading a report

def cells_of(line): return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables_of(text):
    "Every table as (heading or direction above it, frame of text); a table without column names is left out."
    found, above, lines = [], "", text.split("\n")
    for i, line in enumerate(lines):
        if (m := re.match(r"#+ (.*)", line)) or (m := re.fullmatch(r"\*\*(\S+→\S+)\*\*", line)): above = m[1]
        if not re.fullmatch(r"\|(---\|)+", line) or not any(cells_of(lines[i - 1])): continue
        body = []
        for row in lines[i + 1:]:
            if not row.startswith("|"): break
            body.append(cells_of(row))
        found.append((above, pd.DataFrame(body, columns=cells_of(lines[i - 1]))))
    return found


def direction_in(words):
    "(source, target) of a heading or column name; None if it names no direction."
    m = re.search(r"(\w+)→(\w+)", words)
    return m and (m[1], m[2])


def is_published(row): return row.startswith("*published")


# ---- damage in the text

DAMAGE = {
    "an array": r"\[\s*-?\d[\d.e+-]*(\s+-?\d[\d.e+-]*)+\s*\]|\b(array|tensor)\(|dtype",
    "no number": r"(?<![\w-])(nan|NaN|NaT|inf|Inf|None|<NA>)(?![\w-])",
    "an object": r"<(function|class|module|generator)\b|\bobject at 0x|\bnp\.(float|int|str)",
    "a format that was not filled in": r"\{[a-z_]+[:\[.!}]",
}


def damage(text):
    "Faults that show in the text alone; code and arguments in braces are left out."
    bare = re.sub(r"`[^`]*`|\{('|\").*?\}(?=[,|) ])", "", text)
    found = [f"{what}: {m[0]!r}" for what, pattern in DAMAGE.items() for m in re.finditer(pattern, bare)]
    width = 0
    for line in text.split("\n"):
        if not line.startswith("|"): width = 0
        elif width and len(cells_of(line)) != width: found.append(f"a row of another width: {line[:60]}")
        else: width = len(cells_of(line))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_text_has_no_damage(name): assert damage(text_of(name)) == []


@pytest.mark.parametrize("text", [
    "each of [0.76 1.24 0.3  1.5 ] steps", "[1 2]", "array([1.0])", "mAP nan", "| a | nan |", "it took inf s",
    "seeds None", "np.float64(0.5)", "<function f>", "after {steps:.1f} epochs", "| a | b |\n|---|---|\n| 1 |"])
def test_damage_is_found(text): assert damage(text) != []


@pytest.mark.parametrize("text", [
    "none of them", "upl, labels={'temperature': None, 'eps': 0.6}, share=1.0", "`{'temperature': None}`", "[9], 2025",
    "information", "[0, 1]", "| a | b |\n|---|---|\n| - | 2 |"])
def test_sound_text_is_no_damage(text): assert damage(text) == []


# ---- numbers against the csv

def mean_and_std(values, digits):
    "A cell as tables write it: mean ± standard deviation over seeds."
    values = np.asarray(values, dtype=float)
    if not len(values) or np.isnan(values).any(): return "-"
    return f"{values.mean():.{digits}f}" + (f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else "")


def digits_of(cell): return len(m[1]) if (m := re.match(r"[+-]?[\d,]+\.(\d+)", cell)) else 0


def seeds_of(frame, row, direction, measure, epoch=None):
    "Values over seeds, one for each seed; of a csv with epochs, of one epoch or those without."
    keep = (frame.configuration == row) & (frame.source == direction[0]) & (frame.target == direction[1])
    keep &= frame.measure == measure
    if "epoch" in frame: keep &= frame.epoch.isna() if epoch is None else frame.epoch == epoch
    return frame[keep].drop_duplicates("seed").set_index("seed").value


def difference_by_csv(frame, direction, ours, theirs):
    "Mean difference in mAP of two rows over the seeds of the first, as a cell writes it."
    ours, theirs = (seeds_of(frame, row, direction, "mAP") for row in (ours, theirs))
    return f"{(ours - theirs.reindex(ours.index)).mean():+.1f}"


def cells_with_place(text):
    "(row, direction, measure, cell) of every table by configuration; a measure without direction takes the heading's."
    for above, table in tables_of(text):
        if "configuration" not in table: continue
        for column in table.columns[1:]:
            direction, measure = direction_in(column) or direction_in(above), re.sub(r"^\S+→\S+ ", "", column)
            if direction is None: continue
            for row, cell in zip(table.configuration, table[column]):
                if not is_published(row): yield row, direction, measure, cell


def wrong_cells(text, frame):
    "Cells that are not the mean and spread of their csv, and differences that are not those of the means."
    found, seen = [], 0
    places = list(cells_with_place(text))
    measures = set(frame.measure)
    full = {d: row for row, d, measure, cell in places
            if measure == "ΔmAP" and cell == "" and not seeds_of(frame, row, d, "mAP").empty}
    for row, direction, measure, cell in places:
        if measure in measures:
            expected = mean_and_std(seeds_of(frame, row, direction, measure), digits_of(cell))
        elif measure == "ΔmAP" and cell:
            found += interval_faults(cell)
            cell, expected = cell.split(" ")[0], difference_by_csv(frame, direction, row, full[direction])
        else: continue
        seen += 1
        if cell != expected: found.append(f"{row}, {direction}, {measure}: {cell}, by the csv {expected}")
    return found if seen else ["no cell of a table was compared"]


def interval_faults(cell):
    "An interval is ordered and holds its value."
    value, low, high = map(float, re.fullmatch(r"([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)", cell).groups())
    return [] if low <= value <= high else [f"{cell}: the value lies outside its interval"]


BY_CONFIGURATION = ["table2", "table4", "table5", "table6", "tuning", "method_comparison", "deviations_from_paper",
                    *(name for name in NAMES if "/table" in name)]                # of the other papers


@pytest.mark.parametrize("name", BY_CONFIGURATION)
def test_tables_agree_with_their_csv(name): assert wrong_cells(text_of(name), frame_of(name)) == []


@pytest.mark.parametrize("name", [name for name in NAMES if "/table" in name])
def test_steps_of_the_other_papers_are_differences_of_their_csv(name):
    frame, seen = frame_of(name), 0
    for _, table in tables_of(text_of(name)):
        if "difference in mAP" not in table: continue
        for pair, *cells in table[table["difference in mAP"] != "*published*"].itertuples(index=False):
            for column, cell in zip(table.columns[1:], cells):
                if cell == "-": continue
                plain = cell.removesuffix(" †").strip("*")
                assert interval_faults(plain) == [], f"{name}, {pair}, {column}: {cell}"
                low, high = map(float, re.search(r"\((.*) to (.*)\)", plain).groups())
                assert (low > 0 or high < 0) == cell.startswith("**") or 0 in (low, high)
                assert plain.split(" ")[0] == difference_by_csv(frame, direction_in(column), *pair.split(" against "))
                seen += 1
    assert seen


CELL, DIFFERENCE = r"\| (\d+\.\d) ± (\d+\.\d) \|", r"\| ([+-]\d+\.\d) \(([+-]\d+\.\d) to ([+-]\d+\.\d)\) \|"


@pytest.mark.parametrize("pattern, changed", [
    (CELL, lambda mean, std: f"| {mean + 1:.1f} ± {std:.1f} |"),
    (CELL, lambda mean, std: f"| {mean:.1f} ± {std + .2:.1f} |"), (CELL, lambda mean, std: "| - |"),
    (DIFFERENCE, lambda value, low, high: f"| {(value + low)/2 + .1:+.1f} ({low:+.1f} to {high:+.1f}) |"),
    (DIFFERENCE, lambda value, low, high: f"| {value:+.1f} ({value + .1:+.1f} to {high:+.1f}) |")],
    ids=["mean", "deviation", "missing", "difference", "interval"])
def test_a_changed_number_is_found(pattern, changed):
    text = text_of("table4")
    first = re.search(pattern, text)
    new = changed(*map(float, first.groups()))
    assert new != first[0] and wrong_cells(text.replace(first[0], new, 1), frame_of("table4")) != []


SAID = re.compile(r"\*\*(\w+)→(\w+)\.\*\* (.*?) is ([\d.]+) mAP (above|below) (.*?) \(.*?interval (\S+ to [^;]+);")


def test_sentences_agree_with_the_differences_of_their_table():
    for name in ("table4", "table5", "table6", "deviations_from_paper", "method_comparison"):
        text, frame = text_of(name), frame_of(name)
        shown = {(d, cell) for _, d, measure, cell in cells_with_place(text) if measure == "ΔmAP"}
        said = SAID.findall(text)
        assert said, f"{name}.md has no sentence about a difference"
        for source, target, ours, size, side, theirs, interval in said:
            signs = "+-" if size == "0.0" else "+" if side == "above" else "-"
            cells = [f"{sign}{size} ({interval})" for sign in signs]
            where = f"{name}.md: {ours} is {size} {side} {theirs} ({interval}), {source}→{target}"
            if theirs == "direct transfer":                     # no column has this difference
                row = next(name for name in frame.configuration if name.lower() == ours.strip('"').lower())
                by_csv = difference_by_csv(frame, (source, target), row, theirs)
                assert any(c.startswith(by_csv) and not interval_faults(c) for c in cells), f"{where}, csv {by_csv}"
            else: assert any(((source, target), c) in shown for c in cells), f"{where} stands in no table"


def test_table1_agrees_with_its_csv():
    frame, compared = frame_of("table1"), 0
    for _, table in tables_of(text_of("table1")):
        by_split = "split" in table
        if not by_split and "fingerprint" not in table: continue
        for row in table.to_dict("records"):
            name = re.sub(r"[*]|published splits: | \(loaded\)", "", row.pop("domain", row.pop("data set", "")))
            split = row.pop("split", None)
            part = frame[(frame.domain == name) & (frame.split == split if by_split else frame.split.isna())]
            values = dict(zip(part["count"], part.value))
            for count, cell in row.items():
                if count == "fingerprint": continue
                cell, value = cell.strip("*").replace(",", ""), values[count.removesuffix(" ")]
                assert cell == f"{value:.{digits_of(cell)}f}", f"{name}, {split}, {count}: {cell}, by the csv {value}"
                compared += 1
    assert compared > 40


def test_table3_agrees_with_its_csv():
    frame, compared = frame_of("table3"), 0
    for above, table in tables_of(text_of("table3")):
        if "labels" not in table: continue
        for row in table.to_dict("records"):
            name, epoch = row.pop("labels"), row.pop("epochs")
            if is_published(name): continue
            for measure, cell in row.items():
                seeds = seeds_of(frame, name, direction_in(above), measure, int(epoch))
                assert cell == mean_and_std(seeds, digits_of(cell)), f"{above}, {name}, {epoch}, {measure}: {cell}"
                compared += 1
    assert compared > 100


def test_table7_agrees_with_its_csv():
    frame = frame_of("table7")
    values = frame[frame["round"].isna()].set_index(["configuration", "measure"]).value
    columns = {"parameters, M": ("parameters", 1e6), "extra parameters": ("extra_parameters", 1),
               "numbers in the memory": ("memory_numbers", 1), "kept, MiB": ("kept_MiB", 1),
               "working, MiB": ("working_MiB", 1),
               **{f"{p}, {u}": (f"{p}_{u}", 1) for p in ("forward", "step") for u in ("GMAC", "GFLOP")}}
    table = next(t for _, t in tables_of(text_of("table7")) if "parameters, M" in t and "configuration" in t)
    for row in table[~table.configuration.map(is_published)].to_dict("records"):
        for column, (measure, unit) in columns.items():
            cell, value = row[column].replace(",", ""), values[row["configuration"], measure]/unit
            shown = f"{value:.{digits_of(cell)}f}"
            assert cell == shown, f"{row['configuration']}, {column}: {cell}, by the csv {value}"


def test_speed_agrees_with_its_csv():
    frame = frame_of("speed")
    table = next(t for _, t in tables_of(text_of("speed")) if "figure" in t)
    assert len(table) == len(frame)
    for shown, row in zip(table.to_dict("records"), frame.to_dict("records")):
        for column, cell in shown.items():
            value = row[column]
            missing = isinstance(value, float) and math.isnan(value)
            fits = cell == "" if missing else (cell and math.isclose(float(cell), float(value), rel_tol=6e-4)
                                               ) if column.startswith("value") else cell == str(value)
            assert fits, f"{row['part']}, {row['figure']}, {column}: {cell!r}, by the csv {value!r}"


def test_benchmark_difficulty_agrees_with_its_csv():
    frame = frame_of("benchmark_difficulty")
    table = tables_of(text_of("benchmark_difficulty"))[0][1]
    for row in table.to_dict("records"):
        for column, cell in row.items():
            measure = re.sub(r", (mAP|%)$", "", column)
            here = (frame.network == row["network"]) & (frame.source == row["from"])
            values = frame[here & (frame.measure == measure)].value
            if len(values): assert cell == mean_and_std(values, 1), f"{row['from']}, {row['network']}, {column}: {cell}"
    assert {re.sub(r", (mAP|%)$", "", c) for c in table} >= set(frame.measure)


def close(cell, value, step): return cell == "-" if math.isnan(value) else abs(float(cell) - value) <= step/2 + 1e-9


def test_label_free_signs_agree_with_their_csv():
    frame, tables = frame_of("label_free_signs"), [t for _, t in tables_of(text_of("label_free_signs"))]
    for row in tables[0].to_dict("records"):
        part = frame[(frame.network == row["network"]) & (frame.row == row["row"])]
        for sign in tables[0].columns[2:]:
            assert close(row[sign], part[sign].mean(), .01), f"{row['row']}, {sign}: {row[sign]}"
    for row in tables[1].to_dict("records"):
        part = frame[(frame.network == row["network"]) & (frame.target == row["target"])]
        for sign in tables[1].columns[2:]:
            rank = part[["mAP", sign]].corr("spearman").iloc[0, 1]
            assert close(row[sign], rank,
                         .01), f"{row['network']}, {row['target']}, {sign}: {row[sign]}, by the csv {rank}"


def test_own_cameras_agrees_with_its_csv():
    frame, table = frame_of("own_cameras"), tables_of(text_of("own_cameras"))[0][1]
    assert list(frame.model) == list(table.model)
    for shown, row in zip(table.to_dict("records"), frame.to_dict("records")):
        for column, cell in shown.items():
            value = row[column]
            assert close(cell, value, .1) if isinstance(value,
                float) else cell == str(value), f"{row['model']}, {column}"


def test_figures_agree_with_their_csv():
    frame, text = frame_of("fig3"), text_of("fig3")
    assert f"{frame.image.nunique()} training images of {frame.pid.nunique()} people" in text
    frame, text = frame_of("fig8"), text_of("fig8")
    for chosen, group in frame.groupby("chosen"): assert f"{chosen} {group.match.sum()} of {len(group)}" in text
    frame, text = frame_of("fig4"), text_of("fig4")
    for (source, target, posterior), group in frame.groupby(["source", "target", "posterior"]):
        wrong = group[group.label == "wrong"].images.sum()/group.images.sum()
        line = next(l for l in text.split("\n") if l.startswith(f"**{source}→{target}, {posterior.split(',')[0]}.**"))
        assert f" {100*wrong:.0f} % of the labels are wrong" in line


# ---- claims

def claim_rows():
    "Number -> cells of a claim's row."
    rows = [row for _, t in tables_of(text_of("claims")) if "verdict" in t and "#" in t for row in t.to_dict("records")]
    return {int(row["#"]): row for row in rows}


def test_claims_are_numbered_and_have_the_verdicts_of_their_csv():
    rows, frame = claim_rows(), frame_of("claims")
    assert list(rows) == list(range(1, len(rows) + 1)) and set(frame.claim) == set(rows)
    for claim, verdict in frame[["claim", "verdict"]].drop_duplicates().itertuples(index=False):
        assert re.match(rf"\*\*{verdict}\b",
                        rows[claim]["verdict"]), f"claim {claim}: {rows[claim]['verdict']}, by the csv {verdict}"


def test_balance_of_claims_counts_the_verdicts():
    rows, text = claim_rows(), text_of("claims")
    balance = next(t for _, t in tables_of(text)
                   if list(t) == ["verdict", "number"]).set_index("verdict").number.astype(int)
    assert balance["all"] == len(rows) == balance.drop("all").sum()
    for verdict, number in balance.drop("all").items():
        kind = re.split(r" on |,", verdict)[0]
        assert number == sum(row["verdict"].startswith(f"**{kind}") for row in rows.values()), verdict
    with_runs = [row["verdict"] for row in rows.values() if row["rows"]]
    holds, fails = (sum(v.startswith(f"**{kind}") for v in with_runs) for kind in ("reproduced", "not reproduced"))
    assert f"{holds + fails} could be measured" in text
    assert f": {holds} hold there by their rule and {fails} do not" in text


def number_stands(value, text):
    "Whether a value, as it is or in percent, is one of a text's numbers, without its sign."
    value = abs(value)
    shown = {f"{factor*value:.{digits}f}" for factor in (1, 100) for digits in (1, 2, 3)}
    if value >= 10 or value == round(value): shown.add(f"{value:.0f}")
    percent = {f"{value:.0f}", f"{100*value:.0f}"} & set(re.findall(r"(?<![\d.])(\d+) %", text))
    return bool(percent or shown & set(re.findall(r"\d+(?:\.\d+)?", text)))


def measured_numbers():
    "The lines of the claims' numbers that have one; claims that arithmetic decides have none."
    return [n for n in frame_of("claims").itertuples() if not math.isnan(n.value)]


def test_a_figure_without_a_number_is_told():
    rows = claim_rows()
    for n in frame_of("claims").itertuples():
        if isinstance(n.figure, str) and math.isnan(n.value):
            assert "no share of epochs saved" in rows[n.claim]["found here"], n


@pytest.mark.parametrize("factor", [.8, .9, 1.1, 1.2])
def test_a_changed_number_of_a_claim_is_found(factor):
    "Some changed numbers are the number of another direction or seed."
    rows, numbers = claim_rows(), measured_numbers()
    kept = [n for n in numbers if number_stands(n.value*factor, rows[n.claim]["found here"])]
    assert len(kept) < .25*len(numbers)


def test_every_measured_number_of_a_claim_stands_in_its_row():
    rows = claim_rows()
    for n in measured_numbers():
        found = rows[n.claim]["found here"]
        assert number_stands(n.value, found), f"claim {n.claim}, {n.figure}, {n.source}→{n.target}: {n.value}"
        if n.figure == "ΔmAP":
            shown = f"{n.source}→{n.target} {n.value:+.1f} mAP ({n.low:+.1f} to {n.high:+.1f})"
            assert shown in found, f"claim {n.claim}: {shown} is missing"


# ---- links and names

OLD_NAMES = r"\b(bench|benchmark|departures|signs|systems|faults|book|verdicts)\.(md|csv|png|ipynb|html)\b|nbs/\d\d_"


def lost(text, folder):
    "Links, pictures and named files of a report that are not there, and names from before the move."
    found = [f"no {target}" for target in re.findall(r"\]\(([^)\s]+)\)", text)
             if not re.match(r"https?://|#", target) and not (folder/target.split("#")[0]).exists()]
    found += [f"no {path}" for path in re.findall(r"\bnbs/[\w/]+\.ipynb", text) if not (ROOT/path).exists()]
    for source, target in re.findall(r"papermill (\S+) (\S+?)[`\s]", text):
        if Path(source).name != Path(target).name: found.append(f"papermill {source} writes {target}")
    return found + [m[0] for m in re.finditer(OLD_NAMES, text)]


@pytest.mark.parametrize("name", NAMES)
def test_links_and_names_exist(name):
    assert lost(text_of(name), (ROOT/"reports"/name).parent) == []
    assert f"]({Path(name).name}.png)" in text_of(name), f"{name}.md does not show its own picture"
    for suffix in (".csv", ".png"):
        assert (ROOT/"reports"/f"{name}{suffix}").exists(), f"{name}.md without {name}{suffix}"


@pytest.mark.parametrize("text", ["![a](gone.png)", "[a](gone.md)", "see nbs/gone.ipynb", "see bench.md",
                                  "nbs/00_core.ipynb",
                                  "`papermill nbs/table4.ipynb reports/table5.ipynb`"])
def test_lost_files_are_found(text): assert lost(text, ROOT/"reports") != []
