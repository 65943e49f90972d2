"""
A runner and a cart among walkers
=================================

``for_fixed_camera`` gives the detector to begin with for the video of a fixed camera. From normal
clips it learns how fast things move, and how they look. Of new frames it tells whether they are
anomalous, where, and which objects are to blame. Needs the extras ``video`` and ``pretrained``.
"""

# %%
# Clips
# -----
# The clips are made here: people who walk over a lit ground, a little unevenly, as everybody does.
# In the new clip one of them comes late and runs. Later a cart comes, at a walker's speed.

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from sklearn_g2d.video import for_fixed_camera

height, width, run, drive = 120, 200, 25, 50
ground = np.random.default_rng(0).normal(150, 4, size=(1, height, width))
cart = np.tile(np.array([200, 60, 40]).reshape(3, 1, 1), (22, 32))
cart[:, 4:11, 4:28], cart[:, 18:, 3:9], cart[:, 18:, 23:29] = 230, 20, 20


def make_clip(seed, n_frames, *, strange=False):
    """Let four things cross the picture again and again: (n_frames, 3, height, width)."""
    rng = np.random.default_rng(seed)
    clip = ground + rng.normal(0, 2, size=(n_frames, 3, height, width))
    for number in range(4):
        thing = rng.integers(20, 120, size=(3, 8, 3)).repeat(3, axis=1).repeat(3, axis=2)
        start, first, speed = rng.uniform(0, width), 0, rng.choice([-1.7, 1.7])
        if strange and number == 1:
            start, first, speed = 0, run, 6.0
        if strange and number == 3:
            thing, start, first, speed = cart, 0, drive, 1.7
        top = 2 + 30 * number
        for t in range(first, n_frames):
            left = int(start + speed * (t - first) + 2 * np.sin(t / 3 + number))
            columns = (left + np.arange(thing.shape[2])) % width
            clip[t, :, top : top + thing.shape[1], columns] = thing.transpose(2, 0, 1)
    return clip.clip(0, 255).astype(np.uint8)


normal_clips = [make_clip(seed, 40) for seed in range(5)]
new_clip = make_clip(5, 80, strange=True)

# %%
# Fit, then look
# --------------
# Nothing but the frame rate has to be known. ``stream`` judges frames as they arrive. Scores are
# higher for more normal frames, maps are higher where a frame is more anomalous. Each object in the
# foreground has a box, and tells how anomalous its speed and its looks are, in standard deviations
# of normal frames.

detector = for_fixed_camera(frame_rate=10, random_state=0).fit(normal_clips)
verdicts = list(detector.stream(new_clip))
scores = np.array([verdict.score for verdict in verdicts])


def to_blame(verdict):
    """Give the anomalous objects of an anomalous frame."""
    if verdict.score >= detector.offset_:
        return []
    return [thing for thing in verdict.objects if thing.is_anomalous]


shown = [15, 28, 40, 60, 67, 74]
for t in shown:
    found = to_blame(verdicts[t])
    print(f"frame {t}: {len(found)} of {len(verdicts[t].objects)} objects are anomalous")
    for thing in found:
        print(f"    box {thing.box}, speed {thing.speed:.1f}, looks {thing.looks:.1f}")

# %%
# The strip
# ---------
# The map is laid over six frames, in one scale of colours, wherever it is beyond the threshold. A
# solid box means that the speed is more unusual, a dashed one that the looks are. Below are the
# scores of all frames. The threshold flags a twentieth of the training frames, each of which was
# held out once. Scores are averaged over the last second, so that alarms come half a second late:
# in frame 28 the runner is not flagged yet.

figure = plt.figure(figsize=(10, 6.5), layout="constrained")
strip, below = figure.subfigures(2, 1, height_ratios=(1.7, 1))
axes = strip.subplots(2, 3).ravel()
highest = max(verdicts[t].anomaly_map.max() for t in shown)
for ax, t in zip(axes, shown, strict=True):
    ax.imshow(new_clip[t].transpose(1, 2, 0))
    beyond = np.ma.masked_less(verdicts[t].anomaly_map, -detector.offset_)
    image = ax.imshow(beyond, alpha=0.5, vmin=-detector.offset_, vmax=highest)
    for thing in to_blame(verdicts[t]):
        top, left, bottom, right = thing.box
        style = "-" if thing.speed > thing.looks else "--"
        box = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False)
        box.set(edgecolor="black", linewidth=2, linestyle=style)
        ax.add_patch(box)
    ax.set(title=f"frame {t}", xticks=[], yticks=[])
strip.colorbar(image, ax=axes, label="anomaly")
ax = below.subplots()
ax.plot(scores, color="tab:blue", label="score (higher = more normal)")
ax.axhline(detector.offset_, color="black", linestyle="--", label="threshold")
ax.axvspan(run, len(scores) - 1, color="tab:orange", alpha=0.15, label="somebody runs")
ax.axvspan(drive, len(scores) - 1, color="tab:gray", alpha=0.3, label="a cart, too")
ax.set(xlabel="frame", ylabel="score", xlim=(0, len(scores) - 1))
ax.legend(loc="lower left")
# Picture: Six frames, the runner and the cart in boxes; below, scores that fall when they come.
plt.show()
