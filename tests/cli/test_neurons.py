"""`neurons` on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_on_disk import PROMPT, SUBJECT, Run


def test_lists_neurons_by_block(run: Run, model: Path) -> None:
    ran = run("neurons", model, PROMPT, "-s", SUBJECT, "-t", "Seattle", "--steps", 4, "--top", 1)
    assert ran.code == 0
    for text in ("block", "unit", "attribution", f'last token of "{SUBJECT}"', "with these at 0"):
        assert text in ran.out


def test_json_is_one_object(run: Run, model: Path) -> None:
    paraphrases = ("--paraphrase", "The town of the Space Needle is")
    data = run("neurons", model, PROMPT, *paraphrases, "--steps", 4, "--json").json
    assert data["prompts"] == [PROMPT, paraphrases[1]]
    assert {"layer", "unit", "attribution"} == set(data["neurons"][0])
    assert len(data["by_layer"]) == 4
    alone = run("neurons", model, PROMPT, "--single", "--steps", 4, "--json").json
    assert alone["prompts"] == [PROMPT]
    assert len(alone["neurons"]) == alone["coarse"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--objective", "probabilities"), 'Did you mean "probability"?'),
        (("--single", "--paraphrase", "It is in"), "no paraphrases"),
        (("--subject", "Space needle"), 'Did you mean "Space Needle"?'),
        (("--share", "0"), "CG502"),
    ],
)
def test_misuse_ends_with_2(
    run: Run, model: Path, arguments: tuple[str, ...], message: str
) -> None:
    ran = run("neurons", model, PROMPT, *arguments)
    assert ran.code == 2
    assert message in " ".join(ran.err.split())
