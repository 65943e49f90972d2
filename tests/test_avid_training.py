"""AVID's networks, trainers, masks, preprocessing and normalisation, below the detector."""

import pickle

import numpy as np
import pytest
import torch
import trainer_checks
from scipy import ndimage
from sklearn.base import clone

from sklearn_g2d.avid import (
    AdversarialInpainting,
    CellInpainting,
    CellNetwork,
    MaskedInpainting,
    PatchNet,
    UNet,
)
from sklearn_g2d.avid._masking import (
    Blocks,
    Cells,
    Crops,
    Rows,
    divide_columns,
    divide_image,
    paste_squares,
)
from sklearn_g2d.avid._networks import build_network, common_stride
from sklearn_g2d.avid._paper import (
    AdversarialTrainer,
    detector_loss,
    inpainter_loss,
    segment,
)
from sklearn_g2d.avid._preprocessing import ImagePreprocessor, box_mean
from sklearn_g2d.avid._scoring import AppearanceNormalizer, MapScorer
from sklearn_g2d.avid._training import InpaintingTrainer
from sklearn_g2d.training.ensemble import weights_of
from sklearn_g2d.training.runtime import Runtime


@pytest.fixture(autouse=True)
def _same_data_every_time():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make_runtime(seed=0, precision="float32"):
    return Runtime.create("cpu", precision, seed)


@pytest.fixture
def runtime():
    return make_runtime()


KINDS = pytest.mark.parametrize("kind", ["images", "table"])
BLOCK_SIZES = MaskedInpainting().block_sizes


def make_data(kind):
    """Normal data: stripes, or columns that follow each other."""
    rng = torch.Generator().manual_seed(0)
    if kind == "table":
        return torch.randn(100, 1, generator=rng) + 0.3 * torch.randn(100, 6, generator=rng)
    phase = 8 * torch.rand(40, 1, 1, 1, generator=rng)
    X = torch.sin(torch.arange(24.0) * torch.pi / 4 + phase).expand(-1, -1, 20, -1)
    return X + 0.2 * torch.randn(X.shape, generator=rng)


def make_networks(runtime, kind):
    if kind == "table":
        network = CellNetwork((16,))
        return network.build(6, runtime.rng, takes_mask=True), network.build(6, runtime.rng)
    unet = UNet(channels=4, multipliers=(1, 2), first_skip=1)
    patch_net = PatchNet(channels=4, layers=((1, 3, 1), (2, 4, 2)))
    return unet.build(1, runtime.rng), patch_net.build(1, runtime.rng)


def make_training(kind, is_published=False, **changed):
    """A way of training at a high rate, in small batches."""
    changed = {
        "learning_rates": (1e-2, 1e-2),
        "batch_size": 32 if kind == "table" else 8,
        **changed,
    }
    if is_published:
        return AdversarialInpainting(**changed)
    training = CellInpainting() if kind == "table" else MaskedInpainting(detector_every=1)
    return clone(training).set_params(**changed)


def make_trainer(runtime, training, kind, networks=None):
    inpainter, detector = networks or make_networks(runtime, kind)
    X = make_data(kind)
    if isinstance(training, AdversarialInpainting):
        samples, validation = (
            Rows(part) if kind == "table" else Crops(part, (16, 16)) for part in (X[10:], X[:10])
        )
        return AdversarialTrainer(training, inpainter, detector, samples, validation, runtime)
    samples = Cells(X, 0.25) if kind == "table" else Blocks(X, (16, 16), 4, BLOCK_SIZES)
    return InpaintingTrainer(training, inpainter, detector, samples, runtime)


def train(runtime, training, kind, n_steps):
    """Losses of a training, its networks' weights before, and those of its result."""
    networks = make_networks(runtime, kind)
    before = [weights_of(network) for network in networks]
    trainer = make_trainer(runtime, training, kind, networks)
    steps = [trainer.step() for _ in range(n_steps)]
    losses = [{name: float(value) for name, value in step.items()} for step in steps]
    return losses, before, [weights_of(network) for network in trainer.result]


def moved(before, after):
    """How far each kernel moved; biases before batch norm have no reason to."""
    return [np.abs(after[name] - before[name]).max() for name in before if before[name].ndim > 1]


# Networks


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize(
    ("multipliers", "first_skip"), [((1, 2), 0), ((0.75, 1, 1.25, 1.5), 2), ((1, 1, 1), 9)]
)
def test_unets_see_nothing_that_is_hidden(runtime, n_channels, multipliers, first_skip):
    part = UNet(channels=4, multipliers=multipliers, first_skip=first_skip)
    unet = part.build(n_channels, runtime.rng).eval()
    assert unet.stride == 2 ** (len(multipliers) - 1)
    x, other = torch.randn(2, 3, n_channels, 16, 24)
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., 3:9, 5:20] = 1
    inpainted = unet(x, mask)
    assert inpainted.shape == x.shape
    assert torch.equal(unet(torch.where(mask > 0, other, x), mask), inpainted)
    assert (unet(torch.where(mask > 0, x, other), mask) != inpainted).any()
    assert (unet(x, 1 - mask) != inpainted).any()  # and knows what is hidden
    torch.testing.assert_close(unet(x, mask.expand(3, -1, -1, -1)), inpainted)


def test_cell_networks_see_nothing_that_is_hidden(runtime):
    inpainter = CellNetwork((8,)).build(5, runtime.rng, takes_mask=True)
    x, other = torch.randn(2, 7, 5)
    mask = torch.tensor([[0.0, 1, 0, 1, 0]])
    guess = inpainter(x, mask)
    assert guess.shape == x.shape
    assert torch.equal(inpainter(torch.where(mask > 0, other, x), mask), guess)
    assert (inpainter(torch.where(mask > 0, x, other), mask) != guess).any()
    assert (inpainter(torch.zeros_like(x), mask) != inpainter(torch.zeros_like(x), 0 * mask)).any()
    torch.testing.assert_close(inpainter(x, mask.expand(7, -1)), guess)


def test_skips_are_where_they_are_asked_for(runtime):
    sizes = [
        sum(p.numel() for p in UNet(4, (1, 1.5, 2), skip).build(1, runtime.rng).parameters())
        for skip in (0, 1, 2)
    ]
    # A skip doubles what the first convolution of a decoder level takes in: 3 x 3 kernels.
    assert sizes[0] - sizes[1] == 9 * 4 * 4
    assert sizes[1] - sizes[2] == 9 * 6 * 6


@pytest.mark.parametrize(
    ("layers", "stride"),
    [(((1, 3, 1),), 1), (((1, 11, 4), (1, 1, 1), (1, 3, 2), (1, 5, 2)), 16), (((2, 4, 2),) * 3, 8)],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_patch_nets_judge_every_region(runtime, layers, stride, normalize):
    part = PatchNet(channels=4, layers=layers, normalize=normalize)
    detector = part.build(2, runtime.rng).eval()
    assert detector.stride == stride
    x = torch.randn(3, 2, 64, 32, requires_grad=True)
    logits = detector(x)
    assert logits.shape == (3, 1, 64 // stride, 32 // stride)
    logits.sum().backward()
    assert (x.grad != 0).float().mean() > 0.9
    # A logit tells of its own surroundings.
    x.grad = None
    detector(x)[:, :, -1, -1].sum().backward()
    assert x.grad[:, :, -stride:, -stride:].abs().sum() > 0
    assert x.grad[:, :, 0, 0].abs().sum() == 0


def make_linear(n_features):
    return torch.nn.Linear(n_features, n_features)


def make_dropout(n_features):
    return torch.nn.Sequential(make_linear(n_features), torch.nn.Dropout(0.5))


def own_convolutions(n_channels):
    return torch.nn.Sequential(
        torch.nn.Conv2d(n_channels, 4, 4, 2), torch.nn.ReLU(), torch.nn.Conv2d(4, 1, 2, 2)
    )


@pytest.mark.parametrize(
    ("factory", "stride"),
    [
        (own_convolutions, 4),
        (lambda n: torch.nn.Conv2d(n, 1, 3, stride=2), 2),  # which has the attribute
        (lambda n: torch.nn.Conv2d(n, 1, 1), 1),
        (lambda n: torch.nn.Sequential(torch.nn.Conv2d(n, 1, 1), torch.nn.AdaptiveAvgPool2d(1)), 1),
    ],
    ids=["sequence", "convolution", "pixels", "global"],
)
def test_strides_of_own_detectors_are_found(runtime, factory, stride):
    unet = UNet(channels=2, multipliers=(1, 1)).build(2, runtime.rng)
    detector = build_network(factory, 2, runtime.rng, takes_mask=False)
    assert common_stride(unet, detector, 2) == max(2, stride)
    other = build_network(lambda n: torch.nn.Conv2d(n, n, 3, 3), 2, runtime.rng, takes_mask=True)
    assert common_stride(other, detector, 2) == 3 * stride


@KINDS
def test_networks_pickle_as_numpy(runtime, kind):
    inpainter, detector = make_networks(runtime, kind)
    X = make_data(kind)
    X = X[:, :, :16, :16] if kind == "images" else X
    factory = own_convolutions if kind == "images" else make_linear
    own = build_network(factory, X.shape[1], runtime.rng, takes_mask=False)
    mask = torch.zeros_like(X[:1])
    inpainter(X, mask)  # moves the averages of batch norm
    detector(X)
    for network, x in ((inpainter, (X, mask)), (detector, (X,)), (own, (X,))):
        stored = pickle.dumps(network)
        assert b"torch._utils" not in stored
        loaded = pickle.loads(stored)
        assert torch.equal(loaded(*x), network.eval()(*x))
        for name, value in network.state_dict().items():
            assert loaded.state_dict()[name].stride() == value.stride(), name


@KINDS
def test_networks_of_one_seed_are_equal_and_leave_the_global_one_alone(kind):
    before = torch.get_rng_state()

    def make(seed):
        runtime = make_runtime(seed)
        own = build_network(make_linear, 3, runtime.rng, takes_mask=False)
        return *make_networks(runtime, kind), own

    first, same, other = map(make, (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    for network, its_equal, another in zip(first, same, other, strict=True):
        weights = weights_of(network)
        for name, value in weights_of(its_equal).items():
            np.testing.assert_array_equal(value, weights[name])
        assert any((weights_of(another)[name] != weights[name]).any() for name in weights)


# What holds for every trainer


def all_trainers(seed):
    for kind in ("images", "table"):
        for training in (
            make_training(kind, max_steps=90),
            make_training(kind, max_steps=90, detector_every=3),
            make_training(kind, max_steps=90, optimizer=torch.optim.RMSprop),
            make_training(kind, is_published=True, max_steps=90),
        ):
            yield make_trainer(make_runtime(seed), training, kind)
    runtime = make_runtime(seed)
    own = build_network(make_dropout, 6, runtime.rng, takes_mask=False)
    networks = make_networks(runtime, "table")[0], own
    yield make_trainer(runtime, make_training("table", max_steps=90), "table", networks)


@pytest.mark.parametrize("at", [0, 4])
def test_every_trainer_goes_on_from_its_state_in_every_bit(at):
    for trainer, other in zip(all_trainers(seed=0), all_trainers(seed=1), strict=True):
        trainer_checks.check_goes_on_from_its_state(trainer, other, at)


def test_no_trainer_waits_for_the_device():
    for trainer in all_trainers(seed=0):
        trainer_checks.check_waits_for_nothing(trainer)


def test_every_trainer_finds_what_is_not_finite():
    for trainer in all_trainers(seed=0):
        trainer_checks.check_finds_what_is_not_finite(trainer)


def test_the_rate_of_every_trainer_can_be_lowered():
    for trainer in all_trainers(seed=0):
        if not isinstance(trainer.inpainter_optimizer, torch.optim.RMSprop):
            trainer_checks.check_rates_can_be_lowered(trainer)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("cosine", [1 / 50, 0.853553, 0.5, 0.146447]),
        (lambda finished: 2 - finished, [2, 1.75, 1.5, 1.25]),
    ],
)
@pytest.mark.parametrize("is_published", [False, True])
def test_schedules(schedule, expected, is_published, monkeypatch):
    training = make_training("table", is_published, schedule=schedule, max_steps=400)
    trainer = make_trainer(make_runtime(), training, "table")
    rates = []
    monkeypatch.setattr(trainer, "_step", lambda: rates.append(trainer_rates(trainer)) or {})
    for _ in range(400):
        trainer.step()
    rates = np.array(rates)
    np.testing.assert_array_equal(rates[:, 0], rates[:, 1])
    np.testing.assert_allclose(rates[::100, 0] / 1e-2, expected, rtol=1e-5)


def trainer_rates(trainer):
    optimizers = trainer.inpainter_optimizer, trainer.detector_optimizer
    return [optimizer.param_groups[0]["lr"] for optimizer in optimizers]


# What is hidden, exchanged and judged


@pytest.mark.parametrize("size", [(24, 24), (17, 30), (5, 64)])
@pytest.mark.parametrize("block", [2, 3, 6, 8])
def test_a_partition_of_an_image_hides_every_pixel_once(size, block):
    masks = divide_image(size, block)
    assert masks.shape == (4, 1, 1, *size)
    assert masks.dtype == torch.float32
    assert torch.equal(sum(masks), torch.ones(1, 1, *size))
    assert set(masks.unique().tolist()) == {0, 1}
    # Something near is seen of whatever is hidden.
    assert all(ndimage.distance_transform_edt(mask[0, 0]).max() <= block for mask in masks)


@pytest.mark.parametrize(("n", "size"), [(1, 5), (2, 12), (9, 4)])
def test_squares_are_pasted_from_other_images(n, size):
    images = np.arange(n * 3 * 12 * 17.0).reshape(n, 3, 12, 17)
    before = images.copy()
    pasted, changed = paste_squares(images, size, np.random.RandomState(0))
    np.testing.assert_array_equal(images, before)
    assert set(np.unique(changed)) == {0, 1}
    for i, (image, where) in enumerate(zip(pasted, changed > 0, strict=True)):
        np.testing.assert_array_equal(image[:, ~where], images[i][:, ~where])
        assert size**2 <= where.sum() <= 3 * size**2
        assert (ndimage.binary_opening(where, np.ones((size, size))) == where).all()
        if n > 1:  # no value stands twice
            assert not np.isin(image[:, where], images[i]).any()
        assert np.isin(image, images).all()


def test_a_map_counts_by_the_inverse_cube_of_its_error():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(2, 30, 12, 12))
    changed = np.zeros((30, 12, 12))
    changed[:, 4:8, 2:6] = 1
    shifts = np.array([1.0, 0.4])[:, None, None, None]
    pasted = rng.normal(size=normal.shape) + shifts * changed
    scorer = MapScorer("excess", 4, 0.2, per_location=False).fit(normal)
    assert scorer.weights == (2, 1)
    scorer.fit_weights(normal, pasted, changed)
    # Windows of 4 pixels, 2 apart, of which that on the square is wholly changed, and two by half.
    n, errors = 30, []
    for before, after in zip(normal, pasted, strict=True):
        lower, upper = (
            np.stack([v[:, i : i + 4, j : j + 4] for i in range(0, 9, 2) for j in range(0, 9, 2)])
            for v in (
                np.log1p(np.exp(3 * (x - before.mean()) / before.std())) for x in (before, after)
            )
        )
        anomalous = upper.mean(axis=(2, 3))[2 * 5 + 1]
        errors.append(np.mean(lower.mean(axis=(2, 3)).ravel()[:, None] > anomalous) + 1 / n)
    np.testing.assert_allclose(scorer.weights, 1 / np.power(errors, 3))
    assert scorer.weights[0] > 4 * scorer.weights[1]
    weights = scorer.weights
    scorer.fit_weights(normal, pasted, 0 * changed)  # nothing is told
    scorer.fit_weights(normal, np.nan * pasted, changed)
    assert scorer.weights == weights


@pytest.mark.parametrize("n_features", [1, 2, 3, 4, 5, 6, 7, 23])
def test_a_partition_of_a_row_hides_every_cell_equally_often(runtime, n_features):
    masks = divide_columns(n_features, runtime.rng)
    assert masks.shape[1] == n_features
    times = masks.sum(axis=0)
    assert (times == times[0]).all()
    assert times[0] >= 1
    assert masks.sum(axis=1).max() <= np.ceil(n_features / min(n_features, 5))


@pytest.mark.parametrize("fraction", [0.3, 0.5])
@KINDS
def test_masks_hide_about_their_fraction(runtime, kind, fraction):
    if kind == "images":
        x = torch.zeros(50, 2, 24, 30)
        samples = Blocks(x, (24, 30), 6, BLOCK_SIZES)
    else:
        x = torch.zeros(500, 9)
        samples = Cells(x, 0.25)
    masks = torch.stack([samples.mask(x, fraction, runtime) for _ in range(40)])
    assert masks.shape[1:] == (x[:, :1].shape if x.ndim == 4 else x.shape)
    assert set(masks.unique().tolist()) == {0, 1}
    assert abs(masks.mean() - fraction) < 0.02
    # Everywhere alike, and not the same for all samples.
    assert (masks.mean((0, 1)) - fraction).abs().max() < 0.08
    assert masks.mean((0, *range(2, masks.ndim))).std() < 0.1
    assert (masks[:, 0] != masks[:, 1]).any()


def test_masks_are_of_whole_blocks(runtime):
    X = torch.zeros(1, 1, 40, 40)
    blocks = Blocks(X, (40, 40), 10, BLOCK_SIZES)
    sizes, edges = set(), set()
    for _ in range(20):
        mask = blocks.mask(X, 0.5, runtime)[0, 0]
        for line in (*mask, *mask.T):
            changes = np.flatnonzero(np.diff(line))
            sizes |= set(np.diff(changes).tolist())
            edges |= set(changes.tolist())
    # Blocks of 5, 7 or 10 pixels, single or side by side.
    assert {5, 7, 10} <= sizes
    assert all(size % 5 == 0 or size % 7 == 0 for size in sizes)
    assert edges == set(range(39))  # the grid has no fixed origin


def test_crops_are_drawn_everywhere_and_at_one_place(runtime):
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    X = torch.stack([rows, columns]).expand(50, -1, -1, -1).clone()
    X[:, 1] += 100 * torch.arange(50)[:, None, None]
    samples = Blocks(X, (8, 16), 4, BLOCK_SIZES)
    corners, images = set(), set()
    for _ in range(200):
        real, elsewhere = samples.draw_pairs(6, runtime)
        assert real.shape == elsewhere.shape == (6, 2, 8, 16)
        both = torch.cat([real, elsewhere])
        assert (both[:, 0] == both[0, 0]).all()
        assert (both[:, 1] % 100 == both[0, 1] % 100).all()
        corners.add((int(both[0, 0, 0, 0]), int(both[0, 1, 0, 0] % 100)))
        images |= set((both[:, 1, 0, 0] // 100).tolist())
    assert {top for top, _ in corners} == set(range(13))
    assert {left for _, left in corners} == set(range(15))
    assert len(images) == 50
    assert samples.draw(3, runtime).shape == (3, 2, 8, 16)


def test_other_cells_are_from_their_columns_or_around(runtime):
    X = torch.arange(3.0) + torch.randint(4, (200, 3), generator=runtime.rng) * 10
    real, other = Cells(X, 0.25).draw_pairs(4000, runtime)
    assert all((real == row).all(1).any() for row in X)
    is_from_its_column = (other % 10 == torch.arange(3.0)) & (other >= 0) & (other <= 32)
    assert 0.72 < is_from_its_column.float().mean() < 0.78
    assert (other - real)[is_from_its_column].abs().max() == 30
    assert (other[:, 0] >= -15).all()
    assert (other[:, 0] <= 45).all()
    assert (other < 0).any()
    assert (other > 32).any()


def test_regions_are_labelled_by_what_changed_in_them():
    before = torch.randn(2, 3, 32, 32)
    after = before.clone()
    after[0, :, 8:20, 8:20] += 2
    after[0, :, 28:, 28:] += 0.6  # something, but little
    after[1, 0, 8:20, 8:20] += 1e-4  # nothing to speak of
    like = torch.zeros(2, 1, 8, 8)
    blocks = Blocks(before, (32, 32), 4, BLOCK_SIZES)
    changed, certain = blocks.compare(before, after, like)
    assert changed.shape == certain.shape == like.shape
    (changed, unchanged), (certain, all_certain) = changed[:, 0], certain[:, 0]
    assert changed[2:5, 2:5].all()
    assert certain[2:5, 2:5].all()
    assert not certain[7, 7]
    assert not changed[7, 7]
    elsewhere = torch.ones(8, 8, dtype=torch.bool)
    elsewhere[1:6, 1:6] = elsewhere[6:, 6:] = False
    assert not changed[elsewhere].any()
    assert certain[elsewhere].all()
    assert not unchanged.any()
    assert all_certain.all()


def test_unchanged_images_are_labelled_normal():
    x = torch.randn(2, 1, 16, 16)
    blocks = Blocks(x, (16, 16), 4, BLOCK_SIZES)
    changed, certain = blocks.compare(x, x, torch.zeros(2, 1, 4, 4))
    assert not changed.any()
    assert certain.all()


def test_cells_are_labelled_by_whether_they_changed():
    before = torch.randn(5, 4)
    after = before.clone()
    after[2, 1] += 1e-3
    changed, certain = Cells(before, 0.25).compare(before, after, before)
    assert changed.sum() == changed[2, 1] == 1
    assert certain is None  # all are


# Trainers of the inpainter and the detector

WAYS = pytest.mark.parametrize("is_published", [False, True], ids=["default", "published"])


@KINDS
@pytest.mark.parametrize("way", ["alone", "adversarial", "published"])
def test_both_networks_move(runtime, kind, way):
    changed = {"adversarial_weight": 1.0} if way == "adversarial" else {}
    training = make_training(kind, way == "published", max_steps=40, **changed)
    losses, before, after = train(runtime, training, kind, 40)
    for i in range(2):
        assert min(moved(before[i], after[i])) > 1e-5
        assert all(np.isfinite(value).all() for value in after[i].values())
    names = {"reconstruction_loss", "detector_loss"}
    if way != "alone":
        names.add("adversarial_loss")
    assert all(set(step) == names for step in losses)


@KINDS
def test_losses_of_both_networks_fall(runtime, kind):
    losses, *_ = train(runtime, make_training(kind, max_steps=80), kind, 80)
    for name, at_most in {"reconstruction_loss": 0.7, "detector_loss": 0.9}.items():
        values = [step[name] for step in losses]
        assert np.mean(values[-20:]) < at_most * np.mean(values[:10]), name


@KINDS
@WAYS
def test_the_inpainter_learns_to_please_a_detector_that_stands_still(kind, is_published):
    changed = {} if is_published else {"reconstruction_weight": 0.0, "adversarial_weight": 1.0}
    results = []
    for rate in (1e-2, 0.0):
        training = make_training(
            kind, is_published, max_steps=30, learning_rates=(rate, 0.0), **changed
        )
        results.append(train(make_runtime(), training, kind, 30))
    (losses, before, after), (others, *_) = results
    assert min(moved(before[0], after[0])) > 1e-5
    assert max(moved(before[1], after[1])) == 0
    learned, unlearned = (
        np.array([step["adversarial_loss"] for step in steps]) for steps in (losses, others)
    )
    assert learned[0] == unlearned[0]
    assert (learned[-10:] < unlearned[-10:]).all()


@KINDS
def test_without_weight_the_inpainter_stands_still(runtime, kind):
    training = make_training(kind, reconstruction_weight=0.0, max_steps=5)
    _, before, after = train(runtime, training, kind, 5)
    assert max(moved(before[0], after[0])) == 0
    assert min(moved(before[1], after[1])) > 1e-5


def test_the_detector_learns_from_the_inpainted_only_if_asked():
    """An inpainter that cannot learn is told from the real without effort."""
    separation = {}
    for weight in (0.0, 1.0):
        runtime = make_runtime()
        training = make_training(
            "images", adversarial_weight=weight, learning_rates=(0.0, 1e-2), max_steps=40
        )
        trainer = make_trainer(runtime, training, "images")
        for _ in range(40):
            trainer.step()
        inpainter, detector = trainer.result
        x = trainer.samples.draw(40, runtime)
        mask = trainer.samples.mask(x, 0.5, runtime)
        with torch.no_grad():
            inpainted = torch.where(mask > 0, inpainter(x, mask), x)
            separation[weight] = float((detector(inpainted) - detector(x)).mean())
    assert separation[1.0] > max(0, separation[0.0]) + 0.5


class Copyist(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, mask):
        return x + 0 * self.weight


def test_the_detector_does_not_learn_that_what_was_left_alone_is_anomalous():
    """Of the inpainted counts what came out otherwise than it was: here, nothing."""
    logits = {}
    for weight in (0.0, 1.0):
        runtime = make_runtime()
        networks = Copyist(), make_networks(runtime, "images")[1]
        training = make_training(
            "images", adversarial_weight=weight, learning_rates=(0.0, 1e-2), max_steps=40
        )
        trainer = make_trainer(runtime, training, "images", networks)
        for _ in range(40):
            trainer.step()
        with torch.no_grad():
            logits[weight] = float(trainer.result[1](make_data("images")).mean())
    assert logits[1.0] < logits[0.0] + 0.1


@KINDS
def test_a_published_detector_calls_the_inpainted_anomalous(runtime, kind):
    rates = {"optimizer": "sgd", "learning_rates": (0.0, 0.05)}
    training = make_training(kind, is_published=True, batch_size=16, max_steps=60, **rates)
    trainer = make_trainer(runtime, training, kind)
    losses = [float(trainer.step()["detector_loss"]) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    x = trainer.samples.draw(40, runtime)
    with torch.no_grad():
        inpainted = trainer._restore(x, runtime.rng)
        assert trainer.detector(inpainted).mean() > trainer.detector(x).mean() + 0.2


def test_published_networks_are_kept_at_their_best_moments(runtime, monkeypatch):
    training = make_training("images", is_published=True, max_steps=6)
    trainer = make_trainer(runtime, training, "images")
    errors, mistakes = [5, 4, 2, 3, 2, 9], [1.5, 1.2, 1.3, 1.2, 0.5, 1.4]
    moments = []

    def figures():
        moments.append([weights_of(network) for network in (trainer.inpainter, trainer.detector)])
        return errors[len(moments) - 1], mistakes[len(moments) - 1]

    monkeypatch.setattr(trainer, "_validation_errors", figures)
    for _ in range(6):
        trainer.step()
    assert len(moments) == 6
    for i, best in ((0, 2), (1, 4)):  # of two equal ones, the earlier
        kept = weights_of(trainer.result[i])
        for name, value in moments[best][i].items():
            np.testing.assert_array_equal(kept[name], value)
        assert max(moved(moments[-1][i], kept)) > 0


def test_a_detector_that_knew_a_worse_inpainter_is_not_kept(runtime, monkeypatch):
    """Whatever the first, untrained inpainter makes is told from normal data at once."""
    training = make_training("images", is_published=True, max_steps=3)
    trainer = make_trainer(runtime, training, "images")
    figures = iter([(5, 0.0), (4, 1.2), (4.5, 1.3)])
    monkeypatch.setattr(trainer, "_validation_errors", lambda: next(figures))
    for moment in range(3):
        trainer.step()
        if moment == 1:
            expected = weights_of(trainer.detector)
    kept = weights_of(trainer.result[1])
    assert all(np.array_equal(kept[name], value) for name, value in expected.items())


@KINDS
def test_noise_of_eq_2_is_a_fraction_of_the_grey_range(runtime, kind):
    training = make_training(kind, is_published=True, gamma=0.4)
    trainer = make_trainer(runtime, training, kind)
    seen = []
    monkeyed = trainer._inpaint
    trainer._inpaint = lambda x: seen.append(x) or monkeyed(x)
    x = trainer.samples.draw(50, runtime)
    trainer._restore(x, runtime.rng)
    grey = trainer.samples.X
    scale = float(grey.max() - grey.min()) if kind == "images" else 1.0
    assert float((seen[0] - x).std()) == pytest.approx(0.4 * scale, rel=0.1)


def test_eq_3_and_what_the_authors_made_of_it():
    """Of two samples of two regions; anomalies are Y - D."""
    real, inpainted = torch.tensor([[0.2, 0.4], [0.0, 0.6]]), torch.tensor([[0.5, 1.0], [0.5, 0.5]])

    def log(*rows):
        return np.mean([np.log(np.mean(np.square(row))) for row in rows])

    of_real, of_inpainted = log([0.8, 0.6], [1.0, 0.4]), log([0.5, 1.0], [0.5, 0.5])
    assert float(inpainter_loss(inpainted, "log")) == pytest.approx(of_inpainted)
    loss = detector_loss(real, inpainted, "log")
    assert float(loss) == pytest.approx(-of_real - of_inpainted)
    squares = np.mean([0.25, 1, 0.25, 0.25])
    assert float(inpainter_loss(inpainted, "squares")) == pytest.approx(squares)
    loss = detector_loss(real, inpainted, "squares")
    assert float(loss) == pytest.approx(0.14 + np.mean([0.25, 0, 0.25, 0.25]))


def test_eq_4_keeps_what_both_find():
    by_inpainter, by_detector = np.array([[0.0, 2.0, 2.0]]), np.array([[3.0, 0.0, 3.0]])
    assert segment(by_inpainter, by_detector, 1.0, 1.0).tolist() == [[False, False, True]]


def test_published_figures_are_those_of_section_4_3(runtime):
    networks = make_networks(runtime, "table")
    with torch.no_grad():
        for network in networks:
            for parameter in network.parameters():
                parameter.zero_()
    training = make_training("table", is_published=True, max_steps=1)
    trainer = make_trainer(runtime, training, "table", networks)
    trainer.validation = Rows(torch.full((20, 6), 3.0))
    error, mistakes = trainer._validation_errors()
    assert error == pytest.approx(9)  # the inpainter says 0
    assert mistakes == 0  # the detector calls nothing anomalous, nor normal
    with torch.no_grad():
        trainer.detector.perceptron.layers[-1].bias.fill_(1)
    trainer.validation = Rows(make_data("table"))
    assert trainer._validation_errors()[1] == 1  # all normal rows are misjudged, no inpainted one


@KINDS
@WAYS
@pytest.mark.parametrize("n_steps", [1, 4])
def test_an_early_stop_keeps_what_was_learned(runtime, kind, is_published, n_steps):
    training = make_training(kind, is_published, max_steps=200)
    losses, before, after = train(runtime, training, kind, n_steps)
    assert len(losses) == n_steps
    for i in range(2):
        assert max(moved(before[i], after[i])) > 0


def test_networks_are_averaged_over_steps():
    distances = {}
    for decay in (0.0, 0.99):
        trainer = make_trainer(
            make_runtime(),
            make_training("images", max_steps=60, averaging_decay=decay),
            "images",
        )
        first = weights_of(trainer.inpainter)
        for _ in range(60):
            trainer.step()
        last, average = weights_of(trainer.inpainter), weights_of(trainer.result[0])
        distances[decay] = [
            np.sqrt(
                sum(
                    np.square(average[key] - weights[key]).sum()
                    for key in weights
                    if weights[key].ndim > 1
                )
            )
            for weights in (first, last)
        ]
        assert not any(network.training for network in trainer.result)
    from_first, from_last = distances[0.99]
    assert 0 < from_last < 0.3 * from_first
    assert distances[0.0][1] == 0


@KINDS
@WAYS
def test_trainers_leave_global_generators_alone(kind, is_published):
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    training = make_training(kind, is_published, max_steps=4)
    results = [train(make_runtime(seed), training, kind, 4)[2] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)
    for first, same, other in zip(*results, strict=True):
        assert max(moved(first, same)) == 0
        assert max(moved(first, other)) > 0


@KINDS
def test_training_in_bfloat16(kind):
    training = make_training(kind, adversarial_weight=0.1, max_steps=80)
    losses, _, after = train(make_runtime(precision="bfloat16"), training, kind, 80)
    values = [step["reconstruction_loss"] for step in losses]
    assert np.mean(values[-20:]) < 0.9 * np.mean(values[:20])
    assert all(
        value.dtype in (np.float32, np.int64) for weights in after for value in weights.values()
    )


# Preprocessing


@pytest.mark.parametrize("width", [1, 3, 9, 41])
def test_box_means_are_scipys(width):
    images = torch.randn(2, 3, 17, 30)
    found = box_mean(images, width)
    assert found.shape == images.shape
    size = (1, 1, width, width)
    inside = ndimage.uniform_filter(np.ones((1, 1, 17, 30)), size, mode="constant")
    expected = ndimage.uniform_filter(images.double().numpy(), size, mode="constant") / inside
    np.testing.assert_allclose(found, expected, atol=1e-5)


def make_preprocessor(X, region_size, stride=8, normalize_illumination=True):
    preprocessor = ImagePreprocessor(
        X.shape[1:], region_size, PatchNet().region_pixels, stride, normalize_illumination
    )
    return preprocessor.fit(X.reshape(len(X), -1))


def unevenly_lit_images(n=6, shape=(2, 40, 52)):
    rng = np.random.default_rng(0)
    light = np.linspace(1, 5, shape[-1])
    return 100 + 20 * light * (3 + ndimage.gaussian_filter1d(rng.normal(size=(n, *shape)), 3))


@pytest.mark.parametrize(
    ("region_size", "scaled", "size"),
    [
        (12, 12, (40, 52)),
        (16, 16, (40, 52)),
        (20, 20, (40, 52)),
        (8, 16, (80, 104)),
        (4, 16, (160, 208)),
        (32, 16, (20, 26)),
        (40, 16, (16, 21)),
    ],
)
@pytest.mark.parametrize("stride", [4, 16])
def test_images_are_resized_so_that_regions_have_one_size(region_size, scaled, size, stride):
    X = unevenly_lit_images()
    preprocessor = make_preprocessor(X, region_size, stride)
    assert preprocessor.region_size == scaled
    assert all(length % stride == 0 for length in preprocessor.padded_size)
    assert all(0 <= a - b < stride for a, b in zip(preprocessor.padded_size, size, strict=True))
    drawn = preprocessor.encode(X.reshape(6, -1))
    assert drawn.shape == (6, 2, *preprocessor.padded_size)
    assert drawn.dtype == torch.float32
    # What was padded goes on as the border ends.
    assert (drawn[..., size[0] - 1 :, :] == drawn[..., size[0] - 1 : size[0], :]).all()
    assert (drawn[..., size[1] - 1 :] == drawn[..., size[1] - 1 : size[1]]).all()


@pytest.mark.parametrize("normalize_illumination", [False, True])
@pytest.mark.parametrize("stride", [4, 16])
@pytest.mark.parametrize(("region_size", "tolerance"), [(16, 1e-6), (6, 0.15), (28, 0.25)])
def test_images_come_back_from_preprocessing(
    normalize_illumination, stride, region_size, tolerance
):
    X = unevenly_lit_images()
    rows = X.reshape(6, -1)
    preprocessor = make_preprocessor(X, region_size, stride, normalize_illumination)
    back = preprocessor.decode(preprocessor.encode(rows), rows)
    assert back.shape == rows.shape
    assert back.dtype == np.float64
    assert np.sqrt(np.mean(np.square(back - rows))) < tolerance * rows.std()


@pytest.mark.parametrize("region_size", [16, 8, 32])
def test_maps_lie_where_the_pixels_are(region_size):
    X = unevenly_lit_images()
    preprocessor = make_preprocessor(X, region_size, 16, normalize_illumination=False)
    marked = np.zeros_like(X)
    marked[:, :, 8:24, 28:44] = 1e5
    drawn = preprocessor.encode(marked.reshape(6, -1))
    threshold = (drawn.max() + drawn.min()) / 2
    found = preprocessor.to_pixels((drawn > threshold).float()) > 0.5
    np.testing.assert_array_equal(found, marked > 0)


def textures(n, seed):
    """Images whose contrast changes from left to right, and noise for their maps."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, 2, 48, 64)) * np.geomspace(0.2, 5, 64)
    return torch.from_numpy(images).float(), torch.from_numpy(rng.normal(size=(n, 2, 48, 64)))


def normalized(normalizer, maps, images):
    constants = {name: torch.from_numpy(a) for name, a in normalizer._constants().items()}
    return normalizer._compute(maps, images, constants)


def test_maps_are_judged_by_what_is_expected_in_such_surroundings():
    def maps_of(images, noise):
        contrast = box_mean(images.square().mean(1, keepdim=True), 9).add(0.1).log()
        return torch.cat([3 * contrast + 1, 5 + contrast.square()], dim=1) + (
            0.1 * (contrast + 4) * noise
        )

    normalizer = AppearanceNormalizer(9)
    batches = [(maps_of(*textures(4, seed)), textures(4, seed)[0]) for seed in range(4)]
    normalizer.fit(batches)
    images, noise = textures(10, 9)
    maps = maps_of(images, noise)
    known = torch.cat([maps for maps, _ in batches])
    at_all = (maps - known.mean((0, 2, 3), keepdim=True)) / known.std((0, 2, 3), keepdim=True)
    deviations = normalized(normalizer, maps, images)
    assert (deviations > at_all - 0.2).all()
    # Where little goes on, what is far below the mean is expected, and a little less far is not.
    calm = deviations[:, 0, :, :12].double()
    assert abs(calm.mean()) < 0.35
    assert 0.7 < calm.std() < 1.4
    maps[:, 0, 20, 5] += 2
    at_all[:, 0, 20, 5] += 2 / known[:, 0].std()
    assert (at_all[:, 0, 20, 5] < 0).all()
    calm = normalized(normalizer, maps, images)[:, 0, :, :12].flatten(1)
    assert (calm.argmax(1) == 20 * 12 + 5).all()


def test_surroundings_beyond_the_known_count_as_the_last_known():
    images, noise = textures(8, 0)
    normalizer = AppearanceNormalizer(9).fit([(noise, images)])
    beyond, further = (normalized(normalizer, noise, factor * images) for factor in (1e3, 1e5))
    assert beyond.isfinite().all()
    same = (slice(None), slice(None), slice(None), slice(32, None))
    np.testing.assert_allclose(beyond[same].std(), noise[same].std(), rtol=0.3)
    assert (beyond - further)[same].abs().mean() < 0.3


def test_normalizing_hides_illumination_and_nothing_else():
    rng = np.random.default_rng(0)
    texture = rng.normal(size=(5, 1, 60, 60))
    light = np.linspace(1, 4, 60)
    even, raw = (
        [
            make_preprocessor(X, 12, 4, normalize_illumination).encode(X.reshape(5, -1)).numpy()
            for X in (texture, light * (texture + 3))
        ]
        for normalize_illumination in (True, False)
    )
    assert np.corrcoef(even[0].ravel(), even[1].ravel())[0, 1] > 0.95
    assert np.corrcoef(raw[0].ravel(), raw[1].ravel())[0, 1] < 0.8
    assert abs(even[1].mean()) < 0.1
    assert 0.8 < even[1].std() < 1.1


@pytest.mark.parametrize(("brightness", "expected"), [(0, False), (3, True)])
def test_illumination_is_normalized_if_it_varies(brightness, expected):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(5, 1, 60, 60)) + brightness * rng.normal(size=(5, 1, 1, 1))
    drawn = {
        asked: make_preprocessor(X, 12, 4, asked).encode(X.reshape(5, -1))
        for asked in ("auto", True, False)
    }
    assert torch.equal(drawn["auto"], drawn[expected])
    assert not torch.equal(drawn["auto"], drawn[not expected])


def test_preprocessing_standardises_channels_and_keeps_their_contrast():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 2, 24, 24)) * [[[1.0]], [[3.0]]] + [[[5.0]], [[-9.0]]]
    drawn = make_preprocessor(X, 12, 8, normalize_illumination=False).encode(X.reshape(20, -1))
    torch.testing.assert_close(drawn.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    quiet, loud = drawn.std((0, 2, 3)).tolist()
    assert loud / quiet == pytest.approx(3, rel=0.05)
