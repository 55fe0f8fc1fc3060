"""Transforms of patches: changes made smaller, sparser or better conditioned after the edit.

A transform reads the model and leaves it alone. The header of the new patch lists what was done to
it. `corrigenda.transforms.registry` finds transforms by the names used on the command line.
"""
