"""The columns of the table of heads, each declared once: what it is, its unit, and whether a rescale moves it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """``moves``: whether a rescale that leaves the function as it is changes the number; None for places and words.

    ``ink``: the end of the scale that a reader looks for, "low" or "high". ``log``: spread over factors, not steps.
    """

    name: str
    title: str
    unit: str
    moves: bool | None
    meaning: str
    ink: str = "high"
    log: bool = False


PLACES = (
    Column("block", "Block", "", None, "where in the model: stack and kind of attention"),
    Column("layer", "Layer", "", None, "number of the layer in its stack"),
    Column("head", "Head", "", None, "number of the query head"),
    Column("kv_head", "KV head", "", None, "number of the key/value head that it reads"),
    Column("expert", "Expert", "", None, "number of the expert that brings the head, -1 for none"),
)

UNMOVED = (
    Column(
        "qk_norm",
        "QK norm",
        "Frobenius norm",
        False,
        "root of the sum of squared singular values of the QK circuit, norm gains folded in where they are known",
        log=True,
    ),
    Column("qk_spectral_norm", "QK top", "singular value", False, "largest singular value of the QK circuit", log=True),
    Column(
        "qk_stable_rank",
        "QK stable rank",
        "directions",
        False,
        "squared Frobenius over squared spectral norm of the QK circuit: 1 is a single direction",
        ink="low",
        log=True,
    ),
    Column(
        "qk_effective_rank",
        "QK effective rank",
        "directions",
        False,
        "exponential of the entropy of the QK circuit's singular values (Roy and Vetterli 2007)",
        ink="low",
        log=True,
    ),
    Column(
        "logit_bound",
        "Logit bound",
        "logits",
        False,
        "the largest attention logit that inputs of unit RMS can reach at distance 0, biases of q and k, scale and "
        "soft cap included, what is added to logits for position left out; an upper bound",
        log=True,
    ),
    Column(
        "logit_bound_any",
        "Logit bound, any distance",
        "logits",
        False,
        "the same over all distances: every rotary pair may turn by any angle; an upper bound",
        log=True,
    ),
    Column(
        "ov_norm",
        "OV norm",
        "Frobenius norm",
        False,
        "root of the sum of squared singular values of the OV circuit, norm gains folded in where they are known",
        log=True,
    ),
    Column("ov_spectral_norm", "OV top", "singular value", False, "largest singular value of the OV circuit", log=True),
    Column(
        "ov_stable_rank",
        "OV stable rank",
        "directions",
        False,
        "squared Frobenius over squared spectral norm of the OV circuit: 1 is a single direction",
        ink="low",
        log=True,
    ),
    Column(
        "ov_effective_rank",
        "OV effective rank",
        "directions",
        False,
        "exponential of the entropy of the OV circuit's singular values (Roy and Vetterli 2007)",
        ink="low",
        log=True,
    ),
    Column(
        "ov_copying",
        "OV copying",
        "share",
        False,
        "sum of the OV circuit's eigenvalues over the sum of their moduli: 1 writes what it reads, -1 its opposite "
        "(Elhage et al. 2021, without embedding and unembedding)",
    ),
)

MOVED = (
    Column("q_l1", "|Wq|", "L1 norm", True, "sum of absolute values of the head's query side, as stored", log=True),
    Column("k_l1", "|Wk|", "L1 norm", True, "sum of absolute values of its key head's key side, as stored", log=True),
    Column("v_l1", "|Wv|", "L1 norm", True, "sum of absolute values of its value head's Wv, as stored", log=True),
    Column("o_l1", "|Wo|", "L1 norm", True, "sum of absolute values of the head's columns of Wo, as stored", log=True),
    Column(
        "qk_ratio",
        "Query / key",
        "ratio",
        True,
        "L1 norm of all query heads on this key head over that of the key head",
        log=True,
    ),
    Column(
        "vo_ratio",
        "Value / output",
        "ratio",
        True,
        "L1 norm of the value head over that of all columns of Wo that read it",
        log=True,
    ),
    Column(
        "q_rate",
        "Wq rate",
        "times lr",
        True,
        "learning rate of Wq under Adam that equals balancing this KV group; SGD: its square",
        log=True,
    ),
    Column("k_rate", "Wk rate", "times lr", True, "the same of Wk", log=True),
    Column("v_rate", "Wv rate", "times lr", True, "the same of Wv", log=True),
    Column("o_rate", "Wo rate", "times lr", True, "the same of Wo", log=True),
)

WORDS = (
    Column("qk_of", "QK is of", "", None, 'what the QK circuit is taken of: "weights", or "gains" under a QK-norm'),
    Column("ov_of", "OV is of", "", None, 'what the OV circuit is taken of: "weights", or "gains" behind a sub-norm'),
    Column(
        "width", "Width", "channels", None, "channels of the head's queries: the largest rank its QK circuit can have"
    ),
    Column("value_width", "Value width", "channels", None, "channels of the head's values"),
    Column(
        "folded", "Norm folded in", "", None, "the norm gains that are folded into the circuits, by their module's name"
    ),
    Column("note", "Note", "", None, "why a number is empty or what it leaves out"),
)

COLUMNS = (*PLACES, *UNMOVED, *MOVED, *WORDS)
BY_NAME = {column.name: column for column in COLUMNS}
NUMBERS = tuple(column.name for column in (*UNMOVED, *MOVED))
