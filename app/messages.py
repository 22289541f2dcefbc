"""The one place that turns the library's errors into something a person reads; never a stack trace, never markdown."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import streamlit as st

from wisca_core.errors import WiscaError

LONGEST = 4000


@contextmanager
def errors_as_messages(heading: str | Callable[[WiscaError], str]) -> Iterator[None]:
    """A WiscaError inside the block becomes a message here, and the rest of the page lives on."""
    try:
        yield
    except WiscaError as error:
        say(heading if isinstance(heading, str) else heading(error), str(error))


def say(heading: str, text: str) -> None:
    """``heading`` is ours; ``text`` may quote names from files, so it is shown letter by letter."""
    with st.container(border=True, gap="xsmall"):
        st.markdown(f":material/error: **{heading}**")
        plain(text)


def plain(text: str) -> None:
    """Text that is not ours: no markdown, no links, no images."""
    st.text(text if len(text) <= LONGEST else text[:LONGEST] + " ...")
