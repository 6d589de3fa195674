"""The Frechet distance between two sets of features (FID, where Inception made them)."""

import numpy as np
from jaxtyping import Float

from ..errors import UserError
from .moments import Moments, check_same_features


def fid(first: Moments, second: Moments) -> float:
    """Squared Frechet distance between the Gaussians of two sets, each of two features or more.

    It is biased upwards by amounts that fall with the counts, so only figures of equal counts compare.

    Source: Heusel et al. 2017 (arXiv 1706.08500), equation 6. Raises UserError for features of different extractors.
    """
    check_same_features(first, second)
    for moments in (first, second):
        if moments.count < 2:
            raise UserError(f"a Frechet distance from a set of {moments.count} pictures: give two or more")
    step = first.mean - second.mean
    covariances = first.covariance, second.covariance
    traces = sum(float(np.trace(covariance)) for covariance in covariances)
    return max(0.0, float(step @ step) + traces - 2 * _trace_of_root(*covariances))


def _trace_of_root(first: Float[np.ndarray, "d d"], second: Float[np.ndarray, "d d"]) -> float:
    """tr (A B)^(1/2) of covariances A and B.

    A B has the eigenvalues of the symmetric F^T B F with A = F F^T, which are real and not negative whatever the rank.
    """
    values, vectors = np.linalg.eigh(first)
    factor = vectors * np.sqrt(np.clip(values, 0, None))
    return float(np.sqrt(np.clip(np.linalg.eigvalsh(factor.T @ second @ factor), 0, None)).sum())
