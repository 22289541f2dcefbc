"""What an exported model's README.md gains: a section on what was done, how it was proved and what was not checked, and
what the hub reads at its top (base_model, tags).
"""

import re

from wisca_core.architecture.site import DEFAULT_PAIRS, SiteKey
from wisca_core.equivalence.full_check import FullCheck
from wisca_core.equivalence.proof import Proof
from wisca_core.planning.bases import BASES
from wisca_core.planning.plan import Plan
from wisca_core.words import join_names

_START, _END = "<!-- wisca:begin -->", "<!-- wisca:end -->"


TAG = "wisca"


def with_section(
    readme: str,
    plan: Plan,
    proof: Proof,
    check: FullCheck | None,
    not_run: str = "",
    source: str = "",
    picture: str = "",
) -> str:
    """``readme`` with the section behind it, in place of the section of an earlier export, and with the hub's header
    where ``source`` is a model of the hub or there is one. ``not_run``: why there is no full check, where one was to be
    made. ``picture``: a file beside it.
    """
    if _START in readme and _END in readme:
        readme = readme[: readme.index(_START)] + readme[readme.index(_END) + len(_END) :]
    o = plan.options
    adapter = o.pairs == ("lora",)
    kinds = {SiteKey.parse(name).pair for name in plan.sites} or set(o.pairs)
    attention = join_names([pair.upper() for pair in o.pairs if pair in DEFAULT_PAIRS and pair in kinds])
    parts = [f"{attention} pairs of the attention weights"] if attention else []
    parts += ["up and down projections of the feed-forward blocks"] if "mlp" in kinds else []
    what = "rank channels of the LoRA adapter" if adapter else " and the ".join(parts)
    exact = ", powers of two only" if o.exact else ""
    layers = f", layers {', '.join(map(str, o.layers))}" if o.layers else ""
    lines = [
        _START,
        "## Rescaled into an equivalent model",
        "",
        f"The {what} were rescaled (WISCA, arXiv 2508.16676; granularity "
        f"{o.granularity}, norm {o.norm}, "
        f"strength {o.strength:g}{layers}{exact}): {plan.factors.n_changed} factors{_bases(plan)}. The function is "
        "meant to be "
        "unchanged; whether training from here goes better is not claimed.",
        "",
        f"- Rule `{proof.rule}`, {proof.kind.lower()} ({proof.what}): largest relative difference {proof.max_rel:.1e} "
        f"in float64.",
    ]
    if not proof.is_made:
        lines[2:2] = [
            "",
            "**Not proved.** Its pairs were declared by the person who wrote this and taken as they are "
            "(`--unproved`): whether "
            "the function is unchanged is not known.",
        ]
        lines[-1] = f"- Rule `{proof.rule}`: no proof was made."
    lines.append(f"- Full check on these weights: {check.words() if check else f'not run. {not_run}'.strip()}")
    if plan.refusals:
        lines.append(
            f"- Left as they were: {len(plan.refusals)} pairs, listed with the reasons in `wisca_report.json`."
        )
    if picture:
        lines += ["", f"![Factors of the rescale over the layers]({picture})", ""]
    lines += [
        "- Optimiser state of the original does not fit these weights."
        if adapter
        else "- A quantised copy, a LoRA adapter or optimiser state of the original does not fit these weights.",
        _END,
        "",
    ]
    readme = with_header(readme, source)
    head = readme.rstrip("\n") + "\n\n" if readme.strip() else ""
    return head + "\n".join(lines)


def _bases(plan: Plan) -> str:
    """Of pairs that are changed by more than factors, in words."""
    if not plan.bases:
        return ""
    n = sum(map(len, plan.bases.sites.values()))
    return f", and {n} full changes of basis (method {plan.options.method}), which lie in `{BASES}`"


def with_header(readme: str, source: str) -> str:
    """The header that the hub reads with the model this one was made of and a tag; every line of it that was there
    stays.

    A header is made only where the base is a model of the hub: of a folder nobody but its owner knows where it came
    from.

    >>> print(with_header("", "hub:owner/name@main"), end="")
    ---
    base_model: owner/name
    tags:
    - wisca
    ---
    """
    base = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)(@.*)?", source)
    found = re.match(r"---\r?\n(.*?)^---[ \t]*\r?$", readme, re.S | re.M)
    if not found and not base:
        return readme
    lines = found[1].splitlines() if found else []
    if base and not any(line.startswith("base_model:") for line in lines):
        lines.append(f"base_model: {base[1]}")
    at = next((i for i, line in enumerate(lines) if re.fullmatch(r"tags:\s*", line)), None)
    if at is not None:
        indent = re.match(r"\s*", lines[at + 1])[0] if lines[at + 1 : at + 2] else ""
        if f"- {TAG}" not in [line.strip() for line in lines]:
            lines.insert(at + 1, f"{indent}- {TAG}")
    elif (at := next((i for i, line in enumerate(lines) if line.startswith("tags:")), None)) is None:
        lines += ["tags:", f"- {TAG}"]
    elif (listed := re.fullmatch(r"tags:\s*\[(.*)\]\s*", lines[at])) and TAG not in re.split(r"[,\s]+", listed[1]):
        lines[at] = f"tags: [{', '.join(filter(None, (listed[1].strip().rstrip(','), TAG)))}]"
    if found and lines == found[1].splitlines():
        return readme
    end = "\r\n" if found and "\r\n" in found[0] else "\n"
    rest = readme[found.end() :] if found else f"{end}{readme}" if readme else end
    return end.join(["---", *lines, "---"]) + rest
