"""Training of learned methods: one loop, one kind of training set, one cache."""

from corrigenda.training.cache import fit_trained
from corrigenda.training.dataset import (
    Split,
    TrainingSet,
    draw_unrelated_prompt,
    load_training_set,
    split,
)
from corrigenda.training.job import QUIET, Job
from corrigenda.training.loop import Schedule, TrainingReport, Turn, shuffle_epoch, train

__all__ = [
    "QUIET",
    "Job",
    "Schedule",
    "Split",
    "TrainingReport",
    "TrainingSet",
    "Turn",
    "draw_unrelated_prompt",
    "fit_trained",
    "load_training_set",
    "shuffle_epoch",
    "split",
    "train",
]
