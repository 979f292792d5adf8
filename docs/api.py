"""The API reference: one markdown page for each module of upl_reid, read from its source without importing it."""
import ast, io, re, tokenize
from pathlib import Path

def comments_of(source):
    "The comment at the end of each line: {line: text}. nbdev's docments stand there, one beside each parameter."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ").rstrip() for token in tokens if token.type == tokenize.COMMENT}

def public_names(tree):
    "The `__all__` that nbdev wrote."
    is_all = lambda node: isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    found = [node for node in tree.body if is_all(node)]
    return ast.literal_eval(found[0].value) if found else []

def parameters_of(function, comments):
    "Rows (name, type, default, comment) of a function's parameters, without self and cls."
    a = function.args
    plain = [*a.posonlyargs, *a.args]
    defaults = dict(zip(reversed(plain), reversed(a.defaults))) | dict(zip(a.kwonlyargs, a.kw_defaults))
    starred = [("*", a.vararg)]*bool(a.vararg) + [("", x) for x in a.kwonlyargs] + [("**", a.kwarg)]*bool(a.kwarg)
    rows = []
    for stars, arg in [*(("", x) for x in plain), *starred]:
        if arg.arg in ("self", "cls"): continue
        default = defaults.get(arg)
        last = max(arg.end_lineno, default.end_lineno if default else 0)
        kind = ast.unparse(arg.annotation) if arg.annotation else ""
        rows.append((stars + arg.arg, kind, ast.unparse(default) if default else "", comments.get(last, "")))
    return rows

def signature(function):
    "A function's signature without types, which the table below it has; long defaults are cut."
    a = ast.parse(ast.unparse(function)).body[0].args
    for arg in [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]: arg.annotation = None
    a.args = [arg for arg in a.args if arg.arg not in ("self", "cls")]
    cut = lambda node: node if node is None or len(ast.unparse(node)) <= 24 else ast.Constant(...)
    a.defaults, a.kw_defaults = [cut(x) for x in a.defaults], [cut(x) for x in a.kw_defaults]
    return f"({ast.unparse(a)})"

def escaped(text):
    "Text for markdown: what is not code between backticks keeps its angle brackets and stars."
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<*|$\[\]])", r"\\\1", part) for part in parts)

def cell(text, code=False):
    "Text for one cell of a markdown table."
    if not text: return ""
    return f"`{text}`".replace("|", r"\|") if code else escaped(" ".join(text.split()))

def table(head, rows):
    "Rows (name, type, default, comment) as a table; columns that are empty in every row are left out."
    used = [i for i in range(4) if i in (0, 3) or any(row[i] for row in rows)]
    line = lambda cells: "| " + " | ".join(cells) + " |"
    body = [line([cell(row[i], code=i < 3) for i in used]) for row in rows]
    return "\n".join([line([(head, "type", "default", "meaning")[i] for i in used]), "|---"*len(used) + "|", *body])

def prose(node):
    "A docstring as paragraphs: what it is, shapes, what it raises."
    text = escaped(ast.get_docstring(node) or "")
    return re.sub(r"\n+(?=(?:Shapes?|Raises|Returns)\b)", "\n\n", text)

def returned(function, comments):
    "One line on what a function returns, if its source says more than None."
    if function.returns is None: return ""
    kind, words = ast.unparse(function.returns), comments.get(function.returns.end_lineno, "")
    if kind == "None" and not words: return ""
    return f"**Returns** {cell(kind, True)}{': ' + escaped(words) if words else ''}"

def directive(kind, head, parts, depth, link=""):
    "One object of Sphinx's Python domain."
    fence = ":"*(3 + depth)
    return "\n\n".join([f"{fence}{{py:{kind}}} {head}\n", *filter(None, [*parts, link]), fence])

def function_entry(function, comments, link, kind="function", depth=0):
    "A function or method: signature, docstring, parameters, result."
    wrapped = {getattr(d, "id", getattr(d, "attr", "")) for d in function.decorator_list}
    rows = parameters_of(function, comments)
    parts = [prose(function), table("parameter", rows) if rows else "", returned(function, comments)]
    if "property" in wrapped: return directive("property", function.name, [parts[0], parts[2]], depth)
    mark = "\n:classmethod:" if "classmethod" in wrapped else "\n:staticmethod:" if "staticmethod" in wrapped else ""
    return directive(kind, function.name + signature(function) + mark, parts, depth, link)

def class_entry(node, comments, link):
    "A class: docstring, fields with their comments or the parameters of its constructor, documented public methods."
    functions = [x for x in node.body if isinstance(x, (ast.FunctionDef, ast.AsyncFunctionDef))]
    start = next((f for f in functions if f.name == "__init__"), None)
    annotated = [x for x in node.body if isinstance(x, ast.AnnAssign)]
    fields = [(ast.unparse(x.target), ast.unparse(x.annotation), ast.unparse(x.value) if x.value else "",
               comments.get(x.end_lineno, "")) for x in annotated]
    bases = ", ".join(map(ast.unparse, node.bases))
    parts = [f"Bases: {cell(bases, True)}" if bases else "", prose(node), table("field", fields) if fields else ""]
    if start and (rows := parameters_of(start, comments)): parts.append(table("parameter", rows))
    shown = [f for f in functions if not f.name.startswith("_") and ast.get_docstring(f)]
    parts += [function_entry(f, comments, "", "method", 1) for f in shown]
    own, methods = parts[:-len(shown) or None], parts[len(parts) - len(shown):]
    return directive("class", node.name + (signature(start) if start else ""), [*own, link, *methods], 2)

def constants_of(node):
    "Names and values (None: not there) that an assignment gives: A = 1, A: int = 1, A, B = 1, 2 or C = A, B = 1, 2."
    if isinstance(node, ast.AnnAssign): return [(ast.unparse(node.target), node.value)]
    if not isinstance(node, ast.Assign): return []
    found = []
    for target in node.targets:
        if isinstance(target, ast.Tuple):
            same = isinstance(node.value, ast.Tuple) and len(node.value.elts) == len(target.elts)
            found += zip(map(ast.unparse, target.elts), node.value.elts if same else [None]*len(target.elts))
        else: found.append((ast.unparse(target), node.value))
    return found

def constant_entry(name, value, comment):
    "A constant: its value where it is short, and its comment."
    text = ast.unparse(value) if value else ""
    return directive("data", name + (f"\n:value: {text}" if text and len(text) <= 100 else ""), [escaped(comment)], 0)

def module_page(path, name, notebook, source_url):
    "The page of one module: its docstring, where it is explained, and every public name in the order of the source."
    source = Path(path).read_text(encoding="utf-8")
    tree, comments = ast.parse(source), comments_of(source)
    public, entries = set(public_names(tree)), []
    for node in tree.body:
        link = f"[source]({source_url}#L{node.lineno})"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name in public:
            entries.append(function_entry(node, comments, link))
        elif isinstance(node, ast.ClassDef) and node.name in public: entries.append(class_entry(node, comments, link))
        entries += [constant_entry(n, value, comments.get(node.end_lineno, ""))
                    for n, value in constants_of(node) if n in public]
    explained = f"Explained in [{notebook[0]}]({notebook[1]}), with formulas and worked examples. " if notebook else ""
    head = [f"# {name}", prose(tree), f"{explained}[Source]({source_url}).", f":::{{py:module}} upl_reid.{name}\n:::"]
    return "\n\n".join([*head, *entries, ""])
