"""Find what is wrong with a data set before training on it: python -m face_gender.audit.

Needs what requirements-audit.txt names; neither training nor process.py imports any of it.
``inputs`` opens what is audited, ``stages`` keeps what is finished, ``pictures`` measures every
file once, ``duplicates`` finds copies, ``embeddings`` says how each picture looks to a net,
``labels`` and ``outliers`` judge by that, ``judge`` does these in turn, ``findings`` puts all in
one table, ``page`` shows it, ``run`` is the whole of it.
"""
