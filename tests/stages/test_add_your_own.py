"""docs/add_your_own.md: its examples, exactly as printed, run by its commands."""

import re
from pathlib import Path

import numpy as np
import pytest

import run

PAGE = Path(__file__).parents[2] / "docs" / "add_your_own.md"
QUICK = ["--epochs=1", "--batch=2", "--workers=0", "--architecture=res16unet14c", "--width=0.25", "--threads=1"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with the page's files in it, and scans for its data set."""
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    rng = np.random.default_rng(0)
    for split, scenes in (("train", ("a", "b")), ("val", ("c",))):
        for scene in scenes:
            rows = np.column_stack((rng.normal(0, 10, (300, 3)), rng.random(300), rng.integers(0, 4, 300)))
            path = tmp_path / "datasets/my_data" / split / scene / "0.npy"
            path.parent.mkdir(parents=True)
            np.save(path, rows)
    return tmp_path


def printed(beginning: str) -> list[str]:
    """The words of the page's command that begins so."""
    (line,) = (line.strip() for line in PAGE.read_text().splitlines() if line.strip().startswith(beginning))
    return line.split()[2:]


def test_the_page_is_short():
    assert len(PAGE.read_text().splitlines()) < 100


def test_an_own_method_learns_from_own_data(folder, capsys):
    assert run.main([*printed("python run.py pretrain --method"), *QUICK]) == 0
    said = capsys.readouterr().out
    assert "my_method:Distance" in said and "metres" in said and "2 frames to train on, 1 to validate on" in said
    assert run.main([*printed("python run.py linprobe"), *QUICK[:3], "--threads=1", "--pictures=1"]) == 0
    (report,) = (folder / "output/linprobe").glob("*/report.md")
    assert "wall" in report.read_text()
    assert run.main(["pretrain", "--method", "my_method:Nothing"]) == 2
    assert "my_method:Nothing" in capsys.readouterr().err


def test_help_shows_the_keys_of_an_own_method(folder, capsys):
    assert run.main(["pretrain", "--method", "my_method:Distance", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--unit" in said and "metres that count as 1" in said and "--temperature" not in said


def test_an_own_teacher(folder, tiny_world, capsys):
    small = ["--crop=40,64", "--segments=20", "--min_pairs=10", f"--root={tiny_world}", "--teacher_weights=none"]
    assert run.main([*printed("python run.py pretrain --teacher"), *QUICK, *small]) == 0
    assert "my_teacher:build: as it was built" in capsys.readouterr().out
