"""Build the documentation site into _site/, from the notebooks' stored outputs; nothing is executed or fetched.

usage: python docs/build.py [FOLDER]

The sources are first written to build/site/ in the repository's own layout (so that links between notebooks, reports
and pages stay as they are): notebooks as a reader should see them, a page for each folder, the API reference. Sphinx
then makes HTML of them; any warning is an error.
"""
import ast, configparser, json, posixpath, re, shutil, sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))
import api, cells, matrix

SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT/"settings.ini", encoding="utf-8")
BLOB = f"{SETTINGS['DEFAULT']['git_url']}/blob/{SETTINGS['DEFAULT']['branch']}"

# folders in reading order, then pages of docs/ in theirs; others follow
FOLDERS = ("data", "components", "evaluation", "training", "methods", "experiments", "deployment")
PAPERS = ("p2lr", "inclr", "cgc", "mspl") # folders of the tables of other papers, in nbs/ and in reports/
GUIDES = ("reading_paths", "questions", "run", "own_cameras", "python", "real_data", "results", "paper_map",
          "architectures")
ROOT_PAGES = {"README.md": "index.md", "nbs/index.ipynb": "index.md",
              "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md",
              "reports/index.html": "reports.md", "reports": "reports.md",
              "nbs": "docs/notebooks.md", "upl_reid": "api.md"}

def visible(path, below):
    "Whether no part of a path begins with a dot or an underscore."
    return not any(part.startswith((".", "_")) for part in path.relative_to(below).parts)

def in_order(names, first):
    "Names with those of `first` at the beginning, in its order."
    return sorted(names, key=lambda name: (first.index(name) if name in first else len(first), name))

NOTEBOOKS = {path.relative_to(ROOT).as_posix(): cells.read(path) for path in sorted((ROOT/"nbs").rglob("*.ipynb"))
             if visible(path, ROOT/"nbs") and path.name != "index.ipynb"}
MODULES = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT/"upl_reid").rglob("*.py"))
           if not path.name.startswith("_")}
REPORTS = sorted((path.relative_to(ROOT).as_posix() for folder in ("", *PAPERS) for path in
                  (ROOT/"reports"/folder).glob("*.md")), key=lambda name: (name.count("/"), [
                      *(key in name for key in ("/table", "/fig", "/claims")), True].index(True), name))
PAGES = [path.relative_to(ROOT).as_posix() for path in sorted(DOCS.glob("*.md"))]

def dotted(path): return path.removesuffix(".py").replace("/", ".")

def page_of(path):
    """The source, below build/site/, of the page that shows a file of the repository; None if no page does.
    Files of reports/ go along as they are."""
    if path in ROOT_PAGES: return ROOT_PAGES[path]
    if path in NOTEBOOKS or path in REPORTS or path in PAGES: return path
    if path in MODULES: return path.removesuffix(".py") + ".md"
    if re.fullmatch(r"nbs/\w+", path) and any(name.startswith(f"{path}/") for name in NOTEBOOKS): return f"{path}.md"
    return path if re.fullmatch(r"(reports|nbs|docs)/(\w+/)?[\w.]+\.(csv|png|svg|json)", path) else None

def relinked(markdown, here): return cells.relink(markdown, here, ROOT, page_of, BLOB)

def exported_to(notebook):
    "The module that a notebook exports to, as a path; None if it exports nothing."
    code = "\n".join(cells.text_of(cell) for cell in notebook["cells"] if cell["cell_type"] == "code")
    found = re.search(r"^#\s*\|\s*default_exp\s+(\S+)", code, re.M)
    return f"upl_reid/{found[1].replace('.', '/')}.py" if found else None

EXPORTS = {module: name for name, notebook in NOTEBOOKS.items() if (module := exported_to(notebook))}

def makes(notebook, report):
    "Whether a notebook writes a report; those of another paper have the paper's folder in both names."
    name = re.sub(r"(^|/)fig\d+[abc]*$", r"\1figures", report.removeprefix("reports/").removesuffix(".md"))
    name = re.sub(r"^two_methods_\w+$", "two_methods", name)
    return notebook in (f"nbs/{name}.ipynb", f"nbs/studies/{name}.ipynb")

def notebook_page(name):
    "A notebook as the site shows it, with links to its module's reference and to its source."
    notebook, folder = NOTEBOOKS[name], posixpath.dirname(name)
    module, links = exported_to(notebook), []
    if module in MODULES: links.append(f"API: [{dotted(module)}]({posixpath.relpath(module, folder)})")
    reports = [report for report in REPORTS if makes(name, report)]
    links += [f"Report: [{report}]({posixpath.relpath(report, folder)})" for report in reports]
    below = " · ".join([*links, f"[Notebook file]({BLOB}/{name})"])
    return json.dumps(cells.shown(notebook, name, ROOT, page_of, BLOB, below), ensure_ascii=False)

def align_numbers(text):
    "Tables with their columns of numbers aligned to the right, which keeps each number on one line."
    number = re.compile(r"\**[-+−±≈<>\d.,;:()%×\s]*(?:to[-+\d.,()\s]*)?\**")
    def aligned(match):
        rows = [line.strip().strip("|").split("|") for line in match[0].strip().split("\n")]
        values_of = lambda i: [row[i].strip() for row in rows[2:] if len(row) == len(rows[0]) and row[i].strip()]
        columns = [values_of(i) for i in range(len(rows[0]))]
        marks = ["---:" if column and all(map(number.fullmatch, column)) else "---" for column in columns]
        lines = match[0].split("\n")
        return "\n".join([lines[0], f"|{'|'.join(marks)}|", *lines[2:]])
    return re.sub(r"^\|.*\n\|(?:-+\|)+\n(?:\|.*\n?)+", aligned, text, flags=re.M)

def report_page(name):
    "A report with links to its numbers and notebook, and its provenance folded away."
    text = (ROOT/name).read_text(encoding="utf-8")
    stem, folder = Path(name).stem, posixpath.dirname(name)
    made_by = [n for n in NOTEBOOKS if makes(n, name)]
    own = re.compile(rf"{stem}([._]\w+)*\.csv")
    files = [path.name for path in sorted((ROOT/folder).glob(f"{stem}*.csv")) if own.fullmatch(path.name)]
    links = [f"Notebook: [{n}]({posixpath.relpath(n, folder)})" for n in made_by]
    links += [f"Numbers: [{file}]({file})" for file in files]
    title, _, body = text.partition("\n")
    body, _, origin = body.partition("\n## Provenance\n")
    found = {key: re.search(rf"^\| {key} \| (.*?) \|$", origin, re.M) for key in ("preset", "seeds")}
    said = " · ".join(f"{key} {m[1]}" for key, m in found.items() if m)
    summary = f"<summary>Provenance: {said or 'how it was made'}</summary>"
    details = f"\n\n<details class=\"provenance\">{summary}\n\n{origin}\n\n</details>\n" if origin else ""
    return relinked(f"{title}\n\n{' · '.join(links)}\n{align_numbers(body)}{details}", name)

def toctree(entries, caption=""):
    "A hidden toctree of (title, document) pairs; an empty title means the page's own."
    lines = [f"{title} <{document}>" if title else document for title, document in entries]
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["```{toctree}", *options, "", *lines, "```", ""])

def row_of(name, folder):
    "A notebook's row in a table: short name; title and summary."
    title, summary = cells.title_of(NOTEBOOKS[name])
    short = re.sub(r"^nbs/|(?<=/)\d+_|\.ipynb$", "", name)
    link = posixpath.relpath(name, folder)
    stop, words = "" if title.endswith("?") else ".", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", summary)
    short = short.replace("/", "/\u200b")      # a narrow column may break after the slash
    return f"| [{short}]({link}) | **{title}{stop}** {words} |"

def notebook_table(names, folder):
    "A table of notebooks, from their titles and summaries."
    return "\n".join(["| notebook | what it says |", "|---|---|", *(row_of(name, folder) for name in names)])

def short_title(name):
    "A notebook's title for the sidebar: what stands before a colon."
    return cells.title_of(NOTEBOOKS[name])[0].split(": ")[0].replace("<", "&lt;")

def section_page(title, what, names, folder="nbs"):
    "The page of a folder: what it is for, its notebooks, and its part of the sidebar."
    entries = [(short_title(name), posixpath.relpath(name, folder).removesuffix(".ipynb")) for name in names]
    return f"# {title}\n\n{what}\n\n{notebook_table(names, folder)}\n\n{toctree(entries)}"

def docstring(path):
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" if path.exists() else ""

def sections():
    "Pages of the folders of nbs/: {page: text}; tables are what lies at the root of nbs/ and exports nothing."
    folders = in_order({name.split("/")[1] for name in NOTEBOOKS if name.count("/") > 1}, FOLDERS)
    made = {}
    for folder in folders:
        names = [name for name in NOTEBOOKS if name.startswith(f"nbs/{folder}/")]
        what = docstring(ROOT/"upl_reid"/folder/"__init__.py") or SAID.get(folder, "")
        if (ROOT/"upl_reid"/folder).is_dir(): what += f" Reference: [upl_reid.{folder}](../upl_reid/{folder}.md)."
        made[f"nbs/{folder}.md"] = section_page(folder, what, names)
    made["nbs/tables.md"] = section_page("tables", SAID["tables"], tables())
    return made

SAID = {"tables": "The tables and figures of the paper, and its claims one by one. Each notebook runs with "
                  "`papermill nbs/NAME.ipynb reports/NAME.ipynb`; its parameters stand in its first code cell.",
        "studies": "Questions beyond the paper's tables: how hard the benchmark is, what departures from the paper "
                   "are worth, how fast the parts are, one's own cameras.",
        **{folder: f"The tables and figures of {folder.upper()}, run again: a notebook for each table with the "
                   "published rows beside ours and the differences between rows with their intervals, and one "
                   "notebook for all figures." for folder in PAPERS},
        "methods": "Each method is one class in one notebook: UPL-ReID, the systems it is compared with, baselines, "
                   "and an example to start a new method from."}

RESULTS = "nbs/tables.md", *(f"nbs/{folder}.md" for folder in PAPERS), "nbs/studies.md" # in reading order

def tables():
    "The notebooks of the paper's tables, figures and claims, in this order."
    found = [n for n in NOTEBOOKS if n.count("/") == 1 and n not in EXPORTS.values() and n != "nbs/references.ipynb"]
    return sorted(found, key=lambda n: (not re.search(r"/table\d", n), "claims" in n, n))

def notebooks_page():
    "All notebooks in reading order."
    first = [n for n in ("nbs/core.ipynb",) if n in NOTEBOOKS]
    last = [n for n in NOTEBOOKS if n in ("nbs/cli.ipynb", "nbs/references.ipynb")]
    inside = lambda page: [n for n in NOTEBOOKS if n.startswith(page.removesuffix(".md") + "/")]
    folders = {page: inside(page) for page in sections()} | {"nbs/tables.md": tables()}
    modules = [page for page in folders if page not in RESULTS]
    ordered = [*first, *(n for page in modules for n in folders[page]),
               *(n for page in RESULTS for n in folders.get(page, [])), *last]
    what = (f"{len(ordered)} notebooks in reading order. Each explains a step with its formula, exports it to the "
            "package and shows it with numbers; it uses only notebooks above it.")
    return f"# All notebooks\n\n{what}\n\n{notebook_table(ordered, 'docs')}\n"

def api_pages():
    "The API reference: {page: text} for each module, each folder, and all of it."
    made, folders = {}, in_order({name.split("/")[1] for name in MODULES if name.count("/") > 1}, FOLDERS)
    for path, file in MODULES.items():
        notebook, page = EXPORTS.get(path), path.removesuffix(".py") + ".md"
        shown = notebook and (cells.title_of(NOTEBOOKS[notebook])[0],
                              posixpath.relpath(notebook, posixpath.dirname(page)))
        made[page] = api.module_page(file, dotted(path.split("/", 1)[1]), shown, f"{BLOB}/{path}")
    def line(path, here):
        page = posixpath.relpath(path.removesuffix(".py") + ".md", here)
        return f"- [{dotted(path)}]({page}): {api.escaped(docstring(MODULES[path]))}"
    for folder in folders:
        own = [path for path in MODULES if path.startswith(f"upl_reid/{folder}/")]
        own = sorted(own, key=lambda path: EXPORTS.get(path, path))
        entries = [(Path(path).stem, f"{folder}/{Path(path).stem}") for path in own]
        what = docstring(ROOT/"upl_reid"/folder/"__init__.py")
        lines = "\n".join(line(path, "upl_reid") for path in own)
        made[f"upl_reid/{folder}.md"] = f"# {folder}\n\n{what}\n\n{lines}\n\n{toctree(entries)}"
    flat = [path for path in MODULES if path.count("/") == 1]
    entries = [("core", "upl_reid/core"), *((folder, f"upl_reid/{folder}") for folder in folders),
               *((Path(p).stem, p.removesuffix(".py")) for p in flat if Path(p).stem != "core")]
    lists = "\n".join(f"- [upl_reid.{title}]({document}.md)" for title, document in entries)
    what = ("Every public name of every module: parameters with type, default, and unit, shape or range; what is "
            "returned and raised. All names in alphabetical order: {ref}`genindex`.")
    made["api.md"] = f"# API reference\n\n{what}\n\n{lists}\n\n{toctree(entries)}"
    return made

def first_page():
    "README, the matrix of tables and figures, and the sidebar's four groups."
    text = re.sub(r"<!--.*?-->\s*", "", (ROOT/"README.md").read_text(encoding="utf-8"), flags=re.S)
    guides = in_order([Path(page).stem for page in PAGES], GUIDES)
    folders = [page.removesuffix(".md") for page in sections() if page not in RESULTS]
    single = lambda document: [document] if f"{document}.ipynb" in NOTEBOOKS else []
    code = [*single("nbs/core"), *folders, *single("nbs/cli")]
    name = lambda document: (Path(document).stem, document)
    groups = {"Start here": [("", f"docs/{guide}") for guide in guides],
              "The method in notebooks": [name(document) for document in code],
              "Results": [*(name(page.removesuffix(".md")) for page in RESULTS), ("reports", "reports")],
              "Reference": [("API", "api"), ("All notebooks", "docs/notebooks"), ("References", "nbs/references"),
                            ("Contributing", "CONTRIBUTING"), ("Changelog", "CHANGELOG")]}
    trees = "\n".join(toctree(entries, caption) for caption, entries in groups.items())
    return relinked(f"{text.rstrip()}\n\n{matrix.matrix()}", "README.md") + "\n\n" + trees

def reports_section():
    "The page of all reports."
    def line(name):
        title = (ROOT/name).read_text(encoding="utf-8").split("\n")[0].lstrip("# ")
        return title, name.removesuffix(".md"), f"- [{title}]({name})"
    lines = [line(name) for name in REPORTS]
    what = ("What was measured, written by the notebooks: tables and figures with the provenance of every number. "
            "`upl-reid reports` makes all of them again; `reports/index.html` holds them on one page.")
    items = "\n".join(item for _, _, item in lines)
    entries = [(title.split(": ")[0].replace("<", "&lt;"), document) for title, document, _ in lines]
    return f"# reports\n\n{what}\n\n{items}\n\n{toctree(entries)}"

def sources():
    "All sources of the site: {path below build/site/: text, or the file to copy}."
    read = lambda name: (ROOT/name).read_text(encoding="utf-8")
    made = {"index.md": first_page(), "reports.md": reports_section(), "docs/notebooks.md": notebooks_page(),
            **sections(), **api_pages()}
    made |= {name: notebook_page(name) for name in NOTEBOOKS} | {name: report_page(name) for name in REPORTS}
    made |= {name: relinked(read(name), name) for name in [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"]}
    files = [path for folder in ("reports", *(f"reports/{paper}" for paper in PAPERS), "nbs", "docs")
             for path in (ROOT/folder).glob("*.*")
             if path.suffix in (".csv", ".png", ".svg")]
    return made | {path.relative_to(ROOT).as_posix(): path for path in files}

def write_sources(stage):
    """Write the sources; an unchanged file keeps its time stamp, so that a second build is quick, and a file without
    a source is removed."""
    made = sources()
    for path in [path for path in stage.rglob("*") if path.is_file()]:
        if path.relative_to(stage).as_posix() not in made: path.unlink()
    for name, content in made.items():
        data, path = content.encode() if isinstance(content, str) else content.read_bytes(), stage/name
        if path.exists() and path.read_bytes() == data: continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

def main(args):
    "The exit status of Sphinx: 0 if every page was made without a warning."
    from sphinx.cmd.build import main as sphinx
    if len(args) > 1 or args and args[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    site, build = Path(args[0] if args else ROOT/"_site").resolve(), ROOT/"build"
    (build/"site").mkdir(parents=True, exist_ok=True)
    write_sources(build/"site")
    status = sphinx(["-q", "-W", "--keep-going", "-j", "auto", "-b", "html", "-d", str(build/"doctrees"),
                     "-c", str(DOCS), str(build/"site"), str(build/"html")])
    if status:
        shutil.rmtree(build/"doctrees", ignore_errors=True)      # or a second build would not repeat the warnings
        return status
    if (site/"searchindex.js").exists(): shutil.rmtree(site)     # an earlier site, with pages that may be gone
    unwanted = shutil.ignore_patterns(".buildinfo*", ".doctrees", ".nojekyll")
    shutil.copytree(build/"html", site, dirs_exist_ok=True, ignore=unwanted)
    (site/".nojekyll").touch()                                  # or GitHub Pages leaves out folders that begin with _
    print(f"{len(list(site.rglob('*.html')))} pages; open {site/'index.html'}")
    return 0

if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
