"""DropBlock for the Trainer of Hugging Face Transformers: `DropBlockCallback(example).attach(trainer)`."""

from __future__ import annotations

from typing import Any, Self

from transformers import TrainerCallback

from dropblock.integrations import TrainedLayers


class DropBlockCallback(TrainedLayers, TrainerCallback):
    """Schedules the layers by `state.global_step`, and adds their drop to what the trainer logs with the loss.

    Args: see `dropblock.integrations.TrainedLayers`. The measured drop is that of the main process.
    """

    def attach(self, trainer: Any) -> Self:
        """Install the layers into the model and join the trainer; before `trainer.train()`."""
        self.install(trainer.model)
        # First of all callbacks: the trainer calls its reporters (TensorBoard, ...) before those that are added.
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise ValueError(
            "callbacks=[DropBlockCallback(...)] would be called after the trainer's reporters: use "
            "DropBlockCallback(...).attach(trainer)"
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if model is not self.trained:
            raise ValueError(
                "the trainer has another model than the one with the layers: give model instead of model_init"
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batch = 0
        self.before_batch(state.global_step, state.max_steps, args.process_index, self.batch)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batch += 1  # of a step that accumulates gradients
        self.before_batch(state.global_step, state.max_steps, args.process_index, self.batch)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            values = self.values()
            logs.update(values)
            state.log_history[-1].update(values)
