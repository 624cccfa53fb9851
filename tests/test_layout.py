"""Which module knows which: scripts above soundgenerator.py, preprocess.py and autoencoder.py above
support."""

import ast
import graphlib

from helpers import ROOT

PATTERNS = "*.py", "support/*.py", "training/*.py", "generation/*.py"
PATHS = [path for pattern in PATTERNS for path in ROOT.glob(pattern)]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PATHS}
# For each script or package, those that it may not know.
ABOVE = dict.fromkeys(("training", "train"), {"generation", "generate"})
ABOVE |= dict.fromkeys(("generation", "generate"), {"training", "train"})
ABOVE["support"] = {name.split(".")[0] for name in MODULES} - {"support"}


def list_imported(path):
    """The modules of this project that one imports, anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def test_imports_make_no_circle_and_no_way_up():
    imported = {name: list_imported(path) - {name} for name, path in MODULES.items()}

    graphlib.TopologicalSorter(imported).prepare()  # which raises an error for a circle
    for name, others in imported.items():
        kinds = {other.split(".")[0] for other in others}
        assert not kinds & ABOVE.get(name.split(".")[0], set()), name
