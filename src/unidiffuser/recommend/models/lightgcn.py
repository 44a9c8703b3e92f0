"""LightGCN (He et al. 2020, arXiv 2002.02126): free vectors averaged over the graph of users and items, no query."""

from dataclasses import dataclass

from unidiffuser.recommend.events import Events, Sizes
from unidiffuser.recommend.graph import light_convolution, symmetric_link
from unidiffuser.recommend.models.factors import FactorConfig, FactorModel, Tables


@dataclass(frozen=True, kw_only=True)
class LightGCNConfig(FactorConfig):
    """The settings of LightGCN."""

    layers: int = 3
    """Steps along the graph."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 0:
            raise ValueError(f"a graph model has 0 layers or more, not {self.layers}")


class LightGCN(FactorModel):
    """Vectors averaged over the graph."""

    kind = "lightgcn"
    Config = LightGCNConfig
    config: LightGCNConfig

    def __init__(self, config: LightGCNConfig, sizes: Sizes, train: Events) -> None:
        super().__init__(config, sizes, train)
        self.link = symmetric_link(train.user, train.item, (sizes.users, sizes.items))

    def tables(self) -> Tables:
        raw = self.layer_zero()
        users, items = light_convolution(self.link, raw.users, raw.items, self.config.layers)
        return Tables(users, items, raw.words)
