"""From settings to requests: one function for each kind of dataset."""

import math
from collections.abc import Callable

import numpy as np

from distkv_jax.errors import ConfigError
from serve.bench.settings import BenchSettings
from serve.bench.sharegpt_file import is_usual, read_sharegpt
from serve.bench.trace_files import (
    MOONCAKE_BLOCK,
    Trace,
    read_azure,
    read_burstgpt,
    read_mooncake,
)
from serve.bench.vocabulary import Vocabulary
from serve.bench.workload import Item, Row, TokenIds, Workload

READERS: dict[str, Callable[[str], Trace]] = {
    "mooncake": read_mooncake,
    "burstgpt": read_burstgpt,
    "azure": read_azure,
}

# Numbers that keep the draws of one seed apart.
LENGTHS, TOKENS, BLOCKS, SHUFFLE, TEXTS = range(5)


def make_workload(settings: BenchSettings, vocabulary: Vocabulary) -> Workload:
    """Make all requests.

    Raises:
        ConfigError: The dataset's file is wrong, or needs a tokenizer that is not there.
        OSError: It cannot be read.
    """
    has_tokenizer = vocabulary.tokenizer is not None
    if settings.backend == "openai-chat" and not has_tokenizer:
        raise ConfigError("backend openai-chat takes texts only: give --tokenizer to make them")
    if settings.dataset_name == "sharegpt":
        if not has_tokenizer:
            raise ConfigError("dataset sharegpt is text: give --tokenizer to count its tokens")
        return sharegpt(settings, vocabulary)
    if settings.dataset_name == "random":
        workload = random_prompts(settings, vocabulary)
    else:
        workload = trace(settings, vocabulary)
    return as_text(settings, vocabulary, workload) if is_text(settings) else workload


def is_text(settings: BenchSettings) -> bool:
    """Say whether the server takes texts only; token ids are exact, and need no tokenizer there."""
    return settings.backend == "openai-chat"


def random_prompts(settings: BenchSettings, vocabulary: Vocabulary) -> Workload:
    """Draw prompts of random tokens behind a prefix that all share."""
    rng = np.random.default_rng([settings.seed, LENGTHS])
    ratio, count = settings.random_range_ratio, settings.num_prompts
    prompts, outputs = (
        rng.integers(
            max(1, math.floor(length * (1 - ratio))),
            math.ceil(length * (1 + ratio)),
            count,
            endpoint=True,
        ).tolist()
        for length in (settings.random_input_len, settings.random_output_len)
    )
    rng = np.random.default_rng([settings.seed, TOKENS])
    prefix = vocabulary.draw(rng, settings.random_prefix_len)
    items = []
    for prompt_tokens, output_tokens in zip(prompts, outputs, strict=True):
        ids = np.concatenate([prefix, vocabulary.draw(rng, prompt_tokens)])
        items.append(Item(ids, len(ids), output_tokens))
    return Workload(items, [])


def trace(settings: BenchSettings, vocabulary: Vocabulary) -> Workload:
    """Make prompts of a trace's lengths."""
    assert settings.dataset_path is not None
    rows, num_skipped = READERS[settings.dataset_name](settings.dataset_path)
    rng = np.random.default_rng([settings.seed, TOKENS])
    items = []
    for row in rows[: settings.num_prompts]:
        ids = prompt_of(row, vocabulary, settings.seed, rng)
        arrival_s = row.arrival_s * settings.time_scale
        items.append(Item(ids, row.prompt_tokens, row.output_tokens, arrival_s))
    notes = []
    if num_skipped:
        notes.append(f"{num_skipped} rows of the trace without a prompt or an answer are left out")
    if len(items) < settings.num_prompts:
        notes.append(f"the trace has {len(items)} requests, {settings.num_prompts} were asked for")
    return Workload(items, notes)


def prompt_of(row: Row, vocabulary: Vocabulary, seed: int, rng: np.random.Generator) -> TokenIds:
    """Make a prompt: equal blocks have equal tokens, what no block covers is like no other."""
    parts, left = [], row.prompt_tokens
    for block in row.blocks:
        if left <= 0:
            break
        of_block = np.random.default_rng([seed, BLOCKS, block % 2**64])
        parts.append(vocabulary.draw(of_block, MOONCAKE_BLOCK)[:left])
        left -= len(parts[-1])
    parts.append(vocabulary.draw(rng, max(0, left)))
    return np.concatenate(parts)


def as_text(settings: BenchSettings, vocabulary: Vocabulary, workload: Workload) -> Workload:
    """Write all prompts as texts."""
    rng = np.random.default_rng([settings.seed, TEXTS])
    items, num_wrong = [], 0
    for item in workload.items:
        assert not isinstance(item.prompt, str)
        text, num_tokens = vocabulary.text_of(item.prompt, rng)
        num_wrong += num_tokens != item.prompt_tokens
        items.append(item._replace(prompt=text, prompt_tokens=num_tokens))
    notes = list(workload.notes)
    if num_wrong:
        notes.append(f"{num_wrong} prompts have other lengths as texts than asked for")
    return Workload(items, notes)


def sharegpt(settings: BenchSettings, vocabulary: Vocabulary) -> Workload:
    """Take first questions, in random order."""
    assert settings.dataset_path is not None
    turns = read_sharegpt(settings.dataset_path)
    items, is_recorded = [], settings.sharegpt_output_len is None
    for place in np.random.default_rng([settings.seed, SHUFFLE]).permutation(len(turns)):
        if len(items) == settings.num_prompts:
            break
        turn = turns[place]
        prompt_tokens = vocabulary.count(turn.question)
        output_tokens = settings.sharegpt_output_len or vocabulary.count(turn.answer)
        if is_usual(prompt_tokens, output_tokens, is_recorded=is_recorded):
            items.append(Item(turn.question, prompt_tokens, output_tokens))
    if not items:
        raise ConfigError(f"{settings.dataset_path} has no conversation of usual length")
    notes = []
    if len(items) < settings.num_prompts:
        notes.append(f"the file has {len(items)} requests, {settings.num_prompts} were asked for")
    return Workload(items, notes)
