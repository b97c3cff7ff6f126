"""The steps as files that a runtime loads: graphs, the weights once, and a manifest."""
