"""Networks and trainers, without scikit-learn."""

import copy
import pickle

import numpy as np
import pytest
import torch
import trainer_checks
from threadpoolctl import threadpool_info
from torch.nn import functional as F

from sklearn_g2d.errors import TrainingDivergedError
from sklearn_g2d.g2d import (
    ConvGenerator,
    ConvNetwork,
    NetworkClassifier,
    RowGenerator,
    Snapshot,
    WassersteinGAN,
)
from sklearn_g2d.g2d._generators import Space
from sklearn_g2d.g2d._networks import PerceptronGenerator
from sklearn_g2d.g2d._snapshots import irregular, role_by_distance, roles_by_loss, spread_evenly
from sklearn_g2d.training.ensemble import EnsembleMLP, load_weights, weights_of
from sklearn_g2d.training.history import record
from sklearn_g2d.training.loop import Training
from sklearn_g2d.training.runtime import Runtime, globally_seeded, single_thread
from sklearn_g2d.training.session import Session
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
    return PerceptronGenerator(
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


@pytest.mark.parametrize("hidden", [(), (5,), (6, 4)])
def test_gradients_of_the_cross_entropy_are_autograds(runtime, hidden):
    network = EnsembleMLP(3, (7, *hidden, 2), runtime.rng)
    x, labels = torch.randn(3, 10, 7), torch.arange(10) % 2
    loss = network.backpropagate_cross_entropy(x, F.one_hot(labels).float())
    found = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    expected = F.cross_entropy(network(x).flatten(0, 1), labels.repeat(3))
    (3 * expected).backward()  # each member as if it were alone
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(found, [parameter.grad for parameter in network.parameters()])


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
    generator.surround(X, spread=3.0, rng=runtime.rng)
    isotropic, correlated = generator.sample(20_000, runtime.rng).detach()
    torch.testing.assert_close(torch.cov(isotropic.T), 9 * torch.eye(2), atol=1.0, rtol=0)
    torch.testing.assert_close(
        torch.cov(correlated.T), 9 * torch.cov(X.T), atol=0.1 * 9 * X.var().item(), rtol=0.1
    )


def test_short_noise_still_covers_the_largest_variances(runtime):
    X = torch.randn(500, 30) * torch.linspace(0.1, 3, 30)
    generator = make_generator(runtime, n_features=30, latent_dim=5, bound=float("inf"))
    generator.surround(X, spread=1.0, rng=runtime.rng)
    _, correlated = generator.sample(5000, runtime.rng).detach()
    assert correlated.std(dim=0)[-3:].min() > 2
    assert correlated.std(dim=0)[:3].max() < 1


def test_samples_stay_within_the_bound(runtime):
    generator = make_generator(runtime, bound=2.0)
    generator.surround(torch.randn(100, 3), spread=50.0, rng=runtime.rng)
    assert generator.sample(100, runtime.rng).abs().max() <= 2


def make_conv_generator(runtime, image_shape=(1, 9, 12), n_members=2):
    return ConvGenerator(channels=4).build(n_members, 6, image_shape, runtime.rng)


def make_conv_network(runtime, image_shape=(1, 9, 12), n_members=2, n_outputs=1):
    return ConvNetwork(channels=4).build(n_members, image_shape, n_outputs, runtime.rng)


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


def test_the_size_of_an_image_gives_the_number_of_convolutions(runtime):
    n_halvings = [
        sum(
            module.stride == (2, 2)
            for module in make_conv_network(runtime, (1, n, 40), 1).modules()
            if isinstance(module, torch.nn.Conv2d)
        )
        for n in (2, 7, 8, 15, 16, 40)
    ]
    assert n_halvings == [1, 1, 2, 2, 3, 3]
    for make in (make_conv_network, make_conv_generator):
        with pytest.raises(ValueError, match=r"at least 2 x 2 pixels, got 1 x 8.*perceptron"):
            make(runtime, (1, 1, 8))
        with pytest.raises(ValueError, match=r"Conv\w+ needs images, .* shape \(8,\)"):
            make(runtime, (8,))


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


# Trainers


def make_session(runtime, train=None):
    """What a detector hands to its parts, with training as there but for callbacks."""

    def train_all(name, trainer, max_steps, *, remedy, current=None):
        training = Training(trainer, max_steps)
        training.run(never, remedy=remedy)
        return record(name, training)

    return Session(runtime, np.random.RandomState(0), train or train_all)


def make_space(shape, bound=float("inf"), fraction_inside=lambda points: 0.0):
    return Space(shape, bound, fraction_inside)


def fit_gan(runtime, X, shape, **params):
    gan = WassersteinGAN(**params)
    gan.fit_in(X.flatten(1).double().numpy(), make_session(runtime), make_space(shape))
    return gan


def test_wgan_learns_a_distribution(runtime):
    X = torch.randn(1000, 2) * 0.3 + torch.tensor([2.0, -1.0])
    gan = fit_gan(
        runtime,
        X,
        (2,),
        max_steps=300,
        n_critic=3,
        learning_rate=2e-3,
        n_members=4,
        latent_dim=16,
        hidden_layer_sizes=(32, 32),
        spread=0.0,
        tail=0.0,
    )
    before, after = (gan.draw(500, runtime.rng, [gan.snapshots_[i]]).mean(axis=0) for i in (0, -1))
    mean = X.mean(0).numpy()
    assert np.linalg.norm(after - mean) < 0.5 * np.linalg.norm(before - mean)
    assert set(gan.history_) == {"critic_loss", "generator_loss"}
    losses = gan.history_["generator_loss"]
    assert losses[-1] < 0.6 * losses[:100].max()


def test_wgan_learns_images(runtime):
    X = torch.full((200, 1, 8, 8), -0.8)
    X[..., 4:] = 0.8
    X = (X + 0.1 * torch.randn(X.shape)).clamp(-1, 1)
    gan = fit_gan(
        runtime,
        X,
        (1, 8, 8),
        max_steps=90,
        batch_size=16,
        n_critic=2,
        learning_rate=5e-3,
        n_members=1,
        latent_dim=6,
        generator_network=ConvGenerator(channels=8),
        critic_network=ConvNetwork(channels=4),
    )
    before, after = (gan.draw(100, runtime.rng, [gan.snapshots_[i]]).mean(axis=0) for i in (0, -1))
    mean = X.flatten(1).mean(0).numpy()
    assert np.linalg.norm(after - mean) < 0.75 * np.linalg.norm(before - mean)


def test_a_critic_of_the_users_trains_like_ours(runtime):
    """Its penalty's gradient, by differentiating twice, is the analytic one."""

    class Alike(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 8), torch.nn.Linear(8, 1)])

        def forward(self, x):
            return self.layers[1](torch.nn.functional.leaky_relu(self.layers[0](x), 0.2))

    X = torch.randn(100, 2)
    settings = {"max_steps": 5, "n_members": 1, "hidden_layer_sizes": (8,), "latent_dim": 16}
    trainers = [
        captured_trainer(WassersteinGAN(critic_network=critic, **settings), X, seed=0)
        for critic in ("perceptron", lambda shape, n_outputs: Alike())
    ]
    ours, theirs = (trainer.critic for trainer in trainers)
    with torch.no_grad():
        for mine, own in zip(ours.layers, theirs.members[0].layers, strict=True):
            own.weight.copy_(mine.weight[0].T)
            own.bias.copy_(mine.bias[0, 0])
    state = trainers[0].generator.state_dict()
    trainers[1].generator.load_state_dict(state)
    trainers[1].runtime.rng.set_state(trainers[0].runtime.rng.get_state())
    # The seed of users' modules is drawn first.
    torch.randint(2**62, (1,), generator=trainers[0].runtime.rng)
    losses = [[float(loss) for loss in trainer.step().values()] for trainer in trainers]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    weights = [ours.layers[0].weight[0].T, theirs.members[0].layers[0].weight]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


class Listener(torch.nn.Module):
    """A linear network that keeps the first columns of what it is given in training."""

    def __init__(self, n_in, n_outputs):
        super().__init__()
        self.linear = torch.nn.Linear(n_in, n_outputs)
        self.heard = set()

    def forward(self, x):
        if self.training:
            self.heard |= set(x[:, 0].tolist())
        return self.linear(x)


def test_a_member_of_the_classifier_never_sees_its_fold(runtime):
    built = []

    def listen(shape, n_outputs):
        built.append(Listener(*shape, n_outputs))
        return built[-1]

    rows = np.column_stack([np.arange(40.0), np.zeros(40)])
    classifier = NetworkClassifier(n_members=6, max_steps=60, batch_size=32, network=listen)
    held_out = classifier.fit_in(rows, -1 - rows, make_session(runtime), (2,))
    for i, network in enumerate(built[:6]):
        normal = {value for value in network.heard if value >= 0}
        assert normal == {float(row) for row in range(40) if row % 4 != i % 4}
        assert network.heard - normal == set(-1 - np.arange(40.0))
    # By hand: members 0 and 4 have not seen row 0, member 3 alone has not seen row 3.
    odds = classifier.log_odds(rows)
    assert odds.shape == (6, 40)
    np.testing.assert_allclose(held_out[0], odds[[0, 4], 0].mean())
    np.testing.assert_allclose(held_out[3], odds[3, 3])


@pytest.mark.parametrize(("n_members", "n_rows"), [(1, 40), (8, 3)])
def test_a_single_classifier_or_few_rows_are_seen_whole(runtime, n_members, n_rows):
    rows = np.random.default_rng(0).normal(size=(n_rows, 2))
    classifier = NetworkClassifier(n_members=n_members, max_steps=5)
    held_out = classifier.fit_in(rows, rows + 3, make_session(runtime), (2,))
    np.testing.assert_allclose(held_out, classifier.log_odds(rows).mean(axis=0))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_classifier_separates(runtime, optimizer):
    normal, generated = np.random.default_rng(0).normal(size=(2, 200, 2))
    classifier = NetworkClassifier(
        (8,), n_members=2, max_steps=200, batch_size=32, optimizer=optimizer, learning_rate=0.01
    )
    held_out = classifier.fit_in(normal, generated + 5, make_session(runtime), (2,))
    losses = classifier.history_["classifier_loss"]
    assert losses[-1] < 0.2 * losses[0]
    assert held_out.min() > classifier.log_odds(generated + 5).mean(axis=0).max()


@pytest.mark.parametrize("schedule", ["constant", "cosine", lambda finished: 1 - finished])
def test_schedules_are_those_of_torch(runtime, schedule):
    part = NetworkClassifier(n_members=2, max_steps=40, learning_rate=0.5, schedule=schedule)
    trainer = captured_trainer(part, torch.randn(20, 3), seed=0)
    reference = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), 0.5)
    lr_scheduler = torch.optim.lr_scheduler
    expected = {
        "constant": lambda: lr_scheduler.ConstantLR(reference, factor=1.0),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(reference, T_max=40),
    }.get(schedule, lambda: lr_scheduler.LinearLR(reference, 1.0, 0.0, total_iters=40))()
    for _ in range(40):
        trainer.step()
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(expected.get_last_lr()[0])
        reference.step()
        expected.step()


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
    gan = {"batch_size": 8, "n_critic": 2, "n_members": 2, "max_steps": 90, "latent_dim": 6}
    convolutions = {
        "generator_network": ConvGenerator(channels=4),
        "critic_network": ConvNetwork(channels=4),
    }
    own = {"generator_network": make_own_generator, "critic_network": make_own_network}
    rows, images = torch.linspace(-1, 1, 60).reshape(20, 3), torch.linspace(-1, 1, 540)
    images = images.reshape(5, 1, 9, 12)
    classifier = {"batch_size": 8, "learning_rate": 0.01, "n_members": 2, "max_steps": 90}
    parts = {
        "WGAN": (WassersteinGAN(hidden_layer_sizes=(8,), **gan), rows),
        "convolutions": (WassersteinGAN(**convolutions, **gan), images),
        "own GAN": (WassersteinGAN(**own, **gan), rows),
        "AdamW": (NetworkClassifier((8,), **classifier), rows),
        "SGD": (NetworkClassifier((8,), optimizer="sgd", schedule="cosine", **classifier), rows),
        "own": (NetworkClassifier(network=make_own_network, **classifier), rows),
    }
    for name, (part, X) in parts.items():
        yield name, captured_trainer(part, X, seed)


def make_own_generator(latent_dim, shape):
    return torch.nn.Sequential(
        torch.nn.Linear(latent_dim, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, *shape)
    )


def make_own_network(shape, n_outputs):
    return torch.nn.Sequential(
        torch.nn.Linear(*shape, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, n_outputs)
    )


class Captured(Exception):  # noqa: N818
    """Ends a fit at the beginning of its training."""


def fit_part(part, X, session):
    rows = X.flatten(1).double().numpy()
    if isinstance(part, WassersteinGAN):
        part.fit_in(rows, session, make_space(tuple(X.shape[1:]), bound=8.0))
    else:
        part.fit_in(rows, rows + 1, session, tuple(X.shape[1:]))


def captured_trainer(part, X, seed):
    """Give the trainer with which a part is about to train."""

    def capture(name, trainer, max_steps, **kwargs):
        raise Captured(trainer)

    with pytest.raises(Captured) as captured:
        fit_part(part, X, make_session(Runtime.create("cpu", "float32", seed), capture))
    return captured.value.args[0]


@pytest.mark.parametrize("at", [0, 4])
def test_every_trainer_goes_on_from_its_state_in_every_bit(at):
    for (_, trainer), (_, other) in zip(all_trainers(seed=0), all_trainers(seed=1), strict=True):
        trainer_checks.check_goes_on_from_its_state(trainer, other, at)


def test_no_trainer_waits_for_the_device():
    for _, trainer in all_trainers(seed=0):
        trainer_checks.check_waits_for_nothing(trainer)


def test_every_trainer_finds_what_is_not_finite():
    for _, trainer in all_trainers(seed=0):
        trainer_checks.check_finds_what_is_not_finite(trainer)


def test_the_rate_of_every_trainer_can_be_lowered():
    for _, trainer in all_trainers(seed=0):
        trainer_checks.check_rates_can_be_lowered(trainer)


# Snapshots


@pytest.mark.parametrize(
    ("max_steps", "n", "expected"),
    [(160, 6, [0, 10, 20, 40, 80, 160]), (0, 6, [0]), (1, 4, [0, 1]), (100, 1, [0, 100])],
)
def test_geometric_snapshots(runtime, max_steps, n, expected):
    gan = fit_gan(
        runtime, torch.randn(50, 2), (2,), max_steps=max_steps, n_snapshots=n, n_members=1
    )
    assert [snapshot.step for snapshot in gan.snapshots_] == expected


def test_roles_of_geometric_snapshots_follow_their_distance(runtime):
    """Those whose samples lie among normal points are normal; others make the outliers."""
    gan = WassersteinGAN(max_steps=8, n_snapshots=4, n_members=1)
    fractions = iter([0.0, 0.2, 0.9, 0.01])
    seen = []

    def fraction_inside(points):
        seen.append(points.shape)
        return next(fractions)

    rows = np.random.default_rng(0).normal(size=(50, 2))
    gan.fit_in(rows, make_session(runtime), make_space((2,), fraction_inside=fraction_inside))
    roles = {snapshot.step: snapshot.role for snapshot in gan.snapshots_}
    assert roles == {0: "far", 2: "boundary", 4: "normal", 8: "far"}
    assert len(set(seen)) == 1
    state = runtime.rng.get_state()
    outliers = gan.draw(9, runtime.rng)
    runtime.rng.set_state(state)
    by_hand = gan.draw(9, runtime.rng, [s for s in gan.snapshots_ if s.role != "normal"])
    np.testing.assert_array_equal(outliers, by_hand)


def test_epochs_of_the_loss_rule(runtime):
    """A candidate for each epoch: 320 rows are 5 batches of 32 for a critic of 2 steps."""
    seen = []
    settings = {"max_steps": 23, "batch_size": 32, "n_critic": 2, "n_members": 1}

    def all_of_them(snapshots):
        seen.extend(snapshots)
        return snapshots

    fit_gan(runtime, torch.randn(320, 2), (2,), snapshots=all_of_them, **settings)
    assert [snapshot.step for snapshot in seen] == [0, 5, 10, 15, 20, 23]
    seen.clear()
    gan = fit_gan(
        runtime, torch.randn(320, 2), (2,), snapshots=all_of_them, epoch_steps=8, **settings
    )
    assert [snapshot.step for snapshot in seen] == [0, 8, 16, 23]
    losses = gan.history_["generator_loss"]
    means = [losses[:8].mean(), losses[8:16].mean(), losses[16:].mean()]
    np.testing.assert_allclose([s.loss for s in seen[1:]], means, rtol=1e-5)


@pytest.mark.parametrize("steps", [0, 3])
def test_samples_have_the_statistics_of_a_batch(runtime, steps):
    """Batch norm's running averages lag behind, and are those of nothing before the first step."""
    network = RowGenerator(hidden_layer_sizes=(16,), deviation=2.0)
    settings = {"generator_network": network, "batch_size": 8, "latent_dim": 4}
    gan = fit_gan(runtime, torch.randn(50, 3), (3,), max_steps=steps, n_members=2, **settings)
    drawn = torch.from_numpy(gan.draw(4000, runtime.rng, gan.snapshots_[-1:]))
    in_batch = copy.deepcopy(gan._generator).train()
    with torch.no_grad():
        expected = in_batch.sample(2000, runtime.rng).flatten(0, 1)
    torch.testing.assert_close(drawn.float().std(0), expected.std(0), rtol=0.1, atol=0)
    torch.testing.assert_close(drawn.float().mean(0), expected.mean(0), rtol=0, atol=0.1)
    if not steps:
        assert 1.2 < expected.clamp(-0.999, 0.999).atanh().std() < 2.2


def test_looking_on_changes_no_training(runtime):
    """Snapshots for a callback take no random numbers from the training."""
    gan = fit_gan(
        runtime, torch.randn(50, 3), (3,), max_steps=2, generator_network=RowGenerator((8,))
    )
    state = runtime.rng.get_state()
    running = [norm.clone() for name, norm in gan._generator.state_dict().items() if "run" in name]
    gan._current()
    assert torch.equal(runtime.rng.get_state(), state)
    after = [norm for name, norm in gan._generator.state_dict().items() if "run" in name]
    assert running
    assert all(map(torch.equal, running, after))


def test_roles_follow_the_fall_of_the_loss():
    # Rises while the critic catches up, falls fast, then slowly, then not at all.
    rise, fast, slow = np.arange(0, 100, 20), np.arange(100, 0, -10), np.arange(9, -1, -2.0)
    losses = np.concatenate([[np.nan], rise, fast, slow, [0.0] * 12])
    roles = roles_by_loss(losses, horizon=5)
    order = ["far", "boundary", "normal"]
    by_hand = ["far"] * 15 + ["boundary"] * 6 + ["normal"] * 12
    assert [order.index(r) for r in roles] == sorted(order.index(r) for r in roles)
    assert roles == by_hand
    assert roles_by_loss(1000 * losses) == roles_by_loss(losses)
    # A single low epoch, or a rise at the end, makes no other generator normal, or far.
    losses[8] -= 30
    losses[-1] += 30
    assert roles_by_loss(losses)[:9] == ["far"] * 9
    assert roles_by_loss(losses)[-1] == "normal"


def test_a_loss_that_only_rises_leaves_all_generators_far():
    assert roles_by_loss(np.arange(9.0)) == ["far"] * 9


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


def test_global_generators_are_put_back_also_after_an_error(runtime):
    def draw_and_fail():
        with globally_seeded(runtime.rng):
            drawn.append(torch.rand(3))
            raise ZeroDivisionError

    before, drawn = torch.get_rng_state(), []
    for _ in range(2):
        runtime.rng.manual_seed(3)
        with pytest.raises(ZeroDivisionError):
            draw_and_fail()
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(5)  # of which nothing depends
        before = torch.get_rng_state()
    assert torch.equal(*drawn)
    with globally_seeded(runtime.rng, 7) as seed:
        assert seed == 7
        fixed = torch.rand(3)
    assert torch.equal(fixed, torch.rand(3, generator=torch.Generator().manual_seed(7)))


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
