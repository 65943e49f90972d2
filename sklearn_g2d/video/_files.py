"""Reading of video files: frames as a player shows them, without corrupt frames."""

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

# Names of formats in FFmpeg. A file in one of these formats cannot make it open another file;
# a playlist, for example, can.
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
    refused. Frames are turned and mirrored as in a player. Frames that a player does not show,
    because the file was trimmed by an edit list, are left out.

    Parameters
    ----------
    path : str or path-like
        File on this machine, with any name: MP4 or MOV, Matroska or WebM, AVI, MPEG transport or
        program stream, FLV, Ogg, ASF or WMV, MXF, NUT, IVF, DV, DAV, GIF, Y4M, or a bare stream of
        H.264, HEVC, MPEG or MJPEG. A named pipe is read while it is written.
    gray : bool, default=True
        Whether to convert frames to gray. Otherwise they are red, green and blue.
    size : tuple of int, default=None
        Height and width of the resized frames. The picture is distorted if they do not have the
        proportions of the file. None keeps the size.

    Returns
    -------
    iterator of ndarray of shape (channels, height, width)
        Frames of bytes. ``np.stack(list(read_frames(path)))`` is a clip.

    Raises
    ------
    TypeError, ValueError
        If `path` is no path, or `size` is not two positive integers. They are raised by the call
        itself.
    ImportError
        If PyAV is not installed. This error and those below are raised with the first frame.
    FileNotFoundError
        If there is no such file.
    VideoFileError
        If the file is empty, damaged, cut short or no video, or its frames change in size.
        Frames that were read before the damage stay valid.

    Warns
    -----
    UserWarning
        Once after the last frame, if frames were left out because the camera dropped them (AVI),
        they are marked as corrupt, or they depend on missing frames. The warning gives their
        number, as far as it can be found out.

    See Also
    --------
    ClipDetector.stream : Scores frames while they are read.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.video import read_frames
    >>> clip = np.stack(list(read_frames("camera.mp4", size=(240, 360))))  # doctest: +SKIP
    """
    if not isinstance(path, str | bytes | PathLike):
        raise TypeError(
            f"path must be the name of a video file, got {type(path).__name__}. Cameras are not "
            "opened: pass frames of OpenCV's VideoCapture, as RGB arrays (channels, height, width),"
            " to the method stream of a detector."
        )
    if size is not None and not (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(isinstance(n, Integral) and n > 0 for n in size)
    ):
        raise ValueError(f"size must be two positive integers, height and width, got {size!r}.")
    return FramesOfFile(_read(path, gray, size))


class FramesOfFile(Iterator[NDArray[np.uint8]]):
    """Iterator of frames that also holds the time of the last frame, in seconds of the video.

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
        """Close the file."""
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
    # Open the file here: FFmpeg would take a name with a colon for an address.
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
                # FFmpeg resizes before the frame is turned: exchange height and width.
                height, width = (size or shown)[::-1] if turned else (size or shown)
                image = frame.reformat(width, height, "gray" if gray else "rgb24").to_ndarray()
                if (turned, down, right) != _AS_STORED:
                    image = image.swapaxes(0, 1) if turned else image
                    image = np.ascontiguousarray(image[::down, ::right])
                # Some files have no times: count frames then.
                seconds = n_read / (stream.average_rate or 25)
                if frame.pts is not None:
                    seconds = frame.pts * stream.time_base
                yield image[None] if gray else np.moveaxis(image, -1, 0), float(seconds)
                n_read += 1
            # Some containers say how many frames they hold, others only how many bytes.
            n_missing, n_fewer = decoder.n_missing, stream.frames - decoder.n_packets
            kind, whole = container.format.name, _is_whole(file, container.format.name)
            if not n_read:
                raise VideoFileError(_damaged(path, 0, "no frame of it can be decoded"))
            if decoder.ends_early or (whole is False and kind == "matroska,webm"):
                raise VideoFileError(_damaged(path, n_read, "it ends too early"))
            if n_fewer > 0 and not whole:
                what = f"it should have {stream.frames} frames"
                raise VideoFileError(_damaged(path, n_read, what))
            # In a complete AVI file the camera has dropped these frames. In a complete MP4 file an
            # edit list hides them.
            if n_fewer > 0 and kind == "avi":
                n_missing += n_fewer
    except (av.error.FFmpegError, OSError) as error:
        what = "it is in none of the formats that are read, or damaged; lists of files are refused"
        what = what if decoder is None else str(error.strerror)
        raise VideoFileError(_damaged(path, n_read, what)) from error
    if n_missing:
        warnings.warn(
            f"{path}: frames are missing. {n_missing} frames were dropped by the camera, are "
            f"damaged, or depend on such frames; {n_read} were read. Motion jumps at these places.",
            stacklevel=3,
        )


class _Decoder:
    """Yields the frames of a stream that are not corrupt, and counts the others.

    A gap starts with a corrupt packet, or at the start of a file that does not begin with a key
    frame. All frames up to the next key frame depend on the missing data, and are left out.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self.container, self.stream = container, stream
        self.n_packets = 0
        self.ends_early = False
        self._n_left_out = 0
        # Times of packets since a key frame, kept until the decoder gives the first frame.
        self._expected: list[int] = []
        # Times of packets that could not be decoded. Their frames may still come later.
        self._failed: set[int | None] = set()
        self._has_begun = False

    @property
    def n_missing(self) -> int:
        """Number of frames that were left out."""
        return self._n_left_out + len(self._failed)

    def frames(self) -> Iterator[Any]:
        """Decode all packets."""
        from av.error import FFmpegError

        context = self.stream.codec_context
        # By default FFmpeg fills damaged parts of a frame by guesses. A detector would score these.
        context.options = {"err_detect": "crccheck+explode"}
        # In a transport stream single packets can be lost. In other formats a missing packet means
        # that the file was cut off.
        is_lossy = self.container.format.name == "mpegts"
        has_key = in_gap = marked = False
        for packet in self.container.demux(self.stream):
            # The last packet is empty: the decoder then gives the frames that it still holds.
            if packet.size:
                self.n_packets += 1
                # FFmpeg may mark the packet before the corrupt one, too.
                is_corrupt, marked = packet.is_corrupt or marked, packet.is_corrupt
                if is_corrupt and has_key:
                    yield from self._undamaged(context.decode(None))
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
                yield from self._undamaged(frames)

    def _undamaged(self, frames: list[Any]) -> Iterator[Any]:
        for frame in frames:
            self._failed.discard(frame.pts)
            if frame.is_corrupt:
                self._n_left_out += 1
                continue
            if not self._has_begun and frame.pts is not None:
                # Earlier packets depend on frames in the gap: the decoder has dropped their frames.
                lost = {time for time in self._expected if time < frame.pts}
                self._n_left_out += len(lost)
                self._failed -= lost
            self._has_begun = True
            yield frame


_AS_STORED = False, 1, 1


def _orientation(frame: Any) -> tuple[bool, int, int]:
    """Return whether rows and columns are exchanged, and the steps along both axes, 1 or -1."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return _AS_STORED
    # A point (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
    turned = abs(b) > abs(a)
    down, right = (b, c) if turned else (d, a)
    return turned, -1 if down < 0 else 1, -1 if right < 0 else 1


def _is_whole(file: FileIO, kind: str) -> bool | None:
    """Return whether all parts of a container end inside the file; None if this is unknown."""
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
    # The number of leading zero bits gives the length of a number in bytes. If all other bits are
    # ones, the length of the part is unknown.
    n_bytes = 9 - head[4].bit_length()
    unknown = (1 << 7 * n_bytes) - 1
    length = int.from_bytes(head[4 : 4 + n_bytes]) & unknown
    return None if length == unknown else 4 + n_bytes + length


# For each format of FFmpeg, a function from the first 16 bytes of a part to its length in bytes, or
# None if it is unknown.
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
            f"Nothing of {path} can be read: {what}. The file is damaged, cut short or no video. "
            "Export it again."
        )
    return (
        f"{path} cannot be read beyond {n_read} frames: {what}. The file is damaged or cut "
        "short. Export it again, or use the frames read so far."
    )
