"""A base described without its values, as it crosses to a process that has no model."""

from typing import Self

import msgspec

from weft.adapters.base import (
    BaseModules,
    Kind,
    KVShape,
    ParameterOwner,
    ReadParameter,
    TargetModule,
)
from weft.adapters.expert_maps import ExpertMap


class TargetOutline(msgspec.Struct, frozen=True, array_like=True):
    """A TargetModule but for its weight."""

    name: str
    kind: Kind
    in_features: int
    out_features: int
    scale: float
    refusal: str | None


class BaseOutline(msgspec.Struct, frozen=True, kw_only=True):
    """All that BaseModules says of a base; see there."""

    targets: tuple[TargetOutline, ...]
    owners: dict[str, ParameterOwner]
    types: dict[str, str]
    experts: dict[str, ExpertMap]
    former: dict[str, str]
    embedding: str | None
    head: str | None
    attention: dict[str, KVShape]
    tied: frozenset[str]
    parameters: int
    quantization: str | None

    @classmethod
    def of(cls, base: BaseModules) -> Self:
        """What is to be said of `base`."""
        return cls(
            targets=tuple(
                TargetOutline(t.name, t.kind, t.in_features, t.out_features, t.scale, t.refusal)
                for t in base.values()
            ),
            owners=dict(base.owners),
            types=dict(base.types),
            experts=dict(base.experts),
            former=dict(base.former),
            embedding=base.embedding,
            head=base.head,
            attention=dict(base.attention),
            tied=base.tied,
            parameters=base.parameters,
            quantization=base.quantization,
        )

    def modules(self, read: ReadParameter) -> BaseModules:
        """The base again; its values come from `read`."""
        targets = {
            t.name: TargetModule(
                t.name,
                t.kind,
                t.in_features,
                t.out_features,
                weight=lambda name=t.name: read(name, "weight"),  # type: ignore[misc]
                scale=t.scale,
                refusal=t.refusal,
            )
            for t in self.targets
        }
        described = BaseModules(
            targets,
            owners=self.owners,
            types=self.types,
            parameter=read,
            experts=self.experts,
            former=self.former,
            embedding=self.embedding,
            head=self.head,
            attention=self.attention,
            tied=self.tied,
            parameters=self.parameters,
            quantization=self.quantization,
        )
        return described.with_parameters(read)
