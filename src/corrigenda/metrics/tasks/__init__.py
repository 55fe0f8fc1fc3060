"""Scores on other tasks: what a model can still do after edits. Functions from rows; no torch.

| module | holds |
|---|---|
| `scores` | what all of them share: how rows of tasks are read, means over tasks, F1, correlation |
| `choices` | multiple choice by likelihood |
| `answers` | generated answers |
| `judging` | how the text of an answer is judged, for each kind of task |
| `measured` | scores that lm-eval gave |

How the tasks are asked is the matter of `corrigenda.abilities`.
"""
