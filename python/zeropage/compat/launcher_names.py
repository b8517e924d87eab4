"""Names that programs import from `deepspeed.launcher.runner`."""

import os

DEEPSPEED_ENVIRONMENT_NAME = os.getenv(
    "DS_ENV_FILE", ".deepspeed_env"
)  # the launcher exports the variables in this file to all hosts
DLTS_HOSTFILE = "/job/hostfile"
