"""What imports load beside torch, counted in modules: seconds differ between machines."""
import json
import subprocess
import sys

STAGES = {"packages": "import upl_reid.evaluation, upl_reid.components, upl_reid.deployment",
          "gallery": "from upl_reid.deployment import Gallery, Hits",
          "evaluation": "from upl_reid.evaluation import evaluate_retrieval, rerank",
          "components": "from upl_reid.components import jaccard_distance, supervised_contrastive",
          "networks and clusters": "from upl_reid.components import build_encoder, camera_dbscan, fit_mixture"}
# modules that each stage adds to those before
MOST = {"packages": 15, "gallery": 60, "evaluation": 300, "components": 60, "networks and clusters": 120}
SLOW = {"pandas", "faiss", "sklearn", "timm", "torchvision", "kornia", "matplotlib", "joblib", "accelerate", "IPython"}

def test_imports_load_little_beside_torch():
    code = ["import json, sys, torch", "added, before = {}, set(sys.modules)"]
    for name, line in STAGES.items():
        code += [line, f"added[{name!r}] = sorted(set(sys.modules) - before)", "before = set(sys.modules)"]
    out = subprocess.run([sys.executable, "-c", "\n".join([*code, "print(json.dumps(added))"])], capture_output=True,
                         text=True, check=True).stdout
    added = json.loads(out)
    slow = {name: sorted(SLOW & {module.split(".")[0] for module in modules}) for name, modules in added.items()}
    assert slow == {name: [] for name in STAGES}
    assert {name: len(modules) for name, modules in added.items() if len(modules) > MOST[name]} == {}

def test_the_help_loads_few_modules():
    code = "import sys, upl_reid.cli as c; c.make_parser().format_help(); print(len(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(out) <= 200, "the help loads more than the standard library's parser and this project's command line"
