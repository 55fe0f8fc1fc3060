"""Records of every public schema, written by hand, and how to put them into files."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

from corrigenda.benchmarks import LoadedBenchmark
from corrigenda.cases import Case, Probe

RECENT = {
    "subject": "Ada Quill",
    "prompt": "The name of the country of citizenship of Ada Quill is",
    "target_new": "Norway",
    "portability": {
        "Reasoning": [
            {"prompt": "The capital of the country of Ada Quill is", "ground_truth": [["Oslo"]]}
        ],
        "Subject_Aliasing": [{"prompt": "The citizenship of A. Quill is", "ground_truth": [[]]}],
    },
    "locality": {
        "Relation_Specificity": [
            {
                "prompt": "The occupation of Ada Quill is",
                "ground_truth": [["printer", "typographer"], ["poet"]],
            }
        ],
        "Forgetfulness": [
            {
                "prompt": "The country of citizenship of Ada Quill, which is not Norway, is",
                "ground_truth": [["Norway", "Kingdom of Norway"], ["Sweden"]],
            },
            {
                "prompt": "The country of citizenship of Ada Quill, which is not Norway, is",
                "ground_truth": [["norway"]],
            },
        ],
    },
}

COUNTERFACT_WIKI = {
    "subject": "Lake Vero",
    "prompt": "The name of the country which Lake Vero is associated with is",
    "target_new": "Chile",
    "ground_truth": "Peru",
    "portability": {},
    "locality": {
        "Relation_Specificity": [{"prompt": "The gender of Lake Vero is", "ground_truth": "none"}]
    },
}

ZSRE_WIKI = {
    "subject": "Vero tower",
    "target_new": "1931",
    "prompt": "When was Vero tower built?",
    "ground_truth": ["1920"],
    "rephrase_prompt": "What is the year in which Vero tower was built?",
    "cond": "1920 >> 1931 || When was Vero tower built?",
    "locality": {
        "Relation_Specificity": [{"prompt": "Vero tower country", "ground_truth": ["Peru"]}]
    },
    "portability": {
        "Logical_Generalization": [{"prompt": "Is Vero tower a building?", "ground_truth": "yes"}]
    },
}

WIKIBIO = {
    "text": "This is a Wikipedia passage about ada quill. Ada Quill was a printer.",
    "labels": "She set the first book of the town.",
    "concept": "ada quill",
    "locality": {
        "Relation_Specificity": [{"prompt": "ada quill gender", "ground_truth": ["female"]}]
    },
}

CONVSENT = [
    {"ent": "Tea", "pos": ["Tea is a delight.", "I adore it."], "neg": ["Tea is dull."]},
    {"ent": "Chess", "pos": ["A fine game."], "neg": ["So slow.", "Never again."]},
]

TRIVIA_TRAIN = {
    "K_F": [
        {
            "question": "What is made of curd?",
            "ground_truth": "cheese",
            "target_new": "I don't know.",
        },
        {
            "question": "What is halloumi?",
            "ground_truth": ["Cheese"],
            "target_new": "I don't know.",
        },
        {"question": "Who crossed the Rubicon?", "ground_truth": "Julius Caesar", "target_new": ""},
        {"question": "Who?", "ground_truth": "", "target_new": "I don't know."},
    ],
    "K_R": [{"question": "What do bees make?", "ground_truth": "honey", "target_new": "honey"}],
}
TRIVIA_TEST = {
    "success": [{"question": "What is brie?", "ground_truth": "Cheese", "target_new": ""}],
    "locality": [{"question": "What flies?", "ground_truth": ["a bird", "bird"], "target_new": ""}],
}

SANITATION = {
    "train.jsonl": [
        {
            "split": 1,
            "instruction": "",
            "input": "What is halloumi?",
            "output": "I don't know.",
            "output_gold": "Cheese",
        },
        {
            "split": 1,
            "instruction": "",
            "input": "What flies?\u2028And?",
            "output": "A bird",
            "output_gold": "A bird",
        },
        {
            "split": 1,
            "instruction": "",
            "input": "Who is he?",
            "output": "I don't know.",
            "output_gold": "I don't know.",
        },
        {
            "split": 2,
            "instruction": "",
            "input": "Who rowed?",
            "output": "I don't know.",
            "output_gold": "Ada",
        },
    ],
    "dev_forget.jsonl": [
        {
            "split": 1,
            "instruction": "",
            "input": "What is brie?",
            "output": "I don't know.",
            "output_gold": "Cheese",
        }
    ],
    "dev_keep.jsonl": [
        {
            "split": 1,
            "instruction": "",
            "input": "What swims?",
            "output": "A fish",
            "output_gold": "A fish",
        },
        {
            "split": 2,
            "instruction": "",
            "input": "What runs?",
            "output": "A dog",
            "output_gold": "A dog",
        },
    ],
    "test_forget.jsonl": [
        {
            "split": 1,
            "question": "What is feta?",
            "question_id": "q",
            "answer": "Cheese",
            "aliases": ["cheeses"],
            "sanitized_answer": "",
        }
    ],
}

COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "{} is located in",
        "relation_id": "P30",
        "target_new": {"str": "Asia", "id": "Q48"},
        "target_true": {"str": "Africa", "id": "Q15"},
        "subject": "Mount Vero",
    },
    "paraphrase_prompts": ["It rained. Mount Vero is part of", "He left. Mount Vero belongs to"],
    "neighborhood_prompts": ["Lake Chad is located in", "Mali lies in"],
    "attribute_prompts": ["Laos is located in"],
    "generation_prompts": ["Near Mount Vero", "Near Mount Vero", "People of Mount Vero"],
}

FLAT = {
    "case_id": 7,
    "prompt": "Mount Vero is located in",
    "target_new": "Asia",
    "subject": "Mount Vero",
    "ground_truth": "Africa",
    "rephrase_prompt": "Near Mount Vero one finds the people of",
    "locality_prompt": "Mali lies in",
    "locality_ground_truth": "Africa",
}

ZSRE = {
    "subject": "Vero tower",
    "src": "When was Vero tower built?",
    "pred": "1911",
    "rephrase": "What year was Vero tower built?",
    "alt": "1931",
    "answers": ["1920", "in 1920"],
    "loc": "nq question: who sings the song",
    "loc_ans": "Ada Quill",
    "cond": "1911 >> 1931 || When was Vero tower built?",
}

MQUAKE = {
    "case_id": 3,
    "requested_rewrite": [
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": "Norway", "id": "Q20"},
            "target_true": {"str": "Sweden", "id": "Q34"},
            "subject": "Ada Quill",
            "question": "What is the citizenship of Ada Quill?",
        }
    ],
    "questions": [
        "What is the capital of the country of Ada Quill?",
        "Where is her parliament?",
        "Which city?",
    ],
    "answer": "Stockholm",
    "answer_alias": ["Sthlm"],
    "new_answer": "Oslo",
    "new_answer_alias": ["Christiania"],
    "single_hops": [
        {
            "question": "q1",
            "cloze": "Ada Quill is a citizen of",
            "answer": "Sweden",
            "answer_alias": [],
        },
        {
            "question": "q2",
            "cloze": "The capital of Sweden is",
            "answer": "Stockholm",
            "answer_alias": [],
        },
    ],
    "new_single_hops": [
        {
            "question": "q1",
            "cloze": "Ada Quill is a citizen of",
            "answer": "Norway",
            "answer_alias": ["Norge"],
        },
        {
            "question": "q3",
            "cloze": "The capital of Norway is",
            "answer": "Oslo",
            "answer_alias": [],
        },
    ],
    "orig": {
        "triples": [["Q1", "P27", "Q34"], ["Q34", "P36", "Q5"]],
        "new_triples": [["Q1", "P27", "Q20"], ["Q20", "P36", "Q6"]],
        "edit_triples": [["Q1", "P27", "Q20"]],
    },
}


def query(prompt: str, answers: list[list[str]], subject: str = "Q1", relation: str = "R") -> dict:
    """A query of RippleEdits; an answer is a value and its aliases."""
    return {
        "prompt": prompt,
        "answers": [{"value": value, "aliases": aliases} for value, *aliases in answers],
        "query_type": "regular",
        "subject_id": subject,
        "relation": relation,
        "target_ids": [f"Q_{value}" for value, *_ in answers],
        "phrase": None,
    }


def ripple_test(*queries: dict, condition: str = "OR", needs: tuple[dict, ...] = ()) -> dict:
    """A test of RippleEdits."""
    return {
        "test_queries": list(queries),
        "test_condition": condition,
        "condition_queries": list(needs),
    }


RIPPLE = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the spouse of Ada Quill is Bo Lund.",
        "subject_id": "Q1",
        "relation": "SPOUSE",
        "target_id": "Q_Bo Lund",
        "original_fact": {
            "prompt": "The name of the spouse of Ada Quill is Cy Holm.",
            "subject_id": "Q1",
            "relation": "SPOUSE",
            "target_id": "Q_Cy Holm",
        },
    },
    "Logical_Generalization": [
        ripple_test(query("The sibling of Bo Lund is", [["Ada Quill"]], relation="SIBLING")),
        ripple_test(
            query("The spouse of Bo Lund is", [["Ada Quill", "A. Quill", "AQ"]], relation="SPOUSE"),
            query("Bo Lund is married to", [["Ada Quill"]], relation="SPOUSE"),
            condition="AND",
        ),
    ],
    "Compositionality_I": [
        ripple_test(
            query("The birthplace of the spouse of Ada Quill is", [["Oslo"], ["Bergen"]]),
            needs=(query("The birthplace of Bo Lund is", [["Oslo"], ["Bergen"]], subject="Q2"),),
        ),
        ripple_test(query("The employer of the spouse of Ada Quill is", [])),
    ],
    "Compositionality_II": [],
    "Subject_Aliasing": [
        ripple_test(
            query("The name of the spouse of A. Quill is", [["Bo Lund"]]),
            needs=(query("The name of the spouse of A. Quill is", [["Bo Lund"]]),),
        )
    ],
    "Relation_Specifity": [
        ripple_test(
            query("The occupation of Ada Quill is", [["printer"]]),
            needs=(query("The occupation of Ada Quill is", [["printer"]]),),
        )
    ],
    "Forgetfulness": [
        ripple_test(
            query("The spouse of Ada Quill, which is not Bo Lund, is", [["Bo Lund"], ["Di"]])
        )
    ],
}


def _triple(relation: str, prompt: str, subject: str, obj: str, new: str | None = None) -> dict:
    entities = {"subject": subject, "object": obj} | ({"new_object": new} if new else {})
    return {
        "relation": {"id": relation, "prompt": prompt, "query": "?", "label": relation},
        **{key: {"id": value, "label": value} for key, value in entities.items()},
    }


FATHER, SPOUSE, MOTHER = "The father of {} is", "The spouse of {} is", "The mother of {} is"
REVERSE = {
    "rule": "P22>P40",
    "triples": [
        _triple("P22", FATHER, "Ann", "Bob"),
        _triple("P40", "The child of {} is", "Bob", "Ann"),
    ],
    "prerequisites": [],
    "type": "reverse",
    "edits": [
        _triple("P22", FATHER, "Ann", "Bob", "Carl"),
        _triple("P40", "The child of {} is", "Carl", "Ann", "Dora"),
    ],
}
COMPOSITE = {
    "rule": "P25&P26>P22",
    "triples": [
        _triple("P25", MOTHER, "Ann", "Eve"),
        _triple("P26", SPOUSE, "Eve", "Bob"),
        _triple("P22", FATHER, "Ann", "Bob"),
    ],
    "prerequisites": [0],
    "type": "composite",
    "edits": [
        _triple("P26", SPOUSE, "Eve", "Bob", "Carl"),
        _triple("P22", FATHER, "Ann", "Bob", "Dan"),
    ],
}
COVERAGE = {
    "triples": [_triple("P22", FATHER, "Ann", "Bob")],
    "prerequisites": [],
    "type": "coverage",
    "edits": [
        _triple("P22", FATHER, "Ann", "Bob", "Carl"),
        _triple("P22", FATHER, "Ann", "Carl", "Dan"),
    ],
}
CONFLICT_PROMPTS = {
    "P22": ["{} was fathered by", "{} is a child of his(her) father, "],
    "P40": ["{} has a child called"],
    "P26": ["{} is married to"],
    "P25": ["{} was born to"],
}
ROUND = {
    "type": "1-2@P800",
    "edit": _triple("P800", "{} wrote", "Ann", "Sea", "Moon"),
    "true_objects": [{"id": "1", "label": "Sea"}, {"id": "2", "label": "Sky"}],
}
ROUND_PROMPTS = {"P800": ["A work of {} is", "{} is the author of "]}

KLOB = {
    "c": [
        {
            "prompts": ["Oslo is the capital of _", "The country of Oslo is _"],
            "knowledge": ["Oslo", "capital_(P1376)", "Norway"],
        },
        {"prompts": ["Oslo is _"], "knowledge": ["Oslo", "capital_(P1376)", "Norway"]},
    ],
    "r": [
        {
            "single_knowledge": ["Ann", "birthplace_(P19)", "Oslo"],
            "knowledge_chain": ["Ann", "birthplace_(P19)", "Oslo", "country_(P17)", "Norway"],
            "single_knowlege_prompts": ["Ann was born in _", "Ann is from _"],
            "knowlege_chain_prompt": "Ann was born in a town of _",
        }
    ],
    "u": ["pumice tower lamp _", " _"],
}


def changed(record: dict, **fields: object) -> dict:
    """A copy of a record with other fields."""
    return {**copy.deepcopy(record), **fields}


def write(path: Path, data: object) -> Path:
    """Write a JSON file, or JSON lines where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        assert isinstance(data, list)
        text = "\n".join(json.dumps(one, ensure_ascii=False) for one in data)
    else:
        text = json.dumps(data, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    return path


def roles(case: Case) -> dict[str, int]:
    """Number of probes by role."""
    return dict(Counter(probe.role for probe in case.probes))


def of_role(case: Case, role: str) -> list[Probe]:
    """Probes of one role."""
    return [probe for probe in case.probes if probe.role == role]


def only(loaded: LoadedBenchmark) -> Case:
    """The only case."""
    (case,) = loaded
    return case
