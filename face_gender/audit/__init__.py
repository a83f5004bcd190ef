"""Find what is wrong with a data set before training on it: python -m face_gender.audit.

Needs what requirements-audit.txt names; neither training nor process.py imports any of it.
``stages`` keeps what is finished, ``pictures`` measures every file once, ``duplicates`` finds
copies, ``embeddings`` says how each picture looks to a net that has not seen it, ``labels`` and
``strangers`` judge by that, ``findings`` puts all in one table, ``page`` shows it, ``run`` is the
whole of it.
"""
