"""Training of what learned methods need: one loop, one kind of training set, kept by content."""

from corrigenda.training.cache import fit_trained
from corrigenda.training.dataset import Material, Split, outsider, split, training_set
from corrigenda.training.loop import Schedule, Trained, Turn, order, train

__all__ = [
    "Material",
    "Schedule",
    "Split",
    "Trained",
    "Turn",
    "fit_trained",
    "order",
    "outsider",
    "split",
    "train",
    "training_set",
]
