"""What models, files and users say is text in a Markdown report, whatever signs it holds."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from corrigenda.reports import plain
from corrigenda.reports.content import build_report
from tests.reports.conftest import *  # noqa: F403

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[here](https://example.org)",
    "![x](https://example.org/a.png)",
    "a | b || c",
    "two\nlines\n\n# heading",
    "`code` and ``more``",
    "```\nout of the fence\n```",
    "*bold* _thin_ ~~gone~~ __x__",
    "&lt;b&gt; &#60;",
    "\\| \\` back\\",
    "# heading",
    "- list",
    "1. list",
    "$x^2$",
    "\x1b[31mred\u202e",
    "plain x_y-z (1) name",
)


def render(text: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


def readable(text: str) -> str:
    """Text on one line, as a reader sees it."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())


def contents(page: str, tag: str) -> list[str]:
    """What a tag holds, without tags inside."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return [readable(html.unescape(re.sub(r"<[^>]+>", "", one))) for one in found]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_it_is(text, recorded):
    plain_report = build_report([recorded("rome", lambda *_: True, lambda *_: True)])
    (group,) = plain_report.groups
    hostile = replace(
        plain_report,
        title=text,
        groups=(
            replace(
                group,
                title=text,
                labels=(text,),
                problems=((text, text, 3),),
                parts=tuple(replace(part, title=text, names=(text,)) for part in group.parts[:1]),
            ),
        ),
    )
    page = render(plain.render_markdown(hostile))
    assert contents(page, "h1") == [readable(text)]
    assert contents(page, "h2")[:1] == [readable(text)]
    assert contents(page, "li") == [f"{readable(text)}: 3 x {readable(text)}"]
    assert contents(page, "th")[4] == readable(text)
    ours = "h1|h2|h3|p|table|thead|tbody|tr|th|td|ul|li|code|strong|pre"
    assert set(re.findall(r"<([a-z]+\d?)", page)) <= set(ours.split("|"))
    usual = render(plain.render_markdown(plain_report))
    assert page.count("<table>") == usual.count("<table>") - len(group.parts[1:])
    assert page.count("<pre>") == 1


def test_names_of_metrics_stay_readable(recorded):
    text = plain.render_markdown(build_report([recorded("rome", lambda *_: True, lambda *_: True)]))
    assert "| `reliability@greedy` |" in text
    assert "rome (r-rome)" in text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_row_of_latex_stays_one(text, recorded):
    report = build_report([recorded("rome", lambda *_: True, lambda *_: True)])
    (group,) = report.groups
    usual = plain.render_latex(report)
    tex = plain.render_latex(replace(report, groups=(replace(group, title=text, labels=(text,)),)))
    assert len(tex.splitlines()) == len(usual.splitlines())
    assert "\n\n\n" not in tex
