"""peft, one adapter after another: what serves many adapters without a server for them."""

from collections.abc import Sequence
from importlib.metadata import version

from peft_groups import Job, PeftServer
from serving.request import Request

from sides.in_process import InProcess


class PeftLoop(InProcess):
    """All requests of an adapter are one batch of `generate`."""

    name = "peft groups"
    _server: PeftServer | None = None

    def start(self) -> str:
        """Loads the base and all adapters."""
        folders = list(self.setting.adapters.values())
        self._server = PeftServer(self.setting.base, folders, self.setting.torch_dtype)
        return f"{version('peft')}, transformers {version('transformers')}"

    def tokens(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        """Adapter by adapter."""
        assert self._server is not None
        places = {name: place for place, name in enumerate(self.setting.adapters)}
        jobs = [
            Job(
                tuple(map(int, request.prompt)),
                None if request.adapter is None else places[request.adapter],
            )
            for request in requests
        ]
        return self._server.answers(jobs, requests[0].max_tokens)

    def stop(self) -> None:
        """Forgets the model."""
        self._server = None
