"""Who may import whom (ARCHITECTURE.md), what nobody may import at run time, and who may name a method."""

import ast
import re
from pathlib import Path

import pytest

from slidr.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "triton_kernels": {"data", "slidr", "run"},
    "data": {"slidr", "triton_kernels", "run"},
    "slidr": {"run"},
}
NEVER = {
    "MinkowskiEngine",
    "spconv",
    "torchsparse",
    "torchvision",
    "nuscenes",
    "pytorch_lightning",
    "lightning",
    "timm",
}
SOURCES = [path for room in FORBIDDEN for path in sorted((ROOT / room).rglob("*.py"))] + [ROOT / "run.py"]
METHOD_FILES = {place.split(":")[0] for place in METHODS.values()}


def imports(path: Path) -> set[str]:
    """Full names of every module that the file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_stay_in_their_rooms(path):
    room = path.relative_to(ROOT).parts[0]
    assert not {name.split(".")[0] for name in imports(path)} & (FORBIDDEN.get(room, set()) | NEVER)


@pytest.mark.parametrize("path", sorted((ROOT / "slidr/methods").glob("*.py")), ids=lambda p: p.stem)
def test_a_method_imports_neither_a_stage_nor_another_method(path):
    others = METHOD_FILES - {module_of(path)}
    assert not [name for name in imports(path) if name.startswith("slidr.stages") or name in others]


@pytest.mark.parametrize("room", ["slidr/training", "slidr/stages", "slidr/tasks", "data", "triton_kernels"])
def test_nothing_but_methods_and_recipes_names_a_method(room):
    names = re.compile(rf"\b({'|'.join(set(METHODS) - {'slidr'})})\b", re.IGNORECASE)
    for path in sorted((ROOT / room).rglob("*.py")):
        assert not names.search(path.read_text()), path
    stages = [name for path in (ROOT / room).rglob("*.py") for name in imports(path) if name in METHOD_FILES]
    assert not stages


def test_no_import_goes_in_a_circle():
    """Among modules, by what they import at their top; `from package import module` counts as the module."""
    modules = {module_of(path): path for path in SOURCES}
    arrows = {name: {m for m in imports(path) if m in modules and m != name} for name, path in modules.items()}
    for name, targets in arrows.items():  # a package's own modules import it before they can run: no arrow back
        arrows[name] = {target for target in targets if not name.startswith(f"{target}.")}
    done, path = set(), []

    def visit(name: str) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for target in sorted(arrows[name]):
            visit(target)
        done.add(path.pop())

    for name in sorted(modules):
        visit(name)
