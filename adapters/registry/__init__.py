"""Where bundles are kept by name: adapters, versions, aliases and their blobs."""
