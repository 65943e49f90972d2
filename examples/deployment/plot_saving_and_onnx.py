"""
Keeping a detector, and running it without PyTorch
==================================================

``save`` writes a file that holds numbers and names, never code. ``to_onnx`` writes a graph that
runs where neither PyTorch nor this package is installed. Needs the extra ``onnx``, and
onnxruntime.
"""

# %%
# Two files
# ---------
# An existing file of the same name is replaced once the whole new file is on the disk.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
from sklearn.datasets import make_moons

from sklearn_g2d import G2DOutlierDetector

X, _ = make_moons(300, noise=0.06, random_state=0)
detector = G2DOutlierDetector(random_state=0).fit(X)

temporary = tempfile.TemporaryDirectory()  # removed at the end of this example
folder = Path(temporary.name)
detector.save(folder / "detector.skops")
detector.to_onnx(folder / "detector.onnx")
for path in sorted(folder.iterdir()):
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} kB")

# %%
# Loading
# -------
# Scores of the loaded detector are the same in every bit.

xx, yy = np.meshgrid(np.linspace(-2, 3, 150), np.linspace(-1.5, 2, 100))
grid = np.column_stack([xx.ravel(), yy.ravel()])
decision = detector.decision_function(grid)

loaded = G2DOutlierDetector.load(folder / "detector.skops")
print("same scores:", np.array_equal(loaded.decision_function(grid), decision))

# %%
# ONNX
# ----
# The graph holds everything between a row and its score. Its sums have another order, so that
# scores agree up to rounding. The black line is the threshold of ``predict``.

session = onnxruntime.InferenceSession(folder / "detector.onnx")
by_graph, _ = session.run(["decision_function", "score_samples"], {"X": grid})

figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), sharey=True, layout="constrained")
limit = np.abs(decision).max()
for ax, title, values in zip(axes, ("PyTorch", "onnxruntime"), (decision, by_graph), strict=False):
    values = values.reshape(xx.shape)
    picture = ax.pcolormesh(xx, yy, values, cmap="RdBu", vmin=-limit, vmax=limit)
    ax.contour(xx, yy, values, levels=[0], colors="black")
    ax.scatter(*X.T, s=2, color="black")
    ax.set_title(title)
figure.colorbar(picture, ax=axes[:2], label="decision function")
digits = np.log10(np.abs(by_graph - decision) + 1e-17).reshape(xx.shape)
figure.colorbar(axes[2].pcolormesh(xx, yy, digits, cmap="Greys"), label="power of ten")
axes[2].set_title("difference")
# Picture: Scores by PyTorch and by ONNX Runtime look alike; their differences are tiny.
plt.show()
