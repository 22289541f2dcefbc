"""Parts of a page that are drawn again by themselves: a control redraws what depends on it, and nothing else."""

from collections.abc import Callable

import streamlit as st

from wisca_app import state
from wisca_app.messages import errors_as_messages


def part(draw: Callable[..., None]) -> Callable[..., None]:
    """``draw`` as a fragment. What is chosen in it is written into the address, and an error of the library inside it is
    a message in its place.
    """

    def drawn(*arguments: object) -> None:
        with errors_as_messages("This part cannot be shown"):
            draw(*arguments)
        state.share()

    return st.fragment(drawn)


def is_phone() -> bool:
    """Whether the browser calls itself one: the server is not told how wide a page is, nor that nothing hovers."""
    return "Mobi" in st.context.headers.get("User-Agent", "")


def primary() -> str:
    """The type of the button that matters most. In dark Streamlit would write white on the primary colour, which cannot be
    read: there it is an outline.
    """
    return "secondary" if st.context.theme.type == "dark" else "primary"
