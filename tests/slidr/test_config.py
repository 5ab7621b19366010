"""Defaults, recipes and flags meet in one place, and every mistake gets one sentence."""

import pytest
import torch
import yaml

from data.disk import InputError
from data.superpixels import SuperpixelSettings
from slidr import config
from slidr.teachers import TEACHERS

STAGES = {"slidr": config.Pretrain, "ppkt": config.Pretrain, "linprobe": config.Linprobe, "fewshot": config.Fewshot}


def test_flags_beat_the_recipe_and_the_recipe_beats_the_defaults(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("batch: 2\nlr: 1e-3\n")
    settings = config.load(config.Pretrain, [str(recipe), "--batch", "3", "--crop=[10, 20]"], "slidr")
    assert (settings.batch, settings.lr, settings.crop, settings.momentum) == (3, 1e-3, (10, 20), 0.9)


def test_without_a_recipe_the_data_sets_own_is_taken():
    assert config.load(config.Pretrain, [], "slidr").architecture == "res16unet14c"
    assert config.load(config.Pretrain, ["--dataset", "nuscenes"], "slidr").architecture == "res16unet34c"


def test_the_published_recipe():
    s = config.load(config.Pretrain, ["--dataset", "nuscenes"], "slidr")
    assert (s.lr, s.batch, s.epochs, s.momentum, s.dampening, s.weight_decay) == (0.5, 4, 50, 0.9, 0.1, 1e-4)
    assert (s.temperature, s.crop, s.segments, s.compactness) == (0.07, (224, 416), 150, 6)
    assert s.superpixel_settings().sigma == 3 and s.teacher == "resnet50_moco_v2"
    assert (s.train_split, s.val_split) == ("pretrain", "pretrain_val")


@pytest.mark.parametrize("path", sorted(config.RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid_and_states_only_what_differs(path):
    settings_type = STAGES[path.stem.split("_")[0]]
    settings = config.load(settings_type, [str(path)])
    assert path.read_text().startswith("# ")
    for name in yaml.safe_load(path.read_text()).keys() - {"dataset"}:
        assert getattr(settings, name) != settings_type.model_fields[name].default, f"{name} states the default"


@pytest.mark.parametrize(
    ("name", "differs", "figures"),
    [
        ("slidr_nuscenes", {}, ["38.8", "38.3", "44.6"]),
        ("slidr_nuscenes_vit", {"teacher": "vit_small_16_dino"}, ["39.5"]),
        ("slidr_nuscenes_supervised", {"teacher": "resnet50_imagenet"}, ["39.2"]),
        ("slidr_nuscenes_fh", {"superpixels": "felzenszwalb"}, ["39.2"]),
        ("slidr_nuscenes_slic100", {"segments": 100}, ["37.7"]),
        ("slidr_nuscenes_slic200", {"segments": 200}, ["36.3"]),
        ("ppkt_nuscenes", {"superpixels": "none", "dilated": False}, ["36.4", "37.8", "43.9"]),
        ("slidr_dinov2", {"teacher": "dinov2_vits14", "crop": (224, 448)}, ["44.7", "41.2"]),
    ],
)
def test_the_published_pretrainings(name, differs, figures):
    """Each is the published recipe but for what it states; the teacher fits the crop; the head gives the figures."""
    path = config.RECIPES / f"{name}.yaml"
    base = config.load(config.Pretrain, ["--dataset", "nuscenes"], "slidr")
    settings = config.load(config.Pretrain, [str(path)])
    assert settings == base.model_copy(update=differs)
    head = " ".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert all(figure in head for figure in figures)
    build, *arguments = TEACHERS[settings.teacher].build
    with torch.device("meta"):
        stride = build(*arguments).stride
    assert all(side % stride == 0 for side in settings.crop)


def test_the_published_superpixel_settings():
    slic, fh = (
        config.load(config.Pretrain, [str(config.RECIPES / f"{name}.yaml")])
        for name in ("slidr_nuscenes", "slidr_nuscenes_fh")
    )
    assert slic.superpixel_settings() == SuperpixelSettings("slic", 150, 6, 3)
    s = fh.superpixel_settings()
    assert (s.kind, s.scale, s.sigma, s.min_size) == ("felzenszwalb", 300, 0.35, 4000)


def test_the_papers_own_cuboid_is_an_option():
    for values, wanted in (({}, (0.2, False)), ({"cuboid": 0.1, "paper_cuboid": True}, (0.1, True))):
        asked = config.validate(config.Pretrain, values).augment_settings(train=True)
        assert (asked.cuboid, asked.paper_cuboid, asked.min_pairs) == (*wanted, 1024)


def test_the_written_config_runs_again(tmp_path):
    first = config.load(config.Pretrain, ["--voxel_size", "[0.2, 2, 0.2]"], "slidr")
    (tmp_path / "config.yaml").write_text(config.to_yaml(first))
    assert config.load(config.Pretrain, [str(tmp_path / "config.yaml")]) == first


def test_a_pretraining_recipe_serves_the_superpixel_stage(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("segments: 70\nlr: 0.1\n")
    assert config.load(config.Superpixels, [str(recipe)], "slidr").segments == 70
    recipe.write_text("segmentz: 70\n")
    with pytest.raises(InputError, match="did you mean `segments`"):
        config.load(config.Superpixels, [str(recipe)], "slidr")


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        ("bach: 4", [], ["mine.yaml", "`bach`", "did you mean `batch`"]),
        ("batch: four", [], ["mine.yaml", "`batch`", "'four'", "integer"]),
        ("batch: -1", [], ["mine.yaml", "`batch`", "-1", "greater than or equal to 1"]),
        ("lr: .nan", [], ["`lr`"]),
        ("voxel_size: [0.1, 0, 0.1]", [], ["`voxel_size`", "above 0"]),
        ("- batch", [], ["mine.yaml", "key: value"]),
        ("batch: [", [], ["mine.yaml", "no valid YAML"]),
        ("", ["--temprature", "1"], ["the command line", "did you mean `temperature`"]),
        ("", ["--batch"], ["`--batch` lacks its value"]),
        ("", ["batch"], ["`batch` stands alone"]),
        ("", ["--precision", "fp8"], ["`precision`", "fp8", "float32"]),
    ],
)
def test_a_mistake_gets_one_sentence(tmp_path, text, flags, words):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)
    with pytest.raises(InputError) as error:
        config.load(config.Pretrain, [str(recipe), *flags])
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message


def test_a_missing_recipe_lists_the_shipped_ones():
    with pytest.raises(InputError, match="slidr_nuscenes.yaml"):
        config.load(config.Pretrain, ["nowhere.yaml"])


@pytest.mark.parametrize("pct", [0, 101, -5])
def test_a_share_of_labels_lies_between_0_and_100(pct):
    with pytest.raises(InputError, match="`pct` cannot be"):
        config.load(config.Fewshot, ["--pct", str(pct)])


def test_help_names_every_key_with_its_default():
    text = config.describe(config.Pretrain)
    for name in config.Pretrain.model_fields:
        assert f"--{name} " in text
    assert "0.07" in text and "float32 | bf16" in text
    assert yaml.safe_load(config.to_yaml(config.Synth()))["azimuths"] == 512


def test_a_switch_needs_no_value():
    assert config.load(config.Fewshot, ["--compare", "--pct=2"]).compare is True
    assert config.load(config.Fewshot, ["--compare", "false", "--augment"]).compare is False
    with pytest.raises(InputError, match="`--pct` lacks its value"):
        config.load(config.Fewshot, ["--compare", "--pct"])


@pytest.mark.parametrize(("words", "wanted"), [("1,5,10", (1, 5, 10)), ("0.5", (0.5,)), ("[1, 2.5]", (1, 2.5))])
def test_a_sweep_is_written_as_a_list(words, wanted):
    assert config.load(config.Fewshot, [f"--sweep={words}"]).sweep == wanted
