"""
Samples of the generator, from first to last
============================================

G2D learns to tell normal rows from the samples of a half-trained generator. Snapshots keep that
generator at several moments of its training: its samples are "far" from the normal rows, at their
"boundary", or "normal" once it has matured.
"""

# %%
# In two dimensions
# -----------------
# ``snapshots_`` holds the generators in the order of training, and ``sample_outliers`` draws from
# those that it is given. By default no generator is trained, because a cloud around the data
# detects as well. Here one is trained until its samples resemble normal rows; the classifier
# learns from snapshots of the other roles only.

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits, make_moons
from sklearn.decomposition import PCA

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.display import LossCurveDisplay, SnapshotSamplesDisplay
from sklearn_g2d.g2d import WassersteinGAN

X, _ = make_moons(500, noise=0.05, random_state=0)
generator = WassersteinGAN(n_members=1, max_steps=3000, batch_size=256, n_snapshots=8)
detector = G2DOutlierDetector(generator=generator, random_state=1).fit(X)

_, axes = plt.subplots(2, 4, figsize=(11, 5.5), sharex=True, sharey=True, layout="constrained")
for ax, snapshot in zip(axes.flat, detector.snapshots_, strict=False):
    generated = detector.sample_outliers(500, snapshots=[snapshot])
    ax.scatter(*generated.T, s=3, color="tab:red", label="generated")
    ax.scatter(*X.T, s=3, color="tab:blue", label="normal")
    ax.set_title(f"step {snapshot.step}: {snapshot.role}")
axes[0, 0].set(xlim=(-4, 5), ylim=(-3.5, 4))
axes[0, 0].legend(markerscale=3)
# Picture: Generated rows of eight snapshots: first all around two moons, at last among them.
plt.show()

# %%
# The losses, with the moments of the snapshots. Steps are on a logarithmic scale, because a
# generator changes most at the beginning.

display = LossCurveDisplay.from_estimator(detector, name="Two moons")
display.ax_.set_xscale("symlog", linthresh=20)
# Picture: Losses of generator and critic by step, and the steps of the snapshots with their roles.
plt.show()

# %%
# Images
# ------
# Samples can be shown as images if the features can be turned back into pixels, as principal
# components can. Each row is a snapshot of a detector that learns the digit 3.

digits = load_digits()
threes = digits.images[digits.target == 3][:, None]  # (n, 1, 8, 8): one channel, gray
generator = WassersteinGAN(n_members=1, max_steps=3000)
detector = G2DOutlierDetector(features=PCA(20), generator=generator, random_state=0).fit(threes)
SnapshotSamplesDisplay.from_estimator(detector, name="Learning the digit 3")
# Picture: Images of six snapshots: first noise, later the digit 3.
plt.show()
