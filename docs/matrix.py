"""The matrix of the front page: every table and figure of the five papers, whether it is rerun, with which verdict, and
where its report is. It is made from notebooks, reports and claims; a cell without an entry says why.

usage: python docs/matrix.py      (prints it as markdown)
"""
import ast, csv, json, re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = {"upl": "UPL-ReID", "p2lr": "P2LR", "inclr": "INCLR", "cgc": "CGC", "mspl": "MSPL"}
ROMAN = ("inclr", "cgc")                         # papers that number their tables I, II, III
LETTERS = ("0", "I", "II", "III", "IV")

# figures of UPL-ReID: what they show; report or picture that has it, section with its claims, or why it is not rerun
OWN_FIGURES = {
    1: ("flow of the method", "docs/pipeline.svg", None), 2: ("architecture", "docs/pipeline.svg", None),
    3: ("t-SNE of twenty people", "fig3", "4.1"), 4: ("entropies of the labels", "fig4", "4.1"),
    5: ("contrastive loss with and without memory", "table4", "4.2"),
    6: ("validation loss with and without mixup", "table5", "4.3"),
    7: ("loss and meta-loss with and without SRMO", "table6", "4.4"), 8: ("rankings", "fig8", None)}

NOTHING, DRAWING = "nothing is measured", "none: a drawing"

def title_of(path):
    "What a notebook's title says after its colon."
    cell = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    first = "".join(cell["source"]).split("\n")[0].lstrip("# ")
    return first.partition(": ")[2] or first

def figures_of(paper):
    "number -> (title, what the paper says, why it is not drawn from runs), read from the module without importing it."
    tree = ast.parse((ROOT/"upl_reid/experiments/figures.py").read_text(encoding="utf-8"))
    values = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)
              and isinstance(node.targets[0], ast.Name)}
    text = lambda node: ast.literal_eval(values[node.id] if isinstance(node, ast.Name) else node)
    found = values[f"{paper.upper()}_FIGURES"]
    return {key.value: (*map(text, call.args), "")[:3] for key, call in zip(found.keys, found.values)}

def claims(root):
    "(paper, place) -> Counter of verdicts, from the reports of claims; a report that is not made has none."
    found = {}
    for report, paper in (("claims", "UPL-ReID"), ("claims_of_other_papers", None)):
        path = root/"reports"/f"{report}.csv"
        if not path.exists(): continue
        rows = {row["claim"]: row for row in csv.DictReader(path.open(encoding="utf-8", newline=""))}
        for row in rows.values():
            own, place = (paper, row["where"]) if paper else row["where"].split(", ", 1)
            for part in places(place): found.setdefault((own, part), Counter())[row["verdict"]] += 1
    return found

def places(text):
    "The tables and sections that a claim's place names: 'Tables 4-6' are three."
    each = lambda m: ", ".join(f"Table {n}" for n in range(int(m[1]), int(m[2]) + 1))
    text = text.replace("Fig. ", "Figure ")
    several = re.sub(r"Tables (\w+), (\w+)", r"Table \1, Table \2", re.sub(r"Tables (\d)-(\d)", each, text))
    return list(dict.fromkeys(several.split(", ")))

def counts_in_words(counts):
    "Verdicts in numbers."
    return "; ".join(f"{verdict}: {n}" for verdict, n in counts.most_common())

def verdict_cell(found, paper, place, report):
    "Verdicts in numbers, or why there are none."
    counts = found.get((paper, place))
    if counts: return counts_in_words(counts)
    if any(own == paper for own, _ in found): return "no claim in numbers"
    return f"not judged yet: run [{report}](nbs/studies/{report}.ipynb)"

def report_cell(root, reports):
    "Links to the reports that are there with preset and seeds, or what makes them."
    there = [name for name in reports if (root/"reports"/f"{name}.md").exists()]
    if not there: return "not made yet: run the notebook"
    return ", ".join(f"[{Path(name).name}](reports/{name}.md) ({made_with(root, name)})" for name in there)

def made_with(root, name):
    "Preset and number of seeds of a report; a seed above 999 is of a second network."
    text = (root/"reports"/f"{name}.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (preset|seeds) \| ([^|(]+)", text, re.M))
    seeds = [n for n in map(int, re.findall(r"\d+", rows.get("seeds", ""))) if n < 1000]
    number = f", {len(seeds)} seed{'s'*(len(seeds) != 1)}" if seeds else ""
    return rows.get("preset", "no runs").strip() + number

def notebook_link(name): return f"[{name.removeprefix('nbs/').removesuffix('.ipynb')}]({name})"

def table_rows(root, paper, found):
    "The rows of a paper's tables."
    folder = root/"nbs"/("" if paper == "upl" else paper)
    for path in sorted(folder.glob("table[0-9].ipynb")):
        name, number = path.relative_to(root).as_posix(), int(path.stem[5:])
        label = f"Table {LETTERS[number] if paper in ROMAN else number}"
        judged = "claims" if paper == "upl" else "claims_of_other_papers"
        report = name.removeprefix("nbs/").removesuffix(".ipynb")
        yield (label, title_of(path), notebook_link(name), verdict_cell(found, NAMES[paper], label, judged),
               report_cell(root, [report]))

def own_figure_rows(root, found):
    "The rows of UPL-ReID's figures."
    for number, (title, where, section) in OWN_FIGURES.items():
        if where.endswith(".svg"):
            yield f"Figure {number}", title, "drawn by code: [architectures](docs/architectures.md)", NOTHING, DRAWING
            continue
        notebook = f"nbs/{'figures' if where.startswith('fig') else where}.ipynb"
        verdict = verdict_cell(found, "UPL-ReID", section, "claims") if section else "no claim in numbers"
        yield f"Figure {number}", title, notebook_link(notebook), verdict, report_cell(root, [where])

def figure_rows(root, paper, found):
    "The rows of another paper's figures; those without a claim have their numbers or words beside ours."
    notebook = f"nbs/{paper}/figures.ipynb"
    for number, (title, says, why) in figures_of(paper).items():
        label = f"Figure {number}"
        if why:
            ours = "architectures" in why
            drawn = "drawn by code: [architectures](docs/architectures.md)" if ours else f"not rerun: {why}"
            yield label, title, drawn, NOTHING, DRAWING if ours else "none: not rerun"
            continue
        names = sorted({path.stem for path in (root/"reports"/paper).glob(f"fig{number}*.md")
                        if re.fullmatch(rf"fig{number}[abc]*", path.stem)})
        printed = "numbers of the text stand beside ours" if re.search(r"\d\.\d", says) else "no numbers are printed"
        counts = found.get((NAMES[paper], label))
        yield (label, title, notebook_link(notebook), counts_in_words(counts) if counts else f"not judged: {printed}",
               report_cell(root, [f"{paper}/{name}" for name in names]))

def rows(root=ROOT):
    "All rows: paper, table or figure, what it shows, rerun, verdict, report."
    found, made = claims(root), []
    for paper in NAMES:
        figures = own_figure_rows(root, found) if paper == "upl" else figure_rows(root, paper, found)
        made += [(NAMES[paper], *row) for row in (*table_rows(root, paper, found), *figures)]
    return made

def matrix(root=ROOT):
    "The matrix as markdown."
    head = "paper", "table or figure", "what it shows", "rerun by", "verdicts of its claims", "report"
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ("---",)*len(head), *rows(root))]
    return f"## Five papers, table by table\n\n{SAID}\n\n" + "\n".join(lines) + "\n"

SAID = ("Each table and figure is rerun on the embedded benchmark by the notebook named here, with "
        "`papermill nbs/NAME.ipynb reports/NAME.ipynb`. None was rerun on the real "
        "data sets, which were not available: Market-1501 and DukeMTMC-reID have *plaza* and *campus* as counterparts, "
        "MSMT17 has *station*. The presets `paper`, `paper-p2lr`, `paper-inclr`, `paper-cgc` and `paper-mspl` run the "
        "same notebooks on the real ones ([how](docs/real_data.md)). A verdict is by the rules of "
        "[experiments/claims](nbs/experiments/80_claims.ipynb).")

if __name__ == "__main__": print(matrix())
