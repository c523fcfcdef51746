"""The world of the embedded model: landscapes that pan for ever with one large object in view.

Everything is analytic and anti-aliased: a scene is a handful of random numbers, and any frame of it can be drawn alone. All
motion is stationary (endless layers scroll, the object sways around the middle), so that a video may go on for ever. The backdrop
comes from the place; the lane in front comes from the object (a boat brings water, a car brings a road), so every object fits
every place.
"""

import math
from dataclasses import dataclass

import torch

from lolrt.train.distances import box, ellipse, polygon
from lolrt.train.text import values as meanings

HEIGHT, WIDTH, FPS = 64, 96, 16

# One word per value first, then words that mean the same.
VOCABULARY: dict[str, dict[str, str]] = {
    "colour": {"red": "red", "yellow": "yellow", "green": "green", "blue": "blue", "white": "white"},
    "object": {"balloon": "balloon", "boat": "boat", "car": "car", "sailboat": "boat"},
    "place": {"hills": "hills", "sea": "sea", "desert": "desert", "mountains": "mountains",
              "meadows": "hills", "ocean": "sea", "dunes": "desert", "alps": "mountains"},
    "time": {"dawn": "dawn", "day": "day", "dusk": "dusk", "night": "night",
             "sunrise": "dawn", "noon": "day", "sunset": "dusk", "moonlight": "night"},
}  # fmt: skip
FILLER = ["a", "an", "the", "over", "above", "on", "in", "at", "by", "near", "through", "across", "along", "past", "with",
          "of", "before", "under", "and", "drifting", "flying", "floating", "sailing", "driving", "moving"]  # fmt: skip


def values(group: str) -> list[str]:
    """The distinct values of an attribute, in vocabulary order."""
    return meanings(VOCABULARY, group)


def _colours(*rows: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(rows)


# Rows follow values("time"): dawn, day, dusk, night.
SKY_TOP = _colours((0.40, 0.48, 0.78), (0.22, 0.52, 0.90), (0.28, 0.20, 0.46), (0.05, 0.07, 0.22))
SKY_MIDDLE = _colours((0.86, 0.68, 0.78), (0.50, 0.76, 0.97), (0.80, 0.36, 0.42), (0.10, 0.15, 0.36))
SKY_HORIZON = _colours((1.00, 0.86, 0.68), (0.86, 0.95, 1.00), (1.00, 0.66, 0.30), (0.22, 0.29, 0.52))
SUN = _colours((1.00, 0.91, 0.68), (1.00, 0.97, 0.80), (1.00, 0.76, 0.36), (0.95, 0.95, 0.98))
CLOUD = _colours((1.00, 0.88, 0.86), (1.00, 1.00, 1.00), (1.00, 0.64, 0.52), (0.27, 0.32, 0.50))
LIGHT = _colours((0.94, 0.87, 0.88), (1.00, 1.00, 1.00), (0.92, 0.70, 0.62), (0.42, 0.48, 0.72))
HAZE = _colours((0.92, 0.78, 0.78), (0.76, 0.89, 0.98), (0.90, 0.52, 0.40), (0.18, 0.24, 0.46))

# Far, middle and near layer, rows follow values("place"): hills, sea, desert, mountains.
GROUND = torch.tensor([
    [[0.46, 0.60, 0.62], [0.40, 0.66, 0.38], [0.26, 0.50, 0.24]],
    [[0.46, 0.54, 0.62], [0.18, 0.48, 0.68], [0.13, 0.38, 0.58]],
    [[0.78, 0.54, 0.44], [0.90, 0.70, 0.40], [0.80, 0.56, 0.28]],
    [[0.50, 0.55, 0.68], [0.34, 0.50, 0.46], [0.22, 0.42, 0.32]],
])  # fmt: skip
SNOW = (0.95, 0.97, 1.0)
WHITE = (0.96, 0.96, 0.94)
PAINT = ((0.88, 0.13, 0.12), (0.98, 0.80, 0.10), (0.16, 0.62, 0.26), (0.16, 0.34, 0.92), WHITE)  # rows follow values("colour")
SPEED = 0.8  # pan of the nearest layer, pixels a frame
SOFT = 1.7  # width of an anti-aliased edge in pixels: a little soft, as the codec cannot draw harder edges


@dataclass
class Scene:
    """One scene: the index of each attribute's value, and the random numbers that draw the rest."""

    colour: int
    object: int
    place: int
    time: int
    chance: torch.Tensor  # [128] uniform in [0, 1)

    def picks(self) -> dict[str, int]:
        """Index of each attribute's value."""
        return {group: getattr(self, group) for group in VOCABULARY}

    def words(self) -> list[str]:
        """The content words of the scene's sentence: [colour, object, place, time]."""
        return [values(group)[pick] for group, pick in self.picks().items()]


def sample_scene(generator: torch.Generator) -> Scene:
    """A random scene; the same generator state gives the same scene."""
    picks = {g: int(torch.randint(len(values(g)), (), generator=generator)) for g in VOCABULARY}
    return Scene(**picks, chance=torch.rand(128, generator=generator))


def _inside(distance: torch.Tensor) -> torch.Tensor:
    """Coverage of a pixel at a signed distance in pixels from an edge (negative inside)."""
    return (0.5 - distance / SOFT).clamp(0, 1)


class Canvas:
    """Frames being painted, and where the object is. image [T, 3, H, W] in [0, 1]; mask [T, H, W] coverage of the object."""

    def __init__(self, image: torch.Tensor):
        self.image = image
        self.mask = torch.zeros(image.shape[0], *image.shape[2:])

    def paint(self, coverage: torch.Tensor, colour: torch.Tensor, *, is_object: bool = False) -> None:
        """Lays a colour ([3] or broadcastable to the image) over the image where coverage ([T, H, W] or [H, W]) says so."""
        if coverage.dim() == 2:
            coverage = coverage.expand(self.image.shape[0], -1, -1)
        colour = colour.view(3, 1, 1) if colour.dim() == 1 else colour
        self.image.lerp_(colour.expand_as(self.image), coverage[:, None].expand_as(self.image))
        if is_object:
            self.mask = torch.maximum(self.mask, coverage)


class _Painter:
    """Draws one scene layer by layer, from the sky to the object."""

    def __init__(self, scene: Scene, frames: torch.Tensor):
        self.scene = scene
        self.frame = frames.float()[:, None, None]  # [T, 1, 1]
        self.x = (torch.arange(WIDTH) + 0.5).view(1, 1, WIDTH)
        self.y = (torch.arange(HEIGHT) + 0.5).view(1, HEIGHT, 1)
        self.pan = SPEED * self.frame
        self.light, self.haze = LIGHT[scene.time], HAZE[scene.time]
        self.ground = GROUND[scene.place]
        self.place, self.object = values("place")[scene.place], values("object")[scene.object]
        self.night = values("time")[scene.time] == "night"
        self._drawn = 0

    def chance(self, low: float, high: float) -> float:
        """The scene's next random number, uniform in [low, high)."""
        self._drawn += 1
        return low + (high - low) * float(self.scene.chance[self._drawn - 1])

    def sway(self, amplitude: float, seconds: tuple[float, float]) -> torch.Tensor:
        """A slow sine around zero with a random phase and a period drawn from a range."""
        return amplitude * torch.sin(2 * math.pi * (self.frame / (FPS * self.chance(*seconds)) + self.chance(0, 1)))

    def profile(self, parallax: float, waves: tuple[tuple[float, float], ...], ridged: bool = False) -> torch.Tensor:
        """An endless skyline: a sum of (wavelength, amplitude) waves, sines or ridges. Returns heights [T, 1, W]."""
        x, height = self.x + parallax * self.pan, torch.zeros(())
        for wavelength, amplitude in waves:
            turns = x / (wavelength * self.chance(0.85, 1.15)) + self.chance(0, 1)
            wave = 1 - 4 * (turns - turns.floor() - 0.5).abs() if ridged else torch.sin(2 * math.pi * turns)
            height = height + amplitude * self.chance(0.8, 1.2) * wave
        return height

    def features(self, parallax: float, spacing: float, share: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Things standing along a layer, at most one per cell of `spacing` pixels.

        Returns, for each column: the distance from its cell's thing in x, the thing's random size in [0, 1), whether it is there.
        """
        x = self.x + parallax * self.pan
        cell = torch.div(x, spacing, rounding_mode="floor").long()
        start = int(self.chance(0, 60))
        pick = self.scene.chance[64 + (cell + start).remainder(61)]
        size, place = (pick * 7).frac(), (pick * 13).frac()
        return x - spacing * (cell + 0.35 + 0.3 * place), size, (pick < share).float()

    def sky(self) -> Canvas:
        down = (self.y / 40).clamp(0, 1)
        top, middle, horizon = (table[self.scene.time].view(3, 1, 1) for table in (SKY_TOP, SKY_MIDDLE, SKY_HORIZON))
        image = torch.lerp(torch.lerp(top, middle, (2 * down).clamp(0, 1)), horizon, (2 * down - 1).clamp(0, 1))
        canvas = Canvas(image.expand(1, 3, HEIGHT, WIDTH).clone())
        sun_x, sun_y = self.chance(14, WIDTH - 14), self.chance(10, 17)
        self.sun_x, dx, dy = sun_x, self.x - sun_x, self.y - sun_y
        if self.night:
            for _ in range(7):
                star = (self.x - self.chance(2, WIDTH - 2)) ** 2 + (self.y - self.chance(2, 28)) ** 2
                canvas.paint(self.chance(0.5, 0.9) * torch.exp(-star / 2.0), SUN[self.scene.time])
        distance = torch.sqrt(dx**2 + dy**2)
        canvas.paint(torch.exp(-distance / 10) * (0.25 if self.night else 0.5), SUN[self.scene.time])
        disc = _inside(distance - 6)
        if self.night:
            disc = disc * (1 - _inside(torch.sqrt((dx - 3.2) ** 2 + (dy + 1.6) ** 2) - 5))
        canvas.paint(disc, SUN[self.scene.time])
        return Canvas(canvas.image.expand(len(self.frame), -1, -1, -1).clone())

    def clouds(self, canvas: Canvas) -> None:
        for altitude, parallax in ((self.chance(6, 11), 0.10), (self.chance(16, 22), 0.16)):
            dx, size, present = self.features(parallax, 62, 0.7)
            dy, scale = self.y - altitude, 0.8 + 0.35 * size
            puffs = [((dx / scale - ox) / rx) ** 2 + ((dy / scale - oy) / ry) ** 2
                     for ox, oy, rx, ry in ((0, 1, 13, 3.4), (-5, -1, 6, 3.8), (4, -1.6, 7, 4.4))]  # fmt: skip
            cover = 1 - (1 - torch.exp(-puffs[0])) * (1 - torch.exp(-puffs[1])) * (1 - torch.exp(-puffs[2]))
            canvas.paint(0.85 * present * ((cover - 0.25) * 1.8).clamp(0, 1), CLOUD[self.scene.time])

    def shade(self, colour: torch.Tensor, haze: float, top: torch.Tensor, depth: float) -> torch.Tensor:
        """A ground colour under the hour's light, hazy with distance, darker downwards. Returns [T or 1, 3, H, W]."""
        lit = torch.lerp(colour, self.haze / self.light.clamp(min=0.3), haze) * self.light
        return lit.view(3, 1, 1) * (1.08 - 0.3 * ((self.y - top) / depth).clamp(0, 1))[:, None]

    def backdrop(self, canvas: Canvas) -> None:
        far, middle, _ = self.ground
        if self.place == "mountains":
            top = 29 - self.profile(0.18, ((58, 8), (27, 3.2)), ridged=True)
            canvas.paint(_inside((top - self.y) * 0.8), self.shade(far, 0.35, top, 30))
            snow_line = top.clamp(max=27) + 0.45 * (27 - top).clamp(min=0) + 1.2 * torch.sin(self.x * 0.5 + 0.5 * top)
            canvas.paint(_inside((top - self.y) * 0.8) * _inside(self.y - snow_line), self.lit(SNOW, 0.35))
            top = 40 - self.profile(0.4, ((64, 3.0), (31, 1.5)))
        elif self.place == "desert":
            top = 34 - 5.5 * torch.tanh(self.profile(0.18, ((70, 2.4), (37, 1.4))))
            canvas.paint(_inside(top - self.y), self.shade(far, 0.3, top, 24))
            top = 42 - self.profile(0.4, ((60, 3.4), (34, 1.4)))
        elif self.place == "hills":
            top = 34 - self.profile(0.18, ((66, 4.5), (31, 2.2)))
            canvas.paint(_inside(top - self.y), self.shade(far, 0.4, top, 30))
            top = 42 - self.profile(0.4, ((72, 3.6), (38, 1.6)))
        else:
            dx, size, present = self.features(0.18, 80, 0.8)
            island = 37 - present * (4 + 4 * size) * torch.exp(-((dx / (11 + 4 * size)) ** 2))
            canvas.paint(_inside(island - self.y), self.shade(far, 0.35, island, 20))
            return self.water(canvas, 36.0, middle)
        canvas.paint(_inside(top - self.y), self.shade(middle, 0.12, top, 30))

    def water(self, canvas: Canvas, top: float, colour: torch.Tensor) -> None:
        """Water from a horizontal line down: lighter far away, slow swell, and the glitter of the sun."""
        depth = ((self.y - top) / (HEIGHT - top)).clamp(0, 1)
        swell = torch.sin(self.y * (1.5 - 0.9 * depth) + 0.8 * torch.sin((self.x + 0.7 * self.pan) / 9) - self.frame * 0.09)
        clearness = 0.55 + 0.4 * depth.sqrt()  # far water mirrors the haze
        lit = torch.lerp(self.haze.view(3, 1, 1), (colour * self.light).view(3, 1, 1), clearness)
        canvas.paint(_inside(top - self.y), lit * (1 + 0.10 * swell * depth)[:, None])
        glitter = torch.exp(-(((self.x - self.sun_x) / (4 + 9 * depth)) ** 2)) * (0.4 + 0.3 * swell) * (1 - 0.5 * depth)
        canvas.paint((glitter * _inside(top - self.y)).clamp(0, 1) * (0.5 if self.night else 0.8), SUN[self.scene.time])

    def foreground(self, canvas: Canvas) -> None:
        near = self.ground[2]
        if self.object == "boat":
            if self.place != "sea":
                self.water(canvas, 45.0, GROUND[1, 1])
            return
        if self.object == "balloon" and self.place == "sea":
            return
        top = torch.full((1, 1, 1), 50.0) if self.object == "car" else 53 - self.profile(0.8, ((90, 2.4), (47, 1.0)))
        if self.place == "sea":
            near = torch.tensor([0.80, 0.72, 0.52])  # a beach beside the coastal road
        parallax = 0.7 if self.object == "car" else 0.8
        if self.place != "sea":
            self.plants(canvas, top + 1.5, parallax)
        canvas.paint(_inside(top - self.y), self.shade(near, 0.0, top, 16))
        if self.object == "car":
            asphalt = self.lit((0.36, 0.36, 0.40), 0.0)
            canvas.paint(_inside((self.y - 57.5).abs() - 4.5), asphalt)
            canvas.paint(_inside((self.y - 52.6).abs() - 0.6) * 0.7, self.lit((0.85, 0.83, 0.78), 0.0))
            dash = (self.x + self.pan).remainder(32) - 16
            canvas.paint(_inside(dash.abs() - 8) * _inside((self.y - 59.0).abs() - 0.8), self.lit((0.92, 0.88, 0.76), 0.0))

    def plants(self, canvas: Canvas, root: torch.Tensor, parallax: float) -> None:
        """Trees in the hills, firs in the mountains, cacti in the desert."""
        dx, size, present = self.features(parallax, 46, 0.6)
        height = 10 + 5 * size
        dy = self.y - root
        if self.place == "desert":
            trunk, arm = box(dx, dy + height / 2, 1.8, 7.0, 1.8), box(dx - 3, dy + 6.5, 3.4, 1.3, 1.2)
            distance = torch.minimum(torch.minimum(trunk, arm), box(dx - 5.2, dy + 9, 1.3, 3.4, 1.3))
            colour = torch.tensor([0.24, 0.46, 0.26])
        elif self.place == "mountains":
            distance = (dx.abs() * 2.4 + (-dy - height - 5)) / 2.6
            distance = torch.maximum(distance, dy)
            colour = torch.tensor([0.12, 0.32, 0.26])
        else:
            distance = torch.minimum(ellipse(dx, dy + height, 5.5, 6.0), box(dx, dy + 3, 1.2, 6.0, 0.5))
            colour = torch.tensor([0.16, 0.42, 0.20])
        canvas.paint(present * _inside(distance), torch.lerp(colour, self.haze, 0.08) * self.light)

    def lit(self, rgb: tuple[float, float, float], ambient: float) -> torch.Tensor:
        """A colour under the hour's light; `ambient` is the share that needs no light."""
        return torch.tensor(rgb) * (ambient + (1 - ambient) * self.light)

    def coat(self) -> torch.Tensor:
        """The object's colour; it stays recognisable at night."""
        return self.lit(PAINT[self.scene.colour], 0.45)

    def trim(self, plain: tuple[float, float, float], on_white: tuple[float, float, float]) -> torch.Tensor:
        """The colour of stripes and sails that must stand out from the object's own colour."""
        return self.lit(on_white if PAINT[self.scene.colour] == WHITE else plain, 0.35)

    def balloon(self, canvas: Canvas) -> None:
        x = self.x - 48 - self.sway(13, (9, 14))
        y = self.y - 21.5 - self.sway(4, (5, 8))
        colour = self.coat()
        basket = self.lit((0.46, 0.30, 0.16), 0.3)
        ropes = (x.abs() - 2.9 - (18 - y) * 0.35).abs() - 0.45 + ((y - 16).abs() - 3.5).clamp(min=0) * 2
        canvas.paint(_inside(ropes) * 0.8, basket, is_object=True)
        canvas.paint(_inside(box(x, y - 21.5, 3.4, 2.6, 1.0)), basket, is_object=True)
        # A round top that tapers to the mouth below.
        width = 13 * (1 - 0.30 * (y / 13).clamp(0, 1.4) ** 2)
        body = _inside(torch.maximum(ellipse(x * 13 / width, y + 1, 13, 14), y - 14.5) * 0.9)
        canvas.paint(body, colour.view(3, 1, 1) * (1.06 - 0.30 * (x / 13 + 0.25).clamp(0, 1) ** 1.5)[:, None], is_object=True)
        stripe = torch.cos((x / width).clamp(-1, 1).asin() * 5.0)
        canvas.paint(body * ((stripe - 0.35) * 3).clamp(0, 1) * 0.75, self.trim((1.0, 0.96, 0.86), (0.55, 0.62, 0.74)))
        if self.night:
            canvas.paint(body * torch.exp(-(x**2 + (y - 13) ** 2) / 70) * 0.8, torch.tensor([1.0, 0.80, 0.45]))

    def boat(self, canvas: Canvas) -> None:
        x = self.x - 47 - self.sway(12, (10, 15))
        y = self.y - 52 - self.sway(1.3, (3.0, 4.5))
        tilt = self.sway(0.055, (3.5, 5.0))
        x, y = x - tilt * y, y + tilt * x
        colour, wood = self.coat(), self.lit((0.42, 0.28, 0.18), 0.3)
        cream = self.trim((0.97, 0.94, 0.86), (0.62, 0.70, 0.80))
        canvas.paint(_inside(box(x + 1, y + 17, 0.8, 20, 0.4)), wood, is_object=True)
        main_sail = colour.view(3, 1, 1) * (1.02 - 0.012 * x.clamp(0, 18))[:, None]
        canvas.paint(_inside(polygon(x, y, (1.2, -37), (17, -6), (1.2, -6))), main_sail, is_object=True)
        canvas.paint(_inside(polygon(x, y, (-3.2, -32), (-3.2, -6), (-14, -6))), cream, is_object=True)
        hull = torch.maximum(polygon(x, y, (-19, -3.5), (21, -3.5), (14, 5), (-14, 5)), self.y - 58)
        canvas.paint(_inside(hull), colour * 0.86, is_object=True)
        canvas.paint(_inside(torch.maximum(hull, (y + 2.6).abs() - 0.9)), cream)
        canvas.paint(
            _inside((self.y - 57.5).abs() - 0.9) * _inside(x.abs() - 19) * 0.5,
            self.lit((0.9, 0.95, 1.0), 0.3),
        )
        if self.night:
            canvas.paint(torch.exp(-((x - 18) ** 2 + (y + 7) ** 2) / 14), torch.tensor([1.0, 0.85, 0.5]))

    def car(self, canvas: Canvas) -> None:
        x = self.x - 47 - self.sway(12, (9, 14))
        y = self.y - 47 - self.sway(0.35, (0.9, 1.3))
        colour = self.coat()
        if self.night:
            beam = torch.exp(-(((y - 3 - 0.10 * (x - 22)) / (2 + 0.16 * (x - 22).clamp(min=0))) ** 2)) * torch.exp(
                -(x - 22).clamp(min=0) / 16
            )
            canvas.paint(0.55 * beam * _inside(22 - x), torch.tensor([1.0, 0.92, 0.66]))
        canvas.paint(_inside(ellipse(x, self.y - 56.5, 22, 2.2)) * 0.45, torch.tensor([0.08, 0.08, 0.12]))
        cabin = ellipse(x + 2, y + 2, 14, 12.5)
        body = torch.minimum(box(x, y - 3, 22, 5.5, 5.0), torch.maximum(cabin, y - 2))
        shade = (1.08 - 0.025 * (y + 8).clamp(0, 18))[:, None]
        canvas.paint(_inside(body), colour.view(3, 1, 1) * shade, is_object=True)
        glass = self.lit((0.66, 0.84, 0.95), 0.4) if not self.night else torch.tensor([0.98, 0.84, 0.52])
        window = torch.maximum(torch.maximum(ellipse(x + 2, y + 2, 11, 9.5), y + 2.6), 1.1 - (x + 2).abs())
        canvas.paint(_inside(window), glass)
        for wheel_x in (-12.5, 12.5):
            wheel = torch.sqrt((x - wheel_x) ** 2 + (self.y - 55) ** 2)
            canvas.paint(_inside(wheel - 4.6), torch.tensor([0.12, 0.12, 0.14]), is_object=True)
            canvas.paint(_inside(wheel - 2.0), self.lit((0.80, 0.80, 0.82), 0.3))
        canvas.paint(_inside(torch.sqrt((x - 20) ** 2 + (y - 1.5) ** 2) - 1.7), torch.tensor([1.0, 0.95, 0.72]))


@torch.no_grad()
def render(scene: Scene, frames: torch.Tensor, *, with_object: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws frames of a scene.

    frames: [T] frame numbers (16 a second, any integers). with_object: without it, the same landscape lies there empty.
    Returns (video uint8 [T, 3, HEIGHT, WIDTH], object coverage fp32 [T, HEIGHT, WIDTH]).
    """
    painter = _Painter(scene, frames)
    canvas = painter.sky()
    painter.clouds(canvas)
    painter.backdrop(canvas)
    painter.foreground(canvas)
    if with_object:
        getattr(painter, painter.object)(canvas)
    return (canvas.image.clamp(0, 1) * 255).round().byte(), canvas.mask
