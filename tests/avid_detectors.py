"""AVID's detectors of small networks, untrained, one for each kind of data and way of training."""

from sklearn_g2d import AVIDDetector
from sklearn_g2d.avid import CellInpainting, MaskedInpainting, PatchNet, UNet


def make_detector(kind, *, channels, table_steps, **changed):
    """Make the one for "images", "paper images", "table" or "paper table"."""
    if kind == "images":
        detector = AVIDDetector(
            region_size=12,
            training=MaskedInpainting(max_steps=2, batch_size=4),
            inpainter=UNet(channels=channels),
            detector=PatchNet(channels=channels),
        )
    elif kind == "table":
        detector = AVIDDetector(training=CellInpainting(max_steps=table_steps, batch_size=16))
    elif kind == "paper images":
        detector = AVIDDetector.from_paper(
            "images",
            region_size=20,
            training__max_steps=2,
            training__batch_size=4,
            inpainter__channels=channels,
            detector__channels=channels,
        )
    else:
        detector = AVIDDetector.from_paper(
            "tables", training__max_steps=table_steps, training__batch_size=16
        )
    return detector.set_params(random_state=0).set_params(**changed)
