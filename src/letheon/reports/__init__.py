"""What a person reads: one self-contained HTML page with its figures, and a table for the terminal.

    page.py      report(run) and compare(runs, target)
    reading.py   what lies in a run's folder
    verdicts.py  the verdict in a sentence
    tables.py    the matrix; groups.py its rows under headings; numbers.py every number; summary.py one row a run
    story.py     what was asked, stages and hashes; samples.py answers in words
    figures.py   distances and curves; scatter.py what is left against what is kept; recovery.py what attacks bring
                 back; roc.py membership; svg.py cleans them for a page
    benchmarks.py  the figures of a benchmark
    files.py     the same figures and numbers as SVG and CSV
    wording.py   names, numbers and sentences
    templates.py  the HTML that they are put into
    terminal.py  plain text, 120 columns

Nothing is measured here: everything shown stands in the run's files.
"""
