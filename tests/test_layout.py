"""Which module knows which: scripts above soundgenerator.py, preprocess.py and autoencoder.py above
support."""

import ast
from pathlib import Path

from helpers import ROOT

PATHS = [
    *ROOT.glob("*.py"),
    *(
        path
        for name in ("support", "training", "generation")
        for path in (ROOT / name).glob("*.py")
    ),
]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PATHS}


def list_imported(path):
    """The modules of this project that one imports, anywhere."""
    found = set()
    for node in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def test_no_module_needs_itself():
    needed = {name: list_imported(path) - {name} for name, path in MODULES.items()}
    for _ in MODULES:
        needed = {
            name: own.union(*(needed[other] for other in own)) for name, own in needed.items()
        }

    assert [name for name, others in needed.items() if name in others] == []


def test_support_knows_nothing_above_it_and_training_nothing_of_generation():
    kinds = {name: {n.split(".")[0] for n in list_imported(p)} for name, p in MODULES.items()}

    for name, others in kinds.items():
        kind = name.split(".")[0]
        assert kind != "support" or others <= {"support"}, name
        assert kind not in ("training", "train") or "generation" not in others, name
        assert kind not in ("generation", "generate") or "training" not in others, name
