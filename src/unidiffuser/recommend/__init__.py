"""Search and recommendation as distributions of one joint of users, queries and items.

    recommendation  p(item | user)            search      p(item | user, query)
    suggestion      p(query | user)           demand      p(query | user, item)

    tables/      one file a format of event tables            models/       one file a model, all asked alike
    splits       parts and negatives, seeded                  training      from a table to a run folder
    world        a world of known intents                     evaluation    models measured, the oracle beside them
    oracle       its exact probabilities                      recommender   raw ids in, raw ids out

It leans on the engine (process, timesteps, networks, sampling, the optimiser's loop), and nothing leans on it.
"""
