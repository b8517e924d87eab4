"""What programs written for DeepSpeed expect beyond the engine. The package `deepspeed` maps its names to these
modules."""
