"""CLIP's byte-level BPE: a prompt -> 77 token ids, and where in the text each token comes from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import regex  # type: ignore[import-untyped]  # it ships no types
import torch
from torch import Tensor

from nti.arguments import a_text, texts

__all__ = ["BOS", "EOT", "TokenizedPrompt", "Tokenizer", "clean"]

BOS = 49406
EOT = 49407

# CLIP's split ahead of BPE. open_clip's also reads its control tokens out of a prompt; here
# "<end_of_text>" is text, as it is for transformers.
_SPLIT = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
_WORD_END = "</w>"

# Weights as other programs write them: (cat:1.3), ((cat)), [cat], cat++ or (cat)1.3. Not (sitting),
# nor (at 10:30), nor C++.
_WEIGHTS = regex.compile(
    r"\([^():]*[^\d\s():]\s*:\s*(?:\d(?:\.\d*)?|\.\d+)\s*\)"
    r"|\(\([^()]+\)\)|\[[^\[\]]*\p{L}[^\[\]]*\]"
    r"|[\p{L}\p{N}]{2,}\+\++|\([^()]*\p{L}[^()]*\)(?:\++|\d+\.\d+)"
)


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt's ids and the text behind each; position 0 is BOS, real token i sits at i + 1."""

    text: str
    """The cleaned, lower-cased text that the ids were made from, without what was cut."""
    ids: tuple[int, ...]
    """BOS, the real tokens, then EOT up to the context length."""
    spans: tuple[tuple[int, int], ...]
    """[start, end) in `text` of each real token; the pieces of one character share its span."""
    pieces: tuple[str, ...]
    """What each real token covers, to be read by people."""
    cut: str
    """The text that did not fit; empty if all did."""

    @property
    def cut_message(self) -> str:
        """What to warn of where the prompt was cut; empty where it was not."""
        room = len(self.spans)
        cut = f"the prompt is longer than {room} tokens; this was cut: {self.cut!r}"
        return cut if self.cut else ""

    @property
    def weights_message(self) -> str:
        """What to warn of where the prompt has weights in other programs' syntax; else empty."""
        found = ", ".join(repr(match.group()) for match in _WEIGHTS.finditer(self.text))
        message = (
            f"{found} in a prompt is plain text here, signs included: write the words alone, and"
            " weigh those of an edit by reweight, such as {'cat': 1.3} (--reweight cat=1.3)"
        )
        return message if found else ""

    @property
    def end(self) -> int:
        """The position of the first EOT."""
        return len(self.spans) + 1


def clean(text: str) -> str:
    """Repair, unescape, collapse white space and lower-case, as CLIP's training did."""
    from open_clip.tokenizer import get_clean_fn

    return str(get_clean_fn("lower")(text))


class Tokenizer:
    """Prompts -> CLIP token ids, padded with EOT: Stable Diffusion attends to all 77 positions."""

    def __init__(self, context_length: int = 77) -> None:
        """Read the merges that open_clip ships; ValueError if there is no room for a token."""
        if context_length < 3:
            raise ValueError(f"context_length: got {context_length}, expected at least 3")
        # Seconds to import, and not needed by those who import this module only for its types.
        from open_clip.tokenizer import SimpleTokenizer

        self.context_length = context_length
        self._bpe = SimpleTokenizer()

    def encode(self, text: str) -> TokenizedPrompt:
        """Tokenize one prompt; `cut` of the result is what lies beyond the context length."""
        text = clean(a_text("prompt", text))
        tokens = list(self._tokens(text))
        room = self.context_length - 2
        cut = ""
        if len(tokens) > room:
            cut = text[tokens[room][1][0] :]
            tokens = tokens[:room]
            text = text[: tokens[-1][1][1]]
        ids = [BOS, *(token for token, _ in tokens)]
        ids += [EOT] * (self.context_length - len(ids))
        spans = tuple(span for _, span in tokens)
        pieces = tuple(text[start:end] for start, end in spans)
        return TokenizedPrompt(text, tuple(ids), spans, pieces, cut)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Return the ids of several prompts, (B, context_length) int64."""
        if isinstance(prompts, str):
            raise ValueError(f"prompts: got one string {prompts!r}, expected a list of strings")
        rows = [self.encode(prompt).ids for prompt in texts("prompts", prompts)]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, self.context_length)

    def _tokens(self, text: str) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield the id and the character span of every BPE piece of a cleaned text."""
        for match in _SPLIT.finditer(text):
            characters = match.group()
            # BPE works on UTF-8 bytes, each written as one printable character.
            owner = [i for i, c in enumerate(characters, match.start()) for _ in c.encode()]
            symbols = "".join(self._bpe.byte_encoder[byte] for byte in characters.encode())
            first = 0
            for piece in self._bpe.bpe(symbols).split(" "):
                last = first + len(piece.removesuffix(_WORD_END)) - 1
                yield self._bpe.encoder[piece], (owner[first], owner[last] + 1)
                first = last + 1
