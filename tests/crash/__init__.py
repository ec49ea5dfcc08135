"""Faults injected into real processes, judged from outside: the rows of the fault matrix.

    python -m tests.crash --list                      the rows, their full counts and their samples
    python -m tests.crash --row W1 [--full]           one row; `--count`, `--seed`, `--only` repeat and narrow it
    python -m tests.crash.mutants                     break the library's rules, and see the suite turn red for each
    pytest tests/faults tests/crash                   a seeded sample of every row, and the tests of the tests

What a row is, how it is run and how victims are forked is in `tests.faults`.

| module | what it is |
|---|---|
| `setups` `warm` `victims*` | the process that victims are forked from, and what they run |
| `oracle_reader` `oracle` `compare` `recovery` | reads by the published format alone; hears every call; judges |
| `powercut` `specimen` `edits` `hostile` `model` | crash states of a disk; damaged bytes; harmful journals; the model |
| `rows_*` `table` | the rows, grouped by what is broken |
| `mutants` `mutant_table` `regressions` | X4; trials that once found a bug |
"""
