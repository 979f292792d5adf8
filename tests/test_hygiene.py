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
    code = [source(cell) for cell in cells(path) if cell["cell_type"] == "code"]
    found = [m[1] for text in code if (m := re.search(r"^#\s*\|\s*default_exp\s+(\S+)", text, re.M))]
    assert len(found) <= 1, f"{relative(path)}: {len(found)} default_exp directives; keep one"
    return found[0] if found else None

def visible(path): return not any(part.startswith((".", "_")) for part in path.relative_to(NBS).parts)

NOTEBOOKS = sorted(filter(visible, NBS.rglob("*.ipynb")))

def parameter_cells(path):
    "Cells that begin with 'name: type = value': what papermill replaces, if it is tagged."
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    return [cell for cell in code if re.match(r"\w+: \w+ = ", source(cell))]

TABLES = [path for path in NOTEBOOKS
          if re.match(r"table|benchmark|figures|claims", path.stem) or parameter_cells(path)]
EXPORTS = {module: path for path in NOTEBOOKS if (module := default_exp(path))}
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))
           if path.name not in ("__init__.py", "_modidx.py")}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
each_module = pytest.mark.parametrize("module", MODULES)

# ---- notebooks

# A folder that exists on one machine only; inside longer words, addresses and relative paths it is something else.
MACHINE_PATH = re.compile(r"(?<![\w.~:/}])/(?:home|root|tmp|Users|work|opt|mnt|private|var)/[\w.-]+")

def output_text(output):
    "The words of an output; pictures are bytes in base64, where any combination of letters can turn up."
    if output["output_type"] == "stream": return "".join(output["text"])
    data = {kind: value for kind, value in output.get("data", {}).items() if isinstance(value, (str, list))}
    return "\n".join("".join(value) for kind, value in data.items() if not re.match(r"image/(?!svg)", kind))

@each_notebook
def test_notebook_runs_with_the_kernel_that_papermill_looks_for(path):
    kernel = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("kernelspec", {}).get("name")
    assert kernel == "python3", f"{relative(path)}: kernel {kernel!r}; choose 'Python 3 (ipykernel)' and save"

@each_notebook
def test_notebook_has_no_left_overs(path):
    metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    assert "widgets" not in metadata, \
        f"{relative(path)}: the state of progress bars was saved; delete 'widgets' from its metadata"
    for number, cell in enumerate(cells(path)):
        where, outputs = f"{relative(path)}, cell {number}", cell.get("outputs", [])
        kinds = {kind for output in outputs for kind in (output["output_type"], *output.get("data", {}))}
        assert "injected-parameters" not in tags(cell), f"{where}: an executed copy; restore the notebook"
        conflict = re.search(r"^`?(<{7}|>{7})", source(cell), re.M)
        assert not conflict, f"{where}: a merge conflict; resolve it (nbdev_fix shows both sides)"
        assert "error" not in kinds, f"{where}: an error was saved; run the notebook again"
        widget = "application/vnd.jupyter.widget-view+json"
        assert widget not in kinds, f"{where}: a progress bar was saved, which no page can show; leave it out"

@each_notebook
def test_notebook_outputs_are_small(path):
    size = sum(len(json.dumps(cell.get("outputs", []))) for cell in cells(path))
    assert size < 100_000, f"{relative(path)}: {size/1000:.0f} kB of outputs; draw smaller figures, below 100 kB"

@each_notebook
def test_notebook_names_no_folder_of_one_machine(path):
    for number, cell in enumerate(cells(path)):
        for text in [source(cell), *map(output_text, cell.get("outputs", []))]:
            found = MACHINE_PATH.search(text)
            assert not found, f"{relative(path)}, cell {number}: {found[0]!r} is a path of one machine; print others"

@each_notebook
def test_notebook_opens_with_title_and_summary(path):
    first = cells(path)[0]
    opens = first["cell_type"] == "markdown" and re.match(r"# \S.*\n\n> \S", source(first))
    assert opens, f"{relative(path)}: begin with a cell '# Title', an empty line, '> one line that says what this is'"

@pytest.mark.parametrize("path", TABLES, ids=relative)
def test_table_notebook_has_one_parameters_cell_of_plain_literals(path):
    tagged = [source(cell) for cell in cells(path) if "parameters" in tags(cell)]
    assert len(tagged) == 1, f"{relative(path)}: {len(tagged)} cells tagged 'parameters'; papermill needs exactly one"
    assert [*map(source, parameter_cells(path))] == tagged, f"{relative(path)}: tag the cell of parameters"
    for statement in ast.parse(tagged[0]).body:
        where = f"{relative(path)}, parameters cell: {ast.unparse(statement)!r}"
        plain = isinstance(statement, ast.AnnAssign) and statement.value is not None
        assert plain, f"{where}; write 'name: type = default  # help'"
        try: ast.literal_eval(statement.value)
        except ValueError: pytest.fail(f"{where} is computed; papermill replaces literals, move it to the next cell")

# ---- modules

def test_every_module_has_its_notebook():
    strays = set(MODULES) - set(EXPORTS)
    assert not strays, f"no notebook exports upl_reid/ {sorted(strays)}; write notebooks, or delete them"

def test_every_exporting_notebook_has_its_module():
    missing = {module: relative(path) for module, path in EXPORTS.items() if module not in MODULES}
    assert not missing, f"not exported: {missing}; run nbdev_export"

@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of what nbdev reads and writes, to run it there."
    root = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT/"settings.ini", root)
    caches = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for folder in (PACKAGE, NBS): shutil.copytree(folder, root/folder.name, ignore=caches)
    return root

def changed_by(command, copy, folder, pattern):
    "The files below `folder` that an nbdev command writes differently from what is here."
    result = subprocess.run([Path(sys.executable).with_name(command)], cwd=copy, capture_output=True, text=True)
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}{result.stderr}"
    def contents(root):
        paths = {path.relative_to(root): path for path in (root/folder).rglob(pattern)}
        hidden = {name for name in paths if any(part.startswith(".") for part in name.parts)}
        return {name: path.read_bytes() for name, path in paths.items() if name not in hidden}
    here, there = contents(ROOT), contents(copy)
    return sorted(name.as_posix() for name in here.keys() | there.keys() if here.get(name) != there.get(name))

def test_exported_code_is_in_step_with_the_notebooks(copy):
    changed = changed_by("nbdev_export", copy, "upl_reid", "*.py")
    assert not changed, f"not as the notebooks say: {changed}; edit the notebook, not the module, and run nbdev_export"

def test_notebooks_are_clean(copy):
    changed = changed_by("nbdev_clean", copy, "nbs", "*.ipynb")
    assert not changed, f"not clean: {changed}; run nbdev_clean"

# The folders, each of which builds on those before it; and what some of them may import at most, beside themselves.
WINGS = ("core", "data", "components", "evaluation", "training", "methods", "experiments", "deployment", "cli")
ALONE = dict(data=("core",), components=("core",), evaluation=("core", "components"),
             training=("core", "data", "components"))
LARGE = {"timm", "kornia", "papermill", "matplotlib", "faiss", "accelerate"}         # libraries that take long to load

def wing(module): return module.split(".")[0]

def order(module):
    "A module's place in the one-way order: its folder, then the number of its notebook; methods have no order."
    number = re.match(r"(\d+)_", EXPORTS[module].stem)
    free = wing(module) in ("core", "cli", "methods")
    assert number or free, f"{relative(EXPORTS[module])} has no number; name it NN_{module.split('.')[-1]}.ipynb"
    return WINGS.index(wing(module)), int(number[1]) if number else 0

@pytest.mark.parametrize("module", EXPORTS)
def test_a_notebook_lies_in_the_folder_of_its_module(module):
    folder, name = EXPORTS[module].parent.relative_to(NBS).as_posix(), re.sub(r"^\d\d_", "", EXPORTS[module].stem)
    expected = f"{folder}.{name}" if folder != "." else name
    assert expected == module, f"{relative(EXPORTS[module])} exports {module}; give both the same folder and name"

def imported(module):
    "The modules of the package that `module` imports anywhere in its code."
    found, here = set(), ["upl_reid", *module.split(".")]
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): targets = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = here[:-node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            targets = [base, *(f"{base}.{name.name}" for name in node.names)]
        else: continue
        found |= {target.removeprefix("upl_reid.") for target in targets}
    return (found & set(MODULES)) - {module}

@each_module
def test_module_imports_only_from_modules_before_it(module):
    assert module in EXPORTS, f"{module} has no notebook"
    own = wing(module)
    later = sorted(m for m in imported(module) if order(m) >= order(module) and not own == wing(m) == "methods")
    assert not later, f"{module} imports {later}, which come after it; move what is shared to an earlier notebook"
    foreign = sorted(m for m in imported(module) if wing(m) not in (*ALONE.get(own, WINGS), own))
    assert not foreign, f"{module} imports {foreign}; {own} imports only {', '.join(ALONE[own])}"

def loaded_with(module):
    "The modules of the package and the large libraries that are loaded with a module, in a process of its own."
    code = f"import importlib, sys; importlib.import_module({module!r}); print(*sys.modules)"
    command = [sys.executable, "-c", code]
    names = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    return {name for name in names if name.startswith("upl_reid.") or name in LARGE}

@pytest.mark.parametrize("module, never", [
    ("upl_reid.evaluation.reranking", ("data", "training", "methods", "experiments", "deployment")),
    ("upl_reid.components.clustering", ("data", "evaluation", "training", "methods", "experiments", "deployment")),
    ("upl_reid.deployment.gallery", ("evaluation", "training", "methods", "experiments"))])
def test_a_wing_loads_only_what_it_uses(module, never):
    loaded = loaded_with(module)
    wrong = {name for name in loaded if name.split(".")[1:2] and name.split(".")[1] in never} | (loaded & LARGE)
    assert not wrong, f"import {module} loads {sorted(wrong)}"

@pytest.mark.parametrize("name", [*ALONE, "experiments", "deployment"])       # in one order: xdist compares the lists
def test_a_wing_hands_on_every_public_name_of_its_modules(name):
    handed = importlib.import_module(f"upl_reid.{name}")
    for module in (importlib.import_module(f"upl_reid.{module}") for module in MODULES if wing(module) == name):
        for public in module.__all__:
            same = getattr(handed, public) is getattr(module, public)
            assert same, f"upl_reid.{name} lacks {public}; run .ci/wings.py"

def all_of(module):
    loaded = importlib.import_module(f"upl_reid.{module}")
    return loaded, [(name, getattr(loaded, name)) for name in loaded.__all__]

@each_module
def test_public_names_are_documented(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = {node.name: node for node in tree.body if isinstance(node, kinds)}
    silent = [name for name, node in defined.items() if not name.startswith("_") and not ast.get_docstring(node)]
    assert not silent, f"{relative(EXPORTS[module])}: {silent} have no docstring; say what and where from"

@each_module
def test_parameters_of_public_functions_are_documented(module):
    from fastcore.docments import docments
    loaded, names = all_of(module)
    def written_here(value):
        if getattr(value, "__module__", None) != loaded.__name__: return False
        made = inspect.isclass(value) and "__init__" in vars(value) and not hasattr(value, "__dataclass_fields__")
        made = made and not getattr(value, "_is_protocol", False)               # whose __init__ typing writes
        return inspect.isfunction(value) or made
    comments = {name: docments(value, returns=False, args_kwargs=True) for name, value in names if written_here(value)}
    silent = [f"{name}({parameter})" for name, found in comments.items() for parameter, comment in found.items()
              if parameter != "self" and not comment]
    assert not silent, (f"{relative(EXPORTS[module])}: no comment beside {silent}; put each parameter on its own line "
                        "with a comment (unit, shape, range)")

def test_fastcore_and_nbdev_are_not_needed_at_run_time():
    tools = {"fastcore", "nbdev", "execnb", "pytest", "hypothesis"}
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
        used = {name.split(".")[0] for name in names} & tools
        assert not used, f"{relative(EXPORTS[module])} imports {sorted(used)}, which only dev installs; do without"

# ---- environments

PROJECT = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

def expand(requirements):
    "The requirements, with `upl-reid[extra, ...]` replaced by what these extras list."
    found = []
    for requirement in map(Requirement, requirements):
        if requirement.name != PROJECT["name"]: found.append(requirement)
        else: found += [r for extra in sorted(requirement.extras) for r in expand(EXTRAS[extra])]
    return found

REQUIREMENTS = expand([*PROJECT["dependencies"], *EXTRAS["dev"]])

def name_of(requirement): return canonicalize_name(requirement.name)

def normal(requirement):
    "A requirement in one spelling, so that order and spaces don't count."
    return f"{name_of(requirement)}{requirement.specifier}; {requirement.marker}"

def test_conda_environment_is_in_step_with_pyproject():
    dependencies = yaml.safe_load((ROOT/"environment.yml").read_text(encoding="utf-8"))["dependencies"]
    pip = next(entry["pip"] for entry in dependencies if isinstance(entry, dict))
    python = PROJECT["requires-python"]
    assert f"python={python.removeprefix('>=')}" in dependencies, f"environment.yml: python is not {python}"
    assert "-c constraints.txt" in pip, "environment.yml: the pip section must begin with '-c constraints.txt'"
    listed = {normal(Requirement(line)) for line in pip if not line.startswith("-")}
    wanted = set(map(normal, REQUIREMENTS))
    assert listed == wanted, (f"environment.yml and pyproject.toml (base and dev) differ: only in the first "
                              f"{sorted(listed - wanted)}, only in the second {sorted(wanted - listed)}")

def test_conda_environment_has_what_the_notebooks_are_worked_on_with():
    asked = {"torch", "timm", "jupyterlab", "papermill", "nbdev", "scikit-learn", "matplotlib", "seaborn", "faiss-gpu"}
    missing = asked - set(map(name_of, REQUIREMENTS))
    assert not missing, f"pyproject.toml: {sorted(missing)} must stay in dev, and so in environment.yml"

def test_the_dev_extra_has_everything():
    names = set(map(name_of, REQUIREMENTS))
    for extra, requirements in EXTRAS.items():
        missing = sorted(set(map(name_of, expand(requirements))) - names)
        assert not missing, f"pyproject.toml: dev lacks {missing} of {extra}; name {extra} in its upl-reid[...]"

def test_no_requirement_is_in_two_layers():
    names = list(map(name_of, REQUIREMENTS))
    twice = sorted({name for name in names if names.count(name) > 1})
    assert not twice, f"pyproject.toml requires {twice} in two layers; keep the lower one (base, extras, dev)"

def test_constraints_pin_every_requirement():
    lines = (ROOT/"constraints.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    loose = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!+]+", line)]
    assert not loose, f"constraints.txt: {loose}; every line must read name==version"
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    assert len(pins) == len(lines), "constraints.txt names a package twice; keep one line for each"
    for requirement in REQUIREMENTS:
        pin = pins.get(name_of(requirement))
        assert pin, f"constraints.txt has no version of {requirement.name}; add the one that the tests pass with"
        assert requirement.specifier.contains(pin), f"constraints.txt pins {pin}, pyproject.toml asks for {requirement}"

def test_lowest_versions_are_those_of_pyproject():
    def lines(*extras):
        command = [sys.executable, ROOT/".ci"/"lowest.py", *extras]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    base = PROJECT["dependencies"]
    for found, requirements in ((lines(), base), (lines("dev"), [*base, *EXTRAS["dev"]])):
        found = {name_of(r): next(iter(r.specifier)).version for r in map(Requirement, found)}
        assert "torch" in found and "upl-reid" not in found
        for r in expand(requirements):
            low = [s.version for s in r.specifier if s.operator in (">=", "==")]
            assert [found[name_of(r)]] == low if low else name_of(r) not in found, f"{r}: {found.get(name_of(r))}"

def test_version_and_python_are_said_the_same_everywhere():
    settings = configparser.ConfigParser()
    settings.read(ROOT/"settings.ini")
    settings = settings["DEFAULT"]
    version = re.search(r'__version__ = "(.+)"', (PACKAGE/"__init__.py").read_text(encoding="utf-8"))[1]
    assert settings["version"] == version, f"settings.ini: {settings['version']}, package: {version}; run nbdev_export"
    changes = (ROOT/"CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {version}" in changes, f"CHANGELOG.md has no section {version}"
    cited = yaml.safe_load((ROOT/"CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == version, f"CITATION.cff says {cited['version']}, upl_reid/__init__.py {version}"
    assert cited["license"] == PROJECT["license"], "CITATION.cff and pyproject.toml have different licenses"
    assert cited["repository-code"] == settings["git_url"], "CITATION.cff and settings.ini have different addresses"
    assert PROJECT["requires-python"] == f">={settings['min_python']}", "settings.ini (min_python) differs"
    assert PROJECT["description"] == settings["description"], "settings.ini has another description"
    assert "tags" in settings["allowed_cell_metadata_keys"].split(), (
        "settings.ini must keep the cell metadata 'tags', or nbdev_clean deletes papermill's parameters")

def test_slow_tests_exist():
    from slow import SLOW
    for name, tests in SLOW.items():
        path = ROOT/"tests"/name
        assert path.is_file(), f"tests/slow.py: SLOW names {name}, which is not there"
        body = ast.parse(path.read_text(encoding="utf-8")).body
        gone = sorted(set(tests.split()) - {node.name for node in body if isinstance(node, ast.FunctionDef)} - {"*"})
        assert not gone, f"tests/slow.py: SLOW names {gone} of {name}, which are not there; rename or remove them"

# ---- README

README = (ROOT/"README.md").read_text(encoding="utf-8")
GUIDES = README + "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT/"docs").glob("*.md")))

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
    assert readme_script.main(["--check"]) == 0, \
        "README.md is not in step with nbs/index.ipynb; run: python .ci/readme.py"

def test_readme_script_notices_a_difference(readme_script, tmp_path, capsys):
    (tmp_path/"nbs").mkdir()
    shutil.copy(NBS/"index.ipynb", tmp_path/"nbs")
    assert readme_script.main(["--check"], tmp_path) == 1       # no README yet
    assert readme_script.main([], tmp_path) == 0 and readme_script.main(["--check"], tmp_path) == 0
    readme = tmp_path/"README.md"
    readme.write_text(readme.read_text(encoding="utf-8") + "edited by hand\n", encoding="utf-8")
    capsys.readouterr()
    assert readme_script.main(["--check"], tmp_path) == 1 and "run: python .ci/readme.py" in capsys.readouterr().err
    assert readme_script.main(["--chekc"], tmp_path) == 2       # misspelt: not taken for "write"

def test_readme_script_hides_directives_and_moves_links(readme_script, tmp_path):
    import nbformat.v4 as v4
    made = [v4.new_markdown_cell("[a](table1.ipynb) ![b](../reports/b.png) [c](https://example.org/c) [d](#here)"),
            v4.new_code_cell("#| hide\nsecret = 1"), v4.new_code_cell("#| eval: false\nshown = 1")]
    path = tmp_path/"index.ipynb"
    path.write_text(json.dumps(v4.new_notebook(cells=made)), encoding="utf-8")
    text = readme_script.render(path)
    assert "[a](nbs/table1.ipynb) ![b](reports/b.png) [c](https://example.org/c) [d](#here)" in text
    assert "shown = 1" in text and "secret" not in text and "#|" not in text

@pytest.mark.parametrize("heading, last", [
    ("## Run it", "papermill nbs/table4.ipynb reports/table4.ipynb"),
    ("## Run the tests", "nbdev_test --n_workers 2")])
def test_readme_has_one_command_that_installs_and_runs(heading, last):
    command = block(heading)
    assert "\n" not in command, f"README.md: the code block under {heading!r} must be one line"
    for part in ("python3 -m venv .venv", "-c constraints.txt", "-e '.[dev]'"):
        assert part in command, f"README.md: {part!r} is missing from the command under {heading!r}"
    assert command.endswith(last), f"README.md: the command under {heading!r} must end with {last!r}"

def test_readme_test_command_runs_pytest_too():
    assert "&& pytest" in block("## Run the tests"), "README.md: the test command must run pytest and nbdev_test"

def test_readme_has_one_command_that_builds_the_documentation():
    command = block("## Build the documentation")
    assert "\n" not in command and command.endswith("python docs/build.py"), \
        "README.md: the code block under '## Build the documentation' must be one line and end with " \
        "'python docs/build.py'"
    named = re.search(r"-c constraints.txt ([\w -]+) &&", command)[1].split()
    wanted = [Requirement(requirement).name for requirement in PROJECT["optional-dependencies"]["docs"]]
    assert named == wanted, \
        f"README.md installs {named} to build the documentation; pyproject.toml (docs) lists {wanted}"

def test_extras_that_the_tests_need_are_in_dev():
    extras = PROJECT["optional-dependencies"]
    named = {name for line in extras["dev"] if (r := Requirement(line)).name == PROJECT["name"] for name in r.extras}
    assert named == extras.keys() - {"dev"}, \
        f"pyproject.toml: the dev extra includes {sorted(named)}; it must include all others"

def test_readme_fits_on_two_screens():
    text = re.sub(r"<!--.*?-->", "", README, flags=re.S)
    words, lines = len(text.split()), sum(1 + len(line)//100 for line in text.splitlines())
    assert words < 700 and lines < 110, \
        f"README.md has {words} words and {lines} lines of 100 characters; move what is long to a page of docs/"
    assert len(re.findall(r"!\[", text)) == 1, "README.md shows one picture: the pipeline"

def test_readme_links_lead_somewhere():
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", README)
               if not re.match(r"https?:|#|mailto:", target)]
    broken = [target for target in targets if not (ROOT/target).exists()]
    assert not broken, f"README.md links to {broken}, which do not exist"

def test_readme_python_names_exist():
    for code in re.findall(r"^```python\n(.*?)^```", GUIDES, re.M | re.S):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), \
                        f"README.md imports {name.name} from {node.module}, which has no such name"

def test_readme_parameters_exist():
    for notebook, rest in re.findall(r"papermill (nbs/[a-z0-9_/]+\.ipynb) ([^`\n]*(?:\\\n[^`\n]*)*)", GUIDES):
        cell = next(source(cell) for cell in cells(ROOT/notebook) if "parameters" in tags(cell))
        known = {statement.target.id for statement in ast.parse(cell).body if isinstance(statement, ast.AnnAssign)}
        unknown = set(re.findall(r"-p (\w+)", rest)) - known
        assert not unknown, f"README.md gives {notebook} the parameters {sorted(unknown)}; it knows {sorted(known)}"

def test_pictures_have_alternative_text():
    bare = re.findall(r"!\[\s*\]\([^)]*\)|<img(?![^>]*\balt=\"[^\"]+\")[^>]*>", GUIDES)
    assert not bare, f"README.md or docs/: {bare} say nothing to a reader who cannot see them; add alternative text"

def test_reports_name_no_folder_of_one_machine():
    folders = [ROOT/"reports", *(ROOT/"reports"/paper for paper in ("p2lr", "inclr", "cgc", "mspl"))]
    reports = [path for pattern in ("*.md", "*.csv", "*.json") for folder in folders
               for path in sorted(folder.glob(pattern))]
    for path in [*reports, *ROOT.glob("*.md")]:
        found = MACHINE_PATH.search(path.read_text(encoding="utf-8"))
        assert not found, \
            f"{relative(path)}: {found[0]!r} exists on one machine only; write names or paths below the project's root"


@each_notebook
def test_pictures_that_a_cell_shows_are_stored(path):
    "A notebook that was run where matplotlib draws nothing (MPLBACKEND=Agg) has lost its pictures."
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    if not any(cell["outputs"] for cell in code): return      # papermill runs it
    showing = [cell for cell in code if "plt.show()" in source(cell)]
    blank = [cell["id"] for cell in showing if not any("image/png" in out.get("data", {}) for out in cell["outputs"])]
    assert not blank, f"{relative(path)}: cells {blank} show a picture and store none; run it without MPLBACKEND"
