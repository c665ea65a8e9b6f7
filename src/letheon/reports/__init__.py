"""What a person reads: one self-contained HTML page with its figures, and a table for the terminal.

    page.py      report(run) and compare(runs, target)
    reading.py   what lies in a run's folder
    tables.py    the matrix, its numbers and the verdict, as the page's rows
    story.py     samples, stages and hashes, as the page's rows
    figures.py   the figures, each with words in its place; svg.py cleans them for a page
    wording.py   names, numbers and sentences
    terminal.py  plain text, 120 columns
"""
