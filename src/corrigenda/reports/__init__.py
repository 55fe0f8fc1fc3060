"""Reports: what runs recorded, as tables, figures and pages. No model is run here.

| module | does |
|---|---|
| `content` | runs become groups of tables, curves, matrices and generations: plain values |
| `numbers` | how an estimate is written |
| `figures` | curves, trade-off, error types, success matrix, as SVG |
| `side_by_side` | answers of several runs to the probes of one case, marked right or wrong |
| `page` | one HTML file that needs nothing else |
| `plain` | the tables as Markdown, LaTeX and JSON |
| `citations` | BibTeX of exactly what was used |
| `comparison` | two runs on the same cases, with a paired test |
"""
