"""Makes docs/picture.svg, the picture in the README: ``python docs/picture.py``. A test holds that it was run.

The picture has a ground of its own, so that it can be read on a light page and on a dark one. Its text is text.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["PICTURE", "picture"]

PICTURE: Final = Path(__file__).with_name("picture.svg")

WIDTH: Final = 960
HEIGHT: Final = 330

#: Fill and edge of each kind of place.
GUEST: Final = ("#fdf0e3", "#c77d2e")
THREADS: Final = ("#eef0f3", "#6b7280")
TRIO: Final = ("#e6f0fb", "#2f6db5")
RELAY: Final = ("#e8f5ea", "#3a8a4c")
PLAIN: Final = ("#ffffff", "#9aa1ab")


HEAD: Final = f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"
 font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#1f2937" role="img">
<title>From a guest's console to trio</title>
<desc>A guest has an agent, which starts commands and opens files and connections. Its console goes through two
device threads and two rings to a session in a trio program. A relay lets other programs share the guest.</desc>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
 orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="#374151"/></marker></defs>
<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="10" fill="#ffffff" stroke="#d0d5dd"/>"""


class Box(NamedTuple):
    """A rectangle with lines of text in its middle; the first is bold."""

    x: int
    y: int
    width: int
    height: int
    colours: tuple[str, str]
    lines: tuple[str, ...] = ()

    def drawn(self) -> list[str]:
        fill, edge = self.colours
        place = f'x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}"'
        made = [f'<rect {place} rx="6" fill="{fill}" stroke="{edge}"/>']
        top = self.y + self.height / 2 - 9 * (len(self.lines) - 1) + 4.5
        for number, line in enumerate(self.lines):
            made.append(text(self.x + self.width / 2, top + 18 * number, line, bold=not number))
        return made


def text(x: float, y: float, line: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle"{weight}>{escape(line)}</text>'


def arrow(x1: int, y1: int, x2: int, y2: int, *, both: bool = False) -> str:
    start = ' marker-start="url(#tip)"' if both else ""
    return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="#374151" fill="none"{start} marker-end="url(#tip)"/>'


def picture() -> str:
    """The text of the file."""
    made = [HEAD]
    for frame, title in (
        (Box(20, 44, 210, 266, GUEST), "guest: VM, container, process"),
        (Box(280, 44, 490, 266, PLAIN), "your program"),
    ):
        made += frame.drawn()
        made.append(text(frame.x + frame.width / 2, 32, title, bold=True))
    boxes = (
        Box(40, 64, 170, 44, PLAIN, ("commands",)),
        Box(40, 118, 170, 44, PLAIN, ("files, TCP",)),
        Box(40, 204, 170, 86, GUEST, ("agent", "frames on the console,", "credit for each stream")),
        Box(300, 204, 130, 86, THREADS, ("device threads", "blocking", "read and write")),
        Box(460, 204, 130, 38, PLAIN, ("ring of chunks",)),
        Box(460, 252, 130, 38, PLAIN, ("ring of chunks",)),
        Box(620, 204, 130, 86, TRIO, ("session", "frames over", "a trio stream")),
        Box(460, 64, 290, 98, TRIO, ("your tasks", "guest.run_process(…)", "guest.open_file(…)")),
        Box(800, 204, 140, 86, RELAY, ("relay", "a Unix socket,", "rights and limits")),
        Box(800, 64, 140, 98, RELAY, ("other programs", "connect_guest(…)", "or any client")),
    )
    for box in boxes:
        made += box.drawn()
    made += [
        arrow(125, 204, 125, 162, both=True),
        arrow(210, 247, 300, 247, both=True),
        text(255, 238, "console"),
        arrow(430, 223, 460, 223),
        arrow(460, 271, 430, 271),
        arrow(590, 223, 620, 223),
        arrow(620, 271, 590, 271),
        arrow(685, 204, 685, 162, both=True),
        arrow(750, 247, 800, 247, both=True),
        arrow(870, 204, 870, 162, both=True),
        text(525, 188, "a system call only when one side sleeps"),
    ]
    return "\n".join([*made, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
