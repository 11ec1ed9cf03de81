"""`python -m nested_reft` is the same as `nested-reft`."""

from nested_reft.cli import main

main()
