"""Training of learned methods: one loop, one kind of training set, one cache."""

from corrigenda.training.cache import fit_trained
from corrigenda.training.dataset import (
    TrainingSet,
    TrainingSplit,
    draw_unrelated_prompt,
    load_training_set,
    split,
)
from corrigenda.training.job import QUIET, TrainingJob
from corrigenda.training.loop import Schedule, TrainingReport, Turn, shuffle_epoch, train

__all__ = [
    "QUIET",
    "Schedule",
    "TrainingJob",
    "TrainingReport",
    "TrainingSet",
    "TrainingSplit",
    "Turn",
    "draw_unrelated_prompt",
    "fit_trained",
    "load_training_set",
    "shuffle_epoch",
    "split",
    "train",
]
