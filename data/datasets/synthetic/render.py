"""The ray caster for lidar and cameras, and the colours of what it hits."""

from dataclasses import dataclass

import numpy as np

from data.datasets.synthetic.world import (
    BOX,
    CYLINDER,
    KERB,
    LEAVES,
    MATERIALS,
    NAMES,
    NOISE,
    STRIPES,
    TILES,
    WINDOWS,
    Scene,
)

FAR = 90.0  # metres; beyond is sky
SUN = np.array([0.45, -0.35, 0.82], np.float32)
TEXTURE = np.array([MATERIALS[n][3] for n in NAMES])
REFLECTIVITY = np.array([MATERIALS[n][4] for n in NAMES], np.float32)
NUSCENES_LABEL = np.array([MATERIALS[n][0] for n in NAMES], np.uint8)
KITTI_LABEL = np.array([MATERIALS[n][1] for n in NAMES], np.uint32)


@dataclass
class Hits:
    """What each of N rays hit first."""

    distance: np.ndarray  # [N] metres; inf = sky
    primitive: np.ndarray  # [N] row of the scene's primitives; -1 = ground or sky
    normal: np.ndarray  # [N, 3]
    local: np.ndarray  # [N, 3] metres in the primitive's axes (ground: world coordinates)
    material: np.ndarray  # [N] index of NAMES; meaningless for the sky


def cast(scene: Scene, origin: np.ndarray, directions: np.ndarray) -> Hits:
    """First hit of the rays from `origin [3]` along unit `directions [N, 3]`, both in the world's axes."""
    directions = directions.astype(np.float32)
    origin = origin.astype(np.float32)
    n = len(directions)
    hits = Hits(
        np.full(n, np.inf, np.float32),
        np.full(n, -1),
        np.tile(np.array([0, 0, 1], np.float32), (n, 1)),
        np.zeros((n, 3), np.float32),
        np.zeros(n, int),
    )
    _cast_ground(scene, origin, directions, hits)
    to_centre = scene.centre - origin
    reach = np.linalg.norm(to_centre, axis=1)
    near = np.flatnonzero(reach - scene.radius < FAR)
    near = near[np.argsort(reach[near])]
    # rays inside the cone around a primitive's bounding sphere; all rays if the origin lies inside the sphere
    sine = np.clip(scene.radius[near] / np.maximum(reach[near], 1e-6), 0, 1)
    limit = np.where(sine < 1, np.sqrt(1 - sine**2), -2)
    axes = (to_centre[near] / reach[near, None]).astype(np.float32)
    for start in range(0, len(near), 64):
        cosines = axes[start : start + 64] @ directions.T
        for row, p in enumerate(near[start : start + 64]):
            rays = np.flatnonzero(cosines[row] >= limit[start + row])
            rays = rays[hits.distance[rays] > reach[p] - scene.radius[p]]
            if len(rays):
                _cast_primitive(scene, p, origin, directions, rays, hits)
    return hits


def _cast_ground(scene: Scene, origin: np.ndarray, directions: np.ndarray, hits: Hits) -> None:
    """The road at height 0, all other ground a kerb higher."""
    down = np.flatnonzero(directions[:, 2] < -1e-4)
    for height in (KERB, 0.0):
        t = (height - origin[2]) / directions[down, 2]
        x, y = (origin[i] + t * directions[down, i] for i in (0, 1))
        material = scene.ground(x, y)
        # below the kerb every ground counts: what is not road there is the kerb's own face
        hit = (t < FAR) & (scene.raised(material) if height else True)
        rays = down[hit]
        hits.distance[rays], hits.material[rays] = t[hit], material[hit]
        hits.local[rays, 0], hits.local[rays, 1] = x[hit], y[hit]
        down = down[~hit]


def _cast_primitive(scene: Scene, p: int, origin, directions, rays, hits: Hits) -> None:
    c, s = scene.yaw[p]
    rotation = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]], np.float32)  # world -> primitive
    half = scene.half[p]
    o = rotation @ (origin - scene.centre[p]) / half
    d = directions[rays] @ rotation.T / half
    shape = scene.shape[p]
    with np.errstate(divide="ignore", invalid="ignore"):
        if shape == BOX:
            a, b = (-1 - o) / d, (1 - o) / d
            low, high = np.minimum(a, b), np.maximum(a, b)
            t = low.max(1)
            ok = (t < high.min(1)) & (t > 0)
        else:
            # a cylinder's axis is its shortest way across for wheels (y), else upright (z)
            axis = 3 if shape != CYLINDER else (1 if half[1] < 0.5 * half[2] and half[0] == half[2] else 2)
            round_ = [i for i in range(3) if i != axis]
            qa, qb, qc = (d[:, round_] ** 2).sum(1), d[:, round_] @ o[round_], (o[round_] ** 2).sum() - 1
            root = np.sqrt(qb**2 - qa * qc)
            t = (-qb - root) / qa
            ok = (t > 0) & np.isfinite(t)
            if axis < 3:
                ok &= np.abs(o[axis] + t * d[:, axis]) <= 1
                cap = (-np.sign(d[:, axis]) - o[axis]) / d[:, axis]
                inside = ((o[round_] + cap[:, None] * d[:, round_]) ** 2).sum(1) <= 1
                use = inside & (cap > 0) & ~(ok & (t < cap))
                t, ok = np.where(use, cap, t), ok | use
        ok &= t < hits.distance[rays]
    if not ok.any():
        return
    rays, t, d = rays[ok], t[ok], d[ok]
    local = o + t[:, None] * d
    if shape == BOX:
        face = np.abs(local).argmax(1)
        normal = np.zeros_like(local)
        normal[np.arange(len(face)), face] = np.sign(local[np.arange(len(face)), face])
    else:
        normal = local / half
        if axis < 3:
            normal[:, axis] = np.where(np.abs(local[:, axis]) > 0.999, np.sign(local[:, axis]) * 1e3, 0)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    hits.distance[rays], hits.primitive[rays] = t, p
    hits.normal[rays], hits.local[rays] = normal @ rotation, local * half
    hits.material[rays] = scene.material[p]


def _noise(u: np.ndarray, v: np.ndarray, seed: float) -> np.ndarray:
    """Smooth value noise in 0..1 at integer lattice points, by a hash of sines."""
    i, j = np.floor(u), np.floor(v)
    fu, fv = u - i, v - j
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)

    def at(a, b):
        h = np.sin(a * 127.1 + b * 311.7 + seed * 74.7) * 43758.5453
        return h - np.floor(h)

    low = at(i, j) * (1 - fu) + at(i + 1, j) * fu
    high = at(i, j + 1) * (1 - fu) + at(i + 1, j + 1) * fu
    return low * (1 - fv) + high * fv


def paint(scene: Scene, origin: np.ndarray, directions: np.ndarray, hits: Hits) -> np.ndarray:
    """RGB `[N, 3]` uint8 of the hits: texture, sun, haze; sky above."""
    sky = np.clip(directions[:, 2:3] * 2.2, 0, 1)
    haze = np.array([203, 214, 226], np.float32)
    out = haze + (np.array([96, 148, 212], np.float32) - haze) * sky
    seen = np.flatnonzero(np.isfinite(hits.distance))
    p, m = hits.primitive[seen], hits.material[seen]
    colour = np.where((p >= 0)[:, None], scene.colour[p], scene.colours[m]).astype(np.float32)
    normal, local = hits.normal[seen], hits.local[seen]
    # two coordinates on the surface: across and up on walls, along and across on the ground and on top
    flat = np.abs(normal[:, 2]) > 0.7
    u = np.where(flat, local[:, 0], local[:, 0] + local[:, 1])
    v = np.where(flat, local[:, 1], local[:, 2])
    seed = np.where(p >= 0, scene.owner[p] % 97, 0)
    texture = TEXTURE[m]
    factor = 0.94 + 0.12 * _noise(u * 3, v * 3, seed)
    rough = texture == NOISE
    factor[rough] += 0.22 * (_noise(u[rough] * 14, v[rough] * 14, seed[rough]) - 0.5)
    leaves = texture == LEAVES
    factor[leaves] = 0.55 + 0.55 * _noise(u[leaves] * 5, v[leaves] * 5, seed[leaves])
    factor[leaves] += 0.5 * (_noise(u[leaves] * 17, v[leaves] * 17, seed[leaves]) - 0.5)
    tiles = texture == TILES
    joint = (np.mod(u, 0.8) < 0.06) | (np.mod(v, 0.8) < 0.06)
    factor[tiles] *= np.where(
        joint[tiles], 0.72, 0.95 + 0.1 * _noise(np.floor(u / 0.8), np.floor(v / 0.8), seed)[tiles]
    )
    windows = (texture == WINDOWS) & ~flat
    pane = (np.mod(u, 1.9) > 0.6) & (np.mod(v, 1.9) > 0.7) & windows
    colour[pane] = np.array([46, 58, 74]) + 40 * _noise(np.floor(u / 1.9), np.floor(v / 1.9), seed)[pane, None]
    bricks = windows & ~pane & ((np.mod(v, 0.35) < 0.05) | (np.mod(u + 0.35 * np.floor(v / 0.35), 0.7) < 0.05))
    factor[bricks] *= 0.82
    stripes = (texture == STRIPES) & (np.mod(u + v, 0.9) < 0.22)
    factor[stripes] *= 0.7
    light = 0.5 + 0.6 * np.clip(normal @ SUN, 0, None)
    fade = np.exp(-hits.distance[seen] / 130)[:, None]
    out[seen] = (colour * (factor * light)[:, None]) * fade + haze * (1 - fade)
    return np.clip(out, 0, 255).astype(np.uint8)


def reflect(rng: np.random.Generator, hits: Hits, directions: np.ndarray) -> np.ndarray:
    """Lidar intensity `[N]` in 0..1 by material, angle and chance; the materials overlap."""
    angle = np.abs((hits.normal * directions).sum(1))
    speckle = rng.lognormal(0, 0.45, len(directions))
    return np.clip(REFLECTIVITY[hits.material] * (0.35 + 0.65 * angle) * speckle, 0, 1).astype(np.float32)
