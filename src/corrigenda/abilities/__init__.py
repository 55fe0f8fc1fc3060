"""Other tasks, which show what a model can still do after edits: what is asked, and how.

| module | holds |
|---|---|
| `record_formats` | records as they are published: schema and questions of each kind |
| `items` | items of a file, in our wording or a published one |
| `harness` | tasks of lm-eval on the model in memory |

Answers become rows in a run (`corrigenda.run.tasks`); how they are judged and scored from rows is
in `corrigenda.metrics.tasks`.
"""
