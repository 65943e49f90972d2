"""Reading of photographs and other image files into one array."""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from itertools import chain
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".bmp", ".webp")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")

# Each thread holds one image in its full size, so that more threads need more memory.
_MOST_THREADS = 4

# Tags of TIFF; the sides are width and height.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_SIDES = 256, 257

# A tag of Exif, which says how the camera was turned.
_ORIENTATION = 274

Size = int | tuple[int, int] | None


def load_images(
    folder: str | PathLike[str] | Iterable[str | PathLike[str]],
    *,
    size: int | tuple[int, int] | None = None,
    channels: int = 3,
    memory_map: str | PathLike[str] | None = None,
) -> Bunch:
    """Load the images of a folder as an array that detectors take.

    PNG, JPEG, TIFF, BMP and WebP are read by Pillow: ``pip install 'sklearn_g2d[images]'``.

    Parameters
    ----------
    folder : str, path-like or iterable of these
        A folder: its images and those in its sub-folders are read, in the order of their paths.
        Hidden files and folders, links to folders, and files with another ending than .png, .jpg,
        .jpeg, .jfif, .tif, .tiff, .bmp or .webp are skipped. Or a list of files, which are read in
        the order of the list, with any ending.
    size : int or tuple of int, default=None
        A pair is the height and width to which all images are resized. One number is the length of
        the shorter side, and the proportions are kept. None keeps the size of the files.
    channels : {3, 1}, default=3
        3 gives red, green and blue, which are equal for gray files. 1 gives gray.
    memory_map : str or path-like, default=None
        Name of a file that ends in ".npy", for images that do not fit into memory together. They
        are written there one by one. An existing file is replaced after all images are written.

    Returns
    -------
    Bunch
        ``images``, an array of shape (n_images, channels, height, width): uint8, or uint16 if the
        files are gray with 16 bits per pixel; a read-only memory map if `memory_map` is given.
        ``paths``, a list of the files' ``pathlib.Path``, in the same order.

    Raises
    ------
    ImportError
        If Pillow is not installed.
    OSError
        If a file or folder, also one inside `folder`, does not exist, or cannot be opened or
        written.
    TypeError
        If `folder` is neither a path nor a list of paths.
    ValueError
        If a parameter is out of range, there are no images, or their sizes or numbers of bits
        differ. If an image is damaged, has several pages or more pixels than Pillow's limit, or
        its pixels are floats, signed integers, integers of 32 bits, or colours of 16 bits.

    Notes
    -----
    Photographs are turned by their Exif orientation. Transparent pixels are put on white.
    Resizing averages over all pixels (bicubic, antialiased). Large JPEG files are decoded at the
    smallest of the scales 1/8, 1/4 and 1/2 that still gives twice the size. Colour profiles are
    not applied. From a JPEG file with several pictures (MPO) the first picture is read.

    Examples
    --------
    >>> from sklearn_g2d.datasets import load_images
    >>> good = load_images("parts/good", size=256)  # doctest: +SKIP
    >>> good.images.shape  # doctest: +SKIP
    (480, 3, 256, 341)
    >>> detector.fit(good.images)  # doctest: +SKIP
    """
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Reading images needs Pillow, which is not installed. Install it by "
            "`pip install 'sklearn_g2d[images]'`."
        ) from error
    wanted = _check_size(size)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 3 (red, green, blue) or 1 (gray), got {channels!r}.")
    target = None if memory_map is None else _check_target(Path(memory_map))
    paths = find_images(folder)
    # Closing the generator stops its threads, also after an error.
    with closing(_read_all(paths, wanted, channels)) as images:
        first = next(images)
        shape = (len(paths), *first.shape)
        if target is not None:
            _write(target, shape, first.dtype, chain([first], images))
            return Bunch(images=np.load(target, mmap_mode="r"), paths=paths)
        together = np.empty(shape, first.dtype)
        for place, image in zip(together, chain([first], images), strict=True):
            place[:] = image
    return Bunch(images=together, paths=paths)


def _check_size(size: Any) -> Size:
    def is_length(value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0

    if size is None or is_length(size):
        return None if size is None else int(size)
    if np.ndim(size) == 1 and len(size) == 2 and all(map(is_length, size)):
        return int(size[0]), int(size[1])
    raise ValueError(
        "size must be a positive integer (the length of the shorter side), a pair of them (height, "
        f"width), or None; got {size!r}."
    )


def _check_target(path: Path) -> Path:
    if path.suffix != ".npy":
        raise ValueError(f'memory_map must be the name of a file that ends in ".npy", got {path}.')
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} for memory_map. Make it first.")
    # If the path is a link, replace the file behind it, not the link.
    return Path(os.path.realpath(path))


def find_images(folder: Any) -> list[Path]:
    # Returns the sorted paths of a folder's images, or the paths of a list.
    if not isinstance(folder, str | PathLike):
        try:
            paths = [Path(path) for path in folder]
        except TypeError:
            raise TypeError(
                "folder must be the path of a folder, or a list that holds only paths of images; "
                f"got {type(folder).__name__}."
            ) from None
        if not paths:
            raise ValueError("The list of images is empty. Give at least one path.")
        return paths
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"There is no folder {root}.")
    if not root.is_dir():
        raise ValueError(f"{root} is a file. Pass its folder, or a list of files.")
    return images_among(visible_files(root), root)


def images_among(files: list[Path], root: Path) -> list[Path]:
    # Returns the files of a folder that are images by their names.
    paths = [path for path in files if path.suffix.lower() in _SUFFIXES]
    if not paths:
        raise ValueError(
            f"{root} and its sub-folders hold no images. Images are files that end in "
            f"{', '.join(_SUFFIXES)}; hidden files are skipped."
            + (
                f" Files of other kinds: {len(files)} ({endings(files)}); save pictures as PNG."
                if files
                else ""
            )
        )
    return paths


def endings(files: list[Path]) -> str:
    # Returns a text with the kinds of files.
    return ", ".join(sorted({path.suffix or path.name for path in files}))


def visible_files(root: Path) -> list[Path]:
    # Returns the files in a folder and its sub-folders. By default `os.walk` skips a folder that
    # cannot be read; here that must be an error.
    def refuse(error: OSError) -> None:
        raise error

    paths: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(paths)


def _read_all(paths: list[Path], size: Size, channels: int) -> Generator[NDArray[Any], None, None]:
    """Yield images, and raise ValueError if their shapes or dtypes differ."""
    first: NDArray[Any] | None = None
    images = _in_threads(lambda path: _read(path, size, channels), paths)
    for path, image in zip(paths, images, strict=True):
        if first is None:
            first = image
        if image.dtype != first.dtype:
            raise ValueError(
                f"{paths[0]} has {8 * first.itemsize} bits per channel, but {path} has "
                f"{8 * image.itemsize}. Convert them to one kind, or load each kind separately."
            )
        if image.shape != first.shape:
            (_, height, width), (_, *other) = first.shape, image.shape
            resized = "" if size is None else f", resized by size={size}"
            keeps = "" if size is None else "; proportions are not kept then"
            raise ValueError(
                f"The images have unequal sizes (height x width{resized}): {paths[0]} has "
                f"{height} x {width} pixels, {path} {other[0]} x {other[1]}. To bring all to one "
                f"size, pass size=(height, width), such as size=({height}, {width}){keeps}."
            )
        yield image


def _in_threads(
    function: Callable[[Path], NDArray[Any]], paths: list[Path]
) -> Generator[NDArray[Any], None, None]:
    """Yield results in order, and compute only a few in advance, which saves memory."""
    n_threads = min(_MOST_THREADS, joblib.cpu_count())
    waiting: deque[Future[NDArray[Any]]] = deque()
    with ThreadPoolExecutor(n_threads) as threads:
        for path in paths:
            waiting.append(threads.submit(function, path))
            if len(waiting) > 2 * n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(path: Path, size: Size, channels: int) -> NDArray[Any]:
    """Read one image (channels, height, width), or raise ValueError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if path.is_dir():
        raise ValueError(f"{path} is a folder. Pass it alone, not in a list, or list its images.")
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} is a link to a file that does not exist. Leave it out.")
    # Reading a pipe or a device might never end.
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a pipe or a device, not a file. Leave it out.")
    content = path.read_bytes()
    problem: str | None
    try:
        with Image.open(BytesIO(content), formats=_FORMATS) as image:
            problem = _problem(image, content)
            if problem is None:
                # Pillow turns a TIFF image when it loads the pixels, and `draft` works for JPEG
                # only. Other images are decoded small first and turned afterwards.
                is_turned = image.format == "TIFF"
                if is_turned:
                    image.load()
                on_its_side = not is_turned and _is_on_its_side(image)
                target = _target(image.size[::-1] if on_its_side else image.size, size)
                if target is not None:
                    least = 2 * (size if isinstance(size, int) else max(target))
                    image.draft(None, (least, least))
                if not is_turned:
                    ImageOps.exif_transpose(image, in_place=True)
                return _as_array(image, target, channels)
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        problem = (
            "has more pixels than Pillow permits, because memory may not hold them. Cut it into "
            "smaller images or, if you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS"
        )
    except UnidentifiedImageError:
        problem = (
            f"is empty, damaged, or in none of the formats {', '.join(_FORMATS)}, although its "
            "name may say so. Convert it to PNG, or leave it out"
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        problem = (
            f"is damaged, cut short, or of a kind that Pillow does not read ({reason}). Copy it "
            "again, save it as PNG, or leave it out"
        )
    raise ValueError(f"{path} {problem}.")


def shown_size(path: Path) -> tuple[int, int]:
    # Returns the width and height of an image after turning it, from the header of its file.
    from PIL import Image

    with Image.open(path, formats=_FORMATS) as image:
        tags = getattr(image, "tag_v2", {})
        # For a TIFF, some versions of Pillow give the size before turning, and others after it.
        width, height = (
            tags.get(tag, length) for tag, length in zip(_SIDES, image.size, strict=True)
        )
        return (height, width) if _is_on_its_side(image) else (width, height)


def _is_on_its_side(image: Any) -> bool:
    return image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)


def _problem(image: Any, content: bytes) -> str | None:
    """Return why an image that Pillow can open is refused, by the header of its file, or None."""
    n_pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if n_pages > 1:
        return f"holds {n_pages} pages or frames. Save the one that you need as a separate file"
    tags = image.tag_v2 if image.format == "TIFF" else {}
    formats = tags.get(_SAMPLE_FORMAT, (1,))
    if 3 in formats or image.mode == "F":
        return (
            "holds floats, and it is not known which values mean black and white. Scale them to "
            "integers from 0 to 65535, and save these as a gray image of 16 bits; or read it by "
            "another package, such as tifffile: detectors take arrays of floats"
        )
    if 2 in formats or (tags and image.mode == "I"):
        return "holds signed integers, or integers of 32 bits. Save them as 8 or 16 bits, unsigned"
    # Pillow does not tell the bits of a PNG file; they are a byte of its header.
    bits = content[24] if image.format == "PNG" else max(tags.get(_BITS, (8,)))
    if bits > 8 and not image.mode.startswith("I"):
        return (
            f"has colours or transparency of {bits} bits, which Pillow would cut to 8. Save it "
            "with 8 bits per channel, or in gray with 16 bits and no transparency"
        )
    return None


def _target(shown: tuple[int, int], size: Size) -> tuple[int, int] | None:
    """Return the new width and height for an image, from its width and height after turning."""
    if not isinstance(size, int):
        return None if size is None else size[::-1]
    width, height = (max(1, round(length * size / min(shown))) for length in shown)
    return width, height


def _as_array(image: Any, target: tuple[int, int] | None, channels: int) -> NDArray[Any]:
    from PIL import Image

    def resized(image: Any) -> Any:
        if target is None:
            return image
        return image.resize(target, Image.Resampling.BICUBIC, reducing_gap=3.0)

    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.uint16)
        # In such a TIFF file 0 means white. Pillow inverts only images of 8 bits.
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
            pixels = np.iinfo(np.uint16).max - pixels
        # Pillow cannot resize images of 16 bits smoothly: convert them to floats.
        if target is not None:
            smooth = np.asarray(resized(Image.fromarray(pixels.astype(np.float32))))
            pixels = smooth.round().clip(0, np.iinfo(np.uint16).max).astype(np.uint16)
    else:
        if image.mode in _WITH_ALPHA or "transparency" in image.info:
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(image.convert("RGBA"))
            image = white
        pixels = np.asarray(resized(image.convert("L" if channels == 1 else "RGB")))
    if pixels.ndim == 3:
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return np.repeat(pixels[np.newaxis], channels, axis=0)


def _write(
    target: Path, shape: tuple[int, ...], dtype: np.dtype[Any], images: Iterable[NDArray[Any]]
) -> None:
    """Write a file of NumPy image by image; it gets its name after it is complete."""
    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            np.lib.format.write_array_header_1_0(file, head)
            for image in images:
                file.write(image.tobytes())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
