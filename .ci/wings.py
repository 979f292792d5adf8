"""Write the __init__.py of each folder of upl_reid/ from the public names of its modules.

The names are loaded when they are first used (lazy_loader, SPEC 1).

usage: python .ci/wings.py   (after nbdev_export, when a public name came or went)
"""
import ast, re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

def public_names(path):
    "The `__all__` of a module that nbdev exported."
    assigned = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign)]
    return next(ast.literal_eval(node.value) for node in assigned if node.targets[0].id == "__all__")

def entry(module, names):
    "One module's lines, at most 120 characters wide."
    lines, line = [], f'    "{module}": ['
    for piece in [f'"{name}", ' for name in names]:
        if len(line) + len(piece) > 118: lines, line = [*lines, line.rstrip()], " "*8
        line += piece
    return [*lines, line.rstrip(", ") + "],"]

def write(folder):
    "Write one folder's __init__.py; its first line, the docstring, stays."
    notebooks = sorted((ROOT/"nbs"/folder.name).glob("[0-9][0-9]_*.ipynb"))
    modules = [re.sub(r"^\d\d_", "", path.stem) for path in notebooks]
    init = folder/"__init__.py"
    lines = [init.read_text(encoding="utf-8").split("\n")[0], "import lazy_loader", "",
             "__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"]
    for module in modules: lines += entry(module, public_names(folder/f"{module}.py"))
    init.write_text("\n".join([*lines, "})", ""]), encoding="utf-8")

if __name__ == "__main__":
    for folder in sorted((ROOT/"upl_reid").iterdir()):
        if (folder/"__init__.py").is_file() and folder.name != "methods": write(folder)
