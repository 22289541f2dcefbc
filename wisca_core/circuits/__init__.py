"""What each attention head computes, from its weights alone: its QK and its OV circuit, which no rescale of the pairs moves.

>>> from wisca_core.circuits import heads
>>> heads("path/to/model")  # doctest: +SKIP
"""
