"""Networks and trainers, without scikit-learn."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from threadpoolctl import threadpool_info

from sklearn_g2d.avid._appearance import ConditionalScaler
from sklearn_g2d.avid._masking import ImageRegions, TableRegions
from sklearn_g2d.avid._networks import CellDetector, CellInpainter, PatchDetector, UNet
from sklearn_g2d.avid._preprocessing import Canvas, box_mean
from sklearn_g2d.avid._training import InpaintingGame, InpaintingSettings
from sklearn_g2d.errors import TrainingDivergedError
from sklearn_g2d.g2d._classifier import ClassifierSettings, ClassifierTrainer
from sklearn_g2d.g2d._image_networks import ConvGenerator, ConvNetwork, n_halvings
from sklearn_g2d.g2d._networks import TableGenerator
from sklearn_g2d.g2d._snapshots import (
    Snapshot,
    geometric_steps,
    irregular,
    role_by_distance,
    roles_by_loss,
    spread_evenly,
)
from sklearn_g2d.g2d._wgan import WGAN, WGANSettings
from sklearn_g2d.training.ensemble import EnsembleMLP, load_weights, weights_of
from sklearn_g2d.training.loop import Training
from sklearn_g2d.training.runtime import Runtime, single_thread
from sklearn_g2d.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _same_data_every_time():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def runtime():
    return Runtime.create("cpu", "float32", seed=0)


def make_generator(runtime, n_features=3, latent_dim=16, n_members=2, bound=8.0, skip=True):
    return TableGenerator(
        n_members=n_members,
        n_features=n_features,
        latent_dim=latent_dim,
        hidden=(32,),
        skip=skip,
        tail=0.0,
        bound=bound,
        rng=runtime.rng,
    )


# Networks


def test_an_ensemble_is_its_members(runtime):
    ensemble = EnsembleMLP(3, (4, 8, 2), runtime.rng)
    x = torch.randn(3, 5, 4)
    for i in range(3):
        h = x[i] @ ensemble.layers[0].weight[i] + ensemble.layers[0].bias[i]
        h = torch.nn.functional.leaky_relu(h, 0.2)
        expected = h @ ensemble.layers[1].weight[i] + ensemble.layers[1].bias[i]
        torch.testing.assert_close(ensemble(x)[i], expected)


def test_analytic_input_gradient_is_autograds(runtime):
    critic = EnsembleMLP(2, (4, 8, 6, 1), runtime.rng).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    found = critic.input_gradient(x)
    torch.testing.assert_close(found, expected)
    by_weights = [
        torch.autograd.grad(g.square().sum(), critic.layers[0].weight, retain_graph=True)[0]
        for g in (expected, found)
    ]
    torch.testing.assert_close(by_weights[1], by_weights[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_modules_pickle_as_numpy(runtime, dtype):
    generator = make_generator(runtime).to(dtype)
    stored = pickle.dumps(generator)
    assert b"torch._utils" not in stored
    loaded = pickle.loads(stored)
    z = torch.randn(2, 7, 16, dtype=dtype)
    assert torch.equal(loaded(z), generator(z))


def test_loaded_weights_are_copies(runtime):
    generator = make_generator(runtime)
    weights = weights_of(generator)
    before = {name: value.copy() for name, value in weights.items()}
    load_weights(generator, weights)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(1)
    for name, value in weights.items():
        np.testing.assert_array_equal(value, before[name])


def test_the_initial_cloud_covers_the_data(runtime):
    X = torch.tensor([[1.0, 0.9], [0.0, 0.3]]) @ torch.randn(2, 4000)
    X = (X - X.mean(1, keepdim=True)).T.contiguous()
    generator = make_generator(runtime, n_features=2, bound=float("inf"))
    generator.cover(X, spread=3.0, rng=runtime.rng)
    isotropic, correlated = generator.sample(20_000, runtime.rng).detach()
    torch.testing.assert_close(torch.cov(isotropic.T), 9 * torch.eye(2), atol=1.0, rtol=0)
    torch.testing.assert_close(
        torch.cov(correlated.T), 9 * torch.cov(X.T), atol=0.1 * 9 * X.var().item(), rtol=0.1
    )


def test_short_noise_still_covers_the_largest_variances(runtime):
    X = torch.randn(500, 30) * torch.linspace(0.1, 3, 30)
    generator = make_generator(runtime, n_features=30, latent_dim=5, bound=float("inf"))
    generator.cover(X, spread=1.0, rng=runtime.rng)
    _, correlated = generator.sample(5000, runtime.rng).detach()
    assert correlated.std(dim=0)[-3:].min() > 2
    assert correlated.std(dim=0)[:3].max() < 1


def test_samples_stay_within_the_bound(runtime):
    generator = make_generator(runtime, bound=2.0)
    generator.cover(torch.randn(100, 3), spread=50.0, rng=runtime.rng)
    assert generator.sample(100, runtime.rng).abs().max() <= 2


def make_conv_generator(runtime, image_shape=(1, 9, 12), n_members=2, width=4):
    return ConvGenerator(
        n_members=n_members, image_shape=image_shape, latent_dim=6, width=width, rng=runtime.rng
    )


def make_conv_network(runtime, image_shape=(1, 9, 12), n_members=2, n_outputs=1):
    return ConvNetwork(
        n_members=n_members, image_shape=image_shape, width=4, n_outputs=n_outputs, rng=runtime.rng
    )


IMAGE_SHAPES = pytest.mark.parametrize(
    "image_shape", [(1, 2, 2), (1, 3, 5), (3, 7, 9), (2, 8, 8), (1, 33, 17), (3, 32, 32)]
)


@IMAGE_SHAPES
def test_conv_generators_make_images_of_the_size_asked_for(runtime, image_shape):
    generator = make_conv_generator(runtime, image_shape)
    images = generator.sample(5, runtime.rng).detach()
    assert images.shape == (2, 5, np.prod(image_shape))
    assert images.abs().max() <= 1
    # No pixel is a constant, at the borders neither.
    assert images.std(dim=1).min() > 0
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(100)
    assert 0.99 < generator.sample(5, runtime.rng).abs().max() <= 1


@IMAGE_SHAPES
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_conv_networks_look_at_every_pixel(runtime, image_shape, n_outputs):
    network = make_conv_network(runtime, image_shape, n_outputs=n_outputs)
    x = torch.randn(2, 5, int(np.prod(image_shape)), requires_grad=True)
    outputs = network(x)
    assert outputs.shape == (2, 5, n_outputs)
    outputs[..., 0].sum().backward()
    assert (x.grad != 0).all()


def test_too_small_an_image_for_a_convolution():
    assert [n_halvings((n, 40)) for n in (2, 7, 8, 15, 16, 40)] == [1, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match=r"at least 2 x 2 pixels, got 1 x 8.*features=\"raw\""):
        n_halvings((1, 8))


def test_conv_input_gradient_against_finite_differences(runtime):
    critic = make_conv_network(runtime).double()
    x = torch.randn(2, 3, 108, dtype=torch.float64)
    found = critic.input_gradient(x)
    assert found.shape == x.shape
    step = 1e-6
    shifts = step * torch.eye(108, dtype=torch.float64)
    with torch.no_grad():
        for i in range(3):
            rise = critic(x[:, i : i + 1] + shifts) - critic(x[:, i : i + 1] - shifts)
            expected = rise.squeeze(2) / (2 * step)
            torch.testing.assert_close(found[:, i], expected, rtol=1e-5, atol=1e-8)


def test_the_penalty_of_a_conv_critic_reaches_its_weights(runtime):
    critic = make_conv_network(runtime, (2, 16, 16)).double()
    x = torch.randn(2, 3, 512, dtype=torch.float64)

    def penalty():
        return (critic.input_gradient(x).square().sum(2).sqrt() - 1).square().sum()

    penalty().backward()
    step = 1e-6
    for name, parameter in critic.named_parameters():
        if name.endswith("bias"):  # which hardly moves a gradient
            continue
        assert parameter.grad.abs().max() > 0, name
        direction = torch.randn_like(parameter)
        parameter.data.add_(direction, alpha=step)
        above = penalty()
        parameter.data.sub_(direction, alpha=2 * step)
        below = penalty()
        parameter.data.add_(direction, alpha=step)
        torch.testing.assert_close(
            (parameter.grad * direction).sum(),
            (above - below).detach() / (2 * step),
            rtol=1e-4,
            atol=1e-7,
        )


@pytest.mark.parametrize("make", [make_conv_generator, make_conv_network])
def test_members_of_a_conv_ensemble_are_independent(runtime, make):
    network = make(runtime, n_members=3)
    x = torch.randn(1, 5, 6 if make is make_conv_generator else 108).expand(3, -1, -1)
    before = network(x).detach()
    for other in (1, 2):  # drawn from one generator, yet all different
        assert (before[0] - before[other]).abs().max() > 1e-3
    with torch.no_grad():
        for parameter in network.members[1].parameters():
            parameter.add_(0.1)
    after = network(x).detach()
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert (after[1] - before[1]).abs().max() > 1e-3
    network(x)[2].square().sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in network.members[1].parameters())
    assert any(p.grad.any() for p in network.members[2].parameters())


def test_conv_networks_of_one_seed_are_equal_and_leave_the_global_one_alone():
    before = torch.get_rng_state()
    first, same, other = (
        weights_of(make_conv_generator(Runtime.create("cpu", "float32", seed)))
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.items():
        np.testing.assert_array_equal(same[name], value)
    assert any((other[name] != value).any() for name, value in first.items())


def test_conv_modules_pickle_as_numpy_with_their_averages(runtime):
    generator = make_conv_generator(runtime, (3, 9, 17))
    for _ in range(3):
        generator.sample(8, runtime.rng)
    assert generator.members[0][1].running_mean.abs().max() > 0
    critic = make_conv_network(runtime, (3, 9, 17), n_outputs=2)
    for module, x in [(generator, torch.randn(2, 7, 6)), (critic, torch.randn(2, 7, 459))]:
        stored = pickle.dumps(module)
        assert b"torch._utils" not in stored
        loaded = pickle.loads(stored)
        weights = weights_of(module)
        assert weights_of(loaded).keys() == weights.keys()
        for name, value in weights_of(loaded).items():
            np.testing.assert_array_equal(value, weights[name])
            assert value.dtype == weights[name].dtype
        assert torch.equal(loaded.eval()(x), module.eval()(x))


@pytest.mark.parametrize("n_channels", [1, 2])
def test_stored_kernels_keep_their_layout(runtime, n_channels):
    """Two layouts of one channel look alike, but sums over them differ in their last digits."""
    network = make_conv_network(runtime, (n_channels, 9, 17), n_outputs=2)
    loaded = pickle.loads(pickle.dumps(network)).state_dict()
    for name, value in network.state_dict().items():
        assert loaded[name].stride() == value.stride(), name


def make_unet(runtime, n_channels=1, widths=(4, 8), first_skip=1):
    return UNet(n_channels=n_channels, widths=widths, first_skip=first_skip, rng=runtime.rng)


def make_patch_detector(runtime, n_channels=1, layers=((4, 3, 1), (8, 4, 2)), normalize=True):
    return PatchDetector(
        n_channels=n_channels,
        layers=layers,
        normalize=normalize,
        negative_slope=0.1,
        rng=runtime.rng,
    )


def make_players(runtime, kind):
    """I and D, their regions, and regular data: stripes, or columns that follow each other."""
    rng = torch.Generator().manual_seed(0)
    if kind == "images":
        phase = 8 * torch.rand(40, 1, 1, 1, generator=rng)
        X = torch.sin(torch.arange(24.0) * torch.pi / 4 + phase).expand(-1, -1, 20, -1)
        X = X + 0.2 * torch.randn(X.shape, generator=rng)
        players = make_unet(runtime), make_patch_detector(runtime), ImageRegions(4, (16, 16))
    else:
        X = torch.randn(100, 1, generator=rng) + 0.3 * torch.randn(100, 6, generator=rng)
        sizes = {"n_features": 6, "hidden": (16,), "rng": runtime.rng}
        regions = TableRegions.create(6, runtime.rng)
        players = CellInpainter(**sizes), CellDetector(**sizes), regions
    return *players, X


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize(("widths", "first_skip"), [((4, 8), 0), ((3, 4, 5, 6), 2), ((4, 4, 4), 9)])
def test_unets_see_nothing_that_is_hidden(runtime, n_channels, widths, first_skip):
    unet = make_unet(runtime, n_channels, widths, first_skip).eval()
    assert unet.stride == 2 ** (len(widths) - 1)
    x, other = torch.randn(2, 3, n_channels, 16, 24)
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., 3:9, 5:20] = 1
    inpainted = unet(x, mask)
    assert inpainted.shape == x.shape
    assert torch.equal(unet(torch.where(mask > 0, other, x), mask), inpainted)
    assert (unet(torch.where(mask > 0, x, other), mask) != inpainted).any()
    assert (unet(x, 1 - mask) != inpainted).any()  # and knows what is hidden
    torch.testing.assert_close(unet(x, mask.expand(3, -1, -1, -1)), inpainted)


def test_cell_inpainters_see_nothing_that_is_hidden(runtime):
    inpainter = CellInpainter(n_features=5, hidden=(8,), rng=runtime.rng)
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
        sum(p.numel() for p in make_unet(runtime, 1, (4, 6, 8), skip).parameters())
        for skip in (0, 1, 2)
    ]
    # A skip doubles what the first convolution of a decoder level takes in: 3 x 3 kernels.
    assert sizes[0] - sizes[1] == 9 * 4 * 4
    assert sizes[1] - sizes[2] == 9 * 6 * 6


@pytest.mark.parametrize(
    ("layers", "stride"),
    [(((4, 3, 1),), 1), (((4, 11, 4), (4, 1, 1), (4, 3, 2), (4, 5, 2)), 16), (((4, 4, 2),) * 3, 8)],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_patch_detectors_judge_every_region(runtime, layers, stride, normalize):
    detector = make_patch_detector(runtime, 2, layers, normalize).eval()
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


@pytest.mark.parametrize("kind", ["images", "table"])
def test_inpainting_networks_pickle_as_numpy(runtime, kind):
    inpainter, detector, _, X = make_players(runtime, kind)
    X = X[:, :, :16, :16] if kind == "images" else X
    inpainter(X, torch.zeros_like(X[:1]))  # moves the averages of batch norm
    detector(X)
    for network, x in ((inpainter, (X, torch.zeros_like(X[:1]))), (detector, (X,))):
        stored = pickle.dumps(network)
        assert b"torch._utils" not in stored
        assert torch.equal(pickle.loads(stored)(*x), network.eval()(*x))


@pytest.mark.parametrize("kind", ["images", "table"])
def test_inpainting_networks_of_one_seed_are_equal_and_leave_the_global_one_alone(kind):
    before = torch.get_rng_state()
    first, same, other = (
        make_players(Runtime.create("cpu", "float32", seed), kind)[:2] for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    for network, its_equal, another in zip(first, same, other, strict=True):
        weights = weights_of(network)
        for name, value in weights_of(its_equal).items():
            np.testing.assert_array_equal(value, weights[name])
        assert any((weights_of(another)[name] != weights[name]).any() for name in weights)


# Trainers


def test_wgan_learns_a_distribution(runtime):
    X = torch.randn(1000, 2) * 0.3 + torch.tensor([2.0, -1.0])
    generator = make_generator(runtime, n_features=2, skip=False)
    critic = EnsembleMLP(2, (2, 32, 32, 1), runtime.rng)
    settings = WGANSettings(batch_size=64, n_critic=3, gradient_penalty=10, learning_rate=1e-3)
    before = generator.sample(500, runtime.rng).detach().mean((0, 1))
    trainer = WGAN(generator, critic, X, settings, runtime)
    losses = [trainer.step() for _ in range(800)]
    after = generator.sample(500, runtime.rng).detach().mean((0, 1))
    assert (after - X.mean(0)).norm() < 0.25 * (before - X.mean(0)).norm()
    assert set(losses[0]) == {"critic_loss", "generator_loss"}
    early = max(step["generator_loss"] for step in losses[:100])
    assert losses[-1]["generator_loss"] < 0.5 * early


def test_wgan_learns_images(runtime):
    X = torch.full((200, 1, 8, 8), -0.8)
    X[..., 4:] = 0.8
    X = (X + 0.1 * torch.randn(X.shape)).clamp(-1, 1).flatten(1)
    generator = make_conv_generator(runtime, (1, 8, 8), n_members=1, width=8)
    critic = make_conv_network(runtime, (1, 8, 8), n_members=1)
    settings = WGANSettings(batch_size=16, n_critic=2, gradient_penalty=10, learning_rate=5e-3)
    before = generator.sample(100, runtime.rng).detach().mean((0, 1))
    trainer = WGAN(generator, critic, X, settings, runtime)
    for _ in range(60):
        trainer.step()
    after = generator.sample(100, runtime.rng).detach().mean((0, 1))
    assert (after - X.mean(0)).norm() < 0.5 * (before - X.mean(0)).norm()


def test_classifier_never_sees_what_a_member_is_blind_to(runtime):
    normal, generated = torch.randn(40, 2), torch.randn(60, 2) + 4
    blind = torch.zeros(2, 40, dtype=torch.bool)
    blind[0, ::2] = blind[1, 1::2] = True
    normal[::2] = float("nan")  # member 1 meets these rows, member 0 must not
    network = EnsembleMLP(2, (2, 8, 2), runtime.rng)
    settings = ClassifierSettings(batch_size=16, optimizer="sgd", learning_rate=0.01)
    ClassifierTrainer(network, normal, generated, blind, settings, runtime).step()
    first_layer = network.layers[0].weight
    assert torch.isfinite(first_layer[0]).all()
    assert not torch.isfinite(first_layer[1]).all()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_classifier_separates(runtime, optimizer):
    normal, generated = torch.randn(200, 2), torch.randn(200, 2) + 5
    network = EnsembleMLP(2, (2, 8, 2), runtime.rng)
    settings = ClassifierSettings(batch_size=32, optimizer=optimizer, learning_rate=0.01)
    blind = torch.zeros(2, 200, dtype=torch.bool)
    trainer = ClassifierTrainer(network, normal, generated, blind, settings, runtime)
    losses = [float(trainer.step()["classifier_loss"]) for _ in range(200)]
    assert losses[-1] < 0.2 * losses[0]


class Descent(Trainer):
    """Gradient descent of w ** 2 / 2 from 1; "b" is whatever `b` says of the step and the rate."""

    def __init__(self, runtime, learning_rate=0.01, b=lambda step, rate: 1.0):
        self.w = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.w.weight)
        self.optimizer = torch.optim.SGD(self.w.parameters(), learning_rate, momentum=0.5)
        self.b = b
        self.drawn = []
        super().__init__({"w": self.w}, [self.optimizer], runtime)

    def _step(self):
        self.drawn.append(float(torch.rand(1, generator=self.runtime.rng)))
        loss = self.w.weight.square().sum() / 2
        self._update(self.optimizer, loss)
        b = self.b(self.n_steps + 1, self.optimizer.param_groups[0]["lr"])
        return {"a": loss.detach(), "b": torch.tensor(b)}


def never(step, losses):
    return False


def test_a_training_stops_on_request_and_keeps_every_loss(runtime):
    training = Training(Descent(runtime, b=lambda step, rate: float(step)), 500)
    training.run(lambda step, losses: step == 120, remedy="")
    np.testing.assert_array_equal(training.history["b"], np.arange(1, 121))
    assert training.step == training.trainer.n_steps == 120
    assert training.retries == []


def test_a_training_without_steps(runtime):
    training = Training(Descent(runtime), 0)
    training.run(never, remedy="")
    assert training.history == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e9, -1e30])
@pytest.mark.parametrize("when", [1, 50, 51, 61])
def test_divergence_is_found_also_in_the_first_and_the_last_steps(runtime, value, when):
    trainer = Descent(runtime, b=lambda step, rate: value if step >= when else 1.0)
    if when == 1 and np.isfinite(value):  # a loss is compared with the first one
        trainer.b = lambda step, rate: value if step >= 2 else 1.0
    what = "became infinite or NaN" if not np.isfinite(value) else "grew to"
    steps = "51 to 61" if when > 50 else "1 to 50"
    training = Training(trainer, 61)
    with pytest.raises(TrainingDivergedError, match=f"b {what}.* within steps {steps}, .* Do this"):
        training.run(never, remedy="Do this.")
    assert training.diverged
    assert training.retries == [50 if when > 50 else 0] * 3


def test_large_losses_are_no_divergence(runtime):
    """Scores of a critic have no scale, and the first loss may be as large as its weight."""
    for values in (lambda step, rate: (-2.0) ** (step % 30), lambda step, rate: 1e25 / step):
        training = Training(Descent(runtime, b=values), 120)
        training.run(never, remedy="")
        assert training.retries == []


def test_weights_that_overflow_are_divergence_also_without_a_loss_to_tell(runtime):
    trainer = Descent(runtime)

    def overflow(step, rate):
        if step == 50:
            with torch.no_grad():
                trainer.w.weight.fill_(np.inf)
        return 1.0

    trainer.b = overflow
    with pytest.raises(TrainingDivergedError, match="Weights became infinite or NaN"):
        Training(trainer, 50).run(never, remedy="")


def test_a_retry_goes_back_to_the_last_good_state_at_half_the_rate(runtime):
    """With a momentum of .5, this descent diverges at rates above 3."""
    rates = []
    trainer = Descent(runtime, 16.0, b=lambda step, rate: rates.append(rate) or 1.0)
    shown = []
    training = Training(trainer, 100)
    training.run(lambda step, losses: shown.append(step), remedy="")
    assert training.retries == [0, 0, 0]
    assert shown == list(range(1, 101))
    assert len(training.history["a"]) == 100
    assert training.history["a"][0] == 0.5  # of the weight at the beginning
    assert [rates[50 * i] for i in range(4)] == [16, 8, 4, 2]
    assert set(rates[150:]) == {2.0}
    draws = np.array(trainer.drawn[:200]).reshape(4, 50)
    assert (draws == draws[0]).all()  # random numbers go back, too
    assert abs(trainer.w.weight.item()) < 1e-3


def test_a_retry_in_the_middle_keeps_what_was_good(runtime):
    values = Descent(runtime, b=lambda step, rate: np.nan if step == 80 and rate == 0.01 else 1.0)
    plain = Descent(Runtime.create("cpu", "float32", seed=0))
    training, expected = Training(values, 120), Training(plain, 120)
    training.run(never, remedy="")
    expected.run(never, remedy="")
    assert training.retries == [50]
    losses, undisturbed = training.history["a"], expected.history["a"]
    np.testing.assert_array_equal(losses[:51], undisturbed[:51])
    assert (losses[60:] > undisturbed[60:]).all()  # as it descends at half the rate


def test_an_early_stop_holds_through_a_retry(runtime):
    diverge_once = Descent(runtime, b=lambda step, rate: np.nan if rate == 0.01 else 1.0)
    training = Training(diverge_once, 100)
    training.run(lambda step, losses: step == 7, remedy="")
    assert training.retries == [0]
    assert training.step == len(training.history["b"]) == 7
    assert np.isfinite(training.history["b"]).all()


def all_trainers(seed):
    """Name every trainer, each with networks and optimisers of its own."""
    for kind in ("images", "table"):
        for settings in (SETTINGS, replace(SETTINGS, detector_every=3), PUBLISHED):
            runtime = Runtime.create("cpu", "float32", seed)
            *players, X = make_players(runtime, kind)
            name = f"{kind}, published={settings.published}, every {settings.detector_every}"
            yield name, InpaintingGame(*players, X[10:], X[:10], 90, settings, runtime)
    settings = WGANSettings(batch_size=8, n_critic=2, gradient_penalty=10, learning_rate=1e-3)
    runtime = Runtime.create("cpu", "float32", seed)
    critic, X = EnsembleMLP(2, (3, 8, 1), runtime.rng), torch.linspace(-1, 1, 60).reshape(20, 3)
    yield "WGAN", WGAN(make_generator(runtime), critic, X, settings, runtime)
    runtime = Runtime.create("cpu", "float32", seed)
    networks = make_conv_generator(runtime), make_conv_network(runtime)
    X = torch.linspace(-1, 1, 540).reshape(5, 108)
    yield "convolutions", WGAN(*networks, X, settings, runtime)
    for optimizer in ("adamw", "sgd"):
        runtime = Runtime.create("cpu", "float32", seed)
        network = EnsembleMLP(2, (3, 8, 2), runtime.rng)
        settings = ClassifierSettings(batch_size=8, optimizer=optimizer, learning_rate=0.01)
        blind = torch.zeros(2, 5, dtype=torch.bool)
        rows = torch.linspace(-1, 1, 15).reshape(5, 3)
        yield optimizer, ClassifierTrainer(network, rows, rows + 1, blind, settings, runtime)


def as_arrays(value):
    """Turn the tensors of a state into arrays, as reading it from a file does."""
    if isinstance(value, dict):
        return {key: as_arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_arrays(item) for item in value]
    return value.numpy().copy() if isinstance(value, torch.Tensor) else value


def assert_equal_states(first, second):
    np.testing.assert_equal(as_arrays(first), as_arrays(second))


@pytest.mark.parametrize("at", [0, 4])
def test_every_trainer_goes_on_from_its_state_in_every_bit(at):
    for (name, trainer), (_, other) in zip(all_trainers(seed=0), all_trainers(seed=1), strict=True):
        for _ in range(at):
            trainer.step()
        state = trainer.state_dict()
        kept = as_arrays(state)
        losses = [trainer.step() for _ in range(5)]
        assert_equal_states(state, kept)  # a copy, which training does not touch
        after = trainer.state_dict()
        other.step()
        for loaded, into in ((state, trainer), (kept, other), (kept, trainer)):
            into.load_state_dict(loaded)
            assert_equal_states(into.state_dict(), kept)
            again = [into.step() for _ in range(5)]
            assert_equal_states(again, losses)
            assert_equal_states(into.state_dict(), after)
        assert trainer.is_finite(), name


def test_every_trainer_finds_what_is_not_finite():
    for name, trainer in all_trainers(seed=0):
        for _ in range(2):
            trainer.step()
        good = trainer.state_dict()
        assert trainer.is_finite(), name
        for network in good["networks"]:
            for value in (np.nan, np.inf):
                bad = as_arrays(good)
                arrays = bad["networks"][network].values()
                next(a for a in arrays if a.dtype.kind == "f")[...] = value
                trainer.load_state_dict(bad)
                assert not trainer.is_finite(), (name, network)
        bad = as_arrays(good)
        next(iter(bad["optimizers"][0][0].values()))[...] = np.inf
        trainer.load_state_dict(bad)
        assert not trainer.is_finite(), name


def test_the_rate_of_every_trainer_can_be_lowered():
    for name, trainer in all_trainers(seed=0):
        trainer.step()
        state = trainer.state_dict()
        moves = []
        for factor in (1.0, 0.5, 0.0):
            trainer.load_state_dict(state)
            trainer.rate_factor = factor
            trainer.step()
            after = as_arrays(trainer.state_dict())["networks"]
            before = as_arrays(state)["networks"]
            moved_by = [
                np.abs(after[key][parameter] - before[key][parameter]).max()
                for key, network in before.items()
                for parameter in network
                if "kept" not in key and "running" not in parameter and "num" not in parameter
            ]
            moves.append(max(moved_by))
        assert moves[2] == 0, name
        assert 0.3 < moves[1] / moves[0] < 0.7, name


# What is hidden, exchanged and judged


@pytest.mark.parametrize("size", [(24, 24), (17, 30), (5, 64)])
@pytest.mark.parametrize("region_size", [2, 5, 12, 16])
def test_a_partition_of_an_image_hides_every_pixel_once(size, region_size):
    x = torch.zeros(2, 3, *size)
    masks = ImageRegions(region_size, size).partition(x)
    assert all(mask.shape == (1, 1, *size) for mask in masks)
    assert torch.equal(sum(masks), torch.ones(1, 1, *size))
    assert {float(value) for mask in masks for value in mask.unique()} <= {0, 1}
    # Something near is seen of whatever is hidden.
    assert all(ndimage.distance_transform_edt(mask[0, 0]).max() <= region_size for mask in masks)


@pytest.mark.parametrize("n_features", [1, 2, 3, 4, 5, 6, 7, 23])
def test_a_partition_of_a_row_hides_every_cell_equally_often(runtime, n_features):
    regions = TableRegions.create(n_features, runtime.rng)
    x = torch.zeros(2, n_features)
    masks = regions.partition(x)
    assert all(mask.shape == (1, n_features) for mask in masks)
    times = sum(masks)
    assert (times == times[0, 0]).all()
    assert times[0, 0] >= 1
    assert max(float(mask.sum()) for mask in masks) <= np.ceil(n_features / min(n_features, 5))


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("regions", [ImageRegions(6, (24, 30)), TableRegions(np.ones((1, 9)))])
def test_masks_hide_about_their_share(runtime, regions, share):
    x = torch.zeros(50, 2, 24, 30) if isinstance(regions, ImageRegions) else torch.zeros(500, 9)
    masks = torch.stack([regions.mask(x, share, runtime.rng) for _ in range(40)])
    assert masks.shape[1:] == (x[:, :1].shape if x.ndim == 4 else x.shape)
    assert set(masks.unique().tolist()) == {0, 1}
    assert abs(masks.mean() - share) < 0.02
    # Everywhere alike, and not the same for all samples.
    assert (masks.mean((0, 1)) - share).abs().max() < 0.08
    assert masks.mean((0, *range(2, masks.ndim))).std() < 0.1
    assert (masks[:, 0] != masks[:, 1]).any()


def test_masks_are_of_whole_blocks(runtime):
    regions = ImageRegions(10, (40, 40))
    sizes, edges = set(), set()
    for _ in range(20):
        mask = regions.mask(torch.zeros(1, 1, 40, 40), 0.5, runtime.rng)[0, 0]
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
    regions = ImageRegions(4, (8, 16))
    corners, images = set(), set()
    for _ in range(200):
        real, elsewhere = regions.draw_pairs(X, 6, None, runtime.rng)
        assert real.shape == elsewhere.shape == (6, 2, 8, 16)
        both = torch.cat([real, elsewhere])
        assert (both[:, 0] == both[0, 0]).all()
        assert (both[:, 1] % 100 == both[0, 1] % 100).all()
        corners.add((int(both[0, 0, 0, 0]), int(both[0, 1, 0, 0] % 100)))
        images |= set((both[:, 1, 0, 0] // 100).tolist())
    assert {top for top, _ in corners} == set(range(13))
    assert {left for _, left in corners} == set(range(15))
    assert len(images) == 50
    assert regions.draw(X, 3, runtime.rng).shape == (3, 2, 8, 16)


def test_other_cells_are_from_their_columns_or_around(runtime):
    X = torch.arange(3.0) + torch.randint(4, (200, 3), generator=runtime.rng) * 10
    regions = TableRegions.create(3, runtime.rng)
    real, other = regions.draw_pairs(X, 4000, regions.range_of(X), runtime.rng)
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
    changed, certain = ImageRegions(4, (32, 32)).compare(before, after, like)
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


def test_unchanged_images_are_labelled_regular():
    x = torch.randn(2, 1, 16, 16)
    changed, certain = ImageRegions(4, (16, 16)).compare(x, x, torch.zeros(2, 1, 4, 4))
    assert not changed.any()
    assert certain.all()


def test_cells_are_labelled_by_whether_they_changed(runtime):
    before = torch.randn(5, 4)
    after = before.clone()
    after[2, 1] += 1e-3
    regions = TableRegions.create(4, runtime.rng)
    changed, certain = regions.compare(before, after, before)
    assert changed.sum() == changed[2, 1] == 1
    assert certain is None  # all are


# Trainer of I and D

SETTINGS = InpaintingSettings(
    batch_size=8,
    corruption="blocks",
    noise_scale=0.4,
    reconstruction_weight=1.0,
    adversarial_weight=0.0,
    learning_rates=(1e-2, 1e-2),
    published=False,
)
PUBLISHED = replace(
    SETTINGS,
    corruption="gaussian",
    reconstruction_weight=0.0,
    adversarial_weight=1.0,
    published=True,
)
KINDS = pytest.mark.parametrize("kind", ["images", "table"])


def play(runtime, kind, settings, n_steps, stop_after=None):
    """Losses of a game, its players' weights before, and those of its result."""
    if kind == "table":
        settings = replace(settings, batch_size=32)
    *players, X = make_players(runtime, kind)
    before = [weights_of(network) for network in players[:2]]
    game = InpaintingGame(*players, X[10:], X[:10], n_steps, settings, runtime)
    steps = [game.step() for _ in range(stop_after or n_steps)]
    losses = [{name: float(value) for name, value in step.items()} for step in steps]
    return losses, before, [weights_of(network) for network in game.result]


def moved(before, after):
    """How far each kernel moved; biases before batch norm have no reason to."""
    return [np.abs(after[name] - before[name]).max() for name in before if before[name].ndim > 1]


@KINDS
@pytest.mark.parametrize(
    "settings",
    [SETTINGS, replace(SETTINGS, adversarial_weight=1.0), PUBLISHED],
    ids=["alone", "adversarial", "published"],
)
def test_both_players_move(runtime, kind, settings):
    losses, before, after = play(runtime, kind, settings, 40)
    for i in range(2):
        assert min(moved(before[i], after[i])) > 1e-5
        assert all(np.isfinite(value).all() for value in after[i].values())
    names = {"reconstruction_loss", "detector_loss"}
    if settings.adversarial_weight:
        names.add("adversarial_loss")
    assert all(set(step) == names for step in losses)


@KINDS
@pytest.mark.parametrize("corruption", ["blocks", "gaussian"])
def test_losses_of_both_players_fall(runtime, kind, corruption):
    settings = replace(SETTINGS, corruption=corruption)
    losses, *_ = play(runtime, kind, settings, 80)
    for name, at_most in {"reconstruction_loss": 0.7, "detector_loss": 0.9}.items():
        values = [step[name] for step in losses]
        assert np.mean(values[-20:]) < at_most * np.mean(values[:10]), name


@KINDS
@pytest.mark.parametrize("settings", [SETTINGS, PUBLISHED], ids=["default", "published"])
def test_the_inpainter_learns_to_please_a_detector_that_stands_still(runtime, kind, settings):
    settings = replace(
        settings,
        reconstruction_weight=0.0,
        adversarial_weight=1.0,
        learning_rates=(1e-2, 0.0),
    )
    losses, before, after = play(runtime, kind, settings, 30)
    assert min(moved(before[0], after[0])) > 1e-5
    assert max(moved(before[1], after[1])) == 0
    both_still = replace(settings, learning_rates=(0.0, 0.0))
    others, *_ = play(Runtime.create("cpu", "float32", seed=0), kind, both_still, 30)
    learned, unlearned = (
        np.array([step["adversarial_loss"] for step in steps]) for steps in (losses, others)
    )
    assert learned[0] == unlearned[0]
    assert (learned[-10:] < unlearned[-10:]).all()


@KINDS
def test_without_weight_the_inpainter_stands_still(runtime, kind):
    settings = replace(SETTINGS, reconstruction_weight=0.0)
    _, before, after = play(runtime, kind, settings, 5)
    assert max(moved(before[0], after[0])) == 0
    assert min(moved(before[1], after[1])) > 1e-5


def test_the_detector_learns_from_the_inpainted_only_if_asked():
    """An inpainter that cannot learn is told from the real without effort."""
    separation = {}
    for weight in (0.0, 1.0):
        runtime = Runtime.create("cpu", "float32", seed=0)
        inpainter, detector, regions, X = make_players(runtime, "images")
        settings = replace(SETTINGS, adversarial_weight=weight, learning_rates=(0.0, 1e-2))
        game = InpaintingGame(inpainter, detector, regions, X, X, 40, settings, runtime)
        for _ in range(40):
            game.step()
        inpainter, detector = game.result
        x = regions.draw(X, 40, runtime.rng)
        mask = regions.mask(x, 0.5, runtime.rng)
        with torch.no_grad():
            inpainted = torch.where(mask > 0, inpainter(x, mask), x)
            separation[weight] = float((detector(inpainted) - detector(x)).mean())
    assert separation[1.0] > max(0, separation[0.0]) + 0.5


def test_the_detector_does_not_learn_that_what_i_left_alone_is_irregular():
    """Of the inpainted counts what came out otherwise than it was: here, nothing."""

    class Copyist(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, mask):
            return x + 0 * self.weight

    logits = {}
    for weight in (0.0, 1.0):
        runtime = Runtime.create("cpu", "float32", seed=0)
        _, detector, regions, X = make_players(runtime, "images")
        settings = replace(SETTINGS, adversarial_weight=weight, learning_rates=(0.0, 1e-2))
        game = InpaintingGame(Copyist(), detector, regions, X, X, 40, settings, runtime)
        for _ in range(40):
            game.step()
        with torch.no_grad():
            logits[weight] = float(game.result[1](X).mean())
    assert logits[1.0] < logits[0.0] + 0.1


@KINDS
def test_a_published_detector_calls_the_inpainted_irregular(runtime, kind):
    inpainter, detector, regions, X = make_players(runtime, kind)
    settings = replace(PUBLISHED, batch_size=16, learning_rates=(0.0, 0.05))
    game = InpaintingGame(inpainter, detector, regions, X, X, 60, settings, runtime)
    losses = [float(game.step()["detector_loss"]) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    x = regions.draw(X, 40, runtime.rng)
    with torch.no_grad():
        inpainted = game.inpainter(x, torch.zeros_like(x[:1, :1]))
        assert game.detector(inpainted).mean() > game.detector(x).mean() + 0.2


def test_published_players_are_kept_at_their_best_moments(runtime, monkeypatch):
    *players, X = make_players(runtime, "images")
    game = InpaintingGame(*players, X[10:], X[:10], 6, PUBLISHED, runtime)
    errors, mistakes = [5, 4, 2, 3, 2, 9], [1.5, 1.2, 1.3, 1.2, 0.5, 1.4]
    moments = []

    def figures():
        moments.append([weights_of(network) for network in (game.inpainter, game.detector)])
        return errors[len(moments) - 1], mistakes[len(moments) - 1]

    monkeypatch.setattr(game, "_figures", figures)
    for _ in range(6):
        game.step()
    assert len(moments) == 6
    for i, best in ((0, 2), (1, 4)):  # of two equal ones, the earlier
        kept = weights_of(game.result[i])
        for name, value in moments[best][i].items():
            np.testing.assert_array_equal(kept[name], value)
        assert max(moved(moments[-1][i], kept)) > 0


def test_published_figures_are_those_of_section_4_3(runtime):
    inpainter, detector, regions, X = make_players(runtime, "table")
    with torch.no_grad():
        for parameter in (*inpainter.parameters(), *detector.parameters()):
            parameter.zero_()
    game = InpaintingGame(inpainter, detector, regions, X, X, 1, PUBLISHED, runtime)
    game.validation = torch.full((20, 6), 3.0)
    error, mistakes = game._figures()
    assert error == pytest.approx(9)  # I says 0
    assert mistakes == 0  # D does not call anything irregular, nor regular
    with torch.no_grad():
        game.detector.perceptron.layers[-1].bias.fill_(1)
    game.validation = X
    assert game._figures()[1] == 1  # all regular rows are misjudged, no inpainted one


@KINDS
@pytest.mark.parametrize("settings", [SETTINGS, PUBLISHED], ids=["default", "published"])
@pytest.mark.parametrize("n_steps", [1, 4])
def test_an_early_stop_keeps_what_was_learned(runtime, kind, settings, n_steps):
    losses, before, after = play(runtime, kind, settings, 200, stop_after=n_steps)
    assert len(losses) == n_steps
    for i in range(2):
        assert max(moved(before[i], after[i])) > 0


def test_players_are_averaged_over_steps(runtime):
    *players, X = make_players(runtime, "images")
    first = weights_of(players[0])
    game = InpaintingGame(*players, X, X, 60, SETTINGS, runtime)
    for _ in range(60):
        game.step()
    last, average = weights_of(game.inpainter), weights_of(game.result[0])
    distance = {
        name: np.sqrt(
            sum(
                np.square(average[key] - weights[key]).sum()
                for key in weights
                if weights[key].ndim > 1
            )
        )
        for name, weights in (("first", first), ("last", last))
    }
    assert 0 < distance["last"] < 0.3 * distance["first"]
    assert not game.result[0].training
    assert not game.result[1].training


@KINDS
@pytest.mark.parametrize("settings", [SETTINGS, PUBLISHED], ids=["default", "published"])
def test_a_game_leaves_global_generators_alone(kind, settings):
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    results = [
        play(Runtime.create("cpu", "float32", seed), kind, settings, 4)[2] for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)
    for first, same, other in zip(*results, strict=True):
        assert max(moved(first, same)) == 0
        assert max(moved(first, other)) > 0


@KINDS
def test_a_game_in_bfloat16(kind):
    settings = replace(SETTINGS, adversarial_weight=0.1)
    losses, _, after = play(Runtime.create("cpu", "bfloat16", 0), kind, settings, 80)
    values = [step["reconstruction_loss"] for step in losses]
    assert np.mean(values[-20:]) < 0.9 * np.mean(values[:20])
    assert all(
        value.dtype in (np.float32, np.int64) for weights in after for value in weights.values()
    )


# Canvas


@pytest.mark.parametrize("width", [1, 3, 9, 41])
def test_box_means_are_scipys(width):
    images = torch.randn(2, 3, 17, 30)
    found = box_mean(images, width)
    assert found.shape == images.shape
    size = (1, 1, width, width)
    inside = ndimage.uniform_filter(np.ones((1, 1, 17, 30)), size, mode="constant")
    expected = ndimage.uniform_filter(images.double().numpy(), size, mode="constant") / inside
    np.testing.assert_allclose(found, expected, atol=1e-5)


def make_canvas(X, region_size, stride=8, even_light=True, region_pixels=(12, 20)):
    canvas = Canvas(X.shape[1:], region_size, region_pixels, stride, even_light)
    canvas.fit(X.reshape(len(X), -1))
    return canvas


def uneven_images(n=6, shape=(2, 40, 52)):
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
def test_a_canvas_gives_regions_one_size(region_size, scaled, size, stride):
    X = uneven_images()
    canvas = make_canvas(X, region_size, stride)
    assert canvas.region_size == scaled
    assert all(length % stride == 0 for length in canvas.padded_size)
    assert all(0 <= a - b < stride for a, b in zip(canvas.padded_size, size, strict=True))
    drawn = canvas.encode(X.reshape(6, -1))
    assert drawn.shape == (6, 2, *canvas.padded_size)
    assert drawn.dtype == torch.float32
    # What was padded goes on as the border ends.
    assert (drawn[..., size[0] - 1 :, :] == drawn[..., size[0] - 1 : size[0], :]).all()
    assert (drawn[..., size[1] - 1 :] == drawn[..., size[1] - 1 : size[1]]).all()


@pytest.mark.parametrize("even_light", [False, True])
@pytest.mark.parametrize("stride", [4, 16])
@pytest.mark.parametrize(("region_size", "tolerance"), [(16, 1e-6), (6, 0.15), (28, 0.25)])
def test_images_come_back_from_the_canvas(even_light, stride, region_size, tolerance):
    X = uneven_images()
    rows = X.reshape(6, -1)
    canvas = make_canvas(X, region_size, stride, even_light)
    back = canvas.decode(canvas.encode(rows), rows)
    assert back.shape == rows.shape
    assert back.dtype == np.float64
    assert np.sqrt(np.mean(np.square(back - rows))) < tolerance * rows.std()


@pytest.mark.parametrize("region_size", [16, 8, 32])
def test_maps_lie_where_the_pixels_are(region_size):
    X = uneven_images()
    canvas = make_canvas(X, region_size, 16, even_light=False)
    marked = np.zeros_like(X)
    marked[:, :, 8:24, 28:44] = 1e5
    drawn = canvas.encode(marked.reshape(6, -1))
    threshold = (drawn.max() + drawn.min()) / 2
    found = canvas.to_pixels((drawn > threshold).float()) > 0.5
    np.testing.assert_array_equal(found, marked > 0)


def textures(n, seed):
    """Images whose contrast changes from left to right, and noise for their maps."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, 2, 48, 64)) * np.geomspace(0.2, 5, 64)
    return torch.from_numpy(images).float(), torch.from_numpy(rng.normal(size=(n, 2, 48, 64)))


def test_maps_are_judged_by_what_is_usual_in_such_surroundings():
    def maps_of(images, noise):
        contrast = box_mean(images.square().mean(1, keepdim=True), 9).add(0.1).log()
        return torch.cat([3 * contrast + 1, 5 + contrast.square()], dim=1) + (
            0.1 * (contrast + 4) * noise
        )

    scaler = ConditionalScaler(9)
    batches = [(maps_of(*textures(4, seed)), textures(4, seed)[0]) for seed in range(4)]
    scaler.fit(batches)
    images, noise = textures(10, 9)
    maps = maps_of(images, noise)
    known = torch.cat([maps for maps, _ in batches])
    at_all = (maps - known.mean((0, 2, 3), keepdim=True)) / known.std((0, 2, 3), keepdim=True)
    deviations = scaler.transform(maps, images)
    assert (deviations > at_all - 0.2).all()
    # Where little goes on, what is far below the mean is usual, and a little less far is not.
    calm = deviations[:, 0, :, :12].double()
    assert abs(calm.mean()) < 0.35
    assert 0.7 < calm.std() < 1.4
    maps[:, 0, 20, 5] += 2
    at_all[:, 0, 20, 5] += 2 / known[:, 0].std()
    assert (at_all[:, 0, 20, 5] < 0).all()
    calm = scaler.transform(maps, images)[:, 0, :, :12].flatten(1)
    assert (calm.argmax(1) == 20 * 12 + 5).all()


def test_surroundings_beyond_the_known_count_as_the_last_known():
    images, noise = textures(8, 0)
    scaler = ConditionalScaler(9).fit([(noise, images)])
    beyond, further = (scaler.transform(noise, factor * images) for factor in (1e3, 1e5))
    assert beyond.isfinite().all()
    same = (slice(None), slice(None), slice(None), slice(32, None))
    np.testing.assert_allclose(beyond[same].std(), noise[same].std(), rtol=0.3)
    assert (beyond - further)[same].abs().mean() < 0.3


def test_even_light_hides_the_light_and_nothing_else():
    rng = np.random.default_rng(0)
    texture = rng.normal(size=(5, 1, 60, 60))
    light = np.linspace(1, 4, 60)
    even, raw = (
        [
            make_canvas(X, 12, 4, even_light).encode(X.reshape(5, -1)).numpy()
            for X in (texture, light * (texture + 3))
        ]
        for even_light in (True, False)
    )
    assert np.corrcoef(even[0].ravel(), even[1].ravel())[0, 1] > 0.95
    assert np.corrcoef(raw[0].ravel(), raw[1].ravel())[0, 1] < 0.8
    assert abs(even[1].mean()) < 0.1
    assert 0.8 < even[1].std() < 1.1


@pytest.mark.parametrize(("brightness", "expected"), [(0, False), (3, True)])
def test_light_is_evened_if_it_is_uneven(brightness, expected):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(5, 1, 60, 60)) + brightness * rng.normal(size=(5, 1, 1, 1))
    drawn = {
        asked: make_canvas(X, 12, 4, asked).encode(X.reshape(5, -1))
        for asked in (None, True, False)
    }
    assert torch.equal(drawn[None], drawn[expected])
    assert not torch.equal(drawn[None], drawn[not expected])


def test_a_canvas_standardises_channels_and_keeps_their_contrast():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 2, 24, 24)) * [[[1.0]], [[3.0]]] + [[[5.0]], [[-9.0]]]
    drawn = make_canvas(X, 12, 8, even_light=False).encode(X.reshape(20, -1))
    torch.testing.assert_close(drawn.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    quiet, loud = drawn.std((0, 2, 3)).tolist()
    assert loud / quiet == pytest.approx(3, rel=0.05)


# Snapshots


@pytest.mark.parametrize(
    ("max_steps", "n", "expected"),
    [(160, 6, [0, 10, 20, 40, 80, 160]), (0, 6, [0]), (1, 4, [0, 1]), (100, 1, [0])],
)
def test_geometric_steps(max_steps, n, expected):
    assert geometric_steps(max_steps, n) == expected


def test_roles_follow_the_fall_of_the_loss():
    # Falls fast, then slowly, then not at all.
    losses = np.concatenate([[np.nan], np.arange(100, 0, -10), np.arange(9, 4, -0.5), [4.0] * 12])
    roles = roles_by_loss(losses, horizon=5)
    assert roles[0] == roles[1] == "far"
    assert roles[14] == "boundary"
    assert roles[-1] == roles[-8] == "normal"
    order = ["far", "boundary", "normal"]
    assert [order.index(r) for r in roles] == sorted(order.index(r) for r in roles)
    assert roles_by_loss(1000 * losses) == roles_by_loss(losses)


def test_roles_without_any_loss():
    assert roles_by_loss([np.nan]) == ["far"]


@pytest.mark.parametrize(("share", "role"), [(0.0, "far"), (0.2, "boundary"), (0.9, "normal")])
def test_role_by_distance(share, role):
    assert role_by_distance(share) == role


def test_selection_helpers():
    snapshots = [Snapshot(i, 0.0, "far" if i < 5 else "normal", {}) for i in range(9)]
    assert [s.step for s in irregular(snapshots)] == [0, 1, 2, 3, 4]
    assert irregular(snapshots[6:]) == snapshots[6:]
    assert [s.step for s in spread_evenly(snapshots, 3)] == [0, 4, 8]
    assert spread_evenly(snapshots, 20) == snapshots


# Runtime


def test_single_thread_gives_the_threads_back_after_an_error():
    def fail():
        with single_thread():
            assert torch.get_num_threads() == 1
            blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
            assert {pool["num_threads"] for pool in blas} == {1}
            raise ZeroDivisionError

    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_num_threads() == before
