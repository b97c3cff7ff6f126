"""The captions that a small world has: one phrase or more, a word of each slot, then an end."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

__all__ = ["Choice", "Grammar"]

Phrase = tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """What a caption says."""

    phrases: tuple[Phrase, ...]
    end: str

    def caption(self) -> str:
        """Return e.g. `a striped red circle and a blue star on snow`."""
        told = []
        for phrase in self.phrases:
            words = " ".join(word for word in phrase if word)
            told.append(f"{'an' if words[0] in 'aeiou' else 'a'} {words}")
        return f"{' and '.join(told)} {self.end}"


@dataclass(frozen=True)
class Grammar:
    """All captions of a world."""

    slots: tuple[tuple[str, ...], ...]
    """The words of each place in a phrase; an empty one is not said."""
    distinct: tuple[int, ...]
    """The slots in which two phrases of a caption differ."""
    most: int
    """Phrases of a caption."""
    ends: tuple[str, ...]

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Grammar":
        """Read what a model's configuration says; ValueError for what is none."""
        try:
            slots = tuple(tuple(map(str, slot)) for slot in said["phrase"])
            ends = tuple(map(str, said["ends"]))
            found = cls(slots, tuple(map(int, said["distinct"])), int(said["most"]), ends)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"grammar: got none that can be read ({error!r})") from error
        if not ends or not slots or not all(any(slot) for slot in slots[-1:]):
            raise ValueError("grammar: expected words in each slot, and an end")
        return found

    def phrases(self) -> Iterator[Phrase]:
        """Yield every phrase."""
        yield from product(*self.slots)

    def all(self) -> Iterator[Choice]:
        """Yield every caption."""
        phrases = list(self.phrases())
        for count in range(1, self.most + 1):
            for chosen in permutations(phrases, count):
                if self.allows(chosen):
                    yield from (Choice(chosen, end) for end in self.ends)

    def allows(self, phrases: tuple[Phrase, ...]) -> bool:
        """Whether phrases may stand in one caption."""
        return all(len({p[slot] for p in phrases}) == len(phrases) for slot in self.distinct)

    def neighbours(self, choice: Choice) -> Iterator[Choice]:
        """Yield what differs in one word, or in the end."""
        yield from (Choice(choice.phrases, end) for end in self.ends)
        for place, phrase in enumerate(choice.phrases):
            for slot, words in enumerate(self.slots):
                for word in words:
                    changed = (*phrase[:slot], word, *phrase[slot + 1 :])
                    phrases = (*choice.phrases[:place], changed, *choice.phrases[place + 1 :])
                    if self.allows(phrases):
                        yield Choice(phrases, choice.end)
