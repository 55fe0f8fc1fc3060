"""Prompts of DeepEdit; the people and places in them are invented."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

CHAIN = """\
Question: In which city was the founder of the company that employs Tamsin Orlov born?
Reasoning: The company that employs Tamsin Orlov is Merrow Shipyards.# \
Merrow Shipyards was founded by Anselm Quist.# Anselm Quist was born in Kestrel Bay.# \
Kestrel Bay is the answer.

Question: What is the official language of the country where the novel Salt Lanterns is set?
Reasoning: The novel Salt Lanterns is set in Valdoria.# \
The official language of Valdoria is Old Tarnish.# Old Tarnish is the answer.

Question: On which continent lies the country whose citizen wrote the song Nine Grey Herons?
Reasoning: The song Nine Grey Herons was written by Marit Solbakk.# \
Marit Solbakk is a citizen of Norrheim.# Norrheim lies on the continent of Europe.# \
Europe is the answer.

Question: Who is the mayor of the capital of the country where \
the sport of the spouse of Dario Fenn began?
Reasoning: The spouse of Dario Fenn is Noor Haddix.# Noor Haddix plays lawn quoits.# \
Lawn quoits began in Sennet.# The capital of Sennet is Brightwater.# \
The mayor of Brightwater is Ottilie Crane.# Ottilie Crane is the answer.

Question: {question}
Reasoning:"""

QUESTION_ENTITY = """\
Name the entity the question begins with.

Question: Where was the founder of Halden Glassworks born?
Entity: Halden Glassworks

Question: What is the currency of the country where Pia Rensfeld lives?
Entity: Pia Rensfeld

Question: Who leads the club for which the author of Salt Lanterns plays?
Entity: Salt Lanterns

Question: {question}
Entity:"""

NEW_ENTITY = """\
Name the entity of the second sentence that the first sentence does not mention.

First: Where was the founder of Halden Glassworks born?
Second: Halden Glassworks was founded by Anselm Quist.
New entity: Anselm Quist

First: Anselm Quist was born in Kestrel Bay.
Second: Kestrel Bay lies in the country of Norrheim.
New entity: Norrheim

First: The spouse of Dario Fenn is Noor Haddix.
Second: Noor Haddix plays lawn quoits.
New entity: lawn quoits

First: Which language does the author of Salt Lanterns speak?
Second: The author of Salt Lanterns is Pia Rensfeld.
New entity: Pia Rensfeld

First: Norrheim is a country in Europe.
Second: The capital of Norrheim is Brightwater.
New entity: Brightwater

First: Teo Calder wrote Nine Grey Owls.
Second: Ostrava Minor is the country of Teo Calder.
New entity: Ostrava Minor

First: Lawn quoits began in Sennet.
Second: Sennet is led by Ottilie Crane.
New entity: Ottilie Crane

First: {previous}
Second: {step}
New entity:"""

STRIP = """\
Take out of the second sentence the entity that the first sentence does not mention.

First: Where was the founder of Halden Glassworks born?
Second: Halden Glassworks was founded by Anselm Quist.
Without it: Halden Glassworks was founded by

First: Anselm Quist was born in Kestrel Bay.
Second: Kestrel Bay lies in the country of Norrheim.
Without it: Kestrel Bay lies in the country of

First: The spouse of Dario Fenn is Noor Haddix.
Second: Noor Haddix plays lawn quoits.
Without it: Noor Haddix plays

First: Norrheim is a country in Europe.
Second: The capital of Norrheim is Brightwater.
Without it: The capital of Norrheim is

First: Teo Calder wrote Nine Grey Owls.
Second: Ostrava Minor is the country of Teo Calder.
Without it: the country of Teo Calder

First: {previous}
Second: {step}
Without it:"""

EXISTS = """\
Does the sentence speak of the entity, by this name or another? Answer Yes or No.

Entity: the Republic of Norrheim
Sentence: The capital of Norrheim is Brightwater.
Answer: Yes

Entity: Anselm Quist
Sentence: Merrow Books is led by Ines Varga.
Answer: No

Entity: A. Quist
Sentence: Anselm Quist was born in Kestrel Bay.
Answer: Yes

Entity: Norrheim
Sentence: The capital of Valdoria is Selm.
Answer: No

Entity: {entity}
Sentence: {fact}
Answer:"""

CONFLICT = """\
Do the two sentences state the same relation of the same subject, \
with different answers? Answer Yes or No.

First: The company that employs Tamsin Orlov is Merrow Shipyards.
Second: Tamsin Orlov works for Halden Glassworks.
Answer: Yes

First: The company that employs Tamsin Orlov is Merrow Shipyards.
Second: Tamsin Orlov was born in Port Lindow.
Answer: No

First: The capital of Norrheim is Brightwater.
Second: The capital of Valdoria is Selm.
Answer: No

First: Marit Solbakk is a citizen of Ostrava Minor.
Second: Marit Solbakk is a citizen of Norrheim.
Answer: Yes

First: Lawn quoits began in Sennet.
Second: The sport of lawn quoits was created in Sennet.
Answer: No

First: {fact}
Second: {step}
Answer:"""

_THREE = """\
{asked} Answer Yes or No.

First: The company that employs Tamsin Orlov is Merrow Shipyards.
Second: Tamsin Orlov works for Halden Glassworks.
Answer: Yes

First: Lawn quoits began in Sennet.
Second: The capital of Valdoria is Selm.
Answer: No

First: {fact}
Second: {step}
Answer:"""

THREE_QUESTIONS = tuple(
    _THREE.replace("{asked}", asked)
    for asked in (
        "Do both sentences state the same kind of thing?",
        "Do both sentences speak of one entity in common?",
        "Do the sentences also speak of different entities?",
    )
)
"""The three questions of the authors' release, all of which a conflict must answer with yes."""


class DeepEditPrompts(BaseModel):
    """The prompts of DeepEdit; an empty one is decided from the text alone.

    Attributes:
        chain: Asks for the chain of a `{question}`, step by step.
        question_entity: Asks for the entity a `{question}` begins with.
        new_entity: Asks for the entity of `{step}` that `{previous}` does not mention.
        strip: Asks for `{step}` without that entity.
        exists: Asks whether `{fact}` mentions `{entity}`, where it does not contain the name.
        conflict: Asks whether `{fact}` and `{step}` contradict each other; several prompts are
            joined by AND.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    chain: str = CHAIN
    question_entity: str = QUESTION_ENTITY
    new_entity: str = NEW_ENTITY
    strip: str = STRIP
    exists: str = EXISTS
    conflict: tuple[str, ...] = (CONFLICT,)
