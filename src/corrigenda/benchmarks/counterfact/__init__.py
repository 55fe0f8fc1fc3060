"""CounterFact, CounterFact+ and the flat form of CounterFact."""
