"""The parts of a painted face: eyes, brows, nose, mouth, beard, skin marks, glasses, mask."""

from .geometry import EYE_COLORS, FaceColors, FaceGeometry, Pen, Point, mix


LASH_COLOR = "#17110f"
LIPSTICK_COLORS = {"red": "#cf1026", "pink": "#f2569a", "purple": "#7a1f86"}
# Inner and outer brow shift, openness of the eyes, curve of the mouth; a positive shift is downwards.
_EMOTIONS = {
    "neutral": (0.0, 0.0, 1.0, 0.0),
    "happy": (-4.0, -4.0, 0.9, 5.0),
    "sad": (-9.0, 7.0, 0.85, -10.0),
    "angry": (10.0, -6.0, 0.9, -7.0),
    "afraid": (-11.0, 0.0, 1.3, -4.0),
    "surprised": (-10.0, -11.0, 1.4, 0.0),
    "contemptuous": (3.0, 0.0, 0.85, 0.0),
    "disgusted": (7.0, 4.0, 0.7, -6.0),
}
_EYE_HEIGHTS = {"narrow": 5.5, "normal": 9.5, "big": 14.0}
_GAZE_SHIFTS = {"ahead": (0, 0), "left": (-7, 0), "right": (7, 0), "up": (0, -5.5), "down": (0, 5.5)}
# Lift of the corners, gap between the lips, width of the mouth.
_MOUTHS = {
    "closed": (0.0, 0.0, 1.0),
    "smiling": (13.0, 0.0, 1.12),
    "laughing": (11.0, 17.0, 1.12),
    "slightly open": (0.0, 7.0, 0.9),
    "wide open": (0.0, 24.0, 0.72),
    "kissing": (0.0, 0.0, 0.45),
    "tongue out": (3.0, 0.0, 1.0),
}


class FeaturePainter:
    """
    Paints what lies on the head.

    Args:
        attributes (`dict[str, str]`):
            All 48 attributes.
        geometry ([`FaceGeometry`]):
            Measures and projection.
        colors ([`FaceColors`]):
            Colours of the person.
        pen ([`Pen`]):
            Receives the elements.
    """

    def __init__(self, attributes: dict[str, str], geometry: FaceGeometry, colors: FaceColors, pen: Pen):
        self.attributes = attributes
        self.geometry = geometry
        self.colors = colors
        self.pen = pen
        self.inner_brow, self.outer_brow, self.openness, self.mouth_curve = _EMOTIONS[attributes["emotion"]]

    def ears(self) -> None:
        for side in (-1, 1):
            if self.geometry.hides(side):
                continue
            center = (side * (self.geometry.width + 2), 4, 10)
            self.pen.ellipse(center, (10, 17), self.colors.skin_shade)
            self.pen.ellipse((center[0] - side * 2, 4, 10), (5, 10), mix(self.colors.skin, self.colors.line, 0.6))

    def double_chin(self) -> None:
        if self.attributes["double_chin"] == "no":
            return
        chin = self.geometry.chin
        bulge = [(-44, chin - 16), (-34, chin + 6), (0, chin + 14), (34, chin + 6), (44, chin - 16)]
        self.pen.fill(bulge, self.colors.skin)
        self.pen.line(bulge, self.colors.line, 4.5)

    def skin_shapes(self) -> None:
        """Marks that lie under the features: cheekbones, blush, chubby cheeks."""
        attributes, pen = self.attributes, self.pen
        width = self.geometry.width
        for side in (-1, 1):
            if attributes["cheekbones"] == "high":
                wedge = [(side * width, 6), (side * 30, 28), (side * 38, 38), (side * width, 26)]
                pen.fill(wedge, mix(self.colors.skin, self.colors.line, 0.45))
            if attributes["rosy_cheeks"] == "yes":
                pen.ellipse((side * 40, 23), (14, 10.5), "#f0405a", 0.55)
            if attributes["chubby"] == "yes":
                cheek = [(side * 41, 34), (side * 48, 44), (side * 44, 56)]
                pen.line(cheek, self.colors.line, 4, 0.75)

    def skin_marks(self) -> None:
        """Marks that lie over the features' ground: folds of age, wrinkles, freckles, mole."""
        attributes, pen, line = self.attributes, self.pen, self.colors.line
        eye_y = self.geometry.eye_y
        for side in (-1, 1):
            if attributes["age"] != "young":
                pen.line([(side * 20, 18), (side * 29, 28), (side * 35, 40)], line, 4, 0.85)
            if attributes["age"] == "elderly":
                pen.line([(side * 31, 54), (side * 34, 62), (side * 31, 72)], line, 4, 0.85)
                pen.line([(side * 42, 14), (side * 48, 23), (side * 51, 34)], line, 4, 0.85)
            if attributes["wrinkles"] == "yes":
                outer = side * (self.geometry.eye_x + self.geometry.eye_width + 2)
                pen.line([(outer, eye_y - 3), (outer + side * 8, eye_y - 8)], line, 3.5)
                pen.line([(outer, eye_y + 4), (outer + side * 8, eye_y + 8)], line, 3.5)
            if attributes["freckles"] == "yes":
                spot = mix(self.colors.line, "#7c2c08", 0.15)
                for x, y in ((24, 11), (32, 19), (40, 11), (47, 20)):
                    pen.ellipse((side * x, y), (2.9, 2.9), spot)
        if attributes["wrinkles"] == "yes":
            pen.line([(-26, -49), (-9, -52), (9, -52), (26, -49)], line, 3.5)
            pen.line([(-17, -41), (0, -44), (17, -41)], line, 3.5)
        if attributes["mole"] == "yes":
            pen.ellipse((-35, 30), (6, 6), "#2a1008")

    def beard(self) -> None:
        """Beard and sideburns; the caller clips them to the head."""
        attributes, pen, geometry = self.attributes, self.pen, self.geometry
        width, jaw, chin = geometry.width, geometry.jaw, geometry.chin
        upper = geometry.mouth_y - 15
        if attributes["beard"] == "stubble":
            area = [(-width - 4, 14), (-36, 34), (-20, upper), (0, upper - 5), (20, upper), (36, 34), (width + 4, 14)]
            area += [(jaw + 12, 60), (0, chin + 10), (-jaw - 12, 60)]
            pen.fill(area, mix(self.colors.facial_hair, "#404048", 0.45), 0.42)
        if attributes["beard"] == "full":
            area = [
                (-width - 8, -2),
                (-width + 12, 12),
                (-38, 36),
                (-22, upper + 4),
                (0, upper),
                (22, upper + 4),
                (38, 36),
            ]
            area += [(width - 12, 12), (width + 8, -2), (jaw + 16, 60), (0, chin + 22), (-jaw - 16, 60)]
            pen.fill(area, self.colors.facial_hair)
        if attributes["beard"] == "goatee":
            low = geometry.mouth_y + 9
            area = [(-19, low - 2), (0, low), (19, low - 2), (17, chin - 2), (0, chin + 8), (-17, chin - 2)]
            pen.fill(area, self.colors.facial_hair)
        if attributes["sideburns"] == "yes":
            for side in (-1, 1):
                area = [
                    (side * (width + 8), -34),
                    (side * (width - 14), -34),
                    (side * (width - 17), 20),
                    (side * (width + 6), 26),
                ]
                pen.fill(area, self.colors.facial_hair, bend=0.2)

    def nose(self) -> None:
        kind, pen, line = self.attributes["nose"], self.pen, self.colors.line
        low, scale = self.geometry.nose_y, self.geometry.nose_scale
        if kind == "small":
            pen.line([(-8 * scale, low - 3, 56), (0, low + 2, 60), (8 * scale, low - 3, 56)], line, 4.5)
        if kind == "big":
            bulb = [
                (-7, -6, 56),
                (-9, low - 18, 62),
                (-21 * scale, low - 4, 56),
                (-15 * scale, low + 6, 58),
                (0, low + 8, 66),
            ]
            bulb += [(-x, y, depth) for x, y, depth in reversed(bulb[:-1])]
            pen.fill(bulb, self.colors.skin_shade)
            pen.line(bulb[2:7], line, 4.5)
        if kind == "pointy":
            ridge = [(3, -10, 56), (15 * scale, low + 3, 62), (0, low + 11, 76)]
            pen.fill([(-3, -10, 56), *ridge, (-15 * scale, low + 3, 62)], self.colors.skin_shade, straight=True)
            pen.line(
                [(-15 * scale, low + 3, 62), (0, low + 11, 76), (15 * scale, low + 3, 62)], line, 4, straight=True
            )
        if self.attributes["emotion"] == "disgusted":
            for side in (-1, 1):
                pen.line([(side * 5, -12, 56), (side * 12, -5, 54)], line, 3.5)
                pen.line([(side * 6, -2, 57), (side * 13, 5, 54)], line, 3.5)

    def mustache(self) -> None:
        if self.attributes["mustache"] == "no":
            return
        top, width = self.geometry.mouth_y - 21, self.geometry.mouth_width + 7
        right = [(0, top + 1, 60), (14, top, 58), (width, top + 14, 48), (width - 1, top + 18, 48), (11, top + 11, 57)]
        left = [(-x, y, depth) for x, y, depth in reversed(right[1:])]
        # The mustache is darker than a full beard, or it would vanish in it.
        self.pen.fill([*right, (0, top + 9, 60), *left], mix(self.colors.facial_hair, "#000000", 0.28))

    def mouth(self) -> None:
        attributes, pen = self.attributes, self.pen
        kind = attributes["mouth"]
        lift, gap, stretch = _MOUTHS[kind]
        lift += self.mouth_curve
        width, middle, depth = self.geometry.mouth_width * stretch, self.geometry.mouth_y, 46.0
        thickness = 8.5 if attributes["lips"] == "full" else 3.6
        lip = self._lip_color()
        inside = "#4a0a16"
        # The picture's right corner goes up in a contemptuous face, whatever the mouth does.
        skew = 11.0 if attributes["emotion"] == "contemptuous" else 0.0
        if kind == "kissing":
            pen.ellipse((0, middle, depth + 12), (width + thickness * 0.4, width * 0.75 + thickness * 0.7), lip)
            pen.ellipse((skew * 0.3, middle, depth + 12), (4, 3.4), inside)
            return
        top, low = middle - gap * 0.4, middle + gap * 0.6
        left: Point = (-width, middle - lift, depth - 12)
        right: Point = (width, middle - lift - skew, depth - 12)
        upper = [left, (-width * 0.5, top - lift * 0.3, depth), (0, top, depth + 6)]
        upper += [(width * 0.5, top - lift * 0.3 - skew * 0.4, depth), right]
        lower = [
            (width * 0.55, low - lift * 0.2 - skew * 0.3, depth),
            (0, low, depth + 6),
            (-width * 0.55, low - lift * 0.2, depth),
        ]
        if kind == "tongue out":
            pen.fill(
                [
                    (-10, middle, 50),
                    (10, middle, 50),
                    (11, middle + 18, 50),
                    (0, middle + 26, 50),
                    (-11, middle + 18, 50),
                ],
                "#f2647c",
            )
            pen.line([(0, middle + 4, 50), (0, middle + 17, 50)], "#b8344c", 3)
        if gap:
            pen.fill(upper + lower, inside)
            if kind == "laughing":
                teeth = [(width * 0.8, top + 1 - lift * 0.5), (0, top + 8, 52), (-width * 0.8, top + 1 - lift * 0.5)]
                pen.fill([*upper[1:4], *teeth], "#ffffff", bend=0.3)
            if kind == "wide open":
                pen.ellipse((0, low - 6, 50), (width * 0.55, 6), "#e8607a")
        outline = [*upper, *lower]
        if gap:
            pen.raw(self._ring(outline, lip, thickness))
        else:
            pen.line(upper, lip, thickness + 3)
            pen.line(upper, mix(lip, "#200408", 0.6), 3)
        if kind in ("smiling", "laughing"):
            for side, corner in ((-1, left), (1, right)):
                pen.line(
                    [(corner[0] + side * 3, corner[1] - 5, 30), (corner[0] + side * 6, corner[1] + 4, 28)],
                    self.colors.line,
                    3,
                )

    def _ring(self, outline: list[Point], color: str, thickness: float) -> str:
        data = self.pen.path(outline, True)
        return (
            f'<path d="{data}" fill="none" stroke="{color}" stroke-width="{thickness:.1f}" stroke-linejoin="round"/>'
        )

    def _lip_color(self) -> str:
        if self.attributes["lipstick"] != "none":
            return LIPSTICK_COLORS[self.attributes["lipstick"]]
        return mix(self.colors.skin, "#a8283c", 0.52 if self.attributes["gender"] == "woman" else 0.38)

    def eyes(self) -> None:
        for side in (-1, 1):
            state = self.attributes["eyes"]
            if state == "winking":
                state = "closed" if side == 1 else "open"
            self._eyelid(side)
            if state == "closed":
                self._closed_eye(side)
            else:
                self._open_eye(side, squinting=state == "squinting")
            self._eye_bag(side)
            if self.attributes["tears"] == "yes":
                self._tear(side)

    def _eyelid(self, side: int) -> None:
        if self.attributes["makeup"] == "none":
            return
        x, y, width = side * self.geometry.eye_x, self.geometry.eye_y, self.geometry.eye_width
        height = _EYE_HEIGHTS[self.attributes["eye_size"]] * self.openness
        lid = [
            (x - width * 1.15, y + 2),
            (x - width * 0.6, y - height - 7),
            (x + width * 0.6, y - height - 7),
            (x + width * 1.15, y + 2),
        ]
        self.pen.fill(lid, "#8a35b8", 0.85)

    def _closed_eye(self, side: int) -> None:
        x, y, width = side * self.geometry.eye_x, self.geometry.eye_y, self.geometry.eye_width
        self.pen.line(
            [(x - width, y), (x - width * 0.4, y + 6), (x + width * 0.4, y + 6), (x + width, y)], LASH_COLOR, 4.5
        )
        if self.attributes["gender"] == "woman" or self.attributes["makeup"] == "heavy":
            for shift in (-0.6, 0.0, 0.6):
                self.pen.line([(x + shift * width, y + 6), (x + shift * width * 1.2, y + 12)], LASH_COLOR, 2.5)

    def _open_eye(self, side: int, squinting: bool) -> None:
        pen, geometry = self.pen, self.geometry
        x, y, width = side * geometry.eye_x, geometry.eye_y, geometry.eye_width
        height = _EYE_HEIGHTS[self.attributes["eye_size"]] * self.openness * (0.42 if squinting else 1.0)
        heavy = self.attributes["makeup"] == "heavy"
        woman = self.attributes["gender"] == "woman"
        upper = [
            (x - width, y + 1),
            (x - width * 0.5, y - height * 0.84),
            (x, y - height),
            (x + width * 0.5, y - height * 0.84),
            (x + width, y + 1),
        ]
        lower = [(x + width * 0.5, y + height * 0.8), (x, y + height * 0.92), (x - width * 0.5, y + height * 0.8)]
        data = pen.path([*upper, *lower], True)
        name = "eye-left" if side < 0 else "eye-right"
        shift_x, shift_y = _GAZE_SHIFTS[self.attributes["gaze"]]
        iris_x, iris_y = pen.place((x, y))
        iris_x, iris_y = iris_x + shift_x, iris_y + shift_y
        pen.raw(
            f'<clipPath id="{name}"><path d="{data}"/></clipPath><path d="{data}" fill="#ffffff"/>'
            f'<g clip-path="url(#{name})">'
            f'<circle cx="{iris_x:.1f}" cy="{iris_y:.1f}" r="10" fill="{EYE_COLORS[self.attributes["eye_color"]]}"/>'
            f'<circle cx="{iris_x:.1f}" cy="{iris_y:.1f}" r="4" fill="#0c0a0c"/></g>'
        )
        pen.line(upper, LASH_COLOR, 5.5 if heavy else 4.6 if woman else 3.0)
        if squinting:
            crease = [(x - width * 0.8, y + height + 5), (x, y + height + 8), (x + width * 0.8, y + height + 5)]
            pen.line(crease, self.colors.line, 3.5)
        if woman or heavy:
            outer = x + side * width
            pen.line([(outer - side * 2, y - 1), (outer + side * 6, y - 8)], LASH_COLOR, 4)
        if heavy:
            pen.line(
                [(x + side * width * 0.5, y - height * 0.84), (x + side * (width * 0.5 + 5), y - height - 6)],
                LASH_COLOR,
                3,
            )

    def _eye_bag(self, side: int) -> None:
        if self.attributes["eye_bags"] == "no":
            return
        x, width = side * self.geometry.eye_x, self.geometry.eye_width
        y = self.geometry.eye_y + _EYE_HEIGHTS[self.attributes["eye_size"]] * max(1.0, self.openness) * 0.6 + 9
        bag = [(x - width * 0.85, y), (x, y + 6), (x + width * 0.85, y)]
        self.pen.line(bag, mix(self.colors.line, "#5a3078", 0.35), 5, 0.85)

    def _tear(self, side: int) -> None:
        x = side * (self.geometry.eye_x + 2)
        y = self.geometry.eye_y + 12
        self.pen.fill(
            [(x, y), (x + 7, y + 18), (x, y + 26), (x - 7, y + 18)],
            "#4ab4ff",
            extra=' stroke="#eaf8ff" stroke-width="1.5"',
        )

    def brows(self) -> None:
        attributes, geometry = self.attributes, self.geometry
        thickness = 10.0 if attributes["brow_thickness"] == "bushy" else 4.2
        arch = 9.0 if attributes["brow_shape"] == "arched" else 0.0
        lift = 4.0 * (attributes["eye_size"] == "big")
        for side in (-1, 1):
            # Contempt raises one brow only.
            raised = 11.0 if attributes["emotion"] == "contemptuous" and side == 1 else 0.0
            x, y = geometry.eye_x, geometry.brow_y - lift - raised
            inner, outer = y + self.inner_brow, y + self.outer_brow
            points = [
                (side * (x - 17), inner + arch * 0.3),
                (side * (x + 2), (inner + outer) / 2 - arch),
                (side * (x + 18), outer + arch * 0.5),
            ]
            self.pen.line(points, self.colors.facial_hair, thickness, bend=0.8)
        if attributes["emotion"] == "angry":
            for side in (-1, 1):
                self.pen.line([(side * 5, -34, 52), (side * 5, -22, 54)], self.colors.line, 3.5)

    def mask(self) -> None:
        if self.attributes["mask"] == "no":
            return
        width, jaw, chin, side_y = self.geometry.width, self.geometry.jaw, self.geometry.chin, self.geometry.jaw_height
        upper = [(-width * 0.98, 6), (-width * 0.55, 12), (0, 7, 62), (width * 0.55, 12), (width * 0.98, 6)]
        lower = [
            (jaw * 1.02, side_y),
            (jaw * 0.62, chin - 2),
            (0, chin + 5),
            (-jaw * 0.62, chin - 2),
            (-jaw * 1.02, side_y),
        ]
        self.pen.fill([*upper, *lower], "#a6dcf2")
        self.pen.line([(-width * 0.7, 36), (0, 40, 62), (width * 0.7, 36)], "#6fb0cf", 3.5)

    def glasses(self) -> None:
        kind, pen, geometry = self.attributes["eyewear"], self.pen, self.geometry
        if kind == "none":
            return
        color = "#b0141e" if kind == "round glasses" else "#14161c"
        x, y = geometry.eye_x, geometry.eye_y + 1
        pen.line([(-6, y - 4, 60), (6, y - 4, 60)], color, 5)
        for side in (-1, 1):
            pen.line([(side * (x + 19), y - 3), (side * (geometry.width + 1), y - 4, 4)], color, 4.5)
            center_x, center_y = pen.place((side * x, y))
            if kind == "round glasses":
                shape = f'<circle cx="{center_x:.1f}" cy="{center_y:.1f}" r="22"'
            else:
                tall, corner = (17, 3) if kind == "square glasses" else (18, 10)
                place = f'x="{center_x - 23:.1f}" y="{center_y - tall:.1f}"'
                shape = f'<rect {place} width="46" height="{2 * tall}" rx="{corner}"'
            lens = 'fill="#14161c"' if kind == "sunglasses" else 'fill="none"'
            pen.raw(f'{shape} {lens} stroke="{color}" stroke-width="5"/>')
