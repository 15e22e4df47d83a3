"""The command ``raypurify``: one verb for each thing that it does.

``main`` has the page and finds the verb, ``jobs`` the verbs that compute, with their defaults, which the scripts in
``jobs/`` share. No module of this room imports Ray, torch or tyro before a verb needs it: a page of help comes at once.
"""
