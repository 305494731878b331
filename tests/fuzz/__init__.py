"""Fuzzing of all code that reads a stranger's bytes.

`targets` are plain functions of bytes and need only trio_console. `fixed` runs one of them with the same inputs
every time; `one` runs one under atheris, guided by coverage; ``python -m tests.fuzz`` runs all, in either way;
`seeds` writes the first inputs of the corpus.
"""
