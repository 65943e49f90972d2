"""The irregularity generator I for rows of a table."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sklearn_g2d.training.ensemble import EnsembleMLP, StorableModule


class TableGenerator(StorableModule):
    """Generators that map Gaussian noise to rows: an MLP beside a linear skip.

    A freshly initialised MLP puts its samples next to the mean of the data, where they
    would teach a classifier that the centre is irregular. The skip, set by `cover`,
    starts as a cloud around the data instead.

    Parameters
    ----------
    n_members : int
        Number of independent generators.
    n_features : int
        Length of a row.
    latent_dim : int
        Length of the noise vector.
    hidden : tuple of int
        Widths of the MLP's hidden layers.
    skip : bool
        Whether there is a linear skip; the paper's generator has none.
    tail : float
        Noise vectors are stretched by exp(tail * u**2), u uniform in (0, 1), so that
        some samples lie far outside.
    bound : float
        Samples are squashed into +-bound as `SquashingScaler` does; may be infinite.
    rng : torch.Generator, optional
        Source of the initial weights; without it they are left to be loaded.
    """

    def __init__(
        self,
        *,
        n_members: int,
        n_features: int,
        latent_dim: int,
        hidden: tuple[int, ...],
        skip: bool,
        tail: float,
        bound: float,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            n_members=n_members,
            n_features=n_features,
            latent_dim=latent_dim,
            hidden=hidden,
            skip=skip,
            tail=tail,
            bound=bound,
        )
        self.n_members, self.n_features, self.latent_dim = n_members, n_features, latent_dim
        self.tail, self.bound = tail, bound
        self.mlp = EnsembleMLP(n_members, (latent_dim, *hidden, n_features), rng)
        self.skip = nn.Parameter(torch.zeros(n_members, latent_dim, n_features)) if skip else None

    def forward(self, z: Tensor) -> Tensor:
        """Map noise (n_members, n, latent_dim) to rows (n_members, n, n_features)."""
        x = self.mlp(z)
        if self.skip is not None:
            x = torch.baddbmm(x, z, self.skip)
        return x / torch.hypot(x.new_ones(()), x / self.bound)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw `n` rows from every member: (n_members, n, n_features)."""
        z = torch.randn(self.n_members, n, self.latent_dim, generator=rng, device=rng.device)
        if self.tail:
            u = torch.rand(self.n_members, n, 1, generator=rng, device=rng.device)
            z = z * torch.exp(self.tail * u.square())
        return self(z)

    @torch.no_grad()
    def cover(self, X: Tensor, spread: float, rng: torch.Generator) -> None:
        """Set the skip so that samples surround the rows `X` of shape (n, n_features).

        The cloud of every other member is isotropic, of standard deviation `spread`; the
        others' have `spread` times the data's covariance root, which keeps correlations.
        """
        if self.skip is None:
            return
        even, odd = self.skip[::2], self.skip[1::2]
        rank = min(self.latent_dim, self.n_features)
        if self.latent_dim >= self.n_features:
            even[:, :rank] = spread * torch.eye(rank, device=X.device)
        else:
            noise = torch.randn(even.shape, generator=rng, device=rng.device)
            even.copy_(noise * spread / math.sqrt(self.latent_dim))
        covariance = torch.cov(X.T.cpu()).reshape(X.shape[1], X.shape[1])
        variances, axes = torch.linalg.eigh(covariance)  # not there on every device
        roots = (variances.clamp(min=0).sqrt() * axes).T.to(X.device)
        # The largest variances come last, and first should noise be short of dimensions.
        odd[:, :rank] = spread * roots.flip(0)[:rank]
