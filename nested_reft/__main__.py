"""`python -m nested_reft` is the same as `nested-reft`. A Python without the packages is refused in one sentence."""

import sys
from typing import NoReturn


def refuse(problem: str) -> NoReturn:
    """End the program because this Python cannot run the package."""
    print(
        f"Error: {sys.executable} {problem}; activate the environment of nested-reft (source .venv/bin/activate), "
        "which `make setup` creates",
        file=sys.stderr,
    )
    sys.exit(2)


if sys.version_info < (3, 11):  # noqa: UP036 (nothing has checked the version yet)
    refuse(f"is Python {sys.version_info[0]}.{sys.version_info[1]}, but nested-reft needs Python 3.11 or later")
try:
    from nested_reft.cli import main
except ModuleNotFoundError as error:
    refuse(f"lacks the package {error.name}")

main()
