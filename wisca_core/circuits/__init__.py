"""What each attention head computes, from its weights alone: its QK and its OV circuit, which no rescale of the pairs
moves.

>>> from wisca_core.circuits.table import heads
>>> table = heads("sample_runs/gqa-docs/checkpoint-3600")
>>> table.loc[0, ["layer", "head", "kv_head"]].tolist(), round(float(table.loc[0, "qk_stable_rank"]), 2)
([0, 0, 0], 1.27)
"""
