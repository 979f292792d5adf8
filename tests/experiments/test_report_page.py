"""The page of all reports: findings first, nothing fetched, nothing lost, every link and picture there, right in a real
browser; and the command that makes it."""
import base64, concurrent.futures, csv, html, io, json, os, re, shutil, subprocess, sys, threading, time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from upl_reid import cli
from upl_reid.experiments import report_page
from upl_reid.core import ConfigError, DataError, RunError
from upl_reid.experiments.config import PLUGINS
from upl_reid.training.method import METHODS

ROOT = Path(__file__).resolve().parents[2]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# ---- a project with reports of every shape

MEASURES = ("SC", "DBI", "mAP", "R-1", "R-5", "R-10", "mINP", "ECE %")
DIRECTIONS = [f"{pair} {measure}" for pair in ("plaza→campus", "campus→plaza") for measure in MEASURES]
RUN_IDS = ", ".join(f"{i:016x}" for i in range(1, 40))
ORIGIN = f"## Provenance\n\n| | |\n|---|---|\n| preset | tiny |\n| seeds | 0, 1 |\n| runs | {RUN_IDS} |\n"


def row(name, *cells): return "| " + " | ".join([name, *cells]) + " |"


def wide_table():
    "More columns than a phone is wide."
    return "\n".join([row("configuration", *DIRECTIONS), "|---"*(len(DIRECTIONS) + 1) + "|",
                      row("direct transfer", *["-"]*4, *["41.0 ± 1.2"]*12),
                      row("full model, its name & <tag> a little too long for a narrow screen",
                          *["+1.5 (-0.3 to +3.1)"]*16),
                      row("*published: full model*", *["*85.2*"]*16)])


REPORTS = {
    "zeta": "# Ours & theirs\n\n"
            "Just words, <script>alert(1)</script> and [a page elsewhere](https://example.org/a?b=1&c=2).\n",
    "fig3": "# Figure 3: how labels change\n\n![curves of \"silhouette\" & noise](fig3.png)\n\n"
            f"## The same words\n\na\n\n## The same words\n\nb\n\n{ORIGIN}",
    "table2": f"# Table 2: both directions\n\n![bars of mAP](table2.png)\n\n{wide_table()}\n\n"
              f"See [Figure 3](fig3.md) and [data](../nbs/10_data.ipynb).\n\n{ORIGIN}",
    "claims": "# Claims\n\n" + row("claim", "published", "here") + "\n|---|---|---|\n"
              + row("a claim that goes on and on " * 6, "*12.5*", "1.7") + f"\n\n{'unbroken' * 40}\n\n{ORIGIN}",
}


def notebook(path, *code, title="A notebook", parameters='preset: str = "demo"\nseeds: str = "0"'):
    "Write a small notebook as papermill wants it."
    head = new_markdown_cell(f"# {title}\n\n> What it is.")
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    made = new_notebook(cells=[head, tagged, *map(new_code_cell, code)])
    made.metadata["kernelspec"] = dict(name="python3", display_name="python3", language="python")
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(made, path)


def project(root):
    "A project with REPORTS and the notebooks they link to."
    (root/"reports").mkdir(parents=True)
    for name in ("10_data", "table2", "figures", "claims", "methods/upl"):
        notebook(root/"nbs"/f"{name}.ipynb", title=f"The notebook {name}")
    for name, text in REPORTS.items():
        (root/"reports"/f"{name}.md").write_text(text, encoding="utf-8")
        (root/"reports"/f"{name}.csv").write_text("claim,verdict\n1,reproduced\n" if name == "claims" else "a,b\n1,2\n")
    for name, size in (("fig3", (990, 400)), ("table2", (300, 200))):
        Image.effect_noise(size, 90).save(root/"reports"/f"{name}.png")
    return root


@pytest.fixture(scope="module")
def reports(tmp_path_factory): return project(tmp_path_factory.mktemp("reports")/"project")/"reports"


@pytest.fixture(scope="module")
def made(reports): return report_page.reports_page(reports)


class Reader(HTMLParser):
    "Tags with their attributes and text, and whether every tag is closed in order."
    VOID = {"meta", "img", "br", "hr", "link", "input"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID: self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag, f"</{tag}> closes another tag"
    def handle_data(self, data): self.words.append((self.open[-1] if self.open else "", data))
    def all(self, *names): return [attrs for tag, attrs in self.tags if tag in names]
    def text(self): return "".join(data for tag, data in self.words if tag != "style")


def source_of(folder, target):
    "Whether the documentation site has a page for a link into it, which it builds from a notebook or writes itself."
    page = target.removeprefix("../_site/").removesuffix(".html")
    return page == "docs/notebooks" or any((folder/".."/f"{page}{kind}").exists() for kind in (".ipynb", ".md"))


def problems(text, folder):
    "What a reader without a network, or with this folder only, would miss on a page."
    page, found = Reader(text), []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    found += [f"id {name} twice" for name in set(ids) if ids.count(name) > 1]
    active = ("script", "link", "iframe", "object", "embed", "base", "video", "audio", "source")
    found += [f"tag {tag}" for tag, _ in page.tags if tag in active]
    found += [f"a script in {name}" for _, attrs in page.tags for name in attrs if name.startswith("on")]
    fetching = ("src", "srcset", "data", "poster", "background", "action")
    for tag, attrs in page.tags:
        found += [f"{tag} {name}={attrs[name][:40]}" for name in fetching
                  if name in attrs and not attrs[name].startswith("data:image/")]
        if (target := attrs.get("href")) is None: continue
        if tag != "a": found.append(f"{tag} href={target}")
        elif target.startswith("#"): found += [f"no place {target}"]*(target[1:] not in ids)
        elif target.startswith("../_site/"): found += [f"no page {target}"]*(not source_of(folder, target))
        elif not target.startswith("https://"): found += [f"no file {target}"]*(not (folder/target).exists())
    styles = "".join(data for tag, data in page.words if tag == "style")
    styles += "".join(attrs.get("style", "") for _, attrs in page.tags)
    return found + re.findall(r"url\(\s*['\"]?(?!data:)[^)]*\)|@import[^;]*", styles)


# ---- the document

def test_page_fetches_nothing_and_every_link_leads_somewhere(made, reports):
    assert problems(made, reports) == []


@pytest.mark.parametrize("fault, said", [
    ('<img src="https://example.org/a.png">', "img src"), ('<a href="#nowhere">a</a>', "no place"),
    ('<a href="gone.csv">a</a>', "no file"), ("<style>p { background: url(a.png) }</style>", "url("),
    ('<script src="a.js"></script>', "script"), ('<link rel="stylesheet" href="https://example.org/a.css">', "link"),
    ('<p id="top"></p>', "twice"), ('<p onclick="a()"></p>', "onclick")])
def test_the_check_of_the_page_notices_faults(made, reports, fault, said):
    assert any(said in problem for problem in problems(made.replace("</main>", f"{fault}</main>"), reports))


def test_every_report_is_there_in_order_with_its_files(made, reports):
    page = Reader(made)
    assert [attrs["id"] for attrs in page.all("section")] == ["table2", "fig3", "claims", "zeta"]
    links = {attrs["href"] for attrs in page.all("a")}
    assert links >= {f"#{name}" for name in REPORTS} | {f"{name}.csv" for name in REPORTS}
    assert links >= {f"../nbs/{name}.ipynb" for name in ("table2", "figures", "claims")}
    assert "../nbs/zeta.ipynb" not in links
    assert links >= {f"../_site/nbs/{name}.html" for name in ("table2", "figures", "claims", "10_data")}
    assert "../_site/nbs/zeta.html" not in links
    for text in ("Table 2: both directions", "Ours & theirs", "Just words", "preset tiny · seeds 0, 1",
                 "0000000000000027"): assert text in page.text()


def test_contents_name_every_section(made):
    contents = made.split("<nav")[1].split("</nav>")[0]
    assert re.findall(r'href="#(\w+)"', contents) == ["top", "table2", "fig3", "claims", "zeta"]


def test_pictures_are_the_files_and_have_words(made, reports):
    pictures = Reader(made).all("img")
    assert [p["alt"] for p in pictures] == ["bars of mAP", 'curves of "silhouette" & noise']
    for picture, name in zip(pictures, ("table2.png", "fig3.png")):
        data = base64.b64decode(picture["src"].removeprefix("data:image/png;base64,"), validate=True)
        assert data == (reports/name).read_bytes()
        with Image.open(io.BytesIO(data)) as image: assert image.size == (int(picture["width"]), int(picture["height"]))


def test_no_number_of_a_table_is_lost(made):
    body = made.split('<section id="table2">')[1].split("</section>")[0].split("<details")[0]
    cells = [html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", body)]
    lines = [line for line in wide_table().splitlines() if not line.startswith("|---")]
    assert cells == [cell.strip().strip("*") for line in lines for cell in line.strip("|").split("|")]
    assert body.count("<em>85.2</em>") == 16
    assert body.count('style="text-align:right"') == 16*4               # heads and cells of the columns of numbers


def test_html_in_a_report_stays_text(made):
    assert "<script" not in made and "<tag>" not in made and "&lt;script&gt;alert(1)&lt;/script&gt;" in made


def test_page_depends_on_files_alone(made, reports): assert report_page.reports_page(reports) == made


def test_published_figures_and_numbers_are_told_apart():
    numbers = ("0", "-0.3", "+1.2 (+0.3 to +2.1)", "81.0 ± 1.4", "*94.2*", "**94.2**", "12 %", "1,234", "8 min",
               "0.1 M", "—")
    words = ("", "mAP", "w/o MoCo memory", "plaza→campus", "2dc61f07f316", "Table 4", "-.-", "±", "python 3.11")
    for cell in numbers: assert report_page.is_number(cell), cell
    for cell in words: assert not report_page.is_number(cell), cell


@pytest.mark.parametrize("fault, said", [
    (dict(table2="no title\n"), "table2.md"),
    (dict(table2="# T\n\n![](fig3.png)\n"), "fig3.png"),
    (dict(table2="# T\n\n![words](gone.png)\n"), "gone.png"),
    (dict(table2="# T\n\n![words](https://example.org/a.png)\n"), "elsewhere"),
    (dict(table2="# T\n\n![words](zeta.csv)\n"), "zeta.csv")])
def test_a_report_that_cannot_be_shown_stops_the_page(tmp_path, fault, said):
    reports = project(tmp_path/"p")/"reports"
    for name, text in fault.items(): (reports/f"{name}.md").write_text(text)
    with pytest.raises(DataError, match=said): report_page.reports_page(reports)


def test_half_a_picture_stops_the_page(tmp_path):
    reports = project(tmp_path/"p")/"reports"
    (reports/"fig3.png").write_bytes((reports/"fig3.png").read_bytes()[:2000])
    with pytest.raises(DataError, match="fig3.png"): report_page.reports_page(reports)


# ---- the page of this repository

def test_committed_page_is_in_step_with_the_reports():
    index = ROOT/"reports"/"index.html"
    assert index.exists(), "reports/index.html is missing; run: upl-reid reports --page"
    assert index.read_text(encoding="utf-8") == report_page.reports_page(ROOT/"reports"), \
        "reports/index.html is out of step with the reports or the notebooks' titles; run: upl-reid reports --page"


def test_committed_reports_make_a_whole_page():
    text = report_page.reports_page(ROOT/"reports")
    assert problems(text, ROOT/"reports") == []
    sections = {attrs["id"] for attrs in Reader(text).all("section")}
    made = [path.relative_to(ROOT/"reports").with_suffix("").parts for path in (ROOT/"reports").rglob("*.md")]
    assert sections == {"-".join(parts) for parts in made if parts[0] not in ("local", "unfinished")}
    assert "$" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S), \
        "a formula in TeX, which the page does not set; write it in words or Unicode in the report"


def test_the_page_begins_with_verdicts_and_main_results():
    top = Reader(report_page.reports_page(ROOT/"reports").split("<main>")[1].split("<section")[0]).text()
    with (ROOT/"reports"/"claims.csv").open(encoding="utf-8", newline="") as file: rows = list(csv.DictReader(file))
    verdicts = dict(report_page.count_verdicts(ROOT/"reports"/"claims.csv"))
    assert sum(verdicts.values()) == len({row["claim"] for row in rows})
    assert set(verdicts) == {row["verdict"] for row in rows}
    for verdict, number in verdicts.items(): assert f"{number}{verdict}" in top
    with (ROOT/"reports"/"table2.csv").open(encoding="utf-8", newline="") as file: rows = list(csv.DictReader(file))
    for name, called in report_page.MAIN.items():
        wanted = dict(configuration=name, measure="mAP", source="plaza", target="campus")
        values = [float(row["value"]) for row in rows if wanted.items() <= row.items()]
        assert values and re.search(rf"{re.escape(called)}\s+{sum(values)/len(values):.1f} ", top), name


# ---- in a browser

PROBE = """<script>addEventListener("load", () => {
  const d = document, e = d.documentElement;
  const shown = x => { const b = x.getBoundingClientRect(); return b.width > 0 && b.height > 0 };
  const linear = x => x <= .03928 ? x/12.92 : ((x + .055)/1.055)**2.4;
  const luminance = c => {
    const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => linear(x/255));
    return .2126*v[0] + .7152*v[1] + .0722*v[2];
  };
  const ground = x => {
    for (; x; x = x.parentElement) {
      const c = getComputedStyle(x).backgroundColor;
      if (!/, 0\\)$/.test(c) && c != "transparent") return c;
    }
    return "rgb(255, 255, 255)";
  };
  const contrast = x => {
    const [a, b] = [luminance(getComputedStyle(x).color), luminance(ground(x))].sort((p, q) => q - p);
    return (a + .05)/(b + .05);
  };
  const all = s => [...d.querySelectorAll(s)];
  const boxes = "h1, h2, p, figcaption, .scroll, details, summary";
  const words = "p, a, th, td, figcaption, summary, summary span, nav a span, em";
  const published = "tr:has(> td:first-child > em:only-child) td";
  const plain = "tbody tr:not(:has(> td:first-child > em:only-child)) td";
  const start = x => x.outerHTML.slice(0, 80), colour = x => getComputedStyle(x).backgroundColor;
  const past = x => shown(x) && x.getBoundingClientRect().right > innerWidth + 1;
  parent.postMessage({
    width: innerWidth, scroll: e.scrollWidth, client: e.clientWidth, body: d.body.scrollWidth, text: d.body.innerText,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    broken: all("img").filter(i => !i.complete || !i.naturalWidth || !shown(i)).map(i => i.alt),
    pictures: all("img").length, headings: all("h2").filter(shown).map(h => h.innerText),
    outside: all(boxes).filter(past).map(start),
    boxed: all("div.scroll").filter(x => x.scrollWidth > x.clientWidth + 1).length,
    fetched: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith("data:")),
    faint: all(words).filter(x => shown(x) && contrast(x) < 4.5).map(start),
    numbers: all("td[style*=right]").map(x => getComputedStyle(x).textAlign),
    published: all(published).map(colour), plain: all(plain).map(colour)}, "*");
})</script>"""


def browse(folder, url, *flags):
    "What the browser prints for a page."
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
               "--disable-extensions", f"--user-data-dir={folder/'profile'}", *flags, url]
    environment = {**os.environ, "HOME": str(folder)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, f"{' '.join(command)} ended with status {result.returncode}:\n{result.stderr}"
    return result.stdout


def looked_at(text, folder, widths, *flags):
    "What a browser reports about a page in windows of some widths, each a frame of one document."
    seen = text.replace("<details>", "<details open>").replace("</body>", f"{PROBE}</body>")
    srcdoc = html.escape(seen)
    frames = "".join(f'<iframe srcdoc="{srcdoc}" style="width: {width}px; height: 900px; border: 0"></iframe>'
                     for width in widths)
    listen = ("<script>const all = []; addEventListener('message', m => { all.push(m.data); "
              "document.querySelector('pre').textContent = JSON.stringify(all) })</script>")
    page = f'<!DOCTYPE html><meta charset="utf-8"><pre></pre>{listen}{frames}'
    (folder/"frames.html").write_text(page, encoding="utf-8")
    shown = browse(folder, (folder/"frames.html").as_uri(), "--virtual-time-budget=4000", "--dump-dom", *flags)
    answers = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", shown, re.S)[1]))
    said = {answer["width"]: answer for answer in answers}
    assert sorted(said) == sorted(widths), f"asked for windows of {widths} px, got {sorted(said)}"
    return said


@pytest.fixture(scope="module")
def browser():
    if BROWSER: return BROWSER
    reason = ("no browser on PATH (chromium, chromium-browser or google-chrome); install one, as in: "
              "apt-get install chromium")
    if os.environ.get("CI"): pytest.fail(reason)
    pytest.skip(reason)


@pytest.mark.parametrize("which", ["every shape", "this repository"])
def test_a_browser_shows_the_page_at_every_width(browser, made, which, tmp_path):
    text = made if which == "every shape" else report_page.reports_page(ROOT/"reports")
    expected = [html.unescape(re.sub(r"<[^>]+>", "", title)) for title in re.findall(r"<h2>(.*?)</h2>", text)]
    for width, answer in looked_at(text, tmp_path, [390, 1280]).items():
        widest = max(answer["scroll"], answer["body"])
        assert widest <= width, f"{width} px: the page is {widest} px wide"
        assert answer["outside"] == [], f"{width} px: past the edge: {answer['outside'][:3]}"
        assert answer["broken"] == [] and answer["pictures"] == text.count("<img "), \
            f"{width} px: pictures not shown: {answer['broken']}"
        assert answer["headings"] == expected and answer["fetched"] == [] and not answer["dark"]
        assert answer["faint"] == [], f"{width} px: too little contrast to read: {answer['faint'][:3]}"
        assert set(answer["numbers"]) <= {"right"} and not set(answer["published"]) & set(answer["plain"])
    if which == "every shape":
        for words in ("Just words, <script>alert(1)</script>", "+1.5 (-0.3 to +3.1)", "a claim that goes on",
                      "preset tiny · seeds 0, 1"): assert words in answer["text"]
        assert answer["boxed"] > 0, "the wide table does not scroll in its box"


def test_dark_is_readable_too(browser, made, tmp_path):
    answer = looked_at(made, tmp_path, [1280], "--blink-settings=preferredColorScheme=0")[1280]
    assert answer["dark"] and answer["faint"] == [] and not set(answer["published"]) & set(answer["plain"])


def test_a_browser_notices_what_is_wrong(browser, made, tmp_path):
    faint = '<p style="width: 2000px; max-width: none; color: #eee; background: #fff">faint</p>'
    damaged = '<img alt="damaged" src="data:image/png;base64,AAAA">'
    wrong = made.replace("</main>", f"{faint}{damaged}</main>")
    answer = looked_at(wrong, tmp_path, [1280])[1280]
    assert answer["scroll"] > 1280 and answer["broken"] == ["damaged"]
    assert len(answer["outside"]) == 1 and "faint" in answer["faint"][0]


def test_a_picture_of_the_page_is_not_blank(browser, made, tmp_path):
    (tmp_path/"page.html").write_text(made, encoding="utf-8")
    browse(tmp_path, (tmp_path/"page.html").as_uri(), "--window-size=1280,1400", f"--screenshot={tmp_path/'page.png'}")
    with Image.open(tmp_path/"page.png") as image: picture = image.convert("RGB")
    assert picture.size == (1280, 1400)
    noise = picture.crop((280, 300, 1280, 1400)).getcolors(10**6)
    assert len(noise) > 100, "neither the noise of the pictures nor text is on the page"
    side = picture.crop((0, 0, 260, 300)).getcolors(10**6)
    assert 10 < len(side) and max(side)[0] < 260*300, "the contents at the side are empty"


# ---- the command

WRITE = """from pathlib import Path
Path("reports").mkdir(exist_ok=True)
Path("reports/{name}.md").write_text(f"# {name}: made\\n\\npreset {{preset}}, seeds {{seeds}}\\n")"""


def test_numbers_of_a_report_with_a_longer_name_are_not_taken(tmp_path):
    for name in ("claims.md", "claims.csv", "claims_queues.csv", "claims_of_others.md", "claims_of_others.csv"):
        (tmp_path/name).write_text("a\n1\n")
    files = lambda name: [file for file, _ in report_page.files_of(name, tmp_path)]
    assert files("claims") == ["claims.csv", "claims_queues.csv", "claims.md"]
    assert files("claims_of_others") == ["claims_of_others.csv", "claims_of_others.md"]


def test_a_report_of_another_paper_has_its_own_folder(tmp_path):
    project(tmp_path)
    notebook(tmp_path/"nbs/p2lr/table2.ipynb")
    own = tmp_path/"reports"/"p2lr"
    own.mkdir()
    Image.new("RGB", (9, 9)).save(own/"table2.png")
    (own/"table2.md").write_text("# P2LR, Table 2: rows\n\n![bars](table2.png)\n\n## The rows\n\n"
                                 "[other](table2.md) [here](../../nbs/p2lr/table2.ipynb)\n")
    (own/"table2.csv").write_text("a\n1\n")
    (tmp_path/"reports"/"local"/"tiny"/"p2lr").mkdir(parents=True)
    (tmp_path/"reports"/"local"/"tiny"/"p2lr"/"table2.md").write_text("# of another setting\n")
    page = Reader(report_page.reports_page(tmp_path/"reports"))
    assert [attrs["id"] for attrs in page.all("section")] == ["table2", "fig3", "claims", "p2lr-table2", "zeta"]
    links = {attrs.get("href") for attrs in page.all("a")}
    assert links >= {"#p2lr-table2", "p2lr/table2.csv", "p2lr/table2.md", "../nbs/p2lr/table2.ipynb",
                     "../_site/nbs/p2lr/table2.html"}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    "A project whose notebooks write their parameters into a report; table6 fails."
    for name in ("table2", "table5"): notebook(tmp_path/"nbs"/f"{name}.ipynb", WRITE.format(name=name))
    notebook(tmp_path/"nbs"/"table6.ipynb", "raise KeyError('no such run')")
    notebook(tmp_path/"nbs"/"plain.ipynb", parameters="seeds: str = '0'")
    for folder in ("reports", "docs"): (tmp_path/folder).mkdir()
    shutil.copy(ROOT/"docs"/"report_page.html", tmp_path/"docs")
    (tmp_path/"reports"/"index.html").write_text("the old page")
    monkeypatch.setenv("UPL_REID_ROOT", str(tmp_path))
    return tmp_path


def test_command_runs_notebooks_with_parameters_and_writes_the_page(bench, capsys):
    assert cli.main(["reports", "--preset", "tiny", "--seeds", "0,1,2", "--only", "table5,table2"]) == 0
    text = (bench/"reports"/"index.html").read_text(encoding="utf-8")
    assert text.index('id="table2"') < text.index('id="table5"') and text.count("preset tiny, seeds 0,1,2") == 2
    files = sorted(path.name for path in (bench/"reports").iterdir())
    assert files == ["index.html", "table2.ipynb", "table2.md", "table5.ipynb", "table5.md"]
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in err.splitlines()][-2:] == ["table5", "table2"]
    assert [line.split(":")[0] for line in out.splitlines()] == ["reports/index.html"]


def test_a_notebook_that_fails_is_named_and_leaves_the_page(bench, capsys):
    (bench/"reports"/"table2.md").write_text("# Table 2: from before\n")
    with pytest.raises(RunError, match=r"(?s)'table6' failed \(KeyError.*no such run.*--only table6,table5"):
        report_page.make_reports(("table6", "table5"))
    assert (bench/"reports"/"index.html").read_text() == "the old page" and not (bench/"reports"/"table5.md").exists()
    cells = nbformat.read(bench/"reports"/"table6.ipynb", 4).cells
    assert any(output.output_type == "error" for cell in cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("arguments, said", [
    (["--only", "tabel2"], "tabel2"), (["--only", "table2,plain", "--preset", "tiny"], "plain"),
    (["--only", "table2", "--device", "cpu"], "device"), (["--page"], "no report")])
def test_wrong_use_runs_nothing_and_says_why(bench, capsys, arguments, said):
    assert cli.main(["reports", *arguments]) == 1
    assert said in capsys.readouterr().err
    assert [path.name for path in (bench/"reports").iterdir()] == ["index.html"]
    assert (bench/"reports"/"index.html").read_text() == "the old page"


def test_page_alone_runs_no_notebook(bench, monkeypatch):
    (bench/"reports"/"table2.md").write_text("# Table 2: from before\n")
    monkeypatch.setattr(report_page.papermill, "execute_notebook", lambda *a, **k: pytest.fail("a notebook was run"))
    assert cli.main(["reports", "--page"]) == 0 and "from before" in (bench/"reports"/"index.html").read_text()


def test_every_notebook_gets_the_same_parameters(bench, monkeypatch):
    asked: list = []
    monkeypatch.setattr(report_page, "check_notebooks", lambda names, root, parameters: None)
    for name in report_page.NOTEBOOKS: notebook(bench/"nbs"/f"{name}.ipynb")
    nothing = nbformat.v4.new_notebook()
    def execute(source, out, parameters, **k):
        asked.append((source.stem, out.name, parameters, k["cwd"]))
        return nothing
    monkeypatch.setattr(report_page.papermill, "execute_notebook", execute)
    (bench/"reports"/"table2.md").write_text("# T\n")
    monkeypatch.chdir(bench)
    arguments = ["--preset", "paper", "--source", "market1501", "--source-root", "data", "--weights", "w.safetensors"]
    assert cli.main(["reports", *arguments]) == 0
    expected = dict(preset="paper", source="market1501", source_root=str(bench/"data"),
                    weights=str(bench/"w.safetensors"))
    assert asked == [(name, f"{name}.ipynb", expected, bench) for name in report_page.NOTEBOOKS]


@pytest.mark.parametrize("arguments, name, value", [
    (["--weights", "imagenet"], "weights", "imagenet"), (["--weights", "w.pth"], "weights", "{0}/w.pth"),
    (["--target", "campus,b", "--target-root", ",data/b"], "target_root", ",{0}/data/b"),
    (["--target", "a,b", "--target-root", "data/a,data/b"], "target_root", "{0}/data/a,{0}/data/b"),
    (["--target", "a", "--target-root", "data/a,b"], "target_root", "{0}/data/a,b")],
    ids=["imagenet", "weights", "embedded", "two", "comma"])
def test_places_are_those_of_the_current_folder(bench, monkeypatch, arguments, name, value):
    asked = {}
    monkeypatch.setattr(cli.experiments, "make_reports", lambda names, given, jobs: asked.update(given) or [])
    monkeypatch.chdir(bench)
    assert cli.main(["reports", *arguments, "--only", "table2"]) == 0 and asked[name] == value.format(bench)


def test_a_plugin_may_be_a_module_of_the_current_folder(bench, monkeypatch):
    "Also for the notebooks, whose kernels run in the project's folder."
    lines = ["from upl_reid.methods.baseline import Direct", "from upl_reid.training.method import register",
             "register('of_this_folder')(type('Here', (Direct,), dict(__module__=__name__)))"]
    (bench/"elsewhere").mkdir()
    (bench/"elsewhere"/"my_folders_method.py").write_text("\n".join(lines))
    monkeypatch.chdir(bench/"elsewhere")
    for name in ("PYTHONPATH", "UPL_REID_PLUGINS"): monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd())])
    assert cli.main(["reports", "--page", "--plugins", "my_folders_method"]) == 1       # there is no report to show
    assert {"of_this_folder", "my_folders_method"} <= {*METHODS, *PLUGINS}
    assert os.environ["PYTHONPATH"].split(os.pathsep)[-1] == os.getcwd()
    assert os.environ["UPL_REID_PLUGINS"] == "my_folders_method"


def test_only_and_page_exclude_each_other(bench):
    with pytest.raises(SystemExit): cli.main(["reports", "--page", "--only", "table2"])


def test_several_at_a_time_make_the_same_reports_and_what_measures_time_waits(bench, monkeypatch):
    begun, ended = [], []
    def execute(source, log, *args, **kwargs):
        begun.append((source.stem, list(ended))); time.sleep(.05); ended.append(source.stem)
        (bench/"reports"/f"{source.stem}.md").write_text(f"# {source.stem}\n")
        return nbformat.v4.new_notebook()
    monkeypatch.setattr(report_page.papermill, "execute_notebook", execute)
    monkeypatch.setattr(report_page, "TIMED", ("table5",))
    report_page.make_reports(("table5", "table6"), jobs=2)
    assert begun == [("table6", []), ("table5", ["table6"])]
    with pytest.raises(ConfigError, match="jobs=0"): report_page.make_reports(("table5",), jobs=0)


def test_reports_of_other_settings_have_a_page_of_their_own(bench, monkeypatch):
    "The committed page stays; links to notebooks lead from the page to the site."
    def execute(source, *args, **kwargs):
        folder = "reports/local/demo-mine" if source.stem == "table5" else "reports/local/demo-mine/p2lr"
        (bench/folder).mkdir(parents=True, exist_ok=True)
        name = source.stem
        (bench/folder/f"{name}.md").write_text(f"# {name}\n\n[how](../../../../nbs/{name}.ipynb)\n")
        made = nbformat.v4.new_output("stream", text=f"some line\nreport: {folder}/{name}.md (the other stays)\n")
        cell = nbformat.v4.new_code_cell(outputs=[made])
        return nbformat.v4.new_notebook(cells=[cell])
    monkeypatch.setattr(report_page.papermill, "execute_notebook", execute)
    own = bench/"reports/local/demo-mine/index.html"
    assert report_page.make_reports(("table5", "table6")) == [own]
    assert (bench/"reports/index.html").read_text() == "the old page"
    text = own.read_text()
    assert 'id="table5"' in text and 'id="p2lr-table6"' in text and text.count("../../../_site/nbs/table") == 2


@pytest.mark.parametrize("page, up", [("reports", ".."), ("reports/local/mine", "../../..")])
@pytest.mark.parametrize("project", ["local", "local/reports/mine"])
def test_links_lead_to_the_project_whatever_its_folder_is_called(tmp_path, project, page, up):
    folder = tmp_path/project/page
    link = report_page.to_html("[how](../nbs/table5.ipynb)", folder, "table5")
    inner = report_page.to_html("[how](../../nbs/table5.ipynb)", folder/"p2lr", "p2lr/table1")
    assert f'"{up}/_site/nbs/table5.html"' in link and f'"{up}/_site/nbs/table5.html"' in inner


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_begins_no_further_notebook(bench, monkeypatch, jobs):
    begun, pressed = [], threading.Event()
    def execute(source, *args, **kwargs):
        begun.append(source.stem)
        if jobs == 1: raise KeyboardInterrupt
        pressed.wait(5)
    monkeypatch.setattr(report_page.papermill, "execute_notebook", execute)
    if jobs == 2:                       # the signal reaches the main thread, which waits for the first notebook
        def wait(self, timeout=None):
            while len(begun) < 2: time.sleep(.001)
            threading.Timer(.1, pressed.set).start()
            raise KeyboardInterrupt
        monkeypatch.setattr(concurrent.futures.Future, "result", wait)
    with pytest.raises(KeyboardInterrupt): report_page.make_reports(("table2", "table5", "table6"), jobs=jobs)
    assert sorted(begun) == ["table2", "table5"][:jobs] and (bench/"reports"/"index.html").read_text() == "the old page"


@pytest.mark.parametrize("report, notebook", [
    ("table4", "table4"), ("fig3", "figures"), ("cgc/fig10", "cgc/figures"), ("p2lr/fig6bc", "p2lr/figures"),
    ("p2lr/table1", "p2lr/table1"), ("two_methods_rounds", "two_methods")])
def test_a_report_is_of_its_notebook(report, notebook):
    assert report_page.notebook_of(report) == notebook
    assert report_page.notebook_path(notebook, Path(__file__).parents[2])
