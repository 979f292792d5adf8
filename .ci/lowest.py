"""Print the lowest versions that pyproject.toml allows, as constraints for pip.

usage: python .ci/lowest.py [extra ...] > lowest.txt && pip install -c lowest.txt -e '.[extra,...]'

Without an extra: those of the base. A requirement without a lower bound gets no line, and neither does
anything that the requirements themselves require.
"""
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

def expand(requirements, project):
    "The requirements, with `upl-reid[extra, ...]` replaced by what these extras list."
    found = []
    for requirement in map(Requirement, requirements):
        if requirement.name != project["name"]: found.append(requirement)
        for extra in sorted(requirement.extras if requirement.name == project["name"] else ()):
            found += expand(project["optional-dependencies"][extra], project)
    return found

def lower_bound(requirement):
    "`name==version; marker` of a requirement with a lower bound (>= or ==); None without one."
    bounds = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
    if not bounds: return None
    return f"{requirement.name}=={bounds[0]}" + (f"; {requirement.marker}" if requirement.marker else "")

def main(extras):
    "Print the lines for the base and some extras."
    project = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = project["optional-dependencies"]
    if unknown := sorted(set(extras) - set(known)):
        sys.exit(f"pyproject.toml has no extra {', '.join(unknown)}; it has {', '.join(known)}")
    wanted = [*project["dependencies"], *(r for extra in extras for r in known[extra])]
    print(*filter(None, map(lower_bound, expand(wanted, project))), sep="\n")

if __name__ == "__main__": main(sys.argv[1:])
