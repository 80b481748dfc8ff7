"""transformers' continuous batching, which knows no adapters: the base, or one adapter merged."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from peft import PeftModel
from serving.request import Request
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
)

from sides.in_process import InProcess
from sides.side import NotServed

BATCH_TOKENS = 1024


class ContinuousBatching(InProcess):
    """One model as it is, and another one with the first adapter merged."""

    name = "transformers CB"
    _models: Mapping[str | None, PreTrainedModel] = {}

    def start(self) -> str:
        """Loads both models."""
        merged, folder = next(iter(self.setting.adapters.items()))
        adapted = PeftModel.from_pretrained(self._load(), folder)
        self._models = {None: self._load(), merged: adapted.merge_and_unload()}
        return version("transformers")

    def tokens(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        """Those of one model. Raises NotServed."""
        adapters = {request.adapter for request in requests}
        if len(adapters) > 1 or not adapters <= self._models.keys():
            raise NotServed("one adapter, merged")
        length = requests[0].max_tokens
        outputs = self._models[adapters.pop()].generate_batch(
            [list(request.prompt) for request in requests],
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=length, eos_token_id=-1, pad_token_id=0
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=2 * self.setting.clients, max_batch_tokens=BATCH_TOKENS
            ),
        )
        return [tuple(output.generated_tokens) for output in outputs.values()]

    def stop(self) -> None:
        """Forgets the models."""
        self._models = {}

    def _load(self) -> PreTrainedModel:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.setting.base, dtype=self.setting.torch_dtype, attn_implementation="sdpa"
        )
        return model.eval()
