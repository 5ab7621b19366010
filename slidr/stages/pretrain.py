"""Pretraining: a lidar network learns what a frozen image network sees in each superpixel (paper, section 3)."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from data.datasets import open_reader
from data.frame import Batch
from data.loading import make_loader
from slidr import config, pictures
from slidr.config import Pretrain
from slidr.losses import infonce
from slidr.pooling import POOLING_BACKEND, pool_pairs, pool_superpixels
from slidr.stages.show import draw_similarity, read_frame
from slidr.student import SPEC_KEYS, Student, StudentSpec, save_student
from slidr.teachers import load_teacher
from slidr.teachers.vit import VisionTransformer
from slidr.training import Run, arithmetic, autocast, distributed, fit, prepare, read_replay, replay, sgd
from triton_kernels import backend


def run(settings: Pretrain) -> Path:
    """Pretrain by the settings; the run's folder."""
    content = read_replay(settings.replay) if settings.replay else None
    if content:
        settings = config.validate(Pretrain, settings.model_dump() | content["settings"])
    device = prepare(settings)

    # Data: keyframes with their images, superpixels and point-pixel pairs (section 3.2)
    with distributed.first_goes_first():
        readers = [open_reader(settings.dataset, settings.root, s) for s in (settings.train_split, settings.val_split)]
    maps = (settings.superpixels_folder / settings.dataset, settings.superpixel_settings())
    if settings.superpixels == "none":
        maps = None
    loader, val_loader = (
        make_loader(
            reader,
            batch=settings.batch,
            augment=settings.augment_settings(train),
            superpixels=maps,
            images=True,
            labels=False,
            workers=settings.workers,
            seed=settings.seed,
            shuffle=train,
            shrink=settings.image_shrink,
            max_bad_frames=settings.max_bad_frames if train else 0.0,
            pin=device.type == "cuda",
            rank=distributed.rank(),
            world=distributed.world(),
        )
        for reader, train in zip(readers, (True, False), strict=True)
    )

    watched = read_frame(settings, readers[1], 0, 0)  # drawn again and again while the student learns

    # Networks: the student is trained, the teacher frozen, the 1x1 head on the teacher trained (section 3.1)
    with distributed.first_goes_first():
        teacher = load_teacher(settings.teacher, settings.teacher_weights, settings.weights_folder, settings.dilated)
    if isinstance(teacher.network, VisionTransformer):
        teacher.network.patches(*settings.crop)  # a crop that does not fit ends here, not at the first step
    teacher.to(device)
    head = nn.Conv2d(teacher.channels, settings.feature_size, 1)  # upsampling and L2 per pixel: slidr.pooling
    spec = StudentSpec(**{name: getattr(settings, name) for name in SPEC_KEYS})
    momenta = {"bn_momentum": settings.bn_momentum, "bn_momentum_blocks": settings.bn_momentum_blocks}
    student = Student(spec, settings.feature_size, normalize=True, **momenta)
    trained = nn.ModuleDict({"student": student, "head": head}).to(device)

    # Objective: InfoNCE from superpoints to superpixels (eq. 1), or from points to pixels where there are none (PPKT)
    def loss_of(batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        voxel_features, voxels = student(batch)
        image_features = head(teacher(batch.images))
        pairs = replace(batch.pairs, point=voxels.inverse[batch.pairs.point])
        if maps:
            k, q = pool_superpixels(voxel_features, image_features, batch.superpixels, pairs)
        else:
            pairs = pairs.select(torch.randperm(len(pairs), device=device)[: settings.sampled_pairs])
            k, q = pool_pairs(voxel_features, image_features, batch.images.shape[2:], pairs)
        share = 1.0
        if settings.gather_negatives and trained.training:
            share, q = distributed.share(len(k)), distributed.gathered(q)
        loss, accuracy = infonce(k, q, settings.temperature)
        return loss * share, {"pairs": len(pairs), "superpixels": len(k), "accuracy": accuracy}

    if content:
        print("\n".join(replay(content, loader, loss_of, trained, device)))
        return settings.replay
    log = Run("pretrain", settings)
    log.start(
        data=f"{settings.dataset}: {len(readers[0])} frames to train on, {len(readers[1])} to validate on",
        superpixels=f"{settings.superpixels} in {maps[0]}" if maps else f"none, {settings.sampled_pairs} pairs a step",
        student=student.describe(),
        teacher=f"{teacher.name}: {teacher.source}",
        engine=backend.describe(device),
        pooling=POOLING_BACKEND,
        arithmetic=arithmetic(settings, device),
    )

    @torch.no_grad()
    def validate(epoch: int) -> dict[str, float]:
        trained.eval()
        losses = torch.zeros(2, dtype=torch.float64)
        for batch in val_loader:
            with autocast(settings, device):
                losses += torch.tensor([float(loss_of(batch.to(device))[0]), 1.0])
        if log.first:
            with log.spared("model.pt"):
                save_student(log.folder / "model.pt", student, "pretrain")
            with log.spared("a picture"):
                draw_similarity(watched, 0, readers[1], student, log.folder / f"similarity_epoch_{epoch:03d}.png")
        loss, batches = distributed.total(losses).tolist()
        return {"val_loss": loss / batches}

    optimizer = sgd(settings, [{"params": list(trained.parameters()), "lr": settings.lr}])
    fit(log, settings, loader, optimizer, loss_of, trained, validate)
    if not log.first:
        return log.folder
    save_student(log.folder / "model.pt", student, "pretrain")

    # What a person wants to see
    pictures.camera_overlay(watched, 0, log.folder / "camera.png")
    draw_similarity(watched, 0, readers[1], student, log.folder / "similarity.png")
    drawn = ["curves.png", "camera.png", "similarity.png"]
    drawn += sorted(path.name for path in log.folder.glob("similarity_epoch_*.png"))[:-1]
    pictures.curves(log.rows, log.folder / "curves.png")
    losses = [row["loss"] for row in log.rows if "loss" in row]
    log.finish(
        f"# Pretraining {log.folder.name}\n\n"
        f"Training loss {losses[0]:.3f} -> {losses[-1]:.3f}, validation loss "
        f"{next(row['val_loss'] for row in reversed(log.rows) if 'val_loss' in row):.3f}, "
        f"{log.seconds:.0f} s.\n\n"
        f"Again: `python run.py pretrain {log.folder / 'config.yaml'} --name NEW`\n\n"
        + "\n".join(f"![{name}]({name})" for name in drawn if (log.folder / name).exists())
        + "\n"
    )
    print(
        f"pretrain: loss {losses[0]:.3f} -> {losses[-1]:.3f}; {log.folder / 'report.md'}; next: python run.py linprobe"
    )
    return log.folder
