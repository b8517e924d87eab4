"""Lets a Trainer of transformers train again, and after an evaluation.

Accelerate destroys a Trainer's engine before each training. transformers would continue to use that engine, because it
looks like a wrapped model. With this hook it gets its own model instead of an engine that has ended, and prepares it as
for the first training.
"""

import functools
import sys
from typing import Any

_MARK = "_zeropage_sees_ended_engines"


def install() -> None:
    """Installs the hook if transformers' Trainer has been imported. Later calls do nothing."""
    module = sys.modules.get("transformers.trainer")
    trainer = getattr(module, "Trainer", None)
    if trainer is None or hasattr(trainer, _MARK):
        return
    wrap_model = trainer._wrap_model

    @functools.wraps(wrap_model)
    def wrap_model_of_no_ended_engine(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        from ..engine import ZeropageEngine

        if isinstance(model, ZeropageEngine) and model.has_ended and model.module is self.model:
            self.model_wrapped = model = self.model
        return wrap_model(self, model, *args, **kwargs)

    trainer._wrap_model = wrap_model_of_no_ended_engine
    setattr(trainer, _MARK, True)
