"""The command `letheon`: one file a command, each with an `app`; `main` assembles them.

`verb` makes the commands whose options are derived from settings, `page` is what --help shows, `ending` is how a
command ends (results, messages, exit codes). Nothing here imports torch before a command runs.
"""
