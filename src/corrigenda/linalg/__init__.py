"""Pure functions on tensors: low-rank algebra, second moments, projectors and the four solvers."""

from corrigenda.linalg.cholesky import Cholesky
from corrigenda.linalg.lowrank import LowRank
from corrigenda.linalg.moments import SecondMoment
from corrigenda.linalg.project import NullSpace, null_space
from corrigenda.linalg.protected import Protected
from corrigenda.linalg.solve import (
    equality,
    gram_condition,
    key_agreement,
    null_space_ridge,
    rank_one,
    ridge,
)

__all__ = [
    "Cholesky",
    "LowRank",
    "NullSpace",
    "Protected",
    "SecondMoment",
    "equality",
    "gram_condition",
    "key_agreement",
    "null_space",
    "null_space_ridge",
    "rank_one",
    "ridge",
]
