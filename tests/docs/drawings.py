"""The drawings of docs/explanation.md and README.md as SVG files: ``python tests/docs/drawings.py`` writes them.

They go to docs/images. The picture of README shows a real run; ``run_front.json`` beside this file has its numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path

IMAGES = Path(__file__).parents[2] / "docs" / "images"
BLUE, ORANGE, GREEN, GREY, INK = "#0072b2", "#e69f00", "#009e73", "#b9c0c6", "#20262b"
Place = tuple[float, float]


def drawing(width: int, height: int, title: str, parts: Iterator[str]) -> str:
    """A picture with a white ground, so that it can be read on a dark page too."""
    arrow = (
        '<marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{INK}"/></marker>'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    ground = f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>'
    name = f"<title>{escape(title)}</title>"
    body = "\n".join(parts)
    font = f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}"'
    return f'{head} role="img" {font}>\n{name}\n<defs>{arrow}</defs>\n{ground}\n{body}\n</svg>\n'


def box(x: float, y: float, width: float, height: float, colour: str, extra: str = "") -> str:
    """A filled rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" fill="{colour}" {extra}/>'


def outline(x: float, y: float, width: float, height: float, colour: str, dash: str = "") -> str:
    """An empty rectangle."""
    line = f'stroke="{colour}" stroke-width="2"' + (f' stroke-dasharray="{dash}"' if dash else "")
    return box(x, y, width, height, "none", line)


def text(x: float, y: float, words: str, anchor: str = "start", extra: str = "") -> str:
    """A line of text; `y` is that of its base line."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {extra}>{escape(words)}</text>'


def line(start: Place, end: Place, extra: str = 'marker-end="url(#arrow)"') -> str:
    """A straight line, with an arrow head at its end."""
    return f'<line x1="{start[0]:g}" y1="{start[1]:g}" x2="{end[0]:g}" y2="{end[1]:g}" stroke="{INK}" {extra}/>'


def curve(points: list[Place], colour: str, extra: str = "") -> str:
    """A line through points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" {extra}/>'


BOLD = 'font-weight="600"'
LAYERS = (("stem", 64), ("block 1", 64), ("block 2", 64), ("block 3", 128), ("block 4", 128), ("head", 10))


def network(x: float, sizes: dict[str, int | None], colour: str, choices: tuple[float, ...] = ()) -> Iterator[str]:
    """A bar for each layer, as long as it is wide; a skipped block is an empty frame."""
    for row, (name, full) in enumerate(LAYERS):
        y, size = 50 + 30 * row, sizes.get(name, full)
        if size is None:
            yield outline(x, y, full, 20, GREY, "4 3")
            yield text(x + full + 6, y + 15, "skipped", extra='fill="#5b6166" font-size="11"')
            continue
        yield box(x, y, size, 20, colour)
        yield text(x + size + 6, y + 15, str(size), extra='font-size="11"')
        if name != "head":
            yield from (line((x + c * full, y), (x + c * full, y + 20), 'stroke-dasharray="2 2"') for c in choices)


def super_network() -> Iterator[str]:
    """The original, the choices in it, and a sub-network."""
    for row, (name, _) in enumerate(LAYERS):
        yield text(14, 65 + 30 * row, name)
    yield text(90, 30, "your model", extra=BOLD)
    yield from network(90, {}, BLUE)
    yield text(290, 30, "super-network: with choices", extra=BOLD)
    yield from network(290, {}, BLUE, (0.5, 0.75))
    for row in (1, 2, 4):
        yield text(455, 65 + 30 * row, "may be skipped", extra='font-size="11"')
    yield text(590, 30, "a sub-network: one choice each", extra=BOLD)
    yield from network(590, {"stem": 48, "block 1": 48, "block 2": None, "block 3": 64, "block 4": 64}, ORANGE)


def weight_sharing() -> Iterator[str]:
    """One matrix, and the parts of it that networks of three sizes use."""
    side, cell = 8, 22
    for row in range(side):
        for column in range(side):
            last = max(row, column)
            colour = GREEN if last < 4 else ORANGE if last < 6 else BLUE
            yield box(40 + cell * column, 50 + cell * row, cell - 2, cell - 2, colour)
    yield text(40, 34, "weights of one layer: outputs down, inputs across", extra=BOLD)
    for size, colour, words, y in (
        (8, BLUE, "the whole network uses 8 x 8", 80),
        (6, ORANGE, "a sub-network of 3/4 width uses the first 6 x 6", 120),
        (4, GREEN, "a sub-network of half width uses the first 4 x 4", 160),
    ):
        yield outline(40 - 1, 50 - 1, cell * size, cell * size, INK, "" if size == 8 else "5 3")
        yield box(260, y - 12, 14, 14, colour)
        yield text(282, y, words)
    yield text(260, 200, "Before training, the most important channels are moved to the front,")
    yield text(260, 218, "so the first 4 are the best 4. Training the green weights in one")
    yield text(260, 236, "sub-network changes them in all three.")


def program() -> Iterator[str]:
    """Programs are views of the shared weights; an extracted module has a copy."""
    yield box(30, 40, 170, 180, BLUE)
    yield text(115, 125, "shared weights", "middle", 'fill="#ffffff" font-weight="600"')
    yield text(115, 145, "(super-network)", "middle", 'fill="#ffffff"')
    for y, name, colour in ((40, "program of sub-network A", ORANGE), (150, "program of sub-network B", GREEN)):
        yield outline(320, y, 210, 60, colour)
        yield text(425, y + 26, name, "middle", BOLD)
        yield text(425, y + 46, "no weights of its own", "middle", 'font-size="11"')
        yield line((200, y + 50), (318, y + 22))
        yield line((318, y + 42), (200, y + 70))
    yield text(258, 56, "views", "middle", 'font-size="11"')
    yield text(258, 118, "gradients", "middle", 'font-size="11"')
    yield line((115, 220), (115, 278))
    yield text(125, 254, "extract: copies what A needs", extra='font-size="11"')
    yield outline(30, 280, 170, 50, INK)
    yield text(115, 310, "plain nn.Module", "middle", BOLD)
    yield line((200, 305), (318, 305))
    yield outline(320, 280, 210, 50, INK)
    yield text(425, 310, "ONNX file", "middle", BOLD)


def bell(x: float, y: float, width: float, shift: float) -> list[Place]:
    """A bell curve above a base line."""
    return [(x + t, y - 70 * math.exp(-(((t - shift) / width) ** 2))) for t in range(0, 201, 4)]


def batch_norm() -> Iterator[str]:
    """The values in a sub-network, and the statistics that its BatchNorm takes them to have."""
    panels = ((40, "whole network", 100, 30, 100, 30), (290, "sub-network, before", 60, 18, 100, 30))
    for x, title, mean, spread, stored, width in (*panels, (540, "sub-network, recalibrated", 60, 18, 60, 18)):
        yield text(x, 34, title, extra=BOLD)
        yield line((x, 130), (x + 200, 130), "")
        yield curve(bell(x, 130, spread, mean), BLUE)
        yield line((x + stored, 138), (x + stored, 52), f'stroke-dasharray="4 3" style="stroke:{ORANGE}"')
        yield line((x + stored - width, 144), (x + stored + width, 144), f'style="stroke:{ORANGE};stroke-width:3"')
    yield curve([(40, 176), (70, 176)], BLUE)
    yield text(78, 180, "values that arrive at a BatchNorm layer")
    yield curve([(390, 176), (420, 176)], ORANGE, 'stroke-dasharray="4 3"')
    yield text(428, 180, "mean and spread that the layer has stored")


def front() -> Iterator[str]:
    """Evaluated sub-networks, their front, a bound and the winner."""
    left, low = 60.0, 250.0
    yield line((left, low), (560, low))
    yield line((left, low), (left, 30))
    yield text(560, 274, "latency", "end")
    yield text(left - 8, 22, "accuracy")
    best = [(90.0, 210.0), (130.0, 150.0), (190.0, 112.0), (270.0, 88.0), (380.0, 72.0), (500.0, 64.0)]
    others = [(150, 190), (205, 160), (240, 142), (300, 128), (340, 150), (395, 112), (430, 96), (455, 130), (520, 90)]
    yield from (f'<circle cx="{x}" cy="{y}" r="5" fill="{GREY}"/>' for x, y in others)
    steps = [best[0]]
    for (_, before), (x, y) in pairwise(best):
        steps += [(x, before), (x, y)]
    yield curve(steps, BLUE)
    yield from (f'<circle cx="{x:g}" cy="{y:g}" r="5" fill="{BLUE}"/>' for x, y in best)
    yield line((300, low), (300, 40), 'stroke-dasharray="5 4"')
    yield text(306, 52, "your bound: half of the original")
    yield f'<circle cx="270" cy="88" r="9" fill="none" stroke="{ORANGE}" stroke-width="3"/>'
    yield text(258, 76, "winner", "end", f'style="fill:{INK}" font-weight="600"')
    yield box(546, 50, 12, 12, INK)
    yield text(552, 42, "original", "middle")
    for y, colour, words in ((190, BLUE, "front: nothing is both faster and better"), (212, GREY, "evaluated")):
        yield f'<circle cx="322" cy="{y - 4}" r="5" fill="{colour}"/>'
        yield text(334, y, words)


def run_front() -> Iterator[str]:
    """What a real run evaluated, its front before the fine-tuning, and the winners after it."""
    run = json.loads(Path(__file__).with_name("run_front.json").read_text(encoding="utf-8"))

    def place(macs: float, accuracy: float) -> Place:
        return 70 + 14.5 * macs, 300 - 3.1 * (accuracy - 10)

    for accuracy in range(20, 81, 20):
        start, end = place(0, accuracy), place(43, accuracy)
        yield line(start, end, 'style="stroke:#e3e6e8"')
        yield text(start[0] - 8, start[1] + 4, f"{accuracy} %", "end", 'font-size="11"')
    for macs in range(0, 41, 10):
        yield text(place(macs, 10)[0], 318, str(macs), "middle", 'font-size="11"')
    yield text(place(43, 10)[0], 336, "million multiply-accumulates (MACs)", "end")
    yield text(14, 18, "accuracy of ResNet-20 on CIFAR-10")
    steps: list[Place] = []
    for macs, accuracy in sorted(run["evaluated"]):
        x, y = place(macs, accuracy)
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{GREY}"/>'
        if not steps or y < steps[-1][1]:
            steps += [(x, steps[-1][1]), (x, y)] if steps else [(x, y)]
    yield curve(steps, BLUE)
    for network in run["networks"]:
        x, y = place(network["macs"], network["accuracy"])
        original = network["name"] == "original"
        yield box(x - 6, y - 6, 12, 12, INK if original else ORANGE, "" if original else f'stroke="{INK}"')
        yield text(x, y - 12, f"{network['name']}: {network['accuracy']:.1f} %", "middle", BOLD)
    for y, words in (
        (210, "winners after fine-tuning, and the original (test images)"),
        (260, "all that was evaluated"),
    ):
        yield text(392, y, words, extra='font-size="12"')
    yield box(372, 200, 12, 12, ORANGE, f'stroke="{INK}"')
    yield curve([(368, 231), (386, 231)], BLUE)
    yield text(392, 235, "front of the search, before fine-tuning (validation images)", extra='font-size="12"')
    yield f'<circle cx="378" cy="256" r="3.5" fill="{GREY}"/>'


DRAWINGS = {
    "run_front.svg": drawing(760, 345, "Accuracy over MACs: a run, its winners and the original", run_front()),
    "super_network.svg": drawing(830, 240, "A model, its super-network and a sub-network", super_network()),
    "weight_sharing.svg": drawing(
        760, 250, "Sub-networks share the first rows and columns of a weight", weight_sharing()
    ),
    "program.svg": drawing(560, 350, "Programs use the shared weights, extracted modules have copies", program()),
    "batch_norm.svg": drawing(770, 200, "BatchNorm statistics of a sub-network must be its own", batch_norm()),
    "front.svg": drawing(600, 290, "The Pareto front of a search, a bound and the winner", front()),
}


def main() -> None:
    """Write all drawings."""
    for name, content in DRAWINGS.items():
        (IMAGES / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
