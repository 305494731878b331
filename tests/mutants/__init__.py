"""Proof of the proofs: small faults, put into the package one at a time, which the tests have to find.

The table (``table/*.toml``) says for each mutant where it is made, and which tests find it. `make mutants`
runs it, see docs/testing.md.

* `operators`: what can be turned in a module's source.
* `table`: the mutants that are kept, and how one is made of the source as it is now.
* `run`: a mutant, its finder, and what came of it.
* `discover`: mutants that are not in the table yet, and what finds them.
"""
