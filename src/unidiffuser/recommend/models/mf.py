"""Matrix factorisation: one free vector a user and an item, no query (BPR-MF, Rendle et al. 2009)."""

from unidiffuser.recommend.models.factors import FactorConfig, FactorModel, Tables


class MF(FactorModel):
    """Free vectors."""

    kind = "mf"
    Config = FactorConfig

    def tables(self) -> Tables:
        return self.layer_zero()
