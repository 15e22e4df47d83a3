"""The only code that imports Ray: the engine that is a cluster.

``engine`` is what a job asks of it (the protocol stands in :mod:`raypurify.jobs.engine`), ``cluster`` joins or starts
one, ``units`` sends units through a pool of actors, ``blocks`` are what read tasks make; ``train`` is Ray Train around
a worker, with ``stream`` for its batches, ``board`` for what a worker tells, ``snapshots`` for what was cut off;
``metrics`` counts for Prometheus. No other room imports from here: jobs load ``engine`` by its name.
"""
