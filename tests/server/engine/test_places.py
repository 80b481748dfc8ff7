"""Places for loads are those of the tenants whose versions they load, also for uploads."""

from pathlib import Path

import pytest
from engines import run, store_of, tiny_engine
from peft_adapters import save_lora

from weft.adapters.packed import Packed
from weft.adapters.residency import PLACES
from weft.adapters.tenancy import TenantContext
from weft.server.engine.messages import Load, Loaded
from weft.server.engine.versions import Versions


def test_one_tenants_uploads_leave_places_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    honest = Versions.load

    def load(versions: Versions, digest: str, tenant: TenantContext) -> Packed:
        read.append(digest)
        return honest(versions, digest, tenant)

    monkeypatch.setattr(Versions, "load", load)
    digests = [
        store_of(tmp_path).put(
            save_lora(tmp_path / f"{seed}", "llama", seed=seed, r=2, target_modules=["q_proj"])
        )
        for seed in range(PLACES + 1)
    ]
    *many, one = [
        Load(f"load-{number}", digest, TenantContext("many" if number < PLACES else "one"))
        for number, digest in enumerate(digests)
    ]
    with tiny_engine(tmp_path) as engine:
        answers = [event for event in run(engine, *many, one) if isinstance(event, Loaded)]
    assert len(answers) == len(digests)
    assert read.index(one.digest) <= PLACES // 2
