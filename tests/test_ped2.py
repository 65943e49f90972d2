"""The benchmark on video: its signs, its baselines by hand, its files."""

import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import ped2
from benchmarks.frame_detectors import (
    CHANNELS,
    N_SMOOTHED,
    ByMaps,
    Entry,
    FrameDifference,
    Judgement,
    Largest,
    Neighbors,
    PatchMeans,
    detectors,
)
from sklearn_g2d.metrics import pixel_level_equal_error_rate
from sklearn_g2d.video import smooth_over_time, stream_channels


@pytest.fixture(scope="module")
def archive():
    """Squares that walk, and in the second half of the second test clip one that runs."""
    rng = np.random.default_rng(0)
    ground = rng.normal(140, 3, size=(48, 64))
    texture = rng.integers(0, 80, size=(4, 4)).repeat(4, axis=0).repeat(4, axis=1)

    def film(n_frames, speeds):
        frames, masks = np.empty((n_frames, 48, 64)), np.zeros((n_frames, 48, 64), dtype=bool)
        place = 2.0
        for t, speed in zip(range(n_frames), speeds, strict=True):
            frames[t] = ground + rng.normal(0, 1, size=ground.shape)
            place += speed
            inside = slice(16, 32), (int(place) + np.arange(16)) % 64
            frames[t][inside] = texture
            masks[t][inside] = speed > 1
        return frames.clip(0, 255).astype(np.uint8), masks

    train = [film(20, [speed] * 20)[0] for speed in (0.5, 0.7, 0.9)]
    test = [film(20, [0.6] * 20), film(40, [0.7] * 20 + [2.5] * 20)]
    return {
        "train_frames": np.concatenate(train),
        "train_clip": np.repeat([1, 2, 3], 20),
        "test_frames": np.concatenate([frames for frames, _ in test]),
        "test_clip": np.repeat([1, 2], [20, 40]),
        "test_masks": np.concatenate([masks for _, masks in test]),
    }


@pytest.fixture
def run_command(tmp_path, monkeypatch):
    def run(*options):
        command = ["ped2", "--data", str(tmp_path), "--output", str(tmp_path / "out"), *options]
        monkeypatch.setattr(sys, "argv", [*command, "--threads", "1"])
        ped2.main()
        return pd.read_csv(tmp_path / "out" / "ped2.csv")

    return run


def test_command(archive, run_command, tmp_path, capsys):
    np.savez(tmp_path / ped2.ARCHIVE, **archive)
    names = ["G2D trained", "speed of the foreground", "motion energy", "flow, blurred"]
    names += ["5-NN flow and foreground", "5-NN speed of the foreground"]
    results = run_command("--seeds", "0", "--detectors", *names[:3])
    results = run_command("--seeds", "0", "--detectors", *names, "--resume")
    assert list(results.detector) == names
    # All see that something runs; half of the frames after the change are averages of both.
    assert (results.set_index("detector").auc > 0.9).all()
    assert results.auc.idxmax() == results.eer.idxmin()
    page = (tmp_path / "out" / "ped2.md").read_text()
    for name in names:
        assert f"| {name} " in page
    assert "python -m benchmarks.ped2 --data DIR --detectors" in page
    assert (tmp_path / "out" / "ped2_roc.png").exists()
    assert "| G2D trained" in capsys.readouterr().out


def test_protocols():
    """Single clips are picked by AUC; an EER that an old file lacks is left empty."""
    seeds = pd.DataFrame(
        {
            "detector": ["A", "A", "B"],
            "auc": [0.6, 0.8, 0.9],
            "eer": [0.4, 0.2, 0.1],
            "macro_auc": [0.7, 0.7, 0.9],
            "macro_eer": [0.3, 0.3, 0.1],
            "auc_of_clip_1": [0.5, 0.7, 0.95],
            "auc_of_clip_12": [0.9, 1.0, 0.85],
            "eer_of_clip_12": [0.1, 0.0, np.nan],
        }
    )
    by_clip = seeds.groupby("detector")[["auc_of_clip_1", "auc_of_clip_12"]].mean()
    table = ped2.by_protocol(seeds, by_clip.set_axis(["1", "12"], axis=1))
    assert list(table.loc["A"]) == [
        *("0.700 / 0.300", "0.700 / 0.300"),
        *("0.600 / - (clip 1)", "0.950 / 0.050 (clip 12)"),
    ]
    assert list(table.loc["B"])[2:] == ["0.850 / - (clip 12)", "0.950 / - (clip 1)"]


def test_published_folders_give_the_same_scene(archive, tmp_path):
    for part in ("train", "test"):
        for clip in np.unique(archive[f"{part}_clip"]):
            inside = archive[f"{part}_clip"] == clip
            name = f"{part.title()}{clip:03}"
            folder = tmp_path / ped2.FOLDER / part.title()
            frames = archive[f"{part}_frames"][inside]
            _write(folder / name, frames, "tif")
            if part == "test":
                _write(folder / f"{name}_gt", archive["test_masks"][inside] * 255, "bmp")
    np.savez(tmp_path / ped2.ARCHIVE, **archive)
    parser = ped2.make_parser("", "ped2", "")
    args = parser.parse_args(["--data", str(tmp_path)])
    scene = ped2.read_scene(args, parser)
    expected = archive["test_masks"].reshape(60, 24, 2, 32, 2).any(axis=(2, 4))
    np.testing.assert_array_equal(scene.masks, expected)
    assert [len(clip) for clip in scene.test] == [20, 40]
    means = archive["train_frames"].reshape(60, 24, 2, 32, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(np.concatenate(scene.train)[:, 0], means, atol=0.5)


def _write(folder, images, ending):
    folder.mkdir(parents=True)
    for number, image in enumerate(images.repeat(1, axis=0), 1):
        assert cv2.imwrite(str(folder / f"{number:03}.{ending}"), image.astype(np.uint8))


def test_figures_pool_frames_and_keep_signs(archive):
    masks = archive["test_masks"]
    is_anomalous = masks.any(axis=(1, 2))
    maps = np.random.default_rng(0).normal(size=masks.shape) + masks
    # Normal, both, anomalous.
    scene = ped2.Scene([], [masks[:20], masks[20:50], masks[50:]], masks)
    anomaly = np.where(np.arange(len(masks)) < 20, 2.0, 1.0 * is_anomalous)
    row = ped2.figures(scene, Judgement(anomaly, maps, threshold=0.5))
    assert (row["macro_auc"], row["macro_eer"], row["auc_of_clip_2"]) == (1, 0, 1)
    assert row["auc"] == pytest.approx(roc_auc_score(is_anomalous, anomaly))
    n_false = 20
    assert row["false_alarms"] == pytest.approx(n_false / np.sum(~is_anomalous))
    n_true = is_anomalous.sum()
    assert row["f1"] == pytest.approx(2 * n_true / (2 * n_true + n_false))
    row = ped2.figures(scene, Judgement(is_anomalous * 1.0, maps))
    assert (row["auc"], row["eer"]) == (1, 0)
    assert np.isnan(row["f1"])
    assert row["pixel_auc"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()))
    assert row["pixel_eer"] == pytest.approx(pixel_level_equal_error_rate(masks, maps))


def test_alarms_on_clips_that_were_left_out(archive, tmp_path):
    train = [archive["train_frames"][archive["train_clip"] == n][:, None] for n in (1, 2, 3)]
    scene = ped2.Scene(train, [], archive["test_masks"])

    class NumberOfClips:
        def fit(self, clips):
            assert len(clips) == 2
            return self

        def judge(self, clips):
            (clip,) = clips
            return Judgement(1.0 * (np.arange(20) < 5 * (clip is train[1])), clip, threshold=0.5)

    entry = Entry("frames", lambda seed: NumberOfClips())
    results = ped2.held_out_alarms(scene, entry, 0, tmp_path / "left_out", "command")
    assert list(results.flagged) == [0, 0.25, 0]
    assert "**0.083**" in (tmp_path / "left_out.md").read_text()


def test_baselines_by_hand():
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, size=(4, 1, 6, 8)).astype(np.uint8)
    difference = FrameDifference().fit(clip)
    change = difference.transform(clip)[:, 0]
    np.testing.assert_array_equal(
        np.concatenate([*stream_channels(difference, clip)])[:, 0], change
    )
    for t in range(4):
        now = max(t, 1)
        expected = np.abs(clip[now, 0].astype(float) - clip[now - 1, 0])
        np.testing.assert_allclose(change[t], expected)
    patches = rng.normal(size=(7, 2, 3, 3))
    means = PatchMeans().fit(patches).transform(patches)
    np.testing.assert_allclose(means[4], [patches[4, 0].mean(), patches[4, 1].mean()])
    np.testing.assert_allclose(Largest().fit(means).score_samples(means), -means.mean(axis=1))
    rows, new = rng.normal(size=(30, 2)), rng.normal(size=(3, 2))
    distances = np.sort(np.linalg.norm(new[:, None] - rows, axis=2), axis=1)[:, :5]
    scores = Neighbors().fit(rows).score_samples(new)
    np.testing.assert_allclose(scores, -distances.mean(axis=1))


def test_maps_are_averaged_within_clips():
    class FakeAVID:
        def fit(self, X):
            self.n_fitted = len(X)

        def anomaly_map(self, X):
            return X[:, 0]

    rng = np.random.default_rng(0)
    clips = [rng.normal(size=(n, 1, 4, 5)) for n in (6, 11)]
    detector = ByMaps(FakeAVID(), patch_size=2, overlap=1, n_worst=3).fit(clips)
    assert detector.detector.n_fitted == 17
    judged = detector.judge(clips)
    raw = np.concatenate(clips)[:, 0]
    np.testing.assert_allclose(judged.maps, smooth_over_time(raw, clips, N_SMOOTHED))
    means = judged.maps[:, :-1] + judged.maps[:, 1:]
    means = (means[:, :, :-1] + means[:, :, 1:]).reshape(17, -1) / 4
    np.testing.assert_allclose(judged.anomaly, np.sort(means, axis=1)[:, -3:].mean(axis=1))


def test_every_entry_can_be_made():
    for name, entry in detectors(steps=7).items():
        assert entry.channels in CHANNELS, name
        for seed in (0, 1):
            params = entry.make(seed).detector.get_params()
            seeds = {key: v for key, v in params.items() if key.endswith("random_state")}
            assert set(seeds.values()) == {seed}, name
    avid = detectors(steps=7)["AVID"].make(0).detector
    assert avid.estimator[-1].training.max_steps == 7
