"""Sphinx's settings for the site; docs/build.py writes the sources and calls it."""
import configparser, importlib.metadata, re
from pathlib import Path

from docutils import nodes

DOCS = Path(__file__).resolve().parent
SETTINGS = configparser.ConfigParser()
SETTINGS.read(DOCS.parent/"settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]

project, author, release = "UPL-ReID", SETTINGS["author"], SETTINGS["version"]
project_copyright = SETTINGS["copyright"]
extensions = ["myst_nb"]
root_doc, language = "index", "en"

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
nb_execution_mode = "off"       # outputs are those that the notebooks store
nb_output_stderr = "remove"
nb_render_markdown_format = "myst"      # tables in outputs
nb_merge_streams = True

html_theme, html_title = "pydata_sphinx_theme", "UPL-ReID"
html_static_path, templates_path, html_css_files = ["static"], ["templates"], ["site.css"]
html_sidebars = {"**": ["sidebar-all"]}
html_show_sourcelink = html_copy_source = html_show_sphinx = False
html_last_updated_fmt = None
html_show_search_summary = False      # pages opened from disk may not read each other
html_theme_options = dict(
    navbar_center=[], navbar_end=["theme-switcher", "navbar-icon-links"], footer_start=["copyright"], footer_end=[],
    show_toc_level=2, search_bar_text="Search notebooks, reports and API",
    primary_sidebar_end=[], secondary_sidebar_items=["page-toc"], back_to_top_button=False,
    icon_links=[dict(name="Repository", url=SETTINGS["git_url"], icon="fa-brands fa-github")])
add_module_names = False
toc_object_entries_show_parents = "hide"

# MathJax from the package sphinx-mathjax-offline, copied into the site: pages with formulas need no network. One file,
# with its fonts in it.
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "global"}}

def copy_mathjax(app, error):
    "One file into the built site."
    if error or app.builder.format != "html": return
    files = importlib.metadata.files("sphinx-mathjax-offline") or []
    source = next(file for file in files if re.search(r"mathjax/tex-svg\.js$", str(file)))
    target = Path(app.outdir)/"_static"/"mathjax"/"tex-svg.js"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(Path(source.locate()).read_bytes())

def keep_formulas(app, doctree):
    "Formulas with a number as they stand: Sphinx would wrap one with a line break in `split`, where a tag is an error."
    for node in doctree.findall(nodes.math_block):
        if r"\tag" in node.astext():
            node[:] = [nodes.Text(rf"\[{node.astext()}\]")]
            node["nowrap"] = node["no-wrap"] = True

def setup(app):
    app.connect("doctree-read", keep_formulas)
    app.connect("build-finished", copy_mathjax)

suppress_warnings = ["myst.header"]     # a report may begin with a third-level heading
