"""Fuzzing of everything that reads what a stranger has written.

`targets` are plain functions of bytes and need nothing but trio_console; `fixed` runs one of them with the same
inputs every time, `one` runs one under atheris, guided by coverage; ``python -m tests.fuzz`` runs all, either way;
`seeds` writes the corpus that they start from.
"""
