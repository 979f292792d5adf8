"""What a reader sees of a notebook: no directives, import cells and long code folded, links to pages of the site."""
import ast, json, posixpath, re
from pathlib import Path

LONG = 14    # lines; a longer code cell is folded

def text_of(cell): return "".join(cell["source"])

def title_of(notebook):
    "Title and summary of a notebook: '# Title', an empty line, '> summary'."
    first = text_of(notebook["cells"][0])
    found = re.match(r"# (.+)\n\s*> ((?:.+\n?)+)", first)
    return (found[1].strip(), " ".join(found[2].split())) if found else (first.split("\n")[0].lstrip("# "), "")

def relink(markdown, here, root, page_of, blob):
    """Links of a text at `here` (a path below `root`): a page of the site stays a relative link to its source; any
    other file of the repository becomes a link to `blob`, where the repository is published. Code blocks and addresses
    stay as they are."""
    def target_of(target):
        path, _, anchor = target.partition("#")
        if not path or re.match(r"[a-z][a-z0-9+.-]*:|/", target): return target
        full = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        if full.startswith("..") or not (root/full).exists(): return target
        page = page_of(full)
        if page is None: return f"{blob}/{full}"
        return posixpath.relpath(page, posixpath.dirname(here) or ".") + (f"#{anchor}" if anchor else "")
    swap = lambda m: f"{m[1]}{target_of(m[2])}{m[3]}"
    parts = re.split(r"(^```.*?^```|`[^`\n]*`)", markdown, flags=re.M | re.S)
    return "".join(part if i % 2 else re.sub(r"(\]\()([^)\s]+)(\)| \")", swap, part) for i, part in enumerate(parts))

def parts_of(cell):
    "Directives (the first lines, as nbdev reads them) and code of a code cell."
    lines = text_of(cell).strip("\n").split("\n")
    count = next((i for i, line in enumerate(lines) if not re.match(r"\s*#\s*\|\s*\w", line)), len(lines))
    return " ".join(lines[:count]), "\n".join(lines[count:]).strip("\n")

def only_imports(code):
    "Whether a cell does nothing but import, and perhaps set defaults."
    try: body = ast.parse(code).body
    except SyntaxError: return False
    # plotting settings, and the names that a table notebook keeps
    setting = re.compile(r"(plt|matplotlib|mpl|sns)\.(rcParams|set_|style)|\w+ = set\(globals\(\)\)")
    settings = lambda node: setting.match(ast.unparse(node))
    imports = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in body]
    return any(imports) and all(is_import or settings(node) for node, is_import in zip(body, imports))

def heading_of(code, lines):
    "What stands on a folded cell: the names that it defines."
    try: body = ast.parse(code).body
    except SyntaxError: body = []
    names = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))]
    assigned = [node.targets[0] for node in body if isinstance(node, ast.Assign)]
    names = names or [target.id for target in assigned if isinstance(target, ast.Name)]
    return f"{', '.join(names[:3]) or 'Code'}{', ...' if len(names) > 3 else ''} ({lines} lines)"

def folded(cell, label):
    "A code cell whose code opens on a click."
    cell["metadata"].setdefault("tags", []).append("hide-input")
    prompts = {"code_prompt_show": label, "code_prompt_hide": label}
    cell["metadata"]["mystnb"] = {**cell["metadata"].get("mystnb", {}), **prompts}

def shown_code(cell, title, figures):
    "A code cell as the site shows it; None if nothing is left of it."
    directives, code = parts_of(cell)
    if re.search(r"\|\s*(hide|default_exp)\b", directives) or not code and not cell["outputs"]: return None
    tags = [tag for tag in cell["metadata"].get("tags", []) if tag != "parameters"]
    made = {**cell, "source": code, "metadata": {"tags": tags}}
    if re.search(r"\|\s*echo:\s*false", directives): tags.append("remove-input")
    elif only_imports(code): folded(made, "Imports")
    elif (lines := code.count("\n") + 1) > LONG: folded(made, heading_of(code, lines))
    pictures = sum(any(kind.startswith("image/") for kind in output.get("data", {})) for output in cell["outputs"])
    if pictures:
        figures.append(pictures)
        alt = f"Figure {len(figures)} of the page {title}: drawn by the code above"
        made["metadata"].setdefault("mystnb", {})["image"] = {"alt": alt}
    return made

def shown(notebook, here, root, page_of, blob, below_title=""):
    "A notebook as the site shows it. `below_title` is markdown for the end of the first cell."
    title, cells, figures = title_of(notebook)[0], [], []
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "markdown":
            text = text_of(cell) + (f"\n\n{below_title}" if number == 0 else "")
            cells.append({**cell, "source": relink(text, here, root, page_of, blob)})
        elif cell["cell_type"] == "code" and (made := shown_code(cell, title, figures)):
            last = cells[-1] if cells else {}
            prompt = lambda c: c.get("metadata", {}).get("mystnb", {}).get("code_prompt_show")
            if prompt(made) == prompt(last) == "Imports" and not last["outputs"]:
                last.update(source=f"{last['source']}\n{made['source']}", outputs=made["outputs"])
            else: cells.append(made)
    language = {"name": "python", "pygments_lexer": "ipython3"}
    return {**notebook, "cells": cells, "metadata": {**notebook["metadata"], "language_info": language}}

def read(path): return json.loads(Path(path).read_text(encoding="utf-8"))
