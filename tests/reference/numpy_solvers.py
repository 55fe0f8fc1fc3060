"""Slow dense float64 solvers written from the papers with loops and explicit inverses.

Nothing is shared with the library: no factors, no push-through, no whitening. Shapes are those of
the papers: keys (d_in, n), residuals (d_out, n), moment (d_in, d_in), all as NumPy arrays.
"""

import numpy as np


def second_moment(keys):
    """Mean of k k^T over the rows of `keys` (n, d_in); ROME appendix E.5."""
    width = keys.shape[1]
    total = np.zeros((width, width))
    for key in keys:
        for i in range(width):
            for j in range(width):
                total[i, j] += key[i] * key[j]
    return total / len(keys)


def rome(key, residual, moment):
    """ROME eq. 2: Lambda (C^-1 k)^T with Lambda = r / ((C^-1 k)^T k)."""
    direction = np.linalg.inv(moment) @ key
    change = np.zeros((len(residual), len(key)))
    for row in range(len(residual)):
        for column in range(len(key)):
            change[row, column] = residual[row] * direction[column] / (direction @ key)
    return change


def original_rome(mean_key, prompt_key, residual, moment):
    """The authors' code of ROME: direction from the mean key, denominator from the prompt's key."""
    direction = np.linalg.inv(moment) @ mean_key
    return np.outer(residual / (direction @ prompt_key), direction)


def emmet(keys, residuals, moment):
    """The KKT system of min tr(D C D^T) subject to D K = R, solved row by row of D."""
    d_in, n = keys.shape
    system = np.zeros((d_in + n, d_in + n))
    system[:d_in, :d_in] = 2 * moment
    system[:d_in, d_in:] = keys
    system[d_in:, :d_in] = keys.T
    change = np.zeros((residuals.shape[0], d_in))
    for row in range(residuals.shape[0]):
        right = np.concatenate([np.zeros(d_in), residuals[row]])
        change[row] = np.linalg.solve(system, right)[:d_in]
    return change


def memit(keys, residuals, moment, weight, protected=None):
    """MEMIT eq. 14: R K^T (weight C + K K^T)^-1, with K_p K_p^T added for earlier keys."""
    system = weight * moment
    for key in keys.T:
        system = system + np.outer(key, key)
    if protected is not None:
        for key in protected.T:
            system = system + np.outer(key, key)
    return residuals @ keys.T @ np.linalg.inv(system)


def projector(moment, threshold):
    """AlphaEdit section 3.2: U U^T over eigenvectors with eigenvalue below the threshold."""
    values, vectors = np.linalg.eigh(moment)
    result = np.zeros_like(moment)
    for value, vector in zip(values, vectors.T, strict=True):
        if value < threshold:
            result += np.outer(vector, vector)
    return result


def alphaedit(keys, residuals, P, protected, weight):
    """AlphaEdit eq. 14 in the non-symmetric form of the paper."""
    identity = np.eye(len(P))
    system = keys @ keys.T @ P + protected @ protected.T @ P + weight * identity
    return residuals @ keys.T @ P @ np.linalg.inv(system)
