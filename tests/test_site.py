"""The documentation site: built without a warning, complete, every link and anchor there, searchable, and nothing
fetched from elsewhere, in a real browser."""
import ast, functools, html, http.server, importlib.util, json, os, re, shutil, subprocess, sys, threading, urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT/"docs"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SAMPLE = ("index.html", "nbs/components/20_clustering.html", "nbs/components/70_srmo.html", "nbs/methods/upl.html",
          "nbs/table2.html", "nbs/claims.html",
          "reports/table2.html", "reports/claims.html", "upl_reid/components/memory.html", "docs/notebooks.html")

def script(name):
    "A script of docs/ as a module."
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS/f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

@pytest.fixture(scope="session")
def build(): return script("build")

@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The site, built once. Sources and doctrees stay in build/, so that a second build is quick; a lock keeps two test
    processes apart."""
    folder = tmp_path_factory.mktemp("site")/"site"
    (ROOT/"build").mkdir(exist_ok=True)
    with FileLock(ROOT/"build"/"site.lock"):
        result = subprocess.run([sys.executable, DOCS/"build.py", folder], cwd=ROOT, capture_output=True, text=True)
    said = f"{result.stdout[-3000:]}{result.stderr[-6000:]}"
    assert result.returncode == 0 and not result.stderr, f"python docs/build.py failed or warned:\n{said}"
    return folder

class Page(HTMLParser):
    "Ids, links (a) and what a browser loads by itself (img, script, link, iframe) of a page."
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[name] for name in ("id", "name") if a.get(name)}
        if tag == "a" and a.get("href"): self.links.append(a["href"])
        if a.get("src"): self.loads.append(a["src"])
        if tag == "link" and a.get("href") and a.get("rel") in ("stylesheet", "preload", "icon", "modulepreload"):
            self.loads.append(a["href"])

@pytest.fixture(scope="session")
def pages(site):
    files = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    return {path.relative_to(site).as_posix(): Page(path) for path in files}

def outside(target): return bool(re.match(r"(https?:)?//|mailto:|data:|javascript:", target))

def test_every_internal_link_and_anchor_leads_somewhere(site, pages):
    broken, checked = [], 0
    for name, page in pages.items():
        for target in page.links + page.loads:
            if outside(target): continue
            checked += 1
            path, _, anchor = urllib.parse.unquote(target).partition("#")
            path = path.split("?")[0]
            full = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
            if not (site/full).is_file(): broken.append(f"{name}: {target}")
            elif anchor and full in pages and anchor not in pages[full].ids:
                broken.append(f"{name}: {target} (no such place)")
    print(f"{checked} internal links on {len(pages)} pages")
    assert not broken, f"{len(broken)} of {checked} internal links are broken: {broken[:10]}"
    assert checked > 100*len(pages)**.5

def test_pages_load_nothing_from_elsewhere(pages):
    strangers = {f"{name}: {target}" for name, page in pages.items() for target in page.loads
                 if outside(target) and not target.startswith("data:")}
    assert not strangers, f"pages load from the network: {sorted(strangers)[:5]}"

def test_every_notebook_report_and_module_has_its_page(site, build):
    for name in [*build.NOTEBOOKS, *build.REPORTS, *build.PAGES]:
        assert (site/name).with_suffix(".html").is_file(), f"the site has no page of {name}"
    for name in build.MODULES: assert (site/name).with_suffix(".html").is_file(), f"the site has no reference of {name}"

def test_no_directive_shows_and_formulas_are_left_to_mathjax(site, build):
    for name in build.NOTEBOOKS:
        text = (site/name).with_suffix(".html").read_text(encoding="utf-8")
        directive = re.search(r'<pre>(<span></span>)?<span class="c1">#\s*\|\s*\w', text)
        assert not directive, f"{name}: a directive of nbdev shows on its page"
    assert (site/"_static"/"mathjax"/"tex-svg.js").stat().st_size > 1e6

# ---- without building

def test_the_table_of_notebooks_has_every_notebook(build):
    rows = set(re.findall(r"^\| \[[^]]+\]\(\.\./(nbs/[^)]+\.ipynb)\) \| \*\*\S.*\*\* \S", build.notebooks_page(), re.M))
    hidden = lambda path: any(part.startswith((".", "_")) for part in path.parts)
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT/"nbs").rglob("*.ipynb") if not hidden(path)}
    there -= {"nbs/index.ipynb"}
    assert rows == there, \
        f"missing in the table: {sorted(there - rows)}; begin the notebook with '# Title' and '> summary'"

def test_reference_has_every_public_name_and_parameter_comments(build):
    pages = build.api_pages()
    for path, file in build.MODULES.items():
        page, tree = pages[path.removesuffix(".py") + ".md"], ast.parse(file.read_text(encoding="utf-8"))
        for name in build.api.public_names(tree):
            entry = re.search(rf"^:::+\{{py:(function|class|data)\}} {name}\b", page, re.M)
            assert entry, f"the reference of {path} lacks {name}"
    memory = pages["upl_reid/components/memory.md"]
    assert "| `camids` | `Tensor` |  | (B,) camera of each anchor |" in memory
    assert "**Returns** `tuple[Tensor, Tensor]`" in memory

SOURCE = '''__all__ = ["f", "C", "N"]
N = 3 # how many
def f(
    a: int, # first | one
    *, # and
    b=1.5, # in [0, 1]
): # nothing
    "Does <it>."
class C:
    "A class."
    x: int = 0 # field
    def m(self, y): # seconds
        "Method."
'''

def test_reference_reads_comments_defaults_and_classes(build):
    tree, comments = ast.parse(SOURCE), build.api.comments_of(SOURCE)
    f, c = tree.body[2], tree.body[3]
    assert build.api.parameters_of(f, comments) == [("a", "int", "", "first | one"), ("b", "", "1.5", "in [0, 1]")]
    assert build.api.signature(f) == "(a, *, b=1.5)" and r"first \| one" in build.api.function_entry(f, comments, "")
    assert r"Does \<it>." in build.api.prose(f)
    entry = build.api.class_entry(c, comments, "")
    assert "| `x` | `int` | `0` | field |" in entry and "{py:method} m(y)" in entry
    number = build.api.constants_of(tree.body[1])[0]
    assert ":value: 3" in build.api.constant_entry(*number, "")
    assert [name for name, _ in build.api.constants_of(ast.parse("C = A, B = 1, 2").body[0])] == ["C", "A", "B"]

def test_cells_are_shown_as_a_reader_needs_them(build):
    code = lambda text, *outputs: dict(cell_type="code", source=text, metadata={}, outputs=list(outputs))
    long = "#| export\ndef f():\n" + "\n".join(f"    x{i} = {i}" for i in range(20))
    cells = [dict(cell_type="markdown", source="# T\n\n> s", metadata={}), code("#| default_exp a.b"),
             code("#| export\nimport os"), code("import re\nplt.rcParams.update({})"),
             code("#| hide\nsecret"), code(long), code("#| echo: false\n1 + 1"), code("2 + 2\n# |a| is no directive")]
    shown = build.cells.shown(dict(cells=cells, metadata={}), "nbs/x.ipynb", ROOT, build.page_of, build.BLOB)["cells"]
    sources = [cell["source"] for cell in shown]
    assert [source.split("\n")[0] for source in sources] == ["# T", "import os", "def f():", "1 + 1", "2 + 2"]
    assert "# |a|" in sources[-1] and "import re" in sources[1]
    tags = [cell["metadata"].get("tags") for cell in shown[1:]]
    assert tags == [["hide-input"], ["hide-input"], ["remove-input"], []]
    assert shown[2]["metadata"]["mystnb"]["code_prompt_show"] == "f (21 lines)"

def test_links_lead_to_pages_or_to_the_published_repository(build):
    text = ("[a](table2.ipynb#runs) [b](../reports/table2.csv) [c](../upl_reid/core.py) [d](../tests/test_site.py) "
            "[e](../README.md) [f](https://example.org) `[g](table2.ipynb)`")
    expected = ("[a](table2.ipynb#runs) [b](../reports/table2.csv) [c](../upl_reid/core.md) "
                f"[d]({build.BLOB}/tests/test_site.py) [e](../index.md) [f](https://example.org) `[g](table2.ipynb)`")
    assert build.relinked(text, "nbs/claims.ipynb") == expected

def test_the_matrix_has_every_table_and_figure_and_no_cell_without_a_word():
    rows = script("matrix").rows()
    assert all(cell.strip() and cell.strip() != "-" for row in rows for cell in row)
    count = lambda kind: {paper: sum(row[0] == paper and row[1].startswith(kind) for row in rows)
                          for paper in ("UPL-ReID", "P2LR", "INCLR", "CGC", "MSPL")}
    assert count("Table") == {"UPL-ReID": 7, "P2LR": 2, "INCLR": 3, "CGC": 3, "MSPL": 4}
    assert count("Figure") == {"UPL-ReID": 8, "P2LR": 6, "INCLR": 4, "CGC": 10, "MSPL": 2}

def test_the_matrix_reads_reports_and_verdicts(tmp_path):
    made = script("matrix")
    for folder in ("nbs", "reports"): (tmp_path/folder/"p2lr").mkdir(parents=True)
    for name in ("nbs/p2lr/table1.ipynb", "nbs/p2lr/table2.ipynb"): shutil.copy(ROOT/name, tmp_path/name)
    before = [row[-1] for row in made.rows(tmp_path) if row[:2] == ("P2LR", "Table 1")]
    assert before == ["not made yet: run the notebook"]
    about = "| preset | demo |\n| seeds | 0, 1, 1000, 1001 |\n"
    for name in ("table1", "fig6a", "fig6bc"): (tmp_path/"reports/p2lr"/f"{name}.md").write_text(about)
    (tmp_path/"reports/claims_of_other_papers.csv").write_text(
        'claim,where,verdict\n1,"P2LR, Table 1",not reproduced\n1,"P2LR, Table 1",not reproduced\n'
        '2,"P2LR, Table 1",reproduced\n3,"P2LR, Tables 1-2",reproduced\n')
    found = {row[1]: row[-2:] for row in made.rows(tmp_path) if row[0] == "P2LR"}
    assert found["Table 1"] == ("reproduced: 2; not reproduced: 1", "[table1](reports/p2lr/table1.md) (demo, 2 seeds)")
    assert found["Table 2"] == ("reproduced: 1", "not made yet: run the notebook")
    assert found["Figure 6"][1] == ("[fig6a](reports/p2lr/fig6a.md) (demo, 2 seeds), "
                                    "[fig6bc](reports/p2lr/fig6bc.md) (demo, 2 seeds)")

def test_architectures_are_in_step_with_their_script():
    made = script("architectures")
    for name in made.PICTURES:
        assert (DOCS/f"architecture_{name}.svg").read_text(encoding="utf-8") == made.picture(name), \
            f"docs/architecture_{name}.svg is out of step; run: python docs/architectures.py"
        boxes = [made.place(box) for box in made.PICTURES[name][1].values()]
        apart = [a[0] + a[2] < b[0] or b[0] + b[2] < a[0] or a[1] + a[3] < b[1] or b[1] + b[3] < a[1]
                 for i, a in enumerate(boxes) for b in boxes[:i]]
        assert all(apart), f"two boxes of {name} overlap"


def test_the_pipeline_is_in_step_with_its_script():
    assert (DOCS/"pipeline.svg").read_text(encoding="utf-8") == script("pipeline").picture(), \
        "docs/pipeline.svg is out of step; run: python docs/pipeline.py"

def test_numbers_with_a_spread_are_those_of_the_reports():
    names = "table2", "table4", "benchmark_difficulty", "tracks", "deviations_from_paper"
    reports = "".join((ROOT/"reports"/f"{name}.md").read_text(encoding="utf-8") for name in names)
    for path in (ROOT/"README.md", DOCS/"results.md"):
        numbers = re.findall(r"\d+\.\d ± \d\.\d", path.read_text(encoding="utf-8"))
        wrong = [number for number in numbers if number not in reports]
        assert not wrong, f"{path.name} says {wrong}, which none of the reports {', '.join(names)} has"

def test_guides_link_to_files_that_exist():
    for path in DOCS.glob("*.md"):
        links = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
        targets = [link.split("#")[0] for link in links if not outside(link)]
        broken = [t for t in targets if t and not (path.parent/t).exists() and t != "notebooks.md"]
        assert not broken, f"docs/{path.name} links to {broken}, which do not exist"

def test_no_numbered_formula_is_wrapped_in_split(site):
    "MathJax shows an error where a tag stands inside `split`."
    wrong = [page.relative_to(site).as_posix() for page in site.rglob("*.html")
             if re.search(r"begin\{split\}(?:(?!end\{split\}).)*\\tag", page.read_text(encoding="utf-8"), re.S)]
    assert not wrong

# ---- in a browser

PROBE = """<!DOCTYPE html><meta charset="utf-8"><pre id="said"></pre><script>
const sleep = ms => new Promise(done => setTimeout(done, ms));
async function open(address, width) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 900px; border: 0`;
  await new Promise(done => { frame.onload = done; frame.src = address; document.body.append(frame); });
  const view = frame.contentWindow;
  if (view.MathJax?.startup?.promise) await view.MathJax.startup.promise;
  return [frame, view, view.document];
}
async function main() {
  const said = {pages: [], search: []};
  for (const width of [1366, 390]) for (const page of PAGES) {
    const [frame, view, d] = await open("/" + page, width), side = d.querySelector(".bd-sidebar-primary");
    said.pages.push({
      page, width, scroll: d.documentElement.scrollWidth, client: d.documentElement.clientWidth,
      body: d.body.scrollWidth, fetched: view.performance.getEntriesByType("resource").map(r => r.name),
      formulas: d.querySelectorAll("mjx-container").length, raw: d.querySelectorAll("span.math, div.math").length,
      broken: [...d.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src),
      links: side ? side.querySelectorAll("a").length : 0,
      errors: d.querySelectorAll("mjx-merror, [data-mml-node=merror]").length});
    frame.remove();
  }
  const [frame, view, d] = await open("/search.html?q=Jaccard", 1366);
  for (let i = 0; i < 100 && !d.querySelector("#search-results li a"); i++) await sleep(100);
  said.search = [...d.querySelectorAll("#search-results li a")].map(a => a.getAttribute("href"));
  document.getElementById("said").textContent = JSON.stringify(said);
}
main().catch(e => document.getElementById("said").textContent = JSON.stringify({error: String(e)}));
</script>"""

@pytest.fixture(scope="session")
def seen(site, tmp_path_factory):
    "What a browser finds on the sample pages, served on this machine, and which files the server did not have."
    if not BROWSER:
        reason = ("no browser on PATH (chromium, chromium-browser or google-chrome); install one, as in: "
                  "apt-get install chromium")
        if os.environ.get("CI"): pytest.fail(reason)
        pytest.skip(reason)
    missing, folder = [], tmp_path_factory.mktemp("browser")
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *a): pass
        def send_error(self, code, *a, **k): missing.append(self.path); super().send_error(code, *a, **k)
    (site/"probe.html").write_text(PROBE.replace("PAGES", json.dumps(SAMPLE)), encoding="utf-8")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{server.server_port}"
    try:
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                   "--disable-extensions", f"--user-data-dir={folder/'profile'}",
                   "--virtual-time-budget=120000", "--dump-dom", f"{origin}/probe.html"]
        environment = {**os.environ, "HOME": str(folder)}
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    finally:
        server.shutdown()
        (site/"probe.html").unlink()
    assert result.returncode == 0, f"the browser ended with status {result.returncode}:\n{result.stderr}"
    answer = re.search(r'<pre id="said">(.*?)</pre>', result.stdout, re.S)[1]
    said = json.loads(html.unescape(answer) or '{"error": "the page did not finish in its time"}')
    assert "error" not in said, said["error"]
    return said | dict(origin=origin, missing=missing)

def test_nothing_scrolls_sideways(seen):
    assert len(seen["pages"]) == 2*len(SAMPLE)
    for answer in seen["pages"]:
        where = f"{answer['page']} at {answer['width']} px"
        widest = max(answer["scroll"], answer["body"])
        assert widest <= answer["width"] == answer["client"], f"{where} is {widest} px wide"
        assert not answer["broken"], f"{where}: pictures not shown: {answer['broken']}"
        assert answer["links"] > 20, f"{where}: the sidebar has {answer['links']} links"

def test_the_browser_asks_only_this_machine(seen):
    own = (f"{seen['origin']}/", "data:")
    strangers = {name for answer in seen["pages"] for name in answer["fetched"] if not name.startswith(own)}
    missing = [path for path in seen["missing"] if path != "/favicon.ico"]
    assert not strangers and not missing, f"asked elsewhere: {strangers}; not there: {seen['missing']}"

def test_formulas_are_set(seen):
    for answer in seen["pages"]:
        formulas, raw, errors = (answer[key] for key in ("formulas", "raw", "errors"))
        assert formulas >= raw and not errors, \
            f"{answer['page']}: {formulas} of {raw} formulas are set, {errors} with an error"
    assert any(answer["formulas"] > 10 for answer in seen["pages"])

def test_search_finds_jaccard(seen):
    assert any("10_neighbours" in target for target in seen["search"]), \
        f"the search for 'Jaccard' finds {seen['search'][:10]}"
