"""
A runner among walkers
======================

``ClipDetector`` judges patches of the frames of a fixed camera, by any channels and any detector of
rows. It learns from normal clips, and tells of each new frame whether it is anomalous, and where.
No pretrained network is needed; with one, begin with ``for_fixed_camera``. Needs the extra
``video``.
"""

# %%
# Clips
# -----
# The clips are made here: textured figures that walk to and fro over a lit ground. In the new clip
# a fourth one comes late, and runs.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.pipeline import make_pipeline

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.video import ClipDetector, ForegroundMotion, PatchMotion

height, width, n_frames, late = 80, 120, 40, 20
ground = np.random.default_rng(0).normal(150, 4, size=(height, width))


def make_clip(speeds, starts, seed):
    """Move figures, each from a frame on, by pixels per frame: (n_frames, 1, height, width)."""
    rng = np.random.default_rng(seed)
    clip = ground + rng.normal(size=(n_frames, 1, height, width))
    for i, (speed, start) in enumerate(zip(speeds, starts, strict=True)):
        figure = rng.integers(20, 110, size=(6, 3)).repeat(3, axis=0).repeat(3, axis=1)
        top, path = 1 + 20 * i, 2 * (width - 9)
        for t, place in enumerate(rng.uniform(0, path) + speed * np.arange(n_frames)):
            left = int(abs(place % path - path / 2))  # at the border they turn
            if t >= start:
                clip[t, 0, top : top + 18, left : left + 9] = figure
    return clip.clip(0, 255).astype(np.uint8)


speeds = np.random.default_rng(0).uniform(0.6, 1.4, size=(4, 4))
walkers = [make_clip(of_clip, [0] * 4, seed) for seed, of_clip in enumerate(speeds)]
runner = make_clip([0.8, 1.2, 1.0, 4.0], [0, 0, 0, late], seed=5)

# %%
# Frames judged by their patches
# ------------------------------
# A detector of tables is given the speed of each patch's foreground. A frame is judged by its most
# anomalous patches, and scores are averaged over some frames, because an anomaly lasts.

detector = ClipDetector(
    make_pipeline(PatchMotion(), G2DOutlierDetector(random_state=0)),
    channels=ForegroundMotion(),
    patch_size=16,
    overlap=12,
    min_foreground=0.02,
    n_smoothed=5,
    max_patches=3000,
    random_state=0,
).fit(walkers)
patch_scores = detector.patch_scores(runner)  # one pass for scores and maps
scores, maps = detector.pool(patch_scores), detector.to_maps(patch_scores)

# %%
# The strip
# ---------
# The map is laid over six frames, in one scale of colours, wherever it is beyond the threshold.
# The threshold flags a twentieth of the training frames; below are the scores of all frames.

figure = plt.figure(figsize=(11, 3.8), layout="constrained")
strip, below = figure.subfigures(2, 1, height_ratios=(1, 1.8))
axes = strip.subplots(1, 6)
for ax, t in zip(axes, np.linspace(2, n_frames - 3, 6).astype(int), strict=True):
    ax.imshow(runner[t, 0], cmap="gray", vmin=0, vmax=255)
    beyond = np.ma.masked_less(maps[t], -detector.offset_)
    image = ax.imshow(beyond, cmap="autumn_r", alpha=0.6, vmin=-detector.offset_, vmax=maps.max())
    ax.set(title=f"frame {t}", xticks=[], yticks=[])
strip.colorbar(image, ax=axes, label="anomaly")
ax = below.subplots()
ax.plot(scores, color="tab:blue", label="score (higher = more normal)")
ax.axhline(detector.offset_, color="black", linestyle="--", label="threshold")
ax.axvspan(late, n_frames - 1, color="tab:red", alpha=0.15, label="somebody runs")
ax.set(xlabel="frame", ylabel="score", xlim=(0, n_frames - 1))
ax.legend(loc="lower left")
# Picture: Six frames, the runner marked in three; below, scores that fall when somebody runs.
plt.show()
