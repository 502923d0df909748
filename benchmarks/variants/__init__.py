"""Variants of the search compared at equal budgets, on text that none of them has seen.

flags, YAML --> jobs --> a JSON file each --> CSV tables, tests, plots, one page
(settings.py)  (plan.py)  (job.py, heldout.py,  (tables.py, statistics.py, plots.py, page.py,
                           work.py)              iohfiles.py)
"""
