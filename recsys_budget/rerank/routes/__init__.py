"""Routes: exact or certified algorithms for re-ranking problems of a special structure, on plain arrays.

Candidates come in compressed rows: those of user ``u`` are rows ``offsets[u]:offsets[u + 1]``, by falling
gain, and ties keep the order of the catalogue. "The earlier row first" is the tie rule everywhere,
so that answers repeat bit for bit and a batch equals its users one by one. A route knows nothing of
constraints, tables or cvxpy: the language above translates.
"""
