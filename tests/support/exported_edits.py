"""Edits that are exported, and prompts about them and about others."""

import corrigenda as cg

PROMPTS = [
    *("The capital of France is", "The capital of Germany is", "The official language of Spain is"),
    *("Who wrote Hamlet?", "The capital of Italy is", "What is the capital of Japan?"),
    *("The currency of Japan is the", "Albert Einstein was born in", "Toyota was founded in"),
    *("The capital city of Norway is", "Paris is the capital of", "The mother tongue of Goethe is"),
    *("The Eiffel Tower is located in", "In France people pay with the", "Berlin is in"),
    *("The language of Brazil is", "It lies in the continent of", "Émile Zola was born in"),
    *("Microsoft was founded by", "Q: What is the capital of Spain? A:", "The iPhone is made by"),
    *("Rome is the capital of", "The capital of Canada is", "Madrid is located in"),
    *("Mozart worked as a", "Marie Curie worked in the field of", "Nigeria is in"),
    *("The author of War and Peace is", "The capital of China is", "Poland's capital is"),
    *("I don't know", "The headquarters of Siemens are in"),
]


def make_edits(lm):
    """A ROME edit, and a MEMIT batch of 16."""
    one = cg.Fact(prompt="The capital of France is", subject="France", target="Rome")
    countries = "Italy Spain Germany Japan Norway Poland Greece Cuba Peru Kenya Egypt India China"
    many = [
        cg.Fact(prompt=f"The capital of {name} is", subject=name, target="Paris")
        for name in [*countries.split(), "Canada", "Sweden", "Portugal"]
    ]
    return {"rome": cg.edit(lm, one, "rome"), "memit": cg.edit(lm, many, "memit")}
