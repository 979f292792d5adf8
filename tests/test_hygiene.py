"""The house in order: notebooks, exported modules, documentation, environments and README agree with each other."""
import ast, configparser, importlib, importlib.util, inspect, json, re, shutil, subprocess, sys, tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, NBS = ROOT/"upl_reid", ROOT/"nbs"

def relative(path): return path.relative_to(ROOT).as_posix()
def source(cell): return "".join(cell["source"])
def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]
def tags(cell): return cell["metadata"].get("tags", [])

def default_exp(path):
    "The module that a notebook exports to, or None."
    found = [m[1] for cell in cells(path) if cell["cell_type"] == "code" if (m := re.search(r"^#\s*\|\s*default_exp\s+(\S+)", source(cell), re.M))]
    assert len(found) <= 1, f"{relative(path)}: {len(found)} default_exp directives; keep one"
    return found[0] if found else None

NOTEBOOKS = sorted(path for path in NBS.rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in path.relative_to(NBS).parts))
TABLES = [path for path in NOTEBOOKS if re.match(r"table|benchmark|figures|claims", path.stem)]
EXPORTS = {module: path for path in NOTEBOOKS if (module := default_exp(path))}
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py")) if path.name not in ("__init__.py", "_modidx.py")}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
each_module = pytest.mark.parametrize("module", MODULES)

# ---- notebooks

# A folder that exists on one machine only; inside longer words, addresses and relative paths it is something else.
MACHINE_PATH = re.compile(r"(?<![\w.~:/}])/(?:home|root|tmp|Users|work|opt|mnt|private|var)/[\w.-]+")

def output_text(output):
    "The words of an output; pictures are bytes in base64, where any combination of letters can turn up."
    if output["output_type"] == "stream": return "".join(output["text"])
    return "\n".join("".join(value) for kind, value in output.get("data", {}).items() if isinstance(value, (str, list)) and not re.match(r"image/(?!svg)", kind))

@each_notebook
def test_notebook_runs_with_the_kernel_that_papermill_looks_for(path):
    kernel = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("kernelspec", {}).get("name")
    assert kernel == "python3", f"{relative(path)}: kernelspec {kernel!r}; choose the kernel 'Python 3 (ipykernel)' in Jupyter and save"

@each_notebook
def test_notebook_has_no_left_overs(path):
    for number, cell in enumerate(cells(path)):
        where = f"{relative(path)}, cell {number}"
        assert "injected-parameters" not in tags(cell), f"{where}: papermill's injected parameters; this is an executed copy, restore the notebook"
        assert not re.search(r"^`?(<{7}|>{7})", source(cell), re.M), f"{where}: a merge conflict; resolve it (nbdev_fix shows both sides)"
        assert not any(output["output_type"] == "error" for output in cell.get("outputs", [])), f"{where}: an error was saved; run the notebook again"
        assert not any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in cell.get("outputs", [])), f"{where}: a progress bar was saved, which no page can show; leave it out"

@each_notebook
def test_notebook_outputs_are_small(path):
    size = sum(len(json.dumps(cell.get("outputs", []))) for cell in cells(path))
    assert size < 100_000, f"{relative(path)}: {size/1000:.0f} kB of outputs; draw fewer or smaller figures (dpi <= 80) so that they stay below 100 kB"

@each_notebook
def test_notebook_names_no_folder_of_one_machine(path):
    for number, cell in enumerate(cells(path)):
        for text in [source(cell), *map(output_text, cell.get("outputs", []))]:
            found = MACHINE_PATH.search(text)
            assert not found, f"{relative(path)}, cell {number}: {found[0]!r} exists on one machine only; print names or paths below the project's root"

@each_notebook
def test_notebook_opens_with_title_and_summary(path):
    first = cells(path)[0]
    assert first["cell_type"] == "markdown" and re.match(r"# \S.*\n\n> \S", source(first)), f"{relative(path)}: begin with a cell '# Title' and, after an empty line, '> one line that says what this is'"

@pytest.mark.parametrize("path", TABLES, ids=relative)
def test_table_notebook_has_one_parameters_cell_of_plain_literals(path):
    tagged = [source(cell) for cell in cells(path) if "parameters" in tags(cell)]
    assert len(tagged) == 1, f"{relative(path)}: {len(tagged)} cells tagged 'parameters'; papermill needs exactly one (settings.ini keeps the key 'tags')"
    for statement in ast.parse(tagged[0]).body:
        line = ast.unparse(statement)
        assert isinstance(statement, ast.AnnAssign) and statement.value is not None, f"{relative(path)}: {line!r}; write 'name: type = default  # help' in the parameters cell"
        try: ast.literal_eval(statement.value)
        except ValueError: pytest.fail(f"{relative(path)}: {line!r} is computed; only plain literals can be replaced by papermill, move the rest to the next cell")

# ---- modules

def test_every_module_has_its_notebook():
    strays = set(MODULES) - set(EXPORTS)
    assert not strays, f"upl_reid/ has {sorted(strays)} and no notebook says so in default_exp; write it as a notebook below nbs/, or delete the file"

def test_every_exporting_notebook_has_its_module():
    missing = {module: relative(path) for module, path in EXPORTS.items() if module not in MODULES}
    assert not missing, f"not exported: {missing}; run nbdev_export"

@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of what nbdev reads and writes, to run it there."
    root = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT/"settings.ini", root)
    for folder in (PACKAGE, NBS): shutil.copytree(folder, root/folder.name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    return root

def changed_by(command, copy, folder, pattern):
    "The files below `folder` that an nbdev command writes differently from what is here."
    result = subprocess.run([Path(sys.executable).with_name(command)], cwd=copy, capture_output=True, text=True)
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}{result.stderr}"
    here, there = ({path.relative_to(root): path.read_bytes() for path in (root/folder).rglob(pattern) if not any(part.startswith(".") for part in path.parts[len(root.parts):])}
                   for root in (ROOT, copy))
    return sorted(name.as_posix() for name in here.keys() | there.keys() if here.get(name) != there.get(name))

def test_exported_code_is_in_step_with_the_notebooks(copy):
    changed = changed_by("nbdev_export", copy, "upl_reid", "*.py")
    assert not changed, f"out of step with the notebooks: {changed}; edit the notebook, not the module, and run nbdev_export"

def test_notebooks_are_clean(copy):
    changed = changed_by("nbdev_clean", copy, "nbs", "*.ipynb")
    assert not changed, f"not clean: {changed}; run nbdev_clean"

def order(module):
    "A module's place in the one-way order: its notebook's number; methods come right after the training loop."
    if module.startswith("methods."): return float(EXPORTS["train"].stem.split("_")[0]) + .5
    number = re.match(r"(\d+)_", EXPORTS[module].stem)
    assert number, f"{relative(EXPORTS[module])} exports {module!r} and has no number; name it NN_{module}.ipynb"
    return float(number[1])

def imported(module):
    "The modules of the package that `module` imports anywhere in its code."
    found, here = set(), ["upl_reid", *module.split(".")]
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): targets = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*here[:-node.level], *([node.module] if node.module else [])]) if node.level else node.module
            targets = [base, *(f"{base}.{name.name}" for name in node.names)]
        else: continue
        found |= {target.removeprefix("upl_reid.") for target in targets}
    return (found & set(MODULES)) - {module}

@each_module
def test_module_imports_only_from_modules_before_it(module):
    assert module in EXPORTS, f"{module} has no notebook"
    later = {other for other in imported(module) if order(other) >= order(module) and not (module.startswith("methods.") and other.startswith("methods."))}
    assert not later, f"{relative(EXPORTS[module])} imports {sorted(later)}, which come after it; move what is shared to a notebook with a lower number"

def all_of(module):
    loaded = importlib.import_module(f"upl_reid.{module}")
    return loaded, [(name, getattr(loaded, name)) for name in loaded.__all__]

@each_module
def test_public_names_are_documented(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    defined = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    silent = [name for name, node in defined.items() if not name.startswith("_") and not ast.get_docstring(node)]
    assert not silent, f"upl_reid.{module}: no docstring on {silent}; say in {relative(EXPORTS[module])} what they do and where they come from"

@each_module
def test_parameters_of_public_functions_are_documented(module):
    from fastcore.docments import docments
    loaded, names = all_of(module)
    functions = {name: value for name, value in names if inspect.isfunction(value) and value.__module__ == loaded.__name__}
    functions |= {name: value for name, value in names if inspect.isclass(value) and value.__module__ == loaded.__name__ and "__init__" in vars(value) and not hasattr(value, "__dataclass_fields__")}
    silent = [f"{name}({parameter})" for name, value in functions.items()
              for parameter, comment in docments(value, returns=False, args_kwargs=True).items() if parameter != "self" and not comment]
    assert not silent, f"upl_reid.{module}: no comment beside {silent}; put each parameter on its own line in {relative(EXPORTS[module])} with a comment (unit, shape, range)"

def test_fastcore_and_nbdev_are_not_needed_at_run_time():
    tools = {"fastcore", "nbdev", "execnb", "pytest", "hypothesis"}
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
        used = {name.split(".")[0] for name in names} & tools
        assert not used, f"upl_reid.{module} imports {sorted(used)}, which only the dev extra installs; do without in {relative(EXPORTS[module])}"

# ---- environments

PROJECT = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]

def normal(requirement):
    "A requirement in one spelling, so that order and spaces don't count."
    r = Requirement(requirement)
    return f"{canonicalize_name(r.name)}{r.specifier}; {r.marker}"

def test_conda_environment_is_in_step_with_pyproject():
    dependencies = yaml.safe_load((ROOT/"environment.yml").read_text(encoding="utf-8"))["dependencies"]
    pip = next(entry["pip"] for entry in dependencies if isinstance(entry, dict))
    assert f"python={PROJECT['requires-python'].removeprefix('>=')}" in dependencies, f"environment.yml: python must be {PROJECT['requires-python']} as in pyproject.toml"
    assert "-c constraints.txt" in pip, "environment.yml: the pip section must begin with '-c constraints.txt', which pins the versions"
    listed, wanted = {normal(line) for line in pip if not line.startswith("-")}, {normal(line) for line in REQUIREMENTS}
    assert listed == wanted, f"environment.yml and pyproject.toml differ: only in the first {sorted(listed - wanted)}, only in the second {sorted(wanted - listed)}"

def test_constraints_pin_every_requirement():
    lines = [line for line in (ROOT/"constraints.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    loose = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!+]+", line)]
    assert not loose, f"constraints.txt: {loose}; every line must read name==version"
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    assert len(pins) == len(lines), "constraints.txt names a package twice; keep one line for each"
    for requirement in map(Requirement, REQUIREMENTS):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f"constraints.txt has no version of {requirement.name}; add the one that the tests pass with"
        assert requirement.specifier.contains(pin), f"constraints.txt pins {requirement.name}=={pin}, pyproject.toml asks for {requirement.specifier}"

def test_version_and_python_are_said_the_same_everywhere():
    settings = configparser.ConfigParser()
    settings.read(ROOT/"settings.ini")
    settings = settings["DEFAULT"]
    version = re.search(r'__version__ = "(.+)"', (PACKAGE/"__init__.py").read_text(encoding="utf-8"))[1]
    assert settings["version"] == version, f"settings.ini says {settings['version']}, upl_reid/__init__.py {version}; run nbdev_export"
    assert f"## {version}" in (ROOT/"CHANGELOG.md").read_text(encoding="utf-8"), f"CHANGELOG.md has no section {version}"
    assert PROJECT["requires-python"] == f">={settings['min_python']}", "settings.ini (min_python) and pyproject.toml (requires-python) differ"
    assert PROJECT["description"] == settings["description"], "settings.ini and pyproject.toml describe the project differently"
    assert "tags" in settings["allowed_cell_metadata_keys"].split(), "settings.ini must keep the cell metadata 'tags', or nbdev_clean deletes papermill's parameters"

# ---- README

README = (ROOT/"README.md").read_text(encoding="utf-8")

def block(heading):
    "The first code block under a heading of README.md."
    found = re.search(rf"^{re.escape(heading)}\n(?:(?!^#).*\n)*?```.*\n((?:(?!^```).*\n)*)```", README, re.M)
    assert found, f"README.md has no code block under {heading!r}; .ci/run reads it there"
    return found[1].rstrip("\n")

@pytest.fixture(scope="module")
def readme_script():
    spec = importlib.util.spec_from_file_location("readme_script", ROOT/".ci"/"readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def test_readme_is_in_step_with_index(readme_script):
    assert readme_script.main(["--check"]) == 0, "README.md is not in step with nbs/index.ipynb; run: python .ci/readme.py"

def test_readme_script_notices_a_difference(readme_script, tmp_path, capsys):
    (tmp_path/"nbs").mkdir()
    shutil.copy(NBS/"index.ipynb", tmp_path/"nbs")
    assert readme_script.main(["--check"], tmp_path) == 1       # no README yet
    assert readme_script.main([], tmp_path) == 0 and readme_script.main(["--check"], tmp_path) == 0
    (tmp_path/"README.md").write_text((tmp_path/"README.md").read_text(encoding="utf-8") + "edited by hand\n", encoding="utf-8")
    capsys.readouterr()
    assert readme_script.main(["--check"], tmp_path) == 1 and "run: python .ci/readme.py" in capsys.readouterr().err
    assert readme_script.main(["--chekc"], tmp_path) == 2       # misspelt: not taken for "write"

def test_readme_script_hides_directives_and_moves_links(readme_script, tmp_path):
    import nbformat.v4 as v4
    made = [v4.new_markdown_cell("[a](10_data.ipynb) ![b](../reports/b.png) [c](https://example.org/c) [d](#here)"),
            v4.new_code_cell("#| hide\nsecret = 1"), v4.new_code_cell("#| eval: false\nshown = 1")]
    path = tmp_path/"index.ipynb"
    path.write_text(json.dumps(v4.new_notebook(cells=made)), encoding="utf-8")
    text = readme_script.render(path)
    assert "[a](nbs/10_data.ipynb) ![b](reports/b.png) [c](https://example.org/c) [d](#here)" in text
    assert "shown = 1" in text and "secret" not in text and "#|" not in text

@pytest.mark.parametrize("heading, last", [("## Run it", "papermill nbs/table4.ipynb reports/table4.ipynb"), ("## Run the tests", "nbdev_test --n_workers 2")])
def test_readme_has_one_command_that_installs_and_runs(heading, last):
    command = block(heading)
    assert "\n" not in command, f"README.md: the code block under {heading!r} must be one line"
    for part in ("python3 -m venv .venv", "-c constraints.txt", "-e '.[dev]'"): assert part in command, f"README.md: {part!r} is missing from the command under {heading!r}"
    assert command.endswith(last), f"README.md: the command under {heading!r} must end with {last!r}"

def test_readme_test_command_runs_pytest_too():
    assert "&& pytest" in block("## Run the tests"), "README.md: the test command must run pytest and nbdev_test"

def test_readme_has_every_notebook_and_no_gap():
    rows = {match[1] for match in re.finditer(r"^\| \[[^]]+\]\((nbs/[^)]+\.ipynb)\)", README, re.M)}
    there = {relative(path) for path in NOTEBOOKS} - {"nbs/index.ipynb"}
    assert rows == there, f"the table in nbs/index.ipynb: missing {sorted(there - rows)}, without a notebook {sorted(rows - there)}"
    gaps = [line for line in README.splitlines() if "@@" in line]
    assert not gaps, f"README.md has {len(gaps)} lines with the placeholder '@@'; put in what was measured (nbs/index.ipynb), first: {gaps[0]!r}"

def test_readme_links_lead_somewhere():
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", README) if not re.match(r"https?:|#|mailto:", target)]
    broken = [target for target in targets if not (ROOT/target).exists()]
    assert not broken, f"README.md links to {broken}, which do not exist"

def test_readme_python_names_exist():
    for code in re.findall(r"^```python\n(.*?)^```", README, re.M | re.S):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for name in node.names: assert hasattr(module, name.name), f"README.md imports {name.name} from {node.module}, which has no such name"

def test_readme_parameters_exist():
    for notebook, rest in re.findall(r"papermill (nbs/\S+\.ipynb) (.*(?:\\\n.*)*)", README):
        cell = next(source(cell) for cell in cells(ROOT/notebook) if "parameters" in tags(cell))
        known = {statement.target.id for statement in ast.parse(cell).body if isinstance(statement, ast.AnnAssign)}
        unknown = set(re.findall(r"-p (\w+)", rest)) - known
        assert not unknown, f"README.md gives {notebook} the parameters {sorted(unknown)}; it knows {sorted(known)}"

def test_pictures_have_alternative_text():
    bare = re.findall(r"!\[\s*\]\([^)]*\)|<img(?![^>]*\balt=\"[^\"]+\")[^>]*>", README)
    assert not bare, f"README.md: {bare} say nothing to a reader who cannot see them; add alternative text"

def test_reports_name_no_folder_of_one_machine():
    for path in [*(path for pattern in ("*.md", "*.csv", "*.json") for path in sorted((ROOT/"reports").glob(pattern))), *ROOT.glob("*.md")]:
        found = MACHINE_PATH.search(path.read_text(encoding="utf-8"))
        assert not found, f"{relative(path)}: {found[0]!r} exists on one machine only; write names or paths below the project's root"
