"""Coverage-guided fuzzing of everything that reads what a stranger has written.

`targets` are plain functions of bytes and need nothing but trio_console; `one` runs one of them under atheris;
``python -m fuzz`` runs all of them for a while each; `seeds` writes the corpus that they start from.
"""
