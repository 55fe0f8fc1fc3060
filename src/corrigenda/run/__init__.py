"""Evaluation: a recipe becomes runs, a run becomes rows on disk.

| module | does |
|---|---|
| `spec` | what one run is (`RunSpec`), and recipes that make several of them |
| `plan` | cases and regime become units of work |
| `asking` | probes become answers, many at once |
| `before` | answers of the unedited model, asked once for all methods |
| `worker` | one unit: edit, apply, ask, take off |
| `tasks` | other tasks along a run: multiple choice, generated answers, and those of lm-eval |
| `analyses` | measurements outside of runs: places, projections, latency, added tokens |
| `restoration` | edits that are taken back by a second edit |
| `store` | rows on disk, part by part; `store.load` gives them back |
| `executors` | who works: this process, or Ray |
| `runner` | all of it together |

```python
from corrigenda.run import store

recorded = store.load("runs/3f2a...")          # the folder of a run
recorded.rows, recorded.measurements           # what metrics read
recorded.spec.editor.label, recorded.manifest  # what was run, on what, with which versions
```
"""
