"""Faults of the uploader, the server and the whole: rows D1 to D19, S1 to S14, W21, X1 and X2 of the fault matrix.

    proxy            a TCP proxy that breaks HTTP at any byte
    servers          real servers and uploaders, by process id
    pens             journals written by the published format alone, every event of them known
    judge            asks the server over HTTP, and compares with what was issued and with the folder on disk
    world            what all rows share
    rows_*           the rows; `table` has them all

What a row is, how it is run and how victims are forked is in `tests.faults`.
Run any row at any count with `python -m tests.e2e --row D1 --full`. What is under test never judges itself.
"""
