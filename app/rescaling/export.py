"""The block that gives the rescaled model away: to a folder, and from there as a download."""

import re
import shlex
from pathlib import Path

import streamlit as st

from wisca_app import cached, downloads, state
from wisca_app.declaring import kept
from wisca_app.figures import words
from wisca_app.job_progress import explain, follow, latest
from wisca_app.messages import plain
from wisca_app.open_model import normal, title
from wisca_app.parts import KEPT, primary, quiet
from wisca_app.rescaling import kept_plan
from wisca_core import jobs, storage
from wisca_core.architecture.declaration import NAME as DECLARED
from wisca_core.equivalence.full_check import why_too_large
from wisca_core.equivalence.proof import Proof
from wisca_core.exporting.preview import n_bytes_free, preview
from wisca_core.jobs import Job
from wisca_core.model import Model
from wisca_core.planning.decide import Decision
from wisca_core.planning.options import Options


def draw(model: Model, options: Options, decision: Decision, proof: Proof | None) -> None:
    st.subheader("Export", anchor=False)
    name, plan = normal(model.checkpoint.source), str(kept_plan.path(model, options))
    job = latest("export", model=name, plan=plan)
    out = st.text_input(
        "Folder",
        str(_free_folder(name)),
        key=f"out {name} {(job.id, job.state) if job else ''}",
        help="A new folder on this machine; one that exists is refused.",
    ).strip()
    _say_preview(model, out)
    adapters = _adapters(model, name)
    fits = _fits(model)
    check = st.toggle(
        "Full check before it is renamed into place",
        value=fits,
        disabled=not fits,
        key="export_check",
        **KEPT,
        help="Compares the written weights with the original on the same tokens; a contradiction stops the export.",
    )
    reason = _why_not(decision, proof, out)
    if st.button(
        "Export",
        key="export",
        type=primary(),
        disabled=bool(reason) or (job is not None and job.is_active),
        help=reason or None,
    ):
        arguments = {
            "model": name,
            "plan": kept_plan.write_kept_plan(model, options),
            "out": normal(out),
            "check": bool(check and fits),
            "adapters": adapters,
        }
        if model.checkpoint.declared is not None:  # only what was said on this page makes its proof hold
            arguments |= kept.arguments(model) | {"unproved": True}
        jobs.start("export", arguments, f"Export {title(normal(out))}", exclusive=normal(out))
        state.rerun()
    if job is not None:
        _say_job(job)


def _adapters(model: Model, name: str) -> list[str]:
    """LoRA adapters that are written again with the model: those seen near it, and others that are named."""
    if model.checkpoint.adapter_json:
        return []
    near = list(cached.adapters_near(model))
    chosen = st.multiselect(
        "LoRA adapters that go with it",
        near,
        default=near,
        key=f"adapters {name}",
        accept_new_options=True,
        format_func=title,
        placeholder="none; write the path of one to add it",
        help="An adapter fits these weights only as they are. Chosen ones follow into folders of their own, beside "
        "the model's, proved together with it.",
    )
    behind = [one for one in near if one not in chosen]
    if behind:
        plain(f"Left behind: {', '.join(map(title, behind))} would break on the rescaled weights.")
    return [normal(one) for one in chosen]


def _free_folder(name: str) -> Path:
    stem = re.sub(r"[^\w.-]+", "-", title(name), flags=re.ASCII).strip("-.")[:80] or "model"
    folder = storage.folder("exports")
    names = (f"{stem}-balanced{tail}" for tail in ["", *(f"-{n}" for n in range(2, 1000))])
    return next(folder / one for one in names if not (folder / one).exists())


def _say_preview(model: Model, out: str) -> None:
    seen = preview(model.checkpoint)
    free = n_bytes_free(Path(normal(out))) if out else 0
    st.markdown(
        f"{words.plural(len(seen.rewritten), 'weight file')} rewritten, "
        f"{words.plural(len(seen.copied), 'file')} copied unchanged, "
        "`wisca_report.json`, a picture and a section of README.md added."
    )
    quiet(f"{words.size(seen.n_bytes)} to write, {words.size(free)} free.")
    if seen.left_out:
        with st.expander(f"Left out: {words.plural(len(seen.left_out), 'file')}", key="left_out"):
            plain("\n".join(f"{name}: {why}" for name, why in seen.left_out))


def _fits(model: Model) -> bool:
    return model.checkpoint.declared is None and not why_too_large(
        model.checkpoint
    )  # nothing here can run a declared one


def _why_not(decision: Decision, proof: Proof | None, out: str) -> str:
    if not decision.n_changed:
        return "With these options nothing would change."
    if proof is None:
        return "The proof by miniature is not finished yet."
    if not proof.passed and proof.rule == DECLARED:
        return (
            "Nothing has proved these pairs: write it from the command line with --build, or say that you take it "
            "without."
        )
    if not any(map(proof.covers, decision.patterns.sites.sites)):
        return "The proof by miniature failed, and a failed proof stops the export."
    return "" if out else "Give a folder."


def _say_job(job: Job) -> None:
    if job.is_active:
        plain(f"Writing {job.arguments.get('out', '')}")
        follow(job)
        return
    if job.state != "done":
        explain(job, "The last export did not finish")
        return
    folder = Path(str((job.result or {}).get("out", "")))
    if not (folder / downloads.REPORT).is_file():
        return  # exported once, and removed since
    st.markdown(f"**Exported** :gray-badge[:material/check: {(job.finished or 0) - (job.started or 0):.1f} s]")
    st.code(str(folder), language=None, wrap_lines=True)
    for other in (job.result or {}).get("adapters") or ():
        quiet("Its adapter, which fits only this folder:")
        st.code(str(other), language=None, wrap_lines=True)
    _say_download(folder)


def _say_download(folder: Path) -> None:
    token = downloads.link(folder)
    files = downloads.files(folder)
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.link_button(
            f"Download, {words.size(sum(f.n_bytes for f in files))}",
            downloads.address(token),
            icon=":material/download:",
        )
        st.markdown(":small[:gray[One uncompressed zip. The link ends with this server.]]", width="content")
    with st.popover("To the hub", type="tertiary"):
        st.markdown("Nothing leaves this machine by itself. With a token that may write, in a terminal:")
        st.code(f"hf upload OWNER/NAME {shlex.quote(str(folder))}", language="bash", wrap_lines=True)
        quiet("README.md is its card: read it first. `hf auth login` keeps the token.")
    with st.expander("Single files", key="single_files"):
        for file in files[:200]:
            st.markdown(
                f"[{words.markdown_text(file.name)}]({downloads.address(token, file.name)}) "
                f":gray[{words.size(file.n_bytes)}]"
            )
