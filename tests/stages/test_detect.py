"""`run.py detect` and what follows it, as a user runs them on the tiny world."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch

from data.datasets import open_reader
from data.datasets.synthetic import write_kitti_object
from data.frame import Needs
from tests.stages.conftest import TINY

SMALL = ["--architecture=res16unet14c", "--width=0.25", "--bev_channels=8", "--cell=1.6", "--epochs=1", "--batch=2"]
DETECT = ["detect", "--root=world", "--weights=random", *SMALL, "--workers=0", "--pct=100"]
RUNS = Path("output/detect")


def figures(folder: Path) -> dict[str, float]:
    return json.loads((folder / "scores.json").read_text())["figures"]


def test_a_run_leaves_scores_pictures_its_frames_and_a_detector(command):
    code, out, err = command(*DETECT, "--name=a", "--pct=50", "--pictures=1")
    assert code == 0, err
    assert "head for 10 classes" in out and "| AP (%) | random |" in out and "| **mAP** |" in out
    run = RUNS / "a"
    assert len((run / "subset.txt").read_text().splitlines()) == 2  # a remark and one of two scenes' frames
    for name in ("birds_eye_0.png", "camera_0.png", "classes.png", "scores.csv", "report.md", "best.pt"):
        assert (run / name).exists() or name == "best.pt", name
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"heat", "regression"} <= rows[0].keys() and rows[-1]["val_mAP"] == figures(run)["mAP"]
    code, out, err = command("evaluate", "--root=world", "--name=e", "--pictures=1", "--workers=0")
    assert code == 0, err
    assert "output/detect/a/model.pt" in out and figures(Path("output/evaluate/e")) == figures(run)
    submission = ["evaluate", "--root=world", "--name=s", "--pictures=0", "--workers=0", "--submission=boxes"]
    code, out, err = command(*submission)
    assert code == 0, err
    assert "submission: " in out and any(Path("boxes").iterdir())
    other = command.refused("evaluate", "--dataset=kitti", "--root=world/kitti", "--weights", run / "model.pt")
    assert "kitti has no boxes around objects; choose another --dataset for detection" in other
    code, out, err = command("view", "--root=world", "--weights", run / "model.pt", "--workers=0", "--segments=20")
    assert code == 0, err
    facts = re.search(r'id="facts">(.*)</script>', Path("output/view/synthetic/val_0.html").read_text())[1]
    layout = {name: length for name, _, length in json.loads(facts)["frames"][0]["layout"][0]}
    truth = open_reader("synthetic", Path("world"), "val").read(0, Needs(boxes=True)).boxes
    assert json.loads(facts)["boxes"] == ["found", "true"] and "foundLines" in layout
    assert layout["trueLines"] == layout["trueShades"] == len(truth) * 14 * 2 * 3  # edges, a cross; ends; numbers
    for stage in ("linprobe", "detect"):  # a detector is weights to begin with, too
        words = [w for w in DETECT[1:] if not w.startswith(("--weights", "--bev", "--cell", "--pct"))]
        code, out, err = command(stage, *words, "--weights", run / "model.pt", "--pictures=0")
        assert code == 0, err


def test_seeds_and_shares(command):
    words = [*DETECT, "--pictures=0", "--sweep=50,100", "--seeds=2", "--name=s"]
    code, out, err = command(*words)
    assert code == 0, err
    table = list(csv.DictReader((RUNS / "s/sweep.csv").open()))
    assert [row["labels (%)"] for row in table] == ["50", "100"] and "mAP" in table[0] and table[0]["std"]
    code, out, err = command(*DETECT, "--pictures=0", "--seeds=2", "--name=s-random-100pct")
    assert code == 0 and out.count("is finished and used as it is") == 2, err
    assert "mAP " in (RUNS / "s-random-100pct/report.md").read_text()


def test_a_run_that_was_cut_goes_on_with_the_same_bits(command):
    words = [*DETECT, "--pictures=0", "--epochs=2", "--checkpoint_minutes=0", "--keep_checkpoints=9"]
    words += ["--keep=best", "--min_score=0", "--validate_every=1"]
    for name in ("whole", "cut"):
        code, _, err = command(*words, f"--name={name}")
        assert code == 0, err
    cut = RUNS / "cut"
    for path in (cut / "report.md", cut / "model.pt", *cut.glob("checkpoints/step-000000002-*")):
        path.unlink()
    code, out, err = command(*words, "--name=cut", "--resume")
    assert code == 0 and "goes on after step 1 of 2" in out, err
    a, b = (torch.load(RUNS / name / "model.pt", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(a["detector"]["weights"][n], b["detector"]["weights"][n]) for n in a["detector"]["weights"])
    assert all(torch.equal(a["backbone"][n], b["backbone"][n]) for n in a["backbone"])


def test_kittis_layout_and_what_was_published_of_it(command):
    write_kitti_object(Path("world/kitti_object"), TINY)
    words = ["detect", "--dataset=kitti_object", "--root=world/kitti_object", "--weights=random", *SMALL[:3]]
    words += ["--cell=2", "--epochs=1", "--batch=1", "--workers=0", "--pictures=1"]
    code, out, err = command(*words, "--pct=5", "--name=k")
    assert code == 0, err
    assert "35 x 40 cells of 2 m" in out or "36 x 40 cells of 2 m" in out
    row = next(line for line in out.splitlines() if line.startswith("| **mAP**"))
    assert row.endswith("| 57.8 | 56.1 |") and "PointRCNN" in out and "the gain over random, not the figures" in out
    assert (RUNS / "k/camera_0.png").exists()
    code, out, err = command("evaluate", *words[1:3], "--name=e", "--pictures=0", "--workers=0")
    assert code == 0 and row in out, err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dataset=kitti", "--root=world/kitti"], "kitti has no boxes around objects; choose another --dataset"),
        (["--area=1,2,3"], "`area` cannot be '1,2,3': it takes 4 values"),
        (["--area=5,0,1,9"], "`area` cannot be '5,0,1,9': it is x and y of the near corner"),
        (["--cell=0.001"], "more than 2048 cells of 0.001 m along an axis; raise --cell"),
        (["--rotation=200"], "`rotation` cannot be '200'"),
        (["--weights=a.pt,b.pt"], "several --weights are for --sweep: name one"),
        (["--sweep=5,10", "--subset=list.txt"], "drop the list given as `subset`"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(command, words, says):
    assert says in command.refused(*DETECT, *words)


def test_a_split_without_annotations(command):
    for path in Path("world/nuscenes").glob("v1.0*/sample_annotation.json"):
        path.unlink()
    words = ["--dataset=nuscenes", "--root=world/nuscenes"]
    assert "the split `train` of nuscenes has no boxes; choose another split" in command.refused(*DETECT, *words)
