"""The commands of the README on a tiny world: what they print, and what they leave."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.stages.conftest import SMALL

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_the_stages_in_the_order_of_use(command):
    code, out, _ = command("--help")
    assert code == 0
    order = [line.split()[0] for line in out.splitlines()[2:]]
    trained, shown = "demo synth superpixels pretrain linprobe fewshot detect", "evaluate show knn zeroshot view"
    assert order == [*trained.split(), *shown.split(), "features", "convert", "export", "env"]


def test_an_unknown_stage_and_an_unknown_key_exit_with_2_and_no_traceback():
    for words in (["pretain"], ["pretrain", "--tempreature", "1"]):
        done = subprocess.run(
            [sys.executable, ROOT / "run.py", *words], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("run.py ")


def test_pretrain_probe_finetune_evaluate_show(command):
    """The whole way; every run leaves a folder that can be run again."""
    code, out, err = command("pretrain", "--root=world", "--name=first", *SMALL)
    assert code == 0, err
    assert "resnet_small" in out and "random" in out  # the start block names the teacher
    folder = Path("output/pretrain/first")
    for name in ("config.yaml", "metrics.jsonl", "model.pt", "report.md", "curves.png", "camera.png", "similarity.png"):
        assert (folder / name).stat().st_size > 0
    assert list(folder.glob("events.out.tfevents*"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] > 0 and rows[0]["superpixels"] > 0 and "val_loss" in rows[-1]
    assert yaml.safe_load((folder / "config.yaml").read_text())["width"] == 0.25

    code, out, err = command("linprobe", "--root=world", "--epochs=2", "--workers=0", "--name=probe")
    assert code == 0, err
    assert "output/pretrain/first/model.pt (the newest pretraining)" in out and "mIoU" in out
    assert Path("output/linprobe/probe/birds_eye_0.png").exists()

    code, out, err = command(
        "fewshot",
        "--dataset=kitti",
        "--root=world/kitti",
        "--pct=50",
        "--epochs=1",
        "--batch=2",
        "--workers=0",
        "--name=ft",
    )
    assert code == 0, err
    assert len(Path("output/fewshot/ft/subset.txt").read_text().splitlines()) == 2  # the remark and one frame
    assert yaml.safe_load(Path("output/fewshot/ft/config.yaml").read_text())["lr_head"] == 2.0

    score = Path("output/fewshot/ft/report.md").read_text().split("**mIoU** | ")[1].split()[0]
    code, out, err = command(
        "evaluate", "--dataset=kitti", "--root=world/kitti", "--workers=0", "--weights=output/fewshot/ft/model.pt"
    )
    assert code == 0, err
    assert f"**mIoU** | {score}" in out  # a saved network scores as it did in its own run

    code, out, err = command("show", "--root=world")
    assert code == 0, err
    assert list(Path("output/show/synthetic").glob("*/similarity_CAM_FRONT.png"))


def test_a_written_config_gives_the_same_run_again(command):
    assert command("pretrain", "--root=world", "--name=a", *SMALL)[0] == 0
    assert command("pretrain", "output/pretrain/a/config.yaml", "--name=b")[0] == 0
    a, b = (torch.load(f"output/pretrain/{n}/model.pt", weights_only=True)["backbone"] for n in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_pretraining_draws_what_the_student_finds_similar_every_few_epochs(command):
    code, _, err = command("pretrain", "--root=world", "--name=run", *SMALL, "--epochs=3", "--validate_every=2")
    assert code == 0, err
    pictures = sorted(path.name for path in Path("output/pretrain/run").glob("similarity*"))
    assert pictures == ["similarity.png", "similarity_epoch_002.png"]  # similarity.png is the last epoch's
    assert "similarity_epoch_002.png" in Path("output/pretrain/run/report.md").read_text()


def test_superpixels_shared_among_machines(command):
    """Each image is one shard's, whose machine makes it once; all shards together are the whole."""
    words = ["superpixels", "--root=world", "--segments=20", "--workers=0"]
    folder, made = Path("superpixels/synthetic/superpixels_slic_20_6_1"), []
    for shard in ("1/4", "2/4", "3/4", "4/4"):
        before = set(folder.glob("*"))
        code, out, err = command(*words, f"--shard={shard}")
        assert code == 0, err
        made.append(len(set(folder.glob("*")) - before))
        assert f"superpixels: {made[-1]} new slic maps" in out and "0 were there" in out
        assert "superpixels: 0 new" in command(*words, f"--shard={shard}")[1]
    assert sum(made) == 18 and max(made) - min(made) <= 1  # 3 scenes of one frame, six cameras
    assert "superpixels: 0 new slic maps" in command(*words)[1]
    for shard in ("0/4", "5/4", "1/0", "1", "-1/4", "a/b"):
        assert "write i/n with i from 1 to n" in command.refused(*words, f"--shard={shard}")


def test_our_own_slic_makes_maps_of_its_own(command):
    words = ["superpixels", "--root=world", "--segments=20", "--workers=0", "--superpixels=slic_torch"]
    assert "18 new slic_torch maps" in command(*words)[1]
    assert len(list(Path("superpixels/synthetic/superpixels_slic_torch_20_6_1").iterdir())) == 18


def test_ppkt_is_a_method_of_its_own(command):
    """No superpixel map is made, none is spoken of; each step samples pairs."""
    words = [word for word in SMALL if not word.startswith("--segments")]
    words = ["--method=ppkt", "--root=world", *words, "--sampled_pairs=50", "--name=ppkt"]
    code, out, err = command("pretrain", *words)
    assert code == 0, err
    assert "50 a step, drawn at random" in out and "superpixel" not in out and not Path("superpixels").exists()
    rows = [json.loads(line) for line in Path("output/pretrain/ppkt/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["pairs"] == 50 and "superpixels" not in rows[0]
    assert "belongs to the methods slidr, st_slidr" in command.refused("pretrain", *words, "--segments=20")
    code, _, err = command("show", "--root=world")  # any method's network
    assert code == 0, err
    assert list(Path("output/show/synthetic").glob("*/similarity_CAM_FRONT.png"))


def test_the_momentum_inside_blocks_reaches_those_norms_alone(command):
    """After one step from the same seed the stem has seen the same, blocks remember more of it."""
    found = []
    for momentum in (0.1, 0.9):
        words = [f"--bn_momentum_blocks={momentum}", f"--name=momentum-{momentum}"]
        code, _, err = command("pretrain", "--root=world", *SMALL, *words)
        assert code == 0, err
        found.append(torch.load(f"output/pretrain/momentum-{momentum}/model.pt", weights_only=True)["backbone"])
    low, high = found
    assert torch.equal(low["bn0.bn.running_mean"], high["bn0.bn.running_mean"])
    name = "block1.0.norm1.bn.running_mean"
    assert torch.allclose(9 * low[name], high[name], rtol=1e-4) and low[name].abs().max() > 1e-4


def test_pretraining_on_the_kitti_layout(command):
    code, _, err = command(
        "pretrain", "--dataset=kitti", "--root=world/kitti", "--architecture=res16unet14c", "--teacher=resnet_small",
        "--teacher_weights=random", "--name=k", *SMALL,
    )  # fmt: skip
    assert code == 0, err
    assert Path("output/pretrain/k/similarity.png").exists()


def test_cached_features_change_no_result(command):
    words = ["linprobe", "--weights=random", "--root=world", "--width=0.25", "--architecture=res16unet14c"]
    heads = []
    for cached in ("true", "false"):
        name = f"probe-{cached}"
        code, _, err = command(*words, "--epochs=3", "--workers=0", f"--cache_features={cached}", f"--name={name}")
        assert code == 0, err
        heads.append(torch.load(f"output/linprobe/{name}/model.pt", weights_only=True)["class_head"][0]["weight"])
    assert torch.allclose(heads[0], heads[1], rtol=1e-5, atol=1e-7)
    assert "`cache_features` needs --augment false" in command.refused(*words, "--cache_features", "--augment")


def test_hints_lead_to_the_same_data_and_weights(command):
    code, out, err = command("pretrain", "--root=world", "--name=my run", *SMALL)
    assert code == 0, err
    hint = out.split("next: python run.py ")[1].splitlines()[0]
    assert shlex.split(hint) == ["linprobe", "--root", "world", "--weights", "output/pretrain/my run/model.pt"]
    code, out, err = command(*shlex.split(hint), "--epochs=1", "--workers=0", "--pictures=1", "--name=p")
    assert code == 0, err
    out = command("superpixels", "--root=world", "--segments=20", "--workers=0")[1]
    assert "next: python run.py pretrain --root world\n" in out
    words = ["synth", "--root=a world", "--layout=kitti", "--train_scenes=1", "--val_scenes=1", "--frames_per_scene=1"]
    out = command(*words, "--image_scale=0.1", "--azimuths=64", "--workers=0")[1]
    assert out.endswith("next: python run.py pretrain --dataset kitti --root 'a world/kitti'\n")


def test_tensorboard_has_figures_by_class_and_pictures(command):
    words = ["linprobe", "--weights=random", "--root=world", "--width=0.25", "--architecture=res16unet14c"]
    assert command(*words, "--epochs=2", "--workers=0", "--pictures=1", "--name=run")[0] == 0
    board = EventAccumulator("output/linprobe/run", size_guidance={"scalars": 0, "images": 0})
    board.Reload()
    tags = board.Tags()
    assert "validation/mIoU" in tags["scalars"] and "validation_iou/vegetation" in tags["scalars"]
    assert {"curves", "classes", "birds_eye_0"} <= set(tags["images"])


def test_env_names_versions_and_teachers(command):
    code, out, _ = command("env")
    assert code == 0 and f"torch {torch.__version__}" in out and "dinov2_vits14" in out
