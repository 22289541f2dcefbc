"""The section that an exported model's README.md gains: what was done, how it was proved, what was not checked."""

from wisca_core.architecture.site import DEFAULT_PAIRS, SiteKey
from wisca_core.equivalence.full_check import FullCheck
from wisca_core.equivalence.proof import Proof
from wisca_core.planning.plan import Plan

_START, _END = "<!-- wisca:begin -->", "<!-- wisca:end -->"


def with_section(readme: str, plan: Plan, proof: Proof, check: FullCheck | None, not_run: str = "") -> str:
    """``readme`` with the section behind it, in place of the section of an earlier export. ``not_run``: why there is no
    full check, where one was to be made.
    """
    if _START in readme and _END in readme:
        readme = readme[: readme.index(_START)] + readme[readme.index(_END) + len(_END) :]
    o = plan.options
    adapter = o.pairs == ("lora",)
    kinds = {SiteKey.parse(part.site).pair for part in plan.sites} or set(o.pairs)
    attention = " and ".join(pair.upper() for pair in o.pairs if pair in DEFAULT_PAIRS and pair in kinds)
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
        f"strength {o.strength:g}{layers}{exact}): {plan.n_changed} factors. The function is meant to be unchanged; "
        f"whether training from "
        "here goes better is not claimed.",
        "",
        f"- Rule `{proof.rule}`, {proof.kind.lower()} ({proof.what}): largest relative difference {proof.max_rel:.1e} "
        f"in float64.",
    ]
    if not proof.is_made:
        lines[2:2] = [
            "",
            "**Not proved.** Its pairs were declared by the person who wrote this and taken as they are (`--unproved`): whether "
            "the function is unchanged is not known.",
        ]
        lines[-1] = f"- Rule `{proof.rule}`: no proof was made."
    lines.append(f"- Full check on these weights: {check.words() if check else f'not run. {not_run}'.strip()}")
    if plan.refusals:
        lines.append(
            f"- Left as they were: {len(plan.refusals)} pairs, listed with the reasons in `wisca_report.json`."
        )
    lines += [
        "- Optimiser state of the original does not fit these weights."
        if adapter
        else "- A quantised copy, a LoRA adapter or optimiser state of the original does not fit these weights.",
        _END,
        "",
    ]
    head = readme.rstrip("\n") + "\n\n" if readme.strip() else ""
    return head + "\n".join(lines)
