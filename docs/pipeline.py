"""Draw the pipeline, from two camera networks to an adapted model, as SVG: text stays text, and colours follow the
reader's light or dark scheme.

usage: python docs/pipeline.py      (writes docs/pipeline.svg)
"""
import html
from pathlib import Path

STYLE = """
svg { --paper: #ffffff; --ink: #1c2430; --soft: #56626f; --line: #7b8794; \
--data: #e8eef5; --step: #ffffff; --label: #fdf1de; --loss: #e6f3ea; --use: #efe9f7; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #14181d; --ink: #e6ebf1; --soft: #a3afbc; --line: #8592a0; \
--data: #223041; --step: #1e252d; --label: #3a2f1c; --loss: #1d3426; --use: #2e2740; }
}
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; \
fill: var(--ink); text-anchor: middle; }
.name { font-size: 15px; font-weight: 600; }
.what { font-size: 12.5px; fill: var(--soft); }
.note { font-size: 12.5px; fill: var(--soft); }
.box { stroke: var(--line); stroke-width: 1.2; rx: 7px; }
.arrow { fill: none; stroke: var(--line); stroke-width: 1.6; marker-end: url(#head); }
.again { stroke-dasharray: 5 4; }
"""

# name: (column, row, width in columns, colour, title, lines below it)
BOXES = {
    "source": (0, 0, 1, "data", "Source network", ("images, identities,", "cameras")),
    "target": (0, 1, 1, "data", "Target network", ("images, cameras;", "no identities")),
    "bank": (1, 0.5, 1, "step", "Image bank", ("decode once, augment,", "balanced batches")),
    "encoder": (2, 0.5, 1, "step", "Encoder", ("stem, transformer,", "batch-norm neck (3.3)")),
    "features": (3, 0.5, 1, "step", "Features", ("one vector an image,", "centred per camera")),
    "cluster": (4, 0, 1, "label", "DBSCAN per camera", ("Jaccard distance; merged", "across cameras (3.4)")),
    "mixture": (4, 1, 1, "label", "Mixture model", ("soft labels, entropy,", "weights (Eq. 9)")),
    "losses": (2, 2.2, 3, "loss", "Losses, weighted by certainty",
               ("cross-entropy and triplet (Eq. 10)  ·  mixup (Eq. 11)  ·  InfoNCE with memory (Eq. 12)",
                "SRMO learns the weight of each loss on held-out source identities (Eq. 13-18)")),
    "ema": (1, 2.2, 1, "step", "EMA", ("moving average of", "the encoder's weights")),
    "use": (0, 2.2, 1, "use", "Adapted model", ("evaluation: mAP, CMC", "deployment: search")),
}
WIDE, HIGH, GAP, TOP, LEFT = 188, 82, 36, 24, 24

def place(name):
    "Left, top, width, height of a box."
    column, row, width, *_ = BOXES[name]
    return LEFT + column*(WIDE + GAP), TOP + row*(HIGH + 34), width*WIDE + (width - 1)*GAP, HIGH

def drawn_box(place, colour, title, lines, drop=26):
    "A box with its title, `drop` below its top, and the lines below the title."
    x, y, w, h = place
    texts = [f'<text class="name" x="{x + w/2:g}" y="{y + drop:g}">{html.escape(title)}</text>']
    texts += [f'<text class="what" x="{x + w/2:g}" y="{y + drop + 20 + 18*i:g}">{html.escape(line)}</text>'
              for i, line in enumerate(lines)]
    ground = f'<rect class="box" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" style="fill: var(--{colour})"/>'
    return "\n".join([ground, *texts])

def point_on(place, side, at=.5):
    "A point on a box's side; `at` runs from its left or top end to the other."
    x, y, w, h = place
    return {"left": (x, y + at*h), "right": (x + w, y + at*h), "top": (x + at*w, y), "bottom": (x + at*w, y + h)}[side]

def edge(name, side, at=.5):
    "A point on a side of a box of the pipeline."
    return point_on(place(name), side, at)

def arrow(*points, again=False):
    "A line through points, with a head at its end."
    path = "M " + " L ".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path class="arrow{" again" if again else ""}" d="{path}"/>'

def frame(width, height, said, parts):
    "A whole SVG: what it shows in words, then its parts on paper."
    said = html.escape(said)
    marker = ('<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
              'orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" style="fill: var(--line)"/></marker></defs>')
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}" role="img" aria-label="{said}">')
    ground = f'<rect x="0" y="0" width="{width:g}" height="{height:g}" rx="10" style="fill: var(--paper)"/>'
    return "\n".join([head, f"<title>{said}</title>", f"<style>{STYLE}</style>", marker, ground, *parts, "</svg>", ""])

def arrows():
    "What flows where: images, features, labels to the losses, and every round the labels anew."
    halfway = lambda a, b: [a, ((a[0] + b[0])/2, a[1]), ((a[0] + b[0])/2, b[1]), b]
    made = [arrow(*halfway(edge("source", "right"), edge("bank", "left", .35))),
            arrow(*halfway(edge("target", "right"), edge("bank", "left", .65))),
            arrow(edge("bank", "right"), edge("encoder", "left")),
            arrow(edge("encoder", "right"), edge("features", "left")),
            arrow(*halfway(edge("features", "right"), edge("cluster", "left"))),
            arrow(edge("cluster", "bottom"), edge("mixture", "top"))]
    x, y = edge("mixture", "bottom")
    made += [arrow((x, y), (x, place("losses")[1])),
             arrow(edge("losses", "left"), edge("ema", "right")),
             arrow(edge("ema", "left"), edge("use", "right"))]
    up = edge("encoder", "bottom")
    made.append(arrow((up[0], place("losses")[1]), up, again=True))
    at = f'x="{up[0] + 12:g}" y="{(up[1] + place("losses")[1])/2 + 4:g}"'
    note = f'<text class="note" {at} style="text-anchor: start">gradient step; new labels every round</text>'
    return "\n".join([*made, note])

def picture():
    "The whole picture as SVG."
    width, height = LEFT*2 + 5*WIDE + 4*GAP, place("losses")[1] + HIGH + TOP
    said = ("Pipeline: images of a labelled source network and an unlabelled target network go through the image bank "
            "and the encoder; features are clustered in each camera and merged; a mixture model gives soft labels and "
            "weights; weighted losses train the encoder; its moving average is evaluated and deployed")
    boxes = [drawn_box(place(name), *box[3:]) for name, box in BOXES.items()]
    return frame(width, height, said, [*boxes, arrows()])

if __name__ == "__main__": (Path(__file__).parent/"pipeline.svg").write_text(picture(), encoding="utf-8")
