"""Prompts in the backbone's own form: as a chat if it knows chats, else as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from adapters.errors import InvalidRequest
from adapters.tasks.base import Prompt, Strict
from adapters.tokenizer import Tokenizer

# Blank, so that a template which strips messages takes it away; and in no template.
_PAD = "\u2005"
_MARK = "\uf8ff"  # a character of private use
_END_OF_THOUGHT = "</think>"


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1, pattern=r"\S")


def instruction_prompt(tokenizer: Tokenizer, instruction: str, text: str) -> Prompt:
    """Return the prompt that tells the backbone what to do with a text; an empty instruction leaves the text alone."""
    lead = f"{instruction}\n\n" if instruction else ""
    if not tokenizer.has_chat:
        return _plain_prompt(tokenizer, lead, text)
    message = Message.model_construct(role="user", content=lead + text)
    prompt = conversation_prompt(tokenizer, [message])
    if not prompt.text.startswith(lead, prompt.start):
        lead = lead.lstrip()
    return Prompt(prompt.text, prompt.start + len(lead), prompt.stop, prompt.messages)


def conversation_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> Prompt:
    """Return the prompt for the assistant's turn after ``messages``, the last of which is what may be cut.

    Without a chat template, the messages stand below each other, a blank line between them.

    Raises:
        InvalidRequest: the backbone's template does not take these messages, or changes them.
    """
    if not tokenizer.has_chat:
        lead = "".join(f"{message.content}\n\n" for message in messages[:-1])
        return _plain_prompt(tokenizer, lead, messages[-1].content)
    text, spans = _fill_template(tokenizer, messages)
    return Prompt(text, *spans[-1], messages=tuple(spans))


def _plain_prompt(tokenizer: Tokenizer, lead: str, text: str) -> Prompt:
    # Something must tell where the text ends: a blank line, if the tokenizer sets no token there.
    end = "" if tokenizer.closes_texts else "\n\n"
    return Prompt(f"{lead}{text}{end}", len(lead), len(lead) + len(text))


def _fill_template(
    tokenizer: Tokenizer, messages: Sequence[Message]
) -> tuple[str, list[tuple[int, int]]]:
    """Return the rendered template and where the messages stand in it.

    Marks are rendered in the messages' place, and then replaced: searching for a message itself would find a
    short one, such as "user", or one that repeats the template's own tokens, at the wrong place.
    """
    marks = [f"{_MARK}mark-{i}." for i in range(len(messages))]
    rest = tokenizer.chat(
        [
            {"role": message.role, "content": f"{_PAD}{_thought(message)}{mark}{_PAD}"}
            for message, mark in zip(messages, marks, strict=True)
        ]
    )
    text, spans = "", []
    for message, mark in zip(messages, marks, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            raise _unusable(message)
        content, thought = message.content, _thought(message)
        if not before.endswith(thought):
            content = content.rpartition(_END_OF_THOUGHT)[2]
        before = before.removesuffix(thought)
        content = content if before.endswith(_PAD) else content.lstrip()
        content = content if rest.startswith(_PAD) else content.rstrip()
        text += before.removesuffix(_PAD)
        spans.append((len(text), len(text) + len(content)))
        text += content
        rest = rest.removeprefix(_PAD)
    if _MARK in rest:
        raise _unusable(messages[-1])
    return text + rest, spans


def _thought(message: Message) -> str:
    """Return what has a template show whether it keeps an answer's thoughts; those of Qwen3 leave them out."""
    has_thought = message.role == "assistant" and _END_OF_THOUGHT in message.content
    return f"<think>{_END_OF_THOUGHT}" if has_thought else ""


def _unusable(message: Message) -> InvalidRequest:
    return InvalidRequest(
        f"The backbone's chat template drops, moves or changes the message of '{message.role}'. Send the "
        "conversation without it.",
        param="messages",
    )
