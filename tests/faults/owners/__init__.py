"""Proof of ownership: real pods and gateways under faults, and what each was told, when.

``record.py`` is what the observers write, ``judge.py`` decides whether the promises held (pure), ``pod.py`` and
``gateway.py`` are the processes, ``third_store.py`` is where pods write under their fences, ``stage.py`` starts
everything, ``scenes.py`` breaks it, ``acts.py`` says in which order, and ``table.py`` shows what came of it.
"""
