"""Mutants: small faults, put into the package one at a time, which the tests must find.

The table (``table/*.toml``) says for each mutant where it is made, and which tests find it. `make mutants` runs
it, see docs/testing.md.

* `operators`: the changes that can be made to a module's source.
* `table`: the mutants that are kept, and how one is made from the source as it is now.
* `run`: runs a mutant's finder, and reports the outcome.
* `discover`: mutants that are not in the table yet, and the tests that find them.
"""
