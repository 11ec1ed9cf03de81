"""Finding the answer of a completion: the content of its last closed box."""

import re

BOX = "\\boxed{"
BOX_OR_BRACE = re.compile(r"\\boxed\s*\{|[{}]")
BOX_ESCAPE_OR_BRACE = re.compile(r"\\boxed\s*\{|(?<!\\)\\[{}]|[{}]")


def boxes(text: str) -> tuple[list[tuple[int, str]], bool]:
    r"""Return (end, content) of every closed `\boxed{...}`, outermost only, and whether none is left open.

    An escaped brace opens and closes nothing, unless a box stays open for it.
    """
    found, closed = matched(text, escapes=True)
    return (found, closed) if closed else matched(text, escapes=False)


def matched(text: str, escapes: bool) -> tuple[list[tuple[int, str]], bool]:
    """Return what `boxes` does, with or without a meaning of escapes."""
    found: list[tuple[int, str]] = []
    depth = start = 0
    for match in (BOX_ESCAPE_OR_BRACE if escapes else BOX_OR_BRACE).finditer(text):
        if match[0] in ("\\{", "\\}"):
            continue
        if depth == 0:
            if match[0][0] == "\\":
                depth, start = 1, match.end()
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                found.append((match.end(), text[start : match.start()]))
        else:
            depth += 1
    return found, depth == 0


def extract_answer(completion: str) -> str | None:
    """Return the content of the last box, or None if there is none or if it is not closed."""
    found, closed = boxes(completion.rpartition("</think>")[2])
    if not found or not closed:
        return None
    content = found[-1][1].strip()
    inner = boxes(content)[0] if BOX in content else []  # a box in a box
    return inner[-1][1].strip() if inner else content


def until_first_answer(completion: str) -> str:
    """Return the text up to the first closed box after a thought: where a fixed-length completion ends by nature.

    With the end token banned the model has to go on after its answer; what it then writes is noise,
    and no reward may come from it.
    """
    thought = completion.find("</think>")
    found, _ = boxes(completion[max(0, thought) :])
    return completion[: max(0, thought) + found[0][0]] if found else completion
