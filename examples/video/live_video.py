"""Watch the video of a fixed camera, and mark what moves or looks unlike anything before.

Learn from a normal file, watch another frame by frame as a camera would deliver it, and write it
with the map of anomaly over it, and with boxes around what is anomalous in anomalous frames.

    python examples/video/live_video.py normal.mp4 watched.mp4 marked.mp4 --csv frames.csv

Both files must show the same place at the same frame rate. The table names the object to blame of
frames that are flagged; their cells are empty if what caused the alarm has just gone.

Without files it makes two small videos of its own, of walkers, and then of a runner and a cart, and
writes live_video_demo.mp4.

Needs ``pip install 'sklearn_g2d[video,pretrained]'``.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np

from sklearn_g2d.video import (
    FixedCameraDetector,
    FrameVerdict,
    MovingObject,
    for_fixed_camera,
    read_frames,
)

MAX_TRAINING_FRAMES = 3000  # memory holds all of them

ENDINGS = (".mp4", ".mov", ".mkv", ".avi")

# Red, green and blue of boxes; these two differ for colour-blind readers, too.
COLORS = {"speed": (255, 176, 0), "looks": (120, 200, 255)}


def frame_rate_of(path: Path) -> Fraction:
    """Read frames per second from the file."""
    with av.open(str(path)) as container:
        return container.streams.video[0].average_rate or Fraction(25)


def size_of(path: Path, shorter_side: int) -> tuple[int, int]:
    """Give the height and width of frames, less if their shorter side has more pixels."""
    height, width = next(read_frames(path)).shape[1:]
    scale = min(1, shorter_side / min(height, width))
    # Encoders want even numbers.
    return 2 * round(scale * height / 2), 2 * round(scale * width / 2)


def kind_of(thing: MovingObject) -> str:
    """Say what is more unusual of an object."""
    return "speed" if thing.speed > thing.looks else "looks"


def marked(frame: np.ndarray, verdict: FrameVerdict, detector: FixedCameraDetector) -> np.ndarray:
    """Lay the map over a frame where it is beyond the threshold, and draw boxes: (h, w, 3)."""
    threshold = -detector.offset_
    highest = max(2 * threshold, detector.map_range_[1])
    strength = np.clip((verdict.anomaly_map - threshold) / (highest - threshold), 0, 1)
    colors = cv2.applyColorMap((255 * strength).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[:, :, ::-1]
    opacity = np.where(strength > 0, 0.2 + 0.4 * strength, 0)[:, :, np.newaxis]
    picture = ((1 - opacity) * frame.transpose(1, 2, 0) + opacity * colors).astype(np.uint8)
    for thing in verdict.objects:
        if thing.is_anomalous and verdict.score < detector.offset_:
            kind, (top, left, bottom, right) = kind_of(thing), thing.box
            cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), COLORS[kind], 2)
            x, y = min(left, picture.shape[1] - 46), top - 5 if top > 16 else bottom + 13
            cv2.rectangle(picture, (x - 1, y - 12), (x + 45, y + 4), (0, 0, 0), cv2.FILLED)
            cv2.putText(picture, kind, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, COLORS[kind], 1)
    return picture


def write_video(path: Path, frames: Iterable[np.ndarray], rate: Fraction) -> None:
    """Write frames (height, width, 3) as they come."""
    with av.open(str(path), "w") as container:
        stream = None
        for frame in frames:
            if stream is None:
                # MPEG-4 cannot store all fractions.
                rate = rate.limit_denominator(100)
                stream = container.add_stream("mpeg4", rate=rate, bit_rate=4_000_000)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        if stream is not None:
            container.mux(stream.encode())


def watch(
    detector: FixedCameraDetector, frames: Callable[[], Iterator[np.ndarray]], table: Path
) -> Iterator[np.ndarray]:
    """Give marked frames as they are judged, count them aloud, and write a row of each.

    In the table, kind and box are those of the object to blame in a flagged frame, else empty.
    """
    # Only frames straight from `read_frames` have the times by which a frozen camera is noticed,
    # so that those to be drawn on are read once more.
    arriving, shown = frames(), frames()
    start, n_alarms = time.perf_counter(), 0
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", "verdict", "score", "kind", "top", "left", "bottom", "right"])
        for number, verdict in enumerate(detector.stream(arriving)):
            label = 1 if verdict.score >= detector.offset_ else -1
            row = [number, label, f"{verdict.score:.4f}"]
            thing = next(iter(verdict.objects), None)  # the most anomalous one
            to_blame = label == -1 and thing is not None and thing.is_anomalous
            writer.writerow(row + ([kind_of(thing), *thing.box] if to_blame else [""] * 5))
            yield marked(next(shown), verdict, detector)
            n_alarms += label == -1
            rate = (number + 1) / (time.perf_counter() - start)
            told = f"{number + 1} frames, {n_alarms} anomalous, {rate:.0f} frames per second"
            print(f"\r{told}", end="", flush=True)
    print()


def synthetic(n_frames: int, seed: int, *, strange: bool = False) -> Iterator[np.ndarray]:
    """Make people who walk over a lit ground, later a runner and a cart: frames (180, 320, 3)."""
    rng = np.random.default_rng(seed)
    ground = np.random.default_rng(0).normal(150, 4, size=(180, 320, 1))
    things = []  # first frame, row, pixels per frame, picture
    for row in (12, 52, 92, 132):
        person = rng.integers(20, 120, size=(9, 4, 3)).repeat(4, axis=0).repeat(3, axis=1)
        things.append((0, row, rng.choice([-2.5, 2.5]), person))
    if strange:
        things[1] = n_frames // 4, 52, 9, person
        cart = np.full((32, 44, 3), (200, 60, 40))
        cart[6:16, 6:38], cart[26:, 4:12], cart[26:, 32:40] = 230, 20, 20
        things[3] = n_frames // 2, 136, 2.5, cart
    for t in range(n_frames):
        frame = ground + rng.normal(0, 2, size=(180, 320, 3))
        for first, row, speed, picture in things:
            if t >= first:
                height, width = picture.shape[:2]
                # Nobody walks evenly.
                left = int(speed * (t - first) + 3 * np.sin(t / 3 + row))
                frame[row : row + height, (left + np.arange(width)) % 320] = picture
        yield frame.clip(0, 255).astype(np.uint8)


def fraction(text: str) -> Fraction:
    """Read a number such as 25, 29.97 or 30000/1001."""
    try:
        return Fraction(text)
    except ZeroDivisionError:
        raise argparse.ArgumentTypeError(f"{text!r} divides by zero") from None


def check(parser: argparse.ArgumentParser, args: argparse.Namespace, inputs: list[Path]) -> None:
    """Stop before anything is read or written, if an argument is wrong."""
    for path in inputs:
        if not path.is_file():
            parser.error(f"there is no file {path}")
    outputs = [args.output, args.csv]
    for number, path in enumerate(outputs):
        for other in inputs + outputs[:number]:
            both_exist = path.exists() and other.exists()
            if path.resolve() == other.resolve() or (both_exist and path.samefile(other)):
                parser.error(f"{path} would replace {other}: give it another name")
        if not path.parent.is_dir():
            parser.error(f"there is no folder {path.parent}")
    if args.output.suffix.lower() not in ENDINGS:
        parser.error(f"the name of the marked video must end in one of {', '.join(ENDINGS)}")
    if args.size < 8:
        parser.error("--size must be at least 8")
    if args.frame_rate is not None and args.frame_rate <= 0:
        parser.error("--frame-rate must be above 0")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="normal watched marked")
    parser.add_argument("--size", type=int, default=320, help="shorter side of frames, in pixels")
    parser.add_argument("--frame-rate", type=fraction, help="of both files, per second")
    parser.add_argument(
        "--csv",
        type=Path,
        default=Path(os.devnull),
        help="verdict and score of each frame, and in flagged frames the object to blame",
    )
    args = parser.parse_args()
    if len(args.files) not in (0, 3):
        parser.error("give three files, or none")
    *inputs, args.output = args.files or [Path("live_video_demo.mp4")]
    check(parser, args, inputs)
    with tempfile.TemporaryDirectory() as folder:
        if not inputs:
            inputs = [Path(folder, "normal.mp4"), Path(folder, "watched.mp4")]
            write_video(inputs[0], synthetic(150, seed=1), Fraction(10))
            write_video(inputs[1], synthetic(100, seed=2, strange=True), Fraction(10))
        rate, new_rate = (args.frame_rate or frame_rate_of(path) for path in inputs)
        if abs(new_rate / rate - 1) > 0.1:
            parser.error(
                f"{inputs[0]} has {float(rate):.4g} frames per second, but {inputs[1]} "
                f"{float(new_rate):.4g}: speeds would be wrong. Convert one of them."
            )
        size, new_size = (size_of(path, args.size) for path in inputs)
        if abs(new_size[0] - size[0]) > 2 or abs(new_size[1] - size[1]) > 2:
            parser.error(f"frames are {size} pixels high and wide, but later {new_size}")
        normal, watched = (partial(read_frames, path, gray=False, size=size) for path in inputs)
        clip = np.stack(list(islice(normal(), MAX_TRAINING_FRAMES)))
        print(f"learns from {len(clip)} frames, {float(len(clip) / rate):.0f} seconds", flush=True)
        detector = for_fixed_camera(float(rate), verbose=1, random_state=0)
        detector.fit(clip)
        write_video(args.output, watch(detector, watched, args.csv), new_rate)
        print(f"{args.output} shows where")


if __name__ == "__main__":
    main()
