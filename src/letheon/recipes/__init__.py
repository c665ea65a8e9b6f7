"""Chains of verbs, as YAML or as dataclasses.

`verbs` says which verbs there are and what each can be told, `recipe` reads, checks and runs a chain of them.
Nothing here imports torch before a recipe is read or run.
"""
