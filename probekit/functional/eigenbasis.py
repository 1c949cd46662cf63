"""Features turned into their own principal axes, where a penalised fit is nearly a fit per axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from probekit.functional.arguments import AnyFloats, FloatArray
from probekit.functional.rows import empty_rows, row_blocks

# Axes whose share of the leading variance is below this carry rounding, not data (N < D only).
_RANK_TOLERANCE = 1e-12
_BLOCK_BYTES = 2**26


@dataclass(frozen=True)
class Eigenbasis:
    """Rows in the eigenbasis of their covariance.

    Letters: N rows, D features, R axes (D, or the rank where N < D).

    Attributes:
        mean: (D,) weighted mean of the features.
        axes: (D, R) orthonormal columns.
        variances: (R + 1,) weighted mean square of each coordinate.
        coordinates: (N, R + 1) ``(features − mean) @ axes``, and a last column of ones whose weight is the
            intercept: it is orthogonal to all others, because they have mean zero.
    """

    mean: torch.Tensor
    axes: torch.Tensor
    variances: torch.Tensor
    coordinates: torch.Tensor

    def express(self, weights: torch.Tensor, intercepts: torch.Tensor) -> torch.Tensor:
        """Return (Q, K, R + 1) parameters: the reverse of ``restore``.

        Args:
            weights: (Q, D, K) in float64.
            intercepts: (Q, K) in float64.
        """
        at_mean = intercepts + self.mean @ weights
        turned = weights.to(self.axes.dtype).to(self.axes.device).transpose(1, 2) @ self.axes
        return torch.cat([turned, at_mean[..., None].to(turned.dtype).to(turned.device)], dim=2)

    def restore(self, parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (Q, D, K) weights and (Q, K) intercepts for the features as they came, in float64.

        Args:
            parameters: (Q, K, R + 1), the intercept last.
        """
        weights = (parameters[..., :-1] @ self.axes.T).transpose(1, 2).cpu().double()
        at_mean = parameters[..., -1].cpu().double()
        # x W + b = (x − μ) W + b₀  with  b = b₀ − μ W
        return weights, at_mean - self.mean @ weights


def rotate_features(
    features: AnyFloats,
    weight: FloatArray,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    like: Eigenbasis | None = None,
) -> Eigenbasis:
    """Rotate features into the eigenbasis of their weighted covariance.

    With N ≥ D the axes are the eigenvectors of the (D, D) covariance; a rotation loses nothing, so their
    precision only decides how fast a fit converges. With N < D the axes span the rows, and are found from
    the (N, N) Gram matrix in float64: no optimum of a penalised fit leaves that span.

    Features are read in blocks of rows and may be memory-mapped.

    Args:
        features: (N, D).
        weight: (N,) row weights that sum to 1.
        dtype: Precision of the coordinates and, with N ≥ D, of the decomposition.
        device: Where to compute and to leave the result.
        like: The same features in another precision, whose axes are taken over.
    """
    mean = _mean(features, weight)
    # Precision is changed on the host throughout: not every device has float64.
    if like is not None:
        variances, axes = like.variances[:-1].cpu(), like.axes.cpu()
    elif len(features) < features.shape[1]:
        centred = torch.from_numpy(np.subtract(features, mean))
        variances, axes = _row_axes(centred, torch.from_numpy(weight))
    else:
        variances, axes = _column_axes(features, mean, weight, dtype, device)
    variances, axes = (one.to(dtype).to(device) for one in (variances, axes))
    coordinates = _room(len(features), axes.shape[1] + 1, dtype, device)
    for rows in product_blocks(features):
        centred = torch.from_numpy(np.subtract(features[rows], mean)).to(dtype).to(device)
        coordinates[rows, :-1] = centred @ axes
    coordinates[:, -1] = 1
    return Eigenbasis(
        mean=torch.from_numpy(mean.astype(np.float64)),
        axes=axes,
        variances=torch.cat([variances.clamp_min(0), variances.new_ones(1)]),
        coordinates=coordinates,
    )


def product_blocks(features: AnyFloats, outputs: int = 1) -> list[slice]:
    """Return slices of rows, each small beside a memory-mapped matrix and large enough for a product.

    Args:
        features: (N, D).
        outputs: K numbers a row that are computed of it, where they may be more than D.
    """
    return row_blocks(len(features), max(features.shape[1], outputs), _BLOCK_BYTES)


def _mean(features: AnyFloats, weight: FloatArray) -> AnyFloats:
    """Return (D,) means in the precision of the features."""
    total = np.zeros(features.shape[1])
    for rows in product_blocks(features):
        total += weight[rows] @ features[rows]
    return total.astype(np.float32) if features.dtype == np.float32 else total


def _room(rows: int, columns: int, dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
    if torch.device(device).type != "cpu":
        return torch.empty((rows, columns), dtype=dtype, device=device)
    return torch.from_numpy(empty_rows((rows, columns), torch.empty(0, dtype=dtype).numpy().dtype))


def _column_axes(
    features: AnyFloats,
    mean: AnyFloats,
    weight: FloatArray,
    dtype: torch.dtype,
    device: str | torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (D,) variances and (D, D) axes:  Xᵀ diag(ω) X = V Λ Vᵀ."""
    covariance = torch.zeros((features.shape[1],) * 2, dtype=dtype, device=device)
    for rows in product_blocks(features):
        centred = torch.from_numpy(np.subtract(features[rows], mean)).to(dtype).to(device)
        share = torch.from_numpy(weight[rows]).to(dtype).to(device)
        covariance.addmm_(centred.T, centred * share[:, None])
    variances, axes = torch.linalg.eigh(covariance)
    return variances, axes


def _row_axes(centred: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (R,) variances and (D, R) axes from the Gram matrix of fewer rows than features."""
    scaled = centred.double() * share.sqrt()[:, None]
    variances, left = torch.linalg.eigh(scaled @ scaled.T)
    real = variances > _RANK_TOLERANCE * variances[-1]
    variances, left = variances[real], left[:, real]
    # A = U S Vᵀ  ⇒  V = Aᵀ U S⁻¹
    return variances, scaled.T @ (left / variances.sqrt())
