"""What stands in the built-in world: streets of primitives with materials, laid out by a seed."""

import math
from dataclasses import dataclass, field

import numpy as np

BOX, CYLINDER, ELLIPSOID = range(3)
NOISE, TILES, WINDOWS, LEAVES, PLAIN, STRIPES = range(6)  # textures

# Material: nuScenes raw label, SemanticKITTI raw label, colour range (two RGB ends), texture, lidar reflectivity.
# Reflectivities overlap on purpose: intensity alone must not give a class away.
MATERIALS = {
    "road": (24, 40, ((70, 70, 74), (105, 104, 104)), NOISE, 0.12),
    "marking": (24, 40, ((215, 215, 205), (235, 235, 230)), NOISE, 0.45),
    "sidewalk": (26, 48, ((150, 143, 135), (185, 178, 168)), TILES, 0.2),
    "terrain": (27, 72, ((86, 112, 52), (122, 138, 70)), LEAVES, 0.3),
    "other flat": (25, 49, ((140, 92, 76), (170, 116, 96)), TILES, 0.18),
    "building": (28, 50, ((130, 95, 75), (214, 205, 190)), WINDOWS, 0.3),
    "pole": (28, 80, ((95, 98, 100), (140, 142, 144)), PLAIN, 0.35),
    "sign": (28, 81, ((20, 60, 150), (200, 30, 30)), PLAIN, 0.8),
    "trunk": (30, 71, ((72, 52, 36), (98, 76, 54)), NOISE, 0.25),
    "crown": (30, 70, ((34, 72, 26), (92, 124, 48)), LEAVES, 0.28),
    "car": (17, 10, ((25, 25, 30), (225, 222, 220)), PLAIN, 0.35),
    "glass": (17, 10, ((22, 28, 36), (44, 52, 62)), PLAIN, 0.08),
    "bus": (16, 13, ((196, 150, 30), (222, 60, 40)), WINDOWS, 0.4),
    "truck": (23, 18, ((60, 84, 140), (225, 225, 225)), STRIPES, 0.38),
    "trailer": (22, 20, ((190, 190, 186), (236, 236, 232)), STRIPES, 0.42),
    "construction": (18, 20, ((224, 150, 10), (244, 184, 40)), PLAIN, 0.4),
    "pedestrian": (2, 30, ((40, 40, 70), (190, 80, 70)), PLAIN, 0.25),
    "skin": (2, 30, ((150, 105, 85), (222, 178, 150)), PLAIN, 0.3),
    "bicycle": (14, 11, ((20, 20, 24), (60, 140, 90)), PLAIN, 0.3),
    "motorcycle": (21, 15, ((24, 24, 28), (150, 26, 26)), PLAIN, 0.32),
    "barrier": (9, 51, ((200, 200, 200), (232, 90, 40)), STRIPES, 0.5),
    "cone": (12, 99, ((230, 88, 20), (246, 112, 40)), STRIPES, 0.6),
    "tyre": (17, 10, ((16, 16, 18), (34, 34, 36)), PLAIN, 0.07),
}
NAMES = list(MATERIALS)


@dataclass
class Scene:
    """Primitives of one street, and its ground."""

    bend: float  # metres that the street swings to either side
    wave: float  # metres of one swing, over 2 pi
    crossing: float  # x of a crossing street's middle
    colours: np.ndarray  # [materials, 3] this scene's tint of every material
    lots: np.ndarray  # [20, 2] ground beside each 12 m of street: material on the left and on the right
    rows: list = field(default_factory=list)

    def freeze(self) -> None:
        """Turn the rows into arrays: shape, centre, half size, cos and sin of yaw, material, colour, object."""
        shape, centre, half, yaw, material, colour, owner = zip(*self.rows, strict=True)
        self.shape, self.material, self.owner = np.array(shape), np.array(material), np.array(owner)
        self.centre, self.half = np.array(centre, np.float32), np.array(half, np.float32)
        self.yaw = np.stack((np.cos(yaw), np.sin(yaw)), 1).astype(np.float32)
        self.colour = np.array(colour, np.float32)
        self.radius = np.linalg.norm(self.half, axis=1).astype(np.float32)

    def middle(self, x):
        """y of the street's middle line."""
        return self.bend * np.sin(x / self.wave)

    def heading(self, x: float) -> float:
        """Direction of the street in radians."""
        return math.atan(self.bend / self.wave * math.cos(x / self.wave))

    def ground(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Material index of the ground at `x, y`."""
        d = y - self.middle(x)
        across = np.abs(x - self.crossing)
        side = np.abs(d)
        lot = self.lots[(np.floor(x / 12).astype(int)) % len(self.lots), (d > 0).astype(int)]
        out = np.where(side < 9, NAMES.index("sidewalk"), lot)
        out = np.where((across < 7.5) & (side > 6), NAMES.index("sidewalk"), out)
        road = (side < 6) | (across < 5)
        line = (side < 0.09) & (np.mod(x, 6) < 3) | (np.abs(side - 3.6) < 0.07)
        zebra = (np.abs(across - 7) < 1.3) & (np.mod(d, 1.0) < 0.5)
        out = np.where(road, NAMES.index("road"), out)
        return np.where(road & (side < 6) & (line & (across > 8.5) | zebra), NAMES.index("marking"), out)

    def raised(self, material: np.ndarray) -> np.ndarray:
        """Whether a ground material lies a kerb's height above the road."""
        return (material != NAMES.index("road")) & (material != NAMES.index("marking"))


KERB = 0.13  # metres


def make_scene(rng: np.random.Generator) -> Scene:
    """A street of 200 m, from x = -60 to 140, with everything that has a class."""
    low, high = (np.array([MATERIALS[n][2][i] for n in NAMES], np.float32) for i in (0, 1))
    lots = rng.choice([NAMES.index("terrain"), NAMES.index("other flat"), NAMES.index("terrain")], (20, 2))
    scene = Scene(
        bend=rng.uniform(-4, 4),
        wave=rng.uniform(22, 40),
        crossing=rng.uniform(25, 45),
        colours=low + (high - low) * rng.random((len(NAMES), 1), np.float32),
        lots=lots,
    )
    build = _Builder(scene, rng)
    for side in (-1, 1):
        x = -60.0
        while x < 140:  # houses, hedges between them
            length, depth = rng.uniform(9, 18), rng.uniform(7, 12)
            if abs(x + length / 2 - scene.crossing) > 7 + length / 2:
                if rng.random() < 0.75:
                    build.house(x + length / 2, side * (13.5 + depth / 2 + rng.uniform(0, 3)), length, depth)
                else:
                    for k in range(int(length / 1.5)):
                        build.put("crown", ELLIPSOID, x + 1.5 * k, side * 11.5, 0.6, (1.1, 0.8, rng.uniform(0.6, 1.1)))
            x += length + rng.uniform(1, 5)
        for x in np.arange(-55, 135, 11):
            if abs(x - scene.crossing) > 8:
                (build.tree if rng.random() < 0.7 else build.bush)(
                    x + rng.uniform(-3, 3), side * rng.uniform(8.2, 11.5)
                )
        for x in np.arange(-50, 135, 24):
            build.pole(x + rng.uniform(-4, 4), side * 6.7)
        for x in np.arange(-55, 135, 7.0):  # parked along the kerb
            if rng.random() < 0.45 and abs(x - scene.crossing) > 9:
                build.car(x + rng.uniform(-0.5, 0.5), side * rng.uniform(4.7, 5.0))
    # at least two of everything, near the part of the street that the ego drives through
    for kind in (build.truck, build.bus, build.trailer, build.construction, build.car, build.car):
        for side in (-1, 1):
            x = rng.uniform(-25, 60)
            driving = rng.random() < 0.4 and (side > 0 or not -12 < x < 30)  # never where the ego drives
            kind(x, side * (1.9 if driving else 5.0))
    for _ in range(14):
        build.pedestrian(rng.uniform(-25, 60), rng.choice((-1, 1)) * rng.uniform(6.4, 8.8))
    for _ in range(6):
        build.bicycle(rng.uniform(-20, 50), rng.choice((-1, 1)) * rng.uniform(5.4, 8.5), rider=rng.random() < 0.4)
        build.motorcycle(rng.uniform(-20, 50), rng.choice((-1, 1)) * rng.uniform(3.8, 5.6), rider=rng.random() < 0.3)
    for start in rng.uniform(-15, 45, 3):
        side = rng.choice((-1, 1))
        for k in range(5):
            build.put("barrier", BOX, start + 2.1 * k, side * 5.7, 0.5, (0.95, 0.2, 0.5))
            build.cone(start + 2.1 * k + 1, side * 4.6)
    scene.freeze()
    return scene


class _Builder:
    """Places objects made of a few primitives in street coordinates (x along, d across)."""

    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene, self.rng = scene, rng
        self.object = 0

    def put(self, material, shape, x, d, z, half, yaw=0.0, colour=None, at=None, new=True):
        """One primitive; `at` (x, d, yaw) makes its x, d, yaw relative to an object's own axes."""
        if new:
            self.object += 1
        if at is not None:
            c, s = math.cos(at[2]), math.sin(at[2])
            x, d, yaw = at[0] + c * x - s * d, at[1] + s * x + c * d, at[2] + yaw
        if colour is None:
            colour = self.tint(material)
        heading = self.scene.heading(x)
        y = self.scene.middle(x) + d
        index = NAMES.index(material)
        self.scene.rows.append((shape, (x, y, z), half, heading + yaw, index, colour, self.object))

    def tint(self, material: str) -> np.ndarray:
        """A colour of the material: between this scene's and any of its range."""
        low, high = (np.array(c, np.float32) for c in MATERIALS[material][2])
        own = low + (high - low) * (self.rng.random(3 if material in ("car", "pedestrian", "sign") else 1))
        return 0.4 * self.scene.colours[NAMES.index(material)] + 0.6 * own.astype(np.float32)

    def parts(self, x, d, yaw, rows):
        """Several primitives of one object: (material, shape, x, d, z, half[, colour]) in the object's axes."""
        self.object += 1
        for material, shape, px, pd, pz, half, *colour in rows:
            self.put(material, shape, px, pd, pz, half, 0.0, *colour, at=(x, d, yaw), new=False)

    def _turn(self, d) -> float:
        return (math.pi if d > 0 else 0.0) + self.rng.normal(0, 0.03)

    def house(self, x, d, length, depth):
        height = self.rng.uniform(5, 14)
        self.put("building", BOX, x, d, height / 2, (length / 2, depth / 2, height / 2))

    def tree(self, x, d):
        height = self.rng.uniform(2.2, 3.6)
        rows = [("trunk", CYLINDER, 0, 0, height / 2, (0.18, 0.18, height / 2))]
        for _ in range(3):
            p = self.rng.normal(0, 0.5, 3)
            size = self.rng.uniform(1.1, 1.9)
            rows.append(("crown", ELLIPSOID, p[0], p[1], height + 0.7 + abs(p[2]), (size, size, size * 0.85)))
        self.parts(x, d, 0, rows)

    def bush(self, x, d):
        size = self.rng.uniform(0.5, 1.0)
        self.put("crown", ELLIPSOID, x, d, size * 0.6, (size * 1.3, size, size))

    def pole(self, x, d):
        rows = [("pole", CYLINDER, 0, 0, 2.6, (0.08, 0.08, 2.6))]
        if self.rng.random() < 0.6:
            rows.append(("sign", BOX, 0, 0, 2.3, (0.05, 0.35, 0.35)))
        else:
            rows.append(("pole", BOX, 0, -0.6 * np.sign(d), 5.1, (0.12, 0.8, 0.08)))
        self.parts(x, d, 0, rows)

    def _wheels(self, length, width, radius, label):
        """Wheels at the four corners; they carry the vehicle's own label by its material."""
        return [
            (label, CYLINDER, sx * length, sy * width, radius, (radius, 0.14, radius), np.array([24, 24, 26]))
            for sx in (-1, 1)
            for sy in (-1, 1)
        ]

    def car(self, x, d):
        body, k = self.tint("car"), self.rng.uniform(0.92, 1.12)
        rows = [
            ("car", BOX, 0, 0, 0.62 * k, (2.15 * k, 0.9, 0.34), body),
            ("glass", BOX, -0.2, 0, 1.12 * k, (1.15 * k, 0.78, 0.24)),
            ("car", BOX, -0.25, 0, 1.4 * k, (0.95 * k, 0.74, 0.05), body),
        ]
        self.parts(x, d, self._turn(d), rows + self._wheels(1.35 * k, 0.8, 0.32, "tyre"))

    def truck(self, x, d):
        cab = self.tint("truck")
        rows = [
            ("truck", BOX, 2.9, 0, 1.5, (0.9, 1.15, 1.1), cab),
            ("truck", BOX, -0.9, 0, 2.0, (2.7, 1.22, 1.35)),
        ]
        self.parts(x, d, self._turn(d), rows + self._wheels(2.4, 1.0, 0.48, "truck"))

    def bus(self, x, d):
        rows = [("bus", BOX, 0, 0, 1.75, (5.2, 1.25, 1.4))]
        self.parts(x, d, self._turn(d), rows + self._wheels(3.4, 1.1, 0.48, "bus"))

    def trailer(self, x, d):
        rows = [("trailer", BOX, 0, 0, 2.1, (4.2, 1.22, 1.4)), ("trailer", BOX, 4.6, 0, 0.8, (0.5, 0.1, 0.1))]
        self.parts(x, d, self._turn(d), rows + self._wheels(2.6, 1.05, 0.45, "trailer"))

    def construction(self, x, d):
        rows = [
            ("construction", BOX, 0, 0, 0.55, (1.6, 1.1, 0.5), np.array([50, 50, 50])),
            ("construction", BOX, -0.5, 0, 1.7, (1.1, 1.0, 0.65)),
            ("construction", BOX, 1.6, 0, 2.4, (1.3, 0.18, 0.18)),
            ("construction", BOX, 2.9, 0, 1.5, (0.2, 0.45, 0.9)),
        ]
        self.parts(x, d, self._turn(d), rows)

    def pedestrian(self, x, d):
        k = self.rng.uniform(0.85, 1.08)
        self.parts(x, d, self.rng.uniform(0, 6), self._person(0, KERB, k))

    def _person(self, x, foot, k):
        return [
            ("pedestrian", CYLINDER, x, 0, foot + 0.42 * k, (0.15, 0.2, 0.42 * k), np.array([48, 50, 70])),
            ("pedestrian", CYLINDER, x, 0, foot + 1.12 * k, (0.17, 0.26, 0.32 * k)),
            ("skin", ELLIPSOID, x, 0, foot + 1.6 * k, (0.12, 0.12, 0.15)),
        ]

    def bicycle(self, x, d, rider):
        rows = [
            ("bicycle", CYLINDER, -0.5, 0, 0.35, (0.34, 0.04, 0.34), np.array([30, 30, 32])),
            ("bicycle", CYLINDER, 0.5, 0, 0.35, (0.34, 0.04, 0.34), np.array([30, 30, 32])),
            ("bicycle", BOX, 0, 0, 0.62, (0.5, 0.04, 0.1)),
            ("bicycle", BOX, 0.45, 0, 0.95, (0.05, 0.28, 0.05)),
        ]
        if rider:  # a rider has the bicycle's label, as in nuScenes
            rows.append(("bicycle", CYLINDER, -0.1, 0, 1.25, (0.16, 0.2, 0.4), self.tint("pedestrian")))
        self.parts(x, d, self.rng.choice((0, math.pi)), rows)

    def motorcycle(self, x, d, rider):
        rows = [
            ("motorcycle", CYLINDER, -0.65, 0, 0.32, (0.32, 0.09, 0.32), np.array([26, 26, 28])),
            ("motorcycle", CYLINDER, 0.65, 0, 0.32, (0.32, 0.09, 0.32), np.array([26, 26, 28])),
            ("motorcycle", BOX, 0, 0, 0.62, (0.75, 0.18, 0.24)),
            ("motorcycle", BOX, 0.5, 0, 1.0, (0.06, 0.36, 0.08)),
        ]
        if rider:
            rows.append(("motorcycle", CYLINDER, -0.15, 0, 1.25, (0.2, 0.24, 0.42), self.tint("pedestrian")))
        self.parts(x, d, self.rng.choice((0, math.pi)), rows)

    def cone(self, x, d):
        self.parts(
            x,
            d,
            0,
            [
                ("cone", BOX, 0, 0, 0.03, (0.2, 0.2, 0.03), np.array([30, 30, 30])),
                ("cone", CYLINDER, 0, 0, 0.22, (0.14, 0.14, 0.2)),
                ("cone", CYLINDER, 0, 0, 0.52, (0.08, 0.08, 0.14)),
            ],
        )
