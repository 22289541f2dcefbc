"""How numbers and names are written on the pages and in the figures; one spelling of each.

Ratios name a side ("query 7.8×", never 0.13), factors that are powers of two are written 2⁻², a minus is a true minus.
"""

import html
import math
import re

import numpy as np

from wisca_core.pairs import KINDS
from wisca_core.pairs import LABELS as PAIR_LABELS  # noqa: F401
from wisca_core.words import in_bytes, join_names, runs_of, times
from wisca_core.words import plural as plural
from wisca_core.words import side as in_words

ROLES = {"q": "query", "k": "key", "v": "value", "o": "output", "up": "up", "down": "down", "a": "A", "b": "B"}
MATRICES = {"q": "Wq", "k": "Wk", "v": "Wv", "o": "Wo", "up": "W up", "down": "W down", "a": "A", "b": "B"}
# Set theme colours of config.toml that are the roles, so that a coloured word in a caption is the legend.
MARKDOWN_COLOURS = {"q": "blue", "k": "orange", "v": "green", "o": "violet"}
PAIR_ROLES = {name: kind.roles for name, kind in KINDS.items()}
NORM_LABELS = {"l1": "L1", "l2": "L2", "max": "max", "rms": "RMS", "mean": "mean"}
NORM_SYMBOLS = {
    "l1": "sum of |w|",
    "l2": "root of the sum of w²",
    "max": "largest |w|",
    "rms": "root of the mean of w²",
    "mean": "mean |w|",
}
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "BF16": "bf16",
    "F16": "fp16",
    "F8_E4M3": "fp8",
    "F8_E5M2": "fp8",
    "I8": "int8",
}

# Every term of the pages in a sentence, with its formula: what stands behind the question marks.
TERMS = {
    "ratio": "Norm of the left side over that of the right one, as L1: sum |Wq| / sum |Wk|; of the median layer, "
    "expert or adapted layer.",
    "query side": "Wq of the query heads that share a key head. With |W| = sum of |w|, the ratio is |Wq| / |Wk|.",
    "size": "How often the one side has more entries: g query heads share a KV head, so Wq has g times the entries of "
    "Wk.",
    "rest": "The ratio divided by its size part: initialisation or training. One checkpoint cannot tell which.",
    "pair": "Two matrices between which a scale can be moved: (cW1)(W2/c) = W1 W2. QK: Wq and Wk. VO: Wv and Wo. MLP: "
    "up and down.",
    "KV group": "A KV head with the g query heads that read it; its Wq rows, Wk rows, Wv rows and Wo columns.",
    "channel": "One row of Wq with the row of Wk that it meets in the product q·k; rotary pairs share one factor.",
    "exact": "Factors are powers of two: w × 2ᵏ changes only the exponent of a floating-point number, no digit.",
    "largest": "The cell furthest from balance: the largest of |W1| / |W2| either way, over all layers and groups.",
    "outlying": "Cells more than 2× from the median cell of their pair, either way.",
    "rates": "A matrix kept as cW trains under Adam as W at lr/c. Balancing keeps Wq at 1/m and Wk at m, m = √(|Wq| / "
    "|Wk|).",
}

# Where they all stand; beside every page of the app.
HOME = "[Every term, on Method](method#terms)"

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_HALVES = {-1: "½×", -2: "¼×", -3: "⅛×"}


def superscript(whole: int) -> str:
    """-2 -> "⁻²"."""
    return str(whole).translate(_SUPERSCRIPTS)


def side(pair: str, log2_ratio: float) -> str:
    """The heavier side and by how much: "query 7.8×"; "equal" within 0.5 %; "×" where no ratio is known."""
    return in_words(pair, log2_ratio, "equal", "×")


def ratio(log2_ratio: float) -> str:
    """The ratio without its side: "7.8×"; "×" where no ratio is known."""
    return times(2 ** abs(log2_ratio)) if math.isfinite(log2_ratio) else "×"


def factor(value: float) -> str:
    """2⁻² for a power of two, "1" for one, else three digits: "0.354"."""
    if not math.isfinite(value):
        return "×"
    if value > 0 and math.frexp(value)[0] == 0.5:
        power = round(math.log2(value))
        return f"2{superscript(power)}" if power else "1"
    return digits(value, 3)


def factors(low: float, high: float) -> str:
    """One factor, or the span of several: "0.31 to 0.52"."""
    return factor(low) if low == high else f"{factor(low)} to {factor(high)}"


def digits(value: float, n: int = 4) -> str:
    """``n`` significant digits, no exponent between 10^-5 and 10^9, thousands with commas, true minus."""
    if not math.isfinite(value):
        return "×"
    if value == 0:
        return "0"
    size = abs(value)
    if not 1e-5 <= size < 1e9:
        power = math.floor(math.log10(size))
        return f"{minus(f'{value / 10**power:.{n - 1}f}')} × 10{superscript(power)}"
    places = max(0, n - 1 - math.floor(math.log10(size)))
    return minus(f"{value:,.{places}f}")


def count(value: int) -> str:
    """262,144."""
    return f"{int(value):,}"


def minus(text: str) -> str:
    """A hyphen in front of a number as a true minus."""
    return text.replace("-", "−")


def place(layer: int | str, unit: str, group: int | str) -> str:
    """ "layer 17, KV group 2"; only the layer where ``unit`` is "layer". Numbers, or plotly's placeholders for them."""
    return f"layer {layer}" if unit == "layer" else f"layer {layer}, {unit} {group}"


def title(text: str) -> str:
    """Its first letter as a capital."""
    return text[:1].upper() + text[1:]


def lane(layer: int | str, name: str) -> str:
    """The same for one of several adapted layers of a layer: "layer 17, self_attn.q_proj"."""
    return f"layer {layer}, {name}"


def parameters(n: int) -> str:
    """ "3.1 B parameters"; under ten thousand in full."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size and n >= 1e4:
            value = n / size
            return f"{value:.1f} {letter} parameters" if value < 99.95 else f"{value:.0f} {letter} parameters"
    return f"{n:,} parameters"


def size(n_bytes: int) -> str:
    """ "6.2 GB", "38.6 kB": decimal units."""
    return in_bytes(n_bytes)


def axis_number(value: float) -> str:
    """Tick of a linear or log axis: "10 k", "300", "0.3", "1 M"."""
    if value == 0:
        return "0"
    for unit, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"), (1e-4, "")):
        if abs(value) >= unit:
            return minus(f"{value / (unit if letter else 1):g}{letter}")
    power = math.floor(math.log10(abs(value)))
    lead = f"{abs(value) / 10**power:.0f}"
    return ("−" if value < 0 else "") + (f"10{superscript(power)}" if lead == "1" else f"{lead}·10{superscript(power)}")


def octave(power: int) -> str:
    """Tick of a ratio axis: 3 -> "8×", -1 -> "½×", -5 -> "1/32×"."""
    if power >= 0:
        return f"{2**power}×"
    return _HALVES.get(power, f"1/{2**-power}×")


def power_of_two(power: int) -> str:
    """Tick of a log2 |w| axis: -13 -> "2⁻¹³", 0 -> "1"."""
    return "1" if power == 0 else "½" if power == -1 else f"2{superscript(power)}"


def ranges(numbers: "np.ndarray | list[int]") -> str:
    """[0, 1, 2, 5] -> "0 to 2 and 5"."""
    parts = [
        f"{r[0]}" if len(r) == 1 else f"{r[0]} and {r[1]}" if len(r) == 2 else f"{r[0]} to {r[-1]}"
        for r in runs_of(numbers)
    ]
    return join_names(parts)


# Where GitHub's Markdown would see an address begin, whatever is escaped: http://, www., name@host.
_ADDRESS = re.compile(r"(?i)(?<=http)(?=s?:)|(?<=https)(?=:)|(?<=www)(?=\.)|(?=@)")


def markdown_text(text: str) -> str:
    """A foreign name inside st.markdown: every ASCII sign escaped, so no link, image or formula is read. A bare address
    would become a link all the same: a word joiner, which shows nothing, stands inside it.
    """
    text = _ADDRESS.sub("\u2060", text)
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text).replace("\n", " ")


def plain_text(text: str) -> str:
    """A foreign name in a figure's title, label or hover text: plotly would read <a href> in it."""
    return html.escape(text, quote=False)


def coloured_word(role: str, text: str = "") -> str:
    """The role's word (or another ``text``) in its colour, for a caption: ":blue[query]"."""
    text = text or ROLES[role]
    return f":{MARKDOWN_COLOURS[role]}[{text}]" if role in MARKDOWN_COLOURS else f"**{text}**"


def tip(*terms: str) -> str:
    """What stands behind a question mark: those of TERMS, as Markdown reads them, and the way to their home."""
    said = "\n\n".join(TERMS[term] for term in terms).replace("|", "\\|")
    return f"{said}\n\n{HOME}"
