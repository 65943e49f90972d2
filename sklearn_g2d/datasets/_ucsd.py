"""Reading of the video clips of UCSD from their folders."""

from __future__ import annotations

from numbers import Integral
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from sklearn_g2d.utils.opencv import import_opencv


def load_ucsd(folder: str | PathLike[str], *, reduce: int = 1) -> Bunch:
    """Load UCSD Ped1 or Ped2 from the folders that its authors published.

    Training clips show pedestrians only. In test clips everything else is anomalous [1]_. The
    layout is ``Train/Train001/001.tif``, ``Test/Test001/001.tif`` and, if the anomalous pixels
    are known, ``Test/Test001_gt/001.bmp``, with any number of clips. OpenCV reads the images:
    ``pip install 'sklearn_g2d[video]'``.

    Parameters
    ----------
    folder : str or path-like
        The folder of one of the two scenes, such as "UCSD_Anomaly_Dataset.v1p2/UCSDped2".
    reduce : int, default=1
        Factor by which height and width are reduced, by averaging.

    Returns
    -------
    Bunch
        ``train`` and ``test``, lists of clips (n_frames, 1, height, width) of bytes; ``masks``, for
        each test clip an array (n_frames, height, width), True where a pixel is anomalous, or
        None; ``train_names`` and ``test_names``, the names of the clips.

    Raises
    ------
    ImportError
        If OpenCV is not installed.
    ValueError
        If there are no clips, an image cannot be read or has another size, the numbers of a clip's
        frames and masks differ, or `reduce` is not a positive integer.

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
    data = Bunch(masks=[])
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
        name = part.lower()
        data[name] = [_read_images(path, "*.tif", int(reduce))[:, np.newaxis] for path in folders]
        data[f"{name}_names"] = [path.name for path in folders]
    for name, clip in zip(data.test_names, data.test, strict=True):
        truth, mask = Path(folder, "Test", f"{name}_gt"), None
        if truth.is_dir():
            mask = _read_images(truth, "*.bmp", int(reduce), binary=True) > 0
            if len(mask) != len(clip):
                raise ValueError(f"{truth} holds {len(mask)} masks for {len(clip)} frames.")
        data.masks.append(mask)
    return data


def _read_images(
    folder: Path, pattern: str, reduce: int, *, binary: bool = False
) -> NDArray[np.uint8]:
    """Read the gray images of a folder, in the order of their names."""
    cv2 = import_opencv("Images of clips")
    # macOS adds hidden files such as ._001.tif to folders.
    paths = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    if not paths:
        raise ValueError(f"{folder} holds no images {pattern}.")
    images: list[NDArray[np.uint8]] = []
    for path in paths:
        # On Windows `cv2.imread` fails for paths with letters such as é: read the file here.
        content = np.fromfile(path, dtype=np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE) if len(content) else None
        if image is None:
            raise ValueError(f"{path} is empty, damaged or no image. Unpack the data set again.")
        # A reduced pixel of a mask must be set if any of its parts is set.
        if binary:
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
