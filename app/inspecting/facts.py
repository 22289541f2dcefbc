"""What a model is, in one line."""

from wisca_app import cached
from wisca_app.figures import words
from wisca_app.open_model import title
from wisca_core.model import Model
from wisca_core.words import join_names


def facts(model: Model) -> str:
    """The small line above the title: foreign names in it."""
    a, sites, checkpoint = model.sites.attention, model.sites, model.checkpoint
    kind = "a class of your own" if checkpoint.declared else sites.architecture
    parts = [title(checkpoint.source), kind]
    parts.append(words.parameters(checkpoint.n_parameters))
    dtypes = sorted({t.dtype for t in checkpoint.stored or checkpoint.tensors} & set(words.DTYPES))
    parts.append(join_names([words.DTYPES[d] for d in dtypes]))
    if a is not None:
        parts += [words.plural(a.n_layers, "layer"), heads(a.n_heads, a.n_kv_heads)]
    refused = sum(r.what != "model" for r in (*sites.refusals, *cached.feed_forward_refusals(model)))
    found = f"{words.plural(len(sites.sites), 'pair')}, {words.count(refused) if refused else 'none'} refused"
    return ", ".join(filter(None, parts)) + (f". {found}." if sites.sites or a is not None else ".")


def heads(n_heads: int, n_kv_heads: int) -> str:
    """ "24 query heads on 4 KV heads", or "12 heads" where each has its own."""
    if n_heads == n_kv_heads:
        return words.plural(n_heads, "head")
    return f"{words.plural(n_heads, 'query head')} on {words.plural(n_kv_heads, 'KV head')}"
