"""Defaults, recipes and flags meet in one place, values mean what was typed, and every mistake gets one sentence."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import run
from data.files import InputError
from data.superpixels import SuperpixelSettings
from slidr import config
from slidr.config.values import from_text, plain_type, to_text
from slidr.methods import METHODS, settings_of
from slidr.teachers import TEACHERS

ROOT = Path(run.__file__).parent
STAGES = {"pretrain": None} | {
    kind.__name__.lower(): kind for kind in (config.Linprobe, config.Fewshot, config.Detect, config.Knn)
}
SHIPPED = [(folder, name) for folder in STAGES for name in config.shipped(folder)]
CLASSES = [*(settings_of(m) for m in METHODS), *(kind for kind, _ in run.STAGES.values() if kind)]


def load(stage: str, *words: object) -> config.Settings:
    """Settings as `run.py` makes them."""
    kind, recipes = run.STAGES[stage]
    return config.load(kind, [str(word) for word in words], recipes, settings_of, METHODS)


def refused(stage: str, *words: object) -> str:
    """The sentence in which a stage refuses its arguments."""
    with pytest.raises(InputError) as error:
        load(stage, *words)
    assert str(error.value).isprintable() and str(error.value).endswith((".", "?"))
    return str(error.value)


@pytest.fixture
def mine(tmp_path):
    """`mine("batch: 2")` -> the path of a recipe with this text."""

    def write(text: str | bytes, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# What comes from where


def test_flags_beat_the_recipe_and_the_recipe_beats_the_defaults(mine):
    settings = load("pretrain", mine("batch: 2\nlr: 1e-3\n"), "--batch", "3", "--crop=[10, 20]")
    assert (settings.batch, settings.lr, settings.crop, settings.momentum) == (3, 1e-3, (10, 20), 0.9)


def test_of_a_flag_given_twice_the_last_one_counts():
    assert load("pretrain", "--batch", 3, "--batch=5").batch == 5
    assert load("fewshot", "--subset_seed=3", "--subset-seed", 4).subset_seed == 4


@pytest.mark.parametrize(
    ("words", "method", "dataset", "architecture"),
    [
        ([], "slidr", "synthetic", "res16unet14c"),
        (["--dataset", "nuscenes"], "slidr", "nuscenes", "res16unet34c"),
        (["--method", "ppkt"], "ppkt", "synthetic", "res16unet14c"),
        (["--method=ppkt", "--dataset=kitti"], "ppkt", "kitti", "res16unet34c"),
        (["ppkt_nuscenes"], "ppkt", "nuscenes", "res16unet34c"),
        (["slidr_kitti", "--width", "2"], "slidr", "kitti", "res16unet34c"),
        (["slidr/configs/pretrain/ppkt_kitti.yaml"], "ppkt", "kitti", "res16unet34c"),
    ],
)
def test_method_and_data_set_choose_the_recipe(monkeypatch, words, method, dataset, architecture):
    monkeypatch.chdir(ROOT)
    settings = load("pretrain", *words)
    assert type(settings) is settings_of(method)
    assert (settings.method, settings.dataset, settings.architecture) == (method, dataset, architecture)


def test_a_recipes_method_counts_where_no_flag_names_one(mine):
    path = mine("method: ppkt\nsampled_pairs: 7\n")
    assert load("pretrain", path).sampled_pairs == 7
    assert "`sampled_pairs` belongs to the method ppkt, not to slidr" in refused("pretrain", path, "--method", "slidr")
    assert "there is no method `nobody`" in refused("pretrain", mine("method: nobody"))
    assert "`method` cannot be [1]" in refused("pretrain", mine("method: [1]"))


def test_the_recipe_of_a_data_set_is_that_of_the_stage():
    assert (load("linprobe").batch, load("linprobe", "--dataset", "nuscenes").batch) == (4, 16)
    assert (load("linprobe", "kitti").dataset, load("fewshot", "nuscenes").dataset) == ("kitti", "nuscenes")


@pytest.mark.parametrize("name", ["my.package:RECORD", "../linprobe/kitti", "kitti.yaml", "*"])
def test_other_data_sets_have_no_recipe(name):
    assert load("linprobe", "--dataset", name) == config.Linprobe(dataset=name)
    assert load("pretrain", "--dataset", name) == settings_of("slidr")(dataset=name)


class Outside(config.MethodSettings):
    """A method of somebody else."""

    tuning: Literal[1, 2] = config.key(2, "how much")


def test_a_method_from_outside():
    asked = []

    def outside(name: str) -> type[config.MethodSettings]:
        asked.append(name)
        return Outside

    words = ["--method", "lab.code:Mine", "--tuning", "1", "--dataset", "nuscenes"]
    settings = config.load(None, words, "pretrain", outside)
    assert asked == ["lab.code:Mine"]
    assert settings == Outside(method="lab.code:Mine", tuning=1, dataset="nuscenes")
    assert "Keys of lab.code:Mine:\n  --tuning               1 " in config.help_text(None, words, "pretrain", outside)


@pytest.mark.parametrize("stage", ["superpixels", "show"])
def test_a_stage_takes_its_part_of_a_pretraining_recipe(mine, stage):
    assert load(stage, mine("segments: 70\nlr: 0.1\n")).segments == 70
    assert load(stage, mine("method: ppkt\nsampled_pairs: 9\ndataset: kitti\n")).dataset == "kitti"
    assert load(stage, "slidr_nuscenes_slic100").segments == load(stage).segments == 100
    assert "did you mean `segments`" in refused(stage, mine("segmentz: 70\n"))
    assert "mine.yaml: there is no key `sampled_pairs`" in refused(stage, mine("sampled_pairs: 7\n"))
    assert "the command line: there is no key `lr`" in refused(stage, "--lr", "1")


def test_a_recipe_without_a_folder_of_recipes(mine):
    assert load("evaluate", mine("split: test\n")).split == "test"
    assert refused("evaluate", "kitti") == "there is no recipe `kitti`; name a YAML file."


def test_a_base(mine, tmp_path):
    mine("batch: 2\nlr: 0.25\n", "first.yaml")
    settings = load("pretrain", mine("base: first\nlr: 0.5\n"))
    assert (settings.batch, settings.lr) == (2, 0.5)
    assert load("pretrain", mine("base: slidr_nuscenes\nseed: 3\n")) == load("pretrain", "slidr_nuscenes", "--seed", 3)
    assert "mine.yaml: `batch` cannot be 'x'" in refused("pretrain", mine("base: first\nbatch: x\n"))
    (tmp_path / "below").mkdir()
    mine("batch: 2\n", "below/first.yaml")
    assert "to be its `base`" in refused("pretrain", mine("base: below/first\n"))
    mine("bach: 2\n", "first.yaml")
    assert f"{tmp_path}/first.yaml: there is no key `bach`" in refused("pretrain", mine("base: first\n"))
    mine("base: second\n", "first.yaml")
    assert "first.yaml has a base itself" in refused("pretrain", mine("base: first\n"))
    assert "mine.yaml has a base itself" in refused("pretrain", mine("base: mine\n"))


@pytest.mark.parametrize(
    "name", ["nobody", "../linprobe/kitti", "kitti", "/etc/passwd", "null", "[1, 2]", '"\\n"', ".."]
)
def test_what_is_no_base(mine, name):
    assert "to be its `base`" in refused("pretrain", mine(f"base: {name}\n"))


def test_a_base_is_a_matter_of_recipes():
    assert "there is no key `base`" in refused("pretrain", "--base", "slidr_kitti")


# What was typed


@pytest.mark.parametrize("text", ["001", "2024-01-01", "on", "null", "3.10", "runs #2", "~", "[x]", "a: b", "-1", "!x"])
def test_names_and_paths_are_as_they_were_typed(text):
    settings = load("linprobe", "--name", text, f"--root={text}", "--weights", text, "--dataset", text)
    assert (settings.name, settings.root, settings.weights) == (text, Path(text), text)
    assert settings.dataset == text


@pytest.mark.parametrize(
    ("stage", "words", "key", "value"),
    [
        ("pretrain", ["--name", "none"], "name", None),
        ("pretrain", ["--root", "None"], "root", None),
        ("pretrain", ["--train_split", "none"], "train_split", "none"),
        ("pretrain", ["--sigma", "none"], "sigma", None),
        ("fewshot", ["--lr", "none"], "lr", None),
        ("pretrain", ["--crop", "80,144"], "crop", (80, 144)),
        ("pretrain", ["--crop", "[80, 144]"], "crop", (80, 144)),
        ("pretrain", ["--voxel_size=0.2,1,0.2"], "voxel_size", (0.2, 1.0, 0.2)),
        ("pretrain", ["--cameras", "CAM_FRONT, CAM_BACK"], "cameras", ("CAM_FRONT", "CAM_BACK")),
        ("pretrain", ["--cameras", "001"], "cameras", ("001",)),
        ("pretrain", ["--cameras", "none"], "cameras", None),
        ("pretrain", ["--columns", "5"], "columns", 5),
        ("pretrain", ["--image_shrink", "2"], "image_shrink", 2),
        ("superpixels", ["--superpixel_shrink=4"], "superpixel_shrink", 4),
        ("pretrain", ["--lr", "1e-3"], "lr", 1e-3),
        ("fewshot", ["--sweep", "1,5,10"], "sweep", (1, 5, 10)),
        ("fewshot", ["--sweep=0.5"], "sweep", (0.5,)),
        ("fewshot", ["--weights=a.pt,[b].pt"], "weights", "a.pt,[b].pt"),
        ("fewshot", ["--weights=a.pt,b.pt"], "several_weights", ["a.pt", "b.pt"]),
        ("fewshot", ["--weights=[a.pt, b.pt]"], "several_weights", ["a.pt", "b.pt"]),
        ("fewshot", [], "several_weights", []),
        ("fewshot", ["--sweep", "[1, 2.5]"], "sweep", (1, 2.5)),
        ("pretrain", ["--resume"], "resume", True),
        ("pretrain", ["--resume", "--batch", "3"], "resume", True),
        ("pretrain", ["--resume", "false"], "resume", False),
        ("pretrain", ["--augment=no"], "augment", False),
        ("pretrain", ["--device", "0"], "device", "cuda:0"),
        ("pretrain", ["--device=cpu"], "device", "cpu"),
        ("superpixels", ["--shard", "2/4"], "shard", "2/4"),
    ],
)
def test_a_value_is_read_by_the_type_of_its_key(stage, words, key, value):
    assert getattr(load(stage, *words), key) == value


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("sigma: none", "sigma", None),
        ("crop: 80,144", "crop", (80, 144)),
        ("cameras: CAM_FRONT", "cameras", ("CAM_FRONT",)),
        ("name: '001'", "name", "001"),
        ("device: 1", "device", "cuda:1"),
    ],
)
def test_text_in_a_recipe_is_read_like_that_of_the_command_line(mine, text, key, value):
    assert getattr(load("pretrain", mine(text)), key) == value


def test_one_number_in_a_recipe_stands_for_several(mine):
    assert load("fewshot", mine("sweep: 5")).sweep == (5,)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_of_other_editors(mine, encoding, end):
    path = mine(f"# größer{end}batch: 3{end}name: ä{end}".encode(encoding))
    assert (load("pretrain", path).batch, load("pretrain", path).name) == (3, "ä")
    assert "mine.yaml\n" in config.help_text(None, [str(path)], "pretrain", settings_of)


# Mistakes


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        ("bach: 4", [], ["mine.yaml", "`bach`", "did you mean `batch`"]),
        ("1: 4", [], ["mine.yaml", "no key `1`"]),
        ("batch: four", [], ["mine.yaml", "`batch`", "'four'", "integer"]),
        ("batch: -1", [], ["mine.yaml", "`batch`", "-1", "greater than or equal to 1"]),
        ("batch: 1\nbatch: 2", [], ["mine.yaml states `batch` twice"]),
        ("lr: .nan", [], ["`lr` cannot be nan"]),
        ("voxel_size: [0.1, 0, 0.1]", [], ["`voxel_size`", ": every voxel edge must be a number above 0"]),
        ("crop: 5", [], ["`crop` cannot be 5: it takes 2 values"]),
        ("crop: [1, 2, 3]", [], ["`crop` cannot be [1, 2, 3]: it takes 2 values"]),
        ("crop: 80 x 144", [], ["`crop` cannot be '80 x 144'"]),
        ("crop_aspect: [2, 1]", [], ["`crop_aspect`", "the first number must not be above the second"]),
        ("name: 1", [], ["mine.yaml", "`name` cannot be 1", "string"]),
        ("- batch", [], ["mine.yaml", "key: value"]),
        ("batch", [], ["mine.yaml", "key: value"]),
        ("lr: 1\nbatch: [", [], ["mine.yaml", "no valid YAML at line 2"]),
        ("batch: \xff".encode("latin-1"), [], ["mine.yaml", "no valid YAML"]),
        ("", ["--temprature", "1"], ["the command line", "did you mean `temperature`"]),
        ("", ["--zzz", "1"], ["the command line", "no key `zzz`", "--help"]),
        ("", ["--a\nb", "1"], ["no key `a\\nb`"]),
        ("", ["--" + "z" * 9999, "1"], ["zzz...zzz"]),
        ("", ["--batch"], ["`--batch` lacks its value"]),
        ("", ["--batch", "--resume"], ["`--batch` lacks its value"]),
        ("", ["--batch="], ["`--batch` lacks its value"]),
        ("", ["--name", ""], ["`--name` lacks its value"]),
        ("", ["batch"], ["`batch` stands alone"]),
        ("", ["-batch", "4"], ["`-batch` stands alone"]),
        ("", ["--batch", "4", "slidr_kitti"], ["`slidr_kitti` stands alone; a recipe comes first"]),
        ("", ["--precision", "fp8"], ["the command line", "`precision`", "fp8", "float32"]),
        ("", ["--image_shrink", "3"], ["`image_shrink` cannot be '3'"]),
        ("", ["--crop", "80,,144"], ["`crop` cannot be '80,,144'"]),
        ("", ["--augment", "perhaps"], ["`augment` cannot be 'perhaps'"]),
        ("", ["--batch", "null"], ["`batch` cannot be 'null'"]),
        ("", ["--batch", "none"], ["`batch` cannot be 'none'"]),
        ("", ["--batch", "4\n5"], ["`batch` cannot be '4\\n5'"]),
    ],
)
def test_a_mistake_gets_one_sentence(mine, text, flags, words):
    sentence = refused("pretrain", mine(text), *flags)
    assert all(word in sentence for word in words) and len(sentence) < 500


@pytest.mark.parametrize("word", ["nowhere.yaml", "x" * 5000, "a\nb", "zzz/"])
def test_what_is_no_recipe_is_told_which_there_are(word):
    assert "slidr_nuscenes_vit, slidr_synthetic" in refused("pretrain", word)
    assert "name a YAML file or one of kitti, nuscenes" in refused("linprobe", word)


@pytest.mark.parametrize("word", ["slidr_kiti", "slidr/configs/slidr_kitti.yaml", "mine/slidr_kitti.yml"])
def test_what_is_almost_a_recipe(word):
    assert "did you mean slidr_kitti?" in refused("pretrain", word)


def test_a_folder_is_no_recipe(tmp_path):
    assert f"cannot read {tmp_path}: it is a folder; " in refused("pretrain", tmp_path)


def test_a_key_of_another_method_is_told_whose_it_is():
    sentence = refused("pretrain", "--sampled_pairs", "9")
    assert sentence.startswith("the command line: `sampled_pairs` belongs to the method ppkt, not to slidr; ")
    sentence = refused("pretrain", "ppkt_kitti", "--segments", "9")
    assert "`segments` belongs to the methods slidr, st_slidr, not to ppkt" in sentence
    assert "slidr_kitti.yaml: `superpixels` belongs" not in refused("pretrain", "slidr_kitti", "--method=ppkt")
    assert "slidr_nuscenes.yaml: `superpixels` belongs" in refused("pretrain", "slidr_kitti", "--method=ppkt")
    assert "there is no key `sampled_pairs`" in refused("linprobe", "--sampled_pairs", "9")


def test_a_value_that_is_needed(tmp_path):
    assert refused("convert", "--target", "x.pt") == "`--source` is needed: checkpoint to read (either layout)."
    assert "`to` cannot be 'yours'" in refused("convert", "--to", "yours")


class Ordered(config.MethodSettings):
    """Settings that must fit together."""

    def model_post_init(self, context: object) -> None:
        """Refuse more steps of warm-up than there are epochs."""
        if self.warmup_steps > self.epochs:
            raise ValueError("warm-up is longer\nthan training")


def test_values_that_do_not_fit_together():
    with pytest.raises(InputError, match=r"^the settings do not fit together: warm-up is longer\nthan training\.$"):
        config.validate(Ordered, {"warmup_steps": 99})


@pytest.mark.parametrize("pct", [0, 101, -5])
def test_a_share_of_labels_lies_between_0_and_100(pct):
    assert "`pct` cannot be" in refused("fewshot", "--pct", pct)


# What is shown and written


def described(text: str) -> dict[str, str]:
    """Key -> its value of a help text, as a shell reads it."""
    values = {}
    for name, rest in re.findall(r"^  --(\w+) +(.*)$", text, re.MULTILINE):
        words = shlex.shlex(rest, posix=True, punctuation_chars="")
        words.whitespace_split, words.commenters = True, ""
        values[name] = next(iter(words))
    return values


def values_of(annotation: object) -> st.SearchStrategy:
    """Values for a key; not all of them are right ones."""
    plain = plain_type(annotation)
    parts = getattr(plain, "__args__", ())
    text = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=8)
    if plain in (bool, int, float, str, Path):
        numbers = st.one_of(st.floats(0, 2), st.floats(allow_nan=False, allow_infinity=False))
        shards = st.sampled_from(["1/1", "3/4"])
        return {bool: st.booleans(), int: st.integers(0), float: numbers, str: text | shards, Path: text.map(Path)}[
            plain
        ]
    if getattr(plain, "__origin__", None) is Literal:
        return st.sampled_from(parts)
    if parts[-1] is ...:
        words = text.filter(lambda word: word == word.strip() and not set(word) & set(",[]"))
        return st.lists(words if parts[0] is str else values_of(parts[0]), min_size=1, max_size=3).map(tuple)
    return st.tuples(*(values_of(part) for part in parts))


@hypothesis_settings(max_examples=400, deadline=None)
@given(st.data())
def test_what_help_shows_can_be_typed(data):
    kind = data.draw(st.sampled_from(CLASSES))
    name = data.draw(st.sampled_from(list(kind.model_fields)))
    field = kind.model_fields[name]
    value = data.draw(values_of(field.annotation))
    needed = {key: "x" for key, other in kind.model_fields.items() if other.is_required()}
    try:
        settings = kind(**needed | {name: value})
    except ValueError:
        assume(False)
    typed = [f"--{key}={text}" for key, text in described(config.describe(settings)).items()]
    assert len(typed) == len(kind.model_fields)
    again = config.load(kind, typed)
    if getattr(settings, name) is not None and to_text(getattr(settings, name)).lower() == "none":
        assume(from_text("none", field.annotation) == "none")  # where none is a value it is no name
    assert again == settings


@pytest.mark.parametrize(("folder", "name"), SHIPPED)
def test_what_help_shows_of_a_recipe_can_be_typed(folder, name):
    settings = load(folder, name)
    typed = described(config.help_text(STAGES[folder], [name], folder, settings_of))
    assert config.load(type(settings), [f"--{key}={text}" for key, text in typed.items()]) == settings


def test_help_shows_what_will_apply():
    text = config.help_text(None, ["--method", "ppkt", "--batch", "7"], "pretrain", settings_of)
    values = described(text)
    assert (values["batch"], values["voxel_size"], values["width"]) == ("7", "0.2,1,0.2", "0.5")
    assert (values["name"], values["augment"], values["resume"]) == ("none", "true", "false")
    assert "superpixels" not in values and list(values).index("method") < list(values).index("sampled_pairs")
    common, own = text.split("Keys of ppkt:")
    assert "--sampled_pairs" in own and "--lr " in common and "--lr " not in own
    assert "Without another recipe: slidr/configs/pretrain/ppkt_synthetic.yaml" in text and "built-in world" in text
    assert "(float32 | bf16 | fp16)" in text and "PPKT" in text and "slidr_kitti" in text


def test_help_says_whose_values_it_shows():
    text = config.help_text(None, ["slidr_nuscenes"], "pretrain", settings_of)
    assert "\nRecipe: slidr/configs/pretrain/slidr_nuscenes.yaml\n  SLidR as published" in text
    assert "There is no recipe" in config.help_text(config.Linprobe, ["--dataset", "a.b:C"], "linprobe")
    assert "ecipe" not in config.help_text(config.Evaluate, [])


def test_help_of_what_is_needed():
    assert described(config.help_text(config.Convert, []))["source"] == "needed"
    given_one = described(config.help_text(config.Convert, ["--source", "my net.pt"]))
    assert (given_one["source"], given_one["target"]) == ("my net.pt", "needed")
    with pytest.raises(InputError, match="`to` cannot be 'x'"):
        config.help_text(config.Convert, ["--to", "x"])


@pytest.mark.parametrize("kind", CLASSES)
def test_help_fits_every_terminal_and_names_every_key(kind):
    text = config.describe(kind.model_construct())
    assert text.isascii() and described(text).keys() == kind.model_fields.keys()
    assert all(field.description for field in kind.model_fields.values())


@pytest.mark.parametrize("stage", run.STAGES)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_stage_has_help(capsys, stage, flag):
    assert run.main([stage, flag]) == 0
    assert capsys.readouterr().out.startswith(f"python run.py {stage} [recipe] [--key value ...]\n\n")


def test_help_wherever_it_is_asked_for(capsys):
    assert run.main(["pretrain", "--help", "--method", "ppkt"]) == run.main(["pretrain", "ppkt_kitti", "--help"]) == 0
    first, second = re.findall(r"^  --dataset +(\w+)", capsys.readouterr().out, re.MULTILINE)
    assert (first, second) == ("synthetic", "kitti")
    assert run.main([]) == run.main(["--help"]) == 0
    assert "slidr | ppkt" in capsys.readouterr().out


def test_a_mistake_ends_with_2(capsys):
    assert run.main(["pretain"]) == run.main(["pretrain", "--bach", "1"]) == run.main(["env", "--help", "--x=1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("run.py pretain: there is no stage") and len(lines) == 3


STRANGE_TERMINAL = """
import os, run
assert run.main(["pretrain", "mine.yaml", "--help"]) == 0
reader, writer = os.pipe()
os.dup2(writer, 1)
os.close(reader), os.close(writer)  # as `| head` does
raise SystemExit(run.main(["pretrain", "--help"]))
"""


def test_a_terminal_that_knows_ascii_only_and_a_pager_that_is_closed(mine, tmp_path):
    """And recipes are UTF-8 whatever the locale."""
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONIOENCODING", None)
    mine("# größer\nweights_folder: größer\n")
    command = [sys.executable, "-c", STRANGE_TERMINAL]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "gr??er" in done.stdout and "gr????er" not in done.stdout


def test_the_written_config_runs_again(mine):
    first = load(
        "pretrain", "--method=ppkt", "--voxel_size", "[0.2, 2, 0.2]", "--name", "001", "--root", "runs #2 ä\udcff"
    )
    text = config.to_yaml(first)
    assert text.isascii() and yaml.safe_load(text)["method"] == "ppkt"
    assert load("pretrain", mine(text)) == first


# What decides a run's numbers


def test_places_and_means_decide_nothing():
    free = {
        *("name", "output", "root", "superpixels_folder", "weights_folder", "submission"),  # places
        *("threads", "workers", "device", "resume", "replay", "checkpoint_minutes", "keep_checkpoints"),  # means
        *("max_bad_frames", "max_bad_steps", "pictures", "format", "dpi", "compare", "validate_every"),
        *("search", "search_lr", "search_lr_head"),  # each pair of rates is a run of its own
    }
    for kind in (*map(settings_of, METHODS), config.Linprobe, config.Fewshot, config.Evaluate):
        assert config.identity_keys(kind.model_construct()).keys() == kind.model_fields.keys() - free
    assert {"method", "dataset", "seed", "cameras"} <= config.identity_keys(load("pretrain")).keys()


def test_identity_is_as_a_configs_yaml_has_it():
    settings = load("pretrain", "--crop", "32,64", "--cameras", "a,b")
    written = yaml.safe_load(config.to_yaml(settings))
    assert config.identity_keys(settings).items() <= written.items() and written["cameras"] == ["a", "b"]


OF_THE_USER = {"seed", "seeds", "sweep", "weights"}  # how often, from where
OF_OWN_DATA = {"cameras", "columns", "intensity_scale"}


def without_effect(settings: config.Settings) -> set[str]:
    """The keys that other keys of the settings leave unused."""
    if not isinstance(settings, config.WithTraining):
        return set()
    unused = {"sgd": {"betas"}, "adamw": {"momentum", "dampening"}}[settings.optimizer]
    peaks = {"one_cycle_peak", "one_cycle_start", "one_cycle_end"}
    unused |= {
        "cosine": {"warmup_steps"} | peaks,
        "warmup_cosine": peaks,
        "one_cycle": {"warmup_steps", "final_lr"},
    }[settings.schedule]
    if hasattr(settings, "superpixels"):
        of_felzenszwalb = {"scale", "min_size"}
        unused |= {"segments", "compactness"} if settings.superpixels == "felzenszwalb" else of_felzenszwalb
        unused |= {"superpixel_zero", "superpixel_ids"}  # of others' maps
    return unused


@pytest.mark.parametrize(("folder", "name"), SHIPPED)
def test_a_recipe_states_every_key_that_decides_a_figure(folder, name):
    """So that a changed default changes no recipe."""
    path = config.shipped(folder)[name]
    settings = load(folder, name)
    stated, _ = config.read_recipe(path, folder)
    silent = config.identity_keys(settings).keys() - stated.keys() - OF_THE_USER - OF_OWN_DATA
    assert silent <= without_effect(settings)
    assert not stated.keys() & (OF_THE_USER | OF_OWN_DATA)

    own = config.read_yaml(path)
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert "dataset" in own and ("method" in own) == (folder == "pretrain")
    base = own.get("base")
    if base:
        below = config.read_yaml(path.parent / f"{base}.yaml")
        repeated = {key for key in own.keys() & below.keys() if own[key] == below[key]}
        assert repeated <= {"method", "dataset"}, "a recipe with a base states what differs"
    whose = f"{settings.method}_{settings.dataset}" if folder == "pretrain" else settings.dataset
    assert name.startswith((whose, f"scalr_{whose}"))  # a task's recipe may be another method's than the first one's


# What is published


def test_the_published_pretraining():
    s = load("pretrain", "slidr_nuscenes")
    assert (s.lr, s.batch, s.epochs, s.momentum, s.dampening, s.weight_decay) == (0.5, 4, 50, 0.9, 0.1, 1e-4)
    assert (s.optimizer, s.schedule, s.final_lr, s.clip_gradients, s.precision) == ("sgd", "cosine", 0, 0, "float32")
    assert (s.temperature, s.crop, s.segments, s.compactness) == (0.07, (224, 416), 150, 6)
    assert (s.architecture, s.width, s.feature_size, s.grid) == ("res16unet34c", 1, 64, "cylindrical")
    assert (s.voxel_size, s.bn_momentum, s.bn_momentum_blocks) == ((0.1, 1, 0.1), 0.05, 0.1)
    assert s.teacher == "resnet50_moco_v2" and s.teacher_weights is None and s.dilated
    assert (s.crop_area, s.crop_aspect) == ((0.3, 1), (14 / 9, 17 / 9))
    assert (s.cuboid, s.paper_cuboid, s.min_pairs, s.gather_negatives) == (0.2, False, 1024, False)
    assert (s.train_split, s.val_split) == ("pretrain", "pretrain_val")


def test_ppkt_differs_from_slidr_in_its_pixels():
    slidr, ppkt = (load("pretrain", f"{method}_nuscenes") for method in ("slidr", "ppkt"))
    assert (slidr.dilated, ppkt.dilated, ppkt.sampled_pairs) == (True, False, 4096)
    shared = type(slidr).model_fields.keys() & type(ppkt).model_fields.keys() - {"method", "dilated"}
    assert {key for key in shared if getattr(slidr, key) != getattr(ppkt, key)} == set()


def test_the_published_probe():
    s = load("linprobe", "nuscenes")
    assert (s.lr, s.batch, s.epochs, s.momentum, s.dampening, s.weight_decay) == (0.05, 16, 50, 0.9, 0.1, 1e-4)
    assert (s.train_split, s.val_split, s.bn_momentum, s.schedule) == ("train", "val", 0.02, "cosine")
    assert load("linprobe", "kitti").batch == 10


@pytest.mark.parametrize(("dataset", "batch"), [("nuscenes", 16), ("kitti", 10)])
def test_the_published_fine_tuning(dataset, batch):
    s = load("fewshot", dataset)
    assert (s.batch, s.momentum, s.dampening, s.weight_decay, s.pct) == (batch, 0.9, 0.1, 1e-4, 1)
    assert (s.lr, s.lr_head, s.epochs, s.subset, s.subset_seed) == (None,) * 5  # `fewshot.published` knows the rest
    assert (s.train_split, s.val_split, s.bn_momentum, s.schedule) == ("train", "val", 0.02, "cosine")


@pytest.mark.parametrize(
    ("stage", "name"), [("pretrain", "slidr"), ("pretrain", "ppkt"), ("linprobe", ""), ("fewshot", ""), ("detect", "")]
)
def test_the_defaults_are_the_published_values_on_nuscenes(stage, name):
    settings = load(stage, f"{name}_nuscenes" if name else "nuscenes")
    stated = {"dataset": "nuscenes"} | ({"method": name} if name else {})
    assert settings == type(settings)(**stated)


@pytest.mark.parametrize(
    ("name", "differs", "figures"),
    [
        ("slidr_nuscenes", {}, ["38.8", "38.3", "44.6"]),
        ("slidr_nuscenes_vit", {"teacher": "vit_small_16_dino"}, ["39.5"]),
        ("slidr_nuscenes_supervised", {"teacher": "resnet50_imagenet"}, ["39.2"]),
        ("slidr_nuscenes_fh", {"superpixels": "felzenszwalb", "sigma": 0.35}, ["39.2"]),
        ("slidr_nuscenes_slic100", {"segments": 100}, ["37.7"]),
        ("slidr_nuscenes_slic200", {"segments": 200}, ["36.3"]),
        ("slidr_nuscenes_dinov2", {"teacher": "dinov2_vits14", "crop": (224, 448)}, ["44.7", "41.2"]),
        ("slidr_nuscenes_mini", {"train_split": "mini_train", "val_split": "mini_val"}, []),
        ("ppkt_nuscenes", {}, ["36.4", "37.8", "43.9"]),
    ],
)
def test_the_variants(name, differs, figures):
    """Each is its method's recipe but for what it states; the teacher fits the crop; the head gives the figures."""
    path = config.shipped("pretrain")[name]
    settings = load("pretrain", name)
    assert settings == load("pretrain", f"{name.split('_')[0]}_nuscenes").model_copy(update=differs)
    head = " ".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    assert all(figure in head for figure in figures)


WITH_IMAGES = [name for name in config.shipped("pretrain") if hasattr(load("pretrain", name), "teacher")]


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_teacher_and_crop_fit_together(name):
    settings = load("pretrain", name)
    build, *arguments = TEACHERS[settings.teacher].build
    with torch.device("meta"):
        strided = {} if settings.dilated or not settings.teacher.startswith("resnet") else {"dilated": False}
        stride = build(*arguments, **strided).stride
    assert all(side % stride == 0 for side in settings.crop)
    height, width = {"kitti": (375, 1242)}.get(settings.dataset, (900, 1600))
    low, high = settings.crop_aspect
    assert low < width / height < high
    assert 0.9 * low < settings.crop[1] / settings.crop[0] < 1.1 * high  # training sees images like validation's


@pytest.mark.parametrize("method", ["slidr", "ppkt"])
def test_a_methods_recipe_on_kitti_differs_in_splits_and_images(method):
    nuscenes, kitti = (load("pretrain", f"{method}_{dataset}") for dataset in ("nuscenes", "kitti"))
    differing = {key for key in type(kitti).model_fields if getattr(kitti, key) != getattr(nuscenes, key)}
    assert differing == {"dataset", "train_split", "val_split", "crop", "crop_aspect"}


def test_the_mini_recipes():
    for stage in ("linprobe", "fewshot"):
        settings = load(stage, "nuscenes_mini")
        assert (settings.dataset, settings.train_split, settings.val_split) == ("nuscenes", "mini_train", "mini_val")


def test_the_published_superpixel_settings():
    slic, fh = (load("pretrain", name) for name in ("slidr_nuscenes", "slidr_nuscenes_fh"))
    assert slic.superpixel_settings() == SuperpixelSettings("slic", 150, 6, 3)
    s = fh.superpixel_settings()
    assert (s.kind, s.scale, s.sigma, s.min_size) == ("felzenszwalb", 300, 0.35, 4000)


def test_others_maps_have_names_and_keys_of_their_own():
    text = "sam, 0 is none, ids shared by the cameras of a frame"
    words = "--superpixels", "sam", "--superpixel_zero", "none", "--superpixel_ids", "frame"
    s = load("pretrain", *words).superpixel_settings()
    assert (s.kind, s.zero, s.ids, str(s)) == ("sam", "none", "frame", text)
    assert "are of others' maps, and `superpixels` is slic" in refused("pretrain", *words[2:])
    assert "imported maps need a name of their own" in refused("superpixels", "--maps", "x")
    assert "sam is not computed, as slic, slic_torch, felzenszwalb are" in refused("superpixels", *words[:2])
    for name in ("../sam", "a b", ".", "none", "slic_100_6_3", "slik/"):
        assert "`superpixels` cannot be" in refused("pretrain", f"--superpixels={name}")


def test_the_papers_own_cuboid_is_an_option():
    for words, wanted in (([], (0.2, False)), (["--cuboid", "0.1", "--paper_cuboid"], (0.1, True))):
        asked = load("pretrain", "slidr_nuscenes", *words).augment_settings(train=True)
        assert (asked.cuboid, asked.paper_cuboid, asked.min_pairs) == (*wanted, 1024)


@pytest.mark.parametrize(
    ("stage", "word", "limit"),
    [
        ("show", "--crop=1000000000,1000000000", "16384"),
        ("zeroshot", "--crop=16385,16385", "16384"),
        ("pretrain", "--crop=224,16385", "16384"),
        ("synth", "--azimuths=16385", "16384"),
        ("synth", "--image_scale=1000", "10"),
        ("linprobe", "--dpi=99999999", "2400"),
        ("knn", "--dpi=2401", "2400"),
    ],
)
def test_sizes_that_no_machine_can_draw_are_refused(capsys, stage, word, limit):
    assert run.main([stage, word]) == 2
    assert f"input should be less than or equal to {limit}." in capsys.readouterr().err


@pytest.mark.parametrize("stage", run.STAGES)
def test_no_value_is_too_odd_for_a_sentence(stage):
    """What is typed for a key is taken, or refused by the key's name: never a traceback, never what overflows later."""
    settings_type = run.STAGES[stage][0] or settings_of("slidr")
    for name, field in settings_type.model_fields.items():
        for text in ("1e39", "-1e39", "9" * 30, "nan", "x" * 5000, "a\0b", "\x1b[2J", "..", "\udcff", "[", "1,2,3,4"):
            try:
                settings = config.validate(settings_type, {name: text}, complete=False)
            except InputError as error:
                assert f"`{name}` cannot be" in str(error) or "do not fit together" in str(error)
                continue
            value = getattr(settings, name)
            assert not isinstance(value, int | float) or abs(value) < 1e38, field
            assert "\0" not in str(value) and "\x1b" not in str(value)
