"""Draw the architectures of P2LR, INCLR, CGC and MSPL as SVG, in the style of the pipeline of UPL-ReID (pipeline.py).

usage: python docs/architectures.py      (writes docs/architecture_NAME.svg)
"""
import html, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pipeline import arrow, drawn_box, frame, point_on

WIDE, HIGH, GAP, ROW, LEFT, TOP, EDGE = 178, 78, 30, 108, 34, 42, 14

# name -> (what the picture says, boxes, arrows)
# box: name -> (column, row, width in columns, colour, title, lines); arrow: (from, side, to, side, again?, note)
PICTURES = {
    "p2lr": ("P2LR: two student networks and their moving averages; both averages give the features that k-means "
             "clusters; centroids make an external classifier, whose probabilities give each label an uncertainty; the "
             "most certain labels, a share that grows over the rounds, train the students with hard labels and with "
             "the other network's soft ones", {
        "images": (0, 0, 1, "data", "Target images", ("no identities; two", "augmented views")),
        "students": (1, 0, 1, "step", "Two students", ("pretrained on the source", "from two seeds")),
        "teachers": (2, 0, 1, "step", "Two teachers", ("moving averages of the", "students' weights")),
        "features": (3, 0, 1, "step", "Features", ("mean of both teachers,", "one vector an image")),
        "kmeans": (3, 1, 1, "label", "K-means", ("hard labels and", "cluster centroids")),
        "external": (2, 1, 1, "label", "External classifier", ("cosines to centroids over", "a temperature (Eq. 2)")),
        "uncertainty": (1, 1, 1, "label", "Uncertainty", ("divergence from one", "ideal peak (Eq. 3, 4)")),
        "selection": (0, 1, 1, "label", "Selection", ("most certain labels; share", "p(t) grows (Eq. 8-10)")),
        "losses": (0, 2, 3, "loss", "Losses of both students (Eq. 1)",
                   ("identity and softmax triplet, hard labels from the clusters",
                    "the same two, soft labels from the other network's teacher")),
        "use": (3, 2, 1, "use", "Evaluated model", ("the first teacher",))},
        [("images", "right", "students", "left"), ("students", "right", "teachers", "left"),
         ("teachers", "right", "features", "left"), ("features", "bottom", "kmeans", "top"),
         ("kmeans", "left", "external", "right"), ("external", "left", "uncertainty", "right"),
         ("uncertainty", "left", "selection", "right"), ("selection", "bottom", "losses", "top"),
         ("losses", "right", "use", "left")]),
    "inclr": ("INCLR: two students and two teachers with a global feature and three part features each; DBSCAN in the "
              "global and in the part space, and a mutual refinement of both clusterings; the disagreement of student "
              "and teacher gives an inaccuracy that weighs one loss; both students are trained", {
        "images": (0, 0, 1, "data", "Target images", ("no identities; two", "augmented views")),
        "students": (1, 0, 1, "step", "Two students", ("one body, four heads:", "whole map and 3 bands")),
        "teachers": (2, 0, 1, "step", "Two teachers", ("moving averages of the", "students' weights")),
        "cluster": (3, 0, 1, "label", "DBSCAN, twice", ("on the global features,", "on those of the bands")),
        "refine": (3, 1, 1, "label", "Mutual refinement", ("LGMR: what both", "clusterings agree on")),
        "labels": (2, 1, 1, "label", "Pseudo-labels", ("one for the image and", "all of its bands")),
        "inaccuracy": (0, 1, 2, "label", "Inaccuracy (IGMO, Eq. 4-6)",
                       ("D(teacher || student) of the", "cluster probabilities")),
        "losses": (0, 2, 3, "loss", "Losses of both students (Eq. 8)",
                   ("identity on the global feature and each part, softmax triplet;",
                    "weighted KL: labels that student and teacher agree on count more")),
        "use": (3, 2, 1, "use", "Evaluated model", ("joint distance: global", "+ κ · parts (Eq. 9)"))},
        [("images", "right", "students", "left"), ("students", "right", "teachers", "left"),
         ("teachers", "right", "cluster", "left"), ("cluster", "bottom", "refine", "top"),
         ("refine", "left", "labels", "right"), ("labels", "bottom", "losses", "top"),
         ("students", "bottom", "inaccuracy", "top"), ("inaccuracy", "bottom", "losses", "top"),
         ("losses", "right", "use", "left")]),
    "cgc": ("CGC: an encoder gives features; DBSCAN clusters them at the start of each epoch; the silhouette of each "
            "image says how well it fits its cluster; images above a threshold make the centroids of a cluster memory; "
            "labels are spread over all centroids by confidence; the loss contrasts images with the memory", {
        "images": (0, 0, 1, "data", "Target images", ("no identities; no source", "is needed")),
        "encoder": (1, 0, 1, "step", "Encoder", ("ResNet-50, GeM pooling,", "batch norm")),
        "cluster": (2, 0, 1, "label", "DBSCAN", ("on Jaccard distances, at", "the start of an epoch")),
        "silhouette": (3, 0, 1, "label", "Silhouettes", ("how well each image fits", "its cluster (Eq. 4-6)")),
        "centroids": (3, 1, 1, "label", "CGC centroids", ("means of images with a", "silhouette > δ (Eq. 7)")),
        "memory": (2, 1, 1, "step", "Cluster memory", ("a vector a cluster, moved", "by each batch (Eq. 3)")),
        "labels": (0, 1, 2, "label", "CGL labels (Eq. 8, 9)",
                   ("β for the assigned cluster, the rest", "spread by confidence in each centroid")),
        "losses": (0, 2, 3, "loss", "Contrast with the memory (Eq. 10)",
                   ("cross-entropy of cosines to all vectors of the memory", "against the confidence-guided labels")),
        "use": (3, 2, 1, "use", "Evaluated model", ("the encoder",))},
        [("images", "right", "encoder", "left"), ("encoder", "right", "cluster", "left"),
         ("cluster", "right", "silhouette", "left"), ("silhouette", "bottom", "centroids", "top"),
         ("centroids", "left", "memory", "right"), ("memory", "left", "labels", "right"),
         ("labels", "bottom", "losses", "top"), ("memory", "bottom", "losses", "top"),
         ("losses", "right", "use", "left")]),
    "mspl": ("MSPL: a network pretrained on the source extracts features of the target; each camera's features are "
             "normalised; DBSCAN clusters them; clusters that are small or of one camera are left out; the rest "
             "fine-tunes the network, whose body stands still at first; then all steps are repeated", {
        "source": (0, 0, 1, "data", "Source network", ("images and identities:", "pretraining")),
        "target": (0, 1, 1, "data", "Target images", ("cameras, no identities",)),
        "encoder": (1, 0.5, 1, "step", "Encoder", ("ResNet-50 with", "instance norms (IBN-a)")),
        "normal": (2, 0, 1, "step", "Normalisation", ("mean 0 and deviation 1", "in each camera (Eq. 4)")),
        "cluster": (3, 0, 1, "label", "DBSCAN", ("on all cameras, or", "k-means (Eq. 1)")),
        "select": (3, 1, 1, "label", "Cluster selection", ("4 images or more, from", "2 cameras or more (3.4)")),
        "tune": (2, 1, 1, "step", "Fine-tuning", ("body frozen at first, then", "all layers (3.6.2)")),
        "losses": (1, 2, 2, "loss", "Losses (Eq. 5)", ("batch-hard triplet, identity with smoothed",
                                                       "labels, 0.005 · centre loss")),
        "use": (3, 2, 1, "use", "Evaluated model", ("after the last step;", "the paper: the best"))},
        [("source", "right", "encoder", "left@.35"), ("target", "right", "encoder", "left@.65"),
         ("encoder", "right", "normal", "left"), ("normal", "right", "cluster", "left"),
         ("cluster", "bottom", "select", "top"), ("select", "left", "tune", "right"),
         ("tune", "bottom", "losses", "top"), ("losses", "right", "use", "left")])}

# picture -> (box that the gradient step reaches, what is written beside the dashed line)
AGAIN = {"p2lr": ("students", "gradient step; new labels every round"),
         "inclr": ("students", "gradient step; new labels every round"),
         "cgc": ("encoder", "gradient step; new clusters every epoch"),
         "mspl": ("encoder", "gradient step; new labels every step of progressive learning")}

def place(box):
    "Left, top, width, height of a box."
    column, row, width, *_ = box
    return LEFT + column*(WIDE + GAP), TOP + row*ROW, width*WIDE + (width - 1)*GAP, HIGH

def point(box, side):
    "A point on a box's side, such as left or top@.25: the share of the way along it."
    side, _, at = side.partition("@")
    return point_on(place(box), side, float(at or .5))

def straight(a, b, side, box):
    "An arrow that leaves a bottom side goes straight down into the box below it."
    x, _, w, _ = place(box)
    return (a[0], b[1]) if side.startswith("bottom") and x < a[0] < x + w else b

def route(a, b):
    "Points of a line from one box to another beside it, with right angles."
    middle = (a[0] + b[0])/2
    return [a, b] if abs(a[0] - b[0]) < 1 or abs(a[1] - b[1]) < 1 else [a, (middle, a[1]), (middle, b[1]), b]

def picture(name):
    "One architecture as SVG."
    said, boxes, arrows = PICTURES[name]
    width, height = LEFT + 4*WIDE + 3*GAP + EDGE, TOP + 2*ROW + HIGH + EDGE
    lines = []
    for start, side, end, into in arrows:
        a, b = point(boxes[start], side), point(boxes[end], into)
        lines.append(arrow(*route(a, straight(a, b, side, boxes[end]))))
    lines.append(again(boxes, *AGAIN[name]))
    drawn = [drawn_box(place(box), *box[3:], drop=25) for box in boxes.values()]
    return frame(width, height, said, [*lines, *drawn])

def again(boxes, end, note):
    "The dashed line from the losses around the picture to what they train, with a note on it."
    (x, y), (u, v) = point(boxes["losses"], "left"), point(boxes[end], "top")
    lane, top = EDGE, TOP/2 + 2
    text = f'<text class="note" x="{lane + 10:g}" y="{top - 6:g}" style="text-anchor: start">{html.escape(note)}</text>'
    return "\n".join([arrow((x, y), (lane, y), (lane, top), (u, top), (u, v), again=True), text])

def main():
    "Write all pictures."
    for name in PICTURES:
        (Path(__file__).parent/f"architecture_{name}.svg").write_text(picture(name), encoding="utf-8")

if __name__ == "__main__": main()
