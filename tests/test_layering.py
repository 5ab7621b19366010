"""Who may import whom (ARCHITECTURE.md), and what nobody may import at run time."""

import ast
from pathlib import Path

import pytest

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


def imported(path: Path) -> set[str]:
    """Top-level names of everything the file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_stay_in_their_rooms(path):
    room = path.relative_to(ROOT).parts[0]
    assert not imported(path) & (FORBIDDEN.get(room, set()) | NEVER)
