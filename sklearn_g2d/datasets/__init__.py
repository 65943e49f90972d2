"""Images from files, puzzles made of images, and the video clips of UCSD."""

from sklearn_g2d.datasets._images import load_images
from sklearn_g2d.datasets._puzzles import make_puzzles
from sklearn_g2d.datasets._ucsd import load_ucsd

__all__ = ["load_images", "load_ucsd", "make_puzzles"]
