"""`diptych train`: an encoder pair learns from captioned pictures of your own."""

from __future__ import annotations

import click

from service.cli.grouped import GroupedCommand
from service.cli.train.filter import refuse_folds
from service.cli.train.options import TrainOptions, train_options


@click.command(cls=GroupedCommand, short_help="Train an encoder pair on captioned pictures.")
@train_options
def train(options: TrainOptions) -> int:
    """Train an encoder pair on captioned pictures, carefully.

    \b
    diptych train --data ~/Pictures/captioned --out my-pair
    diptych train --data 'train-{00000..00009}.tar' --val val.tar --out tuned \\
        --model ViT-B-32/laion2b_s34b_b79k
    diptych train --data train.jsonl --out mine --init fresh --model ViT-B-32 \\
        --batch-size 4096 --micro-batch 64 --precision bf16
    torchrun --nproc-per-node 8 --no-python diptych train --data ... --out tuned --model ...
    diptych index build ~/Pictures --out photos.index --model local-dir:tuned
    diptych train --data train.tar --label-field label --tune linear --out shelf
    diptych classify ~/Pictures --head shelf/head.safetensors

    The starter's towers stay frozen and its heads learn; of an open_clip model all learns that is
    not locked. Before and after are measured on --val. Killed and run again with the same
    command, a run continues where it was. docs/training.md says what the defaults are and why.
    """
    if options.filter_folds:
        refuse_folds(options)
    if options.tune in ("linear", "adapter", "prompts"):
        from service.cli.train.head import train_head

        return train_head(options)
    if not options.data and not options.extra_data and not options.class_data:
        raise click.UsageError("nothing to train on: name at least one --data or --class-data")
    if options.tune == "lora" and options.unlock_blocks:
        raise click.UsageError("--unlock-blocks has no meaning for --tune lora")
    if options.model == "starter":
        if options.tune == "lora":
            raise click.UsageError("the starter's heads learn whole; --tune lora is for open_clip")
        from service.cli.train.starter import train_starter

        return train_starter(options)
    from service.cli.train.open_clip import train_openclip

    return train_openclip(options)
