"""Networks and trainers, without scikit-learn."""

import pickle
from itertools import count, islice

import numpy as np
import pytest
import torch

from sklearn_g2d.errors import TrainingDivergedError
from sklearn_g2d.networks.ensemble import EnsembleMLP, load_weights, weights_of
from sklearn_g2d.networks.images import ConvGenerator, ConvNetwork, n_halvings
from sklearn_g2d.networks.tables import TableGenerator
from sklearn_g2d.training import loop
from sklearn_g2d.training.classifier import ClassifierSettings, train_classifier
from sklearn_g2d.training.runtime import Runtime, resolve_device, single_thread
from sklearn_g2d.training.snapshots import (
    Snapshot,
    geometric_steps,
    irregular,
    role_by_distance,
    roles_by_loss,
    spread_evenly,
)
from sklearn_g2d.training.wgan import WGAN, WGANSettings


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


# Trainers


def test_wgan_learns_a_distribution(runtime):
    X = torch.randn(1000, 2) * 0.3 + torch.tensor([2.0, -1.0])
    generator = make_generator(runtime, n_features=2, skip=False)
    critic = EnsembleMLP(2, (2, 32, 32, 1), runtime.rng)
    settings = WGANSettings(batch_size=64, n_critic=3, gradient_penalty=10, learning_rate=1e-3)
    before = generator.sample(500, runtime.rng).detach().mean((0, 1))
    losses = list(islice(WGAN(generator, critic, settings, runtime).steps(X), 800))
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
    list(islice(WGAN(generator, critic, settings, runtime).steps(X), 60))
    after = generator.sample(100, runtime.rng).detach().mean((0, 1))
    assert (after - X.mean(0)).norm() < 0.5 * (before - X.mean(0)).norm()


def test_classifier_never_sees_what_a_member_is_blind_to(runtime):
    normal, generated = torch.randn(40, 2), torch.randn(60, 2) + 4
    blind = torch.zeros(2, 40, dtype=torch.bool)
    blind[0, ::2] = blind[1, 1::2] = True
    normal[::2] = float("nan")  # member 1 meets these rows, member 0 must not
    network = EnsembleMLP(2, (2, 8, 2), runtime.rng)
    settings = ClassifierSettings(batch_size=16, optimizer="sgd", learning_rate=0.01)
    next(train_classifier(network, normal, generated, blind, settings, runtime))
    first_layer = network.layers[0].weight
    assert torch.isfinite(first_layer[0]).all()
    assert not torch.isfinite(first_layer[1]).all()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_classifier_separates(runtime, optimizer):
    normal, generated = torch.randn(200, 2), torch.randn(200, 2) + 5
    network = EnsembleMLP(2, (2, 8, 2), runtime.rng)
    settings = ClassifierSettings(batch_size=32, optimizer=optimizer, learning_rate=0.01)
    blind = torch.zeros(2, 200, dtype=torch.bool)
    steps = train_classifier(network, normal, generated, blind, settings, runtime)
    losses = [float(step["classifier_loss"]) for step in islice(steps, 200)]
    assert losses[-1] < 0.2 * losses[0]


def test_loop_stops_on_request_and_keeps_every_loss():
    steps = ({"loss": torch.tensor(float(i))} for i in count())
    history = loop.run(steps, 500, lambda step, losses: step == 120, remedy="")
    np.testing.assert_array_equal(history["loss"], np.arange(120))


def test_loop_finds_divergence_also_in_the_last_steps():
    losses = [{"a": torch.tensor(1.0), "b": torch.tensor(1.0)}] * 60
    losses.append({"a": torch.tensor(1.0), "b": torch.tensor(float("nan"))})
    with pytest.raises(TrainingDivergedError, match=r"b became .* last 11 of 61 steps. Do this."):
        loop.run(iter(losses), 100, lambda step, losses: False, remedy="Do this.")


def test_loop_without_steps():
    assert loop.run(iter([]), 0, lambda step, losses: False, remedy="") == {}


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
            raise ZeroDivisionError

    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_num_threads() == before


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in {"cuda", "mps", "cpu"}
    with pytest.raises(ValueError, match="device='tpu9'"):
        resolve_device("tpu9")
