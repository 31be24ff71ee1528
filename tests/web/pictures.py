"""Pictures of a page: where its main elements are and how it looks from afar, compared with stored pictures.

    python -m tests.web.pictures       stores the pictures of this version in tests/web/pictures/

Fonts differ between machines, and with them every line break. Therefore positions have a tolerance, and of the picture
only the averages of large cells are compared, each block for itself.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from playwright.sync_api import Page

from tests.lab.host import REPOSITORY
from tests.web.browser import chromium
from tests.web.simulated_pages import SIZES, open_page, simulated_mesh

FOLDER = REPOSITORY / "tests/web/pictures"
#: The main blocks of the page, which never overlap, with the number of columns and rows of cells that are compared.
BLOCKS = {
    "header.top": (24, 1),
    "#summary": (24, 3),
    "#problems": (24, 4),
    "#mesh-map": (20, 18),
    "#nodes": (24, 12),
}
#: Other elements with a place of their own.
PARTS = (
    "#mesh-map .legend",
    "#map",
    "#node-table",
    "#node-table thead",
    *(f"#rows tr:nth-child({n})" for n in (1, 2, 3, 4)),
)
#: Stored pictures are smaller by this factor, so that they have some 20 kB.
SCALE = 4
#: A place or a size may differ by this, CSS pixels and share: a font moves everything below its text.
NEAR_PX, NEAR_SHARE = 12, 0.12
#: The least correlation of a block's cells with those of the stored one, and their largest mean difference, of 255.
#: Other fonts give 0.78 and 5 at worst (a monospaced one on the phone), an empty map 0.19 and 8.9.
ALIKE, MEAN = 0.6, 8.0

Box = tuple[float, float, float, float]

_BOXES = """selectors => Object.fromEntries(selectors.map(selector => {
    const element = document.querySelector(selector);
    if (!element || !element.checkVisibility({visibilityProperty: true})) return [selector, null];
    const box = element.getBoundingClientRect();
    return [selector, [box.x + scrollX, box.y + scrollY, box.width, box.height].map(Math.round)];
}))"""
#: The middles of the map's dots, by the names of the nodes, as shares of the map's size.
_DOTS = """() => {
    const map = document.querySelector("#map")?.getBoundingClientRect();
    return Object.fromEntries([...document.querySelectorAll("#map .node")].map(node => {
        const dot = node.querySelector("circle").getBoundingClientRect();
        const share = (at, start, length) => Math.round(1000 * (at - start) / length) / 1000;
        const x = share(dot.x + dot.width / 2, map.x, map.width), y = share(dot.y + dot.height / 2, map.y, map.height);
        return [node.getAttribute("aria-label").split(",")[0], [x, y]];
    }));
}"""
#: The number of the map's visible lines of each kind.
_LINES = """() => [...document.querySelectorAll("#map .edge")]
    .filter(line => line.checkVisibility({visibilityProperty: true}))
    .reduce((found, line) => {
        const kind = line.getAttribute("class");
        return {...found, [kind]: (found[kind] ?? 0) + 1};
    }, {})"""
_SCALED = """async ([url, scale]) => {
    const picture = new Image();
    picture.src = url;
    await picture.decode();
    const canvas = new OffscreenCanvas(Math.round(picture.width / scale), Math.round(picture.height / scale));
    const drawing = canvas.getContext("2d");
    drawing.imageSmoothingQuality = "high";
    drawing.drawImage(picture, 0, 0, canvas.width, canvas.height);
    const bytes = new Uint8Array(await (await canvas.convertToBlob({type: "image/png"})).arrayBuffer());
    return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""));
}"""
#: The averages of red, green and blue in each cell of a part of a picture, row by row.
_CELLS = """async ([url, box, columns, rows]) => {
    const picture = new Image();
    picture.src = url;
    await picture.decode();
    const canvas = new OffscreenCanvas(picture.width, picture.height);
    const drawing = canvas.getContext("2d");
    drawing.drawImage(picture, 0, 0);
    const [left, top] = [Math.max(0, Math.floor(box[0])), Math.max(0, Math.floor(box[1]))];
    const width = Math.min(picture.width - left, Math.ceil(box[2]));
    const height = Math.min(picture.height - top, Math.ceil(box[3]));
    const {data} = drawing.getImageData(left, top, width, height);
    const sums = Array.from({length: columns * rows}, () => [0, 0, 0, 0]);
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
        const sum = sums[Math.floor(y * rows / height) * columns + Math.floor(x * columns / width)];
        for (let part = 0; part < 3; part++) sum[part] += data[4 * (y * width + x) + part];
        sum[3]++;
    }
    return sums.flatMap(([red, green, blue, count]) => [red / count, green / count, blue / count]);
}"""


@dataclass(frozen=True)
class Layout:
    """The places of a page's elements.

    Attributes:
        boxes: x, y, width and height in CSS pixels by selector; an element that is not shown is missing.
        dots: the places of the nodes on the map, as shares of its width and height.
        lines: the number of the map's lines by their kind.
    """

    boxes: Mapping[str, Box]
    dots: Mapping[str, tuple[float, float]]
    lines: Mapping[str, int]

    @classmethod
    def of(cls, page: Page) -> Layout:
        """Measure the page that is shown."""
        boxes = page.evaluate(_BOXES, [*BLOCKS, *PARTS])
        shown = {name: tuple(box) for name, box in boxes.items() if box and box[2] and box[3]}
        return cls(shown, page.evaluate(_DOTS), page.evaluate(_LINES))


@dataclass(frozen=True)
class Picture:
    """A page's layout, and its picture, smaller by `SCALE`."""

    layout: Layout
    png: bytes

    @classmethod
    def take(cls, page: Page) -> Picture:
        """Take the picture of the whole page that is shown."""
        layout = Layout.of(page)
        whole = page.screenshot(full_page=True, animations="disabled", caret="hide")
        with _blank_page(page) as blank:
            return cls(layout, base64.b64decode(blank.evaluate(_SCALED, [_url(whole), SCALE])))

    @classmethod
    def load(cls, name: str) -> Picture:
        """Return the stored picture."""
        stored = json.loads((FOLDER / f"{name}.json").read_text())
        boxes = {key: tuple(box) for key, box in stored["boxes"].items()}
        dots = {key: tuple(place) for key, place in stored["dots"].items()}
        return cls(Layout(boxes, dots, stored["lines"]), (FOLDER / f"{name}.png").read_bytes())

    def store(self, name: str) -> None:
        """Write it where `load` reads it."""
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.json").write_text(json.dumps(asdict(self.layout), indent=1) + "\n")
        (FOLDER / f"{name}.png").write_bytes(self.png)

    def cells(self, blank: Page, block: str) -> list[float]:
        """Return the averages of a block's cells, red, green and blue of each; a blank page computes them."""
        box = [value / SCALE for value in self.layout.boxes[block]]
        found: list[float] = blank.evaluate(_CELLS, [_url(self.png), box, *BLOCKS[block]])
        return found


def faults(page: Page, stored: Picture) -> list[str]:
    """Return how the page that is shown differs from the stored picture, and which of its blocks overlap."""
    taken = Picture.take(page)
    return [
        *_overlaps(taken.layout.boxes),
        *_places(taken.layout, stored.layout),
        *_looks(page, taken, stored),
    ]


def _overlaps(boxes: Mapping[str, Box]) -> Iterator[str]:
    for one, other in itertools.combinations([block for block in BLOCKS if block in boxes], 2):
        (x1, y1, width1, height1), (x2, y2, width2, height2) = boxes[one], boxes[other]
        # Edges are rounded.
        if min(x1 + width1, x2 + width2) - max(x1, x2) > 1 and min(y1 + height1, y2 + height2) - max(y1, y2) > 1:
            yield f"{one} and {other} overlap: {boxes[one]}, {boxes[other]}"


def _places(taken: Layout, stored: Layout) -> Iterator[str]:
    for name, wanted in stored.boxes.items():
        found = taken.boxes.get(name)
        if found is None:
            yield f"{name} is missing"
        elif any(abs(is_ - was) > NEAR_PX + NEAR_SHARE * was for is_, was in zip(found, wanted, strict=True)):
            yield f"{name} is at {found}, not at {wanted}"
    for name in stored.dots.keys() | taken.dots.keys():
        here, there = taken.dots.get(name), stored.dots.get(name)
        if here is None or there is None or math.dist(here, there) > NEAR_SHARE:
            yield f"the node {name} is at {here} of the map, not at {there}"
    if taken.lines != stored.lines:
        yield f"the map has the lines {taken.lines}, not {stored.lines}"


def _looks(page: Page, taken: Picture, stored: Picture) -> Iterator[str]:
    with _blank_page(page) as blank:
        for block in BLOCKS:
            if block not in taken.layout.boxes:
                continue
            now, before = taken.cells(blank, block), stored.cells(blank, block)
            alike = correlation(now, before)
            mean = statistics.fmean(abs(one - other) for one, other in zip(now, before, strict=True))
            if alike < ALIKE or mean > MEAN:
                yield f"{block} looks different: correlation {alike:.2f}, mean difference {mean:.1f}"


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Pearson's correlation; 0 if one of the two is constant.

    >>> correlation([1, 2, 3], [2, 4, 6])
    1.0
    """
    if len(set(one)) == 1 or len(set(other)) == 1:
        return 0.0
    return statistics.correlation(one, other)


@contextmanager
def _blank_page(page: Page) -> Iterator[Page]:
    """Yield a page of the same browser without a policy of its own."""
    blank = page.context.new_page()
    try:
        yield blank
    finally:
        blank.close()


def _url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def main() -> None:
    """Store the picture of each size."""
    with tempfile.TemporaryDirectory() as folder, simulated_mesh(Path(folder)) as mesh, chromium() as browser:
        for size in SIZES:
            page = open_page(browser, mesh, size)
            page.wait_for_selector('#live[data-state="live"]')
            Picture.take(page).store(size)
            page.context.close()


if __name__ == "__main__":
    main()
