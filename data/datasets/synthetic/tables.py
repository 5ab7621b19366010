"""The tables of the nuScenes layout for the built-in world."""

import math
from pathlib import Path

import numpy as np

from data.boxes import count_points
from data.datasets.nuscenes import CATEGORIES
from data.datasets.synthetic.objects import objects
from data.datasets.synthetic.sensors import (
    IMAGE_SIZE,
    LIDAR,
    VERSION,
    SyntheticWorld,
    as_pose,
    camera_matrix,
    ego_at,
    ego_pose,
    make_token,
    quaternion_matrix,
    scaled,
    sensor_files,
    unit,
)


def make_tables(root: Path, world: SyntheticWorld) -> dict[str, list[dict]]:
    """Every table of the official layout; the scans, in which the points of boxes are counted, lie under `root`."""
    tables: dict[str, list[dict]] = {"attribute": [], "instance": [], "sample_annotation": []}
    tables["visibility"] = [
        {"token": str(i + 1), "level": f"v{a}-{b}", "description": f"{a} to {b} % visible"}
        for i, (a, b) in enumerate(((0, 40), (40, 60), (60, 80), (80, 100)))
    ]
    tables["category"] = [
        {"token": make_token("category", name), "name": name, "description": "", "index": i}
        for i, name in enumerate(CATEGORIES)
    ]
    log = make_token(world, "log")
    tables["log"] = [
        {
            "token": log,
            "logfile": "synthetic",
            "vehicle": "n000",
            "date_captured": "2023-11-14",
            "location": "synthetic",
        }
    ]
    tables["map"] = [
        {
            "token": make_token(world, "map"),
            "category": "semantic_prior",
            "filename": "maps/empty.png",
            "log_tokens": [log],
        }
    ]
    sensors = {"LIDAR_TOP": LIDAR, **{c: row[:2] for c, row in world.cameras.items()}}
    tables["sensor"] = [
        {"token": make_token("sensor", c), "channel": c, "modality": "lidar" if c == "LIDAR_TOP" else "camera"}
        for c in sensors
    ]
    tables["calibrated_sensor"] = [
        {
            "token": make_token(world, "calibration", c),
            "sensor_token": make_token("sensor", c),
            "translation": list(translation),
            "rotation": unit(rotation),
            "camera_intrinsic": [] if c == "LIDAR_TOP" else camera_matrix(c, world.image_scale).tolist(),
        }
        for c, (translation, rotation) in sensors.items()
    ]
    for name in ("scene", "sample", "sample_data", "ego_pose", "lidarseg"):
        tables[name] = []
    height, width = scaled(IMAGE_SIZE, world.image_scale)
    last = world.frames_per_scene - 1
    for s in (scene for part in world.splits.values() for scene in part):
        scene = world.scene(s)
        samples = [make_token(world, "sample", s, f) for f in range(world.frames_per_scene)]
        tables["scene"].append(
            {
                "token": make_token(world, "scene", s),
                "log_token": log,
                "nbr_samples": len(samples),
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "name": f"scene-{9001 + s}",
                "description": "a street of the built-in world",
            }
        )
        for f, sample in enumerate(samples):
            names = sensor_files(world, s, f)
            tables["sample"].append(
                {
                    "token": sample,
                    "timestamp": names["LIDAR_TOP"][1],
                    "prev": samples[f - 1] if f else "",
                    "next": samples[f + 1] if f < last else "",
                    "scene_token": make_token(world, "scene", s),
                }
            )
            for channel, (file, stamp, seconds) in names.items():
                token = make_token(world, channel, s, f)
                position, yaw = ego_at(scene, seconds)
                tables["ego_pose"].append(
                    {
                        "token": token,
                        "timestamp": stamp,
                        "rotation": [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)],
                        "translation": position.tolist(),
                    }
                )
                tables["sample_data"].append(
                    {
                        "token": token,
                        "sample_token": sample,
                        "ego_pose_token": token,
                        "calibrated_sensor_token": make_token(world, "calibration", channel),
                        "timestamp": stamp,
                        "fileformat": "pcd" if channel == "LIDAR_TOP" else "jpg",
                        "is_key_frame": True,
                        "height": 0 if channel == "LIDAR_TOP" else height,
                        "width": 0 if channel == "LIDAR_TOP" else width,
                        "filename": file,
                        "prev": make_token(world, channel, s, f - 1) if f else "",
                        "next": make_token(world, channel, s, f + 1) if f < last else "",
                    }
                )
            token = make_token(world, "LIDAR_TOP", s, f)
            file = f"lidarseg/{VERSION}/{token}_lidarseg.bin"
            tables["lidarseg"].append({"token": token, "sample_data_token": token, "filename": file})
        instances, annotations = _annotations(root, world, s, samples)
        tables["instance"] += instances
        tables["sample_annotation"] += annotations
    return tables


def _annotations(root: Path, world: SyntheticWorld, s: int, samples: list[str]) -> tuple[list[dict], list[dict]]:
    """The rows of `instance` and `sample_annotation` of scene `s`: objects that a keyframe's scan has points of."""
    scene, instances, annotations = world.scene(s), [], []
    boxes, seen = objects(scene), []
    for f in range(world.frames_per_scene):
        file, _, seconds = sensor_files(world, s, f)["LIDAR_TOP"]
        pose = ego_pose(scene, seconds) @ as_pose(quaternion_matrix(LIDAR[1]), LIDAR[0])
        points = np.fromfile(root / file, np.float32).reshape(-1, 5)[:, :3] @ pose[:3, :3].T + pose[:3, 3]
        seen.append(count_points(points, boxes).points)
    for i, (centre, size, yaw, label) in enumerate(zip(boxes.centre, boxes.size, boxes.yaw, boxes.label, strict=True)):
        frames = [f for f, points in enumerate(seen) if points[i]]
        tokens = [make_token(world, "annotation", s, i, f) for f in frames]
        if not frames:
            continue
        instances.append(
            {
                "token": make_token(world, "instance", s, i),
                "category_token": make_token("category", CATEGORIES[label]),
                "nbr_annotations": len(frames),
                "first_annotation_token": tokens[0],
                "last_annotation_token": tokens[-1],
            }
        )
        annotations += [
            {
                "token": token,
                "sample_token": samples[f],
                "instance_token": instances[-1]["token"],
                "visibility_token": "4",
                "attribute_tokens": [],
                "translation": centre.tolist(),
                "size": size[[1, 0, 2]].tolist(),
                "rotation": [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)],
                "prev": before,
                "next": after,
                "num_lidar_pts": int(seen[f][i]),
                "num_radar_pts": 0,
            }
            for f, token, before, after in zip(frames, tokens, ["", *tokens], [*tokens[1:], ""], strict=False)
        ]
    return instances, annotations
