"""Write README.md from nbs/index.ipynb, or with --check say whether it is in step.

usage: python .ci/readme.py [--check]
"""
import posixpath, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Written by .ci/readme.py from nbs/index.ipynb: edit the notebook, then run the script. -->"

def visible(cell):
    "The cell as a reader should see it: without nbdev's directives; None if it is hidden or has nothing left."
    lines = cell.source.splitlines()
    directives = [line for line in lines if cell.cell_type == "code" and re.match(r"\s*#\s*\|", line)]
    if any(re.match(r"\s*#\s*\|\s*(hide|echo:\s*false|default_exp|export)\b", line) for line in directives): return None
    text = "\n".join(line for line in lines if line not in directives).strip("\n")
    return {**cell, "source": text} if text else None

def relink(markdown, folder="nbs"):
    "Links and pictures that are relative to the notebook's folder, made relative to the root."
    def move(match):
        target = match[2]
        if re.match(r"[a-z][a-z0-9+.-]*:|#|/", target): return match[0]
        return f"{match[1]}{posixpath.normpath(posixpath.join(folder, target))}{match[3]}"
    return re.sub(r"(\]\()([^)\s]+)(\))", move, markdown)

def render(index):
    "README's text for the notebook `index`."
    import nbformat
    from nbconvert import MarkdownExporter
    notebook = nbformat.read(index, as_version=4)
    notebook.cells = [nbformat.from_dict(cell) for cell in map(visible, notebook.cells) if cell is not None]
    notebook.metadata["language_info"] = {"name": "python"}     # nbdev_clean drops it; code blocks get it
    body, resources = MarkdownExporter().from_notebook_node(notebook)
    if resources.get("outputs"):
        sys.exit(f"{index}: a cell has a picture as output, which README.md cannot hold; save it under reports/")
    body = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in body.splitlines())).strip()
    return f"{NOTE}\n\n{relink(body)}\n"

def main(args, root=ROOT):
    "Write README.md below `root`, or compare it (--check). Status: 0 in step or written, 1 out of step, 2 wrong use."
    if args not in ([], ["--check"]):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    readme, text = root/"README.md", render(root/"nbs"/"index.ipynb")
    if not args: readme.write_text(text, encoding="utf-8")
    elif not readme.is_file() or readme.read_text(encoding="utf-8") != text:
        print("README.md is not in step with nbs/index.ipynb; run: python .ci/readme.py", file=sys.stderr)
        return 1
    return 0

if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
