"""What the suites that break things share: `tests.crash` without a server, `tests.e2e` with one.

| module | what it is |
|---|---|
| `harness` `table` `command` | rows, trials, seeds, reports; all rows of a suite; its command |
| `zygote` | the process that victims are forked from |
| `shim.c` `shim` | system calls that fail, are short, hang, lie, or are recorded |
| `test_rows` | a seeded sample of every row of both suites |
"""
