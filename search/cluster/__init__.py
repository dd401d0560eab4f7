"""A Ray cluster that a search joins: its authentication, its nodes, the folders that they see, the room for trials."""
