"""Evaluation in plain torch: the grid of cells, what happens to one batch, and what is summed up of the scores.

``grid`` has the configuration and the cells, ``batch`` the Evaluator of ONE batch, ``generation`` the evaluation whose
attacked images are kept, ``attacking`` the attack on a batch in a precision, ``masking`` the check for masked
gradients, ``calibration`` the strength of attacks, ``cost`` what a purifier costs; ``certification`` and
``certificate_attacks`` have the certificates. ``units`` are what is planned, ``preflight`` is what is checked before
the work (``normalisation`` a part of it), ``tensors`` has a dataset's images for a user's own code, ``results`` the
summary, ``samples`` images for the report. Jobs import from all of these, the report from ``masking``.
"""
