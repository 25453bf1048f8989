"""The demo model's own tokenizer: byte-level BPE of 1,280 tokens, fast, with offsets."""

from collections.abc import Iterable
from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from layercache.demo.corpus import documents
from layercache.demo.films import CERTIFICATES

VOCABULARY = 1280
"""Tokens, the special ones included."""
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
CONTEXT = 512
"""Tokens that a demo model sees."""
# Words and signs with the space before them; digits one by one, so that numbers share their tokens.
WORDS = Regex(r" ?[^\s\d\p{P}\p{S}]+| ?\d| ?[\p{P}\p{S}]+|\s")


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer learned from texts; it puts a BOS before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(WORDS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    start = processors.TemplateProcessing(f"{BOS} $A", f"{BOS} $A {BOS} $B", [(BOS, tokenizer.token_to_id(BOS))])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), start])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, model_max_length=CONTEXT
    )


def demo_tokenizer(sample: int = 30_000) -> PreTrainedTokenizerFast:
    """The tokenizer of the demo model, learned from the first documents; every certificate must be one token."""
    texts = ("".join(text for text, _ in document) for document in islice(documents(), sample))
    tokenizer = train_tokenizer(texts)
    for word in (*CERTIFICATES, "true", "false"):
        if len(tokenizer.encode(" " + word, add_special_tokens=False)) != 1:
            raise ValueError(f"{word!r} is not a single token")
    return tokenizer
