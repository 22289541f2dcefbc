"""``wisca verify``: two checkpoints compared."""

from wisca_core.checkpoint import Declared
from wisca_core.cli import models
from wisca_core.cli.terminal import bar, document, indented_lines, say, say_lines
from wisca_core.equivalence.full_check import FullCheck
from wisca_core.equivalence.proof import Proof
from wisca_core.words import plural, without_site_name


def run(before: str, after: str, weights_only: bool, json: bool, yes: bool, declared: Declared | None = None) -> int:
    """0 for bit-identical and equivalent up to rounding, 1 for not equivalent."""
    from wisca_core.equivalence.verify import verify as compare

    first, second = models.open_after_asking(before, yes, declared), models.open_after_asking(after, yes, declared)
    with bar() as progress:
        found = compare(first, second, progress, run_models=not weights_only)
    if json:
        document(
            "wisca-verify",
            {"before": str(first.path), "after": str(second.path), "exit_code": found.exit_code} | found.to_json(),
        )
        return found.exit_code
    if found.proof and not found.proof.is_made:
        say_proof(found.proof)
    say(found.verdict, style="bold")
    say(indented_lines(found.reasons))
    if found.n_changed and found.exit_code:
        say(f"{found.n_changed:,} of {found.n_tensors:,} tensors differ")
    if found.proof and found.proof.is_made:
        say_proof(found.proof)
    if found.check:
        say("Full check:")
        say_check(found.check)
    say_not_checked(found.not_checked)
    return found.exit_code


def say_proof(proof: Proof) -> None:
    """The proof by miniature: figures and cases."""
    if not proof.is_made:
        say("NOT PROVED: the declared sites were taken as they are (--unproved)", style="bold")
        return
    n = len(proof.proved) + len(proof.refused)
    in_part = f"passed for {len(proof.proved)} of {n} kinds of pair; left as they are:" if proof.proved and n else ""
    said = "passed" if proof.passed else in_part or f"failed: {proof.reason}"
    say(f"{proof.kind} of rule {proof.rule}: {said}")
    if in_part and not proof.passed:
        say(indented_lines([f"{name}: {without_site_name(reason)}" for name, reason in proof.refused]))
    say(f"  {proof.what}")
    say(
        f"  largest relative difference {proof.max_rel:.1e} in float64 over {plural(proof.n_cases, 'case')}"
        + (f", factors up to {proof.largest_factor:g}" if proof.largest_factor > 1 else "")
    )
    say(
        f"  {'scaling' if proof.largest_factor > 1 else 'changing'} one side alone moves the "
        f"{'products' if proof.kind == 'Proof by products' else 'outputs'} by at least {proof.liveness:.1e}"
    )
    say(f"  cases: {', '.join(proof.cases)}")


def say_check(check: FullCheck) -> None:
    """The figures of a full check beside ``check.words()``."""
    if check.kernels:
        say(f"  inputs: {check.tokens}")
    say(f"  {check.n_equal:,} of {check.n_values:,} values bit-equal, largest absolute difference {check.max_abs:.3g}")
    if check.perplexity_before is not None and check.perplexity_after is not None:
        say(f"  perplexity {check.perplexity_before:.4f} before, {check.perplexity_after:.4f} after")


def say_not_checked(reasons: tuple[str, ...]) -> None:
    """What no figure above covers."""
    say_lines("Not checked:", reasons)
