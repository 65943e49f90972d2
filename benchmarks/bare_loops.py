"""The trainers' arithmetic in bare PyTorch: tensors, functions and loops, nothing else.

`benchmarks.overhead` compares the package with them. Shapes and settings are the defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

MEMBERS, BATCH, SLOPE = 8, 64, 0.2
RNG = torch.Generator().manual_seed(0)

Step = Callable[[], Tensor]


def layers(*sizes: int, members: int = MEMBERS) -> list[tuple[Tensor, Tensor]]:
    """Draw initial weights and biases of several perceptrons."""
    return [
        (
            (
                (2 * torch.rand(members, n_in, n_out, generator=RNG) - 1) / math.sqrt(n_in)
            ).requires_grad_(),
            (
                (2 * torch.rand(members, 1, n_out, generator=RNG) - 1) / math.sqrt(n_in)
            ).requires_grad_(),
        )
        for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True)
    ]


def scoring_layers(*sizes: int, members: int = MEMBERS) -> list[tuple[Tensor, Tensor]]:
    """Draw weights and biases as networks score with them, in float64."""
    drawn = layers(*sizes, members=members)
    return [(weight.detach().double(), bias.detach().double()) for weight, bias in drawn]


def perceptron(x: Tensor, weights: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Apply them, with LeakyReLU between layers."""
    for weight, bias in weights[:-1]:
        x = F.leaky_relu(torch.baddbmm(bias, x, weight), SLOPE)
    return torch.baddbmm(weights[-1][1], x, weights[-1][0])


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take a step down the gradient."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def gan(X: Tensor) -> Step:
    """G2D's generator and critic on the rows `X`."""
    n_columns = X.shape[1]
    generator, critic = layers(n_columns, 64, 64, n_columns), layers(n_columns, 64, 64, 1)
    skip = torch.zeros(MEMBERS, n_columns, n_columns, requires_grad=True)
    of_generator = [skip, *(p for layer in generator for p in layer)]
    optimizers = [
        torch.optim.Adam(parameters, 1e-3, betas=(0.5, 0.999), fused=True)
        for parameters in (of_generator, [p for layer in critic for p in layer])
    ]

    def sample() -> Tensor:
        z = torch.randn(MEMBERS, BATCH, n_columns, generator=RNG)
        z = z * torch.exp(1.6 * torch.rand(MEMBERS, BATCH, 1, generator=RNG).square())
        x = torch.baddbmm(perceptron(z, generator), z, skip)
        return x / torch.hypot(x.new_ones(()), x / 8.0)

    def step() -> Tensor:
        real = X[torch.randint(len(X), (MEMBERS, BATCH), generator=RNG)]
        with torch.no_grad():
            fake = sample()
        distance = (perceptron(real, critic) - perceptron(fake, critic)).mean((1, 2))
        x = torch.lerp(fake, real, torch.rand(MEMBERS, BATCH, 1, generator=RNG))
        slopes = []
        with torch.no_grad():
            for weight, bias in critic[:-1]:
                x = torch.baddbmm(bias, x, weight)
                slopes.append(torch.where(x > 0, 1.0, SLOPE))
                x = x * slopes[-1]
        slope = critic[-1][0].mT.expand(-1, BATCH, -1)
        for (weight, _), factor in zip(critic[-2::-1], slopes[::-1], strict=True):
            slope = torch.bmm(slope * factor, weight.mT)
        norm = (slope.square().sum(2) + 1e-12).sqrt()
        loss = 10 * (norm - 1).square().mean(1) - distance
        descend(optimizers[1], loss.sum())
        descend(optimizers[0], -perceptron(sample(), critic).mean((1, 2)).sum())
        return loss.detach().mean()

    return step


def classifier(normal: Tensor, generated: Tensor) -> Step:
    """G2D's classifier on profiles; each member draws from three quarters of the normal rows."""
    weights = layers(normal.shape[1], 16, 2)
    parameters = [p for layer in weights for p in layer]
    optimizer = torch.optim.AdamW(parameters, 2e-3, fused=True)
    folds = torch.arange(len(normal)) % 4
    allowed = [torch.nonzero(folds != member % 4).squeeze(1) for member in range(MEMBERS)]
    labels = torch.tensor([0, 1]).repeat_interleave(BATCH).repeat(MEMBERS)

    def step() -> Tensor:
        drawn = [rows[torch.randint(len(rows), (BATCH,), generator=RNG)] for rows in allowed]
        others = torch.randint(len(generated), (MEMBERS, BATCH), generator=RNG)
        batch = torch.cat([normal[torch.stack(drawn)], generated[others]], 1)
        loss = F.cross_entropy(perceptron(batch, weights).flatten(0, 1), labels)
        descend(optimizer, loss * MEMBERS)
        return loss.detach()

    return step


def cells(X: Tensor) -> Step:
    """AVID's inpainter and detector on rows of a table, with averages of their weights."""
    n, n_columns = 128, X.shape[1]
    inpainter = layers(2 * n_columns, 128, 128, n_columns, members=1)
    detector = layers(n_columns, 128, 128, n_columns, members=1)
    networks = [[p for layer in network for p in layer] for network in (inpainter, detector)]
    optimizers = [torch.optim.Adam(p, 2e-3, betas=(0.9, 0.99), fused=True) for p in networks]
    averages = [[p.detach().clone() for p in network] for network in networks]
    low, high = X.amin(0), X.amax(0)

    def mask(fraction: float) -> Tensor:
        uniform = torch.rand(n, n_columns + 1, generator=RNG)
        return (uniform[:, 1:] < 2 * fraction * uniform[:, :1]).float()

    def draw() -> Tensor:
        return X[torch.randint(len(X), (n,), generator=RNG)]

    def step() -> Tensor:
        x, hidden = draw(), mask(0.5)
        seen = torch.cat([x * (1 - hidden), hidden], 1)
        inpainted = torch.where(hidden > 0, perceptron(seen[None], inpainter)[0], x)
        error = (inpainted - x).square().sum() / (x.numel() * hidden.mean()).clamp(min=1)
        descend(optimizers[0], error)
        other = X.gather(0, torch.randint(len(X), (n, n_columns), generator=RNG))
        uniform = torch.rand(2, n, n_columns, generator=RNG)
        anywhere = low + (high - low) * (2 * uniform[0] - 0.5)
        real = draw()
        other = torch.where(uniform[1] < 0.25, anywhere, other)
        exchanged = torch.where(mask(0.3) > 0, other, real)
        logits = perceptron(torch.cat([real, exchanged])[None], detector)[0]
        labels = torch.zeros_like(logits)
        labels[n:] = (exchanged != real).float()
        descend(optimizers[1], F.binary_cross_entropy_with_logits(logits, labels))
        for average, network in zip(averages, networks, strict=True):
            torch._foreach_lerp_(average, [p.detach() for p in network], 0.01)
        return error.detach()

    return step
