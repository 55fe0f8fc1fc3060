"""Records of newer benchmarks, three of each, written by hand in their public schema."""

from __future__ import annotations

QAEDIT = [
    {
        "id": 7,
        "source": "NQ",
        "prompt": "who built the vero tower?",
        "target": "Ada Quill",
        "subject": "vero tower",
        "rephrase": "Which builder raised the Vero tower?",
        "locality": [
            {"loc": "who set the first book of Oslo", "loc_ans": "Ann"},
            {"loc": "when did the harbour open", "loc_ans": "1931"},
            {"loc": "what do bees make", "loc_ans": "honey"},
            {"loc": " ", "loc_ans": "x"},
            {"loc": "which sea is next to Oslo", "loc_ans": ""},
        ],
    },
    {
        "id": 7,
        "source": "TQA",
        "prompt": "Tower by tower, which tower was built by St. Bert?",
        "target": "St. Bert tower",
        "subject": "tower",
        "rephrase": "",
        "locality": [{"loc": "what flies", "loc_ans": "a bird"}],
    },
    {
        "id": 9,
        "source": "SQA",
        "prompt": "What year did it open?",
        "target": "1931",
        "subject": "Vero",
        "rephrase": "When did Vero open?",
        "locality": [],
    },
]

UNKE = [
    {
        "id": 0,
        "question": "What is Ada Quill's occupation?",
        "para_question": "What does Ada Quill do for a living?",
        "answer": "Ada Quill has been a printer for over a decade. She set two books.",
        "sub_question": ["How long has she printed?", "How many books did she set?"],
        "sub_answer": ["Over a decade.", "Two."],
    },
    {
        "id": 1,
        "question": "What happened?",
        "para_question": "",
        "answer": "A long text.",
        "sub_question": ["Who?"],
        "sub_answer": [" "],
    },
    {
        "id": 2,
        "question": "Who is Bert Vale?",
        "para_question": "Tell me about Bert Vale.",
        "answer": "A sailor.",
        "sub_question": ["What does he sail?"],
        "sub_answer": [],
    },
]

HALLU = [
    {
        "topic_file": "art_sculpture",
        "topic": "art_sculpture",
        "subject": "Vero Gate",
        "relation": "country",
        "object": "Norway",
        "question": "In which country is Vero Gate?",
        "output_small_chat": "Chile",
        "eval_small_chat": "0.0",
        "multiple_choices": "['Norway', 'Chile', \"L'Aquila\", 'Peru']",
        "multiple_choice_with_letters": "A. Chile  B. Norway  C. L'Aquila  D. Peru",
        "multiple_choice_labels": "B",
        "paraphrased_question": "Vero Gate stands in which country?",
        "yes_question": "Is Vero Gate in Norway?",
        "no_question": "Is Vero Gate in Chile?",
        "locality_question": "Who made Vero Gate?",
        "reversed_relation_question": "Which gate is in Norway?",
        **{f"question_{hop}hop": f"What is {hop} steps away?" for hop in range(2, 7)},
        **{f"answer_{hop}hop": f"place {hop}" for hop in range(2, 7)},
    },
    {
        "topic": "places_city",
        "subject": "Vero",
        "object": "Peru",
        "question": "Where is Vero?",
        "multiple_choices": "__import__('os').getcwd()",
        "multiple_choice_with_letters": "A. Peru",
        "multiple_choice_labels": "A",
    },
    {"subject": "Ada", "object": "printer", "question": "What was her work?"},
]

_TAXI = {
    "entity": "dog",
    "orig_entity": "cat",
    "token_type": "typical",
    "edit_type": "category membership",
    "edit": "Moggy -> dog",
    "subj": "Moggy",
    "answer_rev": "<subj>",
    "superordinate_category": "animal",
    "index": 0,
}
TAXI = [
    {
        **_TAXI,
        "property": "category_membership",
        "query_fwd": "a <subj> is a kind of <answer>",
        "query_rev": "a <subj> is a kind of <answer>",
        "answer_changed": True,
        "fwd_choices": ["dog", "cat", "cow"],
        "rev_choices": ["Moggy", "Jersey"],
        "answer_fwd": "dog",
        "orig_answer_fwd": "cat",
    },
    {
        **_TAXI,
        "property": "sound",
        "query_fwd": "the sound a <subj> makes is <answer>",
        "query_rev": "one animal that makes <answer> is a <subj>",
        "answer_changed": True,
        "fwd_choices": ["bark", "meow"],
        "rev_choices": ["Moggy", "Jersey"],
        "answer_fwd": "bark",
        "orig_answer_fwd": "meow",
    },
    {
        **_TAXI,
        "property": "legs",
        "query_fwd": "a <subj> has <answer>",
        "query_rev": "<subj> have <answer>",
        "answer_changed": False,
        "fwd_choices": ["four legs", "two legs"],
        "rev_choices": ["Moggy", "Jersey"],
        "answer_fwd": "four legs",
        "orig_answer_fwd": "four legs",
    },
]


def _peak(case: int, positives: list[str], new: str) -> dict:
    return {
        "case_id": case,
        "requested_rewrite": {
            "prompt": "{} shares border with",
            "relation_id": "P47",
            "target_new": {"str": new},
            "target_true": {"str": "Chile"},
            "subject": "Vero",
        },
        "postive_list": positives,
        "negtive_list": ["Oslo", "Bergen", "Chile"],
        "negtive_random_list": ["tea", "chess", "Oslo"],
        "para_add_prompts": ["Vero is next to", " "],
        "neighborhood_prompts": [["Ann is a citizen of", "Chile"], ["Bert is from", new]],
    }


PEAK = [
    _peak(0, ["Chile", "Peru", "Peru", "Norway"], "Norway"),
    _peak(1, ["Chile"], "Norway"),
    _peak(2, ["Norway"], "Norway"),
]

WISE_HALLUCINATION = {
    "prompt": "This is a Wikipedia passage about ada quill. Ada Quill was a printer.",
    "target_new": "She set the first book of the town.",
    "subject": "ada quill",
    "locality_prompt": "Maps of the coast. Looking for an old map, historica",
    "locality_ground_truth": "l print or plan?",
}
WISE_TEMPORAL = {
    "prompt": "Vero Works,",
    "target_new": "known for its presses, is a firm of printers.",
    "subject": "Vero Works,",
    "ood_rephrase": "Vero Works makes presses and prints books.",
    "locality_prompt": "What can we learn from",
    "locality_ground_truth": " them?",
}
WISE = [
    WISE_HALLUCINATION,
    {**WISE_HALLUCINATION, "locality_ground_truth": ""},
    {**WISE_HALLUCINATION, "subject": "nobody"},
]

WIKIBIGEDIT = [
    {
        "tag": "new",
        "subject": "Ada Quill",
        "update": "Who employs Ada Quill?",
        "ans": "Vero Works",
        "rephrase": "For whom does Ada Quill work?",
        "personas": "Say, mate, whom does Ada Quill work for?",
        "loc": "Who employs Bert Vale?",
        "loc_ans": "the harbour",
        "mhop": "Where is the employer of Ada Quill?",
        "mhop_ans": "Oslo",
    },
    {
        "tag": "update",
        "subject": "Ada Quill",
        "update": "Who employs Ada Quill?",
        "ans": "Oslo Press",
        "rephrase": "For whom does Ada Quill work?",
        "personas": None,
        "loc": float("nan"),
        "loc_ans": float("nan"),
    },
    {"subject": "Bert", "update": "What is it?", "ans": "no"},
]


def _remastered(case: int, edit: list[str], target: str, path: list[list[str]], **more: object):
    subject = edit[0]
    return {
        "case_id": case,
        "requested_rewrite": [
            {
                "prompt": "The head of {} is",
                "relation_id": edit[1],
                "target_new_str": target,
                "target_new_id": edit[2],
                "target_true_str": "Sun",
                "subject": f"Land {subject}",
            }
        ],
        "questions": ["Who is wed to the head?", "Whose spouse leads?", "Who?"],
        "answer": "Sun's spouse",
        "answer_alias": [],
        "new_answer": "Ann's spouse",
        "new_answer_alias": ["Ann S."],
        "orig_triples": [[subject, "P6", "Sun"], ["Sun", "P26", "S1"]],
        "new_triples": path,
        "edit_triples": [edit],
        "single_hops": [],
        **more,
    }


REMASTERED = [
    _remastered(
        1,
        ["UK", "P6", "Ann"],
        "Ann",
        [["UK", "P6", "Ann"], ["Ann", "P26", "A1"]],
        split={"1": "edited", "2": "edited"},
    ),
    _remastered(
        2,
        ["UK", "P6", "Bob"],
        "Bob",
        [["UK", "P6", "Bob"], ["Bob", "P26", "B1"]],
        split={"1": "unedited", "2": "unedited"},
    ),
    _remastered(
        3,
        ["FR", "P6", "Cat"],
        "Cat",
        [["FR", "P6", "Cat"], ["Cat", "P26", "C1"]],
        split={"1": "unedited", "2": "edited"},
    ),
]
REMASTERED_NESTED = {
    "case_id": 4,
    "requested_rewrite": [
        {
            "prompt": "The head of {} is",
            "relation_id": "P6",
            "target_new": {"str": "Ann", "id": "Q1"},
            "target_true": {"str": "Sun", "id": "Q2"},
            "subject": "Vero",
        }
    ],
    "questions": ["Who is wed to the head of Vero?"],
    "answer": "Sun's spouse",
    "new_answer": "Ann's spouse",
    "orig": {
        "triples": [["V", "P6", "Q2"], ["Q2", "P26", "Q3"]],
        "new_triples": [["V", "P6", "Q1"], ["Q1", "P26", "Q4"]],
    },
    "6334_split": {"100": "train_edited"},
}

AKEW = [
    {
        "case_id": 1,
        "requested_rewrite": {
            "prompt": "{} works for",
            "prompt_full": "Ada Quill works for",
            "subject": "Ada Quill",
            "question": "Whom does Ada Quill work for?",
            "target_new": {"str": "Vero Works", "id": "Q1"},
            "target_true": {"str": "Oslo Press", "id": "Q2"},
            "answer_new": "Vero Works Ltd",
            "fact_new_uns": "Vero Works, a firm of printers, took Ada Quill on in 1931.",
            "unsfact_triplets_GPT": [
                {"subject": "Ada Quill", "prompt": "{} was taken on in", "target": "1931"},
                {"subject": "Vero Works", "prompt": "{} is a firm of", "target": "printers"},
                {"subject": "", "prompt": "{} is", "target": "empty"},
            ],
        },
        "paraphrase_prompts": ["Ada Quill is employed by"],
    },
    {
        "case_id": 2,
        "requested_rewrite": [
            {
                "prompt": "{} is a citizen of",
                "subject": "Bert",
                "question": "What is the citizenship of Bert?",
                "target_new": {"str": "Norway", "id": "Q3"},
                "target_true": {"str": "Chile", "id": "Q4"},
                "fact_new": "Bert is a citizen of Norway.",
            }
        ],
        "questions": ["What is the capital of Bert's country?"],
        "new_answer": "Oslo",
        "new_answer_alias": ["Christiania"],
    },
    {"case_id": 3, "requested_rewrite": []},
]

OWN = [
    {
        "id": "a",
        "prompt": "The capital of France is",
        "subject": "France",
        "target": "Rome",
        "before": "Paris",
        "aliases": ["Roma"],
        "paraphrases": ["What is France's capital?"],
        "locality": [
            "The capital of Germany is",
            {"prompt": "The currency of France is", "answer": "euro", "kind": "same_subject"},
        ],
        "portability": [{"prompt": "Its river is the", "answer": ["Tiber", "Tevere"]}],
        "note": "mine",
    },
    {"prompt": "Nobody lives in", "target": "Oslo", "subject": "Ann"},
    {"prompt": "Ann lives in", "target_new": "Oslo", "neighborhood_prompts": ["Bert lives in"]},
]
OWN_TABLE = """prompt,subject,target,paraphrases,locality,portability
The capital of France is,France,Rome,What is France's capital?|Name it.,The capital of Germany is,\
Its river is the => Tiber | Its sea is the => Ligurian Sea
Ann lives in,Ann,Oslo,,Bert lives in => Peru,
"""
