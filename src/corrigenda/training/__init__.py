"""Training of what learned methods need: one loop, one kind of training set, kept by content."""

from corrigenda.training.cache import fit_trained
from corrigenda.training.dataset import Split, TrainingSet, outsider, split, training_set
from corrigenda.training.loop import Schedule, Trained, Turn, order, train

__all__ = [
    "Schedule",
    "Split",
    "Trained",
    "TrainingSet",
    "Turn",
    "fit_trained",
    "order",
    "outsider",
    "split",
    "train",
    "training_set",
]
