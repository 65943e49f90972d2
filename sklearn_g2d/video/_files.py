"""Frames of video files, as a player shows them, without those that are missing or corrupt."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from io import FileIO
from numbers import Integral
from os import SEEK_END, PathLike, fspath
from os.path import getsize, isdir, isfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_g2d.errors import VideoFileError

# FFmpeg's names. None of these formats makes it open another file; playlists and the like do.
_FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,mxf,nut,ivf,dv,dhav,gif,yuv4mpegpipe,"
    "h264,hevc,m4v,mpegvideo,mjpeg,jpeg_pipe"
)
_ONLY_THIS_FILE = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}


def read_frames(
    path: str | PathLike[str], *, gray: bool = True, size: tuple[int, int] | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Read a video file frame by frame, by PyAV.

    No other file and no address is opened: playlists, and other files that name files, are
    refused. Frames are turned and mirrored as the file says, as a player does. Frames that a
    player does not show, because the file was trimmed by an edit list, are left out.

    Parameters
    ----------
    path : str or path-like
        File on this machine: MP4 or MOV, Matroska or WebM, AVI, MPEG transport or program stream,
        FLV, Ogg, ASF or WMV, MXF, NUT, IVF, DV, DAV, GIF, Y4M, or a bare stream of H.264, HEVC,
        MPEG or MJPEG, however it is named. A named pipe is read as it is written.
    gray : bool, default=True
        Whether frames are made gray, instead of red, green and blue.
    size : tuple of int, default=None
        Height and width to resize frames to; the shape of the picture is kept only if they have
        the proportion of the file's.

    Returns
    -------
    iterator of ndarray of shape (channels, height, width)
        Bytes. ``np.stack(list(read_frames(path)))`` is a clip.

    Raises
    ------
    ValueError
        If `size` is not two positive integers; raised at once.
    ImportError
        If PyAV is not installed. Like the errors below, it is raised with the first frame.
    FileNotFoundError
        If there is no such file.
    VideoFileError
        If the file is empty, damaged, cut short or no video, or its frames change in size.
        Frames before the damage were given, and stay valid.

    Warns
    -----
    UserWarning
        After the last frame, once, if frames were left out: dropped by the camera (AVI), marked as
        corrupt, or made from others that are missing. It says how many, as far as the file tells.

    See Also
    --------
    ClipDetector.stream : Scores frames as they are read.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.video import read_frames
    >>> clip = np.stack(list(read_frames("camera.mp4", size=(240, 360))))  # doctest: +SKIP
    """
    if size is not None and not (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(isinstance(n, Integral) and n > 0 for n in size)
    ):
        raise ValueError(f"size must be two positive integers, height and width, got {size!r}.")
    return FramesOfFile(_read(path, gray, size))


class FramesOfFile(Iterator[NDArray[np.uint8]]):
    """Frames, and the time of the one last given, in seconds of the video.

    Parameters
    ----------
    timed_frames : generator of tuple of ndarray and float
        Frames and their times.
    """

    def __init__(self, timed_frames: Generator[tuple[NDArray[np.uint8], float]]) -> None:
        self._timed_frames = timed_frames
        self.seconds = 0.0

    def __next__(self) -> NDArray[np.uint8]:
        frame, self.seconds = next(self._timed_frames)
        return frame

    def close(self) -> None:
        """Give the file back."""
        self._timed_frames.close()


def _read(
    path: str | PathLike[str], gray: bool, size: tuple[int, int] | None
) -> Generator[tuple[NDArray[np.uint8], float]]:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "Reading video files needs PyAV, which is not installed. Install it by "
            "`pip install 'sklearn_g2d[video]'`."
        ) from error
    if isdir(path):
        raise VideoFileError(f"{path} is a folder. Pass the name of a video file.")
    n_read, first_size, decoder = 0, None, None
    # Opened here, a name with a colon is no address.
    try:
        file = FileIO(fspath(path))
    except FileNotFoundError:
        hint = " Addresses are not opened." if "://" in str(path) else ""
        raise FileNotFoundError(f"There is no file {path}.{hint}") from None
    try:
        with file, av.open(file, "r", container_options=_ONLY_THIS_FILE) as container:
            if not container.streams.video:
                raise VideoFileError(f"{path} holds no video. Pass a file with a video stream.")
            stream = container.streams.video[0]
            decoder = _Decoder(container, stream)
            for frame in decoder.frames():
                turned, down, right = _orientation(frame)
                shown = (frame.width, frame.height) if turned else (frame.height, frame.width)
                first_size = first_size or shown
                if shown != first_size:
                    raise VideoFileError(
                        f"{path}: frames change from {first_size[0]} x {first_size[1]} pixels to "
                        f"{shown[0]} x {shown[1]} at number {n_read}. Cut the file there, "
                        "or convert it to one size."
                    )
                height, width = (size or shown)[::-1] if turned else (size or shown)
                image = frame.reformat(width, height, "gray" if gray else "rgb24").to_ndarray()
                if (turned, down, right) != _AS_STORED:
                    image = image.swapaxes(0, 1) if turned else image
                    image = np.ascontiguousarray(image[::down, ::right])
                seconds = n_read / (stream.average_rate or 25)
                if frame.pts is not None:
                    seconds = frame.pts * stream.time_base
                yield image[None] if gray else np.moveaxis(image, -1, 0), float(seconds)
                n_read += 1
            n_missing, n_fewer = decoder.n_missing, stream.frames - decoder.n_packets
            kind, whole = container.format.name, _is_whole(file, container.format.name)
            if not n_read:
                raise VideoFileError(_damaged(path, 0, "no frame of it can be decoded"))
            if decoder.ends_early or (whole is False and kind == "matroska,webm"):
                raise VideoFileError(_damaged(path, n_read, "it ends too early"))
            if n_fewer > 0 and not whole:
                what = f"{stream.frames} frames were promised"
                raise VideoFileError(_damaged(path, n_read, what))
            if n_fewer > 0 and kind == "avi":  # those of MP4 are hidden by an edit list
                n_missing += n_fewer
    except (av.error.FFmpegError, OSError) as error:
        what = "it is in none of the formats that are read, or damaged; lists of files are refused"
        what = what if decoder is None else str(error.strerror)
        raise VideoFileError(_damaged(path, n_read, what)) from error
    if n_missing:
        warnings.warn(
            f"{path}: frames are missing. {n_missing} were dropped by the camera, are damaged, or "
            f"were made from such ones; {n_read} were read. Motion jumps where they are missing.",
            stacklevel=3,
        )


class _Decoder:
    """Gives the frames of a stream that are sound, and counts the others.

    A gap begins with a corrupt packet, or with a file that begins between key frames. What follows
    depends on what is missing, up to the next key frame.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self.container, self.stream = container, stream
        self.n_packets = 0
        self.ends_early = False
        self._n_left_out = 0
        # Times of packets since a key frame, until the first frame has come.
        self._expected: list[int] = []
        # Times of those that could not be decoded, but whose frames may come all the same.
        self._failed: set[int | None] = set()
        self._has_begun = False

    @property
    def n_missing(self) -> int:
        """Number of frames that were not given."""
        return self._n_left_out + len(self._failed)

    def frames(self) -> Iterator[Any]:
        """Decode all packets."""
        from av.error import FFmpegError

        context = self.stream.codec_context
        # Else FFmpeg conceals damage by what it guesses, which is then scored.
        context.options = {"err_detect": "crccheck+explode"}
        # Only in a transport stream packets are lost; elsewhere the file is cut off.
        is_lossy = self.container.format.name == "mpegts"
        has_key = in_gap = marked = False
        for packet in self.container.demux(self.stream):
            if packet.size:  # else it is the end, where the decoder gives what it holds back
                self.n_packets += 1
                # FFmpeg may mark the packet before the one that is corrupt.
                is_corrupt, marked = packet.is_corrupt or marked, packet.is_corrupt
                if is_corrupt and has_key:
                    yield from self._sound(context.decode(None))
                    context.flush_buffers()
                    has_key = self._has_begun = False
                    self._expected.clear()
                has_key = has_key or (packet.is_keyframe and not is_corrupt)
                self.ends_early = is_corrupt or not (has_key or is_lossy)
                if not has_key:
                    in_gap = True
                    self._n_left_out += not packet.is_discard
                    continue
                if not (self._has_begun or packet.is_discard or packet.pts is None):
                    self._expected.append(packet.pts)
            try:
                frames = packet.decode()
            except FFmpegError:
                if self._has_begun or not in_gap or not packet.size:
                    raise
                self._failed.add(packet.pts)
                if packet.is_keyframe:
                    has_key = False
                    context.flush_buffers()
                    self._expected.clear()
            else:
                yield from self._sound(frames)

    def _sound(self, frames: list[Any]) -> Iterator[Any]:
        for frame in frames:
            self._failed.discard(frame.pts)
            if frame.is_corrupt:
                self._n_left_out += 1
                continue
            if not self._has_begun and frame.pts is not None:
                # Those before were made from frames in the gap, and will not come.
                lost = {time for time in self._expected if time < frame.pts}
                self._n_left_out += len(lost)
                self._failed -= lost
            self._has_begun = True
            yield frame


_AS_STORED = False, 1, 1


def _orientation(frame: Any) -> tuple[bool, int, int]:
    """Say whether rows and columns are exchanged, and then the steps along both, 1 or -1."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return _AS_STORED
    # A point (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
    turned = abs(b) > abs(a)
    down, right = (b, c) if turned else (d, a)
    return turned, -1 if down < 0 else 1, -1 if right < 0 else 1


def _is_whole(file: FileIO, kind: str) -> bool | None:
    """Whether the parts that a container is made of end within the file; None if it is unknown."""
    if not file.seekable() or kind not in _LENGTHS:
        return None
    end, position = file.seek(0, SEEK_END), 0
    while position < end:
        file.seek(position)
        length = _LENGTHS[kind](file.read(16))
        if length is None:
            return None
        position += length
    return position <= end


def _length_in_avi(head: bytes) -> int | None:
    return 8 + int.from_bytes(head[4:8], "little") if head[:4] == b"RIFF" else None


def _length_in_mp4(head: bytes) -> int | None:
    length = int.from_bytes(head[:4])
    if length == 1:
        length = int.from_bytes(head[8:])
    return length if length >= 8 else None


def _length_in_matroska(head: bytes) -> int | None:
    if head[:4] not in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67") or len(head) < 12:
        return None
    # The zero bits in front of a number tell of how many bytes it is; all ones mean unknown.
    n_bytes = 9 - head[4].bit_length()
    unknown = (1 << 7 * n_bytes) - 1
    length = int.from_bytes(head[4 : 4 + n_bytes]) & unknown
    return None if length == unknown else 4 + n_bytes + length


# By FFmpeg's names: the length of a part in bytes, from its first 16; None if it is unknown.
_LENGTHS = {
    "avi": _length_in_avi,
    "mov,mp4,m4a,3gp,3g2,mj2": _length_in_mp4,
    "matroska,webm": _length_in_matroska,
}


def _damaged(path: str | PathLike[str], n_read: int, what: str) -> str:
    if isfile(path) and not getsize(path):
        return f"{path} is an empty file. Export it again."
    if not n_read:
        return (
            f"Nothing of {path} can be read: {what}. The file is damaged, cut short or no video; "
            "export it again."
        )
    return (
        f"{path} cannot be read beyond {n_read} frames: {what}. The file is damaged or cut "
        "short; export it again, or use the frames read so far."
    )
