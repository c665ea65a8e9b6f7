"""A run is a folder: written whole or not at all, recorded, resumable, signed.

`folder` writes and hashes, `ledger` is what record.json says, `record` opens a run and its stages, `listing`
finds and purges runs, `resume` keeps checkpoints, `signing` makes signatures and keyed item ids. Nothing here
imports torch before it is needed.
"""
