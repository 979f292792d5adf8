"""Requirements: the base runs without the extras, and what is imported is what is required, in both directions."""
import ast
import json
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]

def names(requirements): return {canonicalize_name(Requirement(r).name) for r in requirements}

BASE = names(PROJECT["dependencies"])
EXTRAS = ("train", "notebooks", "export", "postgres", "browse")
LAYERS = {extra: names(PROJECT["optional-dependencies"][extra]) for extra in EXTRAS}
DISTRIBUTIONS = {module: {canonicalize_name(n) for n in found} for module, found in packages_distributions().items()}
UPPER = set().union(*LAYERS.values())                                    # what the package may import beside the base

# The modules of the base: they embed, index, search and evaluate. The command line and what it loads is part of it.
WINGS = ("data", "components", "evaluation", "deployment")
MODULES = ["upl_reid.core", "upl_reid.cli", "upl_reid.experiments.config", "upl_reid.experiments.runs"]
MODULES += [f"upl_reid.{wing}.{p.stem}" for wing in WINGS for p in sorted((ROOT/"upl_reid"/wing).glob("[!_]*.py"))]

# Required and not imported by name, with the reason.
INDIRECT = {
    "torchvision": "timm imports it, and its version must match torch's",
    "faiss-cpu": "the same module as faiss-gpu on other systems", "faiss-gpu": "see faiss-cpu",
    "jupyterlab": "readers open the notebooks in it", "ipykernel": "papermill and JupyterLab start it",
    "ipywidgets": "tqdm's bars in JupyterLab", "onnxscript": "torch's ONNX exporter imports it",
}

def blocked(code):
    "What a process prints whose imports of the upper layers fail as if they were not installed."
    modules = sorted(module for module, found in DISTRIBUTIONS.items() if found & UPPER)
    start = f"import sys\nfor name in {modules!r}: sys.modules[name] = None\n"
    result = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout

def test_the_base_imports_without_the_extras():
    failed = json.loads(blocked(f"""
import importlib, json
failed = {{}}
for name in {MODULES!r}:
    try: importlib.import_module(name)
    except ImportError as e: failed[name] = str(e)
print(json.dumps(failed))"""))
    assert not failed, f"{failed}; import it inside the functions that need it, or move the requirement to the base"

def test_the_base_evaluates_and_searches_without_the_extras():
    out = blocked("""
import numpy as np
from upl_reid.components import jaccard_distance
from upl_reid.deployment import Gallery
from upl_reid.evaluation import evaluate_distances, rerank
x = np.eye(4, 8, dtype=np.float32)
ids, cams, other = np.arange(4), np.zeros(4, int), np.ones(4, int)
d = rerank(x, x, k1=2, k2=1)
print(evaluate_distances(d, query_pids=ids, query_camids=cams, gallery_pids=ids, gallery_camids=other).mAP)
gallery = Gallery(8)
gallery.add(x, list("abcd"), ["door"]*4)
print(*gallery.search(x[1:2], 1)["path"], jaccard_distance(x, 2, 1).shape)""")
    assert out.split("\n")[:2] == ["1.0", "b (4, 4)"]

def imported(code, inner):
    "The top-level names of other packages that some code imports; without `inner`, outside of functions only."
    found, stack = set(), [ast.parse(code)]
    while stack:
        for node in ast.iter_child_nodes(stack.pop()):
            if isinstance(node, ast.Import): found |= {name.name.split(".")[0] for name in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level: found.add(node.module.split(".")[0])
            if inner or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)): stack.append(node)
    return found - set(sys.stdlib_module_names) - {"upl_reid"}

def test_what_a_module_imports_is_read_from_its_code():
    code = "import a.b, os\nfrom c import d\nfrom . import e\ndef f():\n    import g\ntry: import h\nfinally: pass"
    assert imported(code, False) == {"a", "c", "h"} and imported(code, True) == {"a", "c", "g", "h"}

@pytest.mark.parametrize("path", sorted((ROOT/"upl_reid").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_import_is_required(path):
    name, code = ".".join(path.relative_to(ROOT).with_suffix("").parts), path.read_text(encoding="utf-8")
    strange = sorted(m for m in imported(code, True) if not DISTRIBUTIONS.get(m, set()) & (BASE | UPPER))
    assert not strange, f"{name} imports {strange}, which pyproject.toml does not require; add it to a layer there"
    if name in MODULES:
        above = sorted(m for m in imported(code, False) if not DISTRIBUTIONS[m] & BASE)
        assert not above, f"{name} loads {above}, which are not of the base; import them inside functions"

def cells(path):
    "The code of a notebook's cells, without lines of IPython."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    sources = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return ["".join(line for line in source if not line.lstrip().startswith(("%", "!"))) for source in sources]

PACKAGE = [p.read_text(encoding="utf-8") for p in (ROOT/"upl_reid").rglob("*.py")]
NOTEBOOKS = {p: cells(p) for p in sorted((ROOT/"nbs").rglob("*.ipynb"))}

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_a_notebook_imports_is_required(path):
    modules = set().union(*(imported(cell, True) for cell in NOTEBOOKS[path]))
    every = BASE | UPPER | names(PROJECT["optional-dependencies"]["dev"])
    strange = sorted(m for m in modules - {"IPython"} if not DISTRIBUTIONS.get(m, set()) & every)  # of ipykernel
    assert not strange, f"the notebook imports {strange}; add it to a layer of pyproject.toml"

def test_every_requirement_is_imported():
    modules = set().union(*(imported(c, True) for c in [*PACKAGE, *(c for each in NOTEBOOKS.values() for c in each)]))
    unused = sorted((BASE | UPPER) - set().union(*(DISTRIBUTIONS.get(m, set()) for m in modules)) - set(INDIRECT))
    assert not unused, f"pyproject.toml requires {unused}, which nothing imports; remove it, or say why in INDIRECT"

def test_what_is_not_imported_by_name_is_not_imported_after_all():
    used = set().union(*(DISTRIBUTIONS.get(m, set()) for code in PACKAGE for m in imported(code, True)))
    extra = set(INDIRECT) & used - {"faiss-cpu", "faiss-gpu"}
    assert not extra, f"the package imports {sorted(extra)}; remove it from INDIRECT"
