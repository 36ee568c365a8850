"""The pictures of `sample_data`, as a program: `python -m tests.sample_pictures` draws them anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.pictures import Colour, png

SAMPLES = Path(__file__).parents[1] / "sample_data"
SIDE = 32
PAPER: Colour = (250, 248, 240)
RED, GREEN, BLUE, YELLOW, BLACK = (200, 40, 40), (40, 140, 70), (40, 80, 190), (235, 190, 40), (30, 30, 30)

Paint = Callable[[int, int], Colour]


def shape(inside: Callable[[int, int], bool], colour: Colour) -> Paint:
    """Paint a shape on paper."""
    return lambda x, y: colour if inside(x, y) else PAPER


def circle(x: int, y: int) -> bool:
    """A disc in the middle."""
    return (x - 15.5) ** 2 + (y - 15.5) ** 2 <= 11**2


def square(x: int, y: int) -> bool:
    """A square in the middle."""
    return 6 <= x < 26 and 6 <= y < 26


def triangle(x: int, y: int) -> bool:
    """A triangle that stands on its base."""
    return 5 <= y < 27 and abs(x - 15.5) <= (y - 5) / 2


def cross(x: int, y: int) -> bool:
    """A cross of two bars."""
    return (12 <= x < 20 and 4 <= y < 28) or (12 <= y < 20 and 4 <= x < 28)


PICTURES: Mapping[str, tuple[str, Paint]] = {
    "red-circle": ("a red circle", shape(circle, RED)),
    "blue-square": ("a blue square", shape(square, BLUE)),
    "green-triangle": ("a green triangle", shape(triangle, GREEN)),
    "yellow-cross": ("a yellow cross", shape(cross, YELLOW)),
    "black-circle": ("a black circle", shape(circle, BLACK)),
    "stripes": ("red and white stripes", lambda x, y: RED if y // 4 % 2 else PAPER),
    "chessboard": ("a chessboard", lambda x, y: BLACK if (x // 4 + y // 4) % 2 else PAPER),
    "sunset": ("a sky that turns from blue to yellow", lambda x, y: (40 + 6 * y, 80 + 3 * y, 190 - 5 * y)),
}


def main() -> None:
    """Write the pictures and the rows that name them."""
    rows = []
    for number, (name, (subject, paint)) in enumerate(PICTURES.items(), 1):
        (SAMPLES / "pictures" / f"{name}.png").write_bytes(png(SIDE, SIDE, paint))
        rows.append({"picture_id": f"P-{number}", "file": f"pictures/{name}.png", "subject": subject})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (SAMPLES / "pictures.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
