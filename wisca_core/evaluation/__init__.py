"""Is the same model the same, and is a trained one better? Perplexity, tasks, drafts and a look inside, for causal
models.

``evaluate`` is the way in. Its parts: ``subjects`` (opening a model to run), ``text`` and ``perplexity``, ``tasks``
(through lm-evaluation-harness), ``statistics``, ``same`` (two models that should be one), ``inside``, ``drafts``,
``seeds`` (the arms of a comparison), ``landing`` (what is kept).
"""
