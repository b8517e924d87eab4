"""Names that programs for DeepSpeed use in addition to the engine. The package `deepspeed` maps its names to these
modules."""
