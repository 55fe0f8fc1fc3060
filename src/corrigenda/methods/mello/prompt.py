"""Worked examples of MeLLo; the people and places in them are invented."""

DEMONSTRATIONS = """\
Question: In which city was the founder of the company that employs Tamsin Orlov born?
Subquestion: Which company employs Tamsin Orlov?
Generated answer: Tamsin Orlov is employed by Halden Glassworks.
Retrieved fact: The company that employs Tamsin Orlov is Merrow Shipyards.
The retrieved fact contradicts the generated answer, \
so the intermediate answer is: Merrow Shipyards
Subquestion: Who founded Merrow Shipyards?
Generated answer: Merrow Shipyards was founded by Anselm Quist.
Retrieved fact: The chief executive of Merrow Books is Ines Varga.
The retrieved fact does not contradict the generated answer, \
so the intermediate answer is: Anselm Quist
Subquestion: In which city was Anselm Quist born?
Generated answer: Anselm Quist was born in Port Lindow.
Retrieved fact: Anselm Quist was born in Kestrel Bay.
The retrieved fact contradicts the generated answer, so the intermediate answer is: Kestrel Bay
Final answer: Kestrel Bay

Question: What is the official language of the country where the novel Salt Lanterns is set?
Subquestion: In which country is the novel Salt Lanterns set?
Generated answer: The novel Salt Lanterns is set in Valdoria.
Retrieved fact: The author of the novel Salt Lanterns is Pia Rensfeld.
The retrieved fact does not contradict the generated answer, \
so the intermediate answer is: Valdoria
Subquestion: What is the official language of Valdoria?
Generated answer: The official language of Valdoria is Valdorian.
Retrieved fact: The official language of Valdoria is Old Tarnish.
The retrieved fact contradicts the generated answer, so the intermediate answer is: Old Tarnish
Final answer: Old Tarnish

Question: On which continent lies the country whose citizen wrote the song Nine Grey Herons?
Subquestion: Who wrote the song Nine Grey Herons?
Generated answer: The song Nine Grey Herons was written by Marit Solbakk.
Retrieved fact: The song Nine Grey Owls was written by Teo Calder.
The retrieved fact does not contradict the generated answer, \
so the intermediate answer is: Marit Solbakk
Subquestion: Of which country is Marit Solbakk a citizen?
Generated answer: Marit Solbakk is a citizen of Norrheim.
Retrieved fact: Marit Solbakk is a citizen of Ostrava Minor.
The retrieved fact contradicts the generated answer, so the intermediate answer is: Ostrava Minor
Subquestion: On which continent does Ostrava Minor lie?
Generated answer: Ostrava Minor lies in Europe.
Retrieved fact: Norrheim lies on the continent of Asia.
The retrieved fact does not contradict the generated answer, so the intermediate answer is: Europe
Final answer: Europe

Question: Who is the mayor of the capital of the country where \
the sport of the spouse of Dario Fenn began?
Subquestion: Who is the spouse of Dario Fenn?
Generated answer: The spouse of Dario Fenn is Lucia Brandt.
Retrieved fact: Dario Fenn is married to Noor Haddix.
The retrieved fact contradicts the generated answer, so the intermediate answer is: Noor Haddix
Subquestion: Which sport does Noor Haddix play?
Generated answer: Noor Haddix plays lawn quoits.
Retrieved fact: Noor Haddix was educated at the Academy of Selm.
The retrieved fact does not contradict the generated answer, \
so the intermediate answer is: lawn quoits
Subquestion: In which country did lawn quoits begin?
Generated answer: Lawn quoits began in Caldera.
Retrieved fact: The sport of lawn quoits was created in the country of Sennet.
The retrieved fact contradicts the generated answer, so the intermediate answer is: Sennet
Subquestion: Who is the mayor of the capital of Sennet?
Generated answer: The mayor of the capital of Sennet is Ottilie Crane.
Retrieved fact: The capital of Caldera is Brightwater.
The retrieved fact does not contradict the generated answer, \
so the intermediate answer is: Ottilie Crane
Final answer: Ottilie Crane"""
"""Four examples of two to four hops, with facts that contradict, agree, and do not matter."""
