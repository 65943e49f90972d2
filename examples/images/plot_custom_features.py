"""
Features of your own
====================

The features decide which images look anomalous. ``features`` takes a transformer of scikit-learn
or any function of images, such as a pretrained network.
"""

# %%
# Digits that move about
# ----------------------
# Images of one digit, at random places of a larger square. The place does not matter, the digit
# does: the power spectrum, which no shift changes, should show the digit better than pixels do.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.display import OutlierRocCurveDisplay

rng = np.random.default_rng(0)
digits = load_digits()
images = np.zeros((len(digits.images), 1, 16, 16))  # one channel, gray
for image, digit in zip(images, digits.images, strict=True):
    top, left = rng.integers(9, size=2)
    image[0, top : top + 8, left : left + 8] = digit

is_normal = digits.target == 0
X_train = images[is_normal][:90]
X_test = np.concatenate([images[is_normal][90:], images[~is_normal]])
y_test = np.repeat([1, -1], [len(X_test) - np.sum(~is_normal), np.sum(~is_normal)])


def power_spectrum(images):
    """Give a row of features for each image (n, channels, height, width)."""
    return np.log1p(np.abs(np.fft.rfft2(images))).reshape(len(images), -1)


candidates = {
    "pixels": "passthrough",
    "principal components": PCA(20),
    "oriented gradients (default)": None,
    "power spectrum": power_spectrum,
}
detectors = {
    name: G2DOutlierDetector(features=features, random_state=0).fit(X_train)
    for name, features in candidates.items()
}

# %%
# Framed in blue: digits as they were trained on. In red: others, to be found.

figure = plt.figure(figsize=(10, 3.8), layout="constrained")
left, right = figure.subfigures(1, 2)
panels = left.subplots(4, 6)
shown = [*X_train[:12], *images[~is_normal][:12]]
for i, (ax, image) in enumerate(zip(panels.flat, shown, strict=True)):
    ax.imshow(image[0], cmap="gray")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(color="tab:blue" if i < 12 else "tab:red", linewidth=2)
ax = right.subplots()
for name, detector in detectors.items():
    OutlierRocCurveDisplay.from_estimator(detector, X_test, y_test, name=name, ax=ax)
ax.set_title("Digits other than 0, at random places")
# Picture: Digits at random places, zeros and others; ROC curves of four kinds of features.
plt.show()
