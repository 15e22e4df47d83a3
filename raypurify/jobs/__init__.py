"""The five jobs: evaluate, attack, certify, clean and train, on either engine: a Ray cluster, or this process.

``resources`` says who does the work, ``engine`` what a job asks of those, ``work`` what a unit of work is, ``attempt``
how planned units are done and counted; ``rows`` has what evaluation, attack and certificates share. ``demo``,
``compare_defenses`` and ``reproduce_paper`` are jobs one after another. The command imports the jobs, ``distributed``
what its engine needs. Nothing here imports Ray: ``local`` is the engine of this process, :mod:`raypurify.distributed`
that of a cluster.
"""
