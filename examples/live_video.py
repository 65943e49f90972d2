"""Score a video file frame by frame, as a camera would deliver it, and write the map over it.

Train on a normal file, then watch another. Memory holds the frames that optical flow needs, never
the whole of the watched file.

    python examples/live_video.py normal.mp4 watched.mp4 marked.mp4

Without arguments it makes two small videos of its own and watches these.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from sklearn.pipeline import make_pipeline

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.video import (
    ClipDetector,
    ForegroundMotion,
    FramePatches,
    PatchMotion,
    read_frames,
    stream_channels,
)

MAX_TRAINING_FRAMES = 1000


def make_detector(patch_size: int, stride: int) -> ClipDetector:
    """Judge patches by the speed of their foreground, averaged over nine frames."""
    return ClipDetector(
        make_pipeline(PatchMotion(), G2DOutlierDetector(random_state=0)),
        channels=ForegroundMotion(),
        patch_size=patch_size,
        overlap=patch_size - stride,
        min_foreground=0.02,
        max_patches=10_000,
        n_smoothed=9,
        n_worst=30,
        random_state=0,
    )


def marked(frame: np.ndarray, anomaly: np.ndarray, low: float, high: float) -> np.ndarray:
    """Redden a gray frame where it is anomalous: (height, width, 3)."""
    strength = np.clip((anomaly - low) / (high - low), 0, 1)
    picture = np.repeat(frame[0, :, :, np.newaxis].astype(float), 3, axis=2)
    picture[:, :, 0] += (255 - picture[:, :, 0]) * strength
    picture[:, :, 1:] *= 1 - strength[:, :, np.newaxis]
    return picture.astype(np.uint8)


def write_video(path: Path, frames: Iterable[np.ndarray], rate: int = 10) -> None:
    """Write frames (height, width, 3) as they come."""
    with av.open(str(path), "w") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("mpeg4", rate=Fraction(rate), bit_rate=4_000_000)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        if stream is not None:
            container.mux(stream.encode())


def watch(detector: ClipDetector, path: Path) -> Iterator[np.ndarray]:
    """Give each frame with its map laid over, and report alarms."""
    last: list[np.ndarray] = []

    def remembered() -> Iterator[np.ndarray]:
        for frame in read_frames(path):
            last.append(frame)
            yield frame

    low, high = detector.offset_ * -1, detector.map_range_[1] * 2
    start, n_alarms, n_frames = time.perf_counter(), 0, 0
    for score, anomaly in detector.stream(remembered()):
        n_frames += 1
        n_alarms += score < detector.offset_
        yield marked(last.pop(0), anomaly, low, max(high, low + 1e-9))
    seconds = time.perf_counter() - start
    print(
        f"{n_frames} frames, {n_alarms} alarms, {n_frames / seconds:.0f} frames per second in all"
    )


def measure(detector: ClipDetector, path: Path, n_frames: int = 100) -> None:
    """Print how many frames per second each stage takes by itself."""
    frames = list(islice(read_frames(path), n_frames))
    motion = detector.channels_

    def rate(what: str, run) -> None:
        start = time.perf_counter()
        run()
        print(f"{what:<34} {len(frames) / (time.perf_counter() - start):6.0f} frames per second")

    channels: list[np.ndarray] = []
    rate("optical flow", lambda: list(stream_channels(motion.flow_, frames)))
    rate("flow and foreground", lambda: channels.extend(stream_channels(motion, frames)))
    cut: FramePatches = detector.patches_
    rate("cutting all patches", lambda: [cut.transform(one) for one in channels])
    rate("everything, with pooling and maps", lambda: list(detector.stream(frames)))


def synthetic(n_frames: int, speeds: list[float], seed: int) -> Iterator[np.ndarray]:
    """Make dark figures that walk over a lit ground: frames (240, 360, 3)."""
    rng = np.random.default_rng(seed)
    ground = np.random.default_rng(0).normal(150, 4, size=(240, 360))
    rows = rng.integers(40, 190, size=len(speeds))
    starts = rng.uniform(0, 360, size=len(speeds))
    textures = rng.integers(20, 110, size=(len(speeds), 9, 4)).repeat(4, axis=1).repeat(4, axis=2)
    for t in range(n_frames):
        frame = ground + rng.normal(0, 1, size=ground.shape)
        for row, start, speed, texture in zip(rows, starts, speeds, textures, strict=True):
            if speed > 2 and t < n_frames // 2:
                continue  # the runner comes late
            columns = (int(start + speed * t) + np.arange(16)) % 360
            frame[row : row + 36, columns] = texture
        yield np.repeat(frame.clip(0, 255).astype(np.uint8)[:, :, np.newaxis], 3, axis=2)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="normal watched marked")
    parser.add_argument("--patch-size", type=int, default=40, help="pixels, about a person's width")
    parser.add_argument("--stride", type=int, default=10, help="pixels between patches")
    args = parser.parse_args()
    if len(args.files) not in (0, 3):
        parser.error("give three files, or none")
    with tempfile.TemporaryDirectory() as folder:
        if args.files:
            normal, watched, output = args.files
        else:
            normal, watched = Path(folder, "normal.mp4"), Path(folder, "watched.mp4")
            output = Path("marked.mp4")
            write_video(normal, synthetic(150, [1.0, 1.2, 1.5, -1.1, -1.4], seed=1))
            write_video(watched, synthetic(100, [1.0, 1.3, -1.2, 4.0], seed=2))
        clip = list(islice(read_frames(normal), MAX_TRAINING_FRAMES))
        detector = make_detector(args.patch_size, args.stride).fit(np.stack(clip))
        measure(detector, watched)
        write_video(output, watch(detector, watched))
        print(f"{output} shows where")


if __name__ == "__main__":
    main()
