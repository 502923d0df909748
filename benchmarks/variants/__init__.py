"""Variants of the search compared at equal budgets, on text that none of them has seen.

flags, YAML --> jobs ------> a JSON file each ----> tables, tests, figures, one page
(settings.py)   (plan.py)    (work.py, job.py,      (results.py, tables.py, statistics.py,
                              trace.py, heldout.py)  plots.py, page.py, iohfiles.py)
"""
