"""Text of an answer as it grows: given out in pieces that stay, cut at the first stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"


class AddedText:
    """Turns the tokens of an answer into pieces of text.

    A token may end within a character, and a stop string may begin in one token and end in another:
    what may still change is held back until it is decided.

    Attributes:
        stopped: Whether a stop string was found; nothing is given out after it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        """Begin an empty answer.

        Args:
            decode: Returns the text of all tokens of the answer.
            stop: Strings that end it and are not part of it; none of them empty.
        """
        self._decode = decode
        self._stop = tuple(stop)
        self._given = 0
        self.stopped = False

    def piece(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """Return what can be given out of the answer so far, and was not before.

        Args:
            tokens: All tokens of the answer.
            last: Whether no more will come, so that nothing is held back.
        """
        if self.stopped:
            return ""
        text = self._decode(tokens)
        found = [place for end in self._stop if (place := text.find(end)) >= 0]
        if found:
            self.stopped = True
            end = min(found)
        else:
            end = len(text) if last else self._decided(text)
        given, self._given = self._given, max(self._given, end)
        return text[given : self._given]

    def _decided(self, text: str) -> int:
        """Return up to where a text can no longer change or turn out to be a stop string."""
        end = len(text.rstrip(_UNFINISHED))
        for stop in self._stop:
            for length in range(min(len(stop) - 1, end), 0, -1):
                if stop.startswith(text[end - length : end]):
                    end -= length
                    break
        return end
