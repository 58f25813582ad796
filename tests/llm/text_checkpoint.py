"""A small checkpoint with a tokenizer of single characters, so that text is what tests make it."""

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, processors

from tests.llm.engines import GOLDEN, VOCAB

SPECIAL = ("<unk>", "<s>", "</s>")
EOS = SPECIAL.index("</s>")
CHARACTERS = [chr(code) for code in range(32, 127)]
PAIRS = [f"{letter}{letter}" for letter in "abcdefghijklmnopqrstuvwxyzABCD"]
TEXTS = [*SPECIAL, *CHARACTERS, *PAIRS]
"""Text of each token id."""
TEMPLATE = "{% for one in messages %}{{ one.role }}: {{ one.content }}\n{% endfor %}"
MAX_TOKENS = 7
"""What the checkpoint recommends."""


def write_text_checkpoint(
    folder: Path,
    case: str = "llama3_gqa_tied",
    *,
    template: str | None = TEMPLATE,
    add_bos: bool = False,
) -> Path:
    """Copy a golden checkpoint to `folder`, and give it a tokenizer and perhaps a chat template."""
    assert len(TEXTS) == VOCAB
    shutil.copytree(GOLDEN / case, folder, dirs_exist_ok=True)
    vocab = {text: index for index, text in enumerate(TEXTS)}
    inner = Tokenizer(models.BPE(vocab, [], unk_token=SPECIAL[0]))
    inner.add_special_tokens(list(SPECIAL))
    inner.decoder = decoders.Fuse()
    if add_bos:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL[1]} $A", special_tokens=[(SPECIAL[1], 1)]
        )
    inner.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2]}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    generation = {"eos_token_id": EOS, "max_new_tokens": MAX_TOKENS}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def ids_of(text: str) -> list[int]:
    """Encode text, one token for each character."""
    return [TEXTS.index(character) for character in text]


def text_of(token_ids: list[int]) -> str:
    """Decode tokens, special ones left out."""
    return "".join(TEXTS[token] for token in token_ids if token >= len(SPECIAL))
