"""What pages are put together from: parts that are drawn again by themselves (a control redraws what depends on it, and
nothing else), and widgets that look and behave alike wherever they stand.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import streamlit as st

from wisca_app import state
from wisca_app.messages import errors_as_messages

KEPT: dict[str, Any] = {"persist_state": "session"}  # what was asked stays while another page is looked at


def part(draw: Callable[..., None]) -> Callable[..., None]:
    """``draw`` as a fragment. What is chosen in it is written into the address, and an error of the library inside it
    is a message in its place.
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
    """The type of the button that matters most. In dark Streamlit would write white on the primary colour, which cannot
    be read: there it is an outline.
    """
    return "secondary" if st.context.theme.type == "dark" else "primary"


def one_of(label: str, options: Iterable, key: str, said: Mapping | None = None, **more: Any) -> Any:
    """Buttons of which one is always pressed, which is remembered while other pages are looked at. ``said``: what each
    option is called, where it is not called itself; ``options`` may be that mapping. ``more``: of st.segmented_control.
    """
    return st.segmented_control(label, list(options), required=True, key=key, **_options(options, said), **more)


def pick(label: str, options: Iterable, key: str, said: Mapping | None = None, **more: Any) -> Any:
    """The same as a list that opens. ``more``: of st.selectbox."""
    return st.selectbox(label, list(options), key=key, **_options(options, said), **more)


def _options(options: Iterable, said: Mapping | None) -> dict[str, Any]:
    said = options if said is None and isinstance(options, Mapping) else said
    return KEPT | ({} if said is None else {"format_func": said.get})


def number(label: str, value: float | None, key: str, width: int, **more: Any) -> Any:
    """A field for a number, remembered in the same way. ``more``: of st.number_input."""
    return st.number_input(label, value=value, key=key, width=width, **KEPT, **more)


def quiet(text: str) -> None:
    """Markdown in small grey letters: what explains, beside what is said."""
    st.markdown(f":small[:gray[{text}]]")


def take_away(label: str, made: Callable[[], bytes], name: str, key: str, help: str = "", **more: Any) -> None:
    """A button that gives a file called ``name`` (.csv, .html, .json), made when it is pressed; the page stays as it
    is. ``more``: of st.download_button.
    """
    ending = name.rpartition(".")[2]
    kind = "application/json" if ending == "json" else f"text/{ending}"
    more = {"type": "tertiary"} | more
    st.download_button(label, made, name, kind, on_click="ignore", key=key, help=help or None, **more)
