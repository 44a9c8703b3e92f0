"""LightGCN with the query: the user's vector plus the sum of the query's word vectors.

    s(u, q, i) = (e*_u + sum of w in q of e_w) . e*_i

The least that a model of searches must beat; without a query it is LightGCN.
"""

from unidiffuser.recommend.models.lightgcn import LightGCN


class LightGCNQuery(LightGCN):
    """LightGCN that reads queries."""

    kind = "lightgcn-query"
    reads_queries = True
