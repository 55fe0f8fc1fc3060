"""Metrics: pure functions from rows to estimates. No torch.

One module per subject, which ends in its `METRICS`; `registry` collects them and looks them up by
name. `metric` is what an entry holds, `estimate` how a value and its interval are found,
`selection` which rows a metric reads.
"""
