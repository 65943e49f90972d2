"""
A promised rate of false alarms
===============================

``calibrate`` moves the threshold so that at most a given share of new normal rows is flagged, in
expectation and whatever the detector has learned. It takes normal rows that were not trained on.
"""

# %%
# Promised and observed
# ---------------------
# One detector is calibrated again and again, each time by 500 normal rows, and flags some of 1,000
# others. How many depends on which rows were held out; the promise is about the mean. More rows
# for calibration make the spread narrower.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons

from sklearn_g2d import G2DOutlierDetector

X, _ = make_moons(10_000, noise=0.1, random_state=0)
X_train, X_normal = X[:300], X[300:]
detector = G2DOutlierDetector(random_state=0).fit(X_train)

rng = np.random.default_rng(0)
rates = [0.01, 0.02, 0.05, 0.1, 0.2]
observed = np.empty((30, len(rates)))
for repetition in observed:
    rows = rng.permutation(len(X_normal))
    for column, rate in enumerate(rates):
        detector.calibrate(X_normal[rows[:500]], false_alarm_rate=rate)
        repetition[column] = np.mean(detector.predict(X_normal[rows[500:1500]]) == -1)

_, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
places = np.arange(len(rates))
ax.boxplot(observed, positions=places, whis=(0, 100), medianprops={"color": "tab:blue"})
ax.plot(places, observed.mean(axis=0), "o", color="tab:blue", label="observed mean")
ax.hlines(rates, places - 0.4, places + 0.4, color="tab:red", label="promised")
ax.set(
    xticks=places,
    xticklabels=[f"{rate:.0%}" for rate in rates],
    xlabel="promised rate",
    ylabel="share of new normal rows flagged",
    title=f"False alarms in {len(observed)} calibrations",
)
ax.legend()
# Picture: Box plots: each mean of the observed rates is close to the promised rate.
plt.show()

# %%
# Several thresholds at once
# --------------------------
# ``p_values`` say how unusual a row is among the rows of the calibration: of normal rows at most a
# tenth lies below .1, a hundredth below .01, and so on. Contours of the plane are thresholds for
# these rates.

figure, ax = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
xx, yy = np.meshgrid(np.linspace(-2, 3, 150), np.linspace(-1.4, 1.9, 100))
p_values = detector.p_values(np.column_stack([xx.ravel(), yy.ravel()])).reshape(xx.shape)
levels = [0, 0.01, 0.05, 0.1, 0.2, 1]
shades = plt.get_cmap("Blues_r")(np.linspace(0, 1, len(levels) - 1))
regions = ax.contourf(xx, yy, p_values, levels, colors=shades)
ax.scatter(*X_normal[:500].T, s=3, color="black", label="new normal rows")
figure.colorbar(regions, label="p-value", spacing="uniform")
ax.set(title="How unusual would a row be here?", aspect="equal")
ax.legend(loc="upper right")
# Picture: Two moons of normal rows, with p-values that fall from their middle to the outside.
plt.show()
