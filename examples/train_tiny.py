"""Train the tiny model that ships with this package.

The text is six novels by Jane Austen and the King James Bible, out of two Debian packages
that are downloaded and unpacked, not installed; --text trains on your own files instead. Every
25th chapter of each book is held out and never trained on. A byte-level BPE tokenizer is learned
first, then a Llama decoder on one CPU core; each checkpoint is a folder that any Hugging Face
tool reads, and that `distkv generate --model FOLDER` serves.

  python -m examples.train_tiny --steps 40 --out /tmp/try      a first try, about two minutes
  python -m examples.train_tiny --out /tmp/tiny                the model as it ships
  python -m examples.train_tiny --steps 4000 --out /tmp/tiny   a better one: it reads more
  python -m examples.train_tiny --text book.txt --out /tmp/my  your own text
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from distkv_jax.models.config import ModelConfig
from distkv_jax.models.decoder import Decoder
from examples.tiny_checkpoint import save_checkpoint
from examples.tiny_text import Split, fetch_packages, read_files, read_packages
from examples.tiny_tokenizer import BOS_ID, EOS_ID, learn_tokenizer
from examples.tiny_training import (
    Recipe,
    bits_per_byte,
    draw_windows,
    make_step,
    paragraph_starts,
    sample,
    stream_of,
)

PROMPT = "It was a fine morning, and Emma"
SAVE_EVERY_SECONDS = 300
QUICK_SCORE_EVERY = 20


def tiny_config(vocab_size: int, hidden: int, layers: int) -> ModelConfig:
    """Shape a Llama decoder, saved in bfloat16; the default has 2.9 million weights."""
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_layers=layers,
        q_heads=8,
        kv_heads=4,
        head_dim=hidden // 8,
        max_model_len=32768,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tie_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_ids=(EOS_ID,),
        dtype="bfloat16",
    )


def train(
    recipe: Recipe,
    config: ModelConfig,
    tokenizer: Tokenizer,
    split: Split,
    *,
    out: Path,
    decay_after: float = math.inf,
    console: Console,
) -> tuple[Decoder, Recipe]:
    """Train, and keep a checkpoint in `out` from the first minute on.

    Args:
        recipe: How; its windows must be shorter than the text.
        config: The decoder's shape.
        tokenizer: Made for `config.vocab_size`.
        split: Training and held-out chapters.
        out: Folder of the checkpoint.
        decay_after: Minutes after which the rate begins to fall, as if fewer steps had been
            asked for.
        console: Gets the progress bar, and a line with each checkpoint.

    Returns:
        The trained model, and the recipe with the steps that were taken: the same seed and
        steps give the same model on the same kind of machine.
    """
    stream = stream_of(tokenizer, split.train)
    starts = paragraph_starts(tokenizer, stream)
    rng = np.random.default_rng(recipe.seed)
    state, structure, take_step = make_step(config, recipe)
    console.print(f"{len(stream):,} tokens, {_count(state.params):,} weights")

    began = saved = time.monotonic()
    save_checkpoint(nnx.merge(structure, state.params), tokenizer, out)
    loss, step = math.nan, 0
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("training", total=recipe.steps)
        while step < recipe.steps:
            is_late = time.monotonic() - began > 60 * decay_after
            if is_late and step < recipe.decay_start:
                steps = round(step / (1 - recipe.decay_share))
                recipe = dataclasses.replace(recipe, steps=steps)
                progress.update(bar, total=recipe.steps)
            context = recipe.context_at(step)
            batch = recipe.tokens_per_step // context
            rows = draw_windows(rng, stream, starts, batch=batch, context=context)
            state, now = take_step(state, rows, jnp.float32(recipe.rate_at(step)))
            loss = float(now) if step == 0 else 0.98 * loss + 0.02 * float(now)
            step += 1
            speed = step * recipe.tokens_per_step / (time.monotonic() - began)
            text = f"step {step} loss {loss:.3f} {speed:,.0f} tokens/s"
            progress.update(bar, completed=step, description=text)
            if time.monotonic() - saved > SAVE_EVERY_SECONDS:
                model = nnx.merge(structure, state.params)
                save_checkpoint(model, tokenizer, out)
                few = split.held_out[::QUICK_SCORE_EVERY]
                score = bits_per_byte(model, tokenizer, few, 256)
                console.print(f"{text}, {score:.3f} bits per byte of {len(few)} held-out texts")
                saved = time.monotonic()
    model = nnx.merge(structure, state.params)
    save_checkpoint(model, tokenizer, out)
    return model, recipe


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = _parse(arguments)
    console = Console()
    recipe = Recipe(steps=options.steps, seed=options.seed)
    if options.text:
        split = read_files(options.text)
    else:
        split = read_packages(fetch_packages(options.packages))
    console.print(
        f"{sum(map(len, split.train)):,} characters to train on, "
        f"{sum(map(len, split.held_out)):,} held out"
    )
    tokenizer = learn_tokenizer(split.train, options.vocab)
    config = tiny_config(tokenizer.get_vocab_size(), options.hidden, options.layers)
    began = time.monotonic()
    model, recipe = train(
        recipe,
        config,
        tokenizer,
        split,
        out=options.out,
        decay_after=options.decay_after,
        console=console,
    )
    trained = (time.monotonic() - began) / 60
    console.print(
        f"{recipe.steps} steps, {recipe.steps * recipe.tokens_per_step:,} tokens, "
        f"{trained:.0f} minutes on {jax.devices()[0].device_kind}"
    )
    for context in (256, 1024, 2048):
        score = bits_per_byte(model, tokenizer, split.held_out, context, batch=2)
        console.print(f"{score:.3f} bits per held-out byte with a context of {context} tokens")
    console.print(sample(model, tokenizer, PROMPT, tokens=150), highlight=False, markup=False)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the checkpoint goes")
    add("--text", type=Path, nargs="+", metavar="FILE", help="UTF-8 books to train on instead")
    add(
        "--packages",
        type=Path,
        default=Path(".tiny-text"),
        metavar="FOLDER",
        help="where the Debian packages are kept (default: %(default)s)",
    )
    add("--steps", type=int, default=Recipe.steps, help="updates (default: %(default)s)")
    add(
        "--decay-after",
        type=float,
        default=math.inf,
        metavar="MINUTES",
        help="begin to end then, with half as many steps again (default: by --steps)",
    )
    add("--vocab", type=int, default=2048, help="tokens to learn (default: %(default)s)")
    add("--hidden", type=int, default=256, help="width of the model (default: %(default)s)")
    add("--layers", type=int, default=4, help="depth of the model (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights and windows (default: %(default)s)")
    return parser.parse_args(arguments)


def _count(params: nnx.State) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


if __name__ == "__main__":
    main()
