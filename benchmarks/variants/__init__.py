"""Comparison of variants of the search at equal budgets, on held-out text.

flags, YAML --> jobs ------> one JSON file each --> tables, tests, figures, one page
(settings.py)   (plan.py)    (work.py, job.py,      (results.py, tables.py, statistics.py,
                              trace.py, heldout.py)  plots.py, page.py, iohfiles.py)
"""
