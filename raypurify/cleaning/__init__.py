"""Bulk cleaning without Ray: what is planned, read, purified and written for one unit of inputs.

On the way from the input to the output:

- ``inputs`` lists an input's files (``folders`` those below a folder): an ``Entry`` of ``entries`` each;
- ``planner`` cuts them into units, with names for what they become (``names``), and ``plan`` holds these;
- ``reader`` reads and decodes what a unit's entries hold, an ``Item`` each;
- ``cleaner`` purifies the items (``tiles``), measures them, and gives them to a sink of ``writer``;
- ``accounts`` says what became of each, and holds it against the plan.

``quarantine`` finds inputs that end the process that cleans them. What does not fit in memory is sorted and kept by
``raypurify.storage.bounded``, and tars are read past damage by ``raypurify.storage.archives``.

Other rooms import ``cleaner``, ``inputs``, ``planner``, ``plan``, ``accounts`` and ``quarantine``.
"""
