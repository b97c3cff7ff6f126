"""An alignment in words, for people: `nti align`."""

from nti.editing.alignment import Alignment
from nti.networks.tokenizer import TokenizedPrompt

__all__ = ["describe", "token_table"]


def token_table(source: TokenizedPrompt, target: TokenizedPrompt) -> str:
    """Return both prompts' tokens side by side: position, id and piece, to the later end."""
    rows: list[tuple[str, ...]] = [("", "source", "target")]
    for position in range(max(source.end, target.end) + 1):
        cells = (f"{p.ids[position]:>5} {_piece(p, position)}" for p in (source, target))
        rows.append((str(position), *cells))
    width = max(len(row[1]) for row in rows)
    return "\n".join(f"{row[0]:>2}  {row[1]:<{width}}  {row[2]}".rstrip() for row in rows)


def describe(alignment: Alignment, source: TokenizedPrompt, target: TokenizedPrompt) -> str:
    """Return each target token with the source tokens whose map it receives."""
    lines = [f"{alignment.mode}: {source.text!r} -> {target.text!r}"]
    for column in range(target.end + 1):
        weights = alignment.mapping[:, column]
        parts = []
        for row in weights.nonzero().flatten().tolist():
            share = "" if weights[row] == 1 else f" x {weights[row].item():.3g}"
            parts.append(_label(source, row) + share)
        if alignment.own[column]:
            parts.append("own")
        lines.append(f"{_label(target, column):<20} <- {' + '.join(parts) or 'nothing'}")
    own = int(alignment.own[target.end + 1 :].sum())
    padding = len(target.ids) - target.end - 1
    lines.append(
        f"{padding} more pads: {padding - own} from their position in the source, {own} own"
    )
    unused = [r for r in range(source.end) if not alignment.mapping[r].any()]
    if unused:
        lines.append("unused: " + ", ".join(_label(source, row) for row in unused))
    return "\n".join(lines)


def _label(prompt: TokenizedPrompt, position: int) -> str:
    return f"{position} {_piece(prompt, position)}"


def _piece(prompt: TokenizedPrompt, position: int) -> str:
    """Return what stands at a position."""
    if 0 < position < prompt.end:
        return prompt.pieces[position - 1]
    return "<start>" if position == 0 else "<end>" if position == prompt.end else "<pad>"
