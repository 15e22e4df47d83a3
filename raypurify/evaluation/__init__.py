"""Evaluation in plain torch: the grid of cells, what happens to one batch, and what is summed up of the scores.

``grid`` has the configuration and the cells, ``batch`` the Evaluator of ONE batch, ``generation`` the Generator that
keeps the attacked images, ``masking`` the check for masked gradients, ``preflight`` what is checked before the work,
``results`` the summary.
"""
