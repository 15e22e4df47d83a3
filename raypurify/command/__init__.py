"""The command ``raypurify``: one verb for each thing that it does.

``main`` has the page and finds the verb, ``jobs`` what each verb starts, with the defaults that the scripts in
``jobs/`` share; ``library`` has the verbs as functions, ``status`` and ``catalogue`` what is printed of runs and of
plugins, ``completion`` what shells complete. Nothing of this room imports Ray, torch or tyro before a verb needs it: a
page of help comes at once.
"""
