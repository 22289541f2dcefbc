"""Parts of the page Heads: what each head computes, from its weights alone."""
