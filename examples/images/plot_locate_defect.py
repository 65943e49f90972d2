"""
Where is the defect?
====================

``AVIDDetector`` learns from flawless images only, and finds the flawed ones among new images, and
the flaws in them: an inpainter guesses each region from its surroundings, and a patch detector
judges whether it fits.
"""

# %%
# Cloth with flaws
# ----------------
# The cloth is made here: threads of one period, woven at random phases, with noise. A flaw is a
# hole, a patch woven the wrong way, or a thread drawn across. Its outline is known, and used for
# testing only.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_auc_score

from sklearn_g2d import AVIDDetector
from sklearn_g2d.avid import MaskedInpainting, PatchNet, UNet
from sklearn_g2d.display import AnomalyMapDisplay
from sklearn_g2d.metrics import outlier_roc_auc_score

size, period = 48, 6
rng = np.random.default_rng(0)
rows, columns = np.mgrid[:size, :size]


def weave(n, slope=1):
    """Make images (n, 1, size, size) of diagonal threads."""
    phase = rng.uniform(0, period, size=(n, 1, 1, 1))
    threads = np.sin(2 * np.pi * (rows + slope * columns + phase) / period)
    return threads + rng.normal(scale=0.3, size=(n, 1, size, size))


def masks_of(kind, n):
    """Draw places of flaws, (n, size, size)."""
    row, column = rng.uniform(12, size - 12, size=(2, n, 1, 1))
    if kind == "thread":
        return np.abs(rows - row - 0.3 * (columns - column)) < 1.5
    return np.hypot(rows - row, columns - column) < {"hole": 5, "wrong way": 7}[kind]


kinds = {"hole": -1.0, "wrong way": weave(20, slope=-1), "thread": 1.5}
good = weave(20)
masks = [np.zeros((20, size, size), dtype=bool)]
images = [good]
for kind, content in kinds.items():
    masks.append(masks_of(kind, 20))
    images.append(np.where(masks[-1][:, np.newaxis], content, weave(20)))
X_test, mask_test = np.concatenate(images), np.concatenate(masks)

# %%
# Train, then look
# ----------------
# A region is about the size of the smallest flaw. Such a simple texture needs few steps and small
# networks; for photographs keep the default of 4,000 steps and 16 channels. The map shows what
# either network finds, the predicted mask what both find.

detector = AVIDDetector(
    region_size=10,
    training=MaskedInpainting(max_steps=250),
    inpainter=UNet(channels=8),
    detector=PatchNet(channels=8),
    random_state=0,
).fit(weave(200))

shown = [0, 20, 40, 60]
AnomalyMapDisplay.from_estimator(detector, X_test[shown], masks=mask_test[shown], name="Cloth")
# Picture: Images of cloth, inpainted, their anomaly maps, and outlines of true and predicted flaws.
plt.show()

# %%
# Which images, and which pixels
# ------------------------------
# Scores are higher for more normal images, maps are higher where an image is more anomalous.

y_test = np.where(mask_test.any(axis=(1, 2)), -1, 1)
pixels = detector.anomaly_map(X_test)
print(f"AUC of images: {outlier_roc_auc_score(y_test, detector.decision_function(X_test)):.3f}")
print(f"AUC of pixels: {roc_auc_score(mask_test.ravel(), pixels.ravel()):.3f}")
for i, kind in enumerate(kinds, start=1):
    flagged = detector.predict(images[i]) == -1
    print(f"{kind}: {flagged.mean():.0%} of images flagged")
print(f"flawless: {np.mean(detector.predict(good) == -1):.0%} of images flagged")
