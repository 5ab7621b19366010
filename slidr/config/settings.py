"""The settings that stages share, and those of the stages that train: each key with its type, default and meaning.

Defaults are the published ones where there are any.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.augment import AugmentSettings
from data.datasets.dataset import ReadOptions
from data.superpixels import PUBLISHED, SuperpixelSettings
from slidr.config.keys import (
    Architecture,
    Area,
    Channels,
    Count,
    Degrees,
    Device,
    Dots,
    FolderName,
    Grid,
    Index,
    KindOfMaps,
    LayerDecay,
    Names,
    NonNegative,
    Percent,
    Pixels,
    Positive,
    Processes,
    Range,
    Rates,
    Share,
    Sweep,
    VoxelSize,
    Width,
    cells_of,
    key,
)
from slidr.config.values import from_text


class Settings(BaseModel):
    """Keys of every stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Index = key(0, "seed of every random draw")
    threads: Processes = key(0, "CPU threads of torch; 0 = torch's own choice", decides=False)
    workers: Processes = key(2, "processes that read and prepare data; 0 = the training process itself", decides=False)


class WithData(Settings):
    """A stage that reads a data set."""

    dataset: str = key(
        "synthetic", "data set: synthetic (the built-in world) | nuscenes | kitti | package.module:RECORD"
    )
    root: Path | None = key(None, "folder of the data set; none = the data set's own under datasets/", decides=False)
    cameras: Names | None = key(None, "names of the cameras, as in CAM_FRONT,CAM_BACK; none = those of the layout")
    columns: Annotated[int, Field(ge=4)] | None = key(None, "float32 numbers a point; none = as the layout has it")
    intensity_scale: Positive = key(1.0, "factor on the stored intensity, for scans of another range")

    def read_options(self) -> ReadOptions:
        """Where the data differ from their official layout."""
        return ReadOptions(self.cameras, self.columns, self.intensity_scale)


class WithPictures(Settings):
    """A stage that draws."""

    format: Literal["png", "pdf", "svg"] = key(
        "png", "format of pictures; pdf, svg = that as well, beside the PNG", decides=False
    )
    dpi: Dots = key(110, "dots an inch of the PNG, and of the points in pdf and svg", decides=False)


class WithRun(WithData, WithPictures):
    """A stage that leaves a run folder output/<stage>/<name>/."""

    name: FolderName | None = key(None, "name of the run; none = data set and time of day", decides=False)
    output: Path = key(Path("output"), "folder of all runs", decides=False)
    device: Device = key(
        "auto", "auto, cpu, cuda or cuda:1 (1 alone says the same); auto = cuda where there is one", decides=False
    )
    precision: Literal["float32", "bf16", "fp16"] = key(
        "float32", "arithmetic of the networks (bf16, fp16 = autocast; fp16 with loss scaling)"
    )
    deterministic: bool = key(
        False, "the same bits in every run on one machine: slower operations where the usual ones leave an order open"
    )


class WithTraining(WithRun):
    """A stage that trains."""

    train_split: str = key("train", "split to train on")
    val_split: str = key("val", "split to validate on")
    batch: Count = key(4, "scans a step")
    epochs: Count = key(50, "passes over the training split")
    lr: Positive = key(0.5, "learning rate")
    optimizer: Literal["sgd", "adamw"] = key("sgd", "optimiser")
    momentum: Share = key(0.9, "SGD: momentum")
    dampening: Share = key(0.1, "SGD: dampening of the momentum (none in the very first step, as in torch)")
    betas: tuple[Share, Share] = key((0.9, 0.999), "AdamW: decay of the two running means")
    weight_decay: NonNegative = key(1e-4, "SGD: L2 penalty; AdamW: decoupled weight decay")
    schedule: Literal["cosine", "warmup_cosine", "one_cycle"] = key(
        "cosine", "learning rate: cosine, stepped per epoch (published); the others are stepped per step"
    )
    final_lr: NonNegative = key(0.0, "cosine, warmup_cosine: learning rate at the end")
    warmup_steps: Index = key(0, "warmup_cosine: steps of linear warm-up")
    one_cycle_peak: Share = key(0.2, "one_cycle: share of the steps after which the rate is highest")
    one_cycle_start: Positive = key(25.0, "one_cycle: the first rate is lr / this")
    one_cycle_end: Positive = key(100.0, "one_cycle: the last rate is the first / this")
    clip_gradients: NonNegative = key(0.0, "largest norm of the gradient, longer ones are scaled to it; 0 = any")
    validate_every: Count = key(5, "epochs between validations", decides=False)
    resume: bool = key(
        False,
        "continue the run of that --name, or the newest run with these settings, if it was cut off",
        decides=False,
    )
    checkpoint_minutes: NonNegative = key(10.0, "minutes between checkpoints; 0 = after every step", decides=False)
    keep_checkpoints: Count = key(2, "newest checkpoints that stay, besides the best", decides=False)
    max_bad_steps: Index = key(
        3, "steps left out because loss or gradient is NaN or infinite; one more stops the run", decides=False
    )
    sync_batch_norm: bool = key(True, "several processes: batch norm over the voxels of all, not of each on its own")
    max_bad_frames: Share = key(
        0.001,
        "share of the training frames that may be unreadable: each is named, the next one stands in for it",
        decides=False,
    )


class WithSuperpixels(WithData):
    """A stage that needs superpixel maps."""

    superpixels_folder: Path = key(
        Path("superpixels"), "folder of the maps: <data set>/superpixels_<kind>/<token>.png", decides=False
    )
    superpixels: KindOfMaps = key(
        "slic",
        "kind of superpixels: slic | slic_torch (our own SLIC: faster, other maps; benchmarks/superpixels.py says how "
        "far) | felzenszwalb | the name of others' maps (docs/superpixels.md)",
    )
    superpixel_zero: Literal["superpixel", "none"] = key(
        "superpixel", "others' maps: what the id 0 is; none = its pixels belong to no superpixel"
    )
    superpixel_ids: Literal["image", "frame"] = key(
        "image", "others' maps: frame = the same id in two cameras of a frame is one superpixel, as of classes"
    )
    segments: Count = key(150, "SLIC: superpixels asked for an image")
    compactness: Positive = key(6.0, "SLIC: weight of distance against colour")
    sigma: NonNegative | None = key(None, "pixels of Gaussian blur before; none = 3 for SLIC, 0.35 for Felzenszwalb")
    scale: Positive = key(300.0, "Felzenszwalb: larger makes larger superpixels")
    min_size: Count = key(4000, "Felzenszwalb: pixels of the smallest superpixel")
    superpixel_shrink: Literal[1, 2, 4] = key(
        1, "segment images at 1/2 or 1/4 of their size: faster, other maps (benchmarks/superpixels.py says how far)"
    )

    def superpixel_settings(self) -> SuperpixelSettings:
        """The part of the settings that decides a map."""
        sigma = self.sigma if self.sigma is not None else {"felzenszwalb": 0.35}.get(self.superpixels, 3.0)
        return SuperpixelSettings(
            kind=self.superpixels,
            segments=self.segments,
            compactness=self.compactness,
            sigma=sigma,
            scale=self.scale,
            min_size=self.min_size,
            shrink=self.superpixel_shrink,
            zero=self.superpixel_zero,
            ids=self.superpixel_ids,
        )

    @model_validator(mode="after")
    def _ids_of_others_maps(self) -> "WithSuperpixels":
        if self.superpixels in PUBLISHED and (self.superpixel_zero, self.superpixel_ids) != ("superpixel", "image"):
            raise ValueError(
                f"`superpixel_zero` and `superpixel_ids` are of others' maps, and `superpixels` is {self.superpixels}"
            )
        return self


class MethodSettings(WithTraining):
    """Keys of every pretraining; a method adds its own."""

    method: str = key("slidr", "pretraining method, by name or package.module:CLASS")
    train_split: str = key("pretrain", "split to train on (nuScenes: pretrain = train without SLidR's mini-val)")
    val_split: str = key("pretrain_val", "split to validate on (nuScenes: pretrain_val = SLidR's mini-val)")
    architecture: Architecture = key("res16unet34c", "lidar network")
    width: Width = key(1.0, "channels of the lidar network as a share of the published ones")
    grid: Grid = key("cylindrical", "axes of the voxels")
    voxel_size: VoxelSize = key(
        (0.1, 1.0, 0.1), "voxel edges: rho in m, phi in degrees, z in m (cartesian: x, y, z in m)"
    )
    bn_momentum: Share = key(0.05, "batch-norm momentum of stem, strided, transposed and shortcut layers")
    bn_momentum_blocks: Share = key(
        0.1, "batch-norm momentum inside residual blocks (published code: its 0.05 does not reach them)"
    )
    replay: Path | None = key(
        None, "nonfinite-<step>.pt of a run: look at the step that it is about, train nothing", decides=False
    )


class WithTeacher(Settings):
    """A method with a frozen image network."""

    teacher: str = key("resnet50_moco_v2", "frozen image network, by name; `run.py env` lists them")
    teacher_weights: str | None = key(
        None, "none = the public file of that name, random, or a file: the official one, Hugging Face's or timm's"
    )
    weights_folder: Path = key(Path("weights"), "folder of downloaded teachers", decides=False)
    dilated: bool = key(
        True, "a ResNet teacher's strides become dilation: features at 1/4; false = they stay (ResNet-50: 1/32)"
    )


class WithImageNetwork(Settings):
    """A stage that compares points with pixels, by the image network that a model.pt names."""

    teacher_weights: str | None = key(None, "of that network: none = those it was pretrained with, random, or a file")
    weights_folder: Path = key(Path("weights"), "folder of downloaded teachers", decides=False)
    dilated: bool = key(True, "as in the model's pretraining (PPKT: false; its recipe says so)")
    crop: tuple[Pixels, Pixels] = key((224, 416), "rows and columns of the pictures that it sees")


class WithCloudAugmentation(Settings):
    """A method that moves and cuts the cloud (supplement, section B)."""

    augment: bool = key(True, "rotate, flip and cut the cloud; crop and flip the images, if any")
    cuboid: Share = key(
        0.2, "largest side of the dropped cuboid as a share of the cloud's range; 0 = none (paper: 0.1)"
    )


class WithImageAugmentation(WithCloudAugmentation):
    """A method that crops and flips images along with it."""

    crop: tuple[Pixels, Pixels] = key((224, 416), "rows and columns of the images that the teacher sees")
    crop_area: Range = key((0.3, 1.0), "least and largest share of an image that a crop takes")
    crop_aspect: Range = key((14 / 9, 17 / 9), "least and largest width of a crop, divided by its height")
    image_shrink: Literal[1, 2] = key(
        1, "2 = read images at half their size: JPEG files decode in a third of the time; other pixels than published"
    )
    paper_cuboid: bool = key(
        False,
        "refuse a cuboid if all images together keep too few pairs, and draw again (paper); false = if any "
        "single image does, and drop none (published code)",
    )
    min_pairs: Index = key(1024, "pairs that must be left for a cuboid or an image's crop to be accepted")

    def augment_settings(self, train: bool) -> AugmentSettings:
        """The augmentation of training frames, or the plain resize of validation frames."""
        return AugmentSettings(
            crop=self.crop,
            train=train and self.augment,
            cuboid=self.cuboid,
            paper_cuboid=self.paper_cuboid,
            min_pairs=self.min_pairs,
            area=self.crop_area,
            aspect=self.crop_aspect,
        )


BEST_EPOCH = (
    "The epoch was chosen on the split that is scored, which flatters; SLidR's published figures are of the last."
)


class Downstream(WithTraining):
    """What linear probing and fine-tuning share."""

    weights: str | None = key(None, "pretrained model.pt, or random; none = the newest pretraining under --output")
    architecture: Architecture | None = key(None, "none = as the weights (random: as the pretraining recipe)")
    width: Width | None = key(None, "none = as the weights (random: as the pretraining recipe)")
    grid: Grid | None = key(None, "none = as the weights (random: as the recipe)")
    voxel_size: VoxelSize | None = key(None, "none = as the weights (random: as the recipe)")
    bn_momentum: Share = key(0.02, "batch-norm momentum of stem, strided, transposed and shortcut layers (blocks: 0.1)")
    batch: Count = key(16, "frames a step")
    augment: bool = key(True, "rotate and flip the cloud")
    keep: Literal["last", "best"] = key(
        "last", "epoch that is scored: the last (published), or the best of those validated on the split that is scored"
    )
    pictures: Index = key(2, "validation frames to draw at the end", decides=False)
    compare: bool = key(
        True, "show the published figures of the same setting, where there are any, beside ours", decides=False
    )
    seeds: Count = key(1, "runs with the seeds seed, seed + 1, ...: report mean and standard deviation")

    @property
    def scored(self) -> str:
        """The split that scores are of."""
        return self.val_split

    @property
    def remark(self) -> str:
        """What must be said of the scores."""
        return BEST_EPOCH if self.keep == "best" else ""


class Linprobe(Downstream):
    """Freeze a lidar network, train one linear layer on its features, report mIoU (paper, section 4.2)."""

    head: Literal["linear", "mlp", "batchnorm"] = key(
        "linear", "linear (published); mlp = two layers, as wide as the features; batchnorm = batch norm, then linear"
    )
    lr: Positive = key(0.05, "learning rate")
    cache_features: bool = key(
        False, "without augmentation: compute each frame's frozen features once, keep them in memory; changes no result"
    )

    @model_validator(mode="after")
    def _features_that_stay(self) -> "Linprobe":
        if self.cache_features and self.augment:
            raise ValueError("`cache_features` needs --augment false, because augmented features change each epoch")
        return self


class FewLabels(Downstream):
    """What tasks that train the whole network on a share of the labels have in common."""

    pct: Percent = key(1.0, "per cent of the training split's labels to use")
    subset: str | None = key(
        None,
        "what pct counts, scenes or frames, or the subset.txt of a run; none = scenes, on KITTI frames (published)",
    )
    subset_seed: Index | None = key(None, "seed of a random subset; none = every n-th scene or frame (published)")
    sweep: Sweep | None = key(
        None,
        "per cents, as in 1,5,10,25,100: fine-tune on each, from random and from pretrained weights (several: "
        "--weights A,B); goes on where it stopped",
    )
    weights: str | None = key(
        None,
        "pretrained model.pt, or random; none = the newest pretraining under --output; sweep: also several, as A,B",
    )

    @property
    def several_weights(self) -> list[str]:
        """`weights` as a list."""
        return from_text(self.weights or "", tuple[str, ...])


class Fewshot(FewLabels):
    """Fine-tune a whole lidar network on few labels, report mIoU (paper, section 4.3)."""

    epochs: Count | None = key(None, "passes over the subset; none = 100 on KITTI and at 1 %, else 50")
    lr: Positive | None = key(None, "learning rate of the backbone; none = 0.02 pretrained on nuScenes, else 0.05")
    lr_head: Positive | None = key(None, "learning rate of the last layer; none = 2.0 pretrained, lr from random")
    layer_decay: LayerDecay = key(
        1.0,
        "factor on the backbone's rate from each of its nine parts to the one before, from the last layer backwards",
    )
    search: bool = key(
        False, "try all pairs of search_lr and search_lr_head (of lr, lr_head where given); goes on", decides=False
    )
    search_lr: Rates = key(
        (0.01, 0.02, 0.05, 0.1), "search: rates of the backbone, around the published (no grid is)", decides=False
    )
    search_lr_head: Rates = key(
        (1.0, 2.0, 5.0), "search: rates of the last layer, likewise; from random weights it has lr", decides=False
    )


class Detect(FewLabels):
    """Fine-tune a lidar network with a head for boxes on few labels, report mAP."""

    pct: Percent = key(5.0, "per cent of the training split's labels to use")
    batch: Count = key(4, "frames a step")
    epochs: Count = key(20, "passes over the subset")
    lr: Positive = key(0.001, "learning rate of the backbone")
    lr_head: Positive | None = key(None, "learning rate of the head; none = lr")
    optimizer: Literal["sgd", "adamw"] = key("adamw", "optimiser")
    weight_decay: NonNegative = key(0.01, "SGD: L2 penalty; AdamW: decoupled weight decay")
    schedule: Literal["cosine", "warmup_cosine", "one_cycle"] = key(
        "one_cycle", "learning rate: cosine, stepped per epoch; the others are stepped per step"
    )
    clip_gradients: NonNegative = key(10.0, "largest norm of the gradient, longer ones are scaled to it; 0 = any")
    augment: bool = key(True, "rotate and flip the cloud and its boxes")
    rotation: Degrees = key(180.0, "largest rotation about z, either way; less where only one side is labelled")
    flip_x: bool = key(True, "augment: x may change its sign, as y does; false where only the front is labelled")
    area: Area = key(
        (-51.2, -51.2, 51.2, 51.2), "where objects are looked for: x, y in m of two opposite corners, lidar frame"
    )
    cell: Positive = key(0.4, "edge of a cell of the bird's-eye grid in m")
    bev_channels: Channels = key(64, "channels of the bird's-eye grid")
    min_points: Index = key(1, "boxes with fewer lidar points are not trained on")
    min_score: Share = key(0.1, "boxes with a lower score are left out")
    most_boxes: Count = key(300, "most boxes of a frame, the best by their score")

    @model_validator(mode="after")
    def _cells_that_fit(self) -> "Detect":
        cells_of(self.area, self.cell)
        return self
