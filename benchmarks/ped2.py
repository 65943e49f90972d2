"""Do the detectors find what is no pedestrian? UCSD Ped2, the papers' main experiment.

Protocol: train on the 16 clips of pedestrians, test on the 12 others, at half resolution. A frame
is anomalous where any of its pixels is. Frames of all test clips are pooled, and nothing is
adjusted to a clip. The seeds are those of the detectors and of the choice of patches.

    python -m benchmarks.ped2 --data ../shared/data
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.metrics import f1_score, roc_auc_score
from threadpoolctl import threadpool_limits

from benchmarks.frame_detectors import CHANNELS, N_SMOOTHED, N_WORST, Entry, Judgement, detectors
from benchmarks.images import read_archive
from benchmarks.maps import RocCurves, plot_maps, separation
from benchmarks.report import mark_best, summarize, threads, write_markdown
from benchmarks.runner import Case, choose, command, make_parser, run
from sklearn_g2d.datasets import load_ucsd
from sklearn_g2d.metrics import pixel_level_equal_error_rate
from sklearn_g2d.video import split_clips

ARCHIVE = "ucsd_ped2_half.npz"  # frames, clip numbers, masks
FOLDER = "UCSDped2"  # as published
FIGURES = {
    "auc": "frame AUC",
    "eer": "frame EER",
    "macro_auc": "macro AUC",
    "macro_eer": "macro EER",
    "f1": "F1",
    "false_alarms": "false alarms",
    "pixel_auc": "pixel AUC",
    "pixel_eer": "pixel-level EER",
    "fit_seconds": "fit (s)",
    "score_milliseconds": "score (ms per frame)",
}
BY_CLIP = "auc_of_clip_"
EER_BY_CLIP = "eer_of_clip_"
PROTOCOLS = (
    "**Which protocol gives which figure.** Neither paper names one. The scripts that AVID's "
    "authors published compute the ROC curve of frames on one clip; what G2D's authors published "
    "does not contain an evaluation. That is what is known. We infer that the published EERs, .14 "
    "and .11, come from single clips, too: scores that are near chance over the pooled frames "
    "come near such figures on single clips, and by no other protocol. The table has the pooled "
    "frames (micro), the mean over clips, each with a threshold of its own (macro), and two single "
    "clips, the worst and the best by AUC, chosen in hindsight. EER of a single clip is empty "
    "where only AUC was kept."
)
N_SHOWN = 6  # frames in the picture
DRAWN = {"fixed camera": "camera", "G2D": "g2d", "AVID": "avid"}  # stems of files
# The inputs behind the names of AVID.
AVID_SEES = {
    "AVID": '"AVID" judges the cells of rows, fraction and speed of the foreground in 14 of 20 '
    "pixels (`PatchMotion(squares=(0.7,), fraction=True)`).",
    "AVID three averaged frames": '"AVID three averaged frames" judges whole frames in the '
    "channels of the paper, with `per_location=True`.",
}


@dataclass
class Scene:
    """Clips of a fixed camera, and the channels of them that detectors see.

    Attributes
    ----------
    train, test : list of ndarray of shape (n_frames, 1, height, width)
    masks : ndarray of shape (n_test_frames, height, width)
        True where a pixel is anomalous.
    """

    train: list[NDArray]
    test: list[NDArray]
    masks: NDArray
    _seen: dict[str, tuple[list[NDArray], list[NDArray]]] = field(default_factory=dict)

    def seen(self, channels: str) -> tuple[list[NDArray], list[NDArray]]:
        """Channels of the training and of the test clips, computed once."""
        if channels not in self._seen:
            if CHANNELS[channels] is None:
                self._seen[channels] = self.train, self.test
            else:
                transformer = clone(CHANNELS[channels]).fit(self.train)
                train, test = (
                    [transformer.transform(clip) for clip in clips]
                    for clips in (self.train, self.test)
                )
                self._seen[channels] = train, test
        return self._seen[channels]


def read_scene(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Scene:
    """Read the archive, or the published folders at half resolution."""
    if (args.data / FOLDER).is_dir():
        data = load_ucsd(args.data / FOLDER, reduce=2)
        return Scene(data.train, data.test, np.concatenate(data.masks))
    archive = read_archive(args, parser, ARCHIVE)
    train, test = (
        split_clips(archive[f"{part}_frames"][:, np.newaxis], archive[f"{part}_clip"])
        for part in ("train", "test")
    )
    return Scene(train, test, archive["test_masks"])


def figures(scene: Scene, judged: Judgement) -> dict[str, float]:
    """Figures by name; "macro" are means over the clips that hold frames of both kinds."""
    is_anomalous: NDArray = np.any(scene.masks, axis=(1, 2))
    ends = np.cumsum([len(clip) for clip in scene.test])[:-1]
    by_clip = {
        number: separation(y, anomaly)
        for number, (y, anomaly) in enumerate(
            zip(np.split(is_anomalous, ends), np.split(judged.anomaly, ends), strict=True), start=1
        )
        if 0 < y.mean() < 1
    }
    has_verdict = not np.isnan(judged.threshold)
    flagged = judged.anomaly > judged.threshold
    return {
        **separation(is_anomalous, judged.anomaly),
        "macro_auc": float(np.mean([clip["auc"] for clip in by_clip.values()])),
        "macro_eer": float(np.mean([clip["eer"] for clip in by_clip.values()])),
        "f1": f1_score(is_anomalous, flagged) if has_verdict else np.nan,
        "false_alarms": float(flagged[~is_anomalous].mean()) if has_verdict else np.nan,
        "pixel_auc": float(roc_auc_score(scene.masks.ravel(), judged.maps.ravel())),
        "pixel_eer": pixel_level_equal_error_rate(scene.masks, judged.maps),
        **{f"{BY_CLIP}{number}": clip["auc"] for number, clip in by_clip.items()},
        **{f"{EER_BY_CLIP}{number}": clip["eer"] for number, clip in by_clip.items()},
    }


def open_scene(scene: Scene, seed: int, steps: int | None, pictures: Path | None) -> Case:
    """Open the scene for `run`; `pictures` is the stem of the files of what is drawn of it."""
    entries = detectors(steps)

    def measure(name: str) -> list[dict[str, Any]]:
        train, test = scene.seen(entries[name].channels)
        start = time.perf_counter()
        detector = entries[name].make(seed).fit(train)
        fit_seconds = time.perf_counter() - start
        start = time.perf_counter()
        judged = detector.judge(test)
        milliseconds = 1000 * (time.perf_counter() - start) / len(scene.masks)
        if pictures is not None:
            is_anomalous: NDArray = np.any(scene.masks, axis=(1, 2))
            judged_frames = {"frames": (is_anomalous, judged.anomaly)}
            RocCurves(f"{pictures}_roc.csv").add(name, judged_frames)
            if name in DRAWN:
                draw(f"{pictures}_{DRAWN[name]}_maps.png", scene, judged.maps, name)
        row = {"fit_seconds": fit_seconds, "score_milliseconds": milliseconds}
        return [row | figures(scene, judged)]

    facts = {"n_train": sum(map(len, scene.train)), "n_test": len(scene.masks)}
    return Case(facts, measure)


def held_out_alarms(scene: Scene, entry: Entry, seed: int, path: Path, repeat: str) -> pd.DataFrame:
    """Fit without each training clip in turn; the fraction of its frames that is flagged."""
    train, _ = scene.seen(entry.channels)
    rows = []
    for number, clip in enumerate(train, start=1):
        others = [other for other in train if other is not clip]
        judged = entry.make(seed).fit(others).judge([clip])
        alarms = float(np.mean(judged.anomaly > judged.threshold))
        rows.append({"clip": number, "frames": len(clip), "flagged": alarms})
        print(f"clip {number:>2} {alarms:.3f}", flush=True)
    results = pd.DataFrame(rows)
    results.to_csv(path.with_suffix(".csv"), index=False, float_format="%.5g")
    write_markdown(
        path.with_suffix(".md"),
        "False alarms on clips that were left out",
        [
            "The detector of a fixed camera, which promises to flag 5 % of normal frames, is fit "
            "on all training clips of UCSD Ped2 but one, and judges that one: the fraction of "
            f"its frames that are flagged. Mean over the clips: **{results.flagged.mean():.3f}**.",
            f"`{repeat}` repeats it.",
        ],
        [results.set_index("clip")],
    )
    return results


def draw(path: str, scene: Scene, maps: NDArray, name: str) -> None:
    """Draw the middle frames of some test clips with their maps."""
    middles = np.cumsum([len(clip) for clip in scene.test]) - [len(c) // 2 for c in scene.test]
    shown = middles[:: max(1, len(middles) // N_SHOWN)][:N_SHOWN]
    frames = np.concatenate(scene.test)[shown, 0]
    plot_maps(path, frames, scene.masks[shown], {name: maps[shown]})


def by_protocol(results: pd.DataFrame, by_clip: pd.DataFrame) -> pd.DataFrame:
    """Frame AUC and EER of each detector pooled, as a mean over clips, and on single clips.

    `by_clip` is the AUC by detector and by clip, whose names end in the clip's number.
    """
    means = results.groupby("detector").mean(numeric_only=True).loc[by_clip.index]
    columns = {
        name: means[f"{prefix}auc"].map("{:.3f}".format)
        + means[f"{prefix}eer"].map(" / {:.3f}".format)
        for name, prefix in (("pooled", ""), ("mean over clips", "macro_"))
    }
    for name, clips in ("worst", by_clip.idxmin(axis=1)), ("best", by_clip.idxmax(axis=1)):
        columns[f"{name} clip"] = clips.index.map(
            lambda detector, clips=clips: _of_clip(means.loc[detector], clips[detector])
        )
    return pd.DataFrame(columns, index=by_clip.index)


def _of_clip(means: pd.Series, clip: str) -> str:
    eer = means.get(f"{EER_BY_CLIP}{clip}", np.nan)
    written = "-" if np.isnan(eer) else f"{eer:.3f}"
    return f"{means[f'{BY_CLIP}{clip}']:.3f} / {written} (clip {clip})"


def report(results: pd.DataFrame, args: argparse.Namespace, repeat: str) -> pd.DataFrame:
    """Write the Markdown page and the plot of curves; returns the summary."""
    summary = summarize(results, FIGURES, by="scene")
    by_seed = results.pivot_table("auc", "detector", "seed").loc[list(summary.index)]
    by_clip = results.groupby("detector")[[c for c in results if c.startswith(BY_CLIP)]].mean()
    by_clip = by_clip.rename(columns=lambda c: c.removeprefix(BY_CLIP)).loc[list(summary.index)]
    higher = [FIGURES[name] for name in ("auc", "macro_auc", "f1", "pixel_auc")]
    lower = [FIGURES[name] for name in ("eer", "macro_eer", "pixel_eer")]
    marked = mark_best(summary, higher, lower)
    first = results.iloc[0]
    stem = args.output / args.name
    avid = " ".join(text for name, text in AVID_SEES.items() if name in summary.index)
    RocCurves(f"{stem}_roc.csv").plot(f"{stem}_roc.png", ["frames"], list(summary.index))
    paragraphs = [
        f"UCSD Ped2 (Mahadevan et al., CVPR 2010) at half resolution: {first.n_train} training "
        f"frames of pedestrians, {first.n_test} test frames, most with bicycles, skaters or carts. "
        f"Mean over the seeds ({', '.join(map(str, sorted(results.seed.unique())))})"
        f"{', of some detectors fewer' if by_seed.isna().any(axis=None) else ''}.",
        "Frame AUC and EER (micro) are over the frames of all test clips pooled, without any "
        "adjustment to a clip; macro AUC and EER are means over the clips that hold normal and "
        "anomalous frames. F1, of anomalous frames, and the fraction of normal frames flagged are "
        "at the detector's default threshold, which is to flag 5 %. Pixel AUC is of all pixels; at "
        "the pixel-level EER an anomalous frame counts as found when 40 % of its anomalous pixels "
        "are. Rank is by frame AUC, 1 is best. Seconds are of this run, "
        f"{threads(args)}, without those of the channels, and "
        "compare only roughly.",
        '"Fixed camera" is `for_fixed_camera(frame_rate=10)` with all else at its defaults; the '
        "score takes scores and maps, which see each frame twice. The others average anomaly over "
        f"{N_SMOOTHED} frames at each place; that of a frame is the mean of its {N_WORST} most "
        "anomalous patches of 20 pixels, 5 apart.",
        "G2D judges patches by `PatchMotion`: the speed of the foreground in three squares. "
        f"{avid} The published methods see gray patches of 15 pixels (G2D) and three averaged "
        "frames (AVID); their most anomalous patch, or pixel, condemns a frame, and nothing is "
        "averaged over frames.",
        'The baselines are judged like G2D: "motion energy" is the mean change of a patch since '
        'the frame before; "flow, blurred" the mean length of optical flow in 15 pixels; "speed of '
        'the foreground" the mean of what G2D sees, without a detector; "5-NN" the mean distance '
        "from the 5 nearest of 10,000 training patches, described by mean velocity and foreground, "
        "or by what G2D sees.",
        PROTOCOLS,
        f"`{repeat}` repeats it; DIR holds `{ARCHIVE}`, or the published folder `{FOLDER}`. All "
        f"figures are in [{args.name}.csv]({args.name}.csv).",
        f"![ROC curves of frames, the first seed]({args.name}_roc.png)",
    ]
    for name, file in DRAWN.items():
        if Path(f"{stem}_{file}_maps.png").exists():
            paragraphs.append(f"![Frames and maps of {name}]({args.name}_{file}_maps.png)")
    write_markdown(
        args.output / f"{args.name}.md",
        "What is no pedestrian",
        paragraphs,
        [
            marked.rename_axis("detector"),
            by_protocol(results, by_clip).rename_axis("frame AUC / EER by protocol"),
            by_clip.rename_axis("frame AUC by clip"),
            by_seed.rename_axis("frame AUC by seed"),
        ],
    )
    return summary


def main() -> None:
    """Run from the command line."""
    parser = make_parser(__doc__, "ped2", data_help=f"folder of {ARCHIVE}, or of {FOLDER}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="max_steps of AVID's default training")
    parser.add_argument(
        "--leave-one-out",
        action="store_true",
        help="instead: the detector of a fixed camera, without each training clip in turn",
    )
    parser.set_defaults(detectors=list(detectors()))
    args = parser.parse_args()
    chosen = choose(parser, args.detectors, detectors(args.steps))
    scene = read_scene(args, parser)
    stem = args.output / args.name
    if args.leave_one_out:
        args.output.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(args.threads)
        with threadpool_limits(args.threads):
            held_out_alarms(
                scene,
                detectors()["fixed camera"],
                args.seeds[0],
                Path(f"{stem}_left_out"),
                f"{parser.prog} --data DIR --leave-one-out",
            )
        return
    if not args.resume:
        Path(f"{stem}_roc.csv").unlink(missing_ok=True)

    def open_case(_: str, seed: int) -> Case:
        return open_scene(scene, seed, args.steps, stem if seed == args.seeds[0] else None)

    results = run("scene", ["Ped2"], open_case, chosen, args)
    repeat = command(
        parser,
        args.name,
        detectors=[name for name in detectors() if name in set(results.detector)],
        seeds=sorted(results.seed.unique()),
        steps=[args.steps],
    )
    print(f"\n{report(results, args, repeat).to_markdown(floatfmt='.3f')}")


if __name__ == "__main__":
    main()
