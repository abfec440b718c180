"""Messages to try things on: what is shipped, what is read from files, and how it is split."""

from collections import Counter
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cli import corpus
from service.cli.corpus import Message
from service.cli.feed import ticket


def test_the_shipped_messages_are_sixty_and_sixty_others_of_the_same_intents() -> None:
    seed, other = corpus.shipped("seed"), corpus.shipped("demo")
    assert len(seed) == len(other) == 60
    assert {message.label for message in seed} == {message.label for message in other}
    assert len({message.text for message in seed + other}) == 120
    assert min(Counter(message.label for message in seed).values()) >= 7


@pytest.mark.parametrize(
    "content",
    [
        'text,category\r\n"Where, then?",order\r\nHi,\r\n',
        'label,body\norder,"Where, then?"\n,Hi\n',
        '{"text": "Where, then?", "label": "order"}\n\n{"body": "Hi"}\n',
    ],
)
def test_csv_and_json_lines_are_read_alike(content: str, tmp_path: Path) -> None:
    (tmp_path / "messages").write_text(content, encoding="utf-8-sig", newline="")
    assert corpus.read(tmp_path / "messages") == [Message("Where, then?", "order"), Message("Hi")]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "holds no messages"),
        ("text,category\n", "holds no messages"),
        ("question\nWhere?\n", "message 1 has no text"),
        ('{"text": "a"}\n{"text": " "}\n', "message 2 has no text"),
        ('{"text": "a"}\n{"text": \n', "line 2 is not a JSON object"),
        ('text\n"a" b\n', "is not CSV"),
        ("text\n" + "a\n" * (corpus.MESSAGES_MAX + 1), "more than 100,000 messages"),
    ],
)
def test_a_file_that_does_not_fit_is_a_sentence(content: str, sentence: str) -> None:
    with pytest.raises(click.UsageError, match=sentence):
        corpus.parse(content, "messages.csv")


def test_every_tenth_message_is_asked_and_so_is_each_without_a_label() -> None:
    messages = [Message(str(index), None if index == 5 else "a") for index in range(21)]
    plan = corpus.split(messages)
    assert [index for index, _ in plan.questions] == [0, 5, 10, 20]
    assert sorted(plan.examples + plan.questions) == list(enumerate(messages))


@given(st.text(min_size=1).filter(str.strip), st.none() | st.text())
def test_a_ticket_has_a_short_subject_and_the_whole_text(text: str, subject: str | None) -> None:
    data = ticket(0, Message(text, None, subject))
    assert data["body"] == text
    assert 1 <= len(data["subject"]) <= corpus.SUBJECT_MAX
