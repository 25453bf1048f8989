"""Puts prompts into a tokenizer's chat template without losing track of where the user's text is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from layercache.errors import ModelError
from layercache.extract.checkpoint import first_line
from layercache.sources import row_place
from layercache.template import Prompt

_SENTINEL = "layercache7sentinel"
"""A word that no template treats specially and no template contains."""


@dataclass(frozen=True)
class Rendered:
    """The text a model is given.

    Attributes:
        spans: name → character range [start, end) in `text`.
        whole: the character range of the user's text.
    """

    text: str
    spans: dict[str, tuple[int, int]]
    whole: tuple[int, int]

    @classmethod
    def plain(cls, prompt: Prompt) -> "Rendered":
        """Take a prompt as it is."""
        return cls(prompt.text, prompt.spans, (0, len(prompt.text)))


def render(
    prompts: Sequence[Prompt], tokenizer: Any, first_row: int = 0, place: Callable[[int], str] = row_place
) -> list[Rendered]:
    """Render prompts as the user's turn, followed by the opening of the answer.

    Every text is spliced into the template's frame and compared with what the template makes of it
    directly; templates that trim the text are followed, others that change it are refused.

    Raises:
        ModelError: the template fails, or changes a text; names the row as `place` does.
    """
    frame = _apply(tokenizer, _SENTINEL)
    before, found, after = frame.partition(_SENTINEL)
    if not found or _SENTINEL in after:
        raise ModelError("the tokenizer's chat template does not carry the user's text through: leave out --chat")
    rendered = []
    for index, prompt in enumerate(prompts):
        direct = _apply(tokenizer, prompt.text)
        stripped = prompt.text.strip()
        if direct == before + prompt.text + after:
            rendered.append(_shift(prompt, direct, len(before), 0, len(prompt.text)))
        elif direct == before + stripped + after:
            cut = len(prompt.text) - len(prompt.text.lstrip())
            rendered.append(_shift(prompt, direct, len(before), cut, len(stripped)))
        else:
            raise ModelError(
                f"{place(first_row + index)}: the tokenizer's chat template changes the user's text: leave out --chat"
            )
    return rendered


def _shift(prompt: Prompt, text: str, before: int, cut: int, length: int) -> Rendered:
    """Move a prompt's ranges to where its text, less `cut` leading characters, stands in `text`."""

    def move(place: int) -> int:
        return before + min(max(place - cut, 0), length)

    spans = {name: (move(start), move(end)) for name, (start, end) in prompt.spans.items()}
    return Rendered(text, spans, (before, before + length))


def _apply(tokenizer: Any, text: str) -> str:
    try:
        out = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:
        raise ModelError(f"the tokenizer's chat template fails: {first_line(error)}") from error
    return str(out)
