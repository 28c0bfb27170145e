"""Images for commands that run one: from an image file, from the cache, or compiled."""

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from host.cli.options import masks_of, read_head_and_tokenizer, with_context
from host.cli.terminal import Report, say
from host.compiler.cache import find_image, image_key, keep_image
from host.compiler.compile import compile_fitted, compile_model, sequence_context
from host.errors import UserError
from host.files.image import Image
from host.models.registry import model_files, read_model
from host.text.tokenizer import AnyTokenizer
from host.text.vocabulary import Words
from hw.config import AcceleratorConfig

__all__ = ["compiled_image"]

#: Bytes of a model's files from which its image is kept: others are compiled in a second.
SMALLEST = 1 << 20


def compiled_image(console: Console, path: Path, config: AcceleratorConfig,
                   bar: Callable[[str], Report], *, fitted: bool, sparse: bool = False,
                   options: argparse.Namespace | None = None,
                   accept: Callable[[AnyTokenizer, Words, int], None] = lambda *_: None,
                   ) -> tuple[Image, AnyTokenizer, Words]:
    """Compile a model, unless the cache has its image.

    Parameters
    ----------
    console : Console
    path : Path
        Of the model.
    config : AcceleratorConfig
    bar : callable
        Adds a progress bar by its title, as that of ``progress_bars`` does.
    fitted : bool
        Whether the accelerator may become as large as the model needs it.
    sparse : bool
    options : Namespace, optional
        Has ``context``, ``masks``, ``mask_mode`` and ``prefill``, where the command has them.
    accept : callable, optional
        Called before any tensor is read, with the tokenizer, the vocabulary and the tokens that a
        sequence may have (0: any number); what it raises is not caught.

    Raises
    ------
    TallyError
        If the model cannot be read, does not fit, or is too large for this machine.
    """
    context = options.context if options else None
    prefill = options.prefill if options else 1
    masked = options.masks if options else None
    words, tokenizer, most = read_head_and_tokenizer(path)
    fields = with_context(config, context, path, most)
    if prefill > 1 and most:
        raise UserError(f"Option --prefill is for models without attention: the prompts of {path} "
                        f"are read token by token")
    accept(tokenizer, words, sequence_context(most, fields, fitted=fitted))
    files = model_files(path)
    key = ""
    if sum(file.stat().st_size for file in files) >= SMALLEST:
        report = bar("Looking for the image")
        report(0.0, "reading the model file")
        key = image_key([*files, *([masked] if masked else [])], config, fitted, sparse, context,
                        prefill, options.mask_mode if options and masked else None)
        image, wrong = find_image(key)
        report(1.0, "")
        if wrong:
            say(console, f"The image in the cache cannot be used, so it is made again: {wrong}",
                "dim")
        if image is not None:
            return image, tokenizer, words
    reading = bar("Reading the model")
    reading(0.0, "")
    model = read_model(path)
    reading(1.0, "")
    for note in model.notes:
        say(console, note, "dim")
    masks = masks_of(options, model) if options else None
    image = (compile_fitted if fitted else compile_model)(
        model, fields, sparse=sparse, masks=masks, prefill=prefill, progress=bar("Compiling"))
    if key:
        wrong = keep_image(key, image)
        if wrong:
            say(console, f"The image is not kept for the next start: {wrong}", "dim")
    return image, tokenizer, model.vocabulary
