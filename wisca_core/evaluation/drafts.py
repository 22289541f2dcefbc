"""A small model as a draft for a large one: how many of its tokens the target keeps, in transformers' own assisted
generation.

Greedy decoding, a fixed number of drafted tokens a step: what comes out is what the target alone writes, so a draft
changes the speed and never the text, which is checked here for every prompt.

Not covered: drafts with heads of their own on the target's states (EAGLE, Medusa); sampled decoding.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from wisca_core.comparison.statistics import paired_interval
from wisca_core.equivalence.miniature import quiet
from wisca_core.errors import ConfigMismatch, UnsupportedCheckpoint
from wisca_core.evaluation.subjects import Subject, same_tokens
from wisca_core.progress import Progress

N_DRAFTED = 5
PROMPT, NEW = 32, 48  # tokens
_GREEDY = {
    "do_sample": False,
    "max_new_tokens": NEW,
    "min_new_tokens": NEW,
    "eos_token_id": None,
    "pad_token_id": 0,
    "use_cache": True,
    "temperature": None,
    "top_p": None,
    "top_k": None,
}


def check_draft(target: Subject, draft: Subject) -> None:
    """Raises ConfigMismatch where the two do not speak of the same tokens."""
    sizes = [subject.model.config.get_text_config().vocab_size for subject in (target, draft)]
    if sizes[0] != sizes[1] or not same_tokens(target, draft):
        what = f"{sizes[0]:,} tokens and {sizes[1]:,}" if sizes[0] != sizes[1] else "two tokenizers"
        raise ConfigMismatch(
            f"the draft {draft.name} and the target {target.name} have {what}: a draft must write the target's tokens."
        )


def draft_rows(target: Subject, draft: Subject, prompts: list[np.ndarray], progress: Progress) -> dict[str, Any]:
    """The row of a draft: acceptance (share of its tokens that the target keeps) and accepted_length (tokens written
    for each run of the target, its own counted), each the mean over prompts with a 95 % t interval over prompts;
    n_same_text: prompts after which the target wrote alone what it wrote with the draft.
    """
    rates, lengths, same, drafted, kept = [], [], 0, 0, 0
    for i, prompt in enumerate(prompts):
        progress(f"drafting with {draft.name}", i, len(prompts))
        ids = torch.from_numpy(prompt[None]).to(target.device)
        steps = _generate_with_draft(target, draft, ids)
        with torch.inference_mode():
            alone = target.model.generate(ids, **_GREEDY)
        same += torch.equal(steps["text"], alone)
        n_drafted, n_kept, n_runs = (sum(column) for column in zip(*steps["runs"]))
        if n_drafted:
            rates.append(n_kept / n_drafted)
            lengths.append((n_kept + n_runs) / n_runs)
            drafted, kept = drafted + n_drafted, kept + n_kept
    rate, length = paired_interval(rates), paired_interval(lengths)
    return {
        "target": target.name,
        "draft": draft.name,
        "n_prompts": len(rates),
        "n_drafted": drafted,
        "n_kept": kept,
        "drafted_a_step": N_DRAFTED,
        "acceptance": rate.mean,
        "acceptance_low": max(0.0, rate.low) if rate.low == rate.low else math.nan,
        "acceptance_high": min(1.0, rate.high) if rate.high == rate.high else math.nan,
        "accepted_length": length.mean,
        "accepted_length_low": length.low,
        "accepted_length_high": length.high,
        "n_same_text": same,
        "rates": rates,
    }


def _generate_with_draft(target: Subject, draft: Subject, ids: torch.Tensor) -> dict[str, Any]:
    runs: list[tuple[int, int, int]] = []
    config = draft.model.generation_config
    before = (config.num_assistant_tokens, config.num_assistant_tokens_schedule, config.assistant_confidence_threshold)
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = N_DRAFTED, "constant"
    config.assistant_confidence_threshold = 0.0
    try:
        with _count_runs(runs), quiet(), torch.inference_mode():  # it warns of how transformers calls itself
            text = target.model.generate(ids, assistant_model=draft.model, **_GREEDY)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UnsupportedCheckpoint(
            f"{target.name} does not generate with {draft.name} as its draft: {' '.join(str(error).split())[:300]}"
        ) from error
    finally:
        config.num_assistant_tokens, config.num_assistant_tokens_schedule, config.assistant_confidence_threshold = (
            before
        )
    return {"text": text, "runs": runs or [(0, 0, 1)]}


@contextmanager
def _count_runs(runs: list[tuple[int, int, int]]) -> Iterator[None]:
    """Every run of the target as (tokens drafted, tokens kept, 1), told by transformers' own generator of
    candidates.
    """
    from transformers.generation.candidate_generator import AssistedCandidateGenerator as Generator

    propose, judge = Generator.get_candidates, Generator.update_candidate_strategy
    drafted: list[int] = []

    def get_candidates(self, input_ids, *args, **more):
        found = propose(self, input_ids, *args, **more)
        drafted.append(found[0].shape[1] - input_ids.shape[1])
        return found

    def update_candidate_strategy(self, input_ids, scores, num_matches):
        n = drafted[-1] if drafted else 0
        runs.append((n, min(int(num_matches), n), 1))
        return judge(self, input_ids, scores, num_matches)

    Generator.get_candidates, Generator.update_candidate_strategy = get_candidates, update_candidate_strategy
    try:
        yield
    finally:
        Generator.get_candidates, Generator.update_candidate_strategy = propose, judge
