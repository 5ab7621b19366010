"""`run.py features`: rows of the input, the right model's, computed once."""

from pathlib import Path

import numpy as np
import pytest
import torch

import slidr
from slidr.networks.model_file import backbone_weights, write_model
from slidr.networks.student import Student, StudentSpec

SPEC = StudentSpec(architecture="res16unet14c", width=0.25, grid="cylindrical", voxel_size=(0.2, 1, 0.2))
RNG = np.random.default_rng(0)
SCANS = {name: RNG.normal(scale=9, size=(n, 4)).astype(np.float32) for name, n in (("a.npy", 50), ("deep/b.npy", 30))}


@pytest.fixture
def scans(tmp_path):
    """Two scans, one in a folder of its own, and two models."""
    for name, points in SCANS.items():
        (tmp_path / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "scans" / name, points)
    for seed in (1, 2):
        torch.manual_seed(seed)
        student = Student(SPEC, None, 0.1)
        heads = [{"weight": torch.randn(out, 24), "bias": torch.zeros(out)} for out in (5, 3)]
        parts = {"backbone": backbone_weights(student), "point_head": heads[:1], "class_head": heads[1:]}
        write_model(tmp_path / f"{seed}.pt", stage="linprobe", spec=SPEC, classes=("", "a", "b"), **parts)


def test_rows_are_the_points_and_finished_scans_stay(command, scans):
    words = ["features", "--scans=scans", "--weights=1.pt", "--intensity_scale=2"]
    code, out, err = command(*words)
    assert code == 0, err
    assert "2 scans, 80 points" in out and "float16" in out
    network = slidr.load("1.pt")
    for name, points in SCANS.items():
        values = np.load(f"scans/{name}.head.npy")
        assert values.dtype == np.float16 and values.shape == (len(points), 5)
        np.testing.assert_allclose(values, network(points * [1, 1, 1, 2]), atol=1e-3)
    first, second = Path("scans/a.npy.head.npy"), Path("scans/deep/b.npy.head.npy")
    second.unlink()  # as if cut off
    before = first.stat().st_mtime_ns
    code, out, _ = command(*words)
    assert "1 scans, 30 points" in out and "1 were there" in out and second.exists()
    assert first.stat().st_mtime_ns == before
    for other in ("--weights=2.pt", "--intensity_scale=1"):  # of a key given twice the last one counts
        assert "made by another model or with other settings" in command.refused(*words, other)
    code, out, _ = command(*words, "--weights=2.pt", "--output=elsewhere")
    assert code == 0 and Path("elsewhere/deep/b.npy.head.npy").exists()


def test_points_that_are_not_finite_keep_their_rows(command, scans):
    points = SCANS["a.npy"].copy()
    points[[3, 7], [0, 3]] = np.nan, np.inf
    np.save("scans/a.npy", points)
    for kind, lost, width in (("head", np.isnan, (5,)), ("backbone", np.isnan, (24,)), ("classes", np.logical_not, ())):
        code, _, err = command("features", "--scans=scans/a.npy", "--weights=1.pt", f"--kind={kind}")
        assert code == 0, err
        values = np.load(f"scans/a.npy.{kind}.npy")
        assert values.shape == (50, *width)
        assert np.flatnonzero(lost(values.reshape(50, -1)).all(1)).tolist() == [3, 7]
    whole = slidr.load("1.pt")(np.delete(points, [3, 7], 0), head=True)
    np.testing.assert_array_equal(np.delete(values, [3, 7]), whole)


def test_bad_input_gets_a_sentence(command, scans):
    Path("scans/a.npy").write_bytes(b"\x93NUMPY no")
    assert "scans/a.npy cannot be read as .npy" in command.refused("features", "--scans=scans/a.npy", "--weights=1.pt")
    assert not list(Path("scans").glob("*.head.npy"))
    assert "nowhere is not there" in command.refused("features", "--scans=nowhere", "--weights=1.pt")
    assert "pass --weights" in command.refused("features", "--scans=scans")
    assert "`--scans` is needed" in command.refused("features")
    twice = command.refused("features", "--scans=scans/a.npy,scans/deep/../a.npy", "--weights=1.pt", "--output=out")
    assert "would both be written" in twice
