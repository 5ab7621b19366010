"""The settings of the stages around training: data, evaluation, pictures, files, the demo."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.superpixels import PUBLISHED
from slidr.config.keys import (
    Architecture,
    Count,
    Device,
    Grid,
    Index,
    Metres,
    Names,
    Part,
    Pixels,
    Positive,
    Scale,
    VoxelSize,
    Width,
    key,
)
from slidr.config.settings import Settings, WithImageNetwork, WithPictures, WithRun, WithSuperpixels


class Synth(Settings):
    """Write the built-in world in the layouts of nuScenes, SemanticKITTI or KITTI's object benchmark."""

    root: Path = key(Path("datasets/synthetic"), "folder to write (nuscenes/, kitti/ and kitti_object/ inside)")
    layout: Literal["nuscenes", "kitti", "kitti_object", "both"] = key(
        "both", "layout to write; both = nuscenes and kitti"
    )
    train_scenes: Count = key(8, "scenes to train on")
    val_scenes: Count = key(3, "held-out scenes")
    frames_per_scene: Count = key(5, "keyframes a scene, half a second apart")
    image_scale: Scale = key(0.25, "size of the images as a share of 1600 x 900 (KITTI: 1242 x 375)")
    azimuths: Pixels = key(512, "lidar columns a turn (32 beams)")


class Superpixels(WithSuperpixels):
    """Compute the superpixel maps of a data set ahead of pretraining, or import those that others made."""

    maps: Path | None = key(None, "folder of maps that others made: import them as those that --superpixels names")
    split: str = key("all", "split whose images to segment")
    shard: Part = key("1/1", "i/n = the i-th of n machines that share the images")

    @model_validator(mode="after")
    def _maps_of_a_name(self) -> "Superpixels":
        if self.maps and self.superpixels in PUBLISHED:
            raise ValueError("imported maps need a name of their own: pass --superpixels sam, say, with `maps`")
        if not self.maps and self.superpixels not in PUBLISHED:
            raise ValueError(f"{self.superpixels} is not computed, as {', '.join(PUBLISHED)} are: pass --maps FOLDER")
        return self


class Evaluate(WithRun):
    """Report the mIoU of a saved segmentation network, or the mAP of a detector, on a split."""

    weights: str | None = key(None, "model.pt of linprobe, fewshot or detect; none = the newest of them under --output")
    split: str = key("val", "split to evaluate on")
    subset: Path | None = key(None, "subset.txt of a run: evaluate on these frames of the split; none = all")
    submission: Path | None = key(
        None, "folder to write the benchmark server's files to; none = no files", decides=False
    )
    pictures: Index = key(2, "frames to draw", decides=False)
    compare: bool = key(
        True, "show the published figures of the same setting, where there are any, beside ours", decides=False
    )

    @property
    def scored(self) -> str:
        """The split, or the part of it, that scores are of."""
        return f"{self.subset} of {self.split}" if self.subset else self.split


class Show(WithSuperpixels, WithImageNetwork, WithPictures):
    """Draw a frame: points and superpixels in the image, and what a lidar network finds similar."""

    weights: str | None = key(None, "pretrained model.pt; none = the newest pretraining under --output, if any")
    output: Path = key(
        Path("output"), "folder of all runs; pictures go to output/show/<data set>/<frame>", decides=False
    )
    split: str = key("val", "split of the frame")
    frame: Index = key(0, "index of the frame in its split")
    camera: Index | Literal["all"] = key(0, "index of the camera, or all")
    pixel: tuple[Index, Index] | None = key(None, "row,column in the image: what is similar to the point nearest there")
    point: tuple[Metres, Metres, Metres] | None = key(
        None, "x,y,z in metres in the lidar frame: what is similar to the point nearest there"
    )
    classes: Names | None = key(None, "class names, as in car,vegetation: what is similar to a labelled point of each")


class Knn(WithRun):
    """Make the k-nearest-neighbour film of a scene by the labels of its first frame (supplement, A.1)."""

    weights: str | None = key(None, "any model.pt; none = the newest pretraining under --output")
    split: str = key("val", "split of the scene")
    scene: str | None = key(None, "name of the scene; none = the first of several frames")
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=3)] = key(
        ("vegetation", "car", "pedestrian"), "one to three classes, shown as green, red and blue"
    )
    k: Count = key(20, "neighbours")
    per_class: Count | None = key(
        256, "labelled points of the first frame kept of each class, drawn by the seed; none = all, which is exact"
    )


class Zeroshot(WithRun, WithImageNetwork):
    """Classify points by example images of each class, and report mIoU (--prototypes auto: a self-test by labels)."""

    weights: str | None = key(None, "model.pt pretrained with images; none = the newest pretraining under --output")
    prototypes: str = key(
        "auto",
        "folder of <class>/*.jpg or .png, or .npz or .safetensors with the teacher's features [n, C] a class; auto = "
        "pieces of training images cut by the points' labels: a self-test of the machinery",
    )
    split: str = key("val", "split to score")
    train_split: str = key("train", "auto: split whose images are cut")
    per_class: Annotated[Count, Field(ge=2)] = key(20, "auto: most examples of a class")
    frames: Count = key(100, "auto: most frames that are cut, drawn by the seed")
    crop: tuple[Pixels, Pixels] = key(
        (224, 224), "rows and columns to resize examples to; auto: the smaller is the shorter side of whole images"
    )
    pictures: Index = key(2, "frames to draw", decides=False)

    @property
    def scored(self) -> str:
        """The split that scores are of."""
        return self.split


class View(WithSuperpixels, WithImageNetwork):
    """Write one HTML page to turn frames around in and to ask what is similar to a point, for any browser."""

    weights: str | None = key(
        None, "model.pt, of pretraining or of a task; none = the newest pretraining under --output"
    )
    output: Path = key(Path("output"), "folder of all runs; pages go to output/view/<data set>", decides=False)
    device: Device = key("auto", "auto, cpu, cuda or cuda:1; auto = cuda where there is one", decides=False)
    split: str = key("val", "split of the frames")
    frame: Index = key(0, "index of the frame in its split")
    scene: str | None = key(None, "name of a scene: its frames instead of one, with a slider")
    frames: Count = key(40, "most frames of a scene; of a longer one every second, third, ... is shown")


class Features(Settings):
    """Compute a lidar network's features, or classes, of anybody's scans."""

    scans: Names = key(..., "files or folders of .bin, .npy, .npz, .pcd or .ply, with commas between them")
    weights: str | None = key(
        None, "model.pt; none = the newest pretraining (or task, for --kind classes) under output/"
    )
    kind: Literal["head", "backbone", "classes"] = key(
        "head",
        "head = unit vectors of the pretraining's feature space; backbone = what probes see; classes = train ids",
    )
    columns: Annotated[int, Field(ge=4)] | None = key(None, "float32 numbers a point of a .bin; none = 4")
    intensity_scale: Positive = key(1.0, "factor on the stored intensity, for scans of another range")
    output: Path | None = key(None, "folder to write to; none = beside the scans")
    device: Device = key("auto", "auto, cpu, cuda or cuda:1; auto = cuda where there is one")


class Convert(BaseModel):
    """Turn a published checkpoint into ours, or ours into the published layout."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Path = key(..., "checkpoint to read (either layout)")
    target: Path = key(..., "file to write")
    to: Literal["ours", "minkowski"] = key("ours", "layout to write")
    architecture: Architecture | None = key(None, "to ours: lidar network; none = by the weights' shapes")
    width: Width | None = key(None, "to ours: channels as a share of the published ones; none = by the shapes")
    dataset: str | None = key(
        None, "to ours: data set whose classes the last layer gives; none = nuscenes if 17, kitti if 20, else features"
    )
    grid: Grid = key("cylindrical", "to ours: axes of the voxels")
    voxel_size: VoxelSize = key((0.1, 1.0, 0.1), "to ours: voxel edges")


class Export(BaseModel):
    """Write a pretrained lidar network as a backbone for another program (OpenPCDet)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: Literal["openpcdet"] = key("openpcdet", "program to write for")
    output: Path = key(..., "folder to write")
    weights: str | None = key(None, "model.pt; none = the newest pretraining under output/")


class Env(BaseModel):
    """Print versions, devices, backends, teachers: what a bug report needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights_folder: Path = key(Path("weights"), "folder of downloaded teachers")


class Demo(Settings):
    """The whole way on the built-in world: pretrain, probe against random, a film, pictures, one table."""

    output: Path = key(Path("output"), "folder of all runs")
    root: Path = key(Path("datasets/synthetic"), "folder of the built-in world")
    pretrain_epochs: Count | None = key(None, "epochs of pretraining; none = the recipe's")
    probe_epochs: Count | None = key(None, "epochs of the linear probes; none = the recipe's")
