"""Data made from data, puzzles of which some tiles do not belong, and clips from folders."""

from __future__ import annotations

from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch, check_random_state

from sklearn_g2d.utils.opencv import import_opencv

__all__ = ["load_ucsd", "make_puzzles"]


def make_puzzles(
    images: ArrayLike,
    labels: ArrayLike,
    irregular_label: Any,
    *,
    n_samples: int = 100,
    grid_shape: tuple[int, int] = (11, 11),
    n_irregular: int | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Put images together as the tiles of larger ones, some of them irregular.

    With the digits of MNIST and "3" for the irregular one this is the IR-MNIST of [1]_: a
    detector learns puzzles without threes and is to find, and to locate, the threes in others.

    Parameters
    ----------
    images : array-like of shape (n, height, width) or (n, channels, height, width)
        The tiles to draw from, with replacement. Take other images for testing than for
        training, or a detector that remembers tiles will win.
    labels : array-like of shape (n,)
        What the images show.
    irregular_label : object
        Label of the images that do not belong.
    n_samples : int, default=100
        Number of puzzles.
    grid_shape : tuple of int, default=(11, 11)
        Rows and columns of tiles.
    n_irregular : int, default=None
        Irregular tiles in each puzzle, at random places; 0 makes training data. None draws
        every tile from all images, so that the irregular ones have their natural share.
    random_state : int, RandomState instance or None, default=None
        Seed.

    Returns
    -------
    puzzles : ndarray of shape (n_samples, channels, rows * height, columns * width)
        Of the images' dtype.
    tile_is_irregular : ndarray of shape (n_samples, rows, columns)
        True where a tile is irregular.

    Raises
    ------
    ValueError
        If `images` has another shape or other numbers of images than `labels`, a number is
        out of range, or regular or irregular images are needed and there are none.

    References
    ----------
    .. [1] M. Sabokrou et al., "AVID: Adversarial Visual Irregularity Detection", ACCV 2018.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_g2d.datasets import make_puzzles
    >>> digits = load_digits()
    >>> puzzles, tile_is_irregular = make_puzzles(
    ...     digits.images, digits.target, 3, grid_shape=(4, 5), n_irregular=2, random_state=0
    ... )
    >>> puzzles.shape
    (100, 1, 32, 40)
    >>> tile_is_irregular[0].astype(int)
    array([[0, 0, 0, 0, 0],
           [0, 0, 0, 1, 0],
           [0, 0, 0, 0, 0],
           [0, 0, 0, 0, 1]])
    """
    tiles, is_irregular = _check_images(images, labels, irregular_label)
    rows, columns = _check_grid_shape(grid_shape)
    n_tiles = rows * columns
    if not isinstance(n_samples, Integral) or n_samples < 1:
        raise ValueError(f"n_samples must be an integer of at least 1, got {n_samples!r}.")
    if n_irregular is not None and (
        not isinstance(n_irregular, Integral) or not 0 <= n_irregular <= n_tiles
    ):
        raise ValueError(
            f"n_irregular must be None or an integer from 0 to {n_tiles}, the number of tiles of "
            f"a {rows} x {columns} grid, got {n_irregular!r}."
        )
    if n_irregular != 0 and not is_irregular.any():
        raise ValueError(
            f"No image has the label {irregular_label!r}. Puzzles without irregular tiles are "
            "made by n_irregular=0."
        )
    if n_irregular != n_tiles and is_irregular.all():
        raise ValueError(
            f"All images have the irregular label {irregular_label!r}; give regular ones too."
        )
    random_state = check_random_state(random_state)
    if n_irregular is None:
        drawn = random_state.randint(len(tiles), size=(n_samples, n_tiles))
    else:
        # Where every tile is irregular there may be no regular image to draw from.
        pool = np.flatnonzero(~is_irregular if n_irregular < n_tiles else is_irregular)
        drawn = random_state.choice(pool, (n_samples, n_tiles))
        if n_irregular:
            places = random_state.random_sample((n_samples, n_tiles)).argsort(axis=1)
            irregular = random_state.choice(np.flatnonzero(is_irregular), (n_samples, n_irregular))
            np.put_along_axis(drawn, places[:, :n_irregular], irregular, axis=1)
    drawn = drawn.reshape(n_samples, rows, columns)
    _, channels, height, width = tiles.shape
    puzzles = tiles[drawn].transpose(0, 3, 1, 4, 2, 5)
    return (
        puzzles.reshape(n_samples, channels, rows * height, columns * width),
        is_irregular[drawn],
    )


def _check_images(
    images: ArrayLike, labels: ArrayLike, irregular_label: Any
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    tiles = np.asarray(images)
    if tiles.ndim == 3:
        tiles = tiles[:, np.newaxis]
    if tiles.ndim != 4:
        raise ValueError(
            "images must have shape (n, height, width) or (n, channels, height, width), got "
            f"{tiles.shape}."
        )
    names = np.asarray(labels)
    if names.shape != (len(tiles),):
        raise ValueError(
            f"labels must have shape ({len(tiles)},), one for each image, got {names.shape}."
        )
    return tiles, np.asarray(names == irregular_label, dtype=bool)


def _check_grid_shape(grid_shape: Any) -> tuple[int, int]:
    sizes = tuple(grid_shape) if np.ndim(grid_shape) == 1 else ()
    if len(sizes) != 2 or not all(isinstance(size, Integral) and int(size) > 0 for size in sizes):
        raise ValueError(
            f"grid_shape must be two positive integers (rows, columns), got {grid_shape!r}."
        )
    return int(sizes[0]), int(sizes[1])


def load_ucsd(folder: str | PathLike[str], *, reduce: int = 1) -> Bunch:
    """Load UCSD Ped1 or Ped2 from the folders that its authors published.

    Training clips hold pedestrians only; in test clips everything else is anomalous [1]_. The
    layout is ``Train/Train001/001.tif``, ``Test/Test001/001.tif`` and, where the anomalous pixels
    are known, ``Test/Test001_gt/001.bmp``, of any number of clips. Images are read by OpenCV,
    which optical flow needs anyway: ``pip install 'sklearn_g2d[video]'``.

    Parameters
    ----------
    folder : str or path-like
        That of one of the two scenes, such as "UCSD_Anomaly_Dataset.v1p2/UCSDped2".
    reduce : int, default=1
        Factor by which height and width are reduced, by averaging.

    Returns
    -------
    Bunch
        ``train`` and ``test``, lists of clips (n_frames, 1, height, width) of bytes; ``masks``, of
        each test clip an array (n_frames, height, width), True where a pixel is anomalous, or
        None; ``train_names`` and ``test_names`` of the clips.

    Raises
    ------
    ImportError
        If OpenCV is not installed.
    ValueError
        If there are no clips, an image cannot be read or differs in size, a clip has other
        numbers of frames and masks, or `reduce` is not a positive integer.

    References
    ----------
    .. [1] V. Mahadevan, W. Li, V. Bhalodia, N. Vasconcelos, "Anomaly Detection in Crowded Scenes",
       CVPR 2010.

    Examples
    --------
    >>> from sklearn_g2d.datasets import load_ucsd
    >>> clips = load_ucsd("UCSD_Anomaly_Dataset.v1p2/UCSDped2", reduce=2)  # doctest: +SKIP
    >>> clips.train[0].shape  # doctest: +SKIP
    (120, 1, 120, 180)
    """
    if not isinstance(reduce, Integral) or reduce < 1:
        raise ValueError(f"reduce must be an integer of at least 1, got {reduce!r}.")
    clips: dict[str, list[NDArray[np.uint8]]] = {}
    names: dict[str, list[str]] = {}
    masks: list[NDArray[np.bool_] | None] = []
    for part in ("Train", "Test"):
        folders = [
            path
            for path in sorted(Path(folder, part).glob(f"{part}*"))
            if path.is_dir() and not path.name.endswith("_gt")
        ]
        if not folders:
            raise ValueError(
                f"{Path(folder, part)} holds no folders {part}001, {part}002, ... Pass the folder "
                'that holds "Train" and "Test", such as ".../UCSDped2".'
            )
        clips[part] = [_read_images(path, "*.tif", int(reduce))[:, np.newaxis] for path in folders]
        names[part] = [path.name for path in folders]
    for name, clip in zip(names["Test"], clips["Test"], strict=True):
        truth = Path(folder, "Test", f"{name}_gt")
        if not truth.is_dir():
            masks.append(None)
            continue
        mask = _read_images(truth, "*.bmp", int(reduce), binary=True) > 0
        if len(mask) != len(clip):
            raise ValueError(f"{truth} holds {len(mask)} masks for {len(clip)} frames.")
        masks.append(mask)
    return Bunch(
        train=clips["Train"],
        test=clips["Test"],
        masks=masks,
        train_names=names["Train"],
        test_names=names["Test"],
    )


def _read_images(
    folder: Path, pattern: str, reduce: int, *, binary: bool = False
) -> NDArray[np.uint8]:
    """Read the gray images of a folder, in the order of their names."""
    cv2 = import_opencv("Images of clips")
    # macOS leaves files such as ._001.tif behind.
    paths = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    if not paths:
        raise ValueError(f"{folder} holds no images {pattern}.")
    images: list[NDArray[np.uint8]] = []
    for path in paths:
        content = np.fromfile(path, dtype=np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE) if len(content) else None
        if image is None:
            raise ValueError(f"{path} is empty, damaged or no image. Unpack the data set again.")
        if binary:  # a pixel that is set in any part stays so when reduced
            image = np.where(image > 0, 255, 0).astype(np.uint8)
        if reduce > 1:
            height, width = (length // reduce for length in image.shape)
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"{path} has {image.shape[0]} x {image.shape[1]} pixels, but those before it "
                f"{images[0].shape[0]} x {images[0].shape[1]}."
            )
        images.append(image)
    return np.stack(images)
