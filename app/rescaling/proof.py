"""The block that says whether it is the same function: the miniature, the full check, and what neither looked at."""

import streamlit as st

from wisca_app import cached, state
from wisca_app.declaring import kept
from wisca_app.declaring import notices as declaration
from wisca_app.figures import words
from wisca_app.job_progress import explain, follow, latest
from wisca_app.messages import errors_as_messages, plain
from wisca_app.open_model import normal, title, with_mlp
from wisca_app.rescaling import kept_plan, training
from wisca_core import jobs
from wisca_core.equivalence.full_check import FullCheck, memory_free, memory_needed, not_covered
from wisca_core.equivalence.proof import UNPROVED, Proof
from wisca_core.equivalence.proving import cached_proof, prove
from wisca_core.model import Model
from wisca_core.planning.decide import Decision
from wisca_core.planning.options import Options
from wisca_core.words import without_site_name


def proof_so_far(found: Model) -> Proof | None:
    """The kept proof of all its rules; None while there is none, and for an adapter, whose proof is one."""
    return (
        None if found.checkpoint.adapter_json or not found.sites.sites else cached_proof(found.checkpoint, found.sites)
    )


def draw(found: Model, model: Model, options: Options, decision: Decision) -> Proof | None:
    """Draws the block; returns the miniature's proof, None while there is none. ``model``: what of ``found`` is
    proved.
    """
    st.subheader("Proof", anchor="proof")
    proof = _miniature(found, options)
    check = _full_check(model, options, decision)
    not_checked = list(not_covered(proof, check))
    if check is None:
        not_checked = [
            "the real weights: no full check was run with these options",
            *not_checked,
            *(
                ()
                if model.checkpoint.adapter_json
                else ("quantised copies made before: their scales were chosen for the old weights",)
            ),
        ]
    not_checked = list(dict.fromkeys(not_checked))
    st.markdown(f"**Not checked** {_badge(words.plural(len(not_checked), 'thing'))}")
    plain("\n".join(f"{text[:1].upper()}{text[1:].rstrip('.')}." for text in not_checked))
    return proof


def _miniature(model: Model, options: Options) -> Proof | None:
    if model.checkpoint.declared is not None:
        return _declared_proof(model, options)
    base = _base(model) if model.checkpoint.adapter_json else ""
    proof = _kept_proof(model, base)
    if proof is None:
        st.markdown("**Products**" if model.checkpoint.adapter_json else "**Miniature**")
        _run_miniature(model, base)
        return None
    what, said = in_words(proof)
    if not proof.passed and not any(map(proof.covers, model.sites.sites)):
        st.markdown(f"**{what}** {_badge('failed', 'close')}")
        plain(f"{proof.reason}\nA failed proof stops the export.")
        return proof
    if proof.passed:
        st.markdown(f"**{what}** {_badge(f'passed, {proof.seconds:.1f} s', 'check')}")
    else:
        n = len(proof.proved) + len(proof.refused)
        st.markdown(f"**{what}** {_badge(f'{len(proof.proved)} of {n} rules passed, {proof.seconds:.1f} s', 'check')}")
        plain(
            "\n".join(
                f"{name} is refused and left as it is: {without_site_name(reason)}" for name, reason in proof.refused
            )
        )
    st.markdown(said)
    return proof


def _declared_proof(model: Model, options: Options) -> Proof:
    """Declared pairs are proved where the person's own code runs: never here."""
    is_taken = declaration.accepts_unproved(model, training.line(model, options))
    return prove(cached.model(normal(model.checkpoint.source), kept.name_of(model), is_taken).checkpoint, model.sites)


def in_words(proof: Proof) -> tuple[str, str]:
    """("Miniature", what was run and how near it came); foreign names in it are escaped."""
    title = proof.kind.rpartition(" ")[2].capitalize()
    if not proof.is_made:
        return title, f"None was made: {words.markdown_text(proof.reason or proof.what.removeprefix(UNPROVED))}"
    if not proof.passed and not proof.refused:
        return title, f"Failed: {words.markdown_text(proof.reason)}"
    largest = "**0**" if proof.max_rel == 0 else f"**{words.digits(proof.max_rel, 2)}** of the largest output"
    return title, (
        f"{words.markdown_text(proof.what[:1].upper() + proof.what[1:])}. {words.plural(proof.n_cases, 'case')}: "
        f"{words.markdown_text(', '.join(proof.cases[:5]))}{' and more' if len(proof.cases) > 5 else ''}. "
        f"Factors up to {words.factor(proof.largest_factor)} both ways. Largest difference in float64: {largest}. "
        f"Scaling one side alone moves the {'products' if title == 'Products' else 'outputs'} by at least "
        f"{words.digits(proof.liveness, 2)}, so the pairs are really run."
    )


def _base(model: Model) -> str:
    """The base model of an adapter, as the person wrote it; the path that the adapter itself names is never
    followed.
    """
    written = st.text_input(
        "Base model, to prove it there too",
        key=f"base of {model.checkpoint.path}",
        placeholder=str(model.checkpoint.adapter.get("base_model_name_or_path") or "a path on this machine"),
        help="The adapter is proved by its products B A. With its base model's config.json it is also run on a "
        "miniature of "
        "that base, through peft.",
    ).strip()
    with errors_as_messages("The base model cannot be opened"):
        if written:
            cached.model(normal(written))
            return normal(written)
    return ""


def _kept_proof(model: Model, base: str) -> Proof | None:
    if not base:
        return cached_proof(model.checkpoint, model.sites)
    return cached_proof(model.checkpoint, model.sites, cached.model(base).checkpoint)


def _run_miniature(model: Model, base: str = "") -> None:
    name = normal(model.checkpoint.source)
    job = latest("prove", model=name, base=base or None, pairs=with_mlp(model))
    if job is not None and not job.is_active and job.state != "done":
        explain(job, "The proof did not finish")
        if not st.button("Prove again", key="prove_again"):
            return
        job = None
    if job is None or not job.is_active:
        pairs = with_mlp(model)
        asked = {"model": name} | ({"base": base} if base else {}) | ({"pairs": pairs} if pairs else {})
        job = jobs.start(
            "prove",
            asked,
            f"Prove the rule for {title(name)}",
            exclusive=f"prove {name} {base}{' mlp' if pairs else ''}".strip(),
        )
    st.markdown(":gray[The very rule that will be used, on this architecture made small, in float64.]")
    follow(job)


def _full_check(model: Model, options: Options, decision: Decision) -> FullCheck | None:
    name, plan = normal(model.checkpoint.source), str(kept_plan.path(model, options))
    job = latest("check", model=name, plan=plan)
    exported = latest("export", model=name, plan=plan)
    if job is not None and job.is_active:
        st.markdown("**Full check**")
        follow(job)
        return None
    result = job.result if job is not None and job.state == "done" else None
    if result is None and exported is not None and exported.state == "done":
        result = (exported.result or {}).get("check")
    check = FullCheck.from_json(result) if result else None
    if check is not None:
        _say_full_check(check, model, options)
    else:
        st.markdown(f"**Full check** {_badge('not run')}")
        if exported is not None and exported.state == "done" and (exported.result or {}).get("check_not_run"):
            plain(exported.result["check_not_run"])
        if job is not None and job.state != "done":
            explain(job, "The full check did not finish")
    if model.checkpoint.declared is not None:
        plain("Its class is no class of transformers, and the file does not bring it.")
        return None
    needed, free = memory_needed(model.checkpoint), memory_free()
    fits = free is None or needed < free
    if check is None:
        what = "This checkpoint before and after on the same tokens, in its own dtype"
        if model.checkpoint.adapter_json:
            what = "Every product B A before and after on the same inputs"
        st.markdown(
            f":gray[{what}: about {words.size(needed)} of memory"
            + (f", {words.size(free)} free" if free is not None else "")
            + (".]" if fits else ": not enough.]")
        )
    if st.button(
        "Run the full check" + (" again" if check else ""), key="check", disabled=not fits or not decision.n_changed
    ):
        arguments = {"model": name, "plan": kept_plan.write_kept_plan(model, options)}
        jobs.start("check", arguments, f"Full check of {title(name)}", exclusive=f"check {plan}")
        state.rerun()
    return check


def _say_full_check(check: FullCheck, model: Model, options: Options) -> None:
    agrees = check.agrees(cached.plan(model, options))
    mark = _badge(f"passed, {check.seconds:.0f} s", "check") if agrees else _badge("contradicts the plan", "close")
    st.markdown(f"**Full check** {mark}")
    st.markdown(" ".join(_sayings(check)))
    with st.popover("Counts", type="tertiary"):
        st.markdown(
            f"{check.counted}, this checkpoint before and after, {words.DTYPES.get(check.dtype, check.dtype)}"
            + (
                f"{check.by_kernels}. Inputs: {words.markdown_text(check.tokens)}."
                if check.kernels
                else ", every product in float64."
            )
            + f" {words.markdown_text(words.title(check.outputs))} with the very same bits: "
            f"{words.count(check.n_equal)} of {words.count(check.n_values)}"
            + (". Any factor that is no power of two rounds, so few are." if not check.bit_identical else ".")
        )


def _sayings(check: FullCheck) -> list[str]:
    """What came out, each difference beside what rounding alone does."""
    outputs = words.markdown_text(check.outputs)
    if check.bit_identical:
        lines = [f"Every bit of the {outputs} is the same."]
    elif check.control_max_rel is not None:
        times = check.max_rel / check.control_max_rel if check.control_max_rel else float("nan")
        beside = (
            f", {words.digits(times, 2)} times what rounding the same weights at random does" if times == times else ""
        )
        lines = [
            f"The {outputs} move by {words.digits(check.max_rel, 2)} of the largest{beside}: "
            f"{words.digits(check.control_max_rel, 2)}."
        ]
    else:
        lines = [f"The {outputs} move by {words.digits(check.max_rel, 2)} of the largest."]
    if check.top1_agreement is not None:
        lines.append(f"The likeliest token is the same in {100 * check.top1_agreement:.2f} % of the places.")
    if check.perplexity_before is not None and check.perplexity_after is not None:
        before, after = f"{check.perplexity_before:.3f}", f"{check.perplexity_after:.3f}"
        lines.append(
            f"Perplexity {before} both times." if before == after else f"Perplexity {before} before, {after} after."
        )
    return lines


def _badge(text: str, icon: str = "") -> str:
    return f":gray-badge[{f':material/{icon}: ' if icon else ''}{text}]"
