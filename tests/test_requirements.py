"Third-party imports and declared requirements name the same packages, in both directions."
import ast
import functools
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]

# Distributions that no line of the package imports, and what they are for. A declared requirement that is neither
# imported nor listed here is left over.
NOT_IMPORTED = {
    "onnxscript": "torch's ONNX exporter imports it",
    "torchvision": "timm imports it; its version has to fit torch's",
    "jupyterlab": "to open the notebooks",
    "ipykernel": "the kernel of the notebooks",
    "ipywidgets": "tqdm's bars in notebooks",
}
# faiss comes from either of two distributions; IPython comes with the kernel, in which the notebooks run.
SAME_MODULE = {"faiss": {"faiss-gpu", "faiss-cpu"}, "IPython": {"ipykernel"}}
TOOLS = {"dev", "docs"}  # extras of developers: of their distributions, the package imports none


def declared(extras):
    "Canonical names of the distributions that pyproject.toml asks for, without the project itself."
    groups = PROJECT.get("optional-dependencies", {})
    lines = [*PROJECT["dependencies"], *(line for name, group in groups.items() if extras(name) for line in group)]
    return {canonicalize_name(Requirement(line).name) for line in lines} - {canonicalize_name(PROJECT["name"])}


def imports_of(code):
    "Top-level names of the modules that source text imports; relative imports are of the package itself."
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import): found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0: found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"upl_reid"}


def package_imports():
    return {(path.relative_to(ROOT).as_posix(), name) for path in sorted((ROOT/"upl_reid").rglob("*.py"))
            for name in imports_of(path.read_text(encoding="utf-8"))}


def notebook_imports():
    found = set()
    for path in sorted((ROOT/"nbs").rglob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] != "code": continue
            lines = [line for line in "".join(cell["source"]).split("\n") if not re.match(r"\s*[%!]", line)]
            found |= {(path.relative_to(ROOT).as_posix(), name) for name in imports_of("\n".join(lines))}
    return found


@functools.cache
def installed(): return packages_distributions()        # reads the file lists of all packages, so once


def distributions(module):
    "The distributions that provide a module: PIL -> pillow, sklearn -> scikit-learn."
    return SAME_MODULE.get(module) or {canonicalize_name(name) for name in installed().get(module, [module])}


def undeclared(imports, known):
    return sorted(f"{where}: {name}" for where, name in imports if not distributions(name) & known)


def test_what_the_package_imports_is_declared():
    missing = undeclared(package_imports(), declared(lambda extra: extra not in TOOLS))
    assert not missing, f"imported, but not in pyproject.toml: {missing}"


def test_what_the_notebooks_import_is_declared():
    missing = undeclared(notebook_imports(), declared(lambda extra: True))
    assert not missing, f"imported in notebooks, but not in pyproject.toml: {missing}"


def test_what_is_declared_is_imported_by_the_package_or_a_notebook():
    used = {d for _, name in package_imports() | notebook_imports() for d in distributions(name)}
    unused = declared(lambda extra: extra not in TOOLS) - used - set(NOT_IMPORTED)
    assert not unused, f"in pyproject.toml, but never imported: {sorted(unused)}; remove them, or say here what for"


def test_the_exceptions_are_not_imported():
    used = {d for _, name in package_imports() for d in distributions(name)}
    assert not set(NOT_IMPORTED) & used, f"imported after all: {sorted(set(NOT_IMPORTED) & used)}"


@pytest.mark.parametrize("code, found", [
    ("import PIL.Image, os\nfrom sklearn import svm", {"PIL", "sklearn"}),
    ("from . import core\nfrom ..data import x", set()),
    ("def f():\n    import onnx", {"onnx"}), ("from upl_reid.core import seed_for", set())])
def test_imports_are_found_wherever_they_stand(code, found): assert imports_of(code) == found


def test_names_of_modules_and_distributions():
    assert distributions("PIL") == {"pillow"} and distributions("sklearn") == {"scikit-learn"}
    assert distributions("no_such_module") == {"no-such-module"}
