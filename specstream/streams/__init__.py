"""The method: streams in the top layers of a model, and the pair map between drafted tokens."""
