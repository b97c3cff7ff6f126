"""The procedural world: captioned scenes of one or two objects, rendered, and edited with a known
true result.

A `Scene` is what a caption can say (shape, colour, pattern of each object; background) plus a seed
for what it cannot (position, size, angle, shade, texture). Editing a scene changes a word and keeps
the seed, so rendering the edited scene gives the true edited image.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "PATTERNS",
    "SHAPES",
    "SIZE",
    "Object",
    "Scene",
    "object_mask",
    "random_scene",
    "render",
]

SIZE = 128
"""Side of a rendered scene in pixels."""

Array = NDArray[np.float32]

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")

COLOURS: dict[str, tuple[float, float]] = {
    "red": (-8.0, 8.0),
    "orange": (22.0, 34.0),
    "yellow": (50.0, 60.0),
    "green": (105.0, 140.0),
    "turquoise": (172.0, 188.0),
    "blue": (212.0, 235.0),
    "purple": (265.0, 282.0),
    "pink": (312.0, 332.0),
}
"""Hue range of each colour word in degrees; saturation and value vary besides."""

PATTERNS = ("plain", "striped", "dotted", "checkered")
"""`plain` is not said in a caption."""

BACKGROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "snow": ((232, 238, 246), (214, 222, 236)),
    "sand": ((226, 210, 184), (208, 190, 160)),
    "grass": ((96, 128, 76), (70, 104, 58)),
    "night": ((18, 20, 44), (44, 44, 78)),
    "sky": ((150, 190, 228), (206, 224, 240)),
    "wood": ((118, 86, 62), (92, 66, 46)),
}
"""Colour at the top and at the bottom of each background."""


@dataclass(frozen=True)
class Object:
    """What a caption can say of one object."""

    shape: str
    colour: str
    pattern: str = "plain"

    def __post_init__(self) -> None:
        for value, allowed in (
            (self.shape, SHAPES),
            (self.colour, COLOURS),
            (self.pattern, PATTERNS),
        ):
            if value not in allowed:
                raise ValueError(f"got {value!r}, expected one of {', '.join(allowed)}")

    def words(self) -> str:
        """Return the noun phrase, e.g. `striped red circle`."""
        pattern = "" if self.pattern == "plain" else f"{self.pattern} "
        return f"{pattern}{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One or two objects (left, right); `seed` decides everything that no word names."""

    objects: tuple[Object, ...]
    background: str
    seed: int

    def caption(self) -> str:
        """Return e.g. `a striped red circle and a blue star on snow`."""
        phrases = [f"{article(o.words())} {o.words()}" for o in self.objects]
        return f"{' and '.join(phrases)} {place(self.background)}"

    def with_object(self, index: int, **changes: str) -> "Scene":
        """Return the scene with words of one object changed (`shape=`, `colour=`, `pattern=`)."""
        objects = list(self.objects)
        objects[index] = replace(objects[index], **changes)
        return replace(self, objects=tuple(objects))

    def with_background(self, background: str) -> "Scene":
        """Return the scene on another background."""
        return replace(self, background=background)


def article(phrase: str) -> str:
    """Return `an` before a vowel, `a` elsewhere."""
    return "an" if phrase[0] in "aeiou" else "a"


def place(background: str) -> str:
    """Return the background as a caption's last words."""
    return {"night": "at night", "sky": "in the sky"}.get(background, f"on {background}")


def random_scene(seed: int) -> Scene:
    """Draw one object or two of different shapes and colours, half of them patterned."""
    rng = np.random.default_rng([seed, 1])
    count = int(rng.integers(1, 3))
    shapes = rng.choice(SHAPES, count, replace=False)
    colours = rng.choice(list(COLOURS), count, replace=False)
    patterns = [
        PATTERNS[int(rng.integers(1, 4))] if rng.random() < 0.5 else "plain" for _ in range(count)
    ]
    background = str(rng.choice(list(BACKGROUNDS)))
    objects = tuple(
        Object(str(s), str(c), p) for s, c, p in zip(shapes, colours, patterns, strict=True)
    )
    return Scene(objects, background, seed)


def _grid() -> tuple[Array, Array]:
    """Pixel centres in pixels."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + np.float32(0.5)
    return x, y


_X, _Y = _grid()


@dataclass(frozen=True)
class _Placement:
    """Where an object is and how light; edits keep it, as it comes from the seed alone."""

    x: float
    y: float
    radius: float
    angle: float
    hue: float
    """Where in its word's hue range the colour lies, 0..1."""
    saturation: float
    value: float


def _placement(scene: Scene, index: int) -> _Placement:
    rng = np.random.default_rng([scene.seed, 2, index])
    if len(scene.objects) == 1:
        x, y, radius = rng.uniform(48, 80), rng.uniform(48, 80), rng.uniform(28, 38)
    else:
        x = (33.0 if index == 0 else 95.0) + rng.uniform(-4, 4)
        y, radius = rng.uniform(46, 82), rng.uniform(22, 27)
    return _Placement(
        x=x,
        y=y,
        radius=radius,
        angle=np.deg2rad(rng.uniform(-15, 15)),
        hue=rng.uniform(),
        saturation=rng.uniform(0.70, 0.95),
        value=rng.uniform(0.72, 1.0),
    )


def _local(p: _Placement) -> tuple[Array, Array]:
    """Coordinates in the object's frame, in units of its radius; y points down."""
    c, s = np.cos(p.angle), np.sin(p.angle)
    dx, dy = (_X - p.x) / p.radius, (_Y - p.y) / p.radius
    return (c * dx + s * dy).astype(np.float32), (-s * dx + c * dy).astype(np.float32)


def _polygon(u: Array, v: Array, corners: Array) -> Array:
    """Signed distance to a simple polygon, negative inside."""
    distance = np.full_like(u, np.inf)
    inside = np.zeros(u.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        t = np.clip(((u - ax) * ex + (v - ay) * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        distance = np.minimum(distance, np.hypot(u - ax - t * ex, v - ay - t * ey))
        if ey != 0:
            inside ^= ((ay > v) != (by > v)) & (u < ex * (v - ay) / ey + ax)
    return np.where(inside, -distance, distance).astype(np.float32)


def _ring(count: int, radii: tuple[float, ...], start: float = -np.pi / 2) -> Array:
    """Return `count` corners around the origin, their distances taken from `radii` in turn."""
    turn = start + 2 * np.pi * np.arange(count) / count
    r = np.resize(radii, count)
    return np.stack([r * np.cos(turn), r * np.sin(turn)], axis=1).astype(np.float32)


_TRIANGLE = _ring(3, (1.2,)) + np.array([0.0, 0.2], dtype=np.float32)
_STAR = _ring(10, (1.2, 0.58))
_BAR = 0.36
_CROSS = np.array(
    [(-_BAR, -1), (_BAR, -1), (_BAR, -_BAR), (1, -_BAR), (1, _BAR), (_BAR, _BAR), (_BAR, 1),
     (-_BAR, 1), (-_BAR, _BAR), (-1, _BAR), (-1, -_BAR), (-_BAR, -_BAR)], dtype=np.float32,
)  # fmt: skip


def _heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 41)[:-1]
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return (np.stack([x, y - 1.5], axis=1) / 15.5).astype(np.float32)


_HEART = _heart()


def _signed_distance(shape: str, u: Array, v: Array) -> Array:
    if shape == "circle":
        return np.hypot(u, v) - np.float32(0.98)
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.86)
    return _polygon(
        u, v, {"triangle": _TRIANGLE, "star": _STAR, "heart": _HEART, "cross": _CROSS}[shape]
    )


def object_mask(scene: Scene, index: int) -> Array:
    """Return the coverage (SIZE, SIZE) in [0, 1] of one object, anti-aliased over one pixel."""
    p = _placement(scene, index)
    u, v = _local(p)
    return np.clip(
        0.5 - _signed_distance(scene.objects[index].shape, u, v) * np.float32(p.radius), 0.0, 1.0
    )


def _soft(wave: Array, edge: float) -> Array:
    """Return 0 where the wave is low and 1 where it is high, with an edge of about a pixel."""
    return np.clip(0.5 + wave * np.float32(edge), 0.0, 1.0)


def _pattern(pattern: str, p: _Placement) -> Array:
    """Coverage of the pattern's light part; periods scale with the object (12 px and up)."""
    u, v = _local(p)
    if pattern == "striped":
        return _soft(np.cos(2 * np.pi * v / 0.66), 3.0)
    if pattern == "checkered":
        return _soft(np.sin(np.pi * u / 0.5) * np.sin(np.pi * v / 0.5), 5.0)
    if pattern == "dotted":
        cell = 0.62
        du, dv = (u + cell / 2) % cell - cell / 2, (v + cell / 2) % cell - cell / 2
        return _soft(np.float32(0.19) - np.hypot(du, dv), p.radius)
    return np.zeros_like(u)


def _hsv(hue: float, saturation: float, value: float) -> Array:
    """HSV (degrees, 0..1, 0..1) to RGB in 0..255."""
    k = (np.array([5.0, 3.0, 1.0]) + hue / 60.0) % 6.0
    rgb = value - value * saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0)
    return (255.0 * rgb).astype(np.float32)


def _background(scene: Scene) -> Array:
    """Colour gradient with a faint, smooth texture, (SIZE, SIZE, 3) in 0..255."""
    rng = np.random.default_rng([scene.seed, 3])
    top, bottom = (np.array(c, dtype=np.float32) for c in BACKGROUNDS[scene.background])
    level = _Y / SIZE
    fx, fy = rng.uniform(0.5, 1.5, 2) * 2 * np.pi / SIZE
    phase = rng.uniform(0, 2 * np.pi, 2)
    texture = np.sin(fx * _X + phase[0]) * np.sin(fy * _Y + phase[1])
    if scene.background == "wood":
        texture = texture + 1.2 * np.sin(2 * np.pi * _Y / 32 + phase[0])
    if scene.background == "grass":
        texture = texture + 0.8 * np.sin(2 * np.pi * (_X + _Y) / 48 + phase[1])
    shade = rng.uniform(-8, 8)
    image = top + level[..., None] * (bottom - top) + (shade + 5.0 * texture)[..., None]
    return image.astype(np.float32)


def render(scene: Scene) -> NDArray[np.uint8]:
    """Render to (SIZE, SIZE, 3) uint8 RGB."""
    image = _background(scene)
    for index, thing in enumerate(scene.objects):
        p = _placement(scene, index)
        low, high = COLOURS[thing.colour]
        colour = _hsv((low + p.hue * (high - low)) % 360.0, p.saturation, p.value)
        light = 0.35 * colour + 0.65 * np.float32(255.0)
        paint = _pattern(thing.pattern, p)[..., None]
        body = colour + paint * (light - colour)
        cover = object_mask(scene, index)[..., None]
        image = image + cover * (body - image)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
